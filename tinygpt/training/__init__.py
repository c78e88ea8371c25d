"""Training: the loop, its settings, checkpoints, metrics, evaluation.

config = TrainingConfig(steps=2000, batch_size=12, lr=1e-3)
trainer = Trainer(model, train_tokens, validation_tokens, config, "out/run")
result = trainer.run()                              # progress bar, metrics.jsonl, checkpoints, loss_curve.png
loss = evaluate(model, validation_tokens)           # over the whole text
"""

from __future__ import annotations

from .checkpoint import Checkpoint, CheckpointFolder, read_checkpoint
from .config import CHANGEABLE, PRESETS, Preset, TrainingConfig
from .evaluation import FixedPart, evaluate, mean_loss
from .folder import RunFolder
from .interrupt import StopRequest
from .loop import DivergedError, Trainer, TrainingResult
from .loss_scale import LossScale
from .metrics import MetricsFile, read_metrics
from .picture import draw_loss_curve
from .run import Settings, add_run_options, choose_settings, describe_run, load_model, rehearse
from .text import Text, prepare_text

__all__ = [
    "CHANGEABLE", "PRESETS", "Checkpoint", "CheckpointFolder", "DivergedError", "FixedPart", "LossScale",
    "MetricsFile",
    "Preset", "RunFolder", "Settings", "StopRequest", "Text", "Trainer", "TrainingConfig", "TrainingResult",
    "add_run_options", "choose_settings", "describe_run", "draw_loss_curve", "evaluate", "load_model", "mean_loss",
    "prepare_text", "read_checkpoint", "read_metrics", "rehearse",
]  # fmt: skip
