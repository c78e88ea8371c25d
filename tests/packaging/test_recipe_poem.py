"""The recipe of Chinese poems, on a small archive in the layout of the real one, and how it measures."""

# ruff: noqa: RUF001
from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.test_recipes import recipes, result_of, rows_in, run, tar

__all__ = ["recipes"]
RIVER = ("空山不見人", "但聞人語響", "返景入深林", "復照青苔上")


def poem(title: str, lines: tuple[str, ...]) -> dict[str, Any]:
    couplets = [f"{a}，{b}。" for a, b in zip(lines[::2], lines[1::2], strict=True)]
    return {"author": "佚名", "paragraphs": couplets, "title": title, "id": title}


def package(path: Path) -> Path:
    """40 quatrains, one of them twice, regular poems of eight lines, and what the recipe leaves out."""
    signs = "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽雲騰致雨露結為霜金生麗水玉出崑岡"
    draw = itertools.cycle(itertools.permutations(signs, 4))

    def line(end: str, length: int) -> str:
        return ("".join(next(draw)) * 2)[: length - 1] + end

    quatrains = [
        poem(f"題{signs[i]}", (line("山", n), line("人", n), line("水", n), line("春", n)))
        for i, n in enumerate([5, 7] * 20)
    ]
    longer = [poem(f"長{sign}", tuple(line(end, 5) for end in "山人水春月塵雨新")) for sign in signs[:10]]
    shared = poem("鹿柴後", (*RIVER, *RIVER))
    odd = [poem("句", ("欲出未出", "千山萬山如火發")), poem("缺", ("□山不見人", *RIVER[1:])), poem("", RIVER)]
    place = "package/dist/quantangshi"
    return tar(
        path,
        {
            f"{place}/poet.tang.0.json": json.dumps([poem("鹿柴", RIVER), poem("又", RIVER), *quatrains, *odd]),
            f"{place}/poet.tang.1000.json": json.dumps([*longer, shared]),
            f"{place}/poet.song.0.json": "no JSON",
            "package/package.json": '{"scripts": {"install": "exit 1"}}',
        },
    )


@pytest.mark.slow
def test_poem(tmp_path: Path) -> None:
    """Its figures follow from what was written; no first line is in two parts."""
    out = tmp_path / "out"
    result = result_of(run("poem", package(tmp_path / "chinese-poetry-2.0.1.tgz"), out), out)
    parts = {name: rows_in(out / f"{name}.jsonl") for name in ("train", "validation", "test")}
    rows = list(itertools.chain(*parts.values()))
    assert len(rows) == len({row["question"].split("\n")[1] for row in rows}) == 41
    assert {"question": "鹿柴\n空山不見人，", "answer": "但聞人語響。返景入深林，復照青苔上。"} in rows
    texts = (out / "texts.jsonl").read_text(encoding="utf-8")
    assert "長天" in texts
    assert "鹿柴後" not in texts
    assert not any(row["answer"] in texts for row in parts["test"])
    predictions = rows_in(out / "model" / "predictions.jsonl")
    right = [
        list(map(len, re.findall(r"\w+", row["prediction"]))) == [len(row["question"].split("\n")[1]) - 1] * 3
        for row in predictions
    ]
    assert result["model"]["form"] == sum(right) / len(parts["test"])
    assert result["poets"] == {"form": 1.0, "rhyme": 1.0, "copied": 0.0}
    loss = json.loads((out / "model" / "report.json").read_text(encoding="utf-8"))["loss"]
    assert result["model"]["log-likelihood"] == -loss
    assert result["model"]["perplexity"] == pytest.approx(math.exp(loss))
    assert result["baseline"]["log-likelihood"] < 0


@pytest.mark.slow
def test_an_archive_without_quatrains(tmp_path: Path) -> None:
    archive = tar(tmp_path / "other.tgz", {"package/dist/quantangshi/poet.tang.0.json": "[]"})
    done = run("poem", archive, tmp_path / "out")
    assert done.returncode == 2
    assert "there are no quatrains in the archive: is it the one that the recipe names?" in done.stderr


def test_form_rhyme_and_copied_lines(recipes: None) -> None:
    from poem import Measures

    measures = Measures(
        [("白日依山", "黃河海流", "欲窮千里", "更一層流"), ("月落烏啼", "江楓火眠", "姑蘇城外", "夜半客船")]
    )
    row = {"question": "題\n空山見人，"}

    def figures(answer: str) -> tuple[float, float, float]:
        found = measures.figures([answer], [row])
        return found["form"], found["rhyme"], found["copied"]

    assert figures("孤舟獨眠。月落烏啼，我上客船。") == (1.0, 1.0, pytest.approx(1 / 3))
    assert figures("孤舟獨船。月落烏天，我上客眠") == (1.0, 1.0, 0.0)
    assert figures("孤舟獨流。月落烏天，我上客流。") == (1.0, 0.0, 0.0)  # a character doesn't rhyme with itself
    assert figures("孤舟獨啼。月落烏天，我上客外。") == (1.0, 0.0, 0.0)  # odd lines rhyme with nothing
    assert figures("孤舟獨自眠。月落烏天，我上客船。") == (0.0, 1.0, 0.0)
    assert figures("孤舟獨眠。") == figures("") == (0.0, 0.0, 0.0)


def test_trigrams(recipes: None) -> None:
    from _trigrams import Trigrams

    model = Trigrams([[0, 1, 2, 3], [0, 1, 2, 4], [5, 1, 2, 4]], vocab_size=6)
    for past in ([], [1], [1, 2], [3, 3], [0, 5, 1, 2]):
        assert sum(model.probability(past, token) for token in range(6)) == pytest.approx(1)
    zero = (2 + 6 / 6) / (12 + 6)  # tokens 4: 2 of 12; 6 different ones
    one = two = (2 + 2 * zero) / (3 + 2)
    two = (2 + 2 * one) / (3 + 2)
    assert model.probability([9, 1, 2], 4) == pytest.approx(two)
    assert model.loss([1, 2, 4], [True, False, True]) == pytest.approx(-math.log(two))
    assert model.answer([0], end={4}, most=9) == [1, 2]
    assert model.answer([0], end=(), most=1) == [1]
