"""benchmarks/gpu.py without a GPU: its report from made-up figures, its steps and kernels on the stand-in for CuPy.

Not shown: any time. The step beside it, PyTorch's, runs on the CPU here where PyTorch is installed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import standin
from tests.cuda.conftest import gpu  # noqa: F401  CUDA kernels on the CPU, graphs on the stand-in
from tests.cuda.test_graphs import pytestmark  # noqa: F401

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = tg.GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_head=2, n_embd=8, bias=False)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """(gpu.py, gpu_worker.py), with a preset that takes no time."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu as program
    import gpu_worker as worker

    monkeypatch.setitem(worker.PRESETS, "baby", (SMALL, 2, 8, 2))
    yield program, worker
    for name in ("gpu", "gpu_worker"):
        sys.modules.pop(name)


def made_up(program: Any, our_ms: float, kernel_rate: float) -> Any:
    def timing(preset: str, dtype: str, who: str, ms: float, memory: int) -> Any:
        return program.Timing(preset, dtype, who, [9 * ms, ms, 0.5 * ms], memory)

    timings = [
        timing(preset, dtype, who, ms, memory)
        for preset in ("baby", "gpt2")
        for dtype in ("float32", "bfloat16")
        for who, ms, memory in (("tinygpt", our_ms, 900), ("tinygpt-launches", 20.0, 900), ("torch", 10.0, 1000))
    ]
    kernels = [("layer_norm_forward", "float32", kernel_rate), ("add_bias", "float32", 2.9e12)]
    return program.Measurements({"GPU": "made up"}, timings, 3e12, kernels, {"difference": 2e-4})


def test_a_report_of_targets_met(modules: Any) -> None:
    text = modules[0].report(made_up(modules[0], 5.0, 2.7e12), "python benchmarks/gpu.py")
    assert "- GPU: made up" in text
    assert "| baby | float32 | tinygpt | 5.00 | 3,200 |" in text  # 2 x 8 tokens in 5 ms, the median of three
    assert "| 2.00 | 0.90 |" in text
    assert "| layer_norm_forward | float32 | 2,700 | 90% |" in text
    assert text.count("- met:") == 7
    assert "NOT MET" not in text


def test_a_report_of_targets_missed(modules: Any) -> None:
    found = made_up(modules[0], 12.0, 1.5e12)
    found.losses = {"difference": 0.01}
    for timing in found.timings:
        timing.memory = 2000 if timing.who == "tinygpt" else 1000
    text = modules[0].report(found, "")
    assert text.count("- NOT MET:") == 7
    assert "(layer_norm_forward, float32): the slowest at 50%" in text
    assert "0.83 times" in text


@pytest.mark.parametrize("bias", [True, False])
def test_model_flops_are_the_models(modules: Any, monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    config = replace(SMALL, n_layer=3, bias=bias)
    monkeypatch.setitem(modules[1].PRESETS, "baby", (config, 2, 5, 1))
    assert modules[0].flops("baby") == tg.GPT(config).flops_per_token(5) * 2 * 5


def test_what_was_left_out_is_not_measured(modules: Any) -> None:
    found = made_up(modules[0], 5.0, 2.7e12)
    found.timings = [timing for timing in found.timings if timing.preset == "baby" and timing.dtype == "float32"]
    found.kernels = []
    text = modules[0].report(found, "")
    assert text.count("- not measured:") == 5
    assert "## Kernels" not in text


def test_the_results_in_the_repository(modules: Any) -> None:
    """Either somebody has measured, and the file names the GPU, or it says that nobody has."""
    text = (BENCHMARKS / "results" / "gpu.md").read_text(encoding="utf-8")
    assert "Nothing has been measured yet" in text or "- GPU: " in text
    if "- GPU: " not in text:
        assert text == modules[0].not_measured("no GPU was at hand when this was written.")


def test_without_a_gpu_it_ends_with_one_sentence(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(BENCHMARKS.parent), "CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--out", str(tmp_path / "gpu.md")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("benchmarks/gpu.py: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "gpu.md").exists()


@pytest.fixture
def clock(gpu: Any) -> None:  # noqa: F811
    """Events, which the stand-in has no other use for."""
    cuda = tg.backends.get("cupy").xp.cuda
    cuda.Event = lambda: SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    cuda.get_elapsed_time = lambda start, end: 12.0


def test_steps_with_graphs_and_without_compute_the_same(modules: Any, clock: Any) -> None:
    bursts = [modules[1].tinygpt_burst("baby", "float32", graphs) for graphs in (True, False)]
    for steps in (1, 5, 2):
        with_graphs, without = (burst(steps) for burst in bursts)
        assert with_graphs.loss == without.loss
        assert with_graphs.ms == 12.0 / steps


def test_every_kernel_is_called_as_it_wants_to_be(modules: Any, clock: Any) -> None:
    rows = modules[1].kernel_rows("float32", N=16, C=8, V=11)
    for row in rows:
        assert modules[1].milliseconds(row.call, trials=1) == 12.0
        assert row.bytes > 0
    assert {row.name: row.bytes for row in rows}["layer_norm_forward"] == 8 * 16 * 8  # 8 bytes an element


@pytest.mark.compat
def test_pytorchs_step_begins_with_our_loss(modules: Any, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra compat)")
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda end: 7.0)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: event)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 5)
    before = torch.get_default_device()
    try:
        ours = modules[1].tinygpt_burst("baby", "float32", graphs=False)
        theirs = modules[1].torch_burst("baby", "float32", compiled=False, device="cpu")
        for steps in (1, 3):
            mine, found = ours(steps), theirs(steps)
            assert abs(mine.loss - found.loss) < 1e-5
            assert (found.ms, found.memory) == (7.0 / steps, 5)
        assert np.isfinite(modules[1].torch_burst("baby", "bfloat16", compiled=False, device="cpu")(2).loss)
    finally:
        torch.set_default_device(before)


def test_losses_agree_on_the_stand_in(modules: Any, gpu: Any) -> None:  # noqa: F811
    with standin.installed(), tg.use_kernels("reference"):
        found = modules[1].losses(steps=2)
    assert found["difference"] < 1e-5
