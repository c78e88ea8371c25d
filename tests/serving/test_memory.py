"""Ten thousand requests of all kinds leave the server's memory where it was."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serving.clients import KEY, MODEL, TOKENIZER
from tinygpt.data.dialogue import PRESETS
from tinygpt.serving.app import application
from tinygpt.serving.bodies import Served
from tinygpt.serving.engine import Engine

REQUESTS, WARM_UP = 10_000, 1_000


class Visitor:
    """Calls an ASGI application directly, as a client after the other."""

    def __init__(self, application: Any) -> None:
        self.application = application

    async def ask(self, path: str, body: bytes | None = None, key: str = KEY, stay: int = 1000) -> int:
        """The status. stay: how many messages it waits for before it goes away."""
        headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {key}".encode())]
        scope = {"type": "http", "http_version": "1.1", "method": "GET" if body is None else "POST", "path": path,
                 "raw_path": path.encode(), "query_string": b"", "headers": headers, "scheme": "http",
                 "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)}  # fmt: skip
        status, seen, gone = list[int](), list[bytes](), asyncio.Event()
        bodies = [{"type": "http.request", "body": body or b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if bodies:
                return bodies.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            status.extend([message["status"]] if "status" in message else [])
            seen.append(message.get("body", b""))
            if len(seen) >= stay:
                gone.set()

        await self.application(scope, receive, send)
        return status[0]


def request(number: int) -> tuple[dict[str, Any], int]:
    """The arguments of `Visitor.ask`, and the status it should see."""

    def body(**more: Any) -> bytes:
        return json.dumps({"prompt": f"Prompt {number}", "max_tokens": 2, "seed": number, **more}).encode()

    chat = json.dumps(
        {"messages": [{"role": "user", "content": f"{number}"}], "max_tokens": 2, "stream": True}
    ).encode()
    kinds: list[tuple[dict[str, Any], int]] = [
        ({"path": "/health"}, 200),
        ({"path": "/v1/completions", "body": body()}, 200),
        ({"path": f"/nowhere/{number}"}, 404),
        ({"path": "/v1/chat/completions", "body": chat}, 200),
        ({"path": "/v1/completions", "body": b"{" + body()}, 400),
        ({"path": "/v1/completions", "body": body(logprobs=3, stop=[f"{number}"])}, 200),
        ({"path": "/v1/models", "key": f"sk-{number}"}, 401),
        ({"path": "/v1/completions", "body": body(model=f"gpt-{number}")}, 404),
        ({"path": "/v1/completions", "body": body(stream=True, max_tokens=40, n=3), "stay": 3}, 200),
        ({"path": "/metrics"}, 200),
    ]
    return kinds[number % len(kinds)]


def resident() -> int:
    """Bytes of this process in memory; 0 where the system doesn't say."""
    statistics = Path("/proc/self/statm")
    return int(statistics.read_text().split()[1]) * 4096 if statistics.exists() else 0


@pytest.mark.slow
def test_ten_thousand_requests_leave_nothing_behind() -> None:
    """Python's own count of its blocks of memory sees one object lost in five requests; the other figure, arrays."""
    engine = Engine(MODEL, places=4, waiting=64, piece=4, prefix_bytes=50_000)
    served = Served(MODEL, TOKENIZER, "tiny", PRESETS["plain"], 1, engine.most_waiting)
    visitor = Visitor(application(served, engine, KEY))
    levels = []

    async def visit() -> None:
        for first in range(0, REQUESTS, 10):
            asked = [request(number) for number in range(first, first + 10)]
            found = await asyncio.gather(*(visitor.ask(**arguments) for arguments, _ in asked))
            assert found == [status for _, status in asked], first
            if first + 10 in (WARM_UP, REQUESTS):
                while engine.running or engine.waiting:
                    await asyncio.sleep(0.01)
                gc.collect()
                levels.append((sys.getallocatedblocks(), resident()))

    asyncio.run(visit())
    engine.close()
    (blocks, bytes_), (blocks_after, bytes_after) = levels
    assert blocks_after - blocks < (REQUESTS - WARM_UP) / 5
    assert bytes_after - bytes_ < 16 << 20
    assert engine.prefixes.bytes <= 50_000
