"""Pages that discuss a measurement: their tables are those of the files of results, and the scripts run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_pages import RESULTS, ROOT, table_rows, text_of


def run(script: str, *arguments: str, timeout: int = 300) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TINYGPT_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tables(path: Path | str) -> list[list[str]]:
    return table_rows(path.read_text(encoding="utf-8") if isinstance(path, Path) else path)


def test_the_page_about_a_kernel_has_the_measured_figures() -> None:
    measured, page = RESULTS / "kernel_steps.txt", text_of("docs/kernel.md")
    assert tables(measured) == tables(page)
    rows = {row[0]: float(row[1]) for row in tables(measured)[2:]}
    alone, widest = rows["C, own exp, one by one"], rows["C, own exp, vectors of 16"]
    assert f"the gain is {alone / widest:.0f}-fold" in page
    assert rows["C, with expf"] > rows["NumPy, as written"]
    gain = rows["NumPy, as written"] / rows["NumPy, in blocks"] - 1
    assert f"It gains only {100 * gain:.0f} %" in page
    block = int(re.findall(r"^BLOCK = (\d+)", text_of("benchmarks/kernel_steps.py"), re.M)[0])
    assert f"A block of {block:,} elements" in page
    assert f"pays for {2**20 // block} calls" in page
    last = measured.read_text(encoding="utf-8").splitlines()[-1]
    fastest, copy = (part.split()[-2] for part in last.split(";"))
    assert f"moves {fastest} GB/s, and a plain copy on the same machine {copy}." in page


def test_the_page_about_the_bias_probe_has_the_measured_figures() -> None:
    """And what it concludes from the table is so."""
    measured, page = RESULTS / "bias_probe.txt", text_of("docs/bias_probe.md")
    rows = tables(measured)
    assert all(row in tables(page) for row in rows)
    commands = [line[2:] for line in measured.read_text(encoding="utf-8").splitlines() if line.startswith("$ ")]
    assert len(commands) == 2
    assert all(f"\n{command}\n" in page for command in commands)
    probes = [(row[0], float(row[2]), float(row[4])) for row in rows[2:]]
    assert len(probes) == 6
    assert max(probes, key=lambda probe: abs(probe[1]))[0].startswith("control")
    assert [name for name, _, p in probes if p < 0.05] == ["control: day or month"]
    assert all(p * 256 == pytest.approx(round(p * 256), abs=0.02) for _, _, p in probes)  # of 8 pairs, all exchanges


def test_the_page_about_serving_has_the_measured_figures() -> None:
    measured, page = RESULTS / "serve.txt", text_of("docs/serving.md")
    rows = tables(measured)
    assert all(row in tables(page) for row in rows)
    command = measured.read_text(encoding="utf-8").splitlines()[0].removeprefix("$ ")
    assert f"\n{command}\n" in page
    rates = {(row[0], row[1]): float(row[2]) for row in rows[2:]}
    many = rates["tinygpt serve", "16"]
    assert f"get {many / rates['tinygpt serve', '1']:.2f} times the tokens per second of one" in page
    assert f"get {many / rates['llama.cpp', '16']:.2f} times the tokens per second that llama.cpp" in page


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="needs a C compiler")
def test_every_step_of_a_kernel_computes_the_same() -> None:
    rows = tables(run("benchmarks/kernel_steps.py", "--size=5001", "--rounds=1"))[2:]
    assert [row[0] for row in rows][:4] == [
        "NumPy, as written",
        "NumPy, in blocks",
        "C, with expf",
        "C, own exp, one by one",
    ]
    assert all(float(row[3]) < 2e-6 for row in rows)


def test_the_page_about_an_lstm_has_the_measured_figures() -> None:
    page, found = text_of("docs/lstm_against_gpt.md"), {}
    for part in (RESULTS / "lstm_against_gpt.txt").read_text(encoding="utf-8").split("\n$ ")[1:]:
        command, steps = part.splitlines()[0].partition("#")[0].strip(), int(part.splitlines()[1].split()[0])
        assert f"\n{command}\n" in page
        for name, seed, *rest in re.findall(r"^(\w+), seed (\d), rate (.*): loss (.*), (\d+) s", part, re.M):
            found[name, steps, rest[0], seed] = rest[1:]
    rows = [row for row in tables(page) if row[0] in ("GPT", "LSTM") and len(row) == 5]
    assert {(name, int(steps), rate, "0"): [loss, seconds] for name, rate, steps, loss, seconds in rows} == {
        key: value for key, value in found.items() if key[-1] == "0"
    }
    measured = tables(RESULTS / "lstm_against_gpt.txt")
    positions = [row for row in measured if row[0] in ("GPT", "LSTM") and row[1].startswith("2.")]
    assert [row for row in tables(page) if row[0] in ("GPT", "LSTM") and len(row) == 6] == [positions[0], positions[3]]
    loss = {key: float(value[0]) for key, value in found.items()}
    spread = max(abs(loss[name, 400, "0.01", "0"] - loss[name, 400, "0.01", "1"]) for name in ("GPT", "LSTM"))
    assert f"differ by {spread:.4f} or less" in page
    assert f"{loss['LSTM', 400, '0.03', '0']} to {loss['GPT', 400, '0.01', '0']}" in page
    assert f"reaches {loss['GPT', 1200, '0.01', '0']}" in page
    assert all(f" {size}" in page for size in ("108,352", "108,240"))
    assert all(size in str(measured) for size in ("108,352", "108,240"))
