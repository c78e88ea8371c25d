"""One decoding step through one block of the model: one new token for each of M texts.

The mathematics is that of the block with a cache (`tinygpt.gpt.Block`, `cached_attention.py`): the reference below just
calls the block. The compiled bodies compute the whole block in one pass, reading its weights instead of calling its
layers, so the caller must check that these are unmodified layers of this package (`tinygpt/generation/one_pass.py`).

Inference only: there is no gradient, so this is a kernel without a Function. Its cost is reading the weights. The
compiled body reads them once for all M rows, in any format of `tinygpt.ops.packed`, and row m of the result has the
same bits whatever the other rows are.

No oracle: it has no gradient, and its reference is the model's own block.

Letters: M rows, C channels, H heads, D = C / H. Shapes: x (M, C), keys and values (M, H, capacity, D), length (M,).
Source: the block: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3; decoding
with a cache: cached_attention.py.
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
    """Replace x (M, C) by the block's result, and store the keys and values of each row's token at length[m]. In place.

    work: workspace of the compiled body, `decode_work(M, C, inner)` floats; unused here.
    """
    with no_grad(), block.evaluating():
        cache = KeyValueCache(keys, values, move(length, "numpy"))
        x[...] = block(Tensor(x[:, None]), cache).data[:, 0]
