"""Export the model of a run into the run's own folder, so that transformers and other programs can load it.

A trainer that is given the tokenizer writes the tokenizer's files and generation_config.json at the start, so that
tinygpt can load the folder during the run. At the end it writes the best weights as model.safetensors with a
config.json, which makes the folder a GPT-2 directory. tinygpt itself keeps reading the checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checkpoint import read_weights
from ...classifier import GPTForSequenceClassification
from ...errors import UsageError
from ...interop.classifier import save_classifier, settings_of
from ...interop.config import CONFIG, GENERATION
from ...interop.packed_run import is_packed
from ...interop.saving import generation_of, save, token_ids, write_json
from ...interop.weights import SINGLE
from ...nn.lora import lora_of, merged_state, without_lora
from ...tokenizers import Tokenizer
from ..monitoring.progress import Progress
from .folder import RunFolder

if TYPE_CHECKING:
    from ..loop import Trainer


def prepare(model: Any, tokenizer: Tokenizer, folder: RunFolder) -> None:
    """Prepare a run to export its model with this tokenizer. Raises UsageError if the vocabulary is too small."""
    if tokenizer.ids_of_texts > model.config.vocab_size:
        raise UsageError(
            f"Trainer: the tokenizer has {tokenizer.ids_of_texts} tokens, but the model has only "
            f"{model.config.vocab_size}: they do not belong together"
        )
    folder.exports_model = True
    if isinstance(model.generation_config, Mapping):
        model.generation_config = token_ids(tokenizer) | dict(model.generation_config)


def write_tokenizer(trainer: Trainer) -> None:
    """Write what a loader needs besides the checkpoints. Raises OSError, UsageError."""
    assert trainer.tokenizer is not None
    trainer.tokenizer.save(trainer.folder)
    generation = generation_of(trainer.model)  # type: ignore[arg-type]
    write_json(trainer.folder / GENERATION, generation)
    if isinstance(trainer.model, GPTForSequenceClassification):  # its checkpoints don't hold the names of its labels
        write_json(trainer.folder / CONFIG, settings_of(trainer.model, "float32", generation))


def remove_model(folder: Path) -> None:
    """Remove exported weights that are no longer the best: a run that is stopped now would leave outdated ones."""
    (folder / SINGLE).unlink(missing_ok=True)


def write_model(trainer: Trainer, progress: Progress) -> None:
    """Write the best weights for other programs. If their format can't hold the model, a line says so: no error."""
    if is_packed(trainer.model):
        base = trainer.model.source or "its base"
        progress.line(
            trainer.state.step, f"the run holds its adapter, for {base}: `tinygpt convert` writes it for PEFT"
        )
        return
    try:
        best = merged(trainer, trainer.checkpoints.load("best", read_weights).model)
        plain: Any = without_lora(trainer.model)
        if isinstance(plain, GPTForSequenceClassification):
            save_classifier(plain, trainer.folder, best=best)
        else:
            save(plain, trainer.folder, "float32", None, None, best=best)
    except UsageError as error:
        progress.line(trainer.state.step, f"only tinygpt can load the model of this run: {error}")


def merged(trainer: Trainer, weights: dict[str, Any]) -> dict[str, Any]:
    """A run's weights for programs that don't support adapters."""
    lora = lora_of(trainer.model)
    return weights if lora is None else merged_state(weights, lora)
