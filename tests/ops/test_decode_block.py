"""One new token through one block: the compiled body against the reference, the cache, the order of bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.cases.packed import FORMATS, budget, compiled, drawn_matrix, normal
from tests.ops.drawing import lay_out, seeds
from tests.ops.kernel_rule import EPS32, assert_within, doubled, largest
from tinygpt.backends import get
from tinygpt.ops.decode_block import BlockWeights, decode_block
from tinygpt.ops.packed import Matrix, unpack

UNUSED = 1234.5  # in the cache where a row has no token


def drawn_block(rng: np.random.Generator, C: int, form: Any, bias: bool, eps: float) -> BlockWeights:
    """Weights that matter, each of them: none is near what it would be if it were left out."""

    def vector(size: int, mean: float = 0.0) -> Any:
        return normal(rng, size, std=0.3) + np.float32(mean)

    def optional(size: int) -> Any:
        return vector(size) if bias else None

    return BlockWeights(
        ln_1=vector(C, 1.0), ln_1_bias=optional(C),
        attn=drawn_matrix(rng, (C, 3 * C), form, 0), attn_bias=optional(3 * C),
        attn_proj=drawn_matrix(rng, (C, C), form, 0), attn_proj_bias=optional(C),
        ln_2=vector(C, 1.0), ln_2_bias=optional(C),
        fc=drawn_matrix(rng, (C, 4 * C), form, 0), fc_bias=optional(4 * C),
        proj=drawn_matrix(rng, (4 * C, C), form, 0), proj_bias=optional(C),
        eps=eps,
    )  # fmt: skip


def drawn(
    heads: int,
    size: int,
    lengths: list[int],
    capacity: int,
    form: Any,
    bias: bool = True,
    seed: int = 0,
    eps: float = 1e-5,
) -> list[Any]:
    """[x, block, keys, values, length]."""
    rng = np.random.default_rng(seed)
    M, C = len(lengths), heads * size
    x, block = normal(rng, M, C), drawn_block(rng, C, form, bias, eps)
    keys, values = normal(rng, M, heads, capacity, size), normal(rng, M, heads, capacity, size)
    for m, length in enumerate(lengths):
        keys[m, :, length:], values[m, :, length:] = UNUSED, UNUSED
    return [x, block, keys, values, np.array(lengths, np.int64)]


def copied(arguments: list[Any]) -> list[Any]:
    return [value.copy() if isinstance(value, np.ndarray) else value for value in arguments]


def run(arguments: list[Any]) -> list[np.ndarray]:
    """x, keys and values after the block, of copies."""
    x, block, keys, values, length = copied(arguments)
    extension = get("numpy").extension()
    size = 1 if extension is None else extension.decode_work(*x.shape)
    decode_block(x, block, keys, values, length, np.full(size, np.nan, x.dtype))
    return [x, keys, values]


def of_plain_arrays(x: Any, keys: Any, values: Any, length: Any, eps: float, *weights: Any) -> list[Any]:
    """The reference on unpacked weights, in the arrays' dtype: x, and what the cache took."""
    fields = dict(zip([name for name in BlockWeights._fields if name != "eps"], weights, strict=True))
    packed = {name: Matrix(value) if value is not None and value.ndim == 2 else value for name, value in fields.items()}
    decode_block.reference(x, BlockWeights(**packed, eps=eps), keys, values, length, None)
    rows = np.arange(len(x))
    return [x, keys[rows, :, length], values[rows, :, length]]


def check(arguments: list[Any]) -> None:
    x, block, keys, values, length = arguments
    weights = [unpack(w) if isinstance(w, Matrix) else w for w in block[:-1]]
    truth, allowed = budget(of_plain_arrays, [x, keys, values, length, block.eps, *weights])
    got, new_keys, new_values = run(arguments)
    rows = np.arange(len(x))
    assert_within([got, new_keys[rows, :, length], new_values[rows, :, length]], truth, allowed)
    new_keys[rows, :, length], new_values[rows, :, length] = UNUSED, UNUSED
    assert np.array_equal(new_keys, keys)  # nothing else was written
    assert np.array_equal(new_values, values)


lengths = st.lists(st.sampled_from([0, 1, 2, 5, 15, 16, 17, 63]), min_size=1, max_size=5)


@compiled
@settings(max_examples=80)
@given(
    heads=st.sampled_from([1, 2, 3]),
    size=st.sampled_from([1, 5, 8, 16, 17, 40]),
    lengths=lengths,
    spare=st.sampled_from([1, 2, 9]),
    form=st.sampled_from(FORMATS),
    bias=st.booleans(),
    eps=st.sampled_from([1e-5, 0.1]),
    seed=seeds,
)
def test_compiled_block(
    heads: int, size: int, lengths: list[int], spare: int, form: Any, bias: bool, eps: float, seed: int
) -> None:
    check(drawn(heads, size, lengths, max(lengths) + spare, form, bias, seed, eps))


@compiled
@pytest.mark.parametrize(("heads", "size"), [(5, 1), (2, 64), (1, 80), (2, 128)])
@pytest.mark.parametrize(
    ("form", "bias"), [(("float32", None), True), (("bfloat16", None), False), (("int8", 24), True)]
)
def test_compiled_block_over_long_texts(heads: int, size: int, form: Any, bias: bool) -> None:
    """On both sides of the number of keys that attention takes at a time, with rows of very different lengths."""
    check(drawn(heads, size, [127, 0, 128, 129, 1, 300, 255, 256], 301, form, bias))


@compiled
def test_the_best_key_may_come_anywhere() -> None:
    """Attention goes over the keys in pieces and scales down what it has whenever it meets a greater score."""
    for place in (0, 5, 127, 128, 200, 255, 256, 290):
        x, block, keys, values, length = drawn(2, 16, [299, 130], 300, ("float32", None), seed=place)
        query = np.float32(40) * keys[0, :, place]  # along which scores differ much
        keys[0] *= np.float32(0.1)
        keys[0, :, place] = query
        keys[0, :, 299:] = UNUSED
        check([x, block, keys, values, length])


@compiled
def test_a_row_far_from_zero_is_normalised_with_its_exact_mean() -> None:
    """Deviations of a millionth of the mean, seen in the keys: a mean rounded to float32 would be off by tenths."""
    x, block, keys, values, length = drawn(4, 16, [0, 3], 4, ("float32", None), eps=1e-12)
    x = np.float32(1000) + np.float32(1e-3) * x
    weights = [w.data if isinstance(w, Matrix) else w for w in block[:-1]]
    arguments = [x, keys, values, length, block.eps, *weights]
    truth = of_plain_arrays(*doubled(arguments))[1]
    reference = of_plain_arrays(*copied(arguments))[1]
    got = run([x, block, keys, values, length])[1][np.arange(2), :, length]
    assert largest(got - truth) <= 2 * largest(reference - truth) + EPS32 * largest(truth)


@compiled
def test_scores_beyond_the_range_of_exp() -> None:
    for factor in (30, 1000):
        x, block, keys, values, length = drawn(2, 8, [0, 1, 140, 260], 261, ("float32", None))
        keys[keys != UNUSED] *= np.float32(factor)
        with np.errstate(all="ignore"):
            check([x, block, keys, values, length])


@compiled
@pytest.mark.parametrize("form", FORMATS)
def test_a_row_is_the_same_among_any_others_and_on_any_number_of_threads(form: Any, threads: Any) -> None:
    arguments = drawn(4, 24, [127, 0, 300, 128, 3, *range(100, 115)], 301, form)
    threads(1)
    expected = run(arguments)
    for count in (2, 3, 8):
        threads(count)
        assert all(np.array_equal(a, b) for a, b in zip(run(arguments), expected, strict=True))
    x, block, keys, values, length = arguments
    for rows in ([0], [2], [4], [1, 3], [3, 0, 2, 1], list(range(17))):
        some = run([x[rows], block, keys[rows], values[rows], length[rows]])
        assert all(np.array_equal(a, b[rows]) for a, b in zip(some, expected, strict=True)), rows


def test_weights_are_left_alone() -> None:
    arguments = drawn(2, 8, [3, 9], 12, ("int8", 8))
    before = [w.data.copy() if isinstance(w, Matrix) else np.copy(w) for w in arguments[1]]
    run(arguments)
    after = [w.data if isinstance(w, Matrix) else w for w in arguments[1]]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_is_not_finite_stays_in_its_row() -> None:
    arguments = drawn(2, 8, [3, 9, 150], 151, ("float32", None))
    clean = run(arguments)
    for value in (np.nan, np.inf):
        arguments[0][1, 3] = value
        with np.errstate(all="ignore"):
            got = run(arguments)
        assert np.isnan(got[0][1]).all()
        for a, b in zip(got, clean, strict=True):
            assert np.array_equal(a[[0, 2]], b[[0, 2]])


@pytest.mark.parametrize("layout", ["F", "strided", "negative", "read-only"])
@pytest.mark.parametrize("name", ["attn", "fc_bias", "ln_1"])
def test_weights_of_any_layout(layout: str, name: str) -> None:
    """The compiled body takes what lies as it wants; the rest is the reference's."""
    arguments = drawn(2, 8, [3, 9], 12, ("float32", None))
    value = getattr(arguments[1], name)
    placed = Matrix(lay_out(value.data.copy(), layout)) if name == "attn" else lay_out(value.copy(), layout)
    arguments[1] = arguments[1]._replace(**{name: placed})
    check(arguments)


def test_a_cache_that_does_not_fit_never_reaches_the_compiled_loops() -> None:
    """They would write beyond it; NumPy says what is wrong."""
    x, block, keys, values, length = drawn(2, 8, [3, 9], 12, ("float32", None))
    for cut in ((slice(1),), (slice(2), slice(1))):
        with pytest.raises((ValueError, IndexError)):
            run([x, block, keys[cut], values[cut], length])
    with pytest.raises((ValueError, IndexError)):
        run([x, block, keys, values[:1], length])


def test_a_cache_of_any_layout() -> None:
    x, block, keys, values, length = drawn(2, 8, [3, 9], 12, ("float32", None))
    expected = run([x, block, keys, values, length])
    strided = [lay_out(array, "strided") for array in (x, keys, values)]
    decode_block(strided[0], block, strided[1], strided[2], length, np.empty(10000, np.float32))
    for got, want in zip(strided, expected, strict=True):
        assert np.allclose(got, want, rtol=0, atol=1e-5)


def test_reference_by_hand() -> None:
    """Row by row and head by head, in float64, from the formulas: what the other tests take for the truth."""
    x, block, keys, values, length = drawn(3, 4, [0, 5, 2], 7, ("int8", 8))
    x, keys, values = (array.astype(np.float64) for array in (x, keys, values))
    W = {name: unpack(getattr(block, name)).astype(np.float64) for name in ("attn", "attn_proj", "fc", "proj")}

    def norm(v: Any, weight: Any, bias: Any) -> Any:
        return (v - v.mean()) / np.sqrt(v.var() + block.eps) * weight + bias

    expected = []
    for m, row in enumerate(x):
        q, k, v = np.split(norm(row, block.ln_1, block.ln_1_bias) @ W["attn"] + block.attn_bias, 3)
        heads = []
        for h in range(3):
            part = slice(4 * h, 4 * h + 4)
            K, V = np.vstack([keys[m, h, : length[m]], k[part]]), np.vstack([values[m, h, : length[m]], v[part]])
            weights = np.exp(K @ q[part] / 2)
            heads.append(weights @ V / weights.sum())
        row = row + np.concatenate(heads) @ W["attn_proj"] + block.attn_proj_bias
        z = norm(row, block.ln_2, block.ln_2_bias) @ W["fc"] + block.fc_bias
        gelu = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
        expected.append(row + gelu @ W["proj"] + block.proj_bias)
    decode_block.reference(x, block, keys, values, length, None)
    assert np.allclose(x, expected, rtol=0, atol=1e-12)
