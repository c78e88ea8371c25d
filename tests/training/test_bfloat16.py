"""Training in bfloat16 on the CPU: what is computed in which dtype, what is learnt, resumed runs, the command line.

`tests/kernel/test_bfloat16.py` has the kernels, `tests/cuda/test_mixed_precision*.py` the same scheme on a GPU.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tests.cuda.precision import EPS, IDS, TARGETS, watched
from tests.training.helpers import OPTIONS, SHAPE, VERSE, make_trainer, outcome
from tinygpt.backends import get
from tinygpt.backends.precision import in_float32
from tinygpt.kernel import use_kernels
from tinygpt.ops.cast import keep_rounded
from tinygpt.tensor import Tensor
from tinygpt.training import CheckpointFolder

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
CHARACTERS = sorted(set(VERSE))
TEXT = np.array([CHARACTERS.index(c) for c in VERSE * 20], np.uint16)
STEPS = 60


def model(**shape: Any) -> tg.GPT:
    return tg.GPT(tg.GPTConfig(vocab_size=11, **(SHAPE | shape)), seed=1)


# What is in which dtype ---------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_all_is_in_16_bits_but_for_weights_statistics_and_losses(bias: bool) -> None:
    made = model(bias=bias)
    with watched() as seen, made.compute_in("bfloat16"):
        loss = made.loss(IDS, TARGETS)
        loss.backward()
    assert loss.dtype == np.float32
    assert {array.dtype.name for p in made.parameters() for array in (p.data, p.grad)} == {"float32"}
    assert {key[2] for key in seen} == {"bfloat16", "float32"}
    assert {key[0] for key in seen if key[1:] == ("y", "float32")} == {"Embedding", "Add", "LinearCrossEntropy"}
    assert seen["Linear", "y", "bfloat16"] == 8
    assert seen["ResidualLayerNorm", "y", "bfloat16"] == 8


@pytest.mark.skipif(get("numpy").extension() is None, reason="extension not built")
def test_no_compiled_kernel_declines_what_training_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With biases and without, in training and evaluation: every kernel that a step runs has a body for bfloat16."""
    upcast: Counter[str] = Counter()

    def noted(kernel: Any, *rest: Any) -> Any:
        upcast[kernel.__name__] += 1
        return in_float32(kernel, *rest)

    monkeypatch.setattr("tinygpt.kernel.in_float32", noted)
    for bias in (True, False):
        made = model(bias=bias, dropout=0.1)
        optimizer = tg.optim.AdamW(made.named_parameters(), lr=1e-2)
        for _ in range(3):
            with made.compute_in("bfloat16"):
                keep_rounded(made, optimizer)
                made.loss(IDS, TARGETS).backward()
            optimizer.step()
            optimizer.zero_grad()
        with made.eval().compute_in("bfloat16"), tg.no_grad():
            made.loss(IDS, TARGETS)
    assert not upcast


def with_adapter(**shape: Any) -> tg.GPT:
    """A model whose adapter, unlike a new one, has an effect."""
    made = tg.nn.add_lora(model(**shape), rank=2, alpha=8, dropout=0.0, targets=["c_attn", "mlp.c_fc"])
    rng = np.random.default_rng(0)
    for name, p in made.named_parameters():
        if name.endswith("lora_B"):
            p.data = 0.1 * rng.standard_normal(p.shape).astype(np.float32)
    return made


@pytest.mark.parametrize("make", [model, with_adapter])
@pytest.mark.parametrize("kind", ["auto", "reference"])
def test_gradients_are_float32s_within_the_roundings_on_their_way(kind: str, make: Any) -> None:
    """Each result in 16 bits, forward and backward, adds a rounding; independent ones add up as squares do."""
    gradients = {}
    with use_kernels(kind):
        for dtype in ("float32", "bfloat16"):
            made = make(dropout=0.0)
            with watched() as seen, made.compute_in(dtype):
                made.loss(IDS, TARGETS).backward()
            trained = {name: p for name, p in made.named_parameters() if p.requires_grad}
            assert {p.grad.dtype for p in trained.values()} == {np.dtype(np.float32)}
            gradients[dtype] = {name: p.grad.astype(np.float64) for name, p in trained.items()}
    roundings = sum(count for (_, _, dtype), count in seen.items() if dtype == "bfloat16")
    assert 40 < roundings < 120
    for parameter, exact in gradients["float32"].items():
        off = np.linalg.norm(gradients["bfloat16"][parameter] - exact) / np.linalg.norm(exact)
        assert off <= np.sqrt(roundings) * EPS["bfloat16"], parameter


@pytest.mark.parametrize("V", [10, 11])
def test_the_heads_odd_vocabulary_is_padded_and_nothing_else_changes(V: int) -> None:
    rng = np.random.default_rng(V)
    x, weight = rng.standard_normal((5, 16)).astype(np.float32), rng.standard_normal((V, 16)).astype(np.float32)
    hidden, head = (Tensor(a.astype(BFLOAT16), requires_grad=True) for a in (x, weight))
    double = [tg.tensor(t.data.astype(np.float64), requires_grad=True) for t in (hidden, head)]
    targets = rng.integers(0, V, 5)
    for pair in ((hidden, head), double):
        tg.ops.linear_cross_entropy(*pair, targets).backward()
    logits = double[0].data @ double[1].data.T
    off = 4 * EPS["bfloat16"] * (1 + np.abs(logits).max())  # of a probability: each logit is rounded
    for found, expected in zip((hidden, head), double, strict=True):
        assert found.grad.shape == expected.shape
        most = max(np.abs(d.data).max() for d in double)
        assert np.abs(found.grad.astype(np.float64) - expected.grad).max() <= off * most


# What is learnt -----------------------------------------------------------------------------------


def losses(dtype: str, nudged: int | None = None) -> np.ndarray:
    """Of 60 steps on two lines of verse, by SGD. nudged: a seed; in each step every weight is off by up to a rounding
    to bfloat16, at random."""
    shape = SHAPE | {"n_embd": 16, "block_size": 16, "dropout": 0.0}
    made = tg.GPT(tg.GPTConfig(vocab_size=len(CHARACTERS), **shape), seed=1)
    batches = tg.data.RandomBatches(TEXT, batch_size=4, block_size=16, seed=0)
    optimizer = tg.optim.SGD(made.named_parameters(), lr=0.5)
    rng, found = np.random.default_rng(nudged), []
    for step in range(STEPS):
        masters = [p.data for p in made.parameters()]
        for p in made.parameters() if nudged is not None else ():
            p.data = p.data * (1 + EPS["bfloat16"] * rng.uniform(-1, 1, p.shape)).astype(np.float32)
        with made.compute_in(dtype):
            loss = made.loss(*batches.batch(step))
            loss.backward()
        for p, master in zip(made.parameters(), masters, strict=True):
            p.data = master
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return np.array(found)


@pytest.mark.slow
def test_the_losses_are_float32s_within_what_rounding_explains() -> None:
    """At most twice as far from float32's as runs in float32 have gone by then whose weights are rounded at random:
    twice, because activations and gradients are rounded as well."""
    exact = losses("float32")
    allowed = 2 * np.maximum.accumulate(np.max([np.abs(losses("float32", seed) - exact) for seed in range(8)], axis=0))
    found = losses("bfloat16")
    assert exact[-1] < 0.9 * exact[0]
    assert (found != exact).any()
    assert (np.abs(found - exact) <= allowed).all()


# Runs ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_run_is_the_same_bit_for_bit_on_any_number_of_threads(tmp_path: Path, threads: Any) -> None:
    threads(1)
    make_trainer(tmp_path / "whole", dtype="bfloat16", log_every=1).run()
    threads(3)
    for stop in (10, 20):
        trainer = make_trainer(tmp_path / "broken", dtype="bfloat16", log_every=1, steps=stop, decay_steps=20)
        if stop > 10:
            trainer.resume()
        trainer.run()
    whole, broken = outcome(tmp_path / "whole"), outcome(tmp_path / "broken")
    differing = [part for part in whole if whole[part] != broken[part]]
    assert set(differing) <= {"best state"}  # which has the number of steps that was asked for then


@pytest.mark.slow
def test_checkpoints_are_in_float32_and_runs_move_between_dtypes(tmp_path: Path) -> None:
    for steps, dtype in ((5, "bfloat16"), (10, "float32"), (15, "bfloat16")):
        trainer = make_trainer(tmp_path, steps=steps, decay_steps=20, dtype=dtype)
        if steps > 5:
            trainer.resume()
        trainer.run()
        checkpoint = CheckpointFolder(tmp_path).load()
        arrays = [*checkpoint.model.values(), *checkpoint.optimizer.values()]
        assert {array.dtype.name for array in arrays} == {"float32"}
        assert checkpoint.state["training_config"]["dtype"] == dtype


@pytest.mark.slow
@pytest.mark.parametrize("has", [True, False])
def test_the_command_line(has: bool, run: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run; what it ends with is in float32, as `eval` and `sample` find it. Where it is slow, it says so."""
    monkeypatch.setattr(get("numpy"), "has_bfloat16_products", lambda: has)
    folder = tmp_path / "run"
    trained = run("train", *OPTIONS, f"--data={text}", f"--out={folder}", "--dtype=bfloat16")
    assert trained.code == 0, trained.err
    slower = " (slower than float32 here: this processor, or its kernels, can't multiply such numbers)"
    assert f", activations in bfloat16{'' if has else slower}; saved in" in trained.out
    loss = next(line for line in trained.out.splitlines() if line.startswith("Loss over")).split()[6]
    assert f"loss {loss} " in run("eval", f"--model={folder}", "--batch-size=3").out
    assert run("sample", f"--model={folder}", "--prompt=To", "--max-new-tokens=5").code == 0


def test_without_ml_dtypes_the_command_line_says_what_to_install(
    run: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    answer = run("train", *OPTIONS, f"--data={text}", f"--out={tmp_path / 'run'}", "--dtype=bfloat16")
    assert_one_sentence(
        answer,
        r"bfloat16 needs the package 'ml_dtypes', which is not installed: pip install ml_dtypes, "
        "or use --dtype float32$",
    )
    assert not (tmp_path / "run").exists()
