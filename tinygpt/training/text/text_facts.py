"""What a run's text.json says about its text, and whether a resumed run has the same one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ...data.opening import opened
from ...errors import CheckpointError
from ...files import DAMAGE, atomic_write, damaged, explain_os_errors, shown, user_path
from ..settings.choose import TOKENIZERS, Settings
from ..storage.folder import TEXT, TOKENS
from .corpus import RunCorpus, TextOptions


def token_folder_in(names: tuple[str, ...] | None) -> Path | None:
    """The folder, if the text is one with a token file, made by `tinygpt tokenize` or by a run; otherwise None."""
    if names is None or len(names) != 1:
        return None
    folder = user_path(names[0])
    return folder if (folder / TOKENS).is_file() and (folder / TEXT).is_file() else None


def save_facts(place: Path, facts: dict[str, Any]) -> None:
    """Write text.json into the folder `place`, atomically."""
    with explain_os_errors("write", place / TEXT), atomic_write(place / TEXT, "w") as file:
        json.dump(facts, file, indent=1, ensure_ascii=False)


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
    except DAMAGE as error:
        raise damaged(shown(folder / TEXT), error, "start a new run") from error
    return dict(facts)


def documents_of(facts: dict[str, Any]) -> tuple[int, int] | None:
    found = facts.get("documents")
    return (int(found[0]), int(found[1])) if isinstance(found, list) and not facts.get("cut") else None


def require_same_text(settings: Settings) -> None:
    folder, facts = settings.folder, read_facts(settings.folder.path)
    stored = {name: facts.get(name, getattr(TextOptions, name)) for name in settings.given_text}
    for name, value in settings.given_text.items():
        if value != stored[name]:
            option = f"--{name.replace('_', '-')}"
            raise CheckpointError(f"the run in {folder} has {option} {stored[name]}, not {value}: leave {option} out")
    ahead = token_folder_in(settings.data)
    if ahead is not None and read_facts(ahead)["sha256"] != facts["sha256"]:
        raise CheckpointError(f"the run in {folder} uses a different text than {shown(ahead)}: leave it out")
    if settings.data is not None and ahead is None:
        corpus = RunCorpus(settings.data, TextOptions(**{k: facts[k] for k in TextOptions().__dict__ if k in facts}))
        if corpus_sha256(corpus) != facts["sha256"]:
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


def corpus_sha256(corpus: RunCorpus) -> str:
    """The hash of what a pass over the corpus reads."""
    digest = hashlib.sha256()
    if corpus.options.skip_bad_files:  # unreadable files are only found while decoding
        for _ in corpus.documents(digest.update):
            pass
    else:
        for path in corpus.files:
            with opened(path) as file:
                while data := file.read(1 << 20):
                    digest.update(data)
    return digest.hexdigest()
