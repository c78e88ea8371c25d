"""Where the boxes of a layered drawing go, and the lines between them.

Each box is below everything that it is made of. A line that passes several layers takes a place in each, so that it
does not run through boxes; all lines from one box share these places as long as they can. Within a layer, boxes are
ordered by the mean place of their neighbours, which keeps crossings few, then moved towards that mean.

Source: Sugiyama, Tagawa, Toda, "Methods for Visual Understanding of Hierarchical System Structures", 1981, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

GAP, LAYER_GAP, LINE = 24.0, 44.0, 12.0  # between boxes, between layers, the width that a passing line takes
SWEEPS = 6


@dataclass
class Item:
    """A box, or a place that a line passes (of height 0)."""

    width: float
    height: float
    rank: int = 0
    x: float = 0.0  # of the centre
    y: float = 0.0  # of the top
    neighbours: list[Item] = field(default_factory=list)


@dataclass
class Layout:
    """boxes: in the order given; lines: points from a box's lower edge to another's upper one."""

    boxes: list[Item]
    lines: list[list[tuple[float, float]]]
    width: float
    height: float


def layout(sizes: Sequence[tuple[float, float]], inputs: Sequence[Sequence[int]], leaves: set[int]) -> Layout:
    """sizes: (width, height) of each box; inputs[i]: the boxes, before i, that i is made of, in order."""
    boxes = [Item(width, height) for width, height in sizes]
    _rank(boxes, inputs, leaves)
    layers: list[list[Item]] = [[] for _ in range(max((box.rank for box in boxes), default=0) + 1)]
    for box in boxes:
        layers[box.rank].append(box)
    trunks = _trunks(boxes, inputs, layers)
    _order(layers)
    for layer in layers:
        _place(layer, [0.0] * len(layer))
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 else reversed(layers):
            _place(layer, [_mean(item) for item in layer])
    y = GAP
    for layer in layers:
        for item in layer:
            item.y = y
        y += max((item.height for item in layer), default=0.0) + LAYER_GAP
    left = min((item.x - item.width / 2 for layer in layers for item in layer), default=0.0) - GAP
    for layer in layers:
        for item in layer:
            item.x -= left
    width = max((item.x + item.width / 2 for layer in layers for item in layer), default=0.0) + GAP
    return Layout(boxes, _lines(boxes, inputs, trunks, layers), width, y - LAYER_GAP + GAP)


def _rank(boxes: list[Item], inputs: Sequence[Sequence[int]], leaves: set[int]) -> None:
    """Each box one layer below its lowest input; a leaf right above the first box that uses it."""
    for i, box in enumerate(boxes):
        box.rank = 1 + max((boxes[j].rank for j in inputs[i] if j not in leaves), default=0)
    for i in leaves:
        users = [boxes[k].rank for k, used in enumerate(inputs) if i in used]
        boxes[i].rank = min(users, default=1) - 1


def _trunks(boxes: list[Item], inputs: Sequence[Sequence[int]], layers: list[list[Item]]) -> list[dict[int, Item]]:
    """For each box, the places in the layers below that its longer lines pass."""
    trunks: list[dict[int, Item]] = [{} for _ in boxes]
    for i, used in enumerate(inputs):
        for j in used:
            last = boxes[j]
            for rank in range(boxes[j].rank + 1, boxes[i].rank):
                if rank not in trunks[j]:
                    trunks[j][rank] = place = Item(LINE, 0.0, rank)
                    layers[rank].append(place)
                    _join(last, place)
                last = trunks[j][rank]
            _join(last, boxes[i])
    return trunks


def _join(a: Item, b: Item) -> None:
    a.neighbours.append(b)
    b.neighbours.append(a)


def _order(layers: list[list[Item]]) -> None:
    """Order each layer by the mean place of its neighbours in the layer before, then in the one after, and so on."""
    places = {id(item): place for layer in layers for place, item in enumerate(layer)}

    def mean(item: Item, step: int) -> float:
        near = [places[id(other)] for other in item.neighbours if other.rank == item.rank + step]
        return sum(near) / len(near) if near else float(places[id(item)])

    for sweep in range(SWEEPS):
        step = 1 if sweep % 2 else -1
        for layer in layers if step < 0 else reversed(layers):
            layer.sort(key=lambda item: mean(item, step))
            places.update((id(item), place) for place, item in enumerate(layer))


def _mean(item: Item) -> float:
    near = [other.x for other in item.neighbours]
    return sum(near) / len(near) if near else item.x


def _place(layer: list[Item], wanted: list[float]) -> None:
    """Put the items of a layer near the wanted places, in their order and GAP apart.

    Pushed to the right as far as needed, and to the left as far as needed: both keep the distances, so their mean does.
    """
    right, left = list(wanted), list(wanted)
    for i in range(1, len(layer)):
        right[i] = max(right[i], right[i - 1] + _distance(layer[i - 1], layer[i]))
    for i in range(len(layer) - 2, -1, -1):
        left[i] = min(left[i], left[i + 1] - _distance(layer[i], layer[i + 1]))
    for item, a, b in zip(layer, right, left, strict=True):
        item.x = (a + b) / 2


def _distance(a: Item, b: Item) -> float:
    return (a.width + b.width) / 2 + GAP


def _lines(
    boxes: list[Item], inputs: Sequence[Sequence[int]], trunks: list[dict[int, Item]], layers: list[list[Item]]
) -> list[list[tuple[float, float]]]:
    """Straight through each layer that a line passes, bent between the layers."""
    heights = [max((item.height for item in layer), default=0.0) for layer in layers]
    lines = []
    for i, used in enumerate(inputs):
        for place, j in enumerate(used):
            points = [(boxes[j].x, boxes[j].y + boxes[j].height)]
            points.append((boxes[j].x, boxes[j].y + heights[boxes[j].rank]))
            for rank in range(boxes[j].rank + 1, boxes[i].rank):
                passed = trunks[j][rank]
                points += [(passed.x, passed.y), (passed.x, passed.y + heights[rank])]
            entry = boxes[i].x + boxes[i].width * ((place + 1) / (len(used) + 1) - 0.5)
            lines.append([*points, (entry, boxes[i].y)])
    return lines
