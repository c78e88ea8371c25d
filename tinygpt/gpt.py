"""The model: GPT-2, on one page.

    idx (B, T) integers
     |
     x = wte[idx] + wpe[0 .. T-1]                    token embedding + position embedding
     |
     |   for each of n_layer blocks:
     |       x = x + attention(ln_1(x))              gather information from earlier tokens
     |       x = x + mlp(ln_2(x))                    process each position independently
     |
     logits = ln_f(x) @ wte.T                        (B, T, V): scores of the next token; untied, @ lm_head.T

Each addition is followed by a norm. `ResidualStream` (`tinygpt/nn/residual.py`) defers the addition until that norm
needs the sum, and computes both in a single pass over memory, together with the dropout and bias before them.

To generate, the same blocks run with a `cache` of the keys and values of earlier tokens, so that only the new tokens
are computed (`tinygpt/ops/cached_attention.py`).

The parameters have the names and shapes of GPT-2's checkpoints in the Hugging Face format, without the prefix
`transformer.`. The head shares its matrix with the token embedding (`wte`), unless the configuration unties them. In
mixed precision (`compute_in`) x has 16 bits from the embeddings on, and so has everything computed from it; the float32
parameters are rounded where they are used.

Letters: B batch, T time, C channels (n_embd), H heads, V vocabulary.
Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3; Vaswani et al.,
"Attention Is All You Need", 2017; Press, Wolf, "Using the Output Embedding to Improve Language Models", 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from . import nn, ops
from .backends import array_module
from .checks import from_settings, number, whole_number
from .errors import DtypeError, UsageError
from .language_model import LanguageModel
from .nn.known import known
from .nn.packed import gelu_mlp, product_and_bias, with_bias
from .nn.residual import ResidualStream
from .ops.cached_attention import KeyValueCache, cached_attention
from .random import Generator
from .tensor import Tensor
from .typing import DTypeLike, Ids

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": ops.gelu, "gelu": partial(ops.gelu, approximate="none"), "relu": ops.relu, "silu": ops.silu,
}  # fmt: skip


@dataclass(frozen=True)
class GPTConfig:
    """The hyperparameters of a model. Raises UsageError for impossible values."""

    vocab_size: int
    block_size: int  # maximum sequence length, the number of position embeddings
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0
    bias: bool = True  # in the linear layers and in LayerNorm
    layer_norm_epsilon: float = 1e-5
    # Variants of GPT-2, under the names of transformers' configuration:
    activation_function: str = "gelu_new"  # or "gelu" (with erf), "relu" or "silu"
    n_inner: int | None = None  # channels between the MLP's two layers; None: 4 n_embd
    scale_attn_weights: bool = True  # scores / sqrt(D)
    scale_attn_by_inverse_layer_idx: bool = False  # also divide the scores by the layer number, starting at 1
    tie_word_embeddings: bool = True  # the head uses the matrix of the token embedding

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            object.__setattr__(self, name, whole_number("GPTConfig", name, getattr(self, name)))
        object.__setattr__(self, "dropout", number("GPTConfig", "dropout", self.dropout, at_least=0, below=1))
        eps = number("GPTConfig", "layer_norm_epsilon", self.layer_norm_epsilon, above=0)
        object.__setattr__(self, "layer_norm_epsilon", eps)
        for name in ("bias", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise DtypeError(f"GPTConfig: {name} must be True or False, not {getattr(self, name)!r}")
        if self.n_inner is not None:
            object.__setattr__(self, "n_inner", whole_number("GPTConfig", "n_inner", self.n_inner))
        if (name := self.activation_function) not in tuple(ACTIVATIONS):
            raise UsageError(f"GPTConfig: activation_function must be one of {', '.join(ACTIVATIONS)}, not {name!r}")
        if self.n_embd % self.n_head:
            raise UsageError(f"GPTConfig: n_embd must be a multiple of n_head ({self.n_head}), not {self.n_embd}")

    @property
    def inner(self) -> int:
        """Channels between the MLP's two layers."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    def to_dict(self) -> dict[str, Any]:
        """The settings as a dict of JSON-serializable values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> GPTConfig:
        """The inverse of `to_dict`. Raises UsageError naming any unknown or missing setting."""
        return from_settings("GPTConfig", cls, settings)


@known("forward", "branch")
class Attention(nn.Module):
    """Causal self-attention with H heads."""

    def __init__(self, config: GPTConfig, layer: int, generator: Generator, dtype: DTypeLike) -> None:
        C, bias = config.n_embd, config.bias
        self.n_head, self.dropout, self.generator = config.n_head, config.dropout, generator
        self.scale = attention_scale(config, layer)
        self.c_attn = nn.Linear(C, 3 * C, bias, std=0.02, generator=generator, dtype=dtype)
        self.c_proj = nn.Linear(C, C, bias, std=residual_std(config), generator=generator, dtype=dtype)

    def forward(self, h: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """h (B, T, C) -> (B, T, C). cache: keys and values of earlier tokens; those of h are appended."""
        return with_bias(*self.branch(h, cache))

    def branch(self, h: Tensor, cache: KeyValueCache | None = None) -> tuple[Tensor, Tensor | None]:
        """The result of `forward` before the bias of `c_proj` is added, and that bias."""
        qkv = self.c_attn(h)  # (B, T, 3C)
        if cache is not None:
            y = cached_attention(qkv, self.n_head, cache, self.scale)
        else:
            dropout_p = self.dropout if self.training else 0.0
            y = ops.qkv_attention(qkv, self.n_head, True, dropout_p, self.scale, self.generator)
        return product_and_bias(self.c_proj, y)


@known("forward", "branch")
class MLP(nn.Module):
    """Two linear layers with a GELU or another activation in between."""

    def __init__(self, config: GPTConfig, generator: Generator, dtype: DTypeLike) -> None:
        C, bias, self.inner, self.activation = config.n_embd, config.bias, config.inner, config.activation_function
        self.c_fc = nn.Linear(C, self.inner, bias, std=0.02, generator=generator, dtype=dtype)
        self.c_proj = nn.Linear(self.inner, C, bias, std=residual_std(config), generator=generator, dtype=dtype)

    def forward(self, h: Tensor) -> Tensor:
        """h (B, T, C) -> (B, T, C)."""
        return with_bias(*self.branch(h))

    def branch(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """The result of `forward` before the bias of `c_proj` is added, and that bias."""
        if self.activation == "gelu_new" and (y := gelu_mlp(h, self.c_fc, self.c_proj)) is not None:
            return y, self.c_proj.bias
        z, bias = product_and_bias(self.c_fc, h)  # (B, T, inner), where inner is 4C unless n_inner is set
        if bias is not None and self.activation == "gelu_new":
            y = ops.bias_gelu(z, ops.in_dtype_of(z, bias))
        else:
            y = ACTIVATIONS[self.activation](with_bias(z, bias))
        return product_and_bias(self.c_proj, y)


@known("forward", "extend")
class Block(nn.Module):
    """x = x + attention(ln_1(x)); x = x + mlp(ln_2(x))."""

    def __init__(self, config: GPTConfig, layer: int, generator: Generator, dtype: DTypeLike) -> None:
        self.ln_1 = nn.LayerNorm(config.n_embd, config.bias, config.layer_norm_epsilon, dtype=dtype)
        self.attn = Attention(config, layer, generator, dtype)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.bias, config.layer_norm_epsilon, dtype=dtype)
        self.mlp = MLP(config, generator, dtype)
        self.dropout = nn.Dropout(config.dropout, generator)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """x (B, T, C) -> the same shape. cache: see `GPT.hidden`."""
        stream = ResidualStream(x)
        self.extend(stream, cache)
        return stream.value()

    def extend(self, x: ResidualStream, cache: KeyValueCache | None = None) -> None:
        """`forward` on a residual stream. Its last addition is left to the norm of the next block."""
        x.add(self.attn, x.norm(self.ln_1), self.dropout, cache)
        x.add(self.mlp, x.norm(self.ln_2), self.dropout)


def attention_scale(config: GPTConfig, layer: int) -> float | None:
    """The scale of the attention scores in block `layer`, counted from 0; None: 1 / sqrt(D)."""
    if config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx:
        return None
    scale = math.sqrt(config.n_head / config.n_embd) if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


def residual_std(config: GPTConfig) -> float:
    """Initial std of the 2 n_layer projections that add to the residual stream, so that their sum keeps std 0.02."""
    return 0.02 / math.sqrt(2 * config.n_layer)


@known("forward", "hidden", "head")
class GPT(LanguageModel):
    """A GPT-2 with the hyperparameters `config`, initialized from `seed`.

    `generator` produces all random numbers of the model: first the weights, then the dropout masks. Its `state_dict()`
    is part of the state of a training run.
    """

    config: GPTConfig
    config_class = GPTConfig

    def __init__(self, config: GPTConfig, seed: int = 0, dtype: DTypeLike = np.float32) -> None:
        if not isinstance(config, GPTConfig):
            raise DtypeError(f"GPT: config must be a GPTConfig, not {type(config).__name__}")
        if dtype not in (np.float32, np.float64, "float32", "float64"):
            raise DtypeError(f"GPT: dtype must be float32 or float64, not {dtype}")
        super().__init__(config, Generator(seed))
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, std=0.02, generator=self.generator, dtype=dtype)
        self.wpe = nn.Embedding(config.block_size, config.n_embd, std=0.02, generator=self.generator, dtype=dtype)
        self.h = [Block(config, layer, self.generator, dtype) for layer in range(config.n_layer)]
        self.ln_f = nn.LayerNorm(config.n_embd, config.bias, config.layer_norm_epsilon, dtype=dtype)
        self.dropout = nn.Dropout(config.dropout, self.generator)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Embedding(config.vocab_size, config.n_embd, generator=self.generator, dtype=dtype)

    @property
    def output_embedding(self) -> nn.Embedding:
        """The matrix of the head, (V, C)."""
        return self.wte if self.config.tie_word_embeddings else self.lm_head

    def hidden(self, idx: Ids, cache: Sequence[KeyValueCache] | None = None) -> Tensor:
        """idx (B, T) -> ln_f of the residual stream after the last block, (B, T, C).

        cache: from `new_cache`, one entry per block. Then idx continues the cached texts, and only the result for the
        last position is returned, (B, 1, C). The caller must advance the `lengths` of the cache.
        """
        ids = self.check_ids(idx, any_length=cache is not None)
        positions = np.arange(ids.shape[1]) if cache is None else cache[0].positions(ids.shape[1])  # (T,) or (B, T)
        x = self.wte(ids) + self.wpe(positions)  # (B, T, C)
        x = x if self.activations is None else ops.cast(x, self.activations)
        stream = ResidualStream(self.dropout(x), self.recompute)
        for i, block in enumerate(self.h):
            stream.through(block, None if cache is None else cache[i])
        return stream.norm(self.ln_f)

    def new_cache(self, B: int, capacity: int) -> list[KeyValueCache]:
        """One empty cache per block, for the keys and values of B texts of at most `capacity` tokens."""
        like, caches = self.wpe.weight.data, []
        for block in self.h:
            H = getattr(block.attn, "n_head", self.config.n_head)
            shape = (B, H, capacity, self.config.n_embd // H)
            keys, values = (array_module(like).zeros(shape, like.dtype) for _ in range(2))
            caches.append(KeyValueCache(keys, values, np.zeros(B, np.int64), last_only=block is self.h[-1]))
        return caches

    def flops_per_token(self, length: int | None = None) -> int:
        """Floating-point operations per token in a training step (forward and backward): 6 N + 12 L C T.

        N is the number of parameters used in matrix products: all but `wpe` and, if the head is untied, `wte`.
        The second term is attention over a sequence of T = `length` tokens (default: block_size).
        """
        config = self.config
        T = config.block_size if length is None else whole_number("flops_per_token", "length", length)
        looked_up = config.block_size + (0 if config.tie_word_embeddings else config.vocab_size)
        N = self.num_parameters() - looked_up * config.n_embd
        return 6 * N + 12 * config.n_layer * config.n_embd * T
