"""The documentation site: its pages are made of the docstrings, all of them; it is built without a warning; it fetches
nothing, and its links lead somewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.modules import module_in

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NEEDS = "needs the extra docs: pip install -e '.[docs]'"


def module(name: str) -> Any:
    """A module of docs/, which is not an installed package."""
    return module_in(DOCS, name)


def test_every_operation_has_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is new comes last, until somebody gives it a place in the reading order."""
    operations = module("parts.operations")
    files = sorted(path.stem for path in operations.OPS.glob("[!_]*.py"))
    assert sorted(operations.all_pages()) == files
    shutil.copytree(operations.OPS, tmp_path / "ops")
    (tmp_path / "ops" / "cube.py").write_text('"""x cubed."""\n', encoding="utf-8")
    monkeypatch.setattr(operations, "OPS", tmp_path / "ops")
    last = operations.contents().partition("## More operations\n\n```{toctree}\n:maxdepth: 1\n\nsample_tokens\n")[2]
    assert "cube" in last.splitlines()


DOCSTRING = """Two lines of *text*, and
a_1 ** b: see `ops`.

    y = a * b_i          [i = j]

- a list, with `x_1`
- and <b>

Derivation of the gradient. The rest.

    dx = dy

Saved: only x.

Source: elementary."""


def test_markdown_of_a_docstring() -> None:
    assert module("parts.docstrings").to_markdown(DOCSTRING) == (
        "Two lines of \\*text\\*, and\na\\_1 \\*\\* b: see `ops`.\n\n    y = a * b_i          [i = j]\n\n"
        "- a list, with `x_1`\n- and \\<b\\>\n\n## The derivation\n\nThe rest.\n\n    dx = dy\n\n"
        "## What is kept, and why it is enough\n\nOnly x.\n\n## Source\n\nelementary.\n"
    )


def test_rst_of_a_docstring() -> None:
    text = "Text of `x` * 2:\n\n    y = x * 2\n\nfor i in x:\n    print(i)\n\n| a | b |\nA list:\n- one"
    made = "\n".join(module("parts.docstrings").to_rst(text.splitlines()))
    assert "Text of ``x`` \\* 2:" in made
    assert "::\n\n    y = x * 2" in made
    assert "::\n\n    for i in x:\n        print(i)" in made
    assert "::\n\n    | a | b |" in made


def test_a_page_has_the_docstring_and_the_code() -> None:
    operations = module("parts.operations")
    page = operations.page("layer_norm")
    assert page.startswith(f"# layer_norm\n\n{operations.NOTATION}\nLayer normalisation.\n")
    assert "## The derivation" in page
    assert "```{bodies} layer_norm\n" in page
    for piece in ("layer_norm_composed", "LayerNorm"):
        assert f":pyobject: {piece}\n" in page
    assert ":pyobject: unbroadcast" in operations.page("matmul")
    assert ":pyobject: GeluErf" in operations.page("gelu")
    assert operations.ONE_BODY in operations.page("shape")
    assert operations.ONE_BODY not in page


@pytest.mark.slow
def test_formulas_have_no_words() -> None:
    """They are not translated. Sums are shown as signs; what else there is to say stands in a sentence."""
    operations = module("parts.operations")
    for name in operations.ORDER:
        text = re.sub(r"```.*?```", "", operations.page(name), flags=re.DOTALL)
        formulas = [line for line in text.splitlines() if line.startswith("    ")]
        assert not [
            line for line in formulas if re.search(r"\b(with|where|the|for|of|or|and|from|is|in)\b(?! *\()", line)
        ]
    assert "Σ_c q_ic k_jc" in operations.page("attention")
    assert "^T" not in "".join(operations.page(name) for name in operations.ORDER)


def test_each_kernel_that_is_compiled_is_shown() -> None:
    bodies = module("parts.bodies")
    for name in module("parts.operations").ORDER:
        shown = bodies.bodies(name)
        compiled = {
            "CPU": bool(list((ROOT / bodies.CPU).rglob(f"{name}.pyx"))),
            "CUDA": bool(list((ROOT / bodies.GPU).rglob(f"{name}.cu"))),
        }
        assert "NumPy" in shown
        for what, there in compiled.items():
            assert not there or what in shown, f"docs/parts/bodies.py shows no {what} body of {name}"
        for pieces in shown.values():
            assert sum(piece.text.count("\n") for piece in pieces) <= 160, name


def test_pieces_are_cut_whole() -> None:
    bodies = module("parts.bodies")
    piece = bodies.cut("tinygpt/_ext/cpu/gelu.pyx", "gelu_backward_span")
    assert piece.startswith("cdef void gelu_backward_span(real *kind")
    assert piece.endswith("        dx[i] = dy[i] * gelu_slope(x[i])\n")
    piece = bodies.cut("tinygpt/_ext/cuda/dropout.cu", "dropout_apply")
    assert piece.startswith("// x, y (N, C)")
    assert piece.endswith("\n}\n")
    piece = bodies.cut("tinygpt/_ext/cpu/attention/attention_tile.h", "head_forward @ for (; t.keys > 0")
    assert piece.startswith("for (; t.keys > 0")
    assert piece.endswith("\n}\n")
    assert bodies.cut("tinygpt/ops/erf.py", "Erf").startswith("class Erf(Function):\n")
    for wrong in ("gelu", "gelu_forward_span @ while"):
        with pytest.raises(LookupError):
            bodies.cut("tinygpt/_ext/cpu/gelu.pyx", wrong)


# The site -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for library in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(library, reason=NEEDS)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def loaded(html: str) -> list[str]:
    """The addresses that a browser fetches for a page: not those of links."""
    tags = re.findall(r"<(?:script|link|img|iframe|source|object|embed)\b[^>]*>", html)
    return [url for tag in tags for url in re.findall(r"(?:src|href|data)=\"([^\"]*)\"", tag)]


@pytest.mark.slow
def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        urls = loaded(path.read_text(encoding="utf-8"))
        assert urls
        assert not [url for url in urls if urlsplit(url).netloc], path
    for path in (site / "_static").rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), path
    assert loaded('<script src="https://cdn.example/x.js"></script><a href="https://example">') == [
        "https://cdn.example/x.js"
    ]


@pytest.mark.slow
def test_pictures_and_scripts_are_there(site: Path) -> None:
    for path in site.rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        assert "<picture" not in html, path  # its files are nobody's to copy
        for url in loaded(html):
            if not url.startswith("data:"):
                assert (path.parent / unquote(urlsplit(url).path)).exists(), f"{path.name}: {url}"


@pytest.mark.slow
def test_links_lead_somewhere(site: Path) -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    ids = {path: set(re.findall(r"\bid=\"([^\"]+)\"", html)) for path, html in pages.items()}
    for path, html in pages.items():
        for target in re.findall(r"<a\b[^>]*\bhref=\"([^\"]*)\"", html):
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            place = (path.parent / unquote(url.path)).resolve() if url.path else path
            assert place.exists(), f"{path.name}: {target}"
            if url.fragment and place in ids:
                assert unquote(url.fragment) in ids[place], f"{path.name}: {target}"


@pytest.mark.slow
def test_formulas_and_folded_parts(site: Path) -> None:
    page = (site / "operations" / "softmax.html").read_text(encoding="utf-8")
    assert "<details>" in page
    assert "<summary>" in page
    assert "y_j ([j = l] - y_l)" in page
    assert page.count('<div class="one-body docutils container">') == 3
    assert "softmax_backward_rows" in page
    assert page.count('type="radio"') == 3
    page = (site / "operations" / "matmul.html").read_text(encoding="utf-8")
    assert '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 340 168" role="img"' in page
    assert '<title id="unbroadcast-title">' in page
