"""Following a run: it changes no bit, ends in time, writes samples, and tells speed, peak and energy."""

from __future__ import annotations

import argparse
import ctypes
import math
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import (
    OPTIONS,
    SHAPE,
    assert_same_outcome,
    failing_at,
    make_trainer,
    outcome,
    outcome_without,
)
from tinygpt.classifier import GPTForSequenceClassification
from tinygpt.errors import UsageError
from tinygpt.gpt import GPT, GPTConfig
from tinygpt.nn import add_lora
from tinygpt.tokenizers import ByteTokenizer, CharTokenizer
from tinygpt.training import read_metrics
from tinygpt.training.monitoring import energy
from tinygpt.training.monitoring.estimate import flops_per_token, measured_peak
from tinygpt.training.monitoring.following import Following, choose_following, follow

pytestmark = pytest.mark.usefixtures("without_picture")
TOKENIZER = CharTokenizer("abcdefghij\n")


def followed(folder: Path, model: GPT | None = None, settings: dict[str, Any] | None = None, **following: Any) -> Any:
    trainer = make_trainer(folder, model=model, **settings or {})
    follow(trainer, Following(**following), TOKENIZER)
    return trainer


def records(folder: Path, key: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(folder / "metrics.jsonl") if key in record]


def test_following_changes_no_bit_of_the_run(tmp_path: Path) -> None:
    make_trainer(tmp_path / "plain", ema=0.5).run()
    followed(tmp_path / "followed", settings={"ema": 0.5}, sample_every=2, sample_tokens=5).run()
    assert outcome_without(tmp_path / "followed", "sample") == outcome_without(tmp_path / "plain", "sample")


def test_what_a_record_tells(tmp_path: Path) -> None:
    trainer = followed(tmp_path)
    stream = trainer.stream
    trainer.run()
    for record in records(tmp_path, "loss"):
        assert record["tokens_per_second"] > 0
        assert record["mfu"] > 0
        assert record["seconds_left"] >= 0
        assert record["energy_wh_estimate"] > 0
        assert record["grad_norm"] > 0
    assert records(tmp_path, "loss")[-1]["step"] == 18
    assert records(tmp_path, "loss")[0].keys() >= {"step", "loss", "lr", "grad_norm", "tokens", "seconds"}
    assert "of the peak of" in stream.getvalue()
    assert "an estimate: processor time x 10 W a core" in stream.getvalue()


def test_speed_is_that_of_the_steps_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluations take ten seconds each here and count in the time left only."""
    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(perf_counter=lambda: clock.now, monotonic=lambda: clock.now)
    trainer = followed(tmp_path)
    trainer.watch.peak = 1e6
    monkeypatch.setattr("tinygpt.training.monitoring.following.time", fake)
    step, evaluate = trainer.steps.step, trainer.evaluations.evaluate

    def slow_step() -> float:
        clock.now += 2.0
        return float(step())

    def slow_evaluation(stop: Any) -> bool:
        clock.now += 10.0
        return bool(evaluate(stop))

    trainer.steps.step, trainer.evaluations.evaluate = slow_step, slow_evaluation
    trainer.run()
    tokens = 3 * SHAPE["block_size"]
    record = records(tmp_path, "loss")[1]  # step 6, after the evaluations at steps 0 and 5
    assert record["tokens_per_second"] == tokens / 2.0
    assert record["mfu"] == pytest.approx(trainer.model.flops_per_token() * tokens / 2.0 / 1e6, abs=1e-4)
    assert record["seconds_left"] == pytest.approx((6 * 2.0 + 20.0) / 6 * 14, abs=0.1)


# Samples ----------------------------------------------------------------------------------------


def test_samples_are_written_and_said(tmp_path: Path) -> None:
    trainer = followed(tmp_path, sample_every=7, sample_prompt="abc", sample_tokens=9)
    trainer.run()
    found = records(tmp_path, "sample")
    assert [record["step"] for record in found] == [7, 14]
    assert all(record["sample"].startswith("abc") and len(record["sample"]) == 12 for record in found)
    assert f"step 14, a sample: {found[1]['sample']}" in trainer.stream.getvalue()


@pytest.mark.slow
def test_a_resumed_run_has_the_samples_of_an_uninterrupted_one(tmp_path: Path) -> None:
    followed(tmp_path / "whole", sample_every=3, sample_tokens=4).run()
    trainer = followed(tmp_path / "parts", sample_every=3, sample_tokens=4)
    trainer.callbacks.append(failing_at(9, "loss", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    again = followed(tmp_path / "parts", sample_every=3, sample_tokens=4)
    again.resume()
    again.run()
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")


def test_what_cannot_be_sampled_is_said_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--sample-prompt: the character 'é' is not in the vocabulary"):
        followed(tmp_path, sample_every=1, sample_prompt="é")
    with pytest.raises(UsageError, match="--sample-prompt is what the samples of --sample-every continue"):
        Following(sample_prompt="a")
    trainer = make_trainer(tmp_path)
    trainer.model = GPTForSequenceClassification(GPTConfig(vocab_size=11, **SHAPE), 2)  # type: ignore[assignment]
    with pytest.raises(UsageError, match="for models that write text"):
        follow(trainer, Following(sample_every=2), TOKENIZER)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), ByteTokenizer(end_token=True), CharTokenizer("ab")])
def test_samples_need_no_prompt(tmp_path: Path, tokenizer: Any) -> None:
    model = GPT(GPTConfig(vocab_size=257, **SHAPE), seed=1)
    trainer = make_trainer(tmp_path, model=model, steps=2, log_every=1)
    follow(trainer, Following(sample_every=1, sample_tokens=2), tokenizer)
    trainer.watch._sample = lambda trainer: str(trainer.watch.prompt.tolist())
    trainer.run()
    start = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [10]
    expected = [0] if tokenizer.type == "character" else start
    assert [record["sample"] for record in records(tmp_path, "sample")] == [str(expected)] * 2


# A limit of time --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_ends_in_time_evaluated_and_can_be_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = followed(tmp_path / "run", max_minutes=1.0)
    monkeypatch.setattr("tinygpt.training.monitoring.following.time.monotonic", lambda: 10.0 * trainer.state.step)
    result = trainer.run()
    assert (result.step, result.signal, result.stopped_early) == (6, None, False)
    assert "Training ended when the 1 minutes of max_minutes were over, at step 6" in result.summary()
    assert records(tmp_path / "run", "validation_loss")[-1]["step"] == 6
    again = make_trainer(tmp_path / "run")
    again.resume()
    assert again.run().step == 20
    make_trainer(tmp_path / "whole").run()
    found, expected = outcome(tmp_path / "run"), outcome(tmp_path / "whole")
    for name in expected:
        if name.startswith(("latest model", "latest optimizer")):
            assert found[name] == expected[name], name


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--max-minutes=0", "following: max_minutes must be above 0, not 0.0"),
        ("--sample-every=0", "following: sample_every must be at least 1, not 0"),
        ("--watts=nan", "following: watts must be above 0, not nan"),
        ("--sample-prompt=a", "give both, or neither"),
    ],
)
def test_options_out_of_range(run: Any, text: Path, tmp_path: Path, option: str, words: str) -> None:
    command = ("train", *OPTIONS, f"--data={text}", f"--out={tmp_path / 'run'}", option)
    assert_one_sentence(run(*command), words)
    assert not (tmp_path / "run").exists()


def test_the_command_line_follows_and_a_resumed_run_goes_on_so(run: Any, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("--sample-every=4", "--sample-prompt=To be", "--sample-tokens=3", "--watts=20")
    assert run("train", *OPTIONS, "--steps=4", f"--data={text}", f"--out={folder}", *options).code == 0
    assert tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))["sample_prompt"] == "To be"
    before = records(folder, "energy_wh_estimate")[-1]["energy_wh_estimate"]
    answer = run("train", f"--out={folder}", "--resume", "--steps=12", "--decay-steps=4")
    assert answer.code == 0
    assert "20 W a core" in answer.err
    assert [record["step"] for record in records(folder, "sample")] == [4, 8, 12]
    assert all(record["sample"].startswith("To be") for record in records(folder, "sample"))
    used = [record["energy_wh_estimate"] for record in records(folder, "energy_wh_estimate")]
    assert used == sorted(used)
    assert used[-1] > before


def test_what_is_stored_and_what_is_given(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('sample_every = 3\nwatts = 5.0\nlr = 1.0\nsample_prompt = "x"\n')
    options = argparse.Namespace(resume=True, watts=7.0)
    expected = Following(sample_every=3, watts=7.0, sample_prompt="x")
    assert choose_following(options, tmp_path) == expected
    assert choose_following(argparse.Namespace(resume=False, watts=7.0), tmp_path) == Following(watts=7.0)
    assert choose_following(options, tmp_path / "none") == Following(watts=7.0)


# Estimates --------------------------------------------------------------------------------------


def test_operations_of_a_token() -> None:
    config = GPTConfig(vocab_size=11, **SHAPE)
    model = GPT(config, seed=0)
    whole = flops_per_token(model, 8)
    assert whole == model.flops_per_token(8) == 6 * (model.num_parameters() - 64) + 12 * 2 * 8 * 8
    assert flops_per_token(model, 800) == whole  # no text is longer than the block
    assert flops_per_token(SimpleNamespace(), 8) is None
    body = GPTForSequenceClassification(config, 2)
    assert flops_per_token(body, 8) == whole
    add_lora(model, rank=2, alpha=4)
    frozen = sum(p.size for p in model.parameters() if not p.requires_grad)
    assert flops_per_token(model, 8) == model.flops_per_token(8) - 2 * frozen


def test_the_peak_is_that_of_a_product() -> None:
    peak = measured_peak("numpy", "float32", 0, 0.01)
    assert 1e8 < peak < 1e14
    assert measured_peak("numpy", "float32", 0, 0.01) == peak  # measured once


def test_rapl_counters_wrap_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "psys"}
    for zone, name in zones.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(name + "\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("5000000000\n")  # 5 kJ
        (tmp_path / zone / "energy_uj").write_text("4900000000\n")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    meter = energy.EnergyMeter("numpy", before=1.0)
    assert (meter.is_estimate, meter.name, meter.source) == (False, "energy_wh", "RAPL's counters")
    assert meter.watt_hours() == 1.0
    for zone in zones:
        (tmp_path / zone / "energy_uj").write_text("4990000000\n")
    assert meter.watt_hours() == pytest.approx(1.0 + 2 * 90 / 3600)  # the package and its memory, nothing twice
    for zone in zones:
        (tmp_path / zone / "energy_uj").write_text("10000000\n")
    assert meter.watt_hours() == pytest.approx(1.0 + 2 * 110 / 3600)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()  # no longer readable: the run goes on
    assert meter.watt_hours() == pytest.approx(1.0 + 2 * 110 / 3600)


def test_without_counters_it_is_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    clock = iter([5.0, 41.0])
    monkeypatch.setattr(energy.time, "process_time", lambda: next(clock))
    meter = energy.EnergyMeter("numpy", watts=100.0)
    assert meter.name == "energy_wh_estimate"
    assert math.isclose(meter.watt_hours(), 1.0)


def test_the_counter_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for NVIDIA's library: 36 J more at each call."""
    calls = iter([0, 36_000, 72_000])
    chosen = []

    def energy_of(device: Any, out: Any) -> int:
        out._obj.value = next(calls)
        return 0

    def handle(index: int, out: Any) -> int:
        chosen.append(index)
        return 0

    library = SimpleNamespace(
        nvmlInit_v2=lambda: 0, nvmlDeviceGetHandleByIndex_v2=handle, nvmlDeviceGetTotalEnergyConsumption=energy_of
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    (counter,) = energy.nvml_counters()
    assert counter.joules() == 36.0
    assert chosen == [3]

    def none(name: str) -> Any:
        raise OSError("no driver")

    monkeypatch.setattr(ctypes, "CDLL", none)
    assert energy.nvml_counters() == []
    meter = energy.EnergyMeter("cupy")
    assert "without the GPU, whose counter can't be read" in meter.source
