"""How many launches a training step is, and what benchmarks/gpu_model.py reckons them to cost.

The count is that of a real step, on arrays without numbers (benchmarks/gpu_paper.py); here that record is held against
the launches of the same step on the stand-in, which computes. Not shown: how long anything takes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import emulator, standin
from tests.cuda.cublaslt_standin import CublasLt
from tests.cuda.graph_runs import DEVICE, kernel_body
from tinygpt.backends import cupy_epilogues
from tinygpt.graph import keep_outputs
from tinygpt.ops.cast import keep_rounded

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results" / "gpu_first_contact.md"
SMALL = tg.GPTConfig(vocab_size=70, block_size=8, n_layer=2, n_head=2, n_embd=16)
FUSED, PLAIN = 22, 28  # launches of a layer, with biases and GELU in its products and without
GPT2 = tg.GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_model

    yield gpu_model
    for name in ("gpu_model", "gpu_paper", "gpu_worker"):
        sys.modules.pop(name)


@pytest.mark.slow
def test_a_step_of_gpt2_is_at_most_400_launches(
    model: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float16: NumPy needs no other package for it. bfloat16 takes the same launches. Also without epilogues."""
    monkeypatch.delenv("TINYGPT_EPILOGUES", raising=False)
    step = model.step_on_paper(GPT2, 16, 1024, "float16")
    with capsys.disabled():
        print(f"\n{len(step.launches)} launches in a step of GPT-2: {len(step.passes)} in the passes", end=" ")
    assert len(step.launches) > 300
    assert len(step.launches) + GPT2.n_layer * (PLAIN - FUSED) <= 400


@pytest.mark.parametrize(
    ("dtype", "setting", "each"), [("float16", "", FUSED), ("float16", "0", PLAIN), ("float32", "", PLAIN)]
)
def test_each_layer_adds_as_many_launches(
    model: Any, dtype: str, setting: str, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a number for 12 layers says what one of them costs; and casts are none of them."""
    monkeypatch.setenv("TINYGPT_EPILOGUES", setting)
    counts = [len(model.step_on_paper(tg.GPTConfig(70, 8, n, 2, 16), 2, 8, dtype).passes) for n in (1, 2, 3)]
    assert counts[2] - counts[1] == counts[1] - counts[0] == each


@pytest.mark.slow
@pytest.mark.skipif(emulator.COMPILER is None, reason="no C++ compiler (g++, c++ or clang++)")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_record_on_paper_is_that_of_the_step(model: Any, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same kernels, instance for instance, as often as in a step on the stand-in; and as many epilogues."""
    library = CublasLt()
    monkeypatch.setattr(cupy_epilogues, "load", lambda cupy: library)
    on_paper = Counter(
        launch.name for launch in model.step_on_paper(SMALL, 2, 8, dtype).launches if launch.kind == "kernel"
    )
    tokens = np.zeros((2, 9), np.int64)
    with standin.installed(bodies=kernel_body), tg.use_kernels("auto"), tg.use_backend("cupy"):
        made = tg.GPT(SMALL, seed=1).to("cupy")
        optimizer = tg.optim.AdamW(made.named_parameters(), lr=1e-3)
        scale = tg.optim.ScaleOnDevice(made.parameters())
        for _ in range(3):
            DEVICE.launched.clear()
            library.calls.clear()
            with made.compute_in(dtype), keep_outputs():
                keep_rounded(made, optimizer)
                made.loss(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])).backward()
            scale.compute(1.0, 1.0)
            optimizer.step(grad_scale=scale)
            optimizer.zero_grad()
        found = Counter(kernel for _, kernel in DEVICE.launched)
    assert found == on_paper
    assert len(library.calls) == (0 if dtype == "float32" else 5 * SMALL.n_layer)


# What they cost -------------------------------------------------------------------------------------


def launch_of(step: Any, start: str) -> Any:
    return next(launch for launch in step.launches if launch.name.startswith(start))


def test_bytes_and_operations_are_those_of_the_sizes(model: Any) -> None:
    B, T, C, V = 3, 8, 16, 70
    step = model.step_on_paper(SMALL, B, T, "float16")
    N, parameters = B * T, sum(p.size for p in tg.GPT(SMALL).parameters())
    for start, size in {
        "residual_layer_norm_forward": 2 * (4 * N * C + 3 * C) + 4 * 3 * N,  # and statistics
        f"product {N} x {C} x {4 * C}": 2 * (N * C + 4 * C * C + 2 * N * 4 * C + 4 * C),  # GELU's input and output
        f"product {N} x {C} x {3 * C}": 2 * (N * C + 3 * C * C + N * 3 * C + 3 * C),  # with a bias
        f"product {C} x {N} x {3 * C}": 2 * (N * C + N * 3 * C) + 4 * (3 * C * C + 3 * C),  # with its gradient
        "adamw_update": 30 * parameters,  # and its copy in 16 bits
        "squares_of_blocks": 4 * parameters,
        "embedding_forward": 4 * 2 * N * C + 8 * N,  # the rows that are looked up, not the table
    }.items():
        assert model.bytes_of(launch_of(step, start)) == pytest.approx(size, rel=0.06), start  # and a few sums
    products = [launch for launch in step.launches if launch.kind == "product"]
    per_token = 3 * 2 * (2 * 12 * C * C + V * C)
    assert sum(map(model.operations_of, products)) == pytest.approx(
        N * per_token, rel=0.25
    )  # the head is padded to 128
    pairs = B * 2 * T * (T + 1) / 2
    assert model.operations_of(launch_of(step, "attention_forward")) == 2 * 2 * pairs * C / 2


def test_a_time_is_bound_by_bytes_or_by_operations(model: Any) -> None:
    step = model.step_on_paper(SMALL, 2, 8, "float16")
    product = next(launch for launch in step.launches if launch.kind == "product")
    gpu = model.Gpu(bandwidth=1e15, tensor=1e9, float32=1e9, memory=1.0)
    assert model.seconds_of(product, gpu) == pytest.approx(model.FLOOR + product.operations / (model.PRODUCT * 1e9))
    gpu = model.Gpu(bandwidth=1e6, tensor=1e18, float32=1e18, memory=1.0)
    assert model.seconds_of(product, gpu) == pytest.approx(model.FLOOR + model.bytes_of(product) / (model.MEMORY * 1e6))


@pytest.mark.slow
def test_measured_times_stand_beside_the_expected_ones(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert model.main(["--preset", "gpt2", "--dtype", "float16", "--measured", str(RESULTS)]) == 0
    lines = {line[:36].strip(): line[36:].split() for line in capsys.readouterr().out.splitlines()}
    assert float(lines["attention_backward_keys_mma"][4]) == pytest.approx(3.807)  # the first table of the file
    assert float(lines["all"][4]) == pytest.approx(40.8, abs=0.2)
    assert float(lines["matrix products"][4]) == pytest.approx(16.4, abs=0.1)


def test_a_function_that_the_paper_lacks_is_named(model: Any) -> None:
    with model.gpu_paper.on_paper(), pytest.raises(AttributeError, match="histogram"):
        getattr(tg.backends.get("cupy").xp, "histogram")  # noqa: B009
