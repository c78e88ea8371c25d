"""The engine: one thread that owns the model and writes many texts at once.

    engine = Engine(model, places=16)
    ticket = engine.submit([Wanted(request)], on_token)     # from any thread
    ticket.cancel()
    engine.close()                                          # finishes what was accepted

Continuous batching. Each turn of the thread's loop reads prompts of waiting requests, if places are free, and then
makes one step for all texts that are being written: their next tokens go through the model together, as do prompts
(`reading`), so its weights are read once for all of them. A text that ends leaves at once, and its place is free
for the next turn. At most `piece` tokens of prompts are read per turn, a long prompt in pieces: a client that
is being answered never waits for more between two tokens, unless more clients wait than are being answered; then the
limit is MANY times as high. A beginning of a prompt that is already known isn't read again (`prefixes`).

A text does not depend on the others: a row of `Decoder` doesn't, a prompt is cut into the same pieces whatever else is
being read, no bit of its keys and values depends on those read with it, and everything else is in its `Sample`.

`on_token(number, token)` is called in the engine's thread and must return quickly; number counts the texts of a
submission from 0. `after_turn()` is called when all texts have received their tokens. An exception from `on_token`
cancels the submission. After an error of the model, `on_token(number, error)` ends each text that it concerns, and the
engine continues.

The queue is bounded: beyond `waiting` texts, `submit` raises BusyError, which says how long to wait.

Source: Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative Models", 2022, section 3.1;
prompts in pieces: Agrawal et al., "Sarathi", 2023.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import backends
from ..errors import UsageError
from ..generation.stepper import decoder_for
from .prefixes import Prefixes
from .reading import Reading, Readings
from .samples import Token, Wanted
from .statistics import Statistics
from .tickets import BusyError, ClosedError, OnToken, Text, Ticket

PLACES, WAITING = 16, 64
PIECE = 64  # tokens; large enough that products run near their best speed
MANY = 4  # pieces between two steps while more texts wait than are written
PREFIX_BYTES = 256 << 20


class Engine:
    """See the module's docstring. places: how many texts are written at once; waiting: how many more may wait.

    piece: tokens of prompts between two steps; prefix_bytes: memory for beginnings of prompts, 0 for none. The model's
    weights must not change.
    """

    def __init__(
        self, model: Any, places: int = PLACES, waiting: int = WAITING, piece: int = PIECE,
        prefix_bytes: int = PREFIX_BYTES,
    ) -> None:  # fmt: skip
        self.model, self.places, self.most_waiting, self.piece = model, places, max(waiting, places), piece
        self.prefixes = Prefixes(piece, prefix_bytes)
        self.statistics = Statistics()
        self.after_turn: Callable[[], None] = lambda: None
        self._decoder = self._new_decoder()
        self._running: list[Text] = []  # in the order of the decoder's rows
        self._readings = Readings(self._decoder, self.prefixes, piece)
        self._waiting: deque[Text] = deque()
        self._changed = threading.Condition()  # guards _waiting, _closing and the tickets
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="tinygpt engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """How many texts have a place: their prompt is being read, or they are being written."""
        return len(self._running) + self._readings.texts

    @property
    def waiting(self) -> int:
        """How many texts wait for a place."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closing

    # From any thread --------------------------------------------------------------------------------

    def submit(self, wanted: Sequence[Wanted], on_token: OnToken) -> Ticket:
        """Queue the texts of one client, all or none. Raises BusyError, ClosedError, or UsageError for too many."""
        ticket = Ticket(self.cancel, on_token)
        texts = [Text(sample, ticket, i) for i, sample in enumerate(each for one in wanted for each in one.each())]
        if len(texts) > self.most_waiting:
            raise UsageError(f"a request may ask for at most {self.most_waiting} texts, not {len(texts)}")
        with self._changed:
            if not self.alive:
                raise ClosedError("the server is shutting down")
            if len(self._waiting) + len(texts) > self.most_waiting:
                raise BusyError(self._patience())
            self.statistics.prompt_tokens += sum(len(one.prompt) for one in wanted)
            self._waiting.extend(text for text in texts if text.sample.wanted.limit)
            self._changed.notify()
        for text in texts:
            if not text.sample.wanted.limit:
                on_token(text.number, Token(None, text.sample.wanted.request.limit_reasons[0]))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        with self._changed:
            ticket.cancelled = True
            self._waiting = deque(text for text in self._waiting if text.ticket is not ticket)
            self._changed.notify()

    def close(self) -> None:
        """Take no more requests, finish those that were accepted, and wait until that is done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _patience(self) -> int:
        """Seconds until a place in the queue is likely to be free: its length at the pace of the last texts."""
        turns = 1 + len(self._waiting) / self.places
        return max(1, min(60, math.ceil(turns * self.statistics.usual_seconds / 2)))

    # In the engine's thread -------------------------------------------------------------------------

    def _new_decoder(self) -> Any:
        decoder = decoder_for(self.model)
        decoder.reserve(self.places)
        return decoder

    def _run(self) -> None:
        while self._has_work():
            try:
                self._keep([not text.ticket.cancelled for text in self._running])
                self._read_prompts()
                self.after_turn()
                if self._running:
                    self._step()
            except Exception as error:  # of the model: these texts are lost, others can still be written
                logging.getLogger(__name__).exception("the engine failed in a step")
                self._lose(error)
            self.after_turn()

    def _has_work(self) -> bool:
        """Wait for a request. False if there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy or self._closing)
            return self._busy

    @property
    def _busy(self) -> bool:
        return bool(self._running or self._waiting or len(self._readings))

    def _read_prompts(self) -> None:
        """Read the next pieces of prompts; once a prompt is read to its end, its texts join."""
        self._readings.drop_cancelled()
        others = len(self._waiting) + self._readings.texts
        most = self.piece * (MANY if others > len(self._running) else 1)
        while self._readings.due < most and (texts := self._next()):
            self._begin_reading(texts)
        if not len(self._readings):
            return
        finished, failed = self._readings.read(most)
        for reading, error in failed:
            self._fail(reading.texts, error)
        self._join(finished)

    def _begin_reading(self, texts: list[Text]) -> None:
        """Look up what is known of the prompt of `texts`."""
        try:
            self.statistics.known_tokens += self._readings.begin(texts, texts[0].sample.wanted.prompt)
        except Exception as error:
            self._fail(texts, error)

    def _join(self, finished: list[Reading]) -> None:
        """Choose the first tokens of texts whose prompts are read."""
        if not finished:
            return
        try:
            found = self._decoder.join_all([(one.reader, len(one.texts)) for one in finished])
        except Exception as error:  # the decoder is as it was
            for one in finished:
                self._fail(one.texts, error)
            return
        logits, others = backends.move(found, "numpy"), len(self._running)
        pairs = [(text, logits[i : i + 1]) for i, one in enumerate(finished) for text in one.texts]
        self._running += [text for text, _ in pairs]
        self._keep([True] * others + [self._choose(text, row) for text, row in pairs])

    def _fail(self, texts: list[Text], error: Exception) -> None:
        """The prompt of `texts` can't be read."""
        logging.getLogger(__name__).error("the engine failed to read a prompt", exc_info=error)
        for text in texts:
            self._tell(text, error)

    def _next(self) -> list[Text]:
        """Texts with the same prompt from the head of the queue, as many as there are places for."""
        with self._changed:
            free, texts = self.places - self.running, list[Text]()
            if not (self._waiting and self._readings.may_begin(self._waiting[0].sample.wanted.prompt)):
                return texts
            while self._waiting and len(texts) < free:
                if texts and self._waiting[0].sample.wanted is not texts[0].sample.wanted:
                    break
                texts.append(self._waiting.popleft())
            return texts

    def _step(self) -> None:
        """The next token of every text."""
        ids = np.array([text.sample.last for text in self._running], np.int64)
        logits = backends.move(self._decoder.step(ids), "numpy")  # (R, V)
        self.statistics.steps += 1
        self._keep([self._choose(text, logits[r : r + 1]) for r, text in enumerate(self._running)])

    def _choose(self, text: Text, logits: np.ndarray) -> bool:
        """Choose the next token of a text from logits (1, V), and report it. Returns whether the text continues."""
        if text.ticket.cancelled:
            return False
        try:
            token = text.sample.choose(logits)
        except UsageError as error:  # its logits are not finite
            self._tell(text, error)
            return False
        now = time.perf_counter()
        self.statistics.token(now - text.told, first=text.told == text.ticket.submitted)
        text.told = now
        if token.reason is not None:
            self.statistics.finished(now - text.ticket.submitted)
        return self._tell(text, token) and token.reason is None

    def _keep(self, kept: list[bool]) -> None:
        """Remove the other texts. The last ones take the places of those that leave, so only their rows are copied."""
        if all(kept):
            return
        order = filling_holes(kept)
        self._decoder.select(np.array(order, np.int64))
        self._running = [self._running[row] for row in order]

    def _tell(self, text: Text, what: Token | Exception) -> bool:
        """Returns whether a client still listens."""
        try:
            text.ticket.on_token(text.number, what)
        except Exception:  # the client is gone, and perhaps its event loop
            logging.getLogger(__name__).debug("a client can't be told", exc_info=True)
            self.cancel(text.ticket)
            return False
        return True

    def _lose(self, error: Exception) -> None:
        """Give up the texts that are being written, whose rows can no longer be trusted."""
        lost, self._running = self._running, []
        for text in lost:
            if not text.ticket.cancelled:
                self._tell(text, error)
        self._decoder = self._readings.decoder = self._new_decoder()


def filling_holes(kept: list[bool]) -> list[int]:
    """The rows to keep, in an order in which as many as possible stay where they are: for `Decoder.select`.

    [True, False, True, True] -> [0, 3, 2]
    """
    count = sum(kept)
    late = [row for row in range(count, len(kept)) if kept[row]]
    return [row if kept[row] else late.pop() for row in range(count)]
