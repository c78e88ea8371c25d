"""A classifier: a language model's features at the last token, and one linear map to the labels.

    clf = tg.GPTForSequenceClassification.from_pretrained(folder, label_names=["neg", "pos"])
    loss = clf.loss(ids, labels, lengths=lengths)      # ids (B, T), padded on the right; lengths (B,)
    clf.predict(ids, lengths)                          # (B,), the most likely label of each text

    h      = transformer.hidden(ids)                   (B, T, C)
    last   = h[i, lengths[i] - 1]                      (B, C): only the last token has read the whole text
    logits = last @ score.weight.T                     (B, K)

A text's end is given by its length, never by a padding id, which a text may contain or end with. Attention is
causal, so nothing before the end sees the padding, and no mask is needed.

What the labels are (`problem_type`, as in transformers):

| problem_type | labels | loss | `predict` |
|---|---|---|---|
| single_label_classification | (B,) integers below K; -100: left out | cross-entropy | (B,) the likeliest label |
| multi_label_classification | (B, K) numbers from 0 to 1 | binary cross-entropy | (B, K) whether p > 1/2 |
| regression | (B,) numbers if K = 1, else (B, K) | mean squared error, or L1 | the numbers |

The parameters have the names of transformers' GPT2ForSequenceClassification: `transformer.` before the model's own,
and `score.weight` (K, C), without a bias. The features come through `hidden`, so the head sits on any LanguageModel.

Letters: B batch, T time, C channels, K labels.
Source: Radford et al., "Improving Language Understanding by Generative Pre-Training", 2018, section 3.2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from . import backends, nn, ops
from .checks import integer_array, whole_number
from .errors import DtypeError, ShapeError, UsageError
from .gpt import GPT, GPTConfig
from .graph import no_grad
from .labels import (
    MULTI,
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE,
    checked_labels,
    checked_lengths,
    checked_names,
    problem_of,
    without_padding,
)  # fmt: skip
from .language_model import LanguageModel, ModelConfig
from .nn.losses import classification_loss, l1_loss, mse_loss, total_weight
from .ops.cast import casting_together
from .random import Generator
from .seams import implementation
from .tensor import Tensor
from .typing import DType, DTypeLike, Ids, TensorLike

if TYPE_CHECKING:
    from .tokenizers import Tokenizer

_Classifier = TypeVar("_Classifier", bound="GPTForSequenceClassification")


class GPTForSequenceClassification(nn.Module):
    """A GPT, or any other LanguageModel, with a head of `num_labels` outputs on the last token of each text.

    config: a GPTConfig, for new weights drawn from `seed`, or the model to put the head on.
    problem_type: see the module's docstring; None: regression if num_labels is 1, otherwise determined by the labels of
    the first loss (integers: single label, floats: multi-label). label_names: K different texts (default: LABEL_0 ...).
    Raises UsageError, DtypeError.
    """

    def __init__(
        self,
        config: GPTConfig | LanguageModel,
        num_labels: int,
        problem_type: str | None = None,
        *,
        label_names: Sequence[str] | None = None,
        seed: int = 0,
        dtype: DTypeLike = np.float32,
    ) -> None:
        where = type(self).__name__
        if isinstance(config, LanguageModel):
            self.transformer: Any = config
        elif isinstance(config, GPTConfig):  # an untied language-model head would be an unused matrix
            self.transformer = GPT(dataclasses.replace(config, tie_word_embeddings=True), seed, dtype)
        else:
            raise DtypeError(f"{where}: config must be a GPTConfig or a LanguageModel, not {type(config).__name__}")
        self.num_labels = whole_number(where, "num_labels", num_labels)
        if problem_type not in (None, *PROBLEM_TYPES):
            raise UsageError(f"{where}: problem_type must be one of {', '.join(PROBLEM_TYPES)}, not {problem_type!r}")
        if problem_type == SINGLE and num_labels == 1:
            raise UsageError(f"{where}: {SINGLE} needs at least two labels, not num_labels=1")
        self.problem_type = REGRESSION if problem_type is None and num_labels == 1 else problem_type
        self.label_names = checked_names(where, label_names, self.num_labels)
        like, generator = self.transformer.parameters()[0], self.transformer.generator
        C = getattr(self.config, "n_embd", None) or self.transformer.output_embedding.weight.shape[1]
        self.score = nn.Embedding(self.num_labels, C, std=0.02, generator=generator, dtype=like.dtype)
        self.score.to(like.backend)
        self.training = self.transformer.training

    # Computing ------------------------------------------------------------------------------------

    def forward(self, idx: Ids, lengths: Ids | None = None) -> Tensor:
        """idx (B, T) integers, padded on the right -> logits (B, K). What the padding is does not matter.

        lengths: (B,) integers from 1 to T, the real tokens of each row; None: all T. Raises ShapeError, DtypeError,
        RangeError.
        """
        where = type(self).__name__
        ids = integer_array(f"{where}: idx", idx.data if isinstance(idx, Tensor) else idx)
        if ids.ndim != 2 or 0 in ids.shape:
            raise ShapeError(f"{where}: idx must have the shape (batch, time) with at least one token, not {ids.shape}")
        last = checked_lengths(where, lengths, *ids.shape) - 1  # (B,)
        h = self.transformer.hidden(without_padding(ids, last))  # (B, T, C)
        if h.shape[:2] != ids.shape or h.ndim != 3:
            raise ShapeError(
                f"{where}: {type(self.transformer).__name__}.hidden must return (B, T, C), here ({ids.shape[0]}, "
                f"{ids.shape[1]}, {self.score.weight.shape[1]}), not {h.shape}"
            )
        ends = ops.cast(h[np.arange(len(last)), last], self.score.weight.dtype)  # (B, C)
        return self.score.project(ends)

    if TYPE_CHECKING:
        __call__ = forward

    def loss(
        self,
        idx: Ids,
        labels: TensorLike,
        lengths: Ids | None = None,
        *,
        label_smoothing: float = 0.0,
        class_weights: TensorLike | None = None,
        kind: str = "mse",
    ) -> Tensor:
        """The mean loss of a batch, a single number. labels: see the module's docstring.

        label_smoothing, class_weights (K,): for a single label (`tinygpt/nn/losses.py`); kind: "mse" or "l1", for a
        regression. The first loss decides `problem_type` if it is not set. Raises UsageError, ShapeError, DtypeError,
        RangeError.
        """
        where = f"{type(self).__name__}.loss"
        problem = self.problem_type or problem_of(where, labels)
        if kind not in ("mse", "l1"):
            raise UsageError(f'{where}: kind must be "mse" or "l1", not {kind!r}')
        if problem != REGRESSION and kind != "mse":
            raise UsageError(f"{where}: kind={kind!r} is for regression, but this is {problem}")
        if problem != SINGLE and (label_smoothing or class_weights is not None):
            raise UsageError(f"{where}: label_smoothing and class_weights are for single labels, not for {problem}")
        checked = checked_labels(where, problem, labels, self.num_labels)
        with casting_together(self, self.activations):
            logits = self(idx, lengths)  # (B, K)
        if checked.shape[:1] != logits.shape[:1]:
            raise ShapeError(f"{where}: there are {logits.shape[0]} texts, but {checked.shape[0]} labels")
        self.problem_type = problem
        if problem == SINGLE:
            return classification_loss(logits, checked, label_smoothing=label_smoothing, class_weights=class_weights)
        if problem == MULTI:
            return ops.binary_cross_entropy(logits, checked)
        return (mse_loss if kind == "mse" else l1_loss)(logits, checked)

    def loss_weight(self, labels: TensorLike, class_weights: TensorLike | None = None) -> float:
        """How much these labels count in a mean: the loss of a batch is that of its parts, weighted by this.

        With it, any split of a batch into micro-batches gives the gradient of the whole batch.
        """
        problem = self.problem_type or problem_of("loss_weight", labels)
        if problem == SINGLE:
            return total_weight(labels, class_weights)
        return float(np.size(labels.data if isinstance(labels, Tensor) else labels))

    def predict(self, idx: Ids, lengths: Ids | None = None) -> np.ndarray:
        """idx (B, T) -> what the module's table says, as a NumPy array. Computed without dropout."""
        scores = self.scores(idx, lengths)  # (B, K)
        if self.problem_type == REGRESSION:
            return scores[:, 0] if self.num_labels == 1 else scores
        return scores > 0.5 if self.problem_type == MULTI else scores.argmax(axis=1)

    def scores(self, idx: Ids, lengths: Ids | None = None) -> np.ndarray:
        """idx (B, T) -> (B, K) NumPy array: probabilities of the labels, or the numbers of a regression."""
        with no_grad(), self.evaluating(), self.compute_in("float32"):
            logits = self(idx, lengths)
            if self.problem_type == MULTI:
                logits = ops.sigmoid(logits)
            elif self.problem_type != REGRESSION:
                logits = ops.softmax(logits)
        return backends.move(logits.data, "numpy")

    # What a training loop asks of a language model, answered by the one inside ---------------------

    @property
    def config(self) -> ModelConfig:
        return self.transformer.config

    @property
    def generator(self) -> Generator:
        return self.transformer.generator

    @property
    def generation_config(self) -> Any:
        return self.transformer.generation_config

    @generation_config.setter
    def generation_config(self, settings: Any) -> None:
        self.transformer.generation_config = settings

    @property
    def source(self) -> str | None:
        return self.transformer.source

    @source.setter
    def source(self, folder_or_name: str | None) -> None:
        self.transformer.source = folder_or_name

    @property
    def packed(self) -> str | None:
        return self.transformer.packed

    @property
    def activations(self) -> DType | None:
        return self.transformer.activations

    def compute_in(self, dtype: str) -> contextlib.AbstractContextManager[None]:
        """See `LanguageModel.compute_in`. The head, its loss and its gradient stay in the dtype of `score.weight`."""
        return self.transformer.compute_in(dtype)

    def train(self: _Classifier, mode: bool = True) -> _Classifier:
        """Set the training mode. Raises UsageError for a packed model."""
        self.transformer.train(mode)
        super().train(mode)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Name -> array, for every parameter. Raises UsageError for a packed model."""
        self.transformer.state_dict()  # which refuses
        return super().state_dict()

    # Implemented in the layer above: see seams.py --------------------------------------------------

    @classmethod
    def from_pretrained(
        cls: type[_Classifier],
        folder_or_name: str | os.PathLike[str],
        *,
        num_labels: int | None = None,
        label_names: Sequence[str] | None = None,
        problem_type: str | None = None,
        dtype: DTypeLike = "float32",
        quantize: str | None = None,
        activations: str | None = None,
        dropout: float | None = None,
        seed: int = 0,
        revision: str = "main",
        checkpoint: str = "best",
    ) -> _Classifier:
        """The classifier in a folder, or a new head on the language model in it; in evaluation mode.

        folder_or_name and the options after problem_type: see `GPT.from_pretrained`. A language model needs num_labels
        or label_names; the new head is drawn from `seed`. A classifier (a file with score.weight, by tinygpt or
        transformers) has its own labels, and any that are given must agree with them. Raises UsageError.
        """
        classifier: _Classifier = implementation("load_classifier")(
            cls, folder_or_name, num_labels, label_names, problem_type, dtype=dtype, quantize=quantize,
            activations=activations, dropout=dropout, seed=seed, revision=revision, checkpoint=checkpoint,
        )  # fmt: skip
        return classifier

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        max_shard_size: int | str | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """Write a directory that `from_pretrained` and transformers' GPT2ForSequenceClassification load.

        See `GPT.save_pretrained`. transformers finds a text's end by the padding id, so for batches of several texts
        it needs a pad_token_id in config.json: the tokenizer's is written, if it has one. Raises UsageError.
        """
        implementation("save_with_tokenizer")(self, folder, tokenizer, dtype=dtype, max_shard_size=max_shard_size)
