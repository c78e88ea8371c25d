"""The prompts that are being read, before their texts are written.

    readings = Readings(decoder, prefixes, piece=64)
    if readings.may_begin(prompt):
        readings.begin(texts, prompt)
    finished, failed = readings.read(256)           # tokens, at most

Each turn reads the next piece of every prompt that there is room for, all in one pass of the model. A piece ends at a
multiple of `piece` tokens, so how a prompt is cut depends on the prompt alone.

A prompt that shares its next piece with one that is being read waits until that piece is read, and then finds it among
the prefixes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..generation.prompt_cache import common_length
from ..generation.prompt_reader import PromptReader, read_together
from .prefixes import Prefixes
from .tickets import Text


@dataclass(eq=False)
class Reading:
    """A prompt that is being read, and the texts that it is for, each of which has a place already."""

    texts: list[Text]
    prompt: np.ndarray
    reader: PromptReader


class Readings:
    """See the module's docstring. For one thread; others may ask for `texts`."""

    def __init__(self, decoder: Any, prefixes: Prefixes, piece: int) -> None:
        self.decoder, self.prefixes, self.piece = decoder, prefixes, piece
        self._all: list[Reading] = []  # in order of arrival

    def __len__(self) -> int:
        return len(self._all)

    @property
    def texts(self) -> int:
        """How many have a place."""
        return sum(len(one.texts) for one in self._all)

    @property
    def due(self) -> int:
        """Tokens of the next pieces of all."""
        return sum(self._next(one) for one in self._all)

    def drop_cancelled(self) -> None:
        """Forget texts that no client waits for, and prompts that no other text needs."""
        for one in self._all:
            one.texts = [text for text in one.texts if not text.ticket.cancelled]
        self._all = [one for one in self._all if one.texts]

    def may_begin(self, prompt: np.ndarray) -> bool:
        """Whether no other prompt is about to read the next piece of `prompt`."""
        if not self._all or not self.prefixes.most_bytes:
            return True
        known = self.prefixes.known(prompt)
        return all(common_length(one.prompt, prompt[:-1]) // self.piece * self.piece <= known for one in self._all)

    def begin(self, texts: list[Text], prompt: np.ndarray) -> int:
        """Add a prompt -> how many of its tokens are known. Raises what the decoder does."""
        reader = self.decoder.reader(prompt)
        known = self.prefixes.put_into(reader, prompt)
        self._all.append(Reading(texts, prompt, reader))
        return known

    def read(self, most: int) -> tuple[list[Reading], list[tuple[Reading, Exception]]]:
        """Read at most `most` >= `piece` tokens -> the prompts that are read to their end, and those that can't be."""
        some, failed = self._turn(most), list[tuple[Reading, Exception]]()
        try:
            read_together([(one.reader, self.piece) for one in some])
        except Exception:  # perhaps only one of them is at fault: try each by itself
            failed = errors_of(some, lambda one: one.reader.read(self.piece))
        read = [one for one in some if one not in dict(failed)]
        failed += errors_of(read, lambda one: self.prefixes.keep(one.reader, one.prompt))
        finished = [one for one in read if not one.reader.rest and one not in dict(failed)]
        self._all = [one for one in self._all if one not in finished and one not in dict(failed)]
        return finished, failed

    def _turn(self, most: int) -> list[Reading]:
        """The first ones whose next pieces have at most `most` tokens together. None is passed over."""
        some = list[Reading]()
        for one in self._all:
            most -= self._next(one)
            if most < 0:
                break
            some.append(one)
        return some

    def _next(self, one: Reading) -> int:
        """The tokens of its next piece."""
        return min(self.piece, one.reader.rest)


def errors_of(some: list[Reading], act: Callable[[Reading], Any]) -> list[tuple[Reading, Exception]]:
    """Call act(one) for each -> those for which it failed, and how."""
    failed = list[tuple[Reading, Exception]]()
    for one in some:
        try:
            act(one)
        except Exception as error:
            failed.append((one, error))
    return failed
