"""The rows of attention; see `__init__.py`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.ops.cases import large as sizes
from tests.ops.cases.neural import keys, writable
from tests.ops.cases.wide import head_sizes, several_tiles
from tests.ops.drawing import Example, Input, KernelRow, Row, inputs, leading, one_in_eight, reduced, small
from tinygpt import ops
from tinygpt.ops.attention import Attention, QKVAttention, attention_composed
from tinygpt.random import Generator
from tinygpt.tensor import Tensor

# One in eight is empty, and neither the first nor the last, which hypothesis draws most often.
batches = st.sampled_from([1, 2, 3, 0, 5, 1, 2, 3])
query_counts, key_counts = st.sampled_from([1, 2, 9, 0, 65, 2, 9, 65]), st.sampled_from([1, 2, 7, 17, 66])
contiguous_heads = st.sampled_from(["C", "apart"])


@st.composite
def attention_options(draw: Any) -> dict[str, Any]:
    return {
        "is_causal": draw(st.booleans()),
        "scale": draw(st.sampled_from([None, 0.3])),
        "dropout_p": draw(st.sampled_from([0.0, 0.5])),
        "key": draw(keys),
    }


@st.composite
def queries_keys_values(draw: Any) -> Example:
    B, H, D = draw(leading), draw(small), draw(reduced)
    Tq, Tk = draw(st.sampled_from([0, 1, 2, 9])), draw(st.sampled_from([1, 2, 7, 17]))
    arrays = draw(inputs((B, H, Tq, D))), draw(inputs((B, H, Tk, D))), draw(inputs((B, H, Tk, D)))
    return Example(arrays, draw(attention_options()))


@st.composite
def packed_qkv(draw: Any) -> Example:
    B, T, H, D = draw(leading), draw(st.sampled_from([1, 2, 9])), draw(small), draw(st.sampled_from([1, 3, 8]))
    return Example((draw(inputs((B, T, 3 * H * D))),), {"n_head": H, **draw(attention_options())})


def attention(*qkv: Tensor, key: tuple[int, int], **options: Any) -> Tensor:
    return ops.attention(*qkv, **options, generator=Generator(*key))


def attention_oracle(*qkv: Tensor, key: tuple[int, int], **options: Any) -> Tensor:
    return attention_composed(*qkv, **options, seed=key[0], stream=key[1])


def qkv_attention(qkv: Tensor, n_head: int, key: tuple[int, int], **options: Any) -> Tensor:
    return ops.qkv_attention(qkv, n_head, **options, generator=Generator(*key))


def qkv_attention_oracle(qkv: Tensor, n_head: int, **options: Any) -> Tensor:
    B, T, width = qkv.shape
    C = width // 3
    heads = [part.reshape(B, T, n_head, C // n_head).transpose(1, 2) for part in qkv.split(C, axis=-1)]
    return attention_oracle(*heads, **options).transpose(1, 2).reshape(B, T, C)


@st.composite
def attention_arguments(
    draw: Any, backward: bool = False, D: Any = reduced, Tq: Any = query_counts, Tk: Any = key_counts
) -> Example:
    B, H, D = draw(batches), draw(small), draw(D)
    Tq, Tk = draw(Tq), draw(Tk)
    queries, keys_ = (B, H, Tq, D), (B, H, Tk, D)
    q, k, v = draw(inputs(queries)), draw(inputs(keys_)), draw(inputs(keys_))
    options = (draw(st.booleans()), 0.3, draw(st.sampled_from([0.0, 0.5])), *draw(keys))
    if not backward:
        return Example((q, k, v, *options))
    # The compiled body writes into results whose last axis is contiguous, all three: drawn one by one they rarely are.
    layouts = writable if draw(one_in_eight) else contiguous_heads
    results = [Input(shape, draw(layouts), 0) for shape in (queries, keys_, keys_)]
    lse = sizes.LogSums((B, H, Tq, 2), draw(writable), q=q, k=k, is_causal=options[0], scale=options[1])
    return Example((draw(inputs(queries)), q, k, v, draw(inputs(queries)), lse, *options, *results))


ROWS = [
    Row("attention", attention, queries_keys_values(), (Attention,), attention_oracle),
    Row("qkv_attention", qkv_attention, packed_qkv(), (QKVAttention,), qkv_attention_oracle),
]

KERNEL_ROWS = [
    KernelRow(
        "attention_forward",
        attention_arguments(),
        large=sizes.attentions(False),
        wide=st.one_of(attention_arguments(D=head_sizes), several_tiles()),
    ),
    KernelRow(
        "attention_backward",
        attention_arguments(backward=True),
        writes=(11, 12, 13),
        large=sizes.attentions(True),
        wide=st.one_of(attention_arguments(True, D=head_sizes), several_tiles(True)),
    ),
]
