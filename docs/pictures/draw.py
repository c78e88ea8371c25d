"""Draw the pictures of the pages about the backward pass: python docs/pictures/draw.py writes the SVGs beside it.

They show names and formulas but no words, since the captions on the pages are translated. Colours are variables: in a
page they follow its theme (_static/site.css), alone the reader's preference. All are 340 units wide, a phone's width.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from drawing import Drawing, number

# What a block of GPT-2 keeps of a token, in units of C, and what it recomputes instead: a test measures it.
KEPT = (
    ("sum", 1, True), ("normalised", 1, False), ("q, k, v", 3, True), ("y", 1, True), ("sum", 1, True),
    ("normalised", 1, False), ("x", 4, True), ("gelu(x + bias)", 4, False),
)  # fmt: skip
# The gradient on its way through a block: the operation, and how wide dx is that comes out of it, in units of C.
LIFE = (
    ("mlp.c_proj", 4), ("bias_gelu", 4), ("mlp.c_fc", 1), ("ln_2", 1), ("attn.c_proj", 1), ("attention", 3),
    ("attn.c_attn", 1), ("ln_1", 1),
)  # fmt: skip


def attention_weights() -> Drawing:
    d = Drawing(
        "attention_weights", 214, "The weights of causal attention",
        "A square of three queries and three keys. Row 1 has weight 1, row 2 has 1/3 and 2/3, row 3 has 1/7, 2/7, 4/7. "
        "The three places above the diagonal are crossed out.",
    )  # fmt: skip
    rows = [[(1, 1)], [(1, 3), (2, 3)], [(1, 7), (2, 7), (4, 7)]]
    left, top, cell = 100, 34, 56
    for j, key in enumerate(("0", "ln 2", "ln 4")):
        d.text(left + (j + 0.5) * cell, top - 10, f"k{j} = {key}", size=10)
    for i in range(3):
        y = top + (i + 0.5) * cell
        d.text(left - 12, y + 4, f"q{i}", anchor="end")
        for j in range(3):
            x = left + (j + 0.5) * cell
            d.box(left + j * cell, top + i * cell, cell, cell, "none")
            if j > i:
                d.path((x - 6, y - 6), (x + 6, y + 6), color="edge", arrow=False)
                d.path((x - 6, y + 6), (x + 6, y - 6), color="edge", arrow=False)
                continue
            above, below = rows[i][j]
            d.circle(x, y - 6, 20 * math.sqrt(above / below))
            d.text(x, y + 25, f"{above}/{below}" if below > 1 else "1", size=11)
        d.text(left + 3 * cell + 10, y + 4, f"y{i} = " + ("7", "35/3", "17")[i], anchor="start", size=11)
    return d


def attention_tiles() -> Drawing:
    d = Drawing(
        "attention_tiles", 342, "Attention in tiles, and the online softmax",
        "Above, a square of scores in 4 by 4 tiles. The tiles below the diagonal are full, those on it are cut by the "
        "mask, those above it are skipped. Below, three steps: m = 0, ln 2, ln 4; the sum of exponentials 1, 1.5, "
        "1.75; the weighted sum of values 7, 17.5, 29.75; their quotient 7, 35/3, 17. The old sums are halved.",
    )  # fmt: skip
    left, top, tile, small = 90, 22, 40, 10
    d.text(left + 2 * tile, top - 8, "k, v")
    d.text(left - 14, top + 2 * tile + 4, "q", anchor="end")
    d.path((left - 8, top + 20), (left - 8, top + 4 * tile - 20))
    for a in range(4):
        for b in range(4):
            x, y = left + b * tile, top + a * tile
            if b > a:
                d.box(x, y, tile, tile, "none", dash=True)
                continue
            if b == a:
                d.box(x, y, tile, tile, "none")
                for i in range(4):
                    d.box(x, y + i * small, (i + 1) * small, small, "value", "value")
            else:
                d.box(x, y, tile, tile, "value", "soft")
    d.path((left, top + 4 * tile + 10), (left + 4 * tile, top + 4 * tile + 10), color="gradient")
    d.text(left + 2 * tile, top + 4 * tile + 24, "m, total, weighted", "gradient", code=True, size=11)
    table = (
        ("score", "0", "ln 2", "ln 4"), ("m", "0", "ln 2", "ln 4"), ("total", "1", "1.5", "1.75"),
        ("weighted", "7", "17.5", "29.75"), ("y", "7", "35/3", "17"),
    )  # fmt: skip
    for r, row in enumerate(table):
        y = 234 + r * 24
        d.text(78, y + 4, row[0], anchor="end", code=True, size=11)
        for c, cell in enumerate(row[1:]):
            d.text(118 + c * 84, y + 4, cell, "value" if r == 0 else "gradient" if r == 4 else "ink")
            if r in (2, 3) and c < 2:
                d.path((138 + c * 84, y), (180 + c * 84, y), color="edge")
                d.text(159 + c * 84, y - 4, "* 1/2 +", size=9)
    return d


def layer_norm_projection() -> Drawing:
    d = Drawing(
        "layer_norm_projection", 230, "The gradient of LayerNorm is a projection",
        "Three perpendicular axes: the direction of all ones, norm, and a third one. The arrow dnorm is the diagonal "
        "of a box along them. Its parts along the ones and along norm are black; that along the third is dx / rstd.",
    )  # fmt: skip
    origin = (120.0, 148.0)
    axes = {"ones": (0.0, -118.0), "norm": (150.0, 24.0), "rest": (-62.0, 62.0)}
    amount = {"ones": 0.8, "norm": 0.8, "rest": 0.82}

    def at(*names: str, factor: float = 0.0) -> tuple[float, float]:
        scaled = [(factor or amount[name], axes[name]) for name in names]
        return origin[0] + sum(f * x for f, (x, _) in scaled), origin[1] + sum(f * y for f, (_, y) in scaled)

    for name, label, dx, dy in (("ones", "(1, 1, 1)", 6, 4), ("norm", "norm", 8, -8), ("rest", "", 0, 0)):
        end = at(name, factor=1.12)
        d.path(origin, end, color="edge")
        d.text(end[0] + dx, end[1] + dy, label, "ink", "start" if name == "ones" else "middle")
    for start, end in (
        (("ones",), ("ones", "norm")), (("ones",), ("ones", "rest")), (("norm",), ("ones", "norm")),
        (("rest",), ("ones", "rest")), (("norm",), ("norm", "rest")), (("rest",), ("norm", "rest")),
        (("ones", "norm"), ("ones", "norm", "rest")), (("ones", "rest"), ("ones", "norm", "rest")),
        (("norm", "rest"), ("ones", "norm", "rest")),
    ):  # fmt: skip
        d.path(at(*start), at(*end), color="edge", width=0.8, arrow=False, dash=True)
    tip = at("ones", "norm", "rest")
    d.path(origin, at("ones"), color="ink", width=2)
    d.path(origin, at("norm"), color="ink", width=2)
    d.path(origin, tip, color="value", width=2.4)
    d.path(origin, at("rest"), color="gradient", width=2.6)
    d.text(tip[0] + 6, tip[1] - 6, "dnorm", "value", "start")
    d.text(at("ones")[0] + 8, at("ones")[1] + 4, "mean(dnorm)", anchor="start", size=11)
    d.text(at("norm")[0] - 4, at("norm")[1] + 20, "mean(dnorm * norm)", anchor="middle", size=11)
    d.text(at("rest")[0] - 10, at("rest")[1] - 2, "dx / rstd", "gradient", "end")
    return d


def unbroadcast() -> Drawing:
    d = Drawing(
        "unbroadcast", 168, "A broadcast, and its backward pass",
        "Left, a bias of two numbers is copied to three rows. Right, three rows of dy, (1, 10), (2, 20), (3, 30), are "
        "added up to dbias = (6, 60).",
    )  # fmt: skip
    cell, height = 44, 26
    for left, color in ((32, "value"), (220, "gradient")):
        for i in range(3):
            for j in range(2):
                d.box(left + j * cell, 66 + i * (height + 6), cell, height)
                shown = f"b{j}" if color == "value" else f"{(i + 1) * 10**j}"
                d.text(left + (j + 0.5) * cell, 66 + i * (height + 6) + 17, shown, color)
        for j in range(2):
            d.box(left + j * cell, 12, cell, height, "none", color)
            d.text(left + (j + 0.5) * cell, 29, f"b{j}" if color == "value" else f"{6 * 10**j}", color)
            x = left + (j + 0.5) * cell
            down = ((x, 41), (x, 62))
            d.path(*(down if color == "value" else down[::-1]), color=color)
    d.text(24, 29, "bias", anchor="end", size=11)
    d.text(212, 29, "dbias", anchor="end", size=11)
    d.text(24, 115, "y", anchor="end", size=11)
    d.text(212, 115, "dy", anchor="end", size=11)
    d.text(264, 57, "Σ", "gradient")
    return d


def residual_stream() -> Drawing:
    d = Drawing(
        "residual_stream", 190, "The residual stream of one block, forward and backward",
        "A line from x to y with two additions on it. Before each addition a branch leaves the line, passes ln_1 and "
        "attn, or ln_2 and mlp, and comes back at the addition. Below, the gradient runs the whole line from dy to dx, "
        "and each branch adds its part to it.",
    )  # fmt: skip
    line, back = 128, 158
    d.text(10, line + 4, "x")
    d.text(330, line + 4, "y")
    d.path((20, line), (320, line), color="value", width=2.4)
    d.path((320, back), (20, back), color="gradient", width=2.4)
    d.text(330, back + 4, "dy", "gradient")
    d.text(10, back + 4, "dx", "gradient")
    for left, names in ((50, ("ln_1", "attn")), (190, ("ln_2", "mlp"))):
        right = left + 90
        d.path((left, line), (left, 92))
        d.path((left, 68), (left, 48))
        for y, name in ((68, names[0]), (24, names[1])):
            d.box(left - 26, y, 52, 24)
            d.text(left, y + 16, name, code=True)
        d.path((left + 26, 36), (right, 36), (right, line - 10))
        d.path((right - 8, back), (right - 8, 44), (left + 30, 44), color="gradient", dash=True)
        d.path((left + 10, 96), (left + 10, back - 4), color="gradient", dash=True)
        d.plus(right, line)
    return d


def gradient_life() -> Drawing:
    d = Drawing(
        "gradient_life", 44 + 30 * len(LIFE), "The life of a gradient through one block",
        "From top to bottom, the operations of a block in the order of the backward pass, each with a bar as wide as "
        "the gradient that it hands on: "
        + ", ".join(f"{name} {width} C" for name, width in LIFE)
        + ". Beside them runs the gradient of the residual stream, to which ln_2 and ln_1 add theirs.",
    )  # fmt: skip
    unit, middle, stream = 27, 196, 318
    d.text(middle, 16, "dy", "gradient")
    d.path((stream, 8), (stream, 40 + 30 * len(LIFE)), color="gradient", width=2.4)
    d.path((stream, 12), (middle + 12, 12), color="gradient")
    before = 1
    for i, (name, width) in enumerate(LIFE):
        y = 26 + 30 * i
        w0, w1 = before * unit / 2, width * unit / 2
        funnel = [(middle - w0, y), (middle + w0, y), (middle + w1, y + 22), (middle - w1, y + 22)]
        points = " ".join(f"{number(px)},{number(py)}" for px, py in funnel)
        d.add(f'<polygon points="{points}" style="fill:var(--soft);stroke:var(--edge)"/>')
        d.text(128, y + 15, name, anchor="end", code=True, size=11)
        d.text(middle, y + 19, f"{width} C" if width > 1 else "C", "gradient", size=11)
        if name.startswith("ln"):
            d.path((middle + w1 + 3, y + 15), (stream - 10, y + 15), color="gradient")
            d.plus(stream, y + 15)
            if i + 1 < len(LIFE):
                d.path((stream, y + 30), (middle + 16, y + 30), color="gradient", arrow=True)
        before = width
    d.text(middle, 40 + 30 * len(LIFE), "dx", "gradient")
    return d


def kept() -> Drawing:
    total, recomputed = (sum(width for _, width, there in KEPT if there is kept) for kept in (True, False))
    d = Drawing(
        "kept", 40 + 22 * len(KEPT), "What one block keeps of each token for the backward pass",
        "A bar for each array, in units of C numbers: "
        + ", ".join(f"{name} {width} C" + ("" if there else " (recomputed)") for name, width, there in KEPT)
        + f". Kept: {total} C. Recomputed: {recomputed} C.",
    )  # fmt: skip
    for i, (name, width, there) in enumerate(KEPT):
        y = 8 + 22 * i
        d.text(122, y + 13, name, anchor="end", code=True, size=11)
        d.box(130, y, 44 * width, 17, "value" if there else "none", "value", dash=not there)
        d.text(130 + 44 * width + 6, y + 13, f"{width} C" if width > 1 else "C", anchor="start", size=11)
    y = 8 + 22 * len(KEPT)
    d.text(122, y + 15, "Σ", anchor="end")
    d.text(130, y + 15, f"{total} C", "value", "start")
    d.text(184, y + 15, f"({total + recomputed} C)", "ink", "start")
    return d


PICTURES = (
    attention_weights,
    attention_tiles,
    layer_norm_projection,
    unbroadcast,
    residual_stream,
    gradient_life,
    kept,
)


def main(folder: Path = Path(__file__).parent) -> None:
    for draw in PICTURES:
        drawing = draw()
        (folder / f"{drawing.name}.svg").write_text(drawing.svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
