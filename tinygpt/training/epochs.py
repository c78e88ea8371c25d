"""`tinygpt train --epochs N`: train on every window of the text N times, instead of for a number of steps.

    add_epoch_options(parser)
    ask_for_epochs(options)                                  # before the settings are chosen: the order is "epochs"
    settings = with_epochs(settings, options.epochs, train_tokens)     # when the text is known: steps follow

The windows of all epochs form one sequence, which is cut into steps of equal size. So the last step of an epoch may
also contain the first windows of the next one (`tinygpt/data/loader.py`), and the last step of the run the first
windows of one more epoch. No window is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import DataLoader
from ..errors import UsageError
from .settings.config import TrainingConfig

if TYPE_CHECKING:
    from .loop import Trainer
    from .settings.choose import Settings

MOST = 1e6  # epochs


def add_epoch_options(parser: argparse.ArgumentParser) -> None:
    words = "train on every window of the text X times, instead of --steps; each epoch is reshuffled"
    parser.add_argument("--epochs", type=float, metavar="X", help=words)


def ask_for_epochs(options: argparse.Namespace) -> None:
    """Set the order of the windows if --epochs is given. Raises UsageError for options that contradict it."""
    if options.epochs is None:
        return
    if "steps" in vars(options):
        raise UsageError("give either --epochs or --steps, not both: the other follows from the length of the text")
    if getattr(options, "order", "epochs") != "epochs":
        raise UsageError("--epochs takes each window once an epoch, and --order random contradicts it: leave one out")
    if not 0 < options.epochs <= MOST:  # false for nan too
        raise UsageError(f"epochs must be above 0 and at most {MOST:,.0f}, not {options.epochs:g}")
    options.order = "epochs"


def with_epochs(settings: Settings, epochs: float | None, train_tokens: np.ndarray) -> Settings:
    """The settings with as many steps as these epochs take; unchanged if `epochs` is None.

    Raises UsageError if a resumed run is already past its end.
    """
    if epochs is None:
        return settings
    training = settings.training
    loader = DataLoader(train_tokens, training.batch_size, settings.model["block_size"], pack=training.pack)
    rows = training.batch_size * training.gradient_accumulation
    steps = max(1, math.ceil(round(epochs * loader.windows_per_epoch, 6) / rows))
    if settings.checkpoint is not None:
        if steps < settings.checkpoint.step:
            raise UsageError(
                f"the run in {settings.folder} is already at step {settings.checkpoint.step}: {epochs:g} epochs would "
                f"end at step {steps}, so give more"
            )
        return dataclasses.replace(settings, training=dataclasses.replace(training, steps=steps))
    values: dict[str, Any] = dataclasses.asdict(training) | dict.fromkeys(training.followed)  # they follow from steps
    return dataclasses.replace(settings, training=TrainingConfig.from_dict(values | {"steps": steps}))


def describe_batches(trainer: Trainer) -> str:
    """A line on the epochs and on the positions that are padding, to print before training; "" if there is none."""
    batches, config = trainer.batches, trainer.config
    facts = []
    if isinstance(batches, DataLoader):
        steps = batches.windows_per_epoch / (config.batch_size * config.gradient_accumulation)
        facts.append(
            f"{config.steps / steps:.2f} epochs of {batches.windows_per_epoch:,} windows, {steps:,.1f} steps each"
        )
    windows: Any = getattr(batches, "windows", None)
    block_size = trainer.model.config.block_size
    if getattr(windows, "padded", False):
        places = windows.count * block_size
        waste = places - windows.target_count
        advice = "" if config.pack or waste < places / 10 else "; --pack puts several documents into a row"
        facts.append(
            f"{waste:,} of {places:,} positions ({waste / places:.1%}) are padding, as documents "
            f"{'do not fill their rows' if config.pack else 'are shorter than the block'}{advice}"
        )
    return f"Rows:  {'; '.join(facts)}" if facts else ""
