"""`tinygpt serve` as a process: its texts, clients that vanish, its end; and what it refuses to start with."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cli.helpers import assert_one_sentence
from tests.serving.conftest import KEY, Server

PROMPT = "a private prompt"


def client_of(server: Server) -> httpx2.Client:
    return httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)


def metric(client: httpx2.Client, name: str) -> int:
    lines = client.get("/metrics").text.splitlines()
    return int(next(line for line in lines if line.startswith(f"tinygpt_{name} ")).split()[1])


@pytest.mark.slow
def test_texts_and_a_graceful_end(server: Server, run: Any) -> None:
    """Greedy texts are those of `tinygpt sample`; SIGTERM lets a stream come to its end; nothing private is logged."""
    with client_of(server) as client:
        assert client.get("/health").json() == {"status": "ok"}
        ask = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0}
        text = client.post("/v1/completions", json=ask).json()["choices"][0]["text"]
        sampled = run("sample", f"--model={server.folder}", f"--prompt={PROMPT}", "--greedy", "--max-new-tokens=40")
        assert sampled.out == PROMPT + text + "\n"
        assert httpx2.get(f"{server.url}/v1/models").status_code == 401
        body = {**ask, "max_tokens": 1500, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            found = [next(lines)]
            server.process.send_signal(signal.SIGTERM)
            found += [line for line in lines if line]
    assert found[-1] == "data: [DONE]"
    texts = [json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in found[:-1]]
    assert len("".join(texts)) == 1500
    out, err = server.process.communicate(timeout=60)
    assert server.process.returncode == 0
    assert KEY not in out + err
    assert PROMPT not in out + err
    assert not err


@pytest.mark.slow
def test_clients_that_vanish(server: Server) -> None:
    """Streaming or waiting, they free their places, long before their texts would have ended."""
    with client_of(server) as client:
        for stream in (True, False):
            body = json.dumps({"prompt": "a", "n": 16, "max_tokens": 2000, "stream": stream})
            host, _, port = server.url.removeprefix("http://").partition(":")
            with socket.create_connection((host, int(port))) as connection:
                head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                while metric(client, "texts_running") < 16:
                    time.sleep(0.01)
            deadline = time.monotonic() + 30
            while metric(client, "texts_running") and time.monotonic() < deadline:
                time.sleep(0.01)
            assert metric(client, "texts_running") == 0
        assert metric(client, "texts_total") == 0  # none came to its end
    assert server.stop(signal.SIGINT)[0] == 0


# What it refuses to start with ----------------------------------------------------------------------


def test_options(run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    ask = ["serve", f"--model={folder}"]
    assert_one_sentence(run(*ask, "--api-key-env=NO_KEY"), "environment variable NO_KEY is not set, or empty")
    assert_one_sentence(run(*ask, "--places=0"), "--places must be at least 1, not 0")
    assert_one_sentence(run(*ask, "--prefix-cache=-1"), "--prefix-cache must be at least 0, not -1")
    assert_one_sentence(
        run(*ask, "--host=no.such.host.invalid"), "--host no.such.host.invalid: there is no such address"
    )
    for origin in ("*", "localhost:3000", "http://a/b", "null"):
        words = f"--allow-origin must be a site, .* not {re.escape(origin)}"
        assert_one_sentence(run(*ask, f"--allow-origin={origin}"), words)
    assert_one_sentence(run(*ask, "--port=70000"), "--port must be 0 to 65535, not 70000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_one_sentence(run(*ask, f"--port={port}"), f"127.0.0.1, port {port}, can't be listened at")


def test_the_libraries_are_named_together(run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("starlette", "uvicorn"):
        monkeypatch.setitem(sys.modules, name, None)
    words = "needs the package 'starlette'|needs starlette and uvicorn|pip install starlette uvicorn"
    assert_one_sentence(run("serve", f"--model={folder}"), words)
