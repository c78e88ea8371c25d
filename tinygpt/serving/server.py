"""The server: a socket, uvicorn, and a shutdown that finishes what is running."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

from ..errors import UsageError, missing_extra, require_together
from .engine import Engine

PURPOSE = "tinygpt serve"
KEEP_ALIVE = 75  # seconds: longer than clients keep a connection that they may use again (httpx 5, aiohttp 15, Node 60)


def require_libraries() -> None:
    """Raise MissingExtraError, for all of them at once, unless the libraries of the extra `serve` are there."""
    require_together(_starlette, _uvicorn)


def _starlette() -> None:
    try:
        import starlette  # noqa: F401
    except ImportError as error:
        raise missing_extra("starlette", PURPOSE) from error


def _uvicorn() -> None:
    try:
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise missing_extra("uvicorn", PURPOSE) from error


def listening(host: str, port: int) -> socket.socket:
    """A socket that clients can connect to. Port 0 takes a free one. Raises UsageError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host}: there is no such address: {error}") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(256)
    except (OSError, OverflowError) as error:
        found.close()
        raise UsageError(f"{host}, port {port}, can't be listened at: {error}: choose another --port") from error
    return found


def address_of(listener: socket.socket) -> str:
    """http://host:port"""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_for(application: Any) -> Any:
    """uvicorn's server, not yet running."""
    import uvicorn

    from .protocol import Connection

    config = uvicorn.Config(
        application, http=Connection, ws="none", lifespan="off", loop="asyncio", access_log=False,
        log_level="warning", server_header=False, timeout_keep_alive=KEEP_ALIVE,
    )  # fmt: skip
    return uvicorn.Server(config)


def run(application: Any, engine: Engine, listener: socket.socket, started: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, and finish the requests that were accepted by then; a second Ctrl-C ends at once.

    Neither requests nor clients are logged.
    """
    server = server_for(application)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it would warn about each event that a vanished client misses
    # uvicorn raises the signal again at the end, for the previous handlers, which would end us with a failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    started()
    server.run(sockets=[listener])
    if not server.force_exit:
        engine.close()
