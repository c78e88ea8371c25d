"""The corpus of a run: its files, how they are read, and how a pipe, which can be read only once, is read twice.

corpus = RunCorpus(("books/", "more.jsonl.gz"), TextOptions(encoding="gb18030"))
for piece in corpus.documents(): ...
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ... import console
from ...data.cleaning import KINDS, Cleaning
from ...data.documents import NEWLINES, Documents, Piece
from ...data.opening import COMPRESSED, STDIN, described, opened, suffix
from ...errors import UsageError
from ...files import explain_os_errors, shown

_SPOOL = "text.spool"
_PACKED = 3  # roughly how many times larger a text is than its compressed file
_UNICODE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff", b"\x84\x31\x95\x33")  # of encodings other than UTF-8


@dataclass(frozen=True)
class TextOptions:
    """How a run reads its text. Those that differ from the defaults are stored with the run."""

    encoding: str = "utf-8"
    newlines: str = "keep"
    cross_documents: bool = False
    skip_bad_files: bool = False
    clean: str = ""  # kinds from `cleaning.KINDS`, separated by commas

    def changed(self) -> dict[str, Any]:
        """The options that differ from the defaults."""
        return {name: value for name, value in asdict(self).items() if value != getattr(TextOptions, name)}


def add_text_options(group: Any) -> None:
    """Add the options of a text. None of them has a default, so that a resumed run knows what was given."""
    words = (
        "texts to train on: files, folders, patterns or - (standard input). A .txt, .md or other file is one document; "
        ".jsonl, .csv and .tsv have one document per row, in the column text; also .gz, .xz, .zst (default: "
        "Shakespeare)"
    )
    group.add_argument("files", nargs="*", metavar="FILE", help=words)
    group.add_argument("--data", metavar="FILE", help="the same, for a single FILE")
    words = "encoding of the texts: utf-8, gb18030, latin-1, utf-16 ...; a byte order mark wins (default: utf-8)"
    group.add_argument("--encoding", metavar="NAME", help=words)
    words = "keep line breaks as they are, or convert all of them to \\n (default: keep)"
    group.add_argument("--newlines", choices=NEWLINES, help=words)
    words = "let windows cross the boundaries of documents (default: none reaches into the next document)"
    group.add_argument("--cross-documents", action="store_true", default=None, help=words)
    words = f"clean the documents, and report how often: any of {','.join(KINDS)}, separated by commas"
    group.add_argument("--clean", metavar="KINDS", help=words)
    words = "skip and count files and rows that can't be read (default: stop and name them)"
    group.add_argument("--skip-bad-files", action="store_true", default=None, help=words)
    words = "encode the text again: neither read nor write the cache of token files (TINYGPT_CACHE/tokens)"
    group.add_argument("--no-cache", action="store_true", help=words)


def given_text(options: argparse.Namespace) -> tuple[tuple[str, ...] | None, dict[str, Any]]:
    """The names of the texts, None if there are none, and the options of `TextOptions` that were given."""
    names = tuple(getattr(options, "files", None) or ())
    if names and options.data is not None:
        raise UsageError("the texts are given twice, as FILE and with --data: give them once")
    given = {field.name: getattr(options, field.name, None) for field in fields(TextOptions)}
    return names or ((options.data,) if options.data is not None else None), {
        name: value for name, value in given.items() if value is not None
    }


class RunCorpus:
    """The texts of a run. name: what messages call it. Raises UsageError for files that aren't there."""

    def __init__(self, names: tuple[str, ...], options: TextOptions, name: str = "") -> None:
        self.options = options
        self._cleaning = Cleaning(options.clean.split(",")) if options.clean else None
        self._documents = Documents(
            names,
            options.encoding,
            options.newlines,
            options.skip_bad_files,
            keep_nul=self._cleaning is not None and "control" in self._cleaning.kinds,
        )
        self.single = self._documents.single
        self.name = name or _named(names, self._documents.files)

    @property
    def files(self) -> list[str]:
        return self._documents.files

    @property
    def report(self) -> str:
        """What the last pass skipped and cleaned; empty if nothing."""
        bad, cleaned = self._documents.bad, "" if self._cleaning is None else f"Cleaned: {self._cleaning}"
        if bad.count == 0:
            return cleaned
        more = f"; and {bad.count - len(bad.sentences)} more" if bad.count > len(bad.sentences) else ""
        words = f"{bad.count} files or rows were left out: {'; '.join(bad.sentences)}{more}"
        return f"{words}\n{cleaned}" if cleaned else words

    def documents(
        self, see: Callable[[bytes], object] | None = None, doing: str = "reading"
    ) -> Generator[Piece, None, None]:
        """Read the corpus from the beginning, with a progress bar. see: called with the bytes that are read."""
        with contextlib.closing(console.byte_bar(self.size, doing)) as bar:

            def seen(data: bytes) -> None:
                bar.update(len(data))
                if see is not None:
                    see(data)

            self._documents.see = seen
            yield from self._documents if self._cleaning is None else self._cleaning(self._documents)

    def texts(self, see: Callable[[bytes], object]) -> Iterator[str]:
        """The texts of a single document."""
        return (piece.text for piece in self.documents(see, "encoding"))

    @property
    def size(self) -> int | None:
        """The total size of all files in bytes; None if it is unknown, as for a pipe or a compressed file."""
        if any(path == STDIN or Path(path).suffix.lower() in COMPRESSED for path in self.files):
            return None
        found = [os.stat(path) for path in self.files]
        if not all(stat.S_ISREG(status.st_mode) for status in found):
            return None
        return sum(status.st_size for status in found)

    def require_room(self, folder: Path, bytes_per_byte: float) -> None:
        """Raise UsageError if the token file will not fit on the disk. bytes_per_byte: of tokens per byte of text."""
        size = 0
        for path in self.files:
            if path != STDIN:
                packed = Path(path).suffix.lower() in COMPRESSED
                size += os.path.getsize(path) * (_PACKED if packed else 1)
        needed = int(size * bytes_per_byte)
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(folder).free
            if needed > free:
                raise UsageError(
                    f"the token file of {self.name} takes about {needed / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB "
                    f"are free in {shown(folder)}: choose another --out, or make room"
                )

    # Reading twice --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def twice(self, place: Path) -> Iterator[RunCorpus]:
        """This corpus, readable twice: pipes are copied to temporary files in the folder `place`."""
        with contextlib.ExitStack() as stack:
            names = []
            for number, path in enumerate(self.files):
                if path == STDIN or not os.path.isfile(path):
                    spool = place / f"{number}.{_SPOOL}{suffix(path)}"
                    stack.callback(spool.unlink, missing_ok=True)
                    with (
                        explain_os_errors("copy the text of a pipe to", spool),
                        opened(path) as file,
                        open(spool, "wb") as copy,
                    ):
                        shutil.copyfileobj(file, copy, 1 << 20)
                    path = str(spool)
                names.append(path)
            found = RunCorpus(tuple(names), self.options, self.name)
            found.single = self.single
            yield found

    @contextlib.contextmanager
    def as_utf8(self, place: Path, see: Callable[[bytes], object]) -> Iterator[Path]:
        """The file of a single text, or a temporary copy of it in UTF-8 in the folder `place`.

        see: called with the bytes that are read to copy it.
        """
        path = Path(self.files[0])
        if self.options.changed().keys() <= {"cross_documents"} and os.path.isfile(path) and _is_plain(path):
            yield path
            return
        spool = place / _SPOOL
        try:
            with explain_os_errors("copy the text to", spool), open(spool, "wb") as copy:
                for piece in self.documents(see, "copying"):
                    copy.write(piece.text.encode("utf-8"))
            yield spool
        finally:
            spool.unlink(missing_ok=True)


def _is_plain(path: Path) -> bool:
    """Whether the file is not compressed and does not begin with another encoding's byte order mark."""
    with explain_os_errors("read", path), open(path, "rb") as file:
        return path.suffix.lower() not in COMPRESSED and not file.read(4).startswith(_UNICODE_MARKS)


def _named(names: tuple[str, ...], files: list[str]) -> str:
    many = f"{len(files)} files" if len(files) > 1 else "1 file"
    if len(names) == 1 and os.path.isdir(os.path.expanduser(names[0])):
        return f"the folder {shown(names[0])} ({many})"
    if len(files) == 1 and files[0] != STDIN and not os.path.isfile(files[0]):
        return f"the pipe {shown(files[0])}"
    return described(files[0]) if len(files) == 1 else f"{described(files[0])} and {len(files) - 1} more"
