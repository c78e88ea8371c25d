"""On a GPU: mixed precision, CUDA graphs, cuBLAS called directly, runs that change all of these. `pytest -m gpu`.

Elsewhere each is skipped, with the sentence of what is missing. Operations, kernels and the rest: `test_gpu.py` and
`test_kernels.py`. What is asked of a graph here is that CUDA takes the capture at all (mode "on" fails where it
does not), and that a replay has the bits of the batch, which `GraphedStep` compares by itself on the third batch; these
tests do it again on many.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.gpu.test_gpu import gpu, to_host  # noqa: F401  the fixture: skipped without a GPU
from tests.training.helpers import SHAPE, make_trainer, outcome
from tinygpt import backends
from tinygpt.backends.cupy_matmul import gemm
from tinygpt.backends.precision import activation_dtype
from tinygpt.errors import UsageError
from tinygpt.training import read_metrics
from tinygpt.training.step.graphed_step import GraphedStep
from tinygpt.training.step.update import Update

pytestmark = pytest.mark.gpu

DTYPES = ("float32", "bfloat16", "float16")
EPS = {"float32": 2.0**-24, "bfloat16": 2.0**-9, "float16": 2.0**-12}


@pytest.fixture(autouse=True)
def on_the_gpu(gpu: Any) -> Iterator[None]:  # noqa: F811
    with tg.use_backend("cupy"):
        yield


def available(dtype: str) -> str:
    """The dtype; a GPU that has none of it is a reason to skip."""
    try:
        activation_dtype(dtype, "cupy")
    except UsageError as error:
        pytest.skip(str(error))
    return dtype


def losses(folder: Path) -> np.ndarray:
    return np.array([record["loss"] for record in read_metrics(folder / "metrics.jsonl") if "loss" in record])


# Products -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def by_ctypes() -> Iterator[None]:
    """Inside the block products go the way that they go in a graph."""
    from tinygpt.backends.cupy_graph import Recorder

    with Recorder().warm_up():
        yield


@pytest.mark.parametrize("way", [contextlib.nullcontext, by_ctypes])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("M", "K", "N"), [(1, 1, 1), (7, 33, 9), (64, 128, 256), (130, 300, 70)])
def test_products_by_cublas(way: Any, dtype: str, transposed: tuple[bool, bool], M: int, K: int, N: int) -> None:
    xp, kind = backends.get("cupy").xp, activation_dtype(available(dtype), "cupy")
    rng = np.random.default_rng(M)
    a, b = (xp.asarray(rng.standard_normal(shape, np.float32)).astype(kind) for shape in ((M, K), (K, N)))
    exact = to_host(a.astype("float64")) @ to_host(b.astype("float64"))
    size = np.abs(to_host(a.astype("float64"))) @ np.abs(to_host(b.astype("float64")))
    a, b = (xp.ascontiguousarray(x.T).T if t else x for x, t in ((a, transposed[0]), (b, transposed[1])))
    start = rng.standard_normal((M, N), np.float32)
    out = xp.asarray(start)
    with way():
        gemm(xp, a, b, out, add=True)
        gemm(xp, a, b, rounded := xp.empty((M, N), kind), add=False)
    bound = (K + 2) * EPS["float32"] * (size + np.abs(start))
    assert (np.abs(to_host(out).astype(np.float64) - (start + exact)) <= bound).all()
    bound = (K + 2) * EPS["float32"] * size + 2 * EPS[dtype] * np.abs(exact) + 6e-8
    assert (np.abs(to_host(rounded.astype("float64")) - exact) <= bound).all()


# Mixed precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("graphs", ["on", "off"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_run_in_16_bits_learns_what_one_in_float32_learns(tmp_path: Path, dtype: str, graphs: str) -> None:
    """The same batches and masks: after 200 steps the losses differ by far less than they have fallen."""
    settings: dict[str, Any] = {"steps": 200, "log_every": 1, "lr": 1e-3}
    make_trainer(tmp_path / "float32", **settings).run()
    make_trainer(tmp_path / dtype, dtype=available(dtype), cuda_graphs=graphs, **settings).run()
    found, expected = losses(tmp_path / dtype), losses(tmp_path / "float32")
    assert len(found) == 200
    assert np.isfinite(found).all()
    assert abs(found[-20:].mean() - expected[-20:].mean()) <= 0.02


def test_a_run_moves_between_dtypes_backends_and_graphs(tmp_path: Path) -> None:
    make_trainer(tmp_path / "stayed", steps=24).run()
    stations = [(6, "cupy", "bfloat16", "on"), (12, "numpy", "float32", "auto"), (18, "cupy", "float32", "on"),
                (24, "cupy", "float16", "off")]  # fmt: skip
    for steps, backend, dtype, graphs in stations:
        available(dtype)
        with tg.use_backend(backend):
            trainer = make_trainer(tmp_path / "moved", steps=steps, decay_steps=24, dtype=dtype, cuda_graphs=graphs)
            if steps > 6:
                trainer.resume()
            trainer.run()
    ends = [
        [r["validation_loss"] for r in read_metrics(tmp_path / name / "metrics.jsonl") if "validation_loss" in r][-1]
        for name in ("stayed", "moved")
    ]
    assert abs(ends[0] - ends[1]) <= 0.02


# Graphs ---------------------------------------------------------------------------------------------


def batch(step: int, rows: int = 3) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(step).integers(0, 11, (rows, 9))
    return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batches", [1, 3])
def test_each_replay_has_the_bits_of_its_batch(dtype: str, batches: int) -> None:
    """With dropout, and weights that change: the same launches one by one, in the recorder's way, agree."""
    model = tg.GPT(tg.GPTConfig(vocab_size=11, **SHAPE), seed=1)
    parameters = list(model.parameters())
    optimizer = tg.optim.AdamW(model.named_parameters(), lr=1e-2)

    def work(inputs: np.ndarray, targets: np.ndarray) -> Any:
        with model.compute_in(available(dtype)):
            loss = model.loss(inputs, targets)
        loss.backward()
        return loss

    def gradients(run: Any, step: int) -> list[np.ndarray]:
        found = [run(*batch(batches * step + i)).numpy() for i in range(batches)]
        return [*found, *(to_host(p.grad).copy() for p in parameters)]

    graphed_step = GraphedStep(model, work, "on")
    for step in range(12):
        stream = model.generator.stream
        found = gradients(graphed_step, step)
        if graphed_step.replays > 3 * batches:
            optimizer.zero_grad()
            model.generator.stream = stream
            with graphed_step.recorder.warm_up():
                expected = gradients(work, step)
            assert all(np.array_equal(f, e) for f, e in zip(found, expected, strict=True))
        optimizer.step()
        optimizer.zero_grad()
    assert graphed_step.replays >= 5 * batches


def test_a_run_with_graphs_and_one_without_agree(tmp_path: Path) -> None:
    """Products go to cuBLAS in two ways, which may round differently: to 1e-3 over 200 steps, as beside the CPU."""
    for graphs in ("on", "off"):
        trainer = make_trainer(tmp_path / graphs, steps=200, log_every=1, lr=1e-3, cuda_graphs=graphs)
        trainer.run()
        assert (trainer.accumulation.graphed_step.replays > 190) == (graphs == "on")
    assert np.abs(losses(tmp_path / "on") - losses(tmp_path / "off")).max() <= 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_update_is_in_the_graph(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode "on" fails where the replayed update differs from the step's in a bit; then Python launches none."""
    launched, usual = [], Update.__call__

    def call(self: Update) -> None:
        launched.append(self.trainer.state.step)
        usual(self)

    monkeypatch.setattr(Update, "__call__", call)
    trainer = make_trainer(tmp_path, steps=12, cuda_graphs="on", dtype=available(dtype))
    trainer.run()
    assert max(launched) <= 5
    assert {slot.step for slot in trainer.optimizer.slots} == {12}


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.8}, {"top_k": 5, "top_p": 0.8}])
def test_tokens_drawn_on_the_gpu_are_those_of_the_host(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tg.GPT(tg.GPTConfig(vocab_size=300, **(SHAPE | {"block_size": 40})), seed=1).eval().to("cupy")
    prompts = np.array([[1, 2, 3], [4, 5, 6]])
    found = model.generate(prompts, 30, seed=3, **options)
    monkeypatch.setattr("tinygpt.generation.token_sampler.TokenSampler.draws_on_device", False)
    assert np.array_equal(found, model.generate(prompts, 30, seed=3, **options))


def test_two_runs_with_graphs_are_identical(tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_trainer(tmp_path / name, cuda_graphs="on", gradient_accumulation=2).run()
    found, expected = outcome(tmp_path / "first"), outcome(tmp_path / "second")
    assert all(found[name] == expected[name] for name in expected if "state" not in name)


def test_memory_stays_where_it_is_once_there_is_a_graph() -> None:
    model = tg.GPT(tg.GPTConfig(vocab_size=11, **SHAPE), seed=1)
    held = []

    def work(inputs: np.ndarray, targets: np.ndarray) -> Any:
        loss = model.loss(inputs, targets)
        loss.backward()
        return loss

    graphed_step = GraphedStep(model, work, "on")
    for step in range(12):
        graphed_step(*batch(step)).item()
        model.zero_grad()
        held.append(backends.get("cupy").memory().held + graphed_step.recorder.pool.total_bytes())
    assert len(set(held[4:])) == 1


def test_what_waits_for_the_gpu_is_no_graph(capsys: pytest.CaptureFixture[str]) -> None:
    model = tg.GPT(tg.GPTConfig(vocab_size=11, **SHAPE), seed=1)

    def work(inputs: np.ndarray, targets: np.ndarray) -> Any:
        loss = model.loss(inputs, targets)
        loss.backward()
        loss.item()
        return loss

    graphed_step = GraphedStep(model, work, "auto")
    for step in range(4):
        assert np.isfinite(graphed_step(*batch(step)).item())
        model.zero_grad()
    assert graphed_step.replays == 0
    assert capsys.readouterr().out.count("CUDA graphs are not used, because ") == 1
