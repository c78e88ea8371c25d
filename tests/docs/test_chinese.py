"""The Chinese pages: nothing is left in English, no translation loses code or a number, and what a reader looks for is
found."""
# ruff: noqa: RUF001

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tinygpt.lock import Lock

from .test_site import DOCS, NEEDS, ROOT, loaded, module

HEAD = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=UTF-8\\n"\n\n'


def script() -> Any:
    for library in ("babel", "markdown_it", "mdit_py_plugins"):
        pytest.importorskip(library, reason=NEEDS)
    return module("untranslated")


def test_untranslated_messages_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    templates, locale = tmp_path / "messages", tmp_path / "locale"
    (templates / "reference").mkdir(parents=True)
    locale.mkdir()
    messages = HEAD + "".join(f'msgid "{text}"\nmsgstr ""\n\n' for text in ("one", "two", "three", "`x` 4"))
    for name in ("index", "reference/tinygpt"):
        (templates / f"{name}.pot").write_text(messages, encoding="utf-8")
    assert script().main(templates, locale) == 1
    assert capsys.readouterr().out.splitlines()[0] == "index: 3 of 3 missing"
    made = HEAD + 'msgid "one"\nmsgstr "一"\n\n#, fuzzy\nmsgid "two"\nmsgstr "二"\n\nmsgid "three"\nmsgstr ""\n'
    (locale / "index.po").write_text(made, encoding="utf-8")
    assert script().main(templates, locale) == 1
    assert "index: 2 of 3 missing" in capsys.readouterr().out
    made = made.replace("#, fuzzy\n", "").replace('"three"\nmsgstr ""', '"three"\nmsgstr "三 3"')
    (locale / "index.po").write_text(made, encoding="utf-8")
    assert script().main(templates, locale) == 1
    assert capsys.readouterr().out.endswith(
        "has number 3, which the English has not\n0 messages are missing, 1 pieces are lost\n"
    )
    (locale / "index.po").write_text(made.replace("三 3", "三"), encoding="utf-8")
    assert script().main(templates, locale) == 0
    assert script().main(tmp_path / "none", locale) == 2


def test_a_new_operation_may_wait_and_no_other_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    untranslated = script()
    ops, templates, locale = (tmp_path / name for name in ("ops", "messages", "locale"))
    for folder in (ops, templates / "operations", locale / "operations"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(untranslated.operations, "OPS", ops)
    named = ("softmax", *untranslated.operations.WITHOUT_EXAMPLE)
    assert not [name for name in named if untranslated.waits(f"operations/{name}", locale)]
    for name in (*named, "cube"):
        (ops / f"{name}.py").touch()
        (templates / "operations" / f"{name}.pot").write_text(f'{HEAD}msgid "one"\nmsgstr ""\n', encoding="utf-8")
    (templates / "cube.pot").write_text(HEAD, encoding="utf-8")
    assert untranslated.main(templates, locale) == 1  # each named page has lost its catalogue
    lines = capsys.readouterr().out.splitlines()
    assert "operations/cube: new, in English until docs/parts/operations.py names it" in lines
    assert "cube: 0 of 0 missing" in lines
    for name in named:
        assert f"operations/{name}: 1 of 1 missing" in lines
        translated = f'{HEAD}msgid "one"\nmsgstr "一"\n'
        (locale / "operations" / f"{name}.po").write_text(translated, encoding="utf-8")
    assert untranslated.main(templates, locale) == 0
    messages = f'{HEAD}msgid "one"\nmsgstr ""\n\nmsgid "two"\nmsgstr ""\n'  # as `make docs-messages` writes them
    for folder, end in ((templates, "pot"), (locale, "po")):
        (folder / "operations" / f"cube.{end}").write_text(messages, encoding="utf-8")
    assert untranslated.main(templates, locale) == 0
    begun = messages.replace('"one"\nmsgstr ""', '"one"\nmsgstr "一"')
    (locale / "operations" / "cube.po").write_text(begun, encoding="utf-8")
    assert untranslated.main(templates, locale) == 1  # begun, and not finished


@pytest.mark.parametrize(
    ("translation", "lost"),
    [
        ("**每一行** `x` 有 1,024 个数，$y_i$，见[此页](a.md)；dp\\_il。", []),
        ("`x` 有 1,024 个数，$y_i$，见[此页](a.md)；dp\\_il，**每一行**。", []),
        ("**每一行** x 有 1,024 个数，$y_i$，见[此页](a.md)；dp\\_il。", ["lacks code x"]),
        ("**每一行** `x` 有 1,025 个数，$y_i$，见[此页](a.md)；dp\\_il。", ["lacks number 1,024", "has number 1,025"]),
        ("**每一行** `x` 有 1,024 个数，$y_j$，见[此页](a.md)；dp\\_il。", ["lacks math y_i", "has math y_j"]),
        ("**每一行** `x` 有 1,024 个数，$y_i$，见此页；dp\\_il。", ["lacks address a.md"]),
        ("**每一行** `x` 有 1,024 个数，$y_i$，见[此页](a.md)；dp\\_li。", ["lacks name dp_il", "has name dp_li"]),
        ("**每一行：**`x` 有 1,024 个数，$y_i$，见[此页](a.md)；dp\\_il。", []),
        ("**每一行。**共有 `x` 1,024 个数，$y_i$，见[此页](a.md)；dp\\_il。", ["lacks emphasis **"]),
    ],
    ids=lambda value: str(value) if isinstance(value, list) else "",
)
def test_what_a_translation_lost(translation: str, lost: list[str]) -> None:
    message = "**Each row** of `x` has 1,024 numbers, $y_i$: see [this page](a.md); dp\\_il."
    found = script().lost(message, translation)
    assert [re.sub(", which.*", "", line) for line in found] == lost


def test_no_translation_lost_anything() -> None:
    assert script().losses() == []
    assert list(script().LOCALE.rglob("*.po"))


def test_every_character_and_every_pair_is_a_term() -> None:
    pytest.importorskip("sphinx", reason=NEEDS)
    found = module("parts.chinese").split("GPT-2 的层归一化, LayerNorm。")
    assert found == ["GPT", "2", *"的层归一化", "的层", "层归", "归一", "一化", "LayerNorm"]


# The site -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both languages, as `make docs` builds them."""
    for library in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(library, reason=NEEDS)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-A", "both=1"]
    lock = Lock(tmp_path_factory.getbasetemp().parent / "chinese.lock")
    while not lock.take():  # pytest's workers share the folder into which Sphinx compiles the catalogues
        time.sleep(0.5)
    try:
        for options in ([str(DOCS), str(folder)], ["-D", "language=zh_CN", str(DOCS), str(folder / "zh")]):
            done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    finally:
        lock.give_back()
    return folder


@pytest.mark.slow
def test_nothing_is_left_in_english(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever changes a page changes its Chinese too: make docs-messages, then docs/locale/zh_CN."""
    untranslated = script()
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "gettext", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert untranslated.main(tmp_path) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_each_page_leads_to_itself_in_the_other_language(site: Path) -> None:
    pages = [path.relative_to(site / "zh") for path in (site / "zh").rglob("*.html")]
    assert Path("operations/softmax.html") in pages
    for page in pages:
        for path in (site / page, site / "zh" / page):
            html = path.read_text(encoding="utf-8")
            links = set(re.findall(r'<a class="language"[^>]*href="([^"]*)"', html))
            assert [(path.parent / link).resolve() for link in links] == [
                (site / "zh" / page if path == site / page else site / page).resolve()
            ]
            assert f'<html class="no-js" lang="{"en" if path == site / page else "zh-CN"}"' in html


@pytest.mark.slow
def test_no_chinese_page_fetches_anything_from_elsewhere(site: Path) -> None:
    for path in (site / "zh").rglob("*.html"):
        assert not [url for url in loaded(path.read_text(encoding="utf-8")) if "//" in url], path


@pytest.mark.slow
def test_the_words_in_pictures_are_chinese(site: Path) -> None:
    texts = {
        folder: re.findall(r"<text[^>]*>([^<]*[A-Za-z]{4}[^<]*)</text>", (folder / "optimizers.svg").read_text("utf-8"))
        for folder in (site / "_images", site / "zh" / "_images")
    }
    assert "seconds of training" in texts[site / "_images"]
    names = {"adam", "adamw", "adamw-4e-3", "fast", "fast-long", "lion", "muon", "sgd"}
    assert set(texts[site / "zh" / "_images"]) <= names


class Text(HTMLParser):
    """The text of a page outside of code."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in ("code", "pre", "script", "style", "title"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.text.append(data)


@pytest.mark.slow
def test_no_markup_is_left_in_the_chinese_text(site: Path) -> None:
    for path in (site / "zh").glob("[!_]*.html"):
        if path.name in ("changelog.html", "genindex.html", "search.html"):
            continue
        page = Text()
        page.feed(path.read_text(encoding="utf-8"))
        assert not re.search(r"\*\*|`|\]\(|\$", "".join(page.text)), path


@pytest.mark.slow
def test_a_chinese_word_on_a_page_is_found(site: Path) -> None:
    """With the site's own scripts, in Node where it is: what a browser runs."""
    index = json.loads((site / "zh" / "searchindex.js").read_text(encoding="utf-8")[len("Search.setIndex(") : -1])
    split = module("parts.chinese").split

    def found(query: str) -> set[str]:
        terms = [term for term in split(query) if len(term) == min(2, len(query))]
        pages: list[set[int]] = []
        for term in terms:
            places = [index[kind].get(term, []) for kind in ("terms", "titleterms")]
            pages.append({page for place in places for page in ([place] if isinstance(place, int) else place)})
        return {index["docnames"][page] for page in set.intersection(*pages)}

    assert "tutorials" in found("因果掩码")
    assert "operations/softmax" in found("梯度")
    assert "operations/layer_norm" in found("归一化")
    assert not found("红楼梦")
    if node := shutil.which("node"):
        code = (site / "zh" / "_static" / "language_data.js").read_text(encoding="utf-8").replace("window.", "global.")
        done = subprocess.run(
            [node, "-e", f"{code}; console.log(JSON.stringify(splitQuery('GPT-2 的因果掩码，softmax 层')))"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert json.loads(done.stdout) == ["GPT", "2", "的因", "因果", "果掩", "掩码", "softmax", "层"]
