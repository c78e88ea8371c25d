"""The text of a run: from files, pipes or Shakespeare to a tokenizer and a token file.

The text is read once: one pass encodes, counts and hashes it, and sets documents aside for validation. Only for BPE and
word tokenizers is it read twice, because these are first trained on the training part alone, so that they know nothing
of the validation text; a pipe is then copied to a temporary file.

A single plain text is one document, and its end is for validation. How many tokens its training part has depends on the
merges, so with BPE it is measured in bytes; the token file stores the resulting number of tokens for
`tinygpt.data.split`.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import tokenizers
from ...console import say
from ...data import CharacterVocabulary, open_tokens, read_text, shakespeare, split, write_documents
from ...data.token_range import check_range
from ...data.tokens import write_token_parts
from ...errors import UsageError
from ...files import explain_os_errors, shown, user_path
from ...gpt import GPTConfig
from ...memory import require_memory
from ...tokenizers import ByteTokenizer, Tokenizer, UnknownCharacterError
from ..settings.choose import TOKENIZERS, VOCAB_SIZES, Settings
from ..storage.folder import TOKENS
from .corpus import RunCorpus
from .text_facts import corpus_sha256, documents_of, read_facts, require_same_text, save_facts, token_folder_in
from .token_cache import Entry, token_cache
from .token_size import bytes_per_byte
from .tokenizer_training import divided_text, learn, learn_from_one, nonempty


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
        require_same_text(settings)
        if check is not None:
            check(tokenizers.load(settings.folder.path))
        place = settings.folder.path
    else:
        place = make_text(settings, check)
    facts = read_facts(place)
    return Text(tokenizers.load(place), open_tokens(place / TOKENS), facts["description"], documents_of(facts))


# The text of a new run --------------------------------------------------------------------------------


def make_text(settings: Settings, check: Callable[[Tokenizer], object] | None = None) -> Path:
    """Write the text's files to the staging folder of a new run, and return the folder."""
    if (ahead := token_folder_in(settings.data)) is not None:
        return _take(settings, ahead, check)
    if settings.data is None:
        found = shakespeare()
        corpus, description = (
            RunCorpus((str(found.path),), settings.text, f"the text {shown(found.path)}"),
            found.description,
        )
    else:
        corpus = RunCorpus(settings.data, settings.text)
        description = corpus.name
        for path in corpus.files:
            settings.folder.require_not_among(Path(path))
    place = settings.folder.begin(settings.overwrite)
    kind = settings.start.tokenizer.type if settings.start is not None else settings.tokenizer or "character"
    learns = settings.start is None and kind in VOCAB_SIZES
    made = None if learns else _tokenizer(settings, kind, corpus.single)
    corpus.require_room(place, bytes_per_byte(corpus, kind, made))
    known = made if isinstance(made, Tokenizer) else None
    cache = token_cache(settings, corpus, kind, known, corpus_sha256) if learns or known is not None else None
    entry = cache.take(place) if cache is not None else None
    if entry is not None:
        facts, report = _from_cache(settings, corpus.name, entry, place, check), entry.report
    else:
        with corpus.twice(place) if learns and not corpus.single else contextlib.nullcontext(corpus) as readable:
            facts = _write_text(settings, readable, kind, made, place, check)
        report = readable.report
        if cache is not None:
            cache.keep(place, facts, report)
    if report:
        say(report)
    facts = {"description": description, "tokenizer": kind} | facts | settings.text.changed()
    save_facts(place, facts)
    return place


def _from_cache(
    settings: Settings, name: str, entry: Entry, place: Path, check: Callable[[Tokenizer], object] | None
) -> dict[str, Any]:
    """Accept what the cache put into the folder, or raise the errors that encoding would. Returns its facts."""
    tokenizer = tokenizers.load(place)
    _accept(settings, tokenizer, check)
    _refuse_short_text(
        name, *split(open_tokens(place / TOKENS), settings.training.validation_fraction), settings.model["block_size"]
    )
    say(f"Tokens: from the cache, {shown(entry.folder)} (--no-cache encodes the text again)")
    origin = _origin(settings, tokenizer)  # of this run's tokenizer, which may have another place than that run's
    of_origin = {"start", "tokenizer", "tokenizer_from"} - origin.keys()
    return {key: value for key, value in entry.facts.items() if key not in of_origin} | origin


def _take(settings: Settings, ahead: Path, check: Callable[[Tokenizer], object] | None) -> Path:
    """Copy a token file that was made ahead of time, with its tokenizer, to the staging folder of a new run."""
    given = ["tokenizer"] if settings.tokenizer is not None else list(settings.given_text)
    if given or settings.start is not None:
        raise UsageError(
            f"the texts in {shown(ahead)} are encoded already, with their own tokenizer: leave out "
            f"--{given[0].replace('_', '-') if given else 'init-from'}"
        )
    settings.folder.require_not_among(ahead / TOKENS)
    facts, tokenizer, tokens = read_facts(ahead), tokenizers.load(ahead), open_tokens(ahead / TOKENS)
    _accept(settings, tokenizer, check)
    check_range(tokens, tokenizer.vocab_size, f"the token file {shown(ahead / TOKENS)}")
    fraction, name = settings.training.validation_fraction, f"the token file {shown(ahead / TOKENS)}"
    _refuse_short_text(name, *split(tokens, fraction), settings.model["block_size"])
    place = settings.folder.begin(settings.overwrite)
    with explain_os_errors("copy the token file to", place):
        shutil.copyfile(ahead / TOKENS, place / TOKENS)
    tokenizer.save(place)
    save_facts(place, facts)
    return place


def _write_text(
    settings: Settings,
    corpus: RunCorpus,
    kind: str,
    made: Tokenizer | CharacterVocabulary | None,
    place: Path,
    check: Callable[[Tokenizer], object] | None,
) -> dict[str, Any]:
    """Write the token file and the tokenizer. Returns what text.json says about them. made: None if it is learned."""
    facts: dict[str, Any] = {}
    fraction, digest = settings.training.validation_fraction, hashlib.sha256()
    if made is None:
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
    """The tokenizer of a run that learns nothing from its text except, perhaps, its characters."""
    if settings.start is not None:
        return settings.start.tokenizer
    if kind == "byte":
        return ByteTokenizer(end_token=not single)
    if kind == "character":
        return CharacterVocabulary(end_token=not single)
    return tokenizers.load(user_path(kind))


def _origin(settings: Settings, tokenizer: Tokenizer) -> dict[str, Any]:
    """What text.json says about a tokenizer that existed before the run."""
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
    require_memory(config, settings.training.batch_size, settings.backend, recompute=settings.training.recompute)


def _write(
    settings: Settings, corpus: RunCorpus, tokenizer: Tokenizer | CharacterVocabulary, place: Path, digest: Any
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
    corpus: RunCorpus,
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
