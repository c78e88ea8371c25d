"""A Sphinx extension: formulas as MathML, folded parts, docstrings in plain text, search in Chinese.

$x_i$, and a block between $$                 MathML, written at build time: no script, no font, no network
```{details} A solution                       folded until it is clicked; printed unfolded
```{bodies} softmax                           the three bodies of an operation, one above the other behind tabs
```{picture} attention_tiles                  an SVG of pictures/, in the page, so that it has the page's colours
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from .bodies import ROOT, bodies
from .chinese import ChineseByPairs, translate_pictures
from .docstrings import to_rst
from .themed import ThemedPictures

PICTURES = Path(__file__).parents[1] / "pictures"
TABS = {"NumPy": "NumPy", "CPU": "CPU (C, Cython)", "CUDA": "GPU (CUDA)"}  # the same in every language


class details(nodes.General, nodes.Element):
    """A part that is folded."""


class summary(nodes.General, nodes.TextElement):
    """What is seen of it."""


class Details(SphinxDirective):
    """`{details} What is seen of it`, and the content."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        text, messages = self.state.inline_text(self.arguments[0], self.lineno)
        head = summary(self.arguments[0], "", *text)
        head.source, head.line = self.get_source_info()
        whole = details("", head)
        self.state.nested_parse(self.content, self.content_offset, whole)
        return [whole, *messages]


class Bodies(SphinxDirective):
    """`{bodies} softmax`: radio buttons and a panel for each body. Nothing of it is to be translated."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        whole, panels = nodes.container(classes=["bodies"]), []
        for number, (what, pieces) in enumerate(bodies(name).items()):
            checked = "" if number else " checked"
            whole += _html(
                f'<input type="radio" name="bodies-{name}" id="{name}-{what}"{checked}>'
                f'<label for="{name}-{what}">{TABS[what]}</label>'
            )
            panel, path = nodes.container(classes=["one-body"]), ""
            for piece in pieces:
                if piece.path != path:
                    path = piece.path
                    self.env.note_dependency(str(ROOT / path))
                    panel += _html(f'<p class="path"><code>{path}</code></p>')
                panel += nodes.literal_block(piece.text, piece.text, language=piece.language)
            panels.append(panel)
        whole += panels
        return [whole]


class Picture(SphinxDirective):
    """`{picture} name`, and its caption. The SVG has names and formulas; the words are in the caption."""

    has_content = True
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        path = PICTURES / f"{name}.svg"
        self.env.note_dependency(str(path))
        svg = re.sub(r"<style>.*?</style>\s*", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        if self.config.language != "en":  # the caption is translated, and takes the place of both
            svg = re.sub(r"<(title|desc)\b.*?</\1>\s*", "", svg, flags=re.DOTALL)
            svg = re.sub(r'aria-labelledby="[^"]*"', f'aria-labelledby="{name}-caption"', svg)
        caption = nodes.container(classes=["caption"])
        self.state.nested_parse(self.content, self.content_offset, caption)
        start = _html(f'<div class="picture">{svg}<div id="{name}-caption">')
        return [start, caption, _html("</div></div>")]


def _html(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def _open(tag: str) -> Any:
    return lambda self, node: self.body.append(self.starttag(node, tag, ""))


def _close(tag: str) -> Any:
    return lambda self, node: self.body.append(f"</{tag}>\n")


def _nothing(self: Any, node: nodes.Node) -> None:
    pass


def _math(block: bool) -> Any:
    def visit(self: Any, node: Any) -> None:
        markup = tex2mathml(node.astext(), as_block=block)
        self.body.append(f'<div class="math">{markup}</div>' if block else markup)
        raise nodes.SkipNode

    return visit


def _plain_text(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = to_rst(list(lines))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (_math(False), None), (_math(True), None))
    other = dict.fromkeys(("latex", "text", "man", "texinfo"), (_nothing, _nothing))
    app.add_node(details, html=(_open("details"), _close("details")), **other)
    app.add_node(summary, html=(_open("summary"), _close("summary")), **other)
    app.add_directive("details", Details)
    app.add_directive("bodies", Bodies)
    app.add_directive("picture", Picture)
    app.add_search_language(ChineseByPairs)
    app.add_transform(ThemedPictures)
    app.connect("build-finished", translate_pictures)
    app.connect("autodoc-process-docstring", _plain_text)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
