"""What any language model can do, whatever is inside: loss, load, save, pack, generate, compute in 16 bits.

A model is a subclass that says what is inside (`tinygpt/gpt.py` is one; a second architecture, or another head on the
same blocks, is a file beside it):

    config                    with vocab_size and block_size; `config_class` is its class
    wte                       the token embedding
    hidden(idx)               idx (B, T) -> (B, T, C)
    head(h)                   h (..., C) -> logits (..., V)

and, to generate with a cache, `hidden(idx, cache)` and `new_cache(B, capacity)`: see `GPT`.

Loading, saving and generating are rooms above this one. Their facades, `from_pretrained`, `save_pretrained` and
`generate`, are the only places of the core that reach up, and they stand here together.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from . import nn, ops
from .errors import UsageError
from .nn.known import is_known, keeps, known
from .nn.packed import pack_model
from .nn.precision import compute_in
from .random import Generator
from .tensor import Tensor
from .token_ids import IGNORE_INDEX, check_ids, checked_logits, targets_of, warn_if_copied

_Model = TypeVar("_Model", bound="LanguageModel")


@known("forward", "head")
class LanguageModel(nn.Module):
    """A model of token ids; see above for what a subclass gives."""

    config: Any
    config_class: Any
    wte: Any
    _copy_checks: int | None = 3  # how many losses more are looked at for targets that are the input; None: warned

    def __init__(self, config: Any, generator: Generator) -> None:
        self.config, self.generator = config, generator
        self.packed: str | None = None  # the format of `pack`
        self.activations: Any = None  # their dtype inside `compute_in`; None: the parameters' own
        self.generation_config: Any = {}  # what `generate` starts from: a loaded model's eos_token_id and the like

    # What a subclass gives ------------------------------------------------------------------------

    def hidden(self, idx: Any) -> Tensor:
        """idx (B, T) -> (B, T, C), what the head reads."""
        raise NotImplementedError(f"{type(self).__name__} defines no hidden")

    def head(self, h: Tensor) -> Tensor:
        """h (..., C) -> logits (..., V)."""
        logits: Tensor = self.output_embedding.project(h)
        return logits

    @property
    def output_embedding(self) -> Any:
        """The matrix of the head, (V, C), as an Embedding: the token embedding, unless a subclass has its own."""
        return self.wte

    @classmethod
    def from_config(cls: type[_Model], config: Any, seed: int = 0, dtype: Any = np.float32) -> _Model:
        """A fresh model from a configuration (`GPTConfig` for a GPT) or from its `to_dict()`."""
        make: Any = cls
        return make(cls.config_class.from_dict(config) if isinstance(config, Mapping) else config, seed, dtype)

    # What it computes -----------------------------------------------------------------------------

    def forward(self, idx: Any) -> Tensor:
        """idx (B, T) integers -> logits (B, T, V). Raises ShapeError, DtypeError, RangeError."""
        return self.head(self.hidden(idx))

    def next_logits(self, idx: Any) -> Tensor:
        """idx (B, T) integers -> logits (B, V) of the token after the last: the head is applied to one position."""
        if not keeps(self, LanguageModel, "forward"):
            return checked_logits(self, idx)[:, -1]
        return self.head(self.hidden(idx)[:, -1])

    def loss(self, idx: Any, targets: Any = None, *, labels: Any = None) -> Tensor:
        """Mean cross-entropy of the tokens that follow, given in one of two ways; -100 is left out of the mean.

        targets (B, T): of each position the token after it. labels (B, T): the tokens themselves, as transformers has
        it, so that `model.loss(ids, labels=ids)` is the loss of a text; they are shifted here. `model.loss(ids, ids)`
        would train a model that repeats its input, and warns.

        The same as cross_entropy(self(idx), targets), but the logits of all positions never exist at once.
        """
        if (targets is None) == (labels is None):
            raise UsageError("GPT.loss: give either targets, the tokens that follow, or labels, which are shifted here")
        parts = keeps(self, LanguageModel, "forward")  # else logits come from a forward of a subclass
        h = self.hidden(idx) if parts else checked_logits(self, idx)
        chosen = targets_of(h.shape[:2], targets, labels)
        if labels is None and self._copy_checks is not None and (self._copy_checks or targets is idx):
            self._copy_checks = None if warn_if_copied(idx, targets) else max(0, self._copy_checks - 1)
        if parts and keeps(self, LanguageModel, "head") and is_known(self.output_embedding, nn.Embedding):
            weight = ops.in_dtype_of(h, self.output_embedding.weight)
            return ops.linear_cross_entropy(h, weight, chosen, ignore_index=IGNORE_INDEX)
        return ops.cross_entropy(self.head(h) if parts else h, chosen, ignore_index=IGNORE_INDEX)

    def check_ids(self, idx: Any, any_length: bool = False) -> Any:
        """idx as an integer array (B, T) that this model can read, or a sentence."""
        return check_ids(idx, self.config.vocab_size, None if any_length else self.config.block_size)

    # Modes and weights ----------------------------------------------------------------------------

    def pack(self: _Model, format: str, group: int | None = None) -> _Model:
        """Hold the large matrices (linear layers, token embedding) in 16 or 8 bits, for faster inference.

        format: "bfloat16" or "int8"; group: how many terms of a sum share a scale in int8, a multiple of 8; None means
        one scale for each output. See `tinygpt.ops.packed`. The model can then run, generate and be scored, but not be
        trained or saved. Only for float32 models, and only where every layer inside is one of this package's: of
        another, whose weights may not be all of it, the sentence names the place. Returns the model. Raises UsageError.
        """
        pack_model(self, format, group)
        return self.eval()

    def compute_in(self, dtype: str) -> contextlib.AbstractContextManager[None]:
        """`with model.compute_in("bfloat16"):` activations and matrix products in 16 bits there, on a GPU.

        dtype: "bfloat16"; "float16", which needs `tinygpt.training.LossScale`; "float32", the parameters' own. Weights,
        their gradients, statistics, losses, generation and scoring stay in float32. Raises UsageError.
        """
        return compute_in(self, dtype)

    def train(self: _Model, mode: bool = True) -> _Model:
        """Set the training mode on the model and all inside it. A packed model has none."""
        if mode and self.packed:
            raise UsageError(f"a model packed into {self.packed} can't be trained: load it anew without packing")
        super().train(mode)
        return self

    def eval(self: _Model) -> _Model:
        """Leave the training mode. Returns the model."""
        return self.train(False)

    def state_dict(self) -> dict[str, Any]:
        """Name -> array, for every parameter. A packed model no longer has them all."""
        if self.packed:
            raise UsageError(f"a model packed into {self.packed} can't be saved: save it before it is packed")
        return super().state_dict()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy arrays, found by name, into the parameters: see `Module.load_state_dict`. Not for a packed model."""
        if self.packed:
            raise UsageError(f"a model packed into {self.packed} can't take weights: load them before it is packed")
        super().load_state_dict(state, strict)

    # Facades of the layers above, which know models: imported when they are called ---------------

    @classmethod
    def from_pretrained(
        cls: Any,
        folder_or_name: str | os.PathLike[str],
        *,
        dtype: Any = "float32",
        quantize: str | None = None,
        dropout: float | None = None,
        seed: int = 0,
        revision: str = "main",
    ) -> Any:
        """The model in a GPT-2 directory of the Hugging Face format, in evaluation mode.

        folder_or_name: a directory with config.json and model.safetensors (or an index and its shards); the folder of a
        training run, whose best checkpoint is taken; or a name such as "gpt2" or "owner/name", looked up in the local
        Hugging Face cache and then fetched at `revision` (extra `hub`).
        dtype: "float32" or "float64" for the parameters, whatever the file has (float32, float16, bfloat16, float64);
        dtype="bfloat16" and quantize="int8" pack the matrices into 16 and 8 bits, for inference only.
        dropout: instead of the file's; seed: of the dropout masks. Both matter in training only.
        Raises UsageError with a sentence: a missing, damaged or foreign file, a model that this one can't represent.
        """
        from .interop import from_pretrained  # the layer above

        return from_pretrained(
            folder_or_name, dtype=dtype, quantize=quantize, dropout=dropout, seed=seed, revision=revision,
            model_class=cls,
        )  # fmt: skip

    def save_pretrained(
        self: Any,
        folder: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        max_shard_size: int | str | None = None,
        tokenizer: Any = None,
    ) -> None:
        """Write a GPT-2 directory that `from_pretrained` and transformers load, replacing the model that is there.

        dtype: "float32", "bfloat16", "float16" or "float64", of the weights in the file. max_shard_size: bytes, or text
        such as "200MB": larger models become several files. tokenizer: its files are written too.
        GPT-2 always has biases: a model with bias=False is written with zeros, which computes the same, and a mark, by
        which `from_pretrained` makes it a model without biases again.
        A crash or a full disk leaves the old model or the new one, whole. Raises UsageError.
        """
        from .interop import save_pretrained

        save_pretrained(self, folder, dtype=dtype, max_shard_size=max_shard_size, tokenizer=tokenizer)

    def generate(self: Any, idx: Any, max_new_tokens: int | None = None, **options: Any) -> Any:
        """idx (B, T) -> (B, T + max_new_tokens) int64: the prompt and what follows it, as a NumPy array.

        model.generate(idx, max_new_tokens=100, temperature=0.8, top_k=50, top_p=0.95, seed=0)

        Arguments and options are those of `tinygpt.generation.generate`: attention_mask, config, logits_processor,
        tokenizer, return_details, and the fields of `tinygpt.generation.GenerationConfig`.
        """
        from .generation import generate  # the layer above: it knows models, the model needn't know it

        return generate(self, idx, max_new_tokens, **options)
