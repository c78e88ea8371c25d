"""A Sphinx extension: formulas as MathML, folded parts, docstrings in plain text.

$x_i$, and a block between $$                 MathML, written at build time: no script, no font, no network
```{details} A solution                       folded until it is clicked; printed unfolded
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from .docstrings import to_rst


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
    app.connect("autodoc-process-docstring", _plain_text)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
