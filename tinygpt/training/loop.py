"""The training loop.

    trainer = Trainer(model, train_tokens, validation_tokens, TrainingConfig(steps=2000), folder)
    trainer.resume()            # only to continue from the folder's latest checkpoint
    result = trainer.run()

One step: draw a batch, forward, backward, clip, optimizer (`step/`). The batches, their loss and the evaluation are the
objective's (`objective.py`), by default those of a text. Everything that affects a step's result is either a
function of the step index (the batch, the learning rate) or in the checkpoint (weights, optimizer state, the random
state of dropout). So a run that was interrupted, killed or copied elsewhere resumes bit for bit as if it had never
stopped.

With `dtype` "bfloat16" or "float16", steps and evaluations are computed in 16 bits (`GPT.compute_in`). Weights, their
gradients, the optimizer and checkpoints stay in float32, so a run can switch dtype when it is resumed.

A step's checkpoint is saved before the step is reported (`monitoring/`). A closed output stream does not stop a run.
A callback that raises does: the run ends with CallbackError after saving its latest state.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..backends.precision import activation_dtype
from ..checkpoint import Checkpoint, CheckpointFolder, read_weights
from ..interop.packed_run import base_facts, is_packed, load_weights
from ..language_model import LanguageModel
from ..ops.cast import forget_rounded
from ..tokenizers import Tokenizer
from .adapters import require_adapter
from .divergence import DivergedError, diverged
from .evaluations import Evaluations
from .freezing import freeze
from .interrupt import StopRequest
from .monitoring.metrics import training_record
from .monitoring.progress import Progress
from .monitoring.reporting import NoReport, Report
from .monitoring.watch import Watch
from .objective import Objective, objective_of
from .optimizers import make_average, make_optimizer, make_schedule
from .result import CallbackError, TrainingResult, result_of
from .settings.config import TrainingConfig, schedule_notes
from .step.accumulation import Accumulation
from .step.late_steps import steps_of
from .step.loss_scale import LossScale
from .step.share import Share
from .step.steps import Steps
from .storage import export
from .storage.folder import METRICS, PICTURE, RunFolder
from .storage.saving import checkpoint_of, holding, restore, write_checkpoint, writing
from .storage.state import TrainState
from .urgent import UrgentSave


class Trainer:
    """Trains `model` on `train_tokens`, or as `objective` defines, and saves checkpoints and metrics in `folder`.

    `run` makes the folder if there is none. Parameters that are frozen (`requires_grad = False`, or `config.freeze`)
    stay as they are. On a packed model an adapter is trained, and checkpoints hold only what is trained.

    Processes that were started together, by mpirun, share the run: each makes a Trainer with the same arguments, and
    process 0 alone writes to the folder and calls the callbacks (`step/share.py`).

    Without a `resume` before it, `run` refuses a folder that already holds a run or other files with the names of a
    run's files. It always refuses a folder that another run is using.

    train_tokens, validation_tokens: integers, shape (N,), memory-mapped or not; None with an objective. callbacks:
    called with every record of the metrics file, a dictionary: with "step", "loss", "lr", "grad_norm" and more
    (`monitoring/metrics.py`) every `log_every` steps, with "step" and "validation_loss" after an evaluation. One that
    raises ends the run with CallbackError. stream: where to show progress, any object with a `write` method; by default
    sys.stderr or, in a notebook, the cell. tokenizer: the folder then becomes a model that other programs can load:
    tinygpt as soon as it holds a checkpoint, transformers at the end (`storage/export.py`).
    Raises UsageError if a text is shorter than the block, RangeError if it has an id outside the model's vocabulary.
    """

    def __init__(
        self,
        model: LanguageModel,
        train_tokens: np.ndarray | None,
        validation_tokens: np.ndarray | None,
        config: TrainingConfig,
        folder: str | Path | RunFolder,
        callbacks: Sequence[Callable[[dict[str, Any]], None]] = (),
        stream: Any = None,
        *,
        objective: Objective | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.run_folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
        self.model, self.config, self.folder = model, config, self.run_folder.place
        self.objective = objective = objective_of(model, train_tokens, validation_tokens, config, objective)
        self.batches, self.validation = objective.batches, objective.validation
        self.tokenizer = tokenizer
        if tokenizer is not None:
            export.prepare(model, tokenizer, self.run_folder)
        require_adapter(model)
        freeze(model, config.freeze)
        self.packed_base = base_facts(model) if is_packed(model) else None
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.parameters = [parameter for _, parameter in trained]
        self.share = Share(config, self.parameters, model.generator)
        objective.team = self.share.team
        self.optimizer = self.share.optimizer(make_optimizer(config, trained), config)
        self.average = make_average(config, trained)
        self.use(config)
        activation_dtype(config.dtype, self.parameters[0].backend)  # raises now rather than at the first step
        self.loss_scale = LossScale(config.dtype)
        self.accumulation = Accumulation(self)
        self.steps = Steps(self)
        self.evaluations = Evaluations(self)
        self.state = TrainState()
        self.checkpoints = CheckpointFolder(self.folder)
        report = Report if self.share.leads else NoReport
        self.report = report(self.folder / METRICS, self.folder / PICTURE, callbacks)
        self.callbacks = self.report.callbacks
        self.stream = self.share.stream(stream)
        self.urgent = UrgentSave(self)
        self.watch = Watch()  # hooks that monitor the run
        self.over = ""  # why it ends early, if it does
        self.saved_at = -1
        self.changed: dict[str, tuple[Any, Any]] = {}  # settings that `resume` changed: name -> (before, now)
        self.grad_norm: float | None = 0.0  # of the last step; None if that was skipped

    def use(self, config: TrainingConfig) -> None:
        """Use these settings and their learning rate schedule."""
        self.config = config
        for module in self.model.modules():
            if config.recompute and isinstance(module, LanguageModel):
                module.recompute = True
        self.schedule = make_schedule(config)

    # The loop -------------------------------------------------------------------------------------

    def run(self) -> TrainingResult:
        """Train until the last step, early stopping or a signal. The folder then holds a checkpoint of the result.

        The model is put in training mode, except modules that are in eval mode while the model itself is not: they are
        frozen and stay so. Afterwards every module is back in its previous mode. Raises DivergedError, after which the
        last good checkpoint is still there; CallbackError, after saving the latest state; UsageError if the folder
        can't be written, or if the learning rate of all remaining steps is 0.
        """
        config, state = self.config, self.state
        self.share.require_same_run(self)
        notes = [*self._changes(), *schedule_notes(config, state.step)]
        begin, tokens_per_step = state.step, config.gradient_accumulation * self.objective.tokens
        progress = Progress(config.steps, begin, tokens_per_step, self.stream)
        self.accumulation.graphed_step.say = self.evaluations.say = lambda words: progress.line(state.step, words)
        self.share.ask_over = lambda: self.watch.over
        held = holding(self) if self.share.leads else contextlib.nullcontext()
        with self.model.in_mode(True), self.share.listening() as stop, held, self.model.compute_in(config.dtype):
            self.steps = steps_of(self)
            try:
                with writing(self):
                    state.metrics_lines = self.report.metrics.restart(state.metrics_lines)
                    if self.tokenizer is not None:
                        export.write_tokenizer(self)
                if self.changed:
                    self.record({"step": begin, "changed": {name: list(pair) for name, pair in self.changed.items()}})
                    self.changed = {}
                for words in notes:
                    progress.line(begin, f"step {begin}: {words}")
                self.watch.begin(self, progress)
                with self.urgent.listening():
                    self._train(stop, progress, tokens_per_step)
                self.watch.end(self, progress)
                if self.tokenizer is not None and stop.signal is None:
                    export.write_model(self, progress)
            except DivergedError:
                with contextlib.suppress(CallbackError):  # DivergedError is the more important one
                    self.report.tell(progress)  # the last good steps
                raise
            finally:
                with contextlib.suppress(OSError):  # all lines have been written already
                    self.report.metrics.close()
                self.watch.close()
                progress.close()
                forget_rounded(self.model, self.optimizer)
        return result_of(self, begin, stop.signal)  # signals are no longer caught, so Ctrl-C can interrupt the drawing

    def _train(self, stop: StopRequest, progress: Progress, tokens_per_step: int) -> None:
        config, state = self.config, self.state
        begin = time.perf_counter() - state.seconds
        while True:
            state.seconds = time.perf_counter() - begin
            self.over = over = self.watch.over if self.share.size == 1 else self.share.over
            improved = self.evaluations.due(bool(over)) and self.evaluations.evaluate(stop)
            ended = state.step >= config.steps or 0 < config.patience <= state.without_improvement or stop.requested
            ended = ended or bool(over)
            if stop.requested and self.share.from_first(lambda: self.run_folder.replaces):
                raise KeyboardInterrupt
            if improved or ended or (state.step % config.checkpoint_every == 0 and self.saved_at != state.step):
                self.save(best=improved)
            self._tell(progress)
            if ended:
                return
            if stop.requested:  # during the callbacks
                return self._save_once()
            self.watch.before_step()
            loss = self.steps.step()
            found = self.watch.after_step(self)
            progress.update(state.step, loss)
            if state.step % config.log_every == 0:
                state.seconds = time.perf_counter() - begin
                with self.urgent.changing():
                    self._log_training(tokens_per_step)
            for record, words in found:
                self.record(record, words)

    def _changes(self) -> list[str]:
        return [f"{name} is now {now}; it was {before}" for name, (before, now) in self.changed.items()]

    # Metrics --------------------------------------------------------------------------------------

    def _log_training(self, tokens_per_step: int) -> None:
        self.steps.settle()
        self.record(training_record(self, tokens_per_step))

    def record(self, record: dict[str, Any], words: str = "") -> None:
        """Write a record of the metrics file. words: its line on the screen, if any."""
        with writing(self):
            self.report.record(record, words)
        self.state.metrics_lines += 1

    def _tell(self, progress: Progress) -> None:
        try:
            self.report.tell(progress)
        except CallbackError:
            if self.share.sharded is None:  # otherwise the others have parts of the state
                self._save_once(alone=True)
            raise

    # Checkpoints ----------------------------------------------------------------------------------

    def save(self, best: bool = False, alone: bool = False) -> None:
        """Save the current state as the folder's latest checkpoint and, with best=True, as its best one.

        All processes of a run call this together, and process 0 writes; with `alone`, only process 0 calls it.
        """
        self.steps.settle()
        self.urgent.wait()
        checkpoint = checkpoint_of(self)
        if not alone:
            self.share.require_same_weights(checkpoint.model)
        for name, array in checkpoint.model.items():
            if not np.isfinite(array).all():  # must not replace a good checkpoint
                raise diverged(self, f"the weights {name} are not finite")
        if self.share.leads:
            with self.urgent.changing():  # not while the urgent save writes
                write_checkpoint(self, checkpoint, best)
                self.saved_at = self.state.step
        self.saved_at = self.state.step

    def save_as_before(self, random_state: Any) -> None:
        """Save the state before a step that failed. A failure to save is ignored, so as not to hide why it failed."""
        self.optimizer.zero_grad()
        self.model.generator.load_state_dict(random_state)
        if self.state.step > 0 and self.share.size == 1:  # the others know nothing of it
            with contextlib.suppress(Exception):
                self._save_once()

    def _save_once(self, alone: bool = False) -> None:
        if self.saved_at != self.state.step:
            self.save(alone=alone)

    def resume(self, checkpoint: Checkpoint | None = None) -> None:
        """Restore the folder's latest checkpoint, or the one given.

        A setting that is derived from others by default (`decay_steps` from `steps`) keeps its value from the
        checkpoint. Raises CheckpointError if there is no checkpoint, if it is damaged, or if it is from a different
        run: another model, another text, or other settings besides `CHANGEABLE` ones.
        """
        restore(self, checkpoint if checkpoint is not None else self.share.checkpoint_of_first(self.checkpoints.load))

    def load_best(self) -> int:
        """Load the weights of the best evaluation, which `tinygpt sample` uses; return their step."""
        step = self.share.from_first(lambda: int(self.checkpoints.entry("best")["step"]))
        if step != self.state.step or self.average is not None:  # the model has the weights, not their average
            best = self.share.checkpoint_of_first(lambda: self.checkpoints.load("best", read_weights))
            load_weights(self.model, best.model)
        return step
