"""What a run learns, apart from how it learns it: its batches, the loss of a batch, and how the model is evaluated.

    Trainer(model, train_tokens, validation_tokens, config, folder)          # TextObjective: the next token of a text
    Trainer(model, None, None, config, folder, objective=objective)          # any other

The loop knows nothing of texts, rows or labels. It asks the objective for batches, which are tuples of arrays, and
gives them back to it: to count their targets, to compute their loss, to evaluate. Everything random about a batch must
follow from its index, because a resumed run asks for the remaining batches only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from ..checkpoint import fingerprint
from ..data import DataLoader, RandomBatches, SequentialBatches
from ..data.token_range import first_outside
from ..errors import RangeError, UsageError
from ..tensor import Tensor
from .evaluation import ALONE, FixedBatches, count_targets, mean_loss
from .settings.config import TrainingConfig

Batch = tuple[np.ndarray, ...]


class TrainingBatches(Protocol):
    """The training data as batches: step s consists of batches s * k to s * k + k - 1, k = gradient_accumulation."""

    def batch(self, index: int) -> Batch: ...


class Objective:
    """The base class. Unless overridden, a batch is `(inputs, targets)`, and its loss that of a language model.

    batches: for training. validation: the batches of an evaluation. tokens: the approximate number of tokens in a
    batch, for the displayed speed. data: JSON values that identify the data in a checkpoint; a resumed run must have
    the same ones.
    """

    team = ALONE  # the processes that share an evaluation
    same_shapes = False  # all batches have the same shapes and all targets count: a GPU may record a step once
    other_data = "other data: these are not the rows that it was trained on"  # "the checkpoint is of ..."

    def __init__(
        self, batches: TrainingBatches, validation: Iterable[Any], tokens: int, data: Mapping[str, Any]
    ) -> None:
        self.batches, self.validation, self.tokens, self.data = batches, validation, tokens, dict(data)

    def count(self, batch: Batch) -> float:
        """How many targets a batch has: the weight of its loss among the batches of a step or an evaluation."""
        return count_targets(batch[1])

    def loss(self, model: Any, *batch: np.ndarray) -> Tensor:
        """The mean loss over the targets of a batch."""
        loss: Tensor = model.loss(*batch)
        return loss

    def forward_and_backward(self, model: Any, *batch_and_scale: Any) -> Tensor:
        """The loss of a batch. Adds the gradients of scale * loss to those of the parameters."""
        *batch, scale = batch_and_scale
        loss = self.loss(model, *batch)
        loss.backward(scale)
        return loss

    def evaluate(self, model: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """The metrics of an evaluation, for the metrics file. The best weights have the lowest "validation_loss"."""
        return {"validation_loss": mean_loss(model, batches, self.loss, self.count, self.team)}


class TextObjective(Objective):
    """The next token, at every position of windows of a text: random ones, or all of them once an epoch.

    train_tokens, validation_tokens: integers, (N,). Raises UsageError if a text is shorter than the block, RangeError
    if it has an id outside the model's vocabulary.
    """

    same_shapes = True
    other_data = "another text: these are not the tokens that it was trained on"

    def __init__(
        self, model: Any, train_tokens: np.ndarray, validation_tokens: np.ndarray, config: TrainingConfig
    ) -> None:
        data = {"train": fingerprint(train_tokens), "validation": fingerprint(validation_tokens)}
        T, rows = model.config.block_size, config.batch_size
        make = DataLoader if config.order == "epochs" else RandomBatches
        batches = make(train_tokens, rows, T, config.seed, pack=config.pack)
        validation: Iterable[Batch]
        if config.eval_batches:
            validation = FixedBatches(validation_tokens, rows, T, config.eval_batches)
        else:
            validation = SequentialBatches(validation_tokens, rows, T)
        _check_ids("training", batches.tokens, model.config.vocab_size)
        _check_ids("validation", validation_tokens, model.config.vocab_size)
        super().__init__(batches, validation, rows * T, data)
        self.same_shapes = not batches.padded


def objective_of(
    model: Any, train_tokens: Any, validation_tokens: Any, config: TrainingConfig, given: Objective | None
) -> Objective:
    """The objective given, or that of a text. Raises UsageError unless exactly one of them is given."""
    texts = [tokens for tokens in (train_tokens, validation_tokens) if tokens is not None]
    if len(texts) != (2 if given is None else 0):
        raise UsageError(
            "Trainer: give either train_tokens and validation_tokens, or an objective with None for both of them"
        )
    return given if given is not None else TextObjective(model, train_tokens, validation_tokens, config)


def _check_ids(part: str, tokens: np.ndarray, vocab_size: int) -> None:
    """Raise RangeError if `tokens`, (N,), contain an id that the model does not have."""
    outside = first_outside(tokens, vocab_size)
    if outside is not None:
        raise RangeError(
            f"the {part} tokens contain the id {outside[1]} (at position {outside[0]}), but the model has the ids 0 .. "
            f"{vocab_size - 1}: were they made by another tokenizer? Encode the text again, or make a model with a "
            f"vocab_size of {int(tokens.max()) + 1} or more"
        )
