"""The library `tokenizers`, which does the work of BPE, behind a guard.

It is written in Rust, and what it did not expect ends in a panic: pyo3's PanicException, which is no `Exception`, so it
would end the loop of a server that catches errors. Here it becomes an error like any other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..errors import UsageError, missing_extra


def tokenizers() -> Any:
    """The library, or MissingExtraError."""
    try:
        import tokenizers
    except ImportError as error:
        raise missing_extra("tokenizers", "byte-level BPE") from error
    return tokenizers


@contextlib.contextmanager
def explain(doing: str, kind: type[Exception] = UsageError) -> Iterator[None]:
    """Raise what the library raises, panics included, as one sentence of class `kind`."""
    try:
        yield
    except UsageError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # Ctrl-C
        said = str(error).strip().split("\n")[0] or type(error).__name__
        raise kind(f"{doing}{said}") from error
