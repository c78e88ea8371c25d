"""The picture of a graph: it is XML, nothing overlaps, it names every operation, and its bytes are what nodes hold."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygpt as tg
from tests.interpret.helpers import IDS, make_model
from tinygpt.errors import DtypeError, GraphFreedError, UsageError
from tinygpt.interpret.layout import layout

SVG = "{http://www.w3.org/2000/svg}"


def boxes_of(svg: str) -> list[tuple[str, list[str], tuple[float, ...]]]:
    """Kind, lines of text, and x, y, width, height of each box."""
    found = []
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        rectangle = group.find(f"{SVG}rect")
        assert rectangle is not None
        place = tuple(float(rectangle.attrib[name]) for name in ("x", "y", "width", "height"))
        found.append((group.attrib["class"], [text.text or "" for text in group.iter(f"{SVG}text")], place))
    return found


def names_in(picture: Any) -> Counter[str]:
    return Counter(lines[0] for _, lines, _ in boxes_of(picture.svg))


def assert_sound(svg: str) -> None:
    """Boxes lie apart and inside the picture, and the texts inside their boxes."""
    root, boxes = ElementTree.fromstring(svg), boxes_of(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for i, (_, _, (x, y, w, h)) in enumerate(boxes):
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
        for _, _, (x2, y2, w2, h2) in boxes[:i]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    for group in root.iter(f"{SVG}g"):
        rectangle, *texts = group
        x, y, w, h = (float(rectangle.attrib[name]) for name in ("x", "y", "width", "height"))
        for text in texts:
            assert x < float(text.attrib["x"]) < x + w - 6 * len(text.text or "")
            assert y < float(text.attrib["y"]) < y + h


@pytest.fixture
def graph() -> dict[str, tg.Tensor]:
    rng = np.random.default_rng(0)
    w = tg.tensor(rng.standard_normal((4, 3)), requires_grad=True)
    b = tg.tensor(rng.standard_normal(3), requires_grad=True)
    y = (tg.tensor(rng.standard_normal((2, 4))) @ w + b).relu()
    return {"w": w, "b": b, "loss": (y * y).sum() + (w * w).sum() * 0.1}


def test_every_operation_is_named(graph: dict[str, tg.Tensor]) -> None:
    picture = tg.draw(graph["loss"], {"w": graph["w"]})
    assert names_in(picture) == {"w": 1, "leaf": 1, "MatMul": 1, "Add": 2, "Relu": 1, "Mul": 3, "Sum": 2}
    assert (picture.operations, picture.leaves) == (9, 2)
    assert picture._repr_svg_() == picture.svg
    assert_sound(picture.svg)
    lines = list(ElementTree.fromstring(picture.svg).iter(f"{SVG}path"))
    assert len(lines) == 1 + 2 + 1 + 2 + 1 + 2 + 1 + 1 + 2  # one for each input that needs a gradient


def test_what_a_box_says(graph: dict[str, tg.Tensor]) -> None:
    boxes = boxes_of(tg.draw(graph["loss"], graph).svg)
    lines, tops = ({text[0]: text for _, text, _ in boxes}, {text[0]: place[1] for _, text, place in boxes})
    assert tops["w"] < tops["MatMul"] == tops["b"]  # a leaf stands right above what uses it first
    assert lines["MatMul"] == ["MatMul", "(2, 3) float64", "keeps 64 bytes:", "(2, 4) float64, 64 bytes"]
    assert lines["Sum"] == ["Sum", "() float64", "keeps nothing"]
    assert lines["w"] == ["w", "(4, 3) float64"]
    assert "(4, 3) float64, 96 bytes, of w" in tg.draw(graph["loss"], graph).svg


def owner(array: np.ndarray) -> np.ndarray:
    """The array whose memory this is a view of."""
    return array if array.base is None else owner(array.base)


def test_bytes_are_those_that_nodes_hold() -> None:
    """Of a whole model: each box's bytes, and the total, counted here by other means."""
    model = make_model("float32").train()
    loss = model.loss([IDS], labels=[IDS])
    picture = tg.draw(loss, model)
    nodes, waiting = set(), [loss.node]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            waiting += [parent for parent in node.parents if parent is not None and not parent.is_leaf]
    held: Counter[tuple[str, int]] = Counter()
    memory: dict[int, int] = {}
    own = {id(owner(parameter.data)) for parameter in model.parameters()}
    for node in nodes:
        assert node is not None
        arrays = [array for array in node.kept if isinstance(array, np.ndarray)]
        arrays += getattr(node, "gradients", None) or []  # of the loss, which has computed them already
        arrays += [array for array in vars(node).values() if isinstance(array, np.ndarray)]
        held[node.name, sum(array.nbytes for array in arrays)] += 1
        for array in arrays:
            if id(owner(array)) not in own:
                memory[id(owner(array))] = owner(array).nbytes
    drawn: Counter[tuple[str, int]] = Counter()
    for kind, lines, _ in boxes_of(picture.svg):
        if kind == "operation":
            (said,) = [line for line in lines if line.startswith("keeps ")]
            count = re.fullmatch(r"keeps ([\d,]+) bytes:", said)
            drawn[lines[0], int(count[1].replace(",", "")) if count else -1 if "kB" in said else 0] += 1
    rounded = Counter({(name, -1 if count >= 10_000 else count): 0 for name, count in held})
    for (name, count), times in held.items():
        rounded[name, -1 if count >= 10_000 else count] += times
    assert drawn == rounded
    assert picture.bytes == sum(memory.values())
    assert names_in(picture)["QKVAttention"] == 3
    assert names_in(picture)["h.0.attn.c_attn.weight"] == 1
    assert_sound(picture.svg)


def test_gradients_recorded(graph: dict[str, tg.Tensor]) -> None:
    """With a plain backward, which frees the graph; norms by hand."""
    w, b, loss = graph["w"], graph["b"], graph["loss"]
    with tg.interpret.record_gradients() as record:
        loss.backward()
    picture = tg.draw(record, graph)
    lines = {text[0]: text for _, text, _ in boxes_of(picture.svg)}
    assert lines["w"][-1] == f"|gradient| {np.linalg.norm(w.grad):.4g}"
    assert lines["b"][-1] == f"|gradient| {np.linalg.norm(b.grad):.4g}"
    added = [text for _, text, _ in boxes_of(picture.svg) if text[0] == "Add" and text[1].startswith("(2, 3)")]
    assert len(added) == 1
    assert lines["Relu"][-1] != lines["Sum"][-1]
    assert sum(text[-1] == "|gradient| 1" for _, text, _ in boxes_of(picture.svg)) == 3  # the result, two parts of it
    assert names_in(picture) == {"w": 1, "b": 1, "MatMul": 1, "Add": 2, "Relu": 1, "Mul": 3, "Sum": 2}
    assert_sound(picture.svg)


def test_recording_changes_no_gradient() -> None:
    model = make_model(dropout=0.0)
    model.loss([IDS], labels=[IDS]).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    with tg.interpret.record_gradients() as record:
        model.loss([IDS], labels=[IDS]).backward()
    assert all(np.array_equal(p.grad, grad) for p, grad in zip(model.parameters(), expected, strict=True))
    model.loss([IDS], labels=[IDS]).backward()  # is not seen
    assert sum(facts.leaf is None for facts in record.graph.facts.values()) == record_size(model)


def record_size(model: Any) -> int:
    return tg.draw(model.loss([IDS], labels=[IDS])).operations


def test_two_passes_over_a_part_in_common(graph: dict[str, tg.Tensor]) -> None:
    """The second pass uses operations of the first: each is drawn once, below its inputs."""
    w = graph["w"]
    common = (w * w).sum()
    first, second = common * 2.0, (common * 3.0).exp() * 0.0
    with tg.interpret.record_gradients() as record:
        first.backward(retain_graph=True)
        second.backward()
    picture = tg.draw(record)
    assert names_in(picture) == {"leaf": 1, "Mul": 4, "Sum": 1, "Exp": 1}
    tops = {text[0]: place[1] for _, text, place in boxes_of(picture.svg)}
    assert tops["leaf"] < tops["Sum"] < tops["Exp"]
    assert_sound(picture.svg)


def test_a_freed_graph_is_said(graph: dict[str, tg.Tensor]) -> None:
    loss = graph["loss"]
    loss.backward(retain_graph=True)
    assert "|gradient|" in tg.draw(loss).svg
    loss.backward()
    with pytest.raises(GraphFreedError, match=r"draw: backward\(\) has freed the graph .*record_gradients\(\)"):
        tg.draw(loss)


def test_a_part_that_was_freed() -> None:
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    common = x.exp()
    rest = (common * 2.0).sum()
    common.sum().backward()
    picture = tg.draw(rest)
    assert [lines for kind, lines, _ in boxes_of(picture.svg) if kind == "freed"] == [["Exp", "freed by backward()"]]


def test_a_view_keeps_the_whole_and_a_broadcast_one_little() -> None:
    x = tg.tensor(np.ones(100), requires_grad=True)
    part, spread = tg.tensor(np.ones(1000)[:100]), tg.tensor(np.broadcast_to(np.ones(1), (100,)))
    assert tg.draw(x * part).bytes == 8000
    assert tg.draw(x * spread).bytes == 8
    assert "(100,) float64, 8 bytes" in tg.draw(x * spread).svg


def test_labels_are_escaped() -> None:
    x = tg.tensor([1.0], requires_grad=True)
    name = '<script>alert("&")</script>'
    picture = tg.draw(x * 2.0, {name: x})
    assert "<script>" not in picture.svg
    assert name in names_in(picture)


@pytest.mark.slow
def test_a_large_graph_is_bounded() -> None:
    x = tg.tensor([1.0], requires_grad=True)
    y = x
    for _ in range(5000):
        y = y * x
    picture = tg.draw(y.exp())
    assert (picture.operations, picture.leaves) == (300, 1)
    assert "4,701 earlier operations are not drawn: give a larger most=" in picture.svg
    assert names_in(picture)["Exp"] == 1
    with tg.interpret.record_gradients() as record:
        y.backward()
    recorded = tg.draw(record, most=7)
    assert (recorded.operations, recorded.leaves) == (7, 1)
    assert "4,993 earlier operations are not drawn" in recorded.svg
    assert_sound(recorded.svg)


@pytest.mark.parametrize(
    ("what", "options", "error", "words"),
    [
        (tg.tensor([1.0]), {}, UsageError, "there is no graph behind this tensor"),
        (np.ones(3), {}, DtypeError, "expected a tensor .*, not ndarray"),
        (tg.tensor([1.0], requires_grad=True), {"most": 0}, UsageError, "most must be at least 1"),
        (tg.tensor([1.0], requires_grad=True), {"names": [1]}, DtypeError, "a module or a dict of name -> tensor"),
        (tg.tensor([1.0], requires_grad=True), {"names": {"x": 1}}, DtypeError, "a module or a dict"),
    ],
)
def test_what_can_not_be_drawn(what: Any, options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        tg.draw(what, **options)


def test_nothing_recorded_and_a_single_leaf() -> None:
    with tg.interpret.record_gradients() as record:
        pass
    with pytest.raises(UsageError, match="no backward"):
        tg.draw(record)
    assert names_in(tg.draw(tg.tensor([1.0], requires_grad=True))) == {"leaf": 1}


def test_saved(tmp_path: Path, graph: dict[str, tg.Tensor]) -> None:
    picture = tg.draw(graph["loss"])
    picture.save(tmp_path / "graph.svg")
    assert (tmp_path / "graph.svg").read_text(encoding="utf-8") == picture.svg
    assert "9 operations, 2 leaves" in repr(picture)
    with pytest.raises(UsageError, match="cannot write"):
        picture.save(tmp_path / "none" / "graph.svg")


@given(st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=25), st.integers(0, 2**32 - 1))
def test_layouts(links: list[list[int]], seed: int) -> None:
    """Any graph: boxes apart, each below its inputs, and every line from its input to its user."""
    inputs = [[j % i for j in used] if i else [] for i, used in enumerate(links)]
    sizes = [(float(w), float(h)) for w, h in np.random.default_rng(seed).integers(5, 200, (len(links), 2))]
    leaves = {i for i, used in enumerate(inputs) if not used and i % 2}
    laid = layout(sizes, inputs, leaves)
    for i, box in enumerate(laid.boxes):
        assert (box.width, box.height) == sizes[i]
        assert all(laid.boxes[j].y + laid.boxes[j].height < box.y for j in inputs[i])
        assert box.x - box.width / 2 > 0
        assert box.x + box.width / 2 < laid.width
        assert box.y + box.height < laid.height
        for other in laid.boxes[:i]:
            apart = abs(other.x - box.x) >= (other.width + box.width) / 2
            assert apart or other.y + other.height <= box.y or box.y + box.height <= other.y
    ends = [(j, i) for i, used in enumerate(inputs) for j in used]
    for (j, i), points in zip(ends, laid.lines, strict=True):
        source, target = laid.boxes[j], laid.boxes[i]
        assert points[0] == (source.x, source.y + source.height)
        assert points[-1][1] == target.y
        assert abs(points[-1][0] - target.x) < target.width / 2
        for k in range(1, len(points), 2):  # straight through a layer: no box in the way
            x, y = points[k - 1][0], points[k]
            for box in laid.boxes:
                if box not in (source,) and box.y >= points[k - 1][1] and box.y + box.height <= y[1]:
                    assert abs(box.x - x) >= box.width / 2
