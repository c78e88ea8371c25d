"""Runs in 16 bits, on the stand-in for CuPy (see test_mixed_precision.py): what is learnt, loss scaling, resuming."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
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
from tinygpt.training import CheckpointFolder, DivergedError, LossScale, evaluate, read_metrics
from tinygpt.training.evaluation import mean_loss
from tinygpt.training.step import loss_scale

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_the_stand_in() -> Iterator[None]:
    with standin.installed(), tg.use_backend("cupy"), tg.use_kernels("reference"):
        yield


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


# float16's loss scale --------------------------------------------------------------------------------


def scales(trainer: Any) -> list[float]:
    """The scale after each step of a run."""
    found: list[float] = []
    step = trainer.steps.step
    trainer.steps.step = lambda: (step(), found.append(trainer.loss_scale.scale))[0]
    trainer.run()
    return found


def test_a_gradient_that_is_infinite_costs_one_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, dtype="float16", log_every=1)
    real, seen = trainer.accumulation.compute, []

    def gradients() -> tuple[float, float]:
        loss, norm = real()
        seen.append([host(p.data).tobytes() for p in trainer.parameters])
        if trainer.state.step == 5:
            trainer.parameters[0].grad[0, 0] = np.inf
            norm = tg.optim.grad_norm(trainer.parameters)
        return loss, norm

    trainer.accumulation.compute = gradients  # type: ignore[method-assign]
    assert scales(trainer) == [2.0**16] * 5 + [2.0**15] * 15
    assert [a == b for a, b in itertools.pairwise(seen)] == [step == 5 for step in range(19)]  # weights as they were
    assert {slot.step for slot in trainer.optimizer.slots} == {19}
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "loss" in r]
    assert [r["grad_norm"] is None for r in records] == [step == 5 for step in range(20)]
    assert [r["loss_scale"] for r in records] == [2.0**16] * 5 + [2.0**15] * 15


def test_the_norm_that_clipping_sees_is_of_gradients_not_scaled(tmp_path: Path) -> None:
    norms = []
    for name in ("float32", "float16"):
        make_trainer(tmp_path / name, steps=1, decay_steps=20, log_every=1, gradient_accumulation=2, dtype=name).run()
        norms += [r["grad_norm"] for r in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in r]
    assert norms[1] == pytest.approx(norms[0], rel=16 * EPS["float16"])


@in_both
def test_a_split_step_has_the_gradient_of_the_whole_in_16_bits(name: str, tmp_path: Path) -> None:
    """Batches with few targets and with many, under a loss scale: as near to float32's gradient as the whole batch."""
    inputs, targets = (np.tile(ids, (2, 1)) for ids in (IDS, TARGETS))
    targets[0, 1:], targets[1, 2:] = -100, -100
    exact = gradient_of(model(dropout=0.0), "float32", inputs, targets)
    whole = np.linalg.norm(gradient_of(model(dropout=0.0), name, inputs, targets) - exact)
    trainer = make_trainer(tmp_path, model=model(dropout=0.0), dtype=name, gradient_accumulation=2)
    halves = [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])]
    trainer.batches.batch = lambda index: halves[index % 2]  # type: ignore[method-assign]
    with trainer.model.compute_in(name):
        trainer.accumulation.compute()
    found = np.concatenate([host(p.grad).ravel() for p in trainer.parameters]) / (2 * trainer.loss_scale.scale)
    assert np.linalg.norm(found - exact) <= 2 * whole
    means = [gradient_of(model(dropout=0.0), "float32", *half) for half in halves]
    assert np.linalg.norm(sum(means) / 2 - exact) > 20 * whole  # what the mean of the means would be


def gradient_of(model: Any, name: str, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    scale = LossScale(name).scale
    with model.compute_in(name):
        model.loss(inputs, targets).backward(scale)
    return np.concatenate([host(p.grad).ravel() for p in model.parameters()]) / scale


def test_a_scale_too_large_comes_down_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "START", 2.0**40)
    trainer = make_trainer(tmp_path, dtype="float16", steps=40)
    found = scales(trainer)
    left_out = [scale != before for before, scale in itertools.pairwise([2.0**40, *found])]
    assert found == [2.0 ** (40 - sum(left_out[: i + 1])) for i in range(40)]
    assert all(left_out[:10])
    assert not any(left_out[30:])
    assert {slot.step for slot in trainer.optimizer.slots} == {40 - sum(left_out)}


def test_the_scale_is_doubled_after_2000_good_steps() -> None:
    scale = LossScale("float16")
    assert scale.lower()
    for _ in range(1999):
        scale.raise_after_good_step()
    assert scale.scale == 2.0**15
    scale.raise_after_good_step()
    assert (scale.scale, scale.good_steps) == (2.0**16, 0)
    for _ in range(1999):
        scale.raise_after_good_step()
    assert scale.lower()
    for _ in range(1999):
        scale.raise_after_good_step()
    assert scale.scale == 2.0**15  # in a row
    for _ in range(10 * 2000):
        scale.raise_after_good_step()
    assert scale.scale == 2.0**24


def test_the_scale_ends_at_one() -> None:
    scale = LossScale("float16")
    assert [scale.lower() for _ in range(18)] == [True] * 16 + [False] * 2
    assert scale.scale == 1.0


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_without_float16_there_is_no_scale(name: str) -> None:
    scale = LossScale(name)
    for _ in range(2000):
        scale.raise_after_good_step()
    assert (scale.scale, scale.lower(), scale.state_dict()) == (1.0, False, {})


@pytest.mark.parametrize("state", [{"scale": 0.5, "good_steps": 0}, {"scale": 2.0, "good_steps": -1}, {"scale": 2.0}])
def test_states_of_the_scale_that_make_no_sense(state: Any) -> None:
    with pytest.raises(tg.errors.UsageError, match=r"LossScale: (scale|good_steps) must be"):
        LossScale("float16").load_state_dict(state)


@pytest.mark.parametrize(("name", "steps"), [("float16", 17), ("bfloat16", 1)])
def test_gradients_that_no_scale_makes_finite_end_the_run(tmp_path: Path, name: str, steps: int) -> None:
    """In bfloat16, whose steps are read late, as in float16, whose scale must be known before the next step."""
    trainer = make_trainer(tmp_path, dtype=name, steps=40)
    graphed_step, calls = trainer.accumulation.graphed_step, []
    real = graphed_step.work

    def work(*batch: Any) -> Any:
        calls.append(0)
        loss = real(*batch)
        trainer.parameters[0].grad[0, 0] = np.inf
        return loss

    graphed_step.work = work
    with pytest.raises(DivergedError, match=rf"step {steps - 1} can't be computed: the gradients' norm is inf"):
        trainer.run()
    assert len(calls) == steps + 1  # once more to find the cause


def test_a_loss_that_is_not_finite_is_no_matter_of_scaling(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, dtype="float16")
    trainer.model.h[0].mlp.c_proj.weight.data[...] = 6e4  # overflows in the forward pass
    trainer.model.h[0].mlp.c_fc.bias.data[...] = 6e4
    with pytest.raises(DivergedError, match=r"step 0 can't be computed|validation loss"):
        trainer.run()


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
