"""Clients that mean no good, over real connections: slow, silent, deaf, very many; and what is logged of any client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.clients import KEY, MODEL, TOKENIZER, client_of, written
from tinygpt.data.dialogue import PRESETS
from tinygpt.serving import app as http
from tinygpt.serving import protocol
from tinygpt.serving.answers import Answer
from tinygpt.serving.app import application
from tinygpt.serving.bodies import Served
from tinygpt.serving.engine import Engine
from tinygpt.serving.server import listening, server_for

PATIENCE = 60  # seconds, for what should take a moment
ASK = {"prompt": "To be", "max_tokens": 12, "temperature": 0}


class Server:
    """The application under uvicorn, on a thread."""

    def __init__(self) -> None:
        self.engine = Engine(MODEL, places=3, waiting=6)
        served = Served(MODEL, TOKENIZER, "tiny", PRESETS["plain"], 1, self.engine.most_waiting)
        self.listener = listening("127.0.0.1", 0)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # a deaf client is noticed sooner
        self.port = self.listener.getsockname()[1]
        self.uvicorn = server_for(application(served, self.engine))
        self.thread = threading.Thread(target=lambda: asyncio.run(self.uvicorn.serve(sockets=[self.listener])))
        self.thread.start()

    def stop(self) -> None:
        """As SIGTERM does it. No client may hold it up."""
        self.uvicorn.should_exit = True
        self.thread.join(PATIENCE)
        ended, self.uvicorn.force_exit = not self.thread.is_alive(), True
        self.engine.close()
        assert ended

    def connect(self, send: bytes = b"", receive_buffer: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(("127.0.0.1", self.port))
            connection.sendall(send)
        except OSError:
            connection.close()
            raise
        return connection

    def free(self) -> bool:
        """Whether all places become free."""
        deadline = time.monotonic() + PATIENCE
        while self.engine.running and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self.engine.running


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def request(body: Any, path: str = "/v1/completions", headers: str = "") -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Content-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def all_of(connection: socket.socket) -> bytes:
    """What comes until the connection ends. It must end."""
    found = bytearray()
    with connection, contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            found += piece
    return bytes(found)


def one_answer(connection: socket.socket) -> bytes:
    """An answer whose length its head tells; the connection stays. It may come in any number of pieces."""
    found = b""
    while b"\r\n\r\n" not in found or len(found.partition(b"\r\n\r\n")[2]) < length_of(found):
        piece = connection.recv(65536)
        assert piece, found
        found += piece
    return found


def length_of(answer: bytes) -> int:
    head = answer.partition(b"\r\n\r\n")[0].lower()
    return int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])


def text_of(answer: bytes) -> str:
    text: str = json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"]
    return text


# Slow and silent ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_heads_that_do_not_come(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """None at all, half of one, half of a second; one that comes slowly but comes is answered."""
    monkeypatch.setattr(protocol, "MOST_SECONDS", 0.5)
    assert all_of(server.connect()) == b""
    assert all_of(server.connect(b"POST /v1/completions HTTP/1.1\r\nHost:")) == b""
    connection = server.connect(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert one_answer(connection).startswith(b"HTTP/1.1 200 OK")
    connection.sendall(b"GET /hea")
    assert all_of(connection) == b""
    monkeypatch.setattr(protocol, "MOST_SECONDS", PATIENCE)
    content = request(ASK, headers="Connection: close\r\n")
    connection = server.connect(content[:20])
    time.sleep(0.1)
    connection.sendall(content[20:])
    assert text_of(all_of(connection)) == written("To be", max_new_tokens=12, temperature=0)


def test_dribbled_heads(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not keep a connection."""
    monkeypatch.setattr(protocol, "MOST_SECONDS", 0.5)
    connection, deadline = server.connect(b"GET /health HTTP/1.1\r\nX: "), time.monotonic() + PATIENCE
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < deadline:
            connection.sendall(b"x")
            time.sleep(0.1)
    assert time.monotonic() < deadline
    connection.close()


def test_a_body_that_does_not_come(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST_SECONDS", 0.3)
    connection = server.connect(request(ASK)[:-5])
    answer = one_answer(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body did not arrive within 0.3 s" in answer
    connection.close()


@pytest.mark.slow
def test_a_client_that_does_not_read(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is dropped in the end, and others are answered meanwhile; the server's end does not wait for it."""
    monkeypatch.setattr(protocol, "MOST_SECONDS", 1.0)
    body = {"prompt": "a", "max_tokens": 60, "n": 5, "logprobs": 5, "stream": True}
    deaf = server.connect(request(body), receive_buffer=2048)
    other = server.connect(request(ASK, headers="Connection: close\r\n"))
    assert text_of(all_of(other)) == written("To be", max_new_tokens=12, temperature=0)
    assert server.free()
    deadline = time.monotonic() + PATIENCE
    while server.uvicorn.server_state.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not server.uvicorn.server_state.connections
    assert b"[DONE]" not in all_of(deaf)


# Very many ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_200_connections(server: Server) -> None:
    """Idle, with half a head, with half a body, and streaming: one more client is answered as soon as there is room."""
    kinds = [b"", b"POST /v1/completions HTTP/1.1\r\nHo", request(ASK)[:-5], request({**ASK, "stream": True})]
    crowd = [server.connect(kinds[number % 4]) for number in range(200)]
    deadline, answer = time.monotonic() + PATIENCE, b""
    while not answer.startswith(b"HTTP/1.1 200") and time.monotonic() < deadline:  # the queue may be full until then
        answer = all_of(server.connect(request(ASK, headers="Connection: close\r\n")))
    for connection in crowd:
        connection.close()
    assert text_of(answer) == written("To be", max_new_tokens=12, temperature=0)


@pytest.mark.slow
def test_200_requests_at_once(server: Server) -> None:
    """Those that find no place are told when to come again; all others get their text."""
    content = request(ASK, headers="Connection: close\r\n")

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(content)
        answer = await reader.read()
        writer.close()
        return answer

    async def crowd() -> list[bytes]:
        return await asyncio.gather(*(ask() for _ in range(200)))

    answers = asyncio.run(crowd())
    taken = [answer for answer in answers if answer.startswith(b"HTTP/1.1 200 OK")]
    busy = [answer for answer in answers if answer.startswith(b"HTTP/1.1 429 ")]
    assert len(taken) + len(busy) == 200
    assert len(taken) >= 6
    assert {text_of(answer) for answer in taken} == {written("To be", max_new_tokens=12, temperature=0)}
    assert all(b"\r\nretry-after: " in answer and b"its queue is full" in answer for answer in busy)
    assert busy


def test_the_number_of_connections_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MOST_CONNECTIONS", 3)
    first = [server.connect() for _ in range(3)]
    deadline = time.monotonic() + PATIENCE
    while len(server.uvicorn.server_state.connections) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    health = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with contextlib.suppress(OSError):  # it may be reset before all is sent
        assert all_of(server.connect(health)) == b""
    first[0].sendall(health)
    assert all_of(first[0]).startswith(b"HTTP/1.1 200 OK")
    for connection in first[1:]:
        connection.close()


# Strange -------------------------------------------------------------------------------------------


def test_what_is_hardly_http(server: Server) -> None:
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n"):
        assert all_of(server.connect(nonsense + b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    assert all_of(server.connect(b"GET /health HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 421 ")
    long = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 5_000_000 + b"\r\n\r\n"
    with contextlib.suppress(OSError):
        assert all_of(server.connect(long)).startswith(b"HTTP/1.1 4")
    preflight = b"OPTIONS /v1/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n"
    connection = server.connect(preflight)
    answer = one_answer(connection)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"access-control" not in answer.lower()
    connection.close()


# What is logged -------------------------------------------------------------------------------------

PROMPT = "a private prompt"


def test_nothing_private_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither the key nor a prompt, whatever goes wrong, and at the level DEBUG; but where it went wrong."""
    caplog.set_level(logging.DEBUG)
    engine = Engine(MODEL, places=2)
    client = client_of(engine, key=KEY)
    ask = {"prompt": PROMPT, "max_tokens": 2}
    headers = {"Authorization": f"Bearer {KEY}"}

    def post(body: Any, stream: bool = False, **more: Any) -> Any:
        content = body if isinstance(body, bytes) else json.dumps({**body, "stream": stream})
        return client.post("/v1/completions", content=content, headers=headers, **more)

    assert post(ask).status_code == 200
    assert client.post("/v1/completions", json=ask, headers={"Authorization": f"Basic {KEY}"}).status_code == 401
    assert post(f'{{"prompt": "{PROMPT}'.encode()).status_code == 400
    assert post({**ask, "temperature": "hot"}).status_code == 400

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"can't read {PROMPT!r} of {KEY}")

    with monkeypatch.context() as patched:
        patched.setattr(type(TOKENIZER), "encode", fails)
        assert post(ask).json()["error"]["message"] == "the server failed at this request"
    for stream in (False, True):
        with monkeypatch.context() as patched:
            patched.setattr(Answer, "add", fails)
            answer = post(ask, stream)
            assert answer.status_code == (200 if stream else 500)
            assert "the server failed at this request" in answer.text
    engine.close()
    said = capfd.readouterr()
    for private in (KEY, PROMPT):
        assert private not in caplog.text + said.out + said.err
    assert caplog.text.count("a request failed: RuntimeError") == 3
    assert "in fails" in caplog.text  # where it failed
