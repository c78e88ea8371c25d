"""The model: GPT-2, on one page.

    idx (B, T) integers
     |
     x = wte[idx] + wpe[0 .. T-1]                    what the token is, and where it stands
     |
     |   for each of n_layer blocks:
     |       x = x + attention(ln_1(x))              look at the tokens before, and bring something back
     |       x = x + mlp(ln_2(x))                    think about it, each position for itself
     |
     logits = ln_f(x) @ wte.T                        (B, T, V): scores of the next token

Every block ends in an addition and begins with a LayerNorm, so the forward pass meets the pair "add to the residual
stream, then normalise it" 2 n_layer times: once inside each block and once between a block and the next (or ln_f).
The code is written in these pairs, because one operation does both in a single pass over memory (it also adds the
bias of the projection before, and applies dropout):

    x, h = residual_layer_norm(x, branch, ...)       x = x + dropout(branch + bias);  h = layer_norm(x)

So two values travel through the blocks: x, the residual stream, and h, its normalised form, which the next
attention or mlp reads.

The parameters have the names and shapes of GPT-2's checkpoints in the Hugging Face format, without the prefix
`transformer.`. The head shares its matrix with the token embedding (`wte`). In mixed precision (`compute_in`) x has 16
bits from the embeddings on, and so has all that is made of it; the float32 parameters are rounded where they meet it.

Letters: B batch, T time, C channels (n_embd), H heads, V vocabulary.
Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3; Vaswani et al.,
"Attention Is All You Need", 2017; Press, Wolf, "Using the Output Embedding to Improve Language Models", 2017.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from . import nn, ops
from .checks import number, whole_number
from .errors import DtypeError, UsageError
from .nn.known import computes_as, is_known, keeps, known
from .nn.packed import pack_model, product_and_bias, with_bias
from .nn.precision import compute_in
from .random import Generator
from .tensor import Tensor
from .token_ids import IGNORE_INDEX, check_ids, checked_logits, targets_of, warn_if_copied


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. Impossible settings raise UsageError with a sentence."""

    vocab_size: int
    block_size: int  # the longest sequence: there are this many position embeddings
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0
    bias: bool = True  # in the linear layers and in LayerNorm
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            object.__setattr__(self, name, whole_number("GPTConfig", name, getattr(self, name)))
        object.__setattr__(self, "dropout", number("GPTConfig", "dropout", self.dropout, at_least=0, below=1))
        eps = number("GPTConfig", "layer_norm_epsilon", self.layer_norm_epsilon, above=0)
        object.__setattr__(self, "layer_norm_epsilon", eps)
        if not isinstance(self.bias, bool):
            raise DtypeError(f"GPTConfig: bias must be True or False, not {self.bias!r}")
        if self.n_embd % self.n_head:
            raise UsageError(
                f"GPTConfig: n_embd must be a multiple of n_head, so that the heads share it evenly: "
                f"{self.n_embd} is not a multiple of {self.n_head}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain numbers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> GPTConfig:
        """The inverse of `to_dict`. Unknown and missing settings are refused by name."""
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise UsageError(f"GPTConfig: there is no setting {unknown[0]!r}: there are {', '.join(known)}")
        missing = [name for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd") if name not in settings]
        if missing:
            raise UsageError(f"GPTConfig: the settings lack {', '.join(missing)}")
        return cls(**settings)


@known("forward", "branch")
class Attention(nn.Module):
    """Causal self-attention of H heads."""

    def __init__(self, config: GPTConfig, generator: Generator, dtype: Any) -> None:
        C, bias = config.n_embd, config.bias
        self.n_head, self.dropout, self.generator = config.n_head, config.dropout, generator
        self.c_attn = nn.Linear(C, 3 * C, bias, std=0.02, generator=generator, dtype=dtype)
        self.c_proj = nn.Linear(C, C, bias, std=residual_std(config), generator=generator, dtype=dtype)

    def forward(self, h: Tensor) -> Tensor:
        """h (B, T, C) -> (B, T, C)."""
        return with_bias(*self.branch(h))

    def branch(
        self, h: Tensor, keep: Callable[[Any], None] | None = None, last: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """`forward` without the bias of `c_proj`, and that bias. last: of the last position alone, (B, 1, C)."""
        qkv = self.c_attn(h)  # (B, T, 3C)
        if keep is not None:
            keep(qkv.data)
        dropout_p = self.dropout if self.training else 0.0
        y = ops.qkv_attention(qkv, self.n_head, is_causal=True, dropout_p=dropout_p, generator=self.generator)
        return product_and_bias(self.c_proj, y[:, -1:] if last else y)


@known("forward", "branch")
class MLP(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, config: GPTConfig, generator: Generator, dtype: Any) -> None:
        C, bias = config.n_embd, config.bias
        self.c_fc = nn.Linear(C, 4 * C, bias, std=0.02, generator=generator, dtype=dtype)
        self.c_proj = nn.Linear(4 * C, C, bias, std=residual_std(config), generator=generator, dtype=dtype)

    def forward(self, h: Tensor) -> Tensor:
        """h (B, T, C) -> (B, T, C)."""
        return with_bias(*self.branch(h))

    def branch(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """`forward` without the bias of `c_proj`, and that bias."""
        z, bias = product_and_bias(self.c_fc, h)  # (B, T, 4C)
        y = ops.gelu(z) if bias is None else ops.bias_gelu(z, ops.in_dtype_of(z, bias))
        return product_and_bias(self.c_proj, y)


@known("forward", "add_and_normalize")
class Block(nn.Module):
    """x = x + attention(ln_1(x)); x = x + mlp(ln_2(x)). Its own ln_1 has been applied by whoever calls it."""

    def __init__(self, config: GPTConfig, generator: Generator, dtype: Any) -> None:
        self.dropout, self.generator = config.dropout, generator
        self.ln_1 = nn.LayerNorm(config.n_embd, config.bias, config.layer_norm_epsilon, dtype=dtype)
        self.attn = Attention(config, generator, dtype)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.bias, config.layer_norm_epsilon, dtype=dtype)
        self.mlp = MLP(config, generator, dtype)

    def forward(
        self,
        x: Tensor,
        h: Tensor,
        next_norm: nn.LayerNorm,
        keep: Callable[[Any], None] | None = None,
        last: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """x and h = ln_1(x), both (B, T, C) -> the new x, and next_norm of it.

        last: of the last position alone, (B, 1, C).
        """
        if computes_as(self.attn, Attention):
            branch, bias = self.attn.branch(h, keep, last)
        else:  # somebody's own, whatever it is made of
            branch, bias = self.attn(h), None
            branch = branch[:, -1:] if last else branch
        x, h = self.add_and_normalize(x[:, -1:] if last else x, branch, bias, self.ln_2)
        branch, bias = self.mlp.branch(h) if computes_as(self.mlp, MLP) else (self.mlp(h), None)
        return self.add_and_normalize(x, branch, bias, next_norm)

    def add_and_normalize(
        self, x: Tensor, branch: Tensor, branch_bias: Tensor | None, norm: nn.LayerNorm
    ) -> tuple[Tensor, Tensor]:
        """x = x + dropout(branch + branch_bias) and norm(x): in one operation, unless norm is somebody's own."""
        if not computes_as(norm, nn.LayerNorm):
            branch = with_bias(branch, branch_bias)
            x = x + ops.dropout(branch, self.dropout, training=self.training, generator=self.generator)
            return x, norm(x)
        weight, bias, x_bias = ops.in_dtype_of(x, norm.weight, norm.bias, branch_bias)
        return ops.residual_layer_norm(
            x, branch, weight, bias, x_bias=x_bias, eps=norm.eps,
            dropout_p=self.dropout, generator=self.generator, training=self.training,
        )  # fmt: skip


def residual_std(config: GPTConfig) -> float:
    """Of the projections that add to the residual stream: 2 n_layer of them, so that their sum stays at 0.02."""
    return 0.02 / math.sqrt(2 * config.n_layer)


@known("forward", "hidden", "head")
class GPT(nn.Module):
    """A GPT-2 of the shape `config`, with initial weights from `seed`.

    `generator` is the source of all random numbers of the model: first the weights, then the dropout masks. Its
    `state_dict()` is part of the state of a training run.
    """

    _copy_checks: int | None = 3  # how many losses more are looked at for targets that are the input; None: warned

    def __init__(self, config: GPTConfig, seed: int = 0, dtype: Any = np.float32) -> None:
        if not isinstance(config, GPTConfig):
            raise DtypeError(f"GPT: config must be a GPTConfig, not {type(config).__name__}")
        if dtype not in (np.float32, np.float64, "float32", "float64"):
            raise DtypeError(f"GPT: dtype must be float32 or float64, not {dtype}")
        self.config = config
        self.packed: str | None = None  # the format of `pack`
        self.activations: Any = None  # their dtype inside `compute_in`; None: the parameters' own
        self.generator = generator = Generator(seed)
        self.wte: Any = nn.Embedding(config.vocab_size, config.n_embd, std=0.02, generator=generator, dtype=dtype)
        self.wpe = nn.Embedding(config.block_size, config.n_embd, std=0.02, generator=generator, dtype=dtype)
        self.h = [Block(config, generator, dtype) for _ in range(config.n_layer)]
        self.ln_f = nn.LayerNorm(config.n_embd, config.bias, config.layer_norm_epsilon, dtype=dtype)
        self.generation_config: Any = {}  # what `generate` starts from: a loaded model's eos_token_id and the like

    @classmethod
    def from_config(cls, config: GPTConfig | Mapping[str, Any], seed: int = 0, dtype: Any = np.float32) -> GPT:
        """A fresh model from a GPTConfig or from its `to_dict()`."""
        return cls(GPTConfig.from_dict(config) if isinstance(config, Mapping) else config, seed, dtype)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_name: str | os.PathLike[str],
        *,
        dtype: Any = "float32",
        quantize: str | None = None,
        dropout: float | None = None,
        seed: int = 0,
        revision: str = "main",
    ) -> GPT:
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
        self,
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

    def pack(self, format: str, group: int | None = None) -> GPT:
        """Hold the large matrices (linear layers, token embedding) in 16 or 8 bits, for faster inference.

        format: "bfloat16" or "int8"; group: how many terms of a sum share a scale in int8, a multiple of 8; None means
        one scale for each output. See `tinygpt.ops.packed`. The model can then run, generate and be scored, but not be
        trained or saved. Only for float32 models, and only where every layer inside is one of this package's: of
        another, whose weights may not be all of it, the sentence names the place. Returns the model. Raises UsageError.
        """
        pack_model(self, format, group)
        return self.eval()

    def train(self, mode: bool = True) -> GPT:
        """Set the training mode on the model and all inside it. A packed model has none."""
        if mode and self.packed:
            raise UsageError(f"a model packed into {self.packed} can't be trained: load it anew without packing")
        super().train(mode)
        return self

    def eval(self) -> GPT:
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

    def compute_in(self, dtype: str) -> contextlib.AbstractContextManager[None]:
        """`with model.compute_in("bfloat16"):` activations and matrix products in 16 bits there, on a GPU.

        dtype: "bfloat16"; "float16", which needs `tinygpt.training.LossScale`; "float32", the parameters' own. Weights,
        their gradients, statistics, losses, generation and scoring stay in float32. Raises UsageError.
        """
        return compute_in(self, dtype)

    def hidden(self, idx: Any, keep: Callable[[int, Any], None] | None = None, last: bool = False) -> Tensor:
        """idx (B, T) -> ln_f of the residual stream after the last block, (B, T, C).

        keep: called with the number of each block and its queries, keys and values, an array (B, T, 3C): this is how a
        decoder fills its cache, and it needs blocks that are known (`tinygpt.nn.known`). last: of the last position
        alone, (B, 1, C), for which the last block need not finish the others.
        """
        idx = self.check_ids(idx)
        x = self.wte(idx) + self.wpe(np.arange(idx.shape[1]))  # (B, T, C) + (T, C)
        x = x if self.activations is None else ops.cast(x, self.activations)
        x = ops.dropout(x, self.config.dropout, training=self.training, generator=self.generator)
        h = self.h[0].ln_1(x)
        next_norms = [block.ln_1 for block in self.h[1:]] + [self.ln_f]
        for i, (block, next_norm) in enumerate(zip(self.h, next_norms, strict=True)):
            if computes_as(block, Block):
                keep_this = None if keep is None else partial(keep, i)
                x, h = block(x, h, next_norm, keep_this, last and i == len(self.h) - 1)
            else:
                x, h = block(x, h, next_norm)
        return h[:, -1:] if last and h.shape[1] > 1 else h

    def forward(self, idx: Any) -> Tensor:
        """idx (B, T) integers -> logits (B, T, V). Raises ShapeError, DtypeError, RangeError."""
        return self.head(self.hidden(idx))

    def next_logits(self, idx: Any) -> Tensor:
        """idx (B, T) integers -> logits (B, V) of the token after the last: the head is applied to one position."""
        if not keeps(self, GPT, "forward"):
            return checked_logits(self, idx)[:, -1]
        h = self.hidden(idx, last=True) if keeps(self, GPT, "hidden") else self.hidden(idx)
        return self.head(h[:, -1])

    def head(self, h: Tensor) -> Tensor:
        """h (..., C) -> (..., V), by the transposed token embedding."""
        return self.wte.project(h)

    def loss(self, idx: Any, targets: Any = None, *, labels: Any = None) -> Tensor:
        """Mean cross-entropy of the tokens that follow, given in one of two ways; -100 is left out of the mean.

        targets (B, T): of each position the token after it. labels (B, T): the tokens themselves, as transformers has
        it, so that `model.loss(ids, labels=ids)` is the loss of a text; they are shifted here. `model.loss(ids, ids)`
        would train a model that repeats its input, and warns.

        The same as cross_entropy(self(idx), targets), but the logits of all positions never exist at once.
        """
        if (targets is None) == (labels is None):
            raise UsageError("GPT.loss: give either targets, the tokens that follow, or labels, which are shifted here")
        parts = keeps(self, GPT, "forward")  # else logits come from a forward of a subclass
        h = self.hidden(idx) if parts else checked_logits(self, idx)
        chosen = targets_of(h.shape[:2], targets, labels)
        if labels is None and self._copy_checks is not None and (self._copy_checks or targets is idx):
            self._copy_checks = None if warn_if_copied(idx, targets) else max(0, self._copy_checks - 1)
        if parts and keeps(self, GPT, "head") and is_known(self.wte, nn.Embedding):
            weight = ops.in_dtype_of(h, self.wte.weight)
            return ops.linear_cross_entropy(h, weight, chosen, ignore_index=IGNORE_INDEX)
        return ops.cross_entropy(self.head(h) if parts else h, chosen, ignore_index=IGNORE_INDEX)

    def check_ids(self, idx: Any, any_length: bool = False) -> Any:
        """idx as an integer array (B, T) that this model can read, or a sentence."""
        return check_ids(idx, self.config.vocab_size, None if any_length else self.config.block_size)

    def generate(self, idx: Any, max_new_tokens: int | None = None, **options: Any) -> Any:
        """idx (B, T) -> (B, T + max_new_tokens) int64: the prompt and what follows it, as a NumPy array.

        model.generate(idx, max_new_tokens=100, temperature=0.8, top_k=50, top_p=0.95, seed=0)

        Arguments and options are those of `tinygpt.generation.generate`: attention_mask, config, logits_processor,
        tokenizer, return_details, and the fields of `tinygpt.generation.GenerationConfig`.
        """
        from .generation import generate  # the layer above: it knows models, the model needn't know it

        return generate(self, idx, max_new_tokens, **options)

    def flops_per_token(self, length: int | None = None) -> int:
        """Floating-point operations of a training step (forward and backward) for each token: 6 N + 12 L C T.

        N counts every parameter that is multiplied with (all but `wpe`; the head uses `wte`); the second term is
        attention over a sequence of T = `length` tokens (block_size unless given).
        """
        config = self.config
        T = config.block_size if length is None else whole_number("flops_per_token", "length", length)
        N = self.num_parameters() - self.wpe.weight.size
        return 6 * N + 12 * config.n_layer * config.n_embd * T
