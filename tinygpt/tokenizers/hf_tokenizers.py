"""Access to Hugging Face's library `tokenizers`, which implements BPE, with its panics turned into ordinary errors.

The library is written in Rust, and an unexpected input makes it panic. pyo3's PanicException is not a subclass of
`Exception`, so it would get past a server's `except Exception` and end its loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..errors import UsageError, missing_extra


def tokenizers() -> Any:
    """Import the library. Raises MissingExtraError if it is not installed."""
    try:
        import tokenizers
    except ImportError as error:
        raise missing_extra("tokenizers", "byte-level BPE") from error
    return tokenizers


@contextlib.contextmanager
def explain(doing: str, kind: type[Exception] = UsageError) -> Iterator[None]:
    """Re-raise the library's errors and panics as a `kind` with a one-line message that begins with `doing`."""
    try:
        yield
    except UsageError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # Ctrl-C
        message = str(error).strip().split("\n")[0] or type(error).__name__
        raise kind(f"{doing}{message}") from error
