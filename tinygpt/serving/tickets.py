"""What the engine was asked for: submissions, their texts, and why a submission is refused."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import UsageError
from .samples import Sample, Token

OnToken = Callable[[int, "Token | Exception"], None]


class BusyError(UsageError):
    """The queue is full. `seconds`: when it is worth trying again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the server is busy, and its queue is full: try again in {seconds} s")
        self.seconds = seconds


class ClosedError(UsageError):
    """The engine takes no more requests."""


class Ticket:
    """A submission. `cancel` may be called from any thread, and more than once."""

    def __init__(self, cancel: Callable[[Ticket], None], on_token: OnToken) -> None:
        self._cancel, self.on_token = cancel, on_token
        self.cancelled = False
        self.submitted = time.perf_counter()

    def cancel(self) -> None:
        """Free the places of its texts, at the next token; nothing more is reported about them."""
        self._cancel(self)


class Text:
    """A text: its submission, and its number there."""

    def __init__(self, sample: Sample, ticket: Ticket, number: int) -> None:
        self.sample, self.ticket, self.number = sample, ticket, number
        self.told = ticket.submitted  # when its last token was reported
