"""The base class of language models: loss, load, save, pack, generate, compute in 16 bits.

A subclass defines the architecture (`tinygpt/gpt.py` is one; another architecture, or another head on the same blocks,
is another file beside it):

    config                    with vocab_size, block_size and to_dict(); `config_class` is its class
    wte                       the token embedding
    hidden(idx)               idx (B, T) -> (B, T, C)
    head(h)                   h (..., C) -> logits (..., V)

and, to generate with a cache, `hidden(idx, cache)` and `new_cache(B, capacity)`: see `GPT`.

Loading, saving and generating are implemented in higher layers: `seams.py` says how `from_pretrained`,
`save_pretrained` and `generate` reach them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

import numpy as np

from . import nn, ops
from .errors import UsageError
from .nn.known import is_known, keeps, known
from .nn.packed import check_activations, pack_model, round_activations
from .nn.precision import compute_in
from .ops.cast import casting_together
from .random import Generator
from .seams import implementation
from .tensor import Tensor
from .token_ids import IGNORE_INDEX, check_ids, checked_logits, targets_of, warn_if_copied
from .typing import Array, DType, DTypeLike, Ids

if TYPE_CHECKING:
    from .tokenizers import Tokenizer

_Model = TypeVar("_Model", bound="LanguageModel")


@dataclass(frozen=True)
class Generated:
    """The result of `generate(..., return_details=True)`: R = B * num_return_sequences rows of at most N new tokens.

    sequences            (R, T + N) int64: the prompts, padded on the left, then the new tokens, padded on the right
    lengths              (R,) int64: the number of generated tokens, including an eos token
    finish_reasons       R strings: "eos", "stop_string", "length", "block" (the block is full and overflow="stop") or
                         "dead_end" (options and processors rule out every next token)
    log_probs            (R, N) float64: log-probability of each token under the model, the log_softmax of its logits;
                         0 at padding
    processed_log_probs  (R, N) float64: log-probability of each token after processors, temperature and truncation (in
                         beam search: the terms of the beam's score); 0 at padding
    scores               (R,) float64 in beam search, best first for each prompt: sum(processed_log_probs) /
                         lengths**length_penalty; None otherwise
    """

    sequences: np.ndarray
    lengths: np.ndarray
    finish_reasons: list[str]
    log_probs: np.ndarray
    processed_log_probs: np.ndarray
    scores: np.ndarray | None = None


class ModelConfig(Protocol):
    """What every configuration has: the size of the vocabulary, the longest sequence and, for checkpoints, a dict."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    def to_dict(self) -> dict[str, Any]: ...


@known("forward", "head")
class LanguageModel(nn.Module):
    """A model of token ids; the module's docstring says what a subclass must define."""

    config: ModelConfig
    config_class: Any
    wte: nn.Embedding  # a PackedEmbedding after `pack`
    _copy_checks: int | None = 3  # in how many more losses to check for targets that equal the input; None: has warned

    def __init__(self, config: ModelConfig, generator: Generator) -> None:
        self.config, self.generator = config, generator
        self.packed: str | None = None  # the format of `pack`
        self.activations: DType | None = None  # of `compute_in`; None: the dtype of the parameters
        self.recompute = False  # run the layers again in the backward pass, for less memory (`nn.recompute`)
        self.source: str | None = None  # the folder or the name that it was loaded from
        self.generation_config: Any = {}  # a dict or a GenerationConfig: defaults for `generate`, such as eos_token_id

    # For subclasses to define ---------------------------------------------------------------------

    def hidden(self, idx: Ids) -> Tensor:
        """idx (B, T) -> (B, T, C), the input of the head."""
        raise NotImplementedError(f"{type(self).__name__} does not define hidden")

    def head(self, h: Tensor) -> Tensor:
        """h (..., C) -> logits (..., V)."""
        return self.output_embedding.project(h)

    @property
    def output_embedding(self) -> nn.Embedding:
        """The matrix of the head, (V, C), as an Embedding: the token embedding, unless a subclass has its own."""
        return self.wte

    @classmethod
    def from_config(cls: type[_Model], config: Any, seed: int = 0, dtype: DTypeLike = np.float32) -> _Model:
        """A new model from a configuration (`GPTConfig` for a GPT) or from its `to_dict()`."""
        make: Any = cls
        return make(cls.config_class.from_dict(config) if isinstance(config, Mapping) else config, seed, dtype)

    # Computing ------------------------------------------------------------------------------------

    def forward(self, idx: Ids) -> Tensor:
        """idx (B, T) integers -> logits (B, T, V). Raises ShapeError, DtypeError, RangeError."""
        return self.head(self.hidden(idx))

    if TYPE_CHECKING:
        __call__ = forward

    def next_logits(self, idx: Ids) -> Tensor:
        """idx (B, T) integers -> logits (B, V) of the token after the last: the head is applied to one position."""
        if not keeps(self, LanguageModel, "forward"):
            return checked_logits(self, idx)[:, -1]
        return self.head(self.hidden(idx)[:, -1])

    def loss(self, idx: Ids, targets: Ids | None = None, *, labels: Ids | None = None) -> Tensor:
        """Mean cross-entropy of the next tokens, given as either targets or labels; -100 is ignored.

        targets (B, T): the token after each position. labels (B, T): the tokens themselves, as in transformers, which
        are shifted here, so that `model.loss(ids, labels=ids)` is the loss of a text. `model.loss(ids, ids)` would
        train a model to repeat its input, and warns.

        Equals cross_entropy(self(idx), targets), but the logits of all positions never exist at once.
        """
        if (targets is None) == (labels is None):
            raise UsageError(
                f"{type(self).__name__}.loss: give either targets, the tokens that follow, or labels, which are "
                "shifted here"
            )
        with casting_together(self, self.activations):
            return self._loss(idx, targets, labels)

    def _loss(self, idx: Ids, targets: Ids | None, labels: Ids | None) -> Tensor:
        parts = keeps(self, LanguageModel, "forward")  # otherwise a subclass's forward computes the logits
        h = self.hidden(idx) if parts else checked_logits(self, idx)
        chosen = targets_of(type(self).__name__, h.shape[:2], targets, labels)
        if labels is None and self._copy_checks is not None and (self._copy_checks or targets is idx):
            copied = warn_if_copied(type(self).__name__, idx, targets)
            self._copy_checks = None if copied else max(0, self._copy_checks - 1)
        if parts and keeps(self, LanguageModel, "head") and is_known(self.output_embedding, nn.Embedding):
            weight = ops.in_dtype_of(h, self.output_embedding.weight)
            return ops.linear_cross_entropy(h, weight, chosen, ignore_index=IGNORE_INDEX)
        return ops.cross_entropy(self.head(h) if parts else h, chosen, ignore_index=IGNORE_INDEX)

    def check_ids(self, idx: Ids, any_length: bool = False) -> Array:
        """idx as an integer array (B, T), valid for this model. Raises ShapeError, DtypeError, RangeError."""
        return check_ids(self, idx, any_length)

    # Modes and weights ----------------------------------------------------------------------------

    def pack(self: _Model, format: str, group: int | None = None, activations: str | None = None) -> _Model:
        """Store the large matrices (linear layers, token embedding) in 16, 8 or 4 bits, for faster inference.

        format: "bfloat16", "int8" or "int4", which packs 32 terms of a sum together; group: how many terms share a
        scale in int8, a multiple of 8; None means one scale per output. See `tinygpt.ops.packed`. The model can then
        run, generate and score, but not be trained or saved. Only for float32 models whose layers are all of this
        package: a user-defined layer may depend on more than its weights, and the error names it. Returns the model.
        Raises UsageError.
        """
        check_activations(f"{type(self).__name__}.pack", format, activations)
        pack_model(self, format, group)
        round_activations(self, activations)
        return self.eval()

    def compute_in(self, dtype: str) -> contextlib.AbstractContextManager[None]:
        """`with model.compute_in("bfloat16"):` computes activations and matrix products in 16 bits.

        dtype: "bfloat16"; "float16", on a GPU, which needs `tinygpt.training.LossScale`; "float32", no change. Weights,
        their gradients, statistics, losses, generation and scoring stay in float32. On a processor without AVX512_BF16
        bfloat16 is slower than float32. Raises UsageError; MissingExtraError without ml_dtypes (extra `bfloat16`).
        """
        return compute_in(self, dtype)

    def train(self: _Model, mode: bool = True) -> _Model:
        """Set the training mode of the model and all its modules.

        Raises UsageError for a packed model without trainable parameters, such as those of `nn.add_lora`.
        """
        if mode and self.packed and not any(parameter.requires_grad for parameter in self.parameters()):
            raise UsageError(f"a model packed into {self.packed} can't be trained: load it again without packing")
        super().train(mode)
        return self

    def eval(self: _Model) -> _Model:
        """Set evaluation mode. Returns the model."""
        return self.train(False)

    def state_dict(self) -> dict[str, Any]:
        """Name -> array, for every parameter. Raises UsageError for a packed model, which no longer has them all."""
        if self.packed:
            raise UsageError(f"a model packed into {self.packed} can't be saved: save it before it is packed")
        return super().state_dict()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy arrays into the parameters of the same names: see `Module.load_state_dict`. Not for a packed model."""
        if self.packed:
            raise UsageError(f"a model packed into {self.packed} can't take weights: load them before it is packed")
        super().load_state_dict(state, strict)

    # Implemented in the layers above: see seams.py -------------------------------------------------

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        folder_or_name: str | os.PathLike[str],
        *,
        dtype: DTypeLike = "float32",
        quantize: str | None = None,
        activations: str | None = None,
        dropout: float | None = None,
        seed: int = 0,
        revision: str = "main",
    ) -> _Model:
        """The model in a GPT-2 directory of the Hugging Face format, in evaluation mode.

        folder_or_name: a directory with config.json and model.safetensors (or an index and its shards); the folder of a
        training run, whose best checkpoint is taken; a LoRA adapter of PEFT, which names its base model; or a name such
        as "gpt2" or "owner/name", looked up in the local Hugging Face cache and then fetched at `revision` (extra
        `hub`).
        dtype: "float32" or "float64" for the parameters, whatever the file has (float32, float16, bfloat16, float64);
        dtype="bfloat16" and quantize="int8" or "int4" pack the matrices into 16, 8 or 4 bits, which can't be trained.
        activations: "int8" rounds these too, where weights of 8 or 4 bits are multiplied: faster, most of all for
        several texts.
        dropout: overrides the file's; seed: of the dropout masks. Both matter only in training.
        Raises UsageError for missing or damaged files, other formats, and models that this class can't represent.
        """
        model: _Model = implementation("from_pretrained")(
            folder_or_name, dtype=dtype, quantize=quantize, activations=activations, dropout=dropout, seed=seed,
            revision=revision, model_class=cls,
        )  # fmt: skip
        return model

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        max_shard_size: int | str | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """Write a GPT-2 directory that `from_pretrained` and transformers load, replacing a model that is there.

        dtype: "float32", "bfloat16", "float16" or "float64", of the weights in the file. max_shard_size: bytes, or a
        string such as "200MB": larger models are split into several files. tokenizer: also write its files.
        GPT-2 always has biases, so a model with bias=False is written with biases of zero, which computes the same, and
        a flag that makes `from_pretrained` load it without biases.
        A crash or a full disk leaves either the old model or the new one intact. Raises UsageError.
        """
        save = implementation("save_pretrained")
        save(self, folder, dtype=dtype, max_shard_size=max_shard_size, tokenizer=tokenizer)

    @overload
    def generate(
        self, idx: Ids | None = ..., max_new_tokens: int | None = ..., *, return_details: Literal[True], **options: Any
    ) -> Generated: ...

    @overload
    def generate(self, idx: Ids | None = ..., max_new_tokens: int | None = ..., **options: Any) -> np.ndarray: ...

    def generate(
        self, idx: Ids | None = None, max_new_tokens: int | None = None, *, input_ids: Ids | None = None, **options: Any
    ) -> np.ndarray | Generated:
        """idx (B, T) -> (B, T + max_new_tokens) int64: the prompt and its continuation, as a NumPy array.

        model.generate(idx, max_new_tokens=100, temperature=0.8, top_k=50, top_p=0.95, seed=0)

        input_ids: transformers' name for idx. Arguments and options are those of `tinygpt.generation.generate`:
        attention_mask, config, logits_processor, tokenizer, return_details, and the fields of
        `tinygpt.generation.GenerationConfig`.
        """
        if (idx is None) == (input_ids is None):
            raise UsageError("generate: give the prompt as idx or as input_ids, which mean the same")
        generated: np.ndarray | Generated = implementation("generate")(
            self, input_ids if idx is None else idx, max_new_tokens, **options
        )
        return generated
