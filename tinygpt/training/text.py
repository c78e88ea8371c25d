"""The text of a run: from a file, a pipe or Shakespeare to a tokenizer and a token file.

The text is encoded once, and hashed in the same pass. A file is read twice if the tokenizer is built from it
(characters, BPE). A pipe can be read only once, so its text is copied to a temporary file.

BPE learns its merges from the training part only, so that the tokenizer knows nothing of the validation text. How many
tokens that part has depends on the merges, so it is measured in bytes; the token file stores the resulting number of
tokens for `tinygpt.data.split`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from .. import tokenizers
from ..data import open_tokens, read_text, shakespeare, split
from ..data.tokens import write_token_parts
from ..errors import CheckpointError, UsageError
from ..files import atomic_write, explain_os_errors, shown
from ..gpt import GPTConfig
from ..memory import require_memory
from ..tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer, UnknownCharacterError
from ..tokenizers.pieces import recut
from .folder import TEXT, TOKENS
from .settings import TOKENIZERS, VOCAB_SIZE, Settings

STDIN = "-"
_SPOOL = "text.spool"


@dataclass(frozen=True)
class Text:
    """The text of a run: its tokenizer, its ids (N,), and a description of where it came from."""

    tokenizer: Tokenizer
    tokens: np.ndarray
    description: str


def prepare_text(settings: Settings, check: Callable[[Tokenizer], object] | None = None) -> Text:
    """Tokenizer and tokens of a run: built from the text, or reopened with --resume.

    Those of a new run are staged: an older run stays as it is until the new one has saved its first checkpoint.
    check: called with the tokenizer as soon as it is known, to raise errors before the text is encoded.
    Raises UsageError for a text that can't be read, is empty or too short, and for a folder that is not free;
    CheckpointError if a resumed run is given a different text or its files are missing.
    """
    if settings.resume:
        _require_same_text(settings)
        if check is not None:
            check(tokenizers.load(settings.folder.path))
        place = settings.folder.path
    else:
        place = _make_text(settings, check)
    return Text(tokenizers.load(place), open_tokens(place / TOKENS), read_facts(place)["description"])


# The text of a new run --------------------------------------------------------------------------------


def _make_text(settings: Settings, check: Callable[[Tokenizer], object] | None) -> Path:
    """Write the text's files to the staging folder of a new run, and return the folder."""
    if settings.data is None:
        corpus = shakespeare()
        source, description = corpus.path, corpus.description
    else:
        source, description = _source(settings.data)
        settings.folder.require_not_among(source)
    place = settings.folder.begin(settings.overwrite)
    name = description if settings.data is not None else f"the text {shown(source)}"
    with _readable(source, place) as path:
        _write_text(settings, path, name, description, place, check)
    return place


def _write_text(
    settings: Settings, path: Path, name: str, description: str, place: Path,
    check: Callable[[Tokenizer], object] | None,
) -> None:  # fmt: skip
    start, fraction = settings.start, settings.training.validation_fraction
    kind = start.tokenizer.type if start is not None else settings.tokenizer or "character"
    facts: dict[str, Any] = {"description": description, "tokenizer": kind}
    tokenizer: Tokenizer
    length = None  # of the training text, in characters
    if start is not None:
        tokenizer, facts["start"] = start.tokenizer, start.name
    elif kind == "bpe":
        vocab_size = VOCAB_SIZE if settings.vocab_size is None else settings.vocab_size
        tokenizer, length = _bpe(path, name, vocab_size, fraction)
        facts["vocab_size"] = str(vocab_size)  # as requested; a short text gives fewer tokens
    else:
        tokenizer = ByteTokenizer() if kind == "byte" else _characters(path, name)
    if check is not None:
        check(tokenizer)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, **settings.model) if start is None else start.model.config
    require_memory(config, settings.training.batch_size, settings.backend)

    digest = hashlib.sha256()
    pieces = read_text(path, see=digest.update)
    try:
        if length is None:
            write_token_parts([pieces], tokenizer, place / TOKENS, name)
        else:
            write_token_parts(_divided(pieces, length), tokenizer, place / TOKENS, name, fraction)
    except UnknownCharacterError as error:
        if start is not None:
            raise UsageError(
                f"the character {error.character!r} at position {error.position} of {name} is not in the vocabulary of "
                f"the model {start.name}: remove it, or add it with --add-token {error.character}"
            ) from error
        raise UsageError(f"{name} changed while it was read: wait until it is written, and start again") from error
    _refuse_short_text(name, *split(open_tokens(place / TOKENS), fraction), settings.model["block_size"])
    facts["sha256"] = digest.hexdigest()
    tokenizer.save(place)
    with explain_os_errors("write", place / TEXT), atomic_write(place / TEXT, "w") as file:
        json.dump(facts, file, indent=1, ensure_ascii=False)


def _refuse_short_text(name: str, train: np.ndarray, validation: np.ndarray, block_size: int) -> None:
    counts = {"training": len(train), "validation": len(validation)}
    short, other = sorted(counts, key=lambda part: counts[part])
    if counts[short] < block_size + 1:
        raise UsageError(
            f"the {short} part of {name} has {counts[short]} tokens (the {other} part {counts[other]}), but block_size "
            f"{block_size} needs at least {block_size + 1} (each window and the token after it): use a longer text, a "
            f"smaller block_size or a {'larger' if short == 'validation' else 'smaller'} validation_fraction"
        )


def _characters(path: Path, name: str) -> CharTokenizer:
    found: set[str] = set()
    for piece in read_text(path):
        found.update(piece)
    if not found:
        raise _empty(name)
    return CharTokenizer.from_text("".join(sorted(found)))


def _bpe(path: Path, name: str, vocab_size: int, validation_fraction: float) -> tuple[BPETokenizer, int]:
    """A tokenizer trained on the training part only, and that part's length in characters."""
    with explain_os_errors("read", path):
        size = path.stat().st_size
    pieces = _beginning(path, round((1 - validation_fraction) * size))
    first = next(pieces, None)
    if first is None:
        raise _empty(name if size == 0 else f"the training part of {name}")
    length = 0

    def counted() -> Iterator[str]:
        nonlocal length
        for piece in itertools.chain([first], pieces):
            length += len(piece)
            yield piece

    return BPETokenizer.train(recut(counted()), vocab_size), length


def _beginning(path: Path, room: int) -> Iterator[str]:
    """The first `room` bytes of a text, without a character that is incomplete at the end."""
    for piece in read_text(path):
        data = piece.encode("utf-8")
        part = piece if len(data) <= room else data[:room].decode("utf-8", errors="ignore")
        if part:
            yield part
        room -= len(data)
        if room <= 0:
            return


def _divided(pieces: Iterator[str], length: int) -> list[Iterator[str]]:
    """The first `length` characters, and the rest, which must be read after them."""
    rest: list[str] = []

    def first() -> Iterator[str]:
        left = length
        while left > 0 and (piece := next(pieces, "")):
            yield piece[:left]
            rest.append(piece[left:])
            left -= len(piece)

    return [first(), itertools.chain(rest, pieces)]


def _empty(name: str) -> UsageError:
    return UsageError(f"{name} is empty: there is nothing to train on")


# The source of the text -------------------------------------------------------------------------------


def _source(data: str) -> tuple[Path, str]:
    """The path to read a text from, and its description. Raises UsageError if it can't be read."""
    if data == STDIN:
        return Path(STDIN), "the standard input"
    path = Path(data)
    with contextlib.suppress(RuntimeError):  # there is no such user
        path = path.expanduser()
    with explain_os_errors("read", path):
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with open(path, "rb"):
                pass
        elif stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return path, f"the {'file' if stat.S_ISREG(mode) else 'pipe'} {shown(path)}"


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[IO[bytes]]:
    if source != Path(STDIN):
        with open(source, "rb") as file:
            yield file
    elif sys.stdin is None:
        raise UsageError("there is no standard input to read the text from")
    else:
        yield getattr(sys.stdin, "buffer", None) or io.BytesIO(sys.stdin.read().encode("utf-8"))


@contextlib.contextmanager
def _readable(source: Path, place: Path) -> Iterator[Path]:
    """A file with the text of `source` that can be read more than once: a pipe is copied to `place` temporarily."""
    if source != Path(STDIN) and source.is_file():
        yield source
        return
    spool = place / _SPOOL
    with explain_os_errors("copy the text of a pipe to", spool), _opened(source) as file, open(spool, "wb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
    try:
        yield spool
    finally:
        spool.unlink(missing_ok=True)


# The text of a resumed run ----------------------------------------------------------------------------


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of a run's text.json. Raises CheckpointError if it is missing or invalid."""
    try:
        facts = json.loads((folder / TEXT).read_bytes().decode("utf-8"))
        for key in ("description", "tokenizer", "sha256"):
            if not isinstance(facts[key], str):
                raise ValueError(f"{key} is {facts[key]!r:.40}, not a string")
        if facts["tokenizer"] not in TOKENIZERS and "start" not in facts:
            raise ValueError(f"there is no tokenizer {facts['tokenizer']!r:.40}")
    except OSError as error:
        raise CheckpointError(
            f"{shown(folder / TEXT)} can't be read: {error.strerror or error}: restore it from a copy, or start a "
            "new run"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{shown(folder / TEXT)} is damaged ({error}): restore it from a copy, or start a new run"
        ) from error
    return dict(facts)


def _require_same_text(settings: Settings) -> None:
    folder, facts = settings.folder, read_facts(settings.folder.path)
    if settings.data is not None:
        source, name = _source(settings.data)
        with explain_os_errors("read", source), _opened(source) as file:
            digest = hashlib.sha256()
            while data := file.read(1 << 20):
                digest.update(data)
        if digest.hexdigest() != facts["sha256"]:
            raise CheckpointError(
                f"the run in {folder} uses a different text than {name}: {facts['description']}; leave --data out"
            )
    if settings.tokenizer not in (None, facts["tokenizer"]):
        raise CheckpointError(f"the run in {folder} has {facts['tokenizer']} tokens, not {settings.tokenizer}")
    if settings.vocab_size is not None and str(settings.vocab_size) != str(facts.get("vocab_size")):
        raise CheckpointError(
            f"the run in {folder} was given --vocab-size {facts.get('vocab_size')}, not {settings.vocab_size}"
        )
