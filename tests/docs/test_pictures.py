"""The pictures of the pages about the backward pass: made by their script, legible to a screen reader, and true."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tinygpt.function import Recomputed

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def draw() -> Any:
    sys.path.insert(0, str(FOLDER))
    try:
        import draw

        return draw
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("draw", None)


def test_they_are_what_the_script_draws(draw: Any, tmp_path: Path) -> None:
    draw.main(tmp_path)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert len(made) == len(draw.PICTURES)
    for name in made:
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"{name}: run docs/pictures/draw.py"
        whole = ElementTree.fromstring(text)
        ids = [whole.find(f"{SVG}{part}").get("id") for part in ("title", "desc")]  # type: ignore[union-attr]
        assert whole.get("aria-labelledby") == " ".join(str(one) for one in ids)
        assert not re.search(r"(?:fill|stroke):#", text.partition("</style>")[2])  # colours are variables
        for element in whole.iter(f"{SVG}text"):
            assert 0 <= float(element.get("x", "-1")) <= 340
            assert 0 <= float(element.get("y", "-1")) <= float(str(whole.get("viewBox")).split()[3])


def test_every_picture_is_on_a_page(draw: Any) -> None:
    docs = FOLDER.parent
    pages = [*(docs / "worked").glob("*.md"), docs / "parts" / "contents.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    shown = re.findall(r"\{picture\} (\w+)", text)
    assert sorted(shown) == sorted(picture().name for picture in draw.PICTURES)


@pytest.fixture(scope="module")
def block() -> list[Any]:
    """The nodes of the second of two blocks, in the order of the forward pass."""
    config = tg.GPTConfig(vocab_size=65, block_size=16, n_layer=2, n_head=12, n_embd=768)
    ids = np.arange(16)[None]
    loss = tg.GPT(config).loss(ids, (ids + 1) % 65)
    nodes, waiting = {}, [loss.node]
    while waiting:
        node = waiting.pop()
        if node is not None and not node.is_leaf and id(node) not in nodes:
            nodes[id(node)] = node
            waiting += node.parents
    ordered = sorted(nodes.values(), key=lambda node: node.order)
    first = [i for i, node in enumerate(ordered) if node.name == "ResidualLayerNorm"][1]
    return ordered[first : first + 8]


NAMES = ["ResidualLayerNorm", "Linear", "QKVAttention", "Linear", "ResidualLayerNorm", "Linear", "BiasGelu", "Linear"]


def test_what_a_block_keeps(draw: Any, block: list[Any]) -> None:
    assert [node.name for node in block] == NAMES
    tokens, C, measured, seen = 16, 768, [], set()
    for node in block:
        for array in node.kept:
            if type(array) is Recomputed:
                shape, _ = array.node.outputs[array.output]
                measured.append((int(np.prod(shape)) / (tokens * C), False))
            elif array is not None and array.size >= tokens * C and tokens in array.shape:
                address = array.__array_interface__["data"][0]  # y is kept by attention, and a view of it by c_proj
                if address not in seen:
                    measured.append((array.size / (tokens * C), True))
                seen.add(address)
    assert measured == [(width, kept) for _, width, kept in draw.KEPT]


def test_the_gradient_through_a_block(draw: Any, block: list[Any]) -> None:
    def width_of_input(node: Any) -> float:
        parent, output = node.parents[0], node.parent_outputs[0]
        return int(np.prod(parent.outputs[output][0])) / (16 * 768)

    assert [width_of_input(node) for node in reversed(block)] == [width for _, width in draw.LIFE]
