"""The benchmark scripts run and their verdicts follow from the figures. No times are asserted.

Those of kernels, steps, optimizers and processes have files of their own beside this one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.benchmark_scripts import BENCHMARKS, ROOT, run, script

SCRIPTS = (
    "all",
    "bfloat16_step",
    "data",
    "first_seconds",
    "generate",
    "kernel_steps",
    "lora_step",
    "ops",
    "optimizers",
    "processes",
    "products",
    "profile_step",
    "scaling",
    "serve",
    "startup",
    "train_step",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_tells_its_options(name: str) -> None:
    assert "--help" in run(name, "--help")


def test_slow_first_seconds_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight slices, one takes three times as long as the others. Only what was waited in that one counts."""
    module, clock = script("first_seconds"), iter([0.0, *(t for s in (1, 1, 3, 1, 1, 1, 1, 1) for t in (0.0, s)), 9.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(module, "matmul_arrays", lambda a, b: None)
    waits, stolen = iter([1.0, 2.0, 3.0, 5.5, *[6.0] * 5]), iter([0.0, 0.0, 0.0, 0.25, *[1.0] * 5])
    monkeypatch.setattr(module, "waited", lambda: next(waits))
    monkeypatch.setattr(module, "stolen", lambda: next(stolen))
    assert module.slow_slices(8.5) == (3, 2.5, 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["tinygpt train", "examples/train_shakespeare.py"])
def test_the_first_line_of_a_run_waits_for_an_evaluation_only(way: str) -> None:
    """No step is taken before it, no batch drawn for one, no library loaded that has to do with the end of a run."""
    found = script("startup").fresh(way, "tiny")
    assert found["drawn"] == 0
    assert 2 <= found["evaluated"] <= 20  # 20, unless a busy machine is told how long they will take
    assert found["optional"] == []
    assert found["peak_measured"] is False


@pytest.mark.slow
def test_all_ways_of_encoding_give_the_same_tokens() -> None:
    pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    lines = [line.strip("| ").split(" | ") for line in run("data", "--size=0.3", "--vocab-size=500").splitlines()]
    tokens = {cells[0]: cells[-1] for cells in lines if len(cells) == 6 and cells[0] != "way"}
    assert tokens["tinygpt, bpe"] == tokens["tokenizers"] == tokens.get("tiktoken", tokens["tokenizers"])
    assert 300_000 <= int(tokens["tinygpt, characters"].replace(",", "")) < 310_000


@pytest.mark.slow
def test_the_server_under_load() -> None:
    pytest.importorskip("uvicorn", reason="needs the extra serve: pip install -e '.[serve]'")
    lines = run("serve", "--shape=test", "--tokens=9", "--prompt=8", "--rounds=1", "--clients=3").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| tinygpt serve")]
    assert [row[1] for row in rows] == ["1", "3"]
    assert all(float(cell) >= 0 for row in rows for cell in row[2:])
    assert sum("3 clients get" in line and "(goal: 5)" in line for line in lines) == 1


def test_a_straight_line_is_found() -> None:
    constant, slope, off = script("scaling").straight_line([1, 2, 4], [3.0, 5.0, 9.0])
    assert (constant, slope, off) == pytest.approx((1.0, 2.0, 0.0))
    assert script("scaling").straight_line([1, 2, 4], [1.0, 4.0, 16.0])[2] > 0.1


def test_the_file_opens_with_the_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("all")
    monkeypatch.setattr(module, "lines_of", lambda *of: ["a table", "- met: one", "- not met: two; because"])
    for extra in ([], ["--append"]):
        monkeypatch.setattr(sys, "argv", ["all.py", "--only", "scaling", "--out", str(tmp_path / "cpu.md"), *extra])
        module.main()
    text = (tmp_path / "cpu.md").read_text()
    assert text.count("1 of 2 targets are met.\n\n- not met: two; because\n- met: one\n") == 2
    assert text.count("# Run of") == 2
    assert text.count("a table") == 2


def test_steps_are_measured_at_avx2_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = script("all"), []
    machine = sys.modules["machine"]
    monkeypatch.setattr(machine, "level", lambda: "avx512")
    monkeypatch.setattr(module, "lines_of", lambda command, level: seen.append((command[0], level)) or ["- met: one"])
    monkeypatch.setattr(sys, "argv", ["all.py", "--only", "step", "scaling", "--out", str(tmp_path / "cpu.md")])
    module.main()
    assert seen == [("train_step.py", "avx512"), ("train_step.py", "avx2"), ("scaling.py", "avx512")]
    assert "`TINYGPT_LEVEL=avx2 python benchmarks/train_step.py" in (tmp_path / "cpu.md").read_text()
    assert machine.environment("avx2")["ATEN_CPU_CAPABILITY"] == machine.environment("avx2")["TINYGPT_LEVEL"] == "avx2"
    assert "ATEN_CPU_CAPABILITY" not in machine.environment("avx512")


def test_a_run_that_is_stopped_leaves_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, out = script("all"), tmp_path / "cpu.md"

    def lines_of(command: list[str], level: str) -> list[str]:
        if command[0] != "scaling.py":
            raise KeyboardInterrupt
        return ["a table", "- met: one"]

    monkeypatch.setattr(module, "lines_of", lines_of)
    given = ["--only", "scaling", "startup", "--out", str(out), "--note", "Neighbours were busy."]
    monkeypatch.setattr(sys, "argv", ["all.py", *given])
    with pytest.raises(KeyboardInterrupt):
        module.main()
    assert "minutes\n\nNeighbours were busy.\n\n1 of 1 targets are met.\n\n- met: one\n" in out.read_text()
    assert out.read_text().endswith("a table\n")
    assert list(tmp_path.iterdir()) == [out]


def test_peers_that_are_not_held_to_avx2_end_a_comparison_there(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = script("machine")
    monkeypatch.setattr(machine, "instructions", lambda: ["OpenBLAS Haswell", "PyTorch AVX512"])
    monkeypatch.setattr(machine, "level", lambda: "avx512")
    assert machine.peers() == "beside OpenBLAS Haswell; PyTorch AVX512"
    monkeypatch.setattr(machine, "level", lambda: "avx2")
    with pytest.raises(SystemExit, match=r"held to AVX2, but not PyTorch AVX512: set ATEN_CPU_CAPABILITY=avx2"):
        machine.peers()


@pytest.mark.slow
def test_what_holds_the_peers_takes() -> None:
    """In a process of its own, because they look when they are loaded."""
    machine = script("machine")
    told = {}
    for level in machine.levels():
        code = "import machine; print(*machine.instructions(), sep=chr(10))"
        environment = {**machine.environment(level), "PYTHONPATH": os.pathsep.join(map(str, (ROOT, BENCHMARKS)))}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        told[level] = done.stdout.split("\n")
        assert done.stdout.startswith("OpenBLAS ") or "PyTorch" in done.stdout
    if "avx2" in told:
        assert not [words for words in told["avx2"] if machine.WIDER_THAN_AVX2.search(words)]


def test_a_script_that_fails_costs_no_other_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, out = script("all"), tmp_path / "cpu.md"
    made = {"fails": "import sys; print('half a table', flush=True); sys.exit(3)", "works": "print('- met: two')"}
    for name, text in made.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "PARTS", {name: (name, [[f"{name}.py"]]) for name in made})
    monkeypatch.setattr(sys, "argv", ["all.py", "--out", str(out)])
    with pytest.raises(SystemExit, match=r"fails\.py.*exit code 3"):
        module.main()
    text = out.read_text()
    assert "1 of 2 targets are met.\n\n- not met: `fails.py`" in text
    assert "half a table" in text


@pytest.mark.slow
def test_encoding_is_measured() -> None:
    """All ways find the same tokens."""
    pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    rows = [line.split(" | ") for line in run("data", "--size=0.3", "--vocab-size=400").splitlines() if line[:1] == "|"]
    figures = {row[0].removeprefix("| "): row[1:] for row in rows[2:]}
    assert list(figures) == list(script("data").WAYS)
    counts = {row[-1] for way, row in figures.items() if "characters" not in way and "not measured" not in row[0]}
    assert len(counts) == 1
