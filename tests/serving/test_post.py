"""What the engine tells goes to the event loops at the end of a turn, all at once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from tinygpt.errors import UsageError
from tinygpt.serving.errors import ApiError
from tinygpt.serving.post import Listener, Post
from tinygpt.serving.samples import Token


def in_a_thread(act: Any, *arguments: Any) -> None:
    thread = threading.Thread(target=act, args=arguments)
    thread.start()
    thread.join()


def test_a_turn_wakes_the_loop_once() -> None:
    async def main() -> None:
        post, calls = Post(), []
        first, second = Listener(post), Listener(post)
        loop = asyncio.get_running_loop()
        call = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *arguments: calls.append(1) or call(*arguments)  # type: ignore[method-assign]
        in_a_thread(lambda: [listener(i, Token(i)) for i in range(3) for listener in (first, second)])
        await asyncio.sleep(0)
        assert (calls, first.queue.qsize()) == ([], 0)
        in_a_thread(post.send)
        in_a_thread(post.send)  # a turn without news
        assert len(calls) == 1
        for listener in (first, second):
            assert [await listener.next() for _ in range(3)] == [(i, Token(i)) for i in range(3)]

    asyncio.run(main())


def test_what_is_told_while_a_request_is_submitted_needs_no_turn() -> None:
    async def main() -> None:
        listener = Listener(Post())
        listener(0, Token(None, "length"))
        assert await listener.next() == (0, Token(None, "length"))

    asyncio.run(main())


def test_errors() -> None:
    async def main() -> None:
        listener = Listener(Post())
        for error, words in ((UsageError("not finite"), "not finite"), (MemoryError("x"), "the model failed")):
            listener(0, error)
            with pytest.raises(ApiError, match=words):
                await listener.next()

    asyncio.run(main())


def test_a_loop_that_was_closed() -> None:
    """Its listeners say so at their next token, which cancels their texts; others get theirs."""
    post, listeners = Post(), list[Listener]()

    async def main() -> None:
        listeners.append(Listener(post))

    asyncio.run(main())
    in_a_thread(listeners[0], 0, Token(1))
    post.send()
    with pytest.raises(RuntimeError, match="closed"):
        listeners[0](0, Token(2))
