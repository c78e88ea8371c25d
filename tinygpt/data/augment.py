"""Random changes to texts, for training only: a small data set becomes a little different in each epoch.

    augmentation = read_augmentation("deletion=0.1,swap=0.1,synonyms=words.txt")
    augmentation(text, Generator(seed, stream))

    deletion=P      each word is deleted with probability P; never all of them
    swap=P          P times the number of words, two random words of the text change places
    synonyms=FILE   a word is replaced by another one of its line in FILE, with probability `replacement` (default: 0.1)

Words are separated by spaces; each Chinese or Japanese character is a word, since these scripts have no spaces. A
synonym may consist of several words. Each line of FILE is a group of synonyms, separated by tabs, or by spaces if the
line has no tab.

The changes depend only on the generator: a run gives each row and epoch its own stream, so a resumed run sees the same
texts.

Source: Wei and Zou, "EDA: Easy Data Augmentation Techniques for Boosting Performance on Text Classification Tasks",
2019, section 2, without its fourth operation, insertion.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..checks import number
from ..errors import UsageError
from ..files import shown
from ..random import Generator
from ..tokenizers.word import SINGLE
from .tokens import read_text

_PIECE = re.compile(rf"([{SINGLE}]|[^\s{SINGLE}]+)(\s*)")
_RATES = ("deletion", "swap", "replacement")
_FORM = "deletion=0.1,swap=0.1,synonyms=FILE"

# RNG streams that nothing else in a run uses (`row_batches.py`): one for each epoch and row.
_FIRST_STREAM, _ROW_BITS = 3 << 62, 32


@dataclass(frozen=True)
class Augmentation:
    """See the module. synonyms: a word -> its synonyms; sha256: of their file."""

    deletion: float = 0.0
    swap: float = 0.0
    replacement: float = 0.0
    synonyms: dict[str, list[str]] = field(default_factory=dict)
    path: str | None = None
    sha256: str | None = None

    def __call__(self, text: str, generator: Generator) -> str:
        """The text, changed. It keeps at least one word."""
        if self.synonyms:
            text = self._with_synonyms(text, generator)
        found = _PIECE.findall(text)
        words, gaps = [word for word, _ in found], [gap for _, gap in found]
        for _ in range(_rounded(self.swap * len(words), generator) if len(words) > 1 else 0):
            i, j = (generator.uniform(2) * len(words)).astype(int)
            words[i], words[j] = words[j], words[i]
        kept = generator.uniform(len(words)) >= self.deletion  # (words,)
        if len(words) and not kept.any():
            kept[int(generator.uniform() * len(words))] = True
        return "".join(words[i] + gaps[i] for i in np.flatnonzero(kept)).rstrip()

    def _with_synonyms(self, text: str, generator: Generator) -> str:
        def another(match: re.Match[str]) -> str:
            others = self.synonyms[match[0]]
            change, which = generator.uniform(2)
            return others[int(which * len(others))] if change < self.replacement else match[0]

        return self._pattern.sub(another, text)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Matches a word that has synonyms: the longest one, and never part of a longer word."""
        letter = rf"[^\W{SINGLE}]"
        return re.compile("|".join(
            (rf"(?<!{letter})" if re.match(letter, word) else "")
            + re.escape(word)
            + (rf"(?!{letter})" if re.match(letter, word[-1]) else "")
            for word in sorted(self.synonyms, key=len, reverse=True)
        ))  # fmt: skip

    def facts(self) -> dict[str, float | str | None]:
        """JSON values that identify it in a checkpoint."""
        return {name: getattr(self, name) for name in (*_RATES, "sha256")}


def stream_of(row: int, epoch: int) -> int:
    """The RNG stream of a row in an epoch."""
    return _FIRST_STREAM + (epoch << _ROW_BITS) + row


def read_augmentation(words: str) -> Augmentation:
    """The augmentation that an option describes, with its synonyms read from their file. Raises UsageError."""
    settings = dict(_settings(words))
    rates: dict[str, Any] = {
        name: number("augment", name, _float(name, settings[name]), at_least=0, below=1)
        for name in _RATES
        if name in settings
    }
    path = settings.get("synonyms")
    if path is None:
        if "replacement" in rates:
            raise UsageError("augment: replacement is for synonyms: give synonyms=FILE as well")
        return Augmentation(**rates)
    synonyms, sha256 = read_synonyms(path)
    rates = {"replacement": 0.1} | rates
    return replace(Augmentation(**rates), synonyms=synonyms, path=path, sha256=sha256)


def with_absolute_path(words: str) -> str:
    """The same option with the path of the synonyms made absolute, so that it is valid in any folder."""
    return ",".join(
        f"{name}={os.path.abspath(os.path.expanduser(value)) if name == 'synonyms' else value}"
        for name, value in _settings(words)
    )


def synonyms_in(words: str | None) -> str | None:
    """The path of the synonyms in an option, if there is one."""
    return dict(_settings(words)).get("synonyms") if words is not None else None


def read_synonyms(path: str) -> tuple[dict[str, list[str]], str]:
    """Each word with its synonyms, and the SHA-256 of the file. Raises UsageError with the line."""
    digest, found = hashlib.sha256(), dict[str, list[str]]()
    text = "".join(read_text(path))
    digest.update(text.encode("utf-8"))
    for line, content in enumerate(text.split("\n"), 1):
        group = [word.strip() for word in content.split("\t" if "\t" in content.strip() else None)]
        group = list(dict.fromkeys(word for word in group if word))
        if len(group) == 1:
            raise UsageError(
                f"{shown(path)}, line {line}: {group[0]!r} stands alone: a line has at least two synonyms, separated "
                "by tabs or spaces"
            )
        for word in group:
            others = [other for other in group if other != word]
            found[word] = list(dict.fromkeys([*found.get(word, []), *others]))
    if not found:
        raise UsageError(
            f"there are no synonyms in {shown(path)}: a line has a group of them, separated by tabs or spaces"
        )
    return found, digest.hexdigest()


def _settings(words: str) -> Iterator[tuple[str, str]]:
    """Names and values of an option such as deletion=0.1,swap=0.1. Raises UsageError."""
    seen = set()
    for part in words.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in (*_RATES, "synonyms") or not equals or not value or name in seen:
            raise UsageError(f"augment: expected settings such as {_FORM}, each once, not {part!r}")
        seen.add(name)
        yield name, value


def _float(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"augment: {name} must be a number, not {value!r}") from None


def _rounded(count: float, generator: Generator) -> int:
    """count, rounded up or down at random such that the mean stays the same."""
    return int(count + generator.uniform())
