"""Pages that discuss a measurement: their tables are those of the files of results, and the scripts run."""

from __future__ import annotations

import os
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
    last = measured.read_text(encoding="utf-8").splitlines()[-1]
    fastest, copy = (part.split()[-2] for part in last.split(";"))
    assert f"moves {fastest} GB/s, and a plain copy on the same machine {copy}." in page


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
