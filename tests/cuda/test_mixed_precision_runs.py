"""Runs in 16 bits, on the stand-in for CuPy (see test_mixed_precision.py): what is learnt, resuming, 16-bit weights."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import standin
from tests.cuda.precision import DTYPES, EPS, IDS, TARGETS, host, in_both, model, watched
from tests.training.helpers import SHAPE, VERSE, assert_same_outcome, make_trainer, outcome
from tinygpt.generation import score
from tinygpt.kernel import REGISTRY
from tinygpt.ops.cast import Cast, forget_rounded, keep_rounded
from tinygpt.ops.linear_cross_entropy import blocks
from tinygpt.tensor import Tensor
from tinygpt.training import CheckpointFolder, evaluate, read_metrics
from tinygpt.training.evaluation import mean_loss
from tinygpt.training.step import loss_scale

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("on_the_stand_in")]


# What is learnt ---------------------------------------------------------------------------------------

CHARACTERS = sorted(set(VERSE))
TEXT = np.array([CHARACTERS.index(c) for c in VERSE * 20], np.uint16)
STEPS = 60


def losses(name: str, nudged: tuple[int, float] | None = None) -> np.ndarray:
    """Of 60 steps on two lines of verse. nudged: (seed, eps): in each step every weight is off by up to eps of it."""
    shape = SHAPE | {"n_embd": 16, "block_size": 16, "dropout": 0.0}
    made = tg.GPT(tg.GPTConfig(vocab_size=len(CHARACTERS), **shape), seed=1)
    batches = tg.data.RandomBatches(TEXT, batch_size=4, block_size=16, seed=0)
    optimizer = tg.optim.AdamW(made.named_parameters(), lr=1e-2)
    rng, found = np.random.default_rng(nudged[0] if nudged else 0), []
    for step in range(STEPS):
        masters = [p.data for p in made.parameters()]
        for p in made.parameters() if nudged else ():
            p.data = standin.on_gpu(p.data.get() * (1 + nudged[1] * rng.uniform(-1, 1, p.shape)).astype(np.float32))
        with made.compute_in(name):
            loss = made.loss(*batches.batch(step))
        loss.backward(2.0**10)
        for p, master in zip(made.parameters(), masters, strict=True):
            p.data = master
        norm = tg.optim.grad_norm(made.parameters()) / 2**10
        optimizer.step(grad_scale=tg.optim.clip_coefficient(norm, 1.0) / 2**10)
        optimizer.zero_grad()
        found.append(loss.item())
    return np.array(found)


def explained(name: str, exact: np.ndarray) -> np.ndarray:
    """How far, at each step, a loss may be from float32's.

    Not a guess: how far runs in float32 have gone by then whose weights are off, at random, by up to a rounding to 16
    bits, the farthest of eight. Twice that, because activations and gradients are rounded as well.
    """
    off = [np.abs(losses("float32", (seed, EPS[name])) - exact) for seed in range(8)]
    return 2 * np.maximum.accumulate(np.max(off, axis=0))


@in_both
def test_the_losses_are_float32s_within_what_rounding_explains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = losses("float32")
    allowed = explained(name, exact)
    assert exact[-1] < 0.6 * exact[0]
    found = losses(name)
    assert (found != exact).all()
    assert (np.abs(found - exact) <= allowed).all()

    def coarse(self: Any, x: Any, dtype: Any) -> Any:
        """A type with five bits fewer, which this must find out."""
        self.dtype = x.dtype
        unit = 2.0 ** np.floor(np.log2(np.maximum(np.abs(x.get()), 1e-30))) * 64 * EPS[name]
        return standin.on_gpu((np.rint(x.get() / unit) * unit).astype(dtype))

    monkeypatch.setattr(Cast, "forward", coarse)
    assert (np.abs(losses(name) - exact) > allowed).any()


@in_both
def test_gradients_are_float32s_within_the_roundings_on_their_way(name: str) -> None:
    """Each result in 16 bits, forward and backward, adds a rounding; independent ones add up as squares do."""
    gradients = {}
    for computed_in in ("float32", name):
        made = model(dropout=0.0)
        with watched() as seen, made.compute_in(computed_in):
            made.loss(IDS, TARGETS).backward(2.0**10)
        gradients[computed_in] = {n: host(p.grad) for n, p in made.named_parameters()}
    roundings = sum(count for (_, _, dtype), count in seen.items() if dtype == name)
    assert 40 < roundings < 120
    for parameter, exact in gradients["float32"].items():
        off = np.linalg.norm(gradients[name][parameter] - exact) / np.linalg.norm(exact)
        assert off <= np.sqrt(roundings) * EPS[name], parameter


@in_both
def test_blocks_of_logits_add_up_in_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the head's weight is the same from one block of rows as from 40, but for float32's roundings."""
    N, V, C = 40, 9, 12
    x, weight = (np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate(((N, C), (V, C))))
    targets = np.random.default_rng(2).integers(0, V, N)
    found = []
    for size in (2**26, 1):
        monkeypatch.setattr(importlib.import_module("tinygpt.ops.linear_cross_entropy"), "BLOCK_BYTES", size)
        master = Tensor(standin.on_gpu(weight.astype(np.float32)), requires_grad=True)
        hidden = tg.ops.cast(Tensor(standin.on_gpu(x.astype(np.float32))), name)
        tg.ops.linear_cross_entropy(hidden, tg.ops.in_dtype_of(hidden, master), targets).backward()
        found.append(host(master.grad))
    assert len(blocks(N, V, 2)) == N
    assert np.abs(found[0] - found[1]).max() <= N * 2.0**-24 * np.abs(found[0]).max() * np.sqrt(N)
    assert not np.array_equal(found[0], found[0].astype(DTYPES[name]).astype(np.float64))  # never rounded to 16 bits


def test_float16_keeps_gradients_that_the_mean_makes_tiny() -> None:
    """1 / count takes most of them below float16's smallest number; scaling the loss must reach them before that."""
    N, V, C = 4096, 3, 2
    x, weight = (np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate(((N, C), (V, C))))
    targets = np.random.default_rng(2).integers(0, V, N)

    def gradient(name: str, scale: float) -> np.ndarray:
        hidden, matrix = (Tensor(standin.on_gpu((a * 1e-3).astype(np.float32)), True) for a in (x, weight))
        rows = tg.ops.cast(hidden, name)
        tg.ops.linear_cross_entropy(rows, tg.ops.in_dtype_of(rows, matrix), targets).backward(scale)
        return host(hidden.grad) / scale

    exact = gradient("float32", 1.0)
    assert np.abs(exact).max() < 2.0**-20  # float16 has 4 bits there, or fewer
    assert np.linalg.norm(gradient("float16", 2.0**16) - exact) <= 3 * EPS["float16"] * np.linalg.norm(exact)
    assert np.linalg.norm(gradient("float16", 1.0) - exact) > 30 * EPS["float16"] * np.linalg.norm(exact)


# Runs that are resumed, and moved --------------------------------------------------------------------


@in_both
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale is changed on both sides of the break, and counted across it."""
    monkeypatch.setattr(loss_scale, "START", 2.0**21)
    monkeypatch.setattr(loss_scale, "PATIENCE", 3)
    make_trainer(tmp_path / "whole", dtype=name, log_every=1).run()
    for steps in (5, 10, 15, 20):  # where it is evaluated anyway
        trainer = make_trainer(tmp_path / "broken", dtype=name, log_every=1, steps=steps, decay_steps=20)
        if steps > 5:
            trainer.resume()
        trainer.run()
    latest = CheckpointFolder(tmp_path / "whole").load().state
    assert bool(latest["loss_scale"]) == (name == "float16")
    if name == "float16":
        used = [r["loss_scale"] for r in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "loss" in r]
        assert len({scale != before for before, scale in itertools.pairwise(used)}) == 2
        assert any(scale > before for before, scale in itertools.pairwise(used))
        assert latest["loss_scale"]["good_steps"] > 0
    whole, broken = outcome(tmp_path / "whole"), outcome(tmp_path / "broken")
    differing = [part for part in whole if whole[part] != broken[part]]
    assert set(differing) <= {"best state"}  # which has the number of steps that was asked for then


def test_checkpoints_are_in_float32_and_move_between_dtypes_and_backends(tmp_path: Path) -> None:
    for steps, backend, name in (
        (5, "cupy", "bfloat16"), (10, "numpy", "float32"), (15, "cupy", "float16"), (20, "cupy", "bfloat16"),
    ):  # fmt: skip
        with tg.use_backend(backend):
            trainer = make_trainer(tmp_path, steps=steps, decay_steps=20, dtype=name)
            if steps > 5:
                trainer.resume()
            result = trainer.run()
        checkpoint = CheckpointFolder(tmp_path).load()
        arrays = [*checkpoint.model.values(), *checkpoint.optimizer.values()]
        assert {array.dtype.name for array in arrays} == {"float32"}
        assert (checkpoint.state["training_config"]["dtype"], checkpoint.state["backend"]) == (name, backend)
    make_trainer(tmp_path / "stayed").run()
    stayed = CheckpointFolder(tmp_path / "stayed").load().state["progression"]["validation_loss"]
    assert result.validation_loss == pytest.approx(stayed, rel=4 * EPS["bfloat16"])


def test_checkpoints_from_before_there_were_dtypes_are_resumed(tmp_path: Path) -> None:
    make_trainer(tmp_path, steps=5, decay_steps=20).run()
    checkpoint = CheckpointFolder(tmp_path).load()
    del checkpoint.state["training_config"]["dtype"], checkpoint.state["loss_scale"]
    trainer = make_trainer(tmp_path, decay_steps=20, dtype="float16")
    trainer.resume(checkpoint)
    assert trainer.loss_scale.scale == 2.0**16
    trainer.run()


# After a run ------------------------------------------------------------------------------------------


@in_both
def test_after_the_run_the_model_is_one_in_float32(tmp_path: Path, name: str) -> None:
    trainer = make_trainer(tmp_path, dtype=name)
    trainer.run()
    tokens = np.asarray(trainer.batches.tokens[:100])
    assert trainer.model.activations is None
    fresh = tg.GPT(trainer.model.config)
    fresh.load_state_dict(CheckpointFolder(tmp_path).load("latest").model)
    assert evaluate(trainer.model, tokens) == evaluate(fresh, tokens)
    validation = [r["validation_loss"] for r in read_metrics(tmp_path / "metrics.jsonl") if "validation_loss" in r][-1]
    exact = mean_loss(trainer.model, trainer.validation)
    assert validation != exact  # the run's own evaluations are in its dtype
    assert validation == pytest.approx(exact, rel=EPS[name])


@in_both
def test_generation_and_scores_are_in_float32_inside_too(name: str) -> None:
    made, prompts = model(), IDS[:, :3]
    options = {"max_new_tokens": 4, "temperature": 0.8, "seed": 0, "return_details": True}
    expected, loss = made.generate(prompts, **options), score(made, IDS[0]).loss
    with made.compute_in(name):
        found = made.generate(prompts, **options)
        assert score(made, IDS[0]).loss == loss
        assert made(IDS).dtype == DTYPES[name]
    assert np.array_equal(found.sequences, expected.sequences)
    assert np.array_equal(found.log_probs, expected.log_probs)


@in_both
def test_logits_of_16_bits_have_a_cross_entropy_in_float32(name: str) -> None:
    made = model(dropout=0.0)
    with made.compute_in(name):
        loss = tg.ops.cross_entropy(made(IDS), TARGETS)
        fused = made.loss(IDS, TARGETS)
    assert loss.dtype == np.float32
    assert loss.item() == pytest.approx(fused.item(), rel=EPS[name])
    loss.backward()
    separate = [host(p.grad) for p in made.parameters()]
    made.zero_grad()
    fused.backward()
    for a, b in zip(separate, [host(p.grad) for p in made.parameters()], strict=True):
        assert np.linalg.norm(a - b) <= 16 * EPS[name] * np.linalg.norm(b)


# Weights that are kept in 16 bits -------------------------------------------------------------------


def launches_of_casts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parameters each call has rounded from now on, together or alone."""
    found: list[int] = []
    usual = REGISTRY["rounded"].each

    def each(calls: Any) -> Any:
        found.append(len(calls))
        return usual(calls)

    monkeypatch.setattr(REGISTRY["rounded"], "each", each)
    return found


@in_both
def test_the_optimizer_keeps_the_rounded_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run rounds them once, and has the outcome of one that rounds them at each step."""
    casts = launches_of_casts(monkeypatch)
    settings: dict[str, Any] = {"steps": 9, "decay_steps": 20, "dtype": name, "eval_every": 4}
    trainer = make_trainer(tmp_path / "kept", **settings)
    trainer.run()
    kept = len(casts)
    assert all(slot.rounded is None for slot in trainer.optimizer.slots)
    with monkeypatch.context() as patch:
        patch.setattr("tinygpt.training.step.accumulation.keep_rounded", lambda model, optimizer: None)
        make_trainer(tmp_path / "plain", **settings).run()
    assert_same_outcome(tmp_path / "kept", tmp_path / "plain")
    assert kept == 2  # for the evaluation before the first step, and after it
    assert len(casts) - kept > 9


@in_both
def test_a_weight_that_someone_else_has_changed_is_rounded_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = model()
    optimizer = tg.optim.AdamW(made.named_parameters(), lr=1e-2)
    losses = []

    def step(keep: bool = True) -> None:
        with made.compute_in(name):
            if keep:
                keep_rounded(made, optimizer)
            loss = made.loss(IDS, TARGETS)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    step()
    first = made.state_dict()["h.0.mlp.c_fc.weight"].copy()
    copies = {slot.name: slot.rounded for slot in optimizer.slots if slot.rounded is not None}
    assert len(copies) > 10
    step()
    made.load_state_dict({"h.0.mlp.c_fc.weight": host(first)}, strict=False)
    casts = launches_of_casts(monkeypatch)
    step()
    assert casts == [1]
    assert all(slot.rounded is copies[slot.name] for slot in optimizer.slots if slot.name in copies)
    made.eval()
    with made.compute_in(name):
        kept = made.loss(IDS, TARGETS).item()
    forget_rounded(made, optimizer)
    with made.compute_in(name):
        assert made.loss(IDS, TARGETS).item() == kept
