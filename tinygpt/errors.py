"""Errors caused by how the library is used.

Everything a user can get wrong (a shape, a dtype, an option, a file) raises a `UsageError`, whose message
is one sentence: the operation, what was expected, what it got, and what to do. The command line prints the
message and exits with code 2. Any other exception is a bug in tinygpt and keeps its traceback. The subclasses
also inherit from the built-in exception that a Python programmer would expect, so `except IndexError` catches
an embedding id out of range.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence


class UsageError(ValueError):
    """A mistake by the caller. The message is one complete sentence."""


class ShapeError(UsageError):
    """The shapes or axes of arrays do not fit the operation."""


class DtypeError(UsageError, TypeError):
    """An array's dtype, or a value's type, is not supported by the operation."""


class RangeError(UsageError, IndexError):
    """A value is out of range, such as an id outside the vocabulary or an index outside an axis."""


class MissingExtraError(UsageError, ImportError):
    """An optional library is not installed. The message says how to install it.

    needs: what each purpose lacks, as pip names it; empty where installing alone does not help.
    """

    def __init__(self, message: str, needs: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__(message)
        self.needs = dict(needs or {})


class OutOfMemoryError(UsageError, MemoryError):
    """There is not enough GPU memory."""


class GraphFreedError(UsageError, RuntimeError):
    """`backward()` was called on a graph whose saved arrays are already freed."""


class CheckpointError(UsageError):
    """A checkpoint is damaged, truncated, or of another model."""


def missing_extra(package: str, purpose: str) -> MissingExtraError:
    """The error for a missing optional library. It says what needs the library and how to install it.

    It names the library, not an extra of tinygpt: tinygpt is not on PyPI, and the package of that name is not ours.
    """
    return MissingExtraError(
        f"{purpose} needs the package {package!r}, which is not installed: pip install {package}", {purpose: [package]}
    )


Need = Callable[[], object]  # a check of an optional library: raises MissingExtraError


def require_together(*checks: Need, wanted: Sequence[Need] = ()) -> None:
    """Make all checks, and raise one MissingExtraError for all libraries that they miss: nobody installs one library
    after another, each named only once the one before is there.

    wanted: checks of what is used if it is there. They are made only where something is missing anyway.
    """
    errors = list[MissingExtraError]()
    for check in checks:
        _collect(check, errors)
    if not errors:
        return
    for check in wanted:
        _collect(check, errors)
    if len(errors) == 1 or not all(error.needs for error in errors):
        raise errors[0]
    needs = dict[str, list[str]]()
    for purpose, packages in [item for error in errors for item in error.needs.items()]:
        known = needs.setdefault(purpose, [])
        known += [package for package in packages if package not in known]
    purposes = ", ".join(f"{purpose} needs {' and '.join(packages)}" for purpose, packages in needs.items())
    names = shlex.join(dict.fromkeys(package for packages in needs.values() for package in packages))
    raise MissingExtraError(f"some packages are not installed ({purposes}): pip install {names}", needs)


def _collect(check: Need, errors: list[MissingExtraError]) -> None:
    try:
        check()
    except MissingExtraError as error:
        if str(error) not in map(str, errors):  # several checks may ask for the same library
            errors.append(error)
