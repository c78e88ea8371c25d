"""The next token of each row, drawn where the logits are: on a GPU, so that the host reads one number a row, not V.

    s_i = logit_i / temperature,  w_i = exp(s_i - max s)      unnormalised probabilities
    top_k:  tokens below the k-th largest logit get w_i = 0
    top_p:  so do the least probable ones, while all that are dropped have at most (1 - p) of the total;
            of equal ones the lower id is dropped first
    token:  the first i with w_0 + ... + w_i > u * (w_0 + ... + w_(V-1))

This is what `tinygpt.generation.token_sampler` does on the host, with the same random numbers u and in double precision
as well. Sums are added in another order, so the two differ where u comes as close to a border as these sums round:
about once in 10^12 tokens. A temperature of 0 takes the largest logit, of equal ones the first.

Inference only: there is no gradient, so this is a kernel without a Function.

No oracle: the host's sampler is one, and the tests compare the two.

Shapes: logits (R, V), number (R,); result (R,) int64.
Source: top_k: Fan, Lewis, Dauphin, "Hierarchical Neural Story Generation", 2018, section 5.4; top_p: Holtzman et al.,
"The Curious Case of Neural Text Degeneration", 2020, section 3.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends import array_module
from ..kernel import kernel
from ..typing import Array

UNIT = 2.0**-53


@kernel(integers=("number",))
def sample_tokens(logits: Array, number: Array, size: int, temperature: float, top_k: int, top_p: float) -> Array:
    """The token of each row, (R,) int64, out of the first `size` ones; -1 for a row with a logit that is not finite.

    number: u * 2**53 for each row, integers in 0 .. 2**53 - 1. top_k: 0 for all. top_p: 1 for all.
    """
    xp = array_module(logits)
    x = logits[:, :size].astype(np.float64)  # (R, V)
    finite = xp.isfinite(x).sum(axis=1) == size
    if temperature == 0:
        return xp.where(finite, x.argmax(axis=1), -1)
    with np.errstate(all="ignore"):  # rows that are not finite
        return xp.where(finite, _drawn(xp, x, number * UNIT, temperature, top_k, top_p), -1)


def _drawn(xp: Any, x: Array, u: Array, temperature: float, top_k: int, top_p: float) -> Array:
    """x (R, V) float64, u (R,) -> (R,)."""
    size = x.shape[1]
    if 0 < top_k < size:
        x = xp.where(x >= xp.sort(x, axis=1)[:, size - top_k, None], x, -np.inf)
    best = x.max(axis=1, keepdims=True)
    shift = xp.where(xp.isinf(best / temperature), best, 0.0)  # so that a small temperature makes no infinities
    scores = (x - shift) / temperature
    weights = xp.exp(scores - scores.max(axis=1, keepdims=True))  # (R, V)
    if top_p < 1:
        order = xp.argsort(scores, axis=1, kind="stable")
        sums = xp.cumsum(xp.take_along_axis(weights, order, axis=1), axis=1)
        dropped = sums <= (1 - top_p) * sums[:, -1:]
        dropped[:, -1] = False
        places = xp.argsort(order, axis=1, kind="stable")  # of each token in the order
        weights = xp.where(xp.take_along_axis(dropped, places, axis=1), 0.0, weights)
    sums = xp.cumsum(weights, axis=1)
    return (sums <= u[:, None] * sums[:, -1:]).sum(axis=1)
