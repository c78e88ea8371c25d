"""One new token through one block of the model, for M texts at once: what a model does while it writes.

The mathematics is the block's own, with a cache (`tinygpt.gpt.Block`, `cached_attention.py`): the reference below calls
the block, and there is no second statement of it. The compiled bodies do the whole block in one pass, reading its
weights instead of calling its layers: whoever calls makes sure that they are layers of this package, unchanged
(`tinygpt/generation/one_pass.py`).

Inference only: there is no gradient, so this is a kernel without a Function. What it costs is reading the weights; the
compiled body reads them once for all M rows, in whichever format of `tinygpt.ops.packed` they are, and row m of its
result has the same bits whatever the other rows are.

Letters: M rows, C channels, H heads, D = C / H. Shapes: x (M, C), keys and values (M, H, capacity, D), length (M,).
"""

from __future__ import annotations

from typing import Any

from ..backends import move
from ..graph import no_grad
from ..kernel import kernel
from ..tensor import Tensor
from ..typing import Array
from .cached_attention import KeyValueCache


@kernel(in_place=True)
def decode_block(x: Array, block: Any, keys: Array, values: Array, length: Any, work: Array) -> None:
    """x (M, C) becomes the block's result, and the cache takes one more token of each row, at length[m]: all in place.

    work: room for the compiled body, `decode_work(M, C, inner)` floats; unused here.
    """
    with no_grad(), block.evaluating():
        cache = KeyValueCache(keys, values, move(length, "numpy"))
        x[...] = block(Tensor(x[:, None]), cache).data[:, 0]
