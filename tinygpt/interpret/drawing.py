"""The graph of a computation as a picture.

    w = tg.tensor(array, requires_grad=True)
    tg.draw(((x @ w).relu()).sum(), {"w": w})        # in a notebook it shows itself; .save("graph.svg")

The leaves (round boxes) are at the top and the result is at the bottom; `backward()` goes up. The box of each operation
has its name, the shape of its result, and the arrays that it saves for its backward pass, with their sizes. Some arrays
belong to leaves, some are saved by several operations: the total below the picture counts each array once, without
those of the leaves. Inputs that need no gradient are not in the graph.

Gradient norms: those of leaves are read from `.grad`; those of operations exist only while `backward()` runs, so call
it inside `record_gradients()` and draw the recording.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape

from ..changes import memory_of
from ..checks import whole_number
from ..errors import UsageError
from ..files import atomic_write, explain_os_errors
from ..nn import Module
from ..tensor import Tensor
from .graph_facts import Facts, Graph, Recording, facts_of, names_of, norm
from .layout import Layout, layout

LETTER, LINE_HEIGHT, MARGIN = 6.7, 15.0, 9.0  # of the font below, in pixels
FONT = 'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="11"'
SHOWN = 4  # arrays named in a box
COLOURS = {"operation": ("#eef3fb", "#5b7db1"), "leaf": ("#fdf3e1", "#c08a2d"), "freed": ("#eeeeee", "#999999")}


class Picture:
    """An SVG. `svg`: its text; `save(path)` writes it; a notebook shows it."""

    def __init__(self, svg: str, operations: int, leaves: int, bytes: int) -> None:
        self.svg, self.operations, self.leaves, self.bytes = svg, operations, leaves, bytes

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return (
            f"Picture({self.operations:,} operations, {self.leaves:,} leaves, {size_of(self.bytes)} kept for "
            "backward(): .save('graph.svg'), or the last line of a notebook's cell)"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the SVG to a file. Raises UsageError."""
        with explain_os_errors("write", path), atomic_write(path, "w") as file:
            file.write(self.svg)


def draw(result: Tensor | Recording, names: Module | Mapping[str, Tensor] | None = None, *, most: int = 300) -> Picture:
    """The graph behind a tensor, or what `record_gradients()` saw, as an SVG.

    names: the names of the leaves: a module, or a dict of name -> tensor. most: of a larger graph, only this many
    operations are drawn, those nearest to the result, and the picture says how many are missing.
    Raises UsageError for a tensor without a graph, GraphFreedError for one that `backward()` has freed.
    """
    most = whole_number("draw", "most", most)
    if isinstance(result, Recording):
        if not result.graph.facts:
            raise UsageError("draw: no backward() ran inside record_gradients(), so there is nothing to draw")
        graph = _latest(result.graph, most)
    else:
        graph = facts_of(result, most)
    called = _Names(graph, names_of(names))
    texts = [_lines(facts, called) for facts in graph.facts.values()]
    return _picture(graph, texts)


def _latest(graph: Graph, most: int) -> Graph:
    """The last `most` operations of a graph, and their leaves."""
    operations = [key for key, facts in graph.facts.items() if facts.leaf is None]
    kept = set(operations[-most:])
    leaves = {key for key, facts in graph.facts.items() if facts.leaf is not None}
    kept |= {key for operation in kept for key in graph.facts[operation].inputs if key in leaves}
    return Graph({key: facts for key, facts in graph.facts.items() if key in kept}, max(0, len(operations) - most))


class _Names:
    """The names of leaves, and whose memory an array is."""

    def __init__(self, graph: Graph, names: dict[int, str]) -> None:
        self.names = names
        leaves = [facts.leaf for facts in graph.facts.values() if facts.leaf is not None]
        self.owners = {id(memory_of(leaf.data)): self.of(leaf) for leaf in leaves}

    def of(self, leaf: Tensor) -> str:
        return self.names.get(id(leaf), "leaf")


def _lines(facts: Facts, called: _Names) -> list[str]:
    """What a box says, its name first."""
    if facts.leaf is not None:
        lines = [called.of(facts.leaf), _shaped(*facts.outputs[0])]
        gradient = facts.leaf.grad
        return lines if gradient is None else [*lines, f"|gradient| {norm(gradient):.4g}"]
    lines = [facts.name, *(_shaped(*output) for output in facts.outputs)]
    if facts.freed:
        return [*lines, "freed by backward()"]
    lines.append(f"keeps {size_of(facts.bytes)}{':' if facts.kept else ''}" if facts.kept else "keeps nothing")
    for array in facts.kept[:SHOWN]:
        what = f"recomputed by {array.recomputed_by}" if array.recomputed_by else size_of(array.bytes)
        owner = called.owners.get(array.memory)
        lines.append(f"  {_shaped(array.shape, array.dtype)}, {what}{f', of {owner}' if owner else ''}")
    if len(facts.kept) > SHOWN:
        lines.append(f"  and {len(facts.kept) - SHOWN} more")
    known = [f"{value:.4g}" for value in facts.norms if value is not None]
    return [*lines, f"|gradient| {', '.join(known)}"] if known else lines


def _shaped(shape: tuple[int, ...], dtype: str) -> str:
    return f"{shape} {dtype}"


def size_of(count: int) -> str:
    """A number of bytes, exact below 10,000."""
    if count < 10_000:
        return f"{count:,} bytes"
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.3g} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def _picture(graph: Graph, texts: list[list[str]]) -> Picture:
    keys = {key: i for i, key in enumerate(graph.facts)}
    boxes = list(graph.facts.values())
    inputs = [[keys[key] for key in facts.inputs if key in keys] for facts in boxes]
    sizes = [(max(map(len, text)) * LETTER + 2 * MARGIN, len(text) * LINE_HEIGHT + 2 * MARGIN - 3) for text in texts]
    leaves = {i for i, facts in enumerate(boxes) if facts.leaf is not None}
    laid = layout(sizes, inputs, leaves)
    operations, kept = len(boxes) - len(leaves), graph.distinct_bytes()
    note = f"{operations:,} operations, {len(leaves):,} leaves; kept for backward(): {size_of(kept)}, each array once"
    notes = [note, *_left_out(graph)]
    low = laid.height + LINE_HEIGHT / 2
    width = max(laid.width, max(map(len, notes)) * LETTER + 4 * MARGIN)
    height = laid.height + len(notes) * LINE_HEIGHT + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" {FONT}>',
        f"<title>{escape(note)}</title>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        *(_line(points) for points in laid.lines),
        *_boxes(boxes, texts, laid),
        *(
            f'<text x="{2 * MARGIN}" y="{low + i * LINE_HEIGHT:.1f}" fill="#555555">{escape(text)}</text>'
            for i, text in enumerate(notes)
        ),
        "</svg>",
    ]
    return Picture("\n".join(parts), operations, len(leaves), kept)


def _left_out(graph: Graph) -> list[str]:
    if not graph.left_out:
        return []
    return [f"{graph.left_out:,} earlier operations are not drawn: give a larger most=, or draw a part of the model"]


def _line(points: list[tuple[float, float]]) -> str:
    """A curve that leaves and enters each layer straight down."""
    (x, y), *rest = points
    path = [f"M{x:.1f} {y:.1f}"]
    for nx, ny in rest:
        middle = (y + ny) / 2
        path.append(f"V{ny:.1f}" if nx == x else f"C{x:.1f} {middle:.1f} {nx:.1f} {middle:.1f} {nx:.1f} {ny:.1f}")
        x, y = nx, ny
    return f'<path d="{"".join(path)}" fill="none" stroke="#9aa5b1"/>'


def _boxes(boxes: list[Facts], texts: list[list[str]], laid: Layout) -> list[str]:
    parts = []
    for facts, text, item in zip(boxes, texts, laid.boxes, strict=True):
        kind = "freed" if facts.freed else "operation" if facts.leaf is None else "leaf"
        fill, stroke = COLOURS[kind]
        left, radius = item.x - item.width / 2, 14 if kind == "leaf" else 3
        parts.append(
            f'<g class="{kind}"><rect x="{left:.1f}" y="{item.y:.1f}" width="{item.width:.1f}" '
            f'height="{item.height:.1f}" rx="{radius}" fill="{fill}" stroke="{stroke}"/>'
        )
        for i, line in enumerate(text):
            weight = ' font-weight="bold"' if i == 0 else ""
            indent = len(line) - len(line.lstrip())
            x, y = left + MARGIN + indent * LETTER, item.y + MARGIN + i * LINE_HEIGHT + 8
            parts.append(f'<text x="{x:.1f}" y="{y:.1f}" fill="#1f2933"{weight}>{escape(line.strip())}</text>')
        parts.append("</g>")
    return parts
