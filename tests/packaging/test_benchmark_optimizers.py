"""The benchmark of the optimizers: they take turns, and the page has the figures of the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.packaging.benchmark_scripts import BENCHMARKS, ROOT, run, script
from tinygpt.optim.muon import newton_schulz


@pytest.mark.slow
def test_optimizers_take_turns_on_a_text(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question. " * 60)
    lines = run("optimizers", "--data", str(text), "--steps=8", "--seeds", "0", "1", "--only", "adamw", "muon").split(
        "\n"
    )
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith(("| adamw |", "| muon |"))
    ]
    table, curves = rows[:2], rows[2:]
    assert [row[:3] for row in table] == [["adamw", "8", "12"], ["muon", "8", "12"]]
    assert table[0][5] == "1.00"
    assert [row[-1] for row in table] == ["0%", "46%"]
    assert [len(row) for row in curves] == [9, 9]
    assert all(row[-1].startswith(f"{float(line[6]):.3f} at ") for row, line in zip(curves, table, strict=True))


@pytest.mark.slow
def test_the_curves_of_the_optimizers_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra examples: pip install -e '.[examples]'")
    lines = ["a processor", "seed 0, adamw: step 4, 1.0 s, loss 2.5", "seed 1, adamw: step 4, 3.0 s, loss 3.5",
             "seed 0, adamw: step 8, 5.0 s, loss 2.0", "seed 1, adamw: step 8, 5.0 s, loss 2.0"]  # fmt: skip
    results, picture = tmp_path / "results.txt", tmp_path / "picture.svg"
    results.write_text("\n".join(lines))
    assert script("optimizers").curves_in([results.read_text()]) == {"adamw": [(2.0, 3.0), (5.0, 2.0)]}
    run("optimizers", "--draw", str(picture), str(results))
    assert "adamw" in picture.read_text()


@pytest.mark.parametrize("name", ["all", "fast"])
def test_the_page_on_optimizers_has_the_figures_of_the_results(name: str) -> None:
    page = (ROOT / "docs" / "optimizers.md").read_text()
    results = (BENCHMARKS / "results" / f"optimizers-{name}.txt").read_text()
    table = results[results.index("| contender | steps |") :].split("\n\n")[0].splitlines()[2:]
    for line in table:
        contender, steps, _, step_ms, seconds, ratio, loss, spread, _ = (cell.strip() for cell in line.split("|")[1:-1])
        low, high = (f"{float(value):.3f}" for value in spread.split(" to "))
        if name == "all":
            row = [contender, f"{int(steps):,}", step_ms, seconds, ratio, f"{float(loss):.3f}"]
        else:
            row = [contender, f"{int(steps):,}", seconds, ratio, loss, f"{low} to {high}"]
        assert f"| {' | '.join(row)} |" in page
    assert len(table) == {"all": 6, "fast": 3}[name]


def test_the_flops_of_muon_are_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted where they are made."""
    counted = []

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        counted.append(2 * a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2])
        return a @ b

    monkeypatch.setattr("tinygpt.optim.muon.matmul_arrays", product)
    for m, n in ((8, 8), (8, 15), (8, 16), (8, 32)):
        for steps in (1, 3, 5):
            counted.clear()
            newton_schulz(np.ones((1, m, n)), steps)
            assert sum(counted) == script("optimizers").newton_schulz_flops(n, m, steps)


def test_the_fast_preset_is_judged_by_loss_and_time() -> None:
    module = script("optimizers")

    def contender(name: str, seconds: float, loss: float) -> Any:
        made = module.Contender.__new__(module.Contender)
        made.name, made.seconds, made.curve = name, seconds, [(seconds, loss)]
        return made

    def said(*runs: tuple[str, float, float]) -> list[str]:
        return module.verdicts([[contender(*run) for run in runs]] * 2)

    first = ("adamw", 10.0, 1.9)
    assert said(first, ("fast", 5.0, 1.9), ("fast-long", 10.0, 1.85)) == [
        "- met: fast: 1.9000 (aim 1.9000) in 0.50 of the time (aim 0.5)",
        "- met: fast-long: 1.8500 (aim 1.8500) in 1.00 of the time (aim 1.0)",
    ]
    assert said(first, ("fast", 5.1, 1.8))[0].startswith("- not met: fast")
    assert said(first, ("fast", 4.0, 1.91), ("fast-long", 9.0, 1.86))[1].startswith("- not met: fast-long")
    assert said(first) == []
