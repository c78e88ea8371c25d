"""Delete a run that nothing refers to any more. Files that are not the run's stay, and then so does its folder."""

from __future__ import annotations

import contextlib

from ...checkpoint import INDEX, MARK
from ...files import explain_os_errors
from .folder import RunFolder


def discard(folder: RunFolder) -> None:
    """Delete the files of the run in `folder`, and the folder if it is empty then. Raises UsageError."""
    with folder, explain_os_errors("delete", folder.path):
        folder.lock()
        # The index first: without it there is no run. The mark last, because it says whose the files are.
        for name in sorted(folder.owned(), key=lambda name: (name == MARK, name != INDEX, name)):
            (folder.path / name).unlink()
    with contextlib.suppress(OSError):  # not empty
        folder.path.rmdir()
