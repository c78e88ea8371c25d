"""Errors that a sentence can explain.

Everything a user can get wrong (a shape, a dtype, an option, a file) raises a `UsageError`: one
sentence that says where, what was expected, what came, and what to do. The command line prints
that sentence and exits with code 2; any other exception is a defect of ours and keeps its
traceback. The subclasses are also the built-in exception that a Python programmer would expect,
so `except IndexError` works on an embedding id out of range.
"""

from __future__ import annotations


class UsageError(ValueError):
    """A mistake in what was asked for. The message is one complete sentence."""


class ShapeError(UsageError):
    """Arrays whose shapes or axes do not fit the operation."""


class DtypeError(UsageError, TypeError):
    """Arrays of a dtype, or values of a type, that the operation can't take."""


class RangeError(UsageError, IndexError):
    """A value outside its range: an id beyond the vocabulary, an index beyond an axis."""


class MissingExtraError(UsageError, ImportError):
    """An optional library is not installed. The message says how to get it."""


class OutOfMemoryError(UsageError, MemoryError):
    """The GPU's memory does not suffice."""


class GraphFreedError(UsageError, RuntimeError):
    """`backward()` through a graph whose saved arrays are already gone."""


class CheckpointError(UsageError):
    """A checkpoint that is damaged, cut short, or of another model."""


def missing_extra(package: str, purpose: str) -> MissingExtraError:
    """The error for an absent optional library: what it is for and how to get it.

    By its own name, not as an extra of tinygpt: no index has ours, and what has its name there is a stranger's.
    """
    return MissingExtraError(f"{purpose} needs the package {package!r}, which is not installed: pip install {package}")
