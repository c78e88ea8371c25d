"""Run several prompts, or pieces of prompts, through the model in one pass: its weights are read once for all of them.

    joint = joint_prompts(one_pass(model))  # None if the model has to be called
    hidden = joint([ids, ...], [cache, ...])

It runs `GPT.hidden` on the tokens of all prompts as one text, without padding. Only attention sees other tokens, and a
`JointCache` gives each prompt's tokens to that prompt's own cache.

With the compiled kernels no bit of a prompt's result depends on the others. That is a property of two products, each of
which adds in the same order for any number of rows: the one for few rows, which prompts of less than LONG tokens use
(`ops/packed.py`), and the one for many (`_ext/cpu/matmul`). Which one is used depends on the prompt alone, so the short
ones share passes, and so do the long ones. `FewRowsLinear` replaces a layer so that it always computes as for few rows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..gpt import GPT
from ..graph import no_grad
from ..kernel import compiled_part
from ..nn import Linear
from ..nn.known import known
from ..nn.module import Module, replaced
from ..nn.packed import PackedLinear, with_bias
from ..ops.cached_attention import KeyValueCache
from ..ops.packed import few_rows_product
from ..tensor import Tensor
from ..typing import Array
from .one_pass import OnePass

LONG = 32  # the fewest rows and columns that the product of many rows takes (FEWEST in product.pyx)
MOST_SHORT, MOST_LONG = 128, 512  # tokens in a pass: enough for the speed, and little memory

Cache = Sequence[KeyValueCache]


@known("forward", "product")
class FewRowsLinear(Module):
    """A linear layer that computes any number of rows as it computes a few."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    @property
    def bias(self) -> Any:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return with_bias(self.product(x), self.bias)

    def product(self, x: Tensor) -> Tensor:
        """x (..., in) -> x W (..., out)."""
        rows = np.ascontiguousarray(x.data.reshape(-1, x.shape[-1]))
        y = few_rows_product(rows, self.layer.matrix)
        return Tensor(y.reshape(*x.shape[:-1], y.shape[1]))


class JointCache(KeyValueCache):
    """One block's caches for several texts, whose N new tokens follow one another as if they were a single text.

    ends: (len(caches),) where each text's new tokens end.
    """

    def __init__(self, caches: Sequence[KeyValueCache], ends: np.ndarray) -> None:
        self.caches, self.ends, self.last_only = caches, ends, caches[0].last_only

    def positions(self, T: int) -> np.ndarray:
        """(1, N)."""
        counts = np.diff(self.ends, prepend=0)
        return np.concatenate([one.positions(n) for one, n in zip(self.caches, counts, strict=True)], axis=1)

    def last(self, x: Tensor) -> Tensor:
        """x (1, N, C) -> (1, len(caches), C). A result of `attend` has already been cut."""
        return x if x.shape[1] == len(self.ends) else Tensor(x.data[:, self.ends - 1])

    def attend(self, qkv: Array, n_head: int, scale: float | None) -> Array:
        """qkv (1, N, 3C) -> (1, N, C), or (1, len(caches), C) if `last_only`."""
        parts = zip([0, *self.ends], self.ends, self.caches, strict=False)
        return np.concatenate([one.attend(qkv[:, a:b], n_head, scale) for a, b, one in parts], axis=1)


class JointPrompts:
    """The pass above for one model, with its weights at the time of the call."""

    def __init__(self, model: GPT) -> None:
        ours = compiled_part("product_is_ours")
        self.many_rows = ours is not None and ours() and model.config.n_embd >= LONG
        self.model = model

    @functools.cached_property
    def short(self) -> GPT:
        """The model, for short prompts."""
        return self._with_few_rows("")

    @functools.cached_property
    def long(self) -> GPT:
        """The model, for long prompts. Beyond its last attention only the last token of each prompt matters."""
        last = f"h.{len(self.model.h) - 1}"
        return self._with_few_rows(f"{last}.attn.c_proj", f"{last}.mlp.")

    def _with_few_rows(self, *beginnings: str) -> Any:
        """The model with a FewRowsLinear for each linear layer whose path begins with one of these."""
        linear = [pair for pair in self.model.named_modules() if isinstance(pair[1], (Linear, PackedLinear))]
        return replaced(self.model, {p: FewRowsLinear(layer) for p, layer in linear if p.startswith(beginnings)})

    def __call__(self, prompts: Sequence[np.ndarray], caches: Sequence[Cache]) -> list[Any]:
        """ids (T,) of each prompt, and the cache of its text, whose `lengths` the caller advances -> a list of (C,)."""
        hidden: list[Any] = [None] * len(prompts)
        is_short = [not self.many_rows or len(ids) < LONG for ids in prompts]
        for few, most in ((True, MOST_SHORT), (False, MOST_LONG)):
            mine = [i for i, short in enumerate(is_short) if short == few]
            for some in passes(mine, [len(ids) for ids in prompts], most):
                model = self.short if few else self.long
                found = self._one(model, [prompts[i] for i in some], [caches[i] for i in some])
                for i, row in zip(some, found, strict=True):
                    hidden[i] = row
        return hidden

    @staticmethod
    def _one(model: GPT, prompts: list[np.ndarray], caches: list[Cache]) -> Any:
        """One pass -> (len(prompts), C)."""
        ends = np.cumsum([len(ids) for ids in prompts])
        joint = [JointCache(layer, ends) for layer in zip(*caches, strict=True)]
        with no_grad(), model.evaluating(), model.compute_in("float32"):
            return model.hidden(np.concatenate(prompts)[None], joint).data[0]


def passes(which: Sequence[int], lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Cut `which` into runs of at most `most` tokens, or of a single one that has more."""
    run, total = list[int](), 0
    for i in which:
        if run and total + lengths[i] > most:
            yield run
            run, total = [], 0
        run.append(i)
        total += lengths[i]
    if run:
        yield run


def joint_prompts(one_pass: OnePass | None) -> JointPrompts | None:
    """The pass for a model, given its fast path for decoding, which also provides the merged LoRA weights; None if a
    part of the model is user-defined, and on a GPU."""
    if one_pass is None or not isinstance(one_pass.wpe, np.ndarray):
        return None
    return JointPrompts(one_pass.model)
