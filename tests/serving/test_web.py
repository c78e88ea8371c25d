"""The files of the page at `/`, without a browser: what is answered, with which headers, and what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.generation.helpers import make
from tests.serving.clients import KEY, client_of
from tinygpt.serving.engine import Engine
from tinygpt.serving.web import FOLDER

FILES = sorted(path.name for path in FOLDER.iterdir())


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    engine = Engine(make(np.float32, vocab_size=100, block_size=16, n_layer=1, n_head=2, n_embd=16).eval())
    with client_of(engine, key=KEY) as client:
        yield client
    engine.close()


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_answered_without_a_key(client: TestClient, name: str) -> None:
    response = client.get("/" if name == "index.html" else f"/page/{name}")
    assert response.status_code == 200
    assert response.text == (FOLDER / name).read_text(encoding="utf-8")
    assert response.headers["content-type"].split("/")[0] in ("text", "image")
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}


def test_nothing_else_is(client: TestClient) -> None:
    for path in ("/page/", "/page/index.htm", "/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/page"):
        assert client.get(path).status_code in (401, 404), path  # without the key nobody learns what there is
    assert client.post("/").status_code == 405
    assert client.get("/v1/models").status_code == 401


def test_the_files_load_nothing_and_write_no_html() -> None:
    for name in FILES:
        text = (FOLDER / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|@import|url\(", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|DOMParser", text), name
        assert not re.search(r"\son\w+=|style=\"", text), name  # the policy would block these
        assert text.count("\n") < 300, name


def test_every_word_is_there_in_both_languages() -> None:
    """What the files say by name is defined once for English and once for Chinese, and nothing else is."""
    text = {name: (FOLDER / name).read_text(encoding="utf-8") for name in FILES}
    english, chinese = text["words.js"].split("  zh: {")
    defined = [set(re.findall(r"[ {](\w+): (?=[\"`])", part.split("\n};")[0])) for part in (english, chinese)]
    assert defined[0] == defined[1]
    used = set(re.findall(r'data-say(?:-label|-hint)?="(\w+)"', text["index.html"]))
    script = "".join(text[name] for name in FILES if name.endswith(".js") and name != "words.js")
    used |= set(re.findall(r'say\("(\w+)"', script)) | set(re.findall(r'Refused\("(\w+)"', script))
    for pair in re.findall(r'\? "(\w+)" : "(\w+)"', script):
        used |= set(pair) & defined[0]
    assert used == defined[0]
