"""The training loop.

    trainer = Trainer(model, train_tokens, validation_tokens, TrainingConfig(steps=2000), folder)
    trainer.resume()            # only to go on from the folder's latest checkpoint
    result = trainer.run()

One step: draw a batch, forward, backward, clip, AdamW. Everything that decides its outcome is either a function of
the step's number (the batch, the learning rate) or in the checkpoint (weights, optimizer state, the random state of
dropout). So a run that was interrupted, killed or copied to another place goes on bit for bit as if nothing had been.

With `dtype` "bfloat16" or "float16" steps and evaluations are computed in 16 bits (`GPT.compute_in`). Weights, their
gradients, the optimizer and checkpoints are in float32 as ever: a run can be moved from one dtype to another. In
float16 the loss is scaled, and a step that this makes infinite is left out (`loss_scale.py`).

The loss is read at every step, because an update from a loss that is no number would ruin the weights. That costs
nothing: the norm of the gradients, read just before, has waited for the same results.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import backends
from ..backends.precision import activation_dtype
from ..data import RandomBatches, SequentialBatches
from ..errors import CheckpointError, MissingExtraError, UsageError
from ..function import NonFiniteError, detect_anomaly
from ..gpt import GPT
from ..optim import AdamW, clip_coefficient, grad_norm, schedules
from ..tensor import Tensor
from .checkpoint import Checkpoint, CheckpointFolder, fingerprint, require_same
from .config import CHANGEABLE, TrainingConfig
from .evaluation import Batches, FixedPart, mean_loss
from .folder import METRICS, PICTURE, RunFolder
from .graph import Passes
from .interrupt import StopRequest
from .loss_scale import LossScale
from .metrics import MetricsFile
from .picture import draw_loss_curve
from .progress import Progress
from .state import check_state


class DivergedError(ArithmeticError):
    """The loss, a gradient or a weight is not finite. The message says at which step and what made it so."""


class _Stopped(Exception):
    """Leaves an evaluation when the user asks to stop."""


@dataclass
class Progression:
    """Where a run is: what a checkpoint keeps beside arrays and random state."""

    step: int = 0  # updates made; also the number of the next batch
    evaluated_at: int = -1  # the step of the last evaluation
    validation_loss: float | None = None  # its result
    best_loss: float | None = None
    best_step: int = -1
    without_improvement: int = 0  # evaluations since the best
    losses: list[float] = dataclasses.field(default_factory=list)  # of the steps since the last line of metrics
    metrics_lines: int = 0
    seconds: float = 0.0  # spent training, over all sittings


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended. signal: of the interruption, or None. picture: a sentence about the loss curve."""

    step: int
    validation_loss: float | None
    best_loss: float | None
    best_step: int
    seconds: float
    stopped_early: bool
    signal: int | None
    picture: str

    def summary(self) -> str:
        """Two sentences for the end of a run."""
        end = "stopped early, with no better evaluation for a while," if self.stopped_early else "finished"
        facts = [f"Training {end} at step {self.step} after {self.seconds:.0f} s"]
        if self.best_loss is not None:
            facts.append(f"the best validation loss was {self.best_loss:.4f} at step {self.best_step}")
        return "; ".join([*facts, self.picture]) + "."


class Trainer:
    """Trains `model` on `train_tokens` and keeps checkpoints and metrics in `folder`, which must exist.

    A folder that holds a run already, or other files with the names of a run's, is refused by `run`, unless `resume`
    came before it; so is one in which another run is at work.

    train_tokens, validation_tokens: integers, shape (N,), memory-mapped or not. callbacks: called with every record of
    the metrics file. stream: where the progress is shown, by default sys.stderr.
    Raises UsageError when a text is shorter than the block.
    """

    def __init__(
        self,
        model: GPT,
        train_tokens: np.ndarray,
        validation_tokens: np.ndarray,
        config: TrainingConfig,
        folder: str | Path | RunFolder,
        callbacks: Sequence[Callable[[dict[str, Any]], None]] = (),
        stream: Any = None,
    ) -> None:
        self.run_folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
        self.model, self.config, self.folder = model, config, self.run_folder.place
        self.text = {"train": fingerprint(train_tokens), "validation": fingerprint(validation_tokens)}
        block_size = model.config.block_size
        self.batches = RandomBatches(train_tokens, config.batch_size, block_size, config.seed)
        self.validation: Batches
        if config.eval_batches:
            self.validation = FixedPart(validation_tokens, config.batch_size, block_size, config.eval_batches)
        else:
            self.validation = SequentialBatches(validation_tokens, config.batch_size, block_size)
        self.parameters = list(model.parameters())
        self.optimizer = AdamW(
            model.named_parameters(), config.lr, (config.beta1, config.beta2), weight_decay=config.weight_decay
        )
        self.schedule = schedules.make(
            config.schedule, config.lr, config.min_lr or 0.0, config.warmup_steps, config.decay_steps or config.steps
        )
        activation_dtype(config.dtype, self.parameters[0].backend)  # refused now, not at the first step
        self.loss_scale = LossScale(config.dtype)
        self.passes = Passes(model, self._pass, config.cuda_graphs)
        self.at = Progression()
        self.checkpoints = CheckpointFolder(self.folder)
        self.metrics = MetricsFile(self.folder / METRICS)
        self.callbacks = list(callbacks)
        self.stream = stream
        self.saved_at = -1
        self.grad_norm: float | None = 0.0  # of the last step; None when it was left out

    # The loop -------------------------------------------------------------------------------------

    def run(self) -> TrainingResult:
        """Train until the last step, early stopping or a signal. The folder then holds the result's checkpoint.

        Raises DivergedError, with the last good checkpoint kept, and UsageError where the folder can't be written.
        """
        config, at = self.config, self.at
        tokens_per_step = config.batch_size * config.gradient_accumulation * self.model.config.block_size
        progress = Progress(config.steps, at.step, tokens_per_step, self.stream)
        begin = time.perf_counter() - at.seconds
        self.model.train()
        self.passes.say = lambda words: progress.line(at.step, words)
        with (
            StopRequest() as stop, self._explained_os_errors(), self.run_folder.held(resumed=self.saved_at >= 0),
            self.model.compute_in(config.dtype),
        ):  # fmt: skip
            at.metrics_lines = self.metrics.restart(at.metrics_lines)
            try:
                while True:
                    at.seconds = time.perf_counter() - begin
                    improved = self._evaluation_due() and self._evaluate(stop, progress)
                    ended = at.step >= config.steps or self._out_of_patience() or stop.requested
                    if stop.requested and self.run_folder.replaces:  # before it could begin: the older run stays
                        raise KeyboardInterrupt
                    if improved or ended or (at.step % config.checkpoint_every == 0 and self.saved_at != at.step):
                        self.save(best=improved)
                    if ended:
                        break
                    loss = self._step()
                    progress.update(at.step, loss)
                    if at.step % config.log_every == 0:
                        at.seconds = time.perf_counter() - begin
                        self._log_training(tokens_per_step)
            finally:
                self.metrics.close()
                progress.close()
        with self._explained_os_errors():  # no signal is held back any more: what takes time now can be stopped at once
            return self._result(stop.signal)

    def _step(self) -> float:
        """One update of the weights; returns the loss before it."""
        config, at = self.config, self.at
        random_state = self.model.generator.state_dict()
        try:
            with detect_anomaly(config.detect_anomaly):
                loss, norm = self._gradients()
        except NonFiniteError as error:
            raise self._diverged(str(error)) from error
        self.optimizer.lr = self.schedule(at.step)
        if math.isfinite(loss) and math.isfinite(norm):
            self._update(norm)
            self.grad_norm = norm
        elif math.isfinite(loss) and self.loss_scale.lower():
            self.grad_norm = None
        else:
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradients' norm is {norm}"
            raise self._diverged(f"{what}; {self._first_cause(random_state)}")
        self.optimizer.zero_grad()
        at.step += 1
        at.losses.append(loss)
        return loss

    def _update(self, norm: float) -> None:
        """Clip and change the weights; norm: of the mean of the batches' gradients."""
        scale = 1.0 / (self.config.gradient_accumulation * self.loss_scale.scale)
        if self.config.grad_clip > 0:
            scale *= clip_coefficient(norm, self.config.grad_clip)
        self.optimizer.step(grad_scale=scale)
        self.loss_scale.raise_after_good_step()

    def _gradients(self) -> tuple[float, float]:
        """Add up the gradients of the step's batches, times the loss scale; (mean loss, norm of the mean gradient)."""
        count = self.config.gradient_accumulation
        losses = []
        for index in range(count):
            inputs, targets = self.batches.batch(self.at.step * count + index)
            losses.append(self.passes(inputs, targets, self.loss_scale.scale))
        norm = grad_norm(self.parameters) / (count * self.loss_scale.scale)
        return sum(float(loss.item()) for loss in losses) / count, norm

    def _pass(self, inputs: np.ndarray, targets: np.ndarray, scale: float) -> Tensor:
        """The loss of one batch; its gradients, times `scale`, are added to the parameters'."""
        loss = self.model.loss(inputs, targets)
        loss.backward(scale)
        return loss

    def _first_cause(self, random_state: Any) -> str:
        """Run the step that went wrong once more, with the same batch and random numbers, looking at every array."""
        for name, parameter in self.model.named_parameters():
            if not bool(backends.array_module(parameter.data).isfinite(parameter.data).all()):
                return f"the weights {name} are not finite after the update before it"
        self.optimizer.zero_grad()
        self.model.generator.load_state_dict(random_state)
        try:
            with detect_anomaly():
                self._gradients()
        except NonFiniteError as error:
            return str(error)
        return "no single operation produced it: the gradients are finite, but the sum of their squares is not"

    def _diverged(self, cause: str) -> DivergedError:
        kept = f"the checkpoint of step {self.saved_at} is kept" if self.saved_at >= 0 else "no checkpoint was made yet"
        return DivergedError(
            f"step {self.at.step} can't be computed: {cause}; {kept} in {self.run_folder}: "
            "a lower lr or a longer warm-up may help"
        )

    # Evaluation and metrics -----------------------------------------------------------------------

    def _evaluation_due(self) -> bool:
        at = self.at
        return at.evaluated_at != at.step and (at.step % self.config.eval_every == 0 or at.step >= self.config.steps)

    def _evaluate(self, stop: StopRequest, progress: Progress) -> bool:
        """Whether the validation loss is the best so far."""

        def until_stopped() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for batch in self.validation:
                if stop.requested:
                    raise _Stopped
                yield batch

        try:
            loss = mean_loss(self.model, until_stopped())
        except _Stopped:  # a resumed run evaluates at this step again
            return False
        at = self.at
        if not math.isfinite(loss):
            raise self._diverged(f"the validation loss is {loss}")
        at.evaluated_at, at.validation_loss = at.step, loss
        self._record({"step": at.step, "validation_loss": loss})
        improved = at.best_loss is None or loss < at.best_loss
        if improved:
            at.best_loss, at.best_step, at.without_improvement = loss, at.step, 0
        else:
            at.without_improvement += 1
        progress.line(at.step, f"step {at.step}: validation loss {loss:.4f}{' (best so far)' if improved else ''}")
        return improved

    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.at.without_improvement

    def _log_training(self, tokens_per_step: int) -> None:
        at = self.at
        record = {
            "step": at.step, "loss": sum(at.losses) / len(at.losses), "lr": self.optimizer.lr,
            "grad_norm": self.grad_norm, "tokens": at.step * tokens_per_step, "seconds": round(at.seconds, 3),
        }  # fmt: skip
        if self.loss_scale.active:
            record["loss_scale"] = self.loss_scale.scale
        at.losses.clear()
        self._record(record)

    def _record(self, record: dict[str, Any]) -> None:
        self.metrics.append(record)
        self.at.metrics_lines += 1
        for callback in self.callbacks:
            callback(record)

    def _result(self, signal: int | None) -> TrainingResult:
        at = self.at
        picture = ""
        if signal is None:
            try:
                draw_loss_curve(self.folder / METRICS, self.folder / PICTURE)
                picture = f"the loss curve is in {self.folder / PICTURE}"
            except (MissingExtraError, CheckpointError) as error:
                picture = f"no picture of the loss curve was drawn: {error}"
        early = signal is None and at.step < self.config.steps
        return TrainingResult(
            at.step, at.validation_loss, at.best_loss, at.best_step, at.seconds, early, signal, picture
        )

    # Checkpoints ----------------------------------------------------------------------------------

    def save(self, best: bool = False) -> None:
        """Make the present state the folder's latest checkpoint, and the best one if so told."""
        model = {name: backends.move(array, "numpy") for name, array in self.model.state_dict().items()}
        for name, array in model.items():
            if not np.isfinite(array).all():  # never in place of a good checkpoint
                raise self._diverged(f"the weights {name} are not finite")
        kinds = self.optimizer.state_dict()
        steps = kinds.pop("step")
        optimizer = {
            f"{kind}.{name}": backends.move(array, "numpy")
            for kind, arrays in kinds.items()
            for name, array in arrays.items()
        }
        state = {
            "step": self.at.step,
            "progression": dataclasses.asdict(self.at),
            "generator": self.model.generator.state_dict(),
            "optimizer_steps": steps,
            "model_config": self.model.config.to_dict(),
            "training_config": dataclasses.asdict(self.config),
            "text": self.text,
            "loss_scale": self.loss_scale.state_dict(),
            "backend": self.parameters[0].backend,
        }
        self.metrics.sync()
        self.checkpoints.save(Checkpoint(model, optimizer, state), best)
        self.saved_at = self.at.step
        if self.run_folder.staged:  # a new run that can begin: it takes its place, and an older one's
            self.metrics.close()
            self.folder = self.run_folder.publish()
            self.checkpoints, self.metrics.path = CheckpointFolder(self.folder), self.folder / METRICS

    def resume(self, checkpoint: Checkpoint | None = None) -> None:
        """Go back to the folder's latest checkpoint, or the one given.

        Raises CheckpointError when there is none, when it is damaged, or when it is of another run: another model,
        another text, or settings that differ in more than `CHANGEABLE`.
        """
        checkpoint = checkpoint if checkpoint is not None else self.checkpoints.load("latest")
        state = checkpoint.state
        where = f"the checkpoint of step {checkpoint.step} in {self.folder}"
        check_state(checkpoint, where, Progression)
        require_same(where, state["model_config"], self.model.config.to_dict())
        require_same(where, state["training_config"], dataclasses.asdict(self.config), CHANGEABLE)
        if state["text"] != self.text:
            raise CheckpointError(f"{where} is of another text: the tokens are not those that it was trained on")
        optimizer: dict[str, dict[str, Any]] = {"step": state["optimizer_steps"]}
        for name, array in checkpoint.optimizer.items():
            kind, _, parameter = name.partition(".")
            optimizer.setdefault(kind, {})[parameter] = array
        try:
            self.model.load_state_dict(checkpoint.model)
            self.optimizer.load_state_dict(optimizer)
            self.model.generator.load_state_dict(state["generator"])
            self.loss_scale.load_state_dict(state.get("loss_scale", {}))  # older checkpoints have none
            self.at = Progression(**state["progression"])
        except (UsageError, TypeError, KeyError) as error:
            raise CheckpointError(f"{where} does not fit this version's model: {error}") from error
        self.saved_at = self.at.step

    @contextlib.contextmanager
    def _explained_os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept, then = "nothing was saved", "try again"
            if self.saved_at >= 0 and not self.run_folder.staged:
                kept, then = f"the checkpoint of step {self.saved_at} is intact", "go on with --resume"
            raise UsageError(
                f"cannot write to the folder {self.run_folder}: {error.strerror or error}; {kept}: make room there, or "
                f"allow writing, and {then}"
            ) from error
