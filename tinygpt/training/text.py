"""The text of a run: from files, pipes or Shakespeare to a tokenizer and a token file.

The text is read once: one pass encodes, counts, hashes it and puts documents aside for validation. Only BPE and a
vocabulary of words read it before, to be learned from the training part alone, so that the tokenizer knows nothing of
the validation text; a pipe is then copied to a temporary file.

A single plain text is one document, and its end is for validation. How many tokens its training part has depends on the
merges, so with BPE it is measured in bytes; the token file stores the resulting number of tokens for
`tinygpt.data.split`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import tokenizers
from ..console import say
from ..data import CharacterVocabulary, open_tokens, read_text, shakespeare, split, write_documents
from ..data.opening import opened
from ..data.tokens import write_token_parts
from ..errors import CheckpointError, UsageError
from ..files import atomic_write, explain_os_errors, shown
from ..gpt import GPTConfig
from ..memory import require_memory
from ..tokenizers import ByteTokenizer, Tokenizer, UnknownCharacterError
from .corpus import Corpus, TextOptions
from .folder import TEXT, TOKENS
from .learning import divided_text, learn, learn_from_one, nonempty
from .settings import TOKENIZERS, VOCAB_SIZES, Settings

# Bytes in the token file for a byte of text, about, to see beforehand whether the disk has room.
_ROOM = {"byte": 2.0, "character": 2.0 / 3, "word": 0.6, "bpe": 0.5}


@dataclass(frozen=True)
class Text:
    """The text of a run: its tokenizer, its ids (N,), and a description of where it came from.

    documents: how many it has for training and for validation; None for a text that was cut instead.
    """

    tokenizer: Tokenizer
    tokens: np.ndarray
    description: str
    documents: tuple[int, int] | None = None


def prepare_text(settings: Settings, check: Callable[[Tokenizer], object] | None = None) -> Text:
    """Tokenizer and tokens of a run: built from the text, or reopened with --resume.

    Those of a new run are staged: an older run stays as it is until the new one has saved its first checkpoint.
    check: called with the tokenizer as soon as it is known, to raise errors before the text is encoded if possible.
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
    facts = read_facts(place)
    return Text(tokenizers.load(place), open_tokens(place / TOKENS), facts["description"], _documents(facts))


# The text of a new run --------------------------------------------------------------------------------


def _make_text(settings: Settings, check: Callable[[Tokenizer], object] | None) -> Path:
    """Write the text's files to the staging folder of a new run, and return the folder."""
    if settings.data is None:
        found = shakespeare()
        corpus, description = (
            Corpus((str(found.path),), settings.text, f"the text {shown(found.path)}"),
            found.description,
        )
    else:
        corpus = Corpus(settings.data, settings.text)
        description = corpus.name
        for path in corpus.files:
            settings.folder.require_not_among(Path(path))
    place = settings.folder.begin(settings.overwrite)
    kind = settings.start.tokenizer.type if settings.start is not None else settings.tokenizer or "character"
    corpus.require_room(place, _ROOM.get(kind, _ROOM["bpe"]))
    learns = settings.start is None and kind in VOCAB_SIZES
    with corpus.twice(place) if learns and not corpus.single else contextlib.nullcontext(corpus) as readable:
        facts = _write_text(settings, readable, kind, place, check)
    if corpus.left_out or readable.left_out:
        say(readable.left_out or corpus.left_out)
    facts = {"description": description, "tokenizer": kind} | facts | settings.text.changed()
    with explain_os_errors("write", place / TEXT), atomic_write(place / TEXT, "w") as file:
        json.dump(facts, file, indent=1, ensure_ascii=False)
    return place


def _write_text(
    settings: Settings, corpus: Corpus, kind: str, place: Path, check: Callable[[Tokenizer], object] | None
) -> dict[str, Any]:
    """Write the token file and the tokenizer. Returns what text.json says about them."""
    facts: dict[str, Any] = {}
    fraction, digest = settings.training.validation_fraction, hashlib.sha256()
    if settings.start is None and kind in VOCAB_SIZES:
        vocab_size = VOCAB_SIZES[kind] if settings.vocab_size is None else settings.vocab_size
        facts["vocab_size"] = str(vocab_size)  # as requested; a short text gives fewer tokens
        if corpus.single:
            tokenizer = _write_learned(settings, corpus, kind, vocab_size, place, check, digest)
        else:
            before = hashlib.sha256()
            tokenizer = learn(kind, corpus.documents(before.update, "learning"), corpus.name, vocab_size, fraction)
            _accept(settings, tokenizer, check)
            facts |= _write(settings, corpus, tokenizer, place, digest)
            if before.digest() != digest.digest():
                raise _changed(corpus.name)
    else:
        made = _tokenizer(settings, kind, corpus.single)
        if isinstance(made, Tokenizer):
            _accept(settings, made, check)
        facts |= _write(settings, corpus, made, place, digest)
        tokenizer = made if isinstance(made, Tokenizer) else made.tokenizer()
        if not isinstance(made, Tokenizer):
            _accept(settings, tokenizer, check)
        facts |= _origin(settings, tokenizer)
    tokens = open_tokens(place / TOKENS)
    _refuse_short_text(corpus.name, *split(tokens, fraction), settings.model["block_size"])
    tokenizer.save(place)
    return facts | {"sha256": digest.hexdigest()}


def _tokenizer(settings: Settings, kind: str, single: bool) -> Tokenizer | CharacterVocabulary:
    """The tokenizer of a run that needs to learn nothing from its text but the characters."""
    if settings.start is not None:
        return settings.start.tokenizer
    if kind == "byte":
        return ByteTokenizer(end_token=not single)
    if kind == "character":
        return CharacterVocabulary(end_token=not single)
    return tokenizers.load(Path(kind).expanduser())


def _origin(settings: Settings, tokenizer: Tokenizer) -> dict[str, Any]:
    """What text.json says about a tokenizer that was there before."""
    if settings.start is not None:
        return {"start": settings.start.name}
    if settings.tokenizer not in (None, *TOKENIZERS):
        return {"tokenizer": tokenizer.type, "tokenizer_from": settings.tokenizer}
    return {}


def _accept(settings: Settings, tokenizer: Tokenizer, check: Callable[[Tokenizer], object] | None) -> None:
    """Raise the errors that can be found once the vocabulary is known."""
    if check is not None:
        check(tokenizer)
    start = settings.start
    config = GPTConfig(vocab_size=tokenizer.vocab_size, **settings.model) if start is None else start.model.config
    require_memory(config, settings.training.batch_size, settings.backend)


def _write(
    settings: Settings, corpus: Corpus, tokenizer: Tokenizer | CharacterVocabulary, place: Path, digest: Any
) -> dict[str, Any]:
    """Encode the corpus. Returns what text.json says about its documents."""
    fraction = None if corpus.single else settings.training.validation_fraction
    pieces = corpus.documents(digest.update, "encoding")
    try:
        with contextlib.closing(pieces):
            written = write_documents(
                nonempty(pieces, corpus.name),
                tokenizer,
                place / TOKENS,
                corpus.name,
                fraction,
                settings.text.cross_documents,
            )
    except UnknownCharacterError as error:
        whose = "the tokenizer" if settings.start is None else f"the model {settings.start.name}"
        adding = "" if settings.start is None else f", or add it with --add-token {error.character}"
        raise UsageError(
            f"the character {error.character!r} at position {error.position} of {corpus.name} is not in the vocabulary "
            f"of {whose}: remove it{adding}"
        ) from error
    return {} if corpus.single else {"documents": written.documents, "cut": written.cut}


def _write_learned(
    settings: Settings,
    corpus: Corpus,
    kind: str,
    vocab_size: int,
    place: Path,
    check: Callable[[Tokenizer], object] | None,
    digest: Any,
) -> Tokenizer:
    """Learn BPE or words from the training part of a single text, and encode both parts."""
    fraction = settings.training.validation_fraction
    with corpus.as_utf8(place, digest.update) as path:
        tokenizer, length = learn_from_one(kind, path, corpus.name, vocab_size, fraction)
        _accept(settings, tokenizer, check)
        copied = str(path) != corpus.files[0]
        pieces = read_text(path) if copied else corpus.texts(digest.update)
        write_token_parts(divided_text(pieces, length), tokenizer, place / TOKENS, corpus.name, fraction)
    return tokenizer


def _refuse_short_text(name: str, train: np.ndarray, validation: np.ndarray, block_size: int) -> None:
    counts = {"training": len(train), "validation": len(validation)}
    short, other = sorted(counts, key=lambda part: counts[part])
    least = block_size + 1 if getattr(train, "end_token", None) is None else 2  # documents are padded
    if counts[short] < least:
        raise UsageError(
            f"the {short} part of {name} has {counts[short]} tokens (the {other} part {counts[other]}), but block_size "
            f"{block_size} needs at least {least} (each window and the token after it): use a longer text, a "
            f"smaller block_size or a {'larger' if short == 'validation' else 'smaller'} validation_fraction"
        )


def _changed(name: str) -> UsageError:
    return UsageError(f"{name} changed while it was read: wait until it is written, and start again")


# The text of a resumed run ----------------------------------------------------------------------------


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of a run's text.json. Raises CheckpointError if it is missing or invalid."""
    try:
        facts = json.loads((folder / TEXT).read_bytes().decode("utf-8"))
        for key in ("description", "tokenizer", "sha256"):
            if not isinstance(facts[key], str):
                raise ValueError(f"{key} is {facts[key]!r:.40}, not a string")
        if facts["tokenizer"] not in TOKENIZERS and not {"start", "tokenizer_from"} & facts.keys():
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


def _documents(facts: dict[str, Any]) -> tuple[int, int] | None:
    found = facts.get("documents")
    return (int(found[0]), int(found[1])) if isinstance(found, list) and not facts.get("cut") else None


def _require_same_text(settings: Settings) -> None:
    folder, facts = settings.folder, read_facts(settings.folder.path)
    stored = {name: facts.get(name, getattr(TextOptions, name)) for name in settings.given_text}
    for name, value in settings.given_text.items():
        if value != stored[name]:
            option = f"--{name.replace('_', '-')}"
            raise CheckpointError(f"the run in {folder} has {option} {stored[name]}, not {value}: leave {option} out")
    if settings.data is not None:
        corpus = Corpus(settings.data, TextOptions(**{k: facts[k] for k in TextOptions().__dict__ if k in facts}))
        if _sha256(corpus) != facts["sha256"]:
            raise CheckpointError(
                f"the run in {folder} uses a different text than {corpus.name}: {facts['description']}; leave "
                "--data out"
            )
    if settings.tokenizer not in (None, facts["tokenizer"], facts.get("tokenizer_from")):
        raise CheckpointError(f"the run in {folder} has {facts['tokenizer']} tokens, not {settings.tokenizer}")
    if settings.vocab_size is not None and str(settings.vocab_size) != str(facts.get("vocab_size")):
        raise CheckpointError(
            f"the run in {folder} was given --vocab-size {facts.get('vocab_size')}, not {settings.vocab_size}"
        )


def _sha256(corpus: Corpus) -> str:
    """The hash of what a pass over the corpus reads."""
    digest = hashlib.sha256()
    if corpus.options.skip_bad_files:  # which files are left out shows when they are decoded
        for _ in corpus.documents(digest.update):
            pass
    else:
        for path in corpus.files:
            with opened(path) as file:
                while data := file.read(1 << 20):
                    digest.update(data)
    return digest.hexdigest()
