"""Training: the loop, its settings, checkpoints, metrics, evaluation.

config = TrainingConfig(steps=2000, batch_size=12, lr=1e-3)
trainer = Trainer(model, train_tokens, validation_tokens, config, "out/run")
result = trainer.run()                              # progress bar, metrics.jsonl, checkpoints, loss_curve.png
loss = evaluate(model, validation_tokens)           # over the whole text

| file | contents |
|---|---|
| `loop` | the training loop |
| `objective`, `freezing` | what a run learns: its batches, loss and evaluation; frozen parameters |
| `settings`, `config`, `presets`, `options` | the settings of a run, from the command line or its checkpoint |
| `configuration` | the settings as a TOML file: --config, and the config.toml of each run |
| `text`, `corpus`, `text_facts` | the text of a run: its tokenizer and token file; its files; text.json |
| `tokenizer_training` | training a BPE or word tokenizer on the training part of the text |
| `token_folder`, `token_cache` | text that was tokenized ahead; a cache of encoded texts |
| `run` | the parts of a run of `tinygpt train`: model, trainer, summary, final loss |
| `finetuning`, `example_rows` | a run of `tinygpt finetune`; its rows |
| `data_facts`, `held_out` | data.json; the run's validation rows, read again |
| `tasks`, `task_options`, `label_task`, `adapters` | what a model is fine-tuned for; classification; LoRA |
| `pretrained`, `export` | starting from a pretrained model; exporting the model for other programs |
| `folder` | the run's folder, and which files it may touch |
| `accumulation`, `graphed_step`, `loss_scale` | gradient accumulation; CUDA graphs; loss scaling for float16 |
| `divergence` | non-finite numbers |
| `optimizers` | the optimizer, its schedule and the average of the weights, from the settings |
| `epochs` | --epochs, and the report on padding and packed rows |
| `evaluation`, `final_evaluation` | the validation loss; that of the best weights at the end |
| `saving`, `state` | saving and restoring a checkpoint (`tinygpt/checkpoint.py`); its progress, checked |
| `reporting`, `metrics`, `picture`, `progress` | output lines, the metrics file, the loss curve, the progress bar |
| `trial`, `dry_run`, `lr_find` | steps on trial: what a run takes, and the learning-rate range test |
| `sweep` | a search over settings: what to try, and its progress |
| `watch`, `following`, `loggers` | monitoring a run: samples, a time limit, TensorBoard and other loggers |
| `estimate`, `energy` | FLOPs and the processor's peak; energy use |
| `interrupt`, `result` | signals; how a run ended |
"""

from __future__ import annotations

from .. import checkpoint
from ..checkpoint import Checkpoint, CheckpointFolder, read_checkpoint
from .config import CHANGEABLE, TrainingConfig
from .divergence import DivergedError
from .epochs import ask_for_epochs, describe_batches, with_epochs
from .evaluation import FixedBatches, evaluate, mean_loss
from .folder import RunFolder
from .freezing import freeze
from .interrupt import StopRequest
from .loop import Trainer
from .loss_scale import LossScale
from .metrics import MEASURED, MetricsFile, read_metrics
from .objective import Objective, TextObjective
from .picture import draw_loss_curve
from .presets import PRESETS, Preset
from .pretrained import Start, start_from
from .result import CallbackError, TrainingResult
from .run import describe_run, make_model, make_trainer, rehearse, train_and_evaluate
from .settings import Settings, add_run_options, add_start_options, choose_settings, run_folder
from .text import Text, prepare_text

__all__ = [
    "CHANGEABLE", "MEASURED", "PRESETS", "CallbackError", "Checkpoint", "CheckpointFolder", "DivergedError",
    "FixedBatches", "LossScale", "MetricsFile", "Objective", "Preset", "RunFolder", "Settings", "Start",
    "StopRequest", "Text", "TextObjective", "Trainer", "TrainingConfig", "TrainingResult", "add_run_options",
    "add_start_options", "ask_for_epochs", "checkpoint", "choose_settings", "describe_batches", "describe_run",
    "draw_loss_curve", "evaluate", "freeze", "make_model", "make_trainer", "mean_loss", "prepare_text",
    "read_checkpoint", "read_metrics", "rehearse", "run_folder", "start_from", "train_and_evaluate", "with_epochs",
]  # fmt: skip
