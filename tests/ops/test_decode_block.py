"""One new token through one block: the compiled body against the reference, the cache, the order of bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.blocks import PARAMETERS, array_at, block_of, put
from tests.ops.cases.packed import ALL_FORMATS, budget, compiled, drawn_matrix, normal, terms
from tests.ops.drawing import lay_out, seeds
from tests.ops.kernel_rule import EPS32, assert_within, doubled, largest
from tinygpt.backends import get
from tinygpt.errors import UsageError
from tinygpt.gpt import ACTIVATIONS, Block
from tinygpt.ops.decode_block import decode_block
from tinygpt.ops.packed import Matrix, unpack

UNUSED = 1234.5  # in the cache where a row has no token


def drawn_arrays(rng: np.random.Generator, C: int, form: Any, bias: bool, inner: int) -> dict[str, Any]:
    """Weights that matter, each of them: none is near what it would be if it were left out."""
    shapes = {
        "ln_1": (C,), "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C),
        "ln_2": (C,), "mlp.c_fc": (C, inner), "mlp.c_proj": (inner, C),
    }  # fmt: skip
    arrays: dict[str, Any] = {}
    for layer, shape in shapes.items():
        if len(shape) == 2:
            arrays[f"{layer}.weight"] = drawn_matrix(rng, shape, form, 0)
        else:
            arrays[f"{layer}.weight"] = normal(rng, C, std=0.3) + np.float32(1)
        arrays[f"{layer}.bias"] = normal(rng, shape[-1], std=0.3) if bias else None
    return arrays


def drawn(
    heads: int,
    size: int,
    lengths: list[int],
    capacity: int,
    form: Any,
    bias: bool = True,
    seed: int = 0,
    eps: float = 1e-5,
    inner: int | None = None,
    **variant: Any,
) -> list[Any]:
    """[x, block, keys, values, length]. variant: the activation, and the scale of attention. The sizes are at least
    those that are asked for, and what the format can have."""
    rng, size = np.random.default_rng(seed), terms(size, form)
    M, C = len(lengths), heads * size
    x, arrays = normal(rng, M, C), drawn_arrays(rng, C, form, bias, 4 * C if inner is None else terms(inner, form))
    keys, values = normal(rng, M, heads, capacity, size), normal(rng, M, heads, capacity, size)
    for m, length in enumerate(lengths):
        keys[m, :, length:], values[m, :, length:] = UNUSED, UNUSED
    return [x, block_of(arrays, heads, eps, **variant), keys, values, np.array(lengths, np.int64)]


def copied(arguments: list[Any]) -> list[Any]:
    return [value.copy() if isinstance(value, np.ndarray) else value for value in arguments]


def run(arguments: list[Any]) -> list[np.ndarray]:
    """x, keys and values after the block, of copies."""
    x, block, keys, values, length = copied(arguments)
    extension = get("numpy").extension()
    size = 1 if extension is None else extension.decode_work(*x.shape, block.mlp.inner)
    decode_block(x, block, keys, values, length, np.full(size, np.nan, x.dtype))
    return [x, keys, values]


def arrays_of(block: Block) -> list[Any]:
    return [array_at(block, name) for name in PARAMETERS]


def of_plain_arrays(x: Any, keys: Any, values: Any, length: Any, like: Block, *weights: Any) -> list[Any]:
    """The reference on unpacked weights, in the arrays' dtype: x, and what the cache took."""
    arrays = dict(zip(PARAMETERS, weights, strict=True))
    block = block_of(arrays, like.attn.n_head, like.ln_1.eps, like.mlp.activation, like.attn.scale)
    decode_block.reference(x, block, keys, values, length, None)
    rows = np.arange(len(x))
    return [x, keys[rows, :, length], values[rows, :, length]]


def check(arguments: list[Any]) -> None:
    x, block, keys, values, length = arguments
    weights = [unpack(w) if isinstance(w, Matrix) else w for w in arrays_of(block)]
    truth, allowed = budget(of_plain_arrays, [x, keys, values, length, block, *weights])
    got, new_keys, new_values = run(arguments)
    rows = np.arange(len(x))
    assert_within([got, new_keys[rows, :, length], new_values[rows, :, length]], truth, allowed)
    new_keys[rows, :, length], new_values[rows, :, length] = UNUSED, UNUSED
    assert np.array_equal(new_keys, keys)  # nothing else was written
    assert np.array_equal(new_values, values)


lengths = st.lists(st.sampled_from([0, 1, 2, 5, 15, 16, 17, 63]), min_size=1, max_size=5)


@pytest.mark.slow
@compiled
@settings(max_examples=80)
@given(
    heads=st.sampled_from([1, 2, 3]),
    size=st.sampled_from([1, 5, 8, 16, 17, 40]),
    lengths=lengths,
    spare=st.sampled_from([1, 2, 9]),
    form=st.sampled_from(ALL_FORMATS),
    bias=st.booleans(),
    eps=st.sampled_from([1e-5, 0.1]),
    inner=st.sampled_from([None, None, 1, 7, 24, 100]),
    activation=st.sampled_from([*ACTIVATIONS]),
    scale=st.sampled_from([None, 0.05, 1.0]),
    seed=seeds,
)
def test_compiled_block(
    heads: int, size: int, lengths: list[int], spare: int, form: Any, bias: bool, seed: int, **variant: Any
) -> None:
    check(drawn(heads, size, lengths, max(lengths) + spare, form, bias, seed, **variant))


@pytest.mark.slow
@compiled
@pytest.mark.parametrize(("heads", "size"), [(5, 1), (2, 64), (1, 80), (2, 128)])
@pytest.mark.parametrize(
    ("form", "bias"),
    [(("float32", None), True), (("bfloat16", None), False), (("int8", 24), True), (("int4", None), True)],
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
    arguments = [x, keys, values, length, block, *arrays_of(block)]
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
@pytest.mark.parametrize("form", ALL_FORMATS)
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
    before = [w.data.copy() if isinstance(w, Matrix) else np.copy(w) for w in arrays_of(arguments[1])]
    run(arguments)
    after = [w.data if isinstance(w, Matrix) else w for w in arrays_of(arguments[1])]
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
@pytest.mark.parametrize("name", ["attn.c_attn.weight", "mlp.c_fc.bias", "ln_1.weight"])
def test_weights_of_any_layout(layout: str, name: str) -> None:
    """The compiled body takes what lies as it wants; the rest is the reference's."""
    arguments = drawn(2, 8, [3, 9], 12, ("float32", None))
    put(arguments[1], name, lay_out(array_at(arguments[1], name).copy(), layout))
    check(arguments)


@compiled
@pytest.mark.parametrize(
    ("name", "shape"),
    [("ln_1.weight", (15,)), ("ln_2.bias", (17,)), ("attn.c_attn.weight", (16, 47)), ("attn.c_attn.bias", (47,)),
     ("attn.c_proj.weight", (16, 17)), ("attn.c_proj.bias", (1,)), ("mlp.c_fc.weight", (15, 64)),
     ("mlp.c_fc.bias", (63,)), ("mlp.c_proj.weight", (63, 16)), ("mlp.c_proj.bias", (15,))],
)  # fmt: skip
def test_arrays_that_do_not_fit_never_reach_the_compiled_loops(name: str, shape: Any) -> None:
    """They read as many numbers as the sizes say. The reference, which is the block, has a sentence."""
    arguments = drawn(2, 8, [3, 9], 12, ("float32", None))
    put(arguments[1], name, np.ones(shape, np.float32))
    with pytest.raises((UsageError, ValueError)):
        run(arguments)


@compiled
@pytest.mark.parametrize(
    ("name", "shape"),
    [("attn.c_attn", (32, 192)), ("attn.c_attn", (64, 191)), ("attn.c_attn", (64, 208)), ("attn.c_proj", (64, 48)),
     ("mlp.c_fc", (96, 256)), ("mlp.c_proj", (224, 64)), ("mlp.c_proj", (256, 80))],
)  # fmt: skip
def test_matrices_of_four_bits_that_do_not_fit_never_reach_them_either(name: str, shape: tuple[int, int]) -> None:
    arguments = drawn(2, 32, [3, 9], 12, ("int4", None))
    put(arguments[1], f"{name}.weight", drawn_matrix(np.random.default_rng(0), shape, ("int4", None), 0))
    with pytest.raises((UsageError, ValueError)):
        run(arguments)


@compiled
def test_a_room_that_is_too_small_is_not_written_to() -> None:
    arguments = drawn(2, 8, [3, 9], 12, ("float32", None))
    expected = run(arguments)
    x, block, keys, values, length = copied(arguments)
    work = np.full(10, np.nan, np.float32)
    decode_block(x, block, keys, values, length, work)
    assert np.isnan(work).all()
    assert np.allclose(x, expected[0], rtol=0, atol=1e-5)


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


BY_HAND: dict[str, Any] = {
    "gelu_new": lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    "gelu": lambda z: z * np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in z]),
    "relu": lambda z: np.where(z > 0, z, 0),
    "silu": lambda z: z / (1 + np.exp(-z)),
}


@pytest.mark.parametrize("activation", BY_HAND)
@pytest.mark.parametrize(("scale", "inner"), [(None, None), (0.7, 20)])
def test_reference_by_hand(activation: str, scale: float | None, inner: int | None) -> None:
    """Row by row and head by head, in float64, from the formulas: what the other tests take for the truth."""
    variant: Any = {"activation": activation, "scale": scale, "inner": inner}
    x, block, keys, values, length = drawn(3, 4, [0, 5, 2], 7, ("int8", 8), **variant)
    x, keys, values = (array.astype(np.float64) for array in (x, keys, values))
    arrays = {n: unpack(a) if isinstance(a, Matrix) else a for n, a in zip(PARAMETERS, arrays_of(block), strict=True)}
    block = block_of({n: a.astype(np.float64) for n, a in arrays.items()}, 3, 1e-5, activation, scale)
    W, b = ({n.split(".")[-2]: a for n, a in arrays.items() if n.endswith(end)} for end in ("weight", "bias"))
    W["mlp"], b["mlp"] = arrays["mlp.c_proj.weight"], arrays["mlp.c_proj.bias"]
    W["c_proj"], b["c_proj"] = arrays["attn.c_proj.weight"], arrays["attn.c_proj.bias"]

    def norm(v: Any, name: str) -> Any:
        return (v - v.mean()) / np.sqrt(v.var() + 1e-5) * W[name] + b[name]

    expected = []
    for m, row in enumerate(x):
        q, k, v = np.split(norm(row, "ln_1") @ W["c_attn"] + b["c_attn"], 3)
        heads = []
        for h in range(3):
            part = slice(4 * h, 4 * h + 4)
            K, V = np.vstack([keys[m, h, : length[m]], k[part]]), np.vstack([values[m, h, : length[m]], v[part]])
            weights = np.exp(K @ q[part] * (0.5 if scale is None else scale))
            heads.append(weights @ V / weights.sum())
        row = row + np.concatenate(heads) @ W["c_proj"] + b["c_proj"]
        z = norm(row, "ln_2") @ W["c_fc"] + b["c_fc"]
        expected.append(row + BY_HAND[activation](z) @ W["mlp"] + b["mlp"])
    decode_block.reference(x, block, keys, values, length, None)
    assert np.allclose(x, expected, rtol=0, atol=1e-12)
