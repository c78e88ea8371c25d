"""The number of threads changes no bit of any result, at sizes where the compiled bodies do use several."""

from __future__ import annotations

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
import tinygpt.ops.decode_block
import tinygpt.optim  # the kernels of both are registered
from tests.ops.cases import COMPILED_ROWS
from tests.ops.drawing import KernelRow
from tinygpt.backends import get
from tinygpt.backends import numpy as numpy_backend
from tinygpt.kernel import REGISTRY, use_kernels
from tinygpt.ops._matmul import add_matmul, matmul_arrays

pytestmark = pytest.mark.skipif(get("numpy").extension() is None, reason="extension not built")

rng = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


# Kernels with a test of their own about threads, and where.
ELSEWHERE = {
    "matmul_into": "kernel/test_threads.py: test_products_are_the_same_on_any_number_of_threads",
    "few_rows_product": "ops/test_packed_products.py: test_threads_change_no_bit_of_a_product",
    "few_rows_product_transposed": "ops/test_packed_products.py: test_threads_change_no_bit_of_a_product",
    "unpack_into": "nn/test_packed.py: test_compiled_unpacking_is_exact",
    "round_columns": "nn/test_four_bits.py: test_compiled_rounding_has_the_bits_of_the_reference",
    "decode_block": "ops/test_decode_block.py: test_a_row_is_the_same_among_any_others_and_on_any_number_of_threads",
}


def test_every_compiled_kernel_is_run_on_several_threads() -> None:
    """Those with a row are, at the sizes of its `large=` (test_completeness.py names one without). Here the others."""
    for where in ELSEWHERE.values():
        file, _, test = where.partition(": ")
        text = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
        found = re.search(rf"^def {test}\(.*?(?=^def |\Z)", text, re.MULTILINE | re.DOTALL)
        assert found is not None, where
        assert re.search(r"threads\(count\)|check_\w+\(.*\bthreads\b", found[0]), where


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("row", COMPILED_ROWS, ids=lambda row: row.name)
def test_threads_change_nothing(row: KernelRow, dtype: Any, threads: Any) -> None:
    """At sizes that are several chunks, so that threads share them; each number of threads twice."""
    for example in () if row.declines(dtype) else row.large:
        results = []
        for count in (1, 2, 3, 8, 2, 3, 8):
            threads(1)
            arguments = example.make(dtype)  # some are made of products, which NumPy shares out
            threads(count)
            with use_kernels("cython"):
                returned = REGISTRY[row.name](*arguments)
            returned = returned if isinstance(returned, tuple) else (returned,)
            results.append([np.array(v) for v in (*returned, *arguments) if v is not None])
        for others in results[1:]:
            for one, other in zip(results[0], others, strict=True):
                assert np.array_equal(one, other)


SIZES = (1, 8191, 8192, 8193, 3, 100_000, 5)  # a span is 8192 elements


def adamw_calls(dtype: Any) -> list[tuple[Any, ...]]:
    calls = []
    for size, decay in zip(SIZES, (0.1, 0.0, 0.2, 0.0, 0.0, 0.1, 0.3), strict=True):
        param, grad, m, v = (normal(size).astype(dtype) for _ in range(4))
        calls.append((param, grad, m, v**2, 0.1, 0.9, 0.99, 1e-8, decay, 3, 0.5))
    return calls


@pytest.mark.parametrize("kernel", ["adamw_update", "sum_of_squares"])
def test_all_arrays_in_one_sweep_are_as_one_by_one_on_any_number_of_threads(kernel: str, threads: Any) -> None:
    made = [*adamw_calls(np.float32), *adamw_calls(np.float64)]  # both types in one sweep
    results = []
    for count in (0, 1, 2, 3, 8):
        calls = [tuple(v.copy() if isinstance(v, np.ndarray) else v for v in call) for call in made]
        calls = calls if kernel == "adamw_update" else [call[:1] for call in calls]
        threads(max(count, 1))
        with use_kernels("cython"):
            returned = REGISTRY[kernel].each(calls) if count else [REGISTRY[kernel](*call) for call in calls]
        results.append([returned, *(v for call in calls for v in call if isinstance(v, np.ndarray))])
    for others in results[1:]:
        assert results[0][0] == others[0]
        assert all(np.array_equal(one, other) for one, other in zip(results[0][1:], others[1:], strict=True))
    arrays = results[0][1 :: 4 if kernel == "adamw_update" else 1]  # the parameters, or what was squared
    same = [np.array_equal(call[0], array) for call, array in zip(made, arrays, strict=True)]
    assert same == [kernel == "sum_of_squares"] * len(made)


our_blas = pytest.mark.skipif(
    "shared with the matrix products" not in get("numpy").describe(), reason="the BLAS in use keeps its own threads"
)


@pytest.mark.slow
@our_blas
@pytest.mark.parametrize(
    ("M", "K", "N"),
    [(768, 128, 384), (128, 768, 512), (333, 500, 129), (70, 3001, 65), (1000, 1000, 300), (2, 999, 40), (1, 768, 9001),
     (9001, 300, 1), (1, 70000, 1)],
)  # fmt: skip
@pytest.mark.parametrize("transposed", ["neither", "left", "right", "both"])
def test_products_are_the_same_on_any_number_of_threads(M: int, K: int, N: int, transposed: str, threads: Any) -> None:
    a = normal(K, M).T if transposed in ("left", "both") else normal(M, K)
    b = normal(N, K).T if transposed in ("right", "both") else normal(K, N)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results += [matmul_arrays(a, b), matmul_arrays(a, b, out=np.full((M, N), np.nan, np.float32))]
    assert np.abs(results[0] - exact).max() < 1e-6 * K
    assert all(np.array_equal(result, results[0]) for result in results)


# Operands of a product that are no plain matrices: batches, vectors, and memory that no BLAS reads without a copy.
WIDE = normal(8, 600, 700)
UNUSUAL: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "a batch": (WIDE[:3, :300, :333], normal(3, 333, 200)),
    "two axes of a batch, turned": (WIDE[:, :200, :129].reshape(2, 4, 200, 129), normal(4, 2, 129, 150).swapaxes(0, 1)),
    "a batch and one matrix": (normal(300, 333), WIDE[:3, :333]),
    "a batch and a vector": (WIDE, normal(700)),
    "two vectors": (WIDE[0].ravel(), WIDE[1].ravel()),
    "every second number": (WIDE[0, ::2, ::2], WIDE[1, ::2, ::2][:350].T),
    "backwards": (WIDE[0, ::-1], WIDE[1, ::-1].T),
    "one row, repeated": (np.broadcast_to(WIDE[0, 0], (500, 700)), WIDE[1].T),
    "windows that overlap": (np.lib.stride_tricks.sliding_window_view(WIDE[0, :2].ravel(), 700), WIDE[1].T),
}


@our_blas
@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_products_are_the_same_on_any_number_of_threads(kind: str, threads: Any) -> None:
    a, b = UNUSUAL[kind]
    exact = np.matmul(a.astype(np.float64), b.astype(np.float64))
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results += [matmul_arrays(a, b), matmul_arrays(a, b, out=np.full(exact.shape, np.nan, np.float32))]
    assert np.shape(results[0]) == exact.shape
    assert np.abs(results[0] - exact).max() < 1e-6 * a.shape[-1]
    assert all(np.array_equal(result, results[0]) for result in results)


@our_blas
@pytest.mark.parametrize("layout", ["C", "F", "strided"])
def test_added_products_are_the_same_on_any_number_of_threads(layout: str, threads: Any) -> None:
    a, b, start = normal(300, 500), normal(500, 129), normal(300, 129)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        wide = np.zeros((300, 258), np.float32)
        out = wide[:, ::2] if layout == "strided" else np.zeros((300, 129), np.float32, order=layout)  # type: ignore[call-overload]
        out[...] = start
        add_matmul(a, b, out)
        assert not wide[:, 1::2].any()
        results.append(out)
    assert np.abs(results[0] - (a.astype(np.float64) @ b.astype(np.float64) + start)).max() < 1e-3
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.slow
@our_blas
def test_products_of_several_callers_are_the_same_while_numpy_multiplies(threads: Any) -> None:
    """Each of them tells OpenBLAS how many threads to use; afterwards NumPy's own products use all again."""
    a, b = normal(200, 500), normal(500, 30)  # few columns: OpenBLAS's at every level
    threads(2)
    expected = matmul_arrays(a, b)
    with ThreadPoolExecutor(4) as callers:
        products = [callers.submit(matmul_arrays, a, b) for _ in range(200)]
        own = [callers.submit(np.matmul, WIDE[0], WIDE[1].T) for _ in range(20)]
    assert all(np.array_equal(product.result(), expected) for product in products)
    assert np.allclose(own[0].result(), own[-1].result(), atol=1e-3)
    assert np.array_equal(matmul_arrays(a, b), expected)
    assert blas_threads() == 2


def blas_threads() -> int:
    """How many threads NumPy's OpenBLAS may use, from the library itself."""
    library = ctypes.CDLL(numpy_backend.blas_library())
    for name in ("scipy_openblas_get_num_threads64_", "openblas_get_num_threads64_", "openblas_get_num_threads"):
        if hasattr(library, name):
            return int(getattr(library, name)())
    raise AssertionError("an OpenBLAS under another name")


def weights_after_training(steps: int) -> list[np.ndarray]:
    """A model of every fused operation, of a size at which several threads share its products and kernels."""
    config = tg.GPTConfig(vocab_size=65, block_size=48, n_layer=2, n_head=4, n_embd=96, dropout=0.1)
    model = tg.GPT(config, seed=0)
    model.train()
    tg.manual_seed(0)
    parameters = list(model.parameters())
    optimizer = tg.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    draws = np.random.default_rng(0)
    for _ in range(steps):
        idx, targets = draws.integers(0, 65, (2, 8, 48))
        model.loss(idx, targets).backward()
        tg.optim.clip_grad_norm(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return [p.data.copy() for p in parameters]


@pytest.mark.slow
def test_fifty_steps_of_training_are_the_same_on_any_number_of_threads(threads: Any) -> None:
    results = []
    for count in (1, 2, 3, 4):
        threads(count)
        results.append(weights_after_training(50))
    assert np.abs(results[0][0] - weights_after_training(1)[0]).max() > 1e-2  # it did train
    for others in results[1:]:
        assert all(np.array_equal(one, other) for one, other in zip(results[0], others, strict=True))


def test_any_number_of_threads_is_taken_or_gets_a_sentence(threads: Any) -> None:
    threads(np.int64(2))
    assert tg.get_num_threads() == 2
    for wrong in (0, True, 1.5, "2"):
        with pytest.raises(tg.UsageError, match="set_num_threads: count must be"):
            threads(wrong)


def test_an_enormous_number_of_threads_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYGPT_NUM_THREADS", "99999999999")
    assert numpy_backend.default_num_threads() == numpy_backend.MAX_THREADS
