"""Monitoring a run: samples, layers, speed, time left, energy, a time limit, loggers. No bit of the run changes.

    following = choose_following(options, folder)        # --max-minutes, --sample-every, --log-to ...
    follow(trainer, following, tokenizer)

These settings are not part of the checkpoint, which holds only what defines the run. A resumed run reads them from its
config.toml; options on the command line override them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...backends.numpy import get_num_threads
from ...data.dialogue import Template, encode, with_start
from ...errors import UsageError
from ...generation import stream_text
from ...tokenizers import Tokenizer, UnknownCharacterError
from ..optimizers import averaged
from ..settings.config import check_setting, declare
from ..settings.options import add_field_options, given_options
from ..storage.folder import CONFIGURATION
from .energy import WATTS, EnergyMeter
from .estimate import flops_per_token, measured_peak
from .layer_norms import EVERY, LayerWatch
from .loggers import LOGS, Logger, logger_names, require_loggers
from .metrics import read_metrics
from .watch import Watch

if TYPE_CHECKING:
    from ..loop import Trainer
    from .progress import Progress


@dataclass(frozen=True, kw_only=True)
class Following:
    """How a run is monitored. Raises RangeError."""

    max_minutes: float | None = declare(None, "stop and save after X minutes; --resume continues", above=0)
    sample_every: int | None = declare(None, "steps between samples, on the screen and in metrics.jsonl", at_least=1)
    sample_prompt: str | None = declare(None, "text that samples continue (default: the start token, or a line break)")
    sample_tokens: int = declare(100, "tokens in a sample", at_least=1)
    watch_layers: int | None = declare(
        None,
        "record the norms of each layer's gradient, weights and update in metrics.jsonl, every N steps (without N: "
        f"{EVERY})",
        at_least=1,
        without_value=EVERY,
    )
    log_to: str | None = declare(None, f"loggers, besides metrics.jsonl, separated by commas: {', '.join(LOGS)}")
    watts: float = declare(WATTS, "power of a busy core, to estimate the energy where RAPL can't be read", above=0)

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            check_setting("following", setting, getattr(self, setting.name))
        logger_names(self.log_to)
        if self.sample_prompt is not None and self.sample_every is None:
            raise UsageError("--sample-prompt is what the samples of --sample-every continue: give both, or neither")

    def require_loggers(self) -> None:
        """Raise MissingExtraError for the packages that the loggers lack."""
        require_loggers(logger_names(self.log_to))


def add_following_options(parser: argparse.ArgumentParser) -> None:
    """The options of `Following`."""
    add_field_options(parser, Following, "monitoring the run")


def choose_following(options: argparse.Namespace, folder: Path) -> Following:
    """How to monitor a run: by the options and, with --resume, otherwise as the run in `folder` was."""
    names, stored = {setting.name for setting in dataclasses.fields(Following)}, {}
    if options.resume:
        with contextlib.suppress(OSError, ValueError):  # an older run has no such file
            values = tomllib.loads((folder / CONFIGURATION).read_text(encoding="utf-8"))
            stored = {name: value for name, value in values.items() if name in names}
    return Following(**stored | given_options(options, Following))


def follow(trainer: Trainer, following: Following, tokenizer: Tokenizer, template: Template | None = None) -> None:
    """Attach samples, loggers and the time limit to a trainer. template: wraps --sample-prompt. Raises UsageError."""
    prompt = None
    if following.sample_every is not None:
        if not hasattr(trainer.model, "generate"):
            raise UsageError("--sample-every is for models that write text, and this one does not: leave it out")
        prompt = _prompt(following.sample_prompt, tokenizer, template)
    loggers = [Logger(name, trainer) for name in logger_names(following.log_to)]
    trainer.callbacks += loggers
    trainer.watch = Follower(following, tokenizer, prompt, loggers)


def _prompt(text: str | None, tokenizer: Tokenizer, template: Template | None) -> np.ndarray:
    """The prompt of the samples, as ids (T,)."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    try:
        if template is not None:
            return with_start(tokenizer, encode(tokenizer, template.opening("", text or "")))
        if text:
            return with_start(tokenizer, tokenizer.encode(text))
        return np.array([start]) if start is not None else tokenizer.encode("\n")
    except UnknownCharacterError as error:
        if text:
            raise UsageError(
                f"--sample-prompt: the character {error.character!r} is not in the vocabulary of this run: leave it out"
            ) from error
        return np.array([0])  # a text of a single line: its first character


class Follower(Watch):
    """Measures speed and energy, writes samples, and ends the run when its time is up."""

    def __init__(
        self,
        following: Following,
        tokenizer: Tokenizer,
        prompt: np.ndarray | None = None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        self.following, self.tokenizer, self.prompt, self.loggers = following, tokenizer, prompt, loggers
        self.layers = Watch() if following.watch_layers is None else LayerWatch(following.watch_layers)
        self.layers_every = following.watch_layers
        self.takes_late = following.watch_layers is None
        self.peak = 0.0
        self._end = float("inf")
        self._step_begin = self._step_time = 0.0  # seconds in steps since the last record
        self._steps = 0
        self._overall = [0, 0.0]  # steps and the seconds in them, of this session

    def begin(self, trainer: Trainer, progress: Progress) -> None:
        config, model = trainer.config, trainer.model
        self._begin, self._first = time.monotonic(), trainer.state.step
        self.layers.begin(trainer, progress)
        for logger in self.loggers:
            logger.begin = self._first
        if self.following.max_minutes is not None:
            self._end = self._begin + 60 * self.following.max_minutes
        self._tokens = config.gradient_accumulation * trainer.objective.tokens
        flops = flops_per_token(model, -(-trainer.objective.tokens // config.batch_size))
        self._flops = None if flops is None else flops * self._tokens
        self.meter = EnergyMeter(trainer.parameters[0].backend, self.following.watts)
        self.meter.before = _energy_before(trainer.report.metrics.path, self.meter.name)

    @property
    def over(self) -> str:
        if time.monotonic() < self._end:
            return ""
        return f"when the {self.following.max_minutes:g} minutes of max_minutes were over,"

    def before_step(self) -> None:
        self._step_begin = time.perf_counter()

    def before_update(self, trainer: Trainer) -> None:
        self.layers.before_update(trainer)

    def after_step(self, trainer: Trainer) -> list[tuple[dict[str, Any], str]]:
        found = self.layers.after_step(trainer)
        self._step_time += time.perf_counter() - self._step_begin
        self._steps += 1
        every, step = self.following.sample_every, trainer.state.step
        if every is None or step % every:
            return found
        sample = self._sample(trainer)
        return [*found, ({"step": step, "sample": sample}, f"step {step}, a sample: {sample}")]

    def _sample(self, trainer: Trainer) -> str:
        """A text from the weights that an evaluation would see. The same step gives the same text."""
        assert self.prompt is not None
        model, seed = trainer.model, trainer.config.seed
        with model.in_mode(False), averaged(trainer.average):
            pieces = stream_text(model, self.tokenizer, self.prompt, self.following.sample_tokens, seed=seed)  # type: ignore[arg-type]
            return (self.following.sample_prompt or "") + "".join(pieces)

    def figures(self, trainer: Trainer) -> dict[str, Any]:
        steps, seconds = self._steps, max(self._step_time, 1e-9)
        self._overall[0] += steps
        self._overall[1] += seconds
        self._steps, self._step_time = 0, 0.0
        found = {"tokens_per_second": round(steps * self._tokens / seconds, 1)}
        if self._flops is not None:
            found["mfu"] = round(steps * self._flops / seconds / self._measured_peak(trainer), 4)
        found["seconds_left"] = round(self._seconds_left(trainer), 1)
        return found | {self.meter.name: float(f"{self.meter.watt_hours():.4g}")}

    def _measured_peak(self, trainer: Trainer) -> float:
        """The peak of all processes. Measured when it is first needed, which is after the first lines of the run."""
        if self.peak == 0.0:
            backend, dtype = trainer.parameters[0].backend, trainer.config.dtype
            self.peak = trainer.share.size * measured_peak(backend, dtype, get_num_threads())
        return self.peak

    def _seconds_left(self, trainer: Trainer) -> float:
        """At the pace of this session, evaluations and checkpoints included."""
        now, done = time.monotonic(), trainer.state.step - self._first
        return min((now - self._begin) / done * (trainer.config.steps - trainer.state.step), max(0.0, self._end - now))

    def end(self, trainer: Trainer, progress: Progress) -> None:
        steps, seconds = self._overall[0] + self._steps, self._overall[1] + self._step_time
        if not steps:
            return
        words = f"{steps * self._tokens / seconds:,.0f} tokens/s"
        if self._flops is not None:
            peak = self._measured_peak(trainer)
            share = steps * self._flops / seconds / peak
            words += f", {share:.0%} of the peak of {peak / 1e9:,.0f} GFLOP/s measured in a matrix product"
        words += f"; {self.meter.watt_hours():.3g} Wh ({self.meter.source})"
        progress.line(trainer.state.step, words)

    def close(self) -> None:
        self.layers.close()
        for logger in self.loggers:
            logger.close()


def _energy_before(metrics: Path, name: str) -> float:
    """The energy that earlier sessions used, from the last record that has it."""
    found = 0.0
    with contextlib.suppress(UsageError, OSError):
        for record in read_metrics(metrics):
            if isinstance(record.get(name), (int, float)):
                found = record[name]
    return found
