"""--watch-layers: the norms are those of the weights and gradients, whatever trains them; the run stays the same."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import OPTIONS, SHAPE, assert_same_outcome, failing_at, make_trainer, outcome_without
from tinygpt.classifier import GPTForSequenceClassification
from tinygpt.errors import UsageError
from tinygpt.gpt import GPT, GPTConfig
from tinygpt.nn import add_lora
from tinygpt.tokenizers import CharTokenizer
from tinygpt.training import read_metrics
from tinygpt.training.monitoring.following import Following, follow
from tinygpt.training.monitoring.layer_norms import LayerWatch, layer_of
from tinygpt.training.step.loss_scale import LossScale

pytestmark = pytest.mark.usefixtures("without_picture")
IN_A_BLOCK = ("ln_1", "attn", "ln_2", "mlp")
LAYERS = {"wte", "wpe", "ln_f", *(f"h.{i}.{name}" for i in range(2) for name in IN_A_BLOCK)}


def layers_in(folder: Path) -> dict[int, dict[str, dict[str, float]]]:
    return {record["step"]: record["layers"] for record in read_metrics(folder / "metrics.jsonl") if "layers" in record}


class Witness(LayerWatch):
    """Keeps the weights before and after each step, and the gradients of its mean loss, as they are."""

    def begin(self, trainer: Any, progress: Any) -> None:
        super().begin(trainer, progress)
        self.weights = {trainer.state.step: self.of(trainer)}
        self.gradients: dict[int, dict[str, np.ndarray]] = {}

    def of(self, trainer: Any) -> dict[str, np.ndarray]:
        return {name: p.data.astype(np.float64) for name, p in trainer.model.named_parameters() if p.requires_grad}

    def before_update(self, trainer: Any) -> None:
        factor = trainer.config.gradient_accumulation * trainer.loss_scale.scale
        self.gradients[trainer.state.step + 1] = {
            name: np.zeros(p.shape) if p.grad is None else p.grad.astype(np.float64) / factor
            for name, p in trainer.model.named_parameters()
            if p.requires_grad
        }
        super().before_update(trainer)

    def after_step(self, trainer: Any) -> Any:
        self.weights[trainer.state.step] = self.of(trainer)
        return super().after_step(trainer)


def norms(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """By layer, from the definition."""
    parts: dict[str, list[np.ndarray]] = {}
    for name, array in arrays.items():
        parts.setdefault(layer_of(name), []).append(array.ravel())
    return {layer: float(np.linalg.norm(np.concatenate(found))) for layer, found in parts.items()}


def assert_recorded(folder: Path, witness: Witness, steps: list[int]) -> None:
    """What the metrics file says is what the witness saw."""
    found = layers_in(folder)
    assert sorted(found) == steps
    for step in steps:
        now, before = witness.weights[step], witness.weights[step - 1]
        expected = {
            "gradient": norms(witness.gradients[step]), "weight": norms(now),
            "update": norms({name: now[name] - before[name] for name in now}),
        }  # fmt: skip
        for layer, row in found[step].items():
            for name in expected:
                assert row[name] == pytest.approx(expected[name][layer], rel=1e-4, abs=1e-12), (step, layer, name)
            assert row["ratio"] == pytest.approx(row["update"] / row["weight"], rel=1.5e-4)  # three roundings
        assert found[step].keys() == expected["weight"].keys()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "muon", "ema": 0.9, "gradient_accumulation": 2},
        {"optimizer": "sgd", "grad_clip": 0.05, "weight_decay": 0.2, "l1": 1e-3},
        {"freeze": "wte,h.0.attn,h.1.mlp.c_fc", "layer_decay": 0.5},
    ],
)
def test_the_norms_are_those_of_the_definition(tmp_path: Path, settings: dict[str, Any]) -> None:
    trainer = make_trainer(tmp_path, steps=6, log_every=1, **settings)
    trainer.watch = witness = Witness(2)
    trainer.run()
    assert_recorded(tmp_path, witness, [2, 4, 6])
    gone = {"wte", "h.0.attn"} if "freeze" in settings else set()
    assert layers_in(tmp_path)[2].keys() == LAYERS - gone
    records = [record for record in read_metrics(tmp_path / "metrics.jsonl") if "loss" in record]
    logged = {record["step"]: record["grad_norm"] for record in records}
    for step, rows in layers_in(tmp_path).items():
        whole = math.sqrt(sum(row["gradient"] ** 2 for row in rows.values()))
        assert whole == pytest.approx(logged[step], rel=1e-4)


def test_an_adapter_is_watched_alone(tmp_path: Path) -> None:
    model = GPT(GPTConfig(vocab_size=11, **SHAPE), seed=1)
    add_lora(model, rank=2, alpha=4, targets=("c_attn",))
    trainer = make_trainer(tmp_path, model=model, steps=4)
    trainer.watch = witness = Witness(1)
    trainer.run()
    assert_recorded(tmp_path, witness, [1, 2, 3, 4])
    assert layers_in(tmp_path)[1].keys() == {"h.0.attn", "h.1.attn"}


def test_a_step_that_float16_skips_is_not_recorded(tmp_path: Path) -> None:
    """Steps 1 and 4 overflow; the others have gradients of a loss that is scaled, and the norms are without it."""
    trainer = make_trainer(tmp_path, steps=6)
    trainer.loss_scale = LossScale("float16")
    trainer.watch = witness = Witness(1)
    usual = trainer.accumulation.compute

    def overflowing() -> tuple[float, float]:
        loss, norm = usual()
        return loss, math.inf if trainer.state.step in (0, 3) else norm

    trainer.accumulation.compute = overflowing  # type: ignore[method-assign]
    trainer.run()
    assert trainer.loss_scale.scale == 2.0**14
    assert_recorded(tmp_path, witness, [2, 3, 5, 6])


def test_layers_without_gradients_count_as_zero(tmp_path: Path) -> None:
    model = GPT(GPTConfig(vocab_size=11, **SHAPE), seed=1)
    model.spare = GPT(GPTConfig(vocab_size=3, **SHAPE), seed=1).ln_f
    trainer = make_trainer(tmp_path, model=model, steps=2)
    trainer.watch = LayerWatch(1)
    trainer.run()
    spare = layers_in(tmp_path)[2]["spare"]
    assert spare == {"gradient": 0.0, "weight": 2.8284, "update": 0.0, "ratio": 0.0}


@pytest.mark.slow
def test_nothing_of_the_run_changes(tmp_path: Path) -> None:
    settings = {"optimizer": "muon", "ema": 0.5, "gradient_accumulation": 2}
    make_trainer(tmp_path / "plain", **settings).run()
    trainer = make_trainer(tmp_path / "watched", **settings)
    follow(trainer, Following(watch_layers=3), CharTokenizer("abcdefghij\n"))
    trainer.run()
    assert len(layers_in(tmp_path / "watched")) == 6
    assert outcome_without(tmp_path / "watched", "layers") == outcome_without(tmp_path / "plain", "layers")


def test_a_resumed_run_has_the_records_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def watched(folder: Path) -> Any:
        trainer = make_trainer(folder)
        follow(trainer, Following(watch_layers=3, sample_every=6, sample_tokens=3), CharTokenizer("abcdefghij\n"))
        return trainer

    watched(tmp_path / "whole").run()
    trainer = watched(tmp_path / "parts")
    trainer.callbacks.append(failing_at(9, "layers", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    again = watched(tmp_path / "parts")
    again.resume()
    again.run()
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")
    assert sorted(layers_in(tmp_path / "whole")) == [3, 6, 9, 12, 15, 18]


def test_nothing_is_copied_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> None:
        raise AssertionError("a run that watches no layers has nothing to do here")

    for name in ("begin", "before_update", "after_step", "_norms", "_summed"):
        monkeypatch.setattr(LayerWatch, name, never)
    trainer = make_trainer(tmp_path, steps=3)
    follow(trainer, Following(), CharTokenizer("abcdefghij\n"))
    trainer.run()
    assert not layers_in(tmp_path)


def test_a_copy_is_held_only_in_a_recorded_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=4)
    trainer.watch = watch = LayerWatch(3)
    held = []
    update = trainer.steps.update

    def looked(norm: float) -> None:
        held.append(watch._before is not None)
        update(norm)

    trainer.steps.update = looked  # type: ignore[method-assign]
    trainer.run()
    assert held == [False, False, True, False]
    assert watch._before is None


def test_names_of_layers() -> None:
    for name, layer in {
        "wte.weight": "wte", "h.0.attn.c_attn.weight": "h.0.attn", "h.11.ln_1.bias": "h.11.ln_1",
        "transformer.h.3.mlp.c_fc.lora_a": "transformer.h.3.mlp", "score.weight": "score", "scale": "scale",
        "blocks.0.weight": "blocks.0",
    }.items():  # fmt: skip
        assert layer_of(name) == layer
    clf = GPTForSequenceClassification(GPTConfig(vocab_size=11, **SHAPE), 2)
    found = {layer_of(name) for name, _ in clf.named_parameters()}
    assert len(found) == len(LAYERS) + 1  # and the head


# The command line -------------------------------------------------------------------------------------


def test_the_option(run: Any, text: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    assert run("train", "--data", text, "--out", out, *OPTIONS, "--watch-layers", "4").code == 0
    assert sorted(layers_in(tmp_path / "run")) == [4, 8, 12]
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text(encoding="utf-8"))["watch_layers"] == 4
    assert run("train", "--resume", "--out", out, "--steps", "16").code == 0
    assert sorted(layers_in(tmp_path / "run")) == [4, 8, 12, 16]
    assert run("train", "--resume", "--out", out, "--steps", "20", "--watch-layers").code == 0
    assert sorted(layers_in(tmp_path / "run")) == [4, 8, 12, 16, 20]


@pytest.mark.parametrize(("value", "words"), [("0", "watch_layers must be at least 1"), ("x", "invalid int value")])
def test_a_wrong_number(run: Any, text: Path, tmp_path: Path, value: str, words: str) -> None:
    found = run("train", "--data", text, "--out", tmp_path / "run", *OPTIONS, "--watch-layers", value)
    assert_one_sentence(found, words)
    assert not (tmp_path / "run").exists()


def test_in_the_library_a_wrong_number_is_refused() -> None:
    with pytest.raises(UsageError, match="LayerWatch: every must be at least 1"):
        LayerWatch(0)
