"""A client's connection: uvicorn's, but closed if the client holds it without using it.

uvicorn waits forever for the rest of a request's head, and for a client to read what it is sent. Here a connection is
dropped if a head, once it is due, takes longer than MOST_SECONDS, or if the client has read nothing for that long while
there is something to read. Then whatever it asked for is cancelled, as for every client that goes away. (A body that
comes too slowly is for `app.whole_body`: that client can be answered.) Connections beyond MOST_CONNECTIONS are closed
at once, so that the process doesn't run out of files.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_SECONDS = 30.0
MOST_CONNECTIONS = 500


class Connection(H11Protocol):
    """uvicorn makes one for each client."""

    _head: asyncio.TimerHandle | None = None
    _write: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=0)  # paused as soon as the system's buffer is full
        self._head = self.loop.call_later(MOST_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._write):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        begun = self.conn.their_state is h11.IDLE  # else the head is complete
        if not begun and self._head is not None:
            self._head.cancel()
            self._head = None
        elif begun and self._head is None:
            self._head = self.loop.call_later(MOST_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write = self.loop.call_later(MOST_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write is not None:
            self._write.cancel()
            self._write = None
