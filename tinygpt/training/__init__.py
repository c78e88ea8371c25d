"""Training: the loop, its settings, checkpoints, metrics, evaluation.

config = TrainingConfig(steps=2000, batch_size=12, lr=1e-3)
trainer = Trainer(model, train_tokens, validation_tokens, config, "out/run")
result = trainer.run()                              # progress bar, metrics.jsonl, checkpoints, loss_curve.png
loss = evaluate(model, validation_tokens)           # over the whole text

| file | what is in it |
|---|---|
| `loop` | the training loop |
| `settings`, `config`, `options` | what can be set; a run's settings, from the command line or its checkpoint |
| `text` | the text of a run: its tokenizer, and its ids on the disk |
| `run` | a run from there to the loss of its best weights |
| `folder` | what a run may touch |
| `accumulation`, `graph`, `loss_scale` | the gradient of a step of several batches; CUDA graphs; what float16 needs |
| `divergence`, `vocabulary` | numbers that are not finite, ids that the model lacks |
| `evaluation` | the loss on the validation text |
| `saving`, `state` | a run as a checkpoint (`tinygpt/checkpoint.py`), and back; what is checked before |
| `reporting`, `metrics`, `picture`, `progress` | what is told, written down, drawn and shown |
| `interrupt`, `outcome` | signals; where a run is and how it ended |
"""

from __future__ import annotations

from ..checkpoint import Checkpoint, CheckpointFolder, read_checkpoint
from .config import CHANGEABLE, PRESETS, Preset, TrainingConfig
from .divergence import DivergedError
from .evaluation import FixedBatches, evaluate, mean_loss
from .folder import RunFolder
from .interrupt import StopRequest
from .loop import Trainer
from .loss_scale import LossScale
from .metrics import MetricsFile, read_metrics
from .outcome import CallbackError, TrainingResult
from .picture import draw_loss_curve
from .run import describe_run, make_trainer, rehearse, train_and_evaluate
from .settings import Settings, add_run_options, choose_settings
from .text import Text, prepare_text

__all__ = [
    "CHANGEABLE", "PRESETS", "CallbackError", "Checkpoint", "CheckpointFolder", "DivergedError", "FixedBatches",
    "LossScale", "MetricsFile", "Preset", "RunFolder", "Settings", "StopRequest", "Text", "Trainer", "TrainingConfig",
    "TrainingResult", "add_run_options", "choose_settings", "describe_run", "draw_loss_curve", "evaluate",
    "make_trainer", "mean_loss", "prepare_text", "read_checkpoint", "read_metrics", "rehearse", "train_and_evaluate",
]  # fmt: skip
