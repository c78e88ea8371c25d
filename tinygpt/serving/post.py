"""From the engine's thread to the event loop.

Waking the loop costs as much as choosing a token, and then its thread and the engine's want Python's lock at the same
time. So all tokens of a turn are sent at its end, at once; the loop then works while the engine is in a
kernel, which needs no lock.
"""

from __future__ import annotations

import asyncio
import threading

from ..errors import UsageError
from .errors import ApiError
from .samples import Token

What = Token | Exception


class Post:
    """Messages for the listeners of an application, until they are sent. `send` is the engine's `after_turn`."""

    def __init__(self) -> None:
        self._letters: dict[asyncio.AbstractEventLoop, list[tuple[Listener, int, What]]] = {}

    def add(self, listener: Listener, number: int, what: What) -> None:
        self._letters.setdefault(listener.loop, []).append((listener, number, what))

    def send(self) -> None:
        letters, self._letters = self._letters, {}
        for loop, those in letters.items():
            try:
                loop.call_soon_threadsafe(deliver, those)
            except RuntimeError:  # the loop is closed
                for listener, *_ in those:
                    listener.gone = True


def deliver(letters: list[tuple[Listener, int, What]]) -> None:
    for listener, number, what in letters:
        listener.queue.put_nowait((number, what))


class Listener:
    """What the engine reports, as an asynchronous queue. Made in the loop that reads it."""

    def __init__(self, post: Post) -> None:
        self.post, self.loop, self.queue = post, asyncio.get_running_loop(), asyncio.Queue[tuple[int, What]]()
        self._thread, self.gone = threading.get_ident(), False

    def __call__(self, number: int, what: What) -> None:
        """Raises RuntimeError, which cancels the submission, if the loop was closed."""
        if self.gone:
            raise RuntimeError("the event loop is closed")
        if threading.get_ident() == self._thread:  # while the request is submitted
            self.queue.put_nowait((number, what))
        else:
            self.post.add(self, number, what)

    async def next(self) -> tuple[int, Token]:
        """Raises ApiError for an error of the model."""
        number, what = await self.queue.get()
        if isinstance(what, Exception):
            words = str(what) if isinstance(what, UsageError) else "the model failed at this request"
            raise ApiError(words, status=500)
        return number, what
