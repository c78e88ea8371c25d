"""A cache of token files, so that a second run on the same text with the same settings need not encode it again.

An entry is a folder `tokens/KEY` in the cache folder (`tinygpt.data.cache_folder`): the token file, the trained
tokenizer, and entry.json with the content of text.json and the SHA-256 of each file. KEY is a hash of everything that
determines the tokens: the settings, the versions of the encoding libraries, and the bytes of the text. These are the
bytes that were read when the entry was made, so a text that changes meanwhile makes no wrong entry. A text is hashed in
advance only if there is an entry with these settings whose files have the same sizes and ends, so a first run is not
slowed down.

Only slow encodings are cached: BPE, words and WordPiece, of texts of at least 1 MB. Characters and bytes are encoded in
10 ms per MB; hashing the text and copying two bytes for each would take a third of that, and the disk space. A pipe
can't be read twice, so it is not cached. When the entries exceed 8 GB, or half of the free space, the least recently
used ones are removed. To clear the cache, delete the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ... import __version__
from ...console import say
from ...data import cache_folder
from ...data.opening import STDIN
from ...errors import UsageError
from ...files import DAMAGE, explain_os_errors, shown
from ...tokenizers import FILES, Tokenizer
from ..settings.choose import VOCAB_SIZES, Settings
from ..storage.folder import TOKENS
from .corpus import RunCorpus

FORMAT = 1  # increase it when the same settings yield other tokens
_ENTRY = "entry.json"
_LEAST = 1 << 20  # bytes: shorter texts are encoded in less than a second
_MOST = 8 << 30  # bytes of all entries
_ENDS = 4096  # bytes of a file's beginning and end that distinguish it from others of the same size
_BLOCK = 1 << 20
_A_DAY = 86400.0  # seconds; a temporary folder older than this was left by a killed process
_KEY = r"[0-9a-f]{32}-[0-9a-f]{32}"


@dataclass(frozen=True)
class Entry:
    """What text.json says about the text, without its description, and what the corpus reported."""

    folder: Path
    facts: dict[str, Any]
    report: str


class TokenCache:
    """The entries for one corpus and its settings. digest: computes the SHA-256 of the corpus, if it is needed."""

    def __init__(self, settings: dict[str, Any], digest: Callable[[], str]) -> None:
        self._folder = cache_folder() / "tokens"
        self._settings, self._digest = settings, digest
        self._prefix = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]

    def take(self, place: Path) -> Entry | None:
        """Copy the files of the matching entry to the folder `place`; None if there is none. Removes a damaged one."""
        found = False
        with contextlib.suppress(OSError):
            found = any(name.startswith(self._prefix) for name in os.listdir(self._folder))
        if found:
            return self._taken(self._folder / f"{self._prefix}-{self._digest()[:32]}", place)
        return None

    def _taken(self, folder: Path, place: Path) -> Entry | None:
        if not folder.is_dir():
            return None
        copied: list[Path] = []
        try:
            entry = json.loads((folder / _ENTRY).read_bytes())
            if entry["settings"] != self._settings:
                raise ValueError("it is of other settings")
            for name, sha256 in entry["files"].items():
                if name not in FILES | {TOKENS}:
                    raise ValueError(f"it has a file {name!r}")
                copied.append(place / name)
                if _copied(folder / name, place / name) != sha256:
                    raise ValueError(f"{name} has another SHA-256")
            if TOKENS not in entry["files"]:
                raise ValueError(f"it has no {TOKENS}")
            with contextlib.suppress(OSError):
                os.utime(folder / _ENTRY)  # used just now
            return Entry(folder, dict(entry["facts"]), str(entry["report"]))
        except UsageError:  # about the folder of the run
            raise
        except (OSError, *DAMAGE):
            say(f"The tokens in the cache, {shown(folder)}, are damaged: encoding the text again")
            for path in copied:
                path.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def keep(self, place: Path, facts: dict[str, Any], report: str) -> None:
        """Store the files in the folder `place`, or do nothing if that fails. facts: those of text.json."""
        names = [name for name in sorted(FILES | {TOKENS}) if (place / name).is_file()]
        folder = self._folder / f"{self._prefix}-{facts['sha256'][:32]}"
        made = self._folder / f".{folder.name}.{secrets.token_hex(4)}.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._make_room(sum(os.path.getsize(place / name) for name in names)):
                return
            made.mkdir()
            files = {name: _copied(place / name, made / name) for name in names}
            entry = {"settings": self._settings, "facts": facts, "report": report, "files": files}
            (made / _ENTRY).write_text(json.dumps(entry, indent=1), encoding="utf-8")
            os.rename(made, folder)
        except (OSError, UsageError):  # a full disk; another process was faster
            pass
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _make_room(self, needed: int) -> bool:
        """Remove the least recently used entries until there is room, and what killed processes left behind.

        Returns False if there can't be enough room.
        """
        entries = []
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                if re.fullmatch(rf"\.{_KEY}\.[0-9a-f]{{8}}\.tmp", path.name):
                    if time.time() - path.stat().st_mtime > _A_DAY:
                        shutil.rmtree(path, ignore_errors=True)
                    continue
                if not re.fullmatch(_KEY, path.name):
                    continue  # not made here
                size = sum(file.stat().st_size for file in path.iterdir())
                used = (path / _ENTRY).stat().st_mtime if (path / _ENTRY).exists() else 0.0
                entries.append((used, size, path))
        held = sum(size for _, size, _ in entries)
        room = min(_MOST, (shutil.disk_usage(self._folder).free + held) // 2)
        for _, size, path in sorted(entries):
            if held + needed <= room:
                break
            shutil.rmtree(path, ignore_errors=True)
            held -= size
        return held + needed <= room


def token_cache(
    settings: Settings, corpus: RunCorpus, kind: str, tokenizer: Tokenizer | None, digest: Callable[[RunCorpus], str]
) -> TokenCache | None:
    """The cache for the text of a run; None if the text is not cached.

    tokenizer: None if one of this kind has yet to be trained. digest: computes the SHA-256 of a corpus.
    """
    slow = kind in VOCAB_SIZES if tokenizer is None else tokenizer.type in ("bpe", "word", "wordpiece")
    if not (slow and settings.cache) or any(path == STDIN or not os.path.isfile(path) for path in corpus.files):
        return None
    made: Any = {"type": kind, "vocab_size": settings.vocab_size or VOCAB_SIZES.get(kind)}
    if tokenizer is not None:
        made = {"type": tokenizer.type, "config": tokenizer.config()}
    with explain_os_errors("read", corpus.files[0]):
        files = [(os.path.getsize(path), *_ends(path)) for path in corpus.files]
    if sum(file[0] for file in files) < _LEAST:
        return None
    about = {
        "format": [FORMAT, __version__, *_versions()],
        "tokenizer": hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest(),
        "validation_fraction": settings.training.validation_fraction,
        "text": asdict(settings.text),
        "files": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
    }
    return TokenCache(about, lambda: digest(corpus))


def _versions() -> Iterator[str]:
    """The versions of the data and code that the tokens depend on."""
    yield unicodedata.unidata_version
    with contextlib.suppress(PackageNotFoundError):
        yield version("tokenizers")


def _ends(path: str) -> tuple[str, str]:
    """How the file is read, by its name, and a hash of its beginning and end, where compressed files have checksums."""
    with open(path, "rb") as file:
        begin = file.read(_ENDS)
        file.seek(max(0, os.path.getsize(path) - _ENDS))
        found = hashlib.sha256(begin + file.read(_ENDS)).hexdigest()
    return "".join(Path(path).suffixes[-2:]).lower(), found


def _copied(source: Path, target: Path) -> str:
    """Copy a file; return its SHA-256. Raises OSError if it can't be read, UsageError if it can't be written."""
    digest = hashlib.sha256()
    with open(source, "rb") as file, explain_os_errors("write", target), open(target, "wb", buffering=0) as copy:
        while block := file.read(_BLOCK):
            digest.update(block)
            copy.write(block)
    return digest.hexdigest()
