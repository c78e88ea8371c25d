"""How the recipes come to their data: one archive from the package index that pip uses, checked, cached, only read."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import io
import json
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tinygpt.errors import UsageError

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
NAME = "some_words-1.0.tar.gz"


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module _data, with no settings of pip's but those of the test."""
    monkeypatch.syspath_prepend(str(RECIPES))
    for name in ("TINYGPT_OFFLINE", "PIP_NO_INDEX", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    import _data

    monkeypatch.setattr(_data, "_default_index", lambda: "")
    own = _data.pip_settings
    monkeypatch.setattr(
        _data, "pip_settings", lambda: {k: v for k, v in own().items() if f"PIP_{k}".upper().replace("-", "_") in SET}
    )
    yield _data
    sys.modules.pop("_data")


SET = ("PIP_INDEX_URL", "PIP_NO_INDEX")  # what these tests set


def sdist(members: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in members.items():
            entry = tarfile.TarInfo(f"some_words-1.0/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


CONTENT = sdist({"words/a.txt": "alpha", "words/b.txt": "beta", "setup.py": "raise SystemExit('was run')"})


def package(data: Any, content: bytes = CONTENT) -> Any:
    return data.Package("Some.Words", "1.0", NAME, hashlib.sha256(content).hexdigest())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index in a folder, with one file."""
    page = tmp_path / "index" / "simple" / "some-words"
    page.mkdir(parents=True)
    (tmp_path / "index" / NAME).write_bytes(CONTENT)
    (page / "index.html").write_text(
        f'<!DOCTYPE html><a href="../../other.whl">other.whl</a>\n<a class=x href="../../{NAME}#sha256=0">{NAME}</a>'
    )
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "index" / "simple").as_uri())
    monkeypatch.setenv("TINYGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "index"


@pytest.mark.slow
def test_an_archive_is_fetched_once_and_only_read(data: Any, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = data.fetch(package(data))
    assert archive.read("words/a.txt") == b"alpha"
    assert dict(archive.files("words/*.txt")) == {"words/a.txt": b"alpha", "words/b.txt": b"beta"}
    (index / NAME).unlink()
    monkeypatch.setenv("TINYGPT_OFFLINE", "1")
    assert data.fetch(package(data)).read("words/b.txt") == b"beta"


def test_a_wheel_is_read_too(data: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        wheel.writestr("words/a.txt", "alpha")
    assert data.Archive(tmp_path / "some.whl").read("words/a.txt") == b"alpha"


@pytest.mark.slow
def test_a_wrong_checksum_is_refused_and_nothing_is_cached(data: Any, index: Path, tmp_path: Path) -> None:
    (index / NAME).write_bytes(CONTENT[::-1])
    with pytest.raises(UsageError, match="have the wrong checksum"):
        data.fetch(package(data))
    assert not list(tmp_path.glob("cache/**/*.gz"))


@pytest.mark.slow
def test_a_damaged_cache_is_replaced(data: Any, index: Path, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "packages" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:100])
    assert data.fetch(package(data)).read("words/a.txt") == b"alpha"
    assert path.read_bytes() == CONTENT


def assert_says_what_to_do(sentence: str, data: Any, cache: Path) -> None:
    assert "\n" not in sentence
    for word in (NAME, "Some.Words 1.0", package(data).sha256, str(cache / "packages" / NAME)):
        assert word in sentence


def test_offline_it_says_what_to_fetch_and_where_to_put_it(
    data: Any, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYGPT_OFFLINE", "1")
    with pytest.raises(UsageError, match="TINYGPT_OFFLINE is set: fetch the file") as caught:
        data.fetch(package(data))
    assert_says_what_to_do(str(caught.value), data, tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"PIP_NO_INDEX": "1"}, {"PIP_INDEX_URL": ""}])
def test_without_an_index_it_says_the_same(
    data: Any, index: Path, tmp_path: Path, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="pip's settings name no package index") as caught:
        data.fetch(package(data))
    assert_says_what_to_do(str(caught.value), data, tmp_path / "cache")


@pytest.mark.slow
def test_a_file_that_the_index_does_not_have_is_named(data: Any, index: Path) -> None:
    other = data.Package("some-words", "1.1", "some_words-1.1.tar.gz", "0" * 64)
    with pytest.raises(UsageError, match=r"the page of some-words lists no some_words-1\.1\.tar\.gz"):
        data.fetch(other)


def test_an_archive_of_ones_own(data: Any, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.tar.gz").write_bytes(sdist({"words/a.txt": "other"}))
    archive = data.fetch(package(data), str(tmp_path / "own.tar.gz"))
    assert archive.read("words/a.txt") == b"other"
    assert f"is not the {NAME} on which the results of this recipe were measured" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"has no file words/b\.txt: is it the archive that the recipe names\?"):
        archive.read("words/b.txt")
    (tmp_path / "text.tar.gz").write_text("no archive")
    with pytest.raises(UsageError, match="is not an archive that can be read"):
        data.fetch(package(data), str(tmp_path / "text.tar.gz")).read("words/a.txt")
    with pytest.raises(UsageError, match=r"there is no file .*absent\.tar\.gz"):
        data.fetch(package(data), str(tmp_path / "absent.tar.gz"))


@contextlib.contextmanager
def served(files: dict[str, bytes]) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """host:port of a server, and what it was asked for: path and Authorization."""
    asked: list[tuple[str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            content = files.get(self.path)
            self.send_response(200 if content is not None else 404)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.slow
def test_a_login_goes_to_the_index_alone_and_no_message_shows_it(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYGPT_CACHE", str(tmp_path / "cache"))
    with served({f"/{NAME}": CONTENT}) as (files, asked_files):
        page = json.dumps({"files": [{"filename": NAME, "url": f"http://{files}/{NAME}"}]}).encode()
        with served({"/simple/some-words/": page}) as (host, asked):
            monkeypatch.setenv("PIP_INDEX_URL", f"http://me:s%40cret@{host}/simple/")
            assert data.fetch(package(data)).read("words/a.txt") == b"alpha"
            login = base64.b64encode(b"me:s@cret").decode()
            assert asked == [("/simple/some-words/", f"Basic {login}")]
            assert asked_files == [(f"/{NAME}", None)]
            with pytest.raises(UsageError) as caught:
                data.fetch(data.Package("unknown", "1.0", "unknown.whl", "0" * 64))
            assert "HTTP Error 404" in str(caught.value)
            assert "cret" not in str(caught.value)


NPM = """import pathlib, sys
assert sys.argv[1:4] == ["pack", "some-words@1.0", "--ignore-scripts"], sys.argv
sys.exit("npm ERR! 404 Not Found") if "{fails}" else None
pathlib.Path(sys.argv[5], "some-words-1.0.tgz").write_bytes(bytes.fromhex("{content}"))
"""


@pytest.fixture
def npm(data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a command npm that packs CONTENT, or fails; gives the package."""
    monkeypatch.setenv("TINYGPT_CACHE", str(tmp_path / "cache"))
    own = data.subprocess.run
    monkeypatch.setattr(data.shutil, "which", lambda name: f"/usr/bin/{name}")

    def make(content: bytes, fails: bool = False) -> Any:
        script = tmp_path / "npm.py"
        script.write_text(NPM.format(fails="yes" if fails else "", content=content.hex()))

        def run(command: list[str], **settings: Any) -> Any:
            assert command[0] == "/usr/bin/npm"
            return own([sys.executable, str(script), *command[1:]], **settings)

        monkeypatch.setattr(data.subprocess, "run", run)
        sha256 = hashlib.sha256(CONTENT).hexdigest()
        return data.Package("some-words", "1.0", "some-words-1.0.tgz", sha256, npm=True)

    return make


def test_a_package_of_npm_is_packed_and_checked(
    data: Any, npm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"from npm have the wrong checksum .*: fetch the file some-words-1\.0\.tgz"):
        data.fetch(npm(CONTENT[::-1]))
    with pytest.raises(UsageError, match=r"could not be downloaded \(npm ERR! 404 Not Found\): fetch the file"):
        data.fetch(npm(CONTENT, fails=True))
    assert not list(tmp_path.glob("cache/**/*.tgz"))
    assert data.fetch(npm(CONTENT)).read("words/a.txt") == b"alpha"
    monkeypatch.setattr(data.shutil, "which", lambda name: None)
    assert data.fetch(npm(CONTENT)).read("words/b.txt") == b"beta"
    (tmp_path / "cache" / "packages" / "some-words-1.0.tgz").unlink()
    with pytest.raises(UsageError, match="there is no npm on the PATH"):
        data.fetch(npm(CONTENT))


@pytest.mark.slow
def test_pips_settings_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From pip's own files, which environment variables override."""
    monkeypatch.syspath_prepend(str(RECIPES))
    import _data

    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://one.invalid/simple\nextra-index-url = a b\n")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    try:
        assert _data.index_urls(_data.pip_settings())[0] == "https://one.invalid/simple"
        monkeypatch.setenv("PIP_INDEX_URL", "https://two.invalid/simple")
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://three.invalid")
        assert _data.index_urls(_data.pip_settings()) == ["https://two.invalid/simple", "https://three.invalid"]
    finally:
        sys.modules.pop("_data")
