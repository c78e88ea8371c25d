"""Training: the loop, its settings, checkpoints, metrics, evaluation.

config = TrainingConfig(steps=2000, batch_size=12, lr=1e-3)
trainer = Trainer(model, train_tokens, validation_tokens, config, "out/run")
result = trainer.run()                              # progress bar, metrics.jsonl, checkpoints, loss_curve.png
loss = evaluate(model, validation_tokens)           # over the whole text

| file or folder | contents |
|---|---|
| `loop` | the training loop |
| `objective`, `freezing` | what a run learns: its batches, loss and evaluation; frozen parameters |
| `step/` | how a step is taken: accumulation, plans, CUDA graphs, loss scaling, the share of each process |
| `optimizers` | the optimizer, its schedule and the average of the weights, from the settings |
| `divergence`, `interrupt`, `urgent`, `result` | non-finite numbers; signals; how a run ended |
| `evaluation` | the loss on text that the model was not trained on |
| `evaluations`, `final_evaluation` | during the run, of the weights so far; at its end, of the best weights |
| `run` | the parts of a run of `tinygpt train`: model, trainer, summary, final loss |
| `pretrained`, `adapters` | starting from a pretrained model; LoRA |
| `settings/` | the settings of a run: declared, chosen, written as a TOML file |
| `epochs` | --epochs, and the report on padding and packed rows |
| `text/` | the text of a run: its files, tokenizer and token file |
| `storage/` | the run's folder: its checkpoints, and the model for other programs |
| `monitoring/` | progress, metrics, samples, loggers, energy |
| `trials/` | around the run: --dry-run, --lr-find, --sweep |
| `finetuning/` | the runs of `tinygpt finetune`: its rows and tasks |
"""

from __future__ import annotations

from .. import checkpoint
from ..checkpoint import Checkpoint, CheckpointFolder, read_checkpoint
from .divergence import DivergedError
from .epochs import ask_for_epochs, describe_batches, with_epochs
from .evaluation import FixedBatches, evaluate, mean_loss
from .freezing import freeze
from .interrupt import StopRequest
from .loop import Trainer
from .monitoring.metrics import MEASURED, MetricsFile, read_metrics
from .monitoring.picture import draw_loss_curve
from .objective import Objective, TextObjective
from .pretrained import Start, start_from
from .result import CallbackError, TrainingResult
from .run import describe_run, make_model, make_trainer, rehearse, train_and_evaluate
from .settings.choose import Settings, add_run_options, add_start_options, choose_settings, run_folder
from .settings.config import CHANGEABLE, TrainingConfig
from .settings.presets import PRESETS, Preset
from .step.loss_scale import LossScale
from .storage.folder import RunFolder
from .text.prepare import Text, prepare_text

__all__ = [
    "CHANGEABLE", "MEASURED", "PRESETS", "CallbackError", "Checkpoint", "CheckpointFolder", "DivergedError",
    "FixedBatches", "LossScale", "MetricsFile", "Objective", "Preset", "RunFolder", "Settings", "Start",
    "StopRequest", "Text", "TextObjective", "Trainer", "TrainingConfig", "TrainingResult", "add_run_options",
    "add_start_options", "ask_for_epochs", "checkpoint", "choose_settings", "describe_batches", "describe_run",
    "draw_loss_curve", "evaluate", "freeze", "make_model", "make_trainer", "mean_loss", "prepare_text",
    "read_checkpoint", "read_metrics", "rehearse", "run_folder", "start_from", "train_and_evaluate", "with_epochs",
]  # fmt: skip
