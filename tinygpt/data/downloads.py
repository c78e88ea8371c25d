"""Downloads: bounded in time and size, and returned only if the checksum is right."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

LARGEST = 16 << 20  # bytes; tinyshakespeare has 1.1 MB, and a captive portal may send a page without end


def is_offline() -> bool:
    """Whether the user has forbidden the network, with TINYGPT_OFFLINE=1."""
    return os.environ.get("TINYGPT_OFFLINE", "") not in ("", "0")


def is_intact(path: Path, sha256: str) -> bool:
    """Whether the file exists and has this checksum."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


def download(
    source: str | urllib.request.Request,
    sha256: str | None,
    timeout: float,
    largest: int = LARGEST,
    opener: urllib.request.OpenerDirector | None = None,
) -> bytes:
    """The content at `source`, or an exception after at most `timeout` seconds.

    sha256: its checksum; None for a page that has none. largest: bytes. opener: replaces urllib's default one.
    Raises OSError, http.client.HTTPException or ValueError.

    A socket timeout limits only each single wait for the server, and nothing limits the DNS lookup. So the
    download runs in its own thread, which we stop waiting for; a daemon thread can't delay the exit.
    """
    outcome: list[bytes | BaseException] = []

    def work() -> None:
        try:
            outcome.append(_fetch(source, sha256, timeout, largest, opener))
        except BaseException as error:  # re-raised by the waiting thread
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True, name="tinygpt-download")
    thread.start()
    thread.join(timeout)
    if not outcome:
        raise TimeoutError(f"{_url(source)} did not arrive within {timeout:g} seconds")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _url(source: str | urllib.request.Request) -> str:
    return source if isinstance(source, str) else source.full_url


def _fetch(
    source: str | urllib.request.Request,
    sha256: str | None,
    timeout: float,
    largest: int,
    opener: urllib.request.OpenerDirector | None,
) -> bytes:
    deadline, url = time.monotonic() + timeout, _url(source)
    content = bytearray()
    try:
        response = (opener.open if opener is not None else urllib.request.urlopen)(source, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the open connection
        raise
    with response:
        # A file:// address answers with a plain reader, which has no read1.
        read = getattr(response, "read1", response.read)
        while block := read(1 << 16):
            content += block
            if len(content) > largest or time.monotonic() > deadline:
                raise ValueError(f"{url} has not ended after {len(content)} bytes")
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError(f"the {len(content)} bytes at {url} have the wrong checksum ({found[:12]}...)")
    return bytes(content)
