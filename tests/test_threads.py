"""The number of threads changes no bit of any result, at sizes where the compiled bodies do use several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinygpt as tg
import tinygpt.optim
from tinygpt._ext import load
from tinygpt.backends import get
from tinygpt.backends import numpy as numpy_backend
from tinygpt.backends.products import matrix_product
from tinygpt.kernel import REGISTRY, use_kernels

pytestmark = pytest.mark.skipif(get("numpy").extension() is None, reason="extension not built")

rng = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


ROWS, ROW, COLUMN = normal(3001, 129), normal(129), np.abs(normal(3001)) + 0.5
PAIRS = np.stack([COLUMN, 0.01 * COLUMN], axis=-1)  # statistics in two parts
IDS = rng.integers(0, 129, 3001)
QUERIES = normal(2, 3, 150, 24)

# The arguments of a kernel; a function makes those that are written to.
ARGUMENTS: dict[str, Any] = {
    "layer_norm_forward": lambda: (ROWS, ROW, ROW, 1e-5),
    "layer_norm_backward": lambda: (ROWS, ROWS, ROW, PAIRS, COLUMN, True),
    "residual_layer_norm_backward": lambda: (ROWS, ROWS, ROWS, ROW, PAIRS, COLUMN, 0.1, 7, 3, True, True),
    "bias_gelu_backward": lambda: (ROWS, ROWS, ROW),
    "gelu_forward": lambda: (ROWS,),
    "gelu_erf_backward": lambda: (ROWS, ROWS),
    "softmax_forward": lambda: (ROWS,),
    "softmax_backward": lambda: (ROWS, ROWS),
    "cross_entropy_forward": lambda: (ROWS, IDS, -100),
    "cross_entropy_backward": lambda: (COLUMN, ROWS, IDS, PAIRS, -100),
    "embedding_forward": lambda: (ROWS, IDS),
    "embedding_backward": lambda: (ROWS, IDS, ROWS.copy()),
    "dropout_apply": lambda: (ROWS, 0.3, 7, 3),
    "column_sum": lambda: (ROWS,),
    "add_bias": lambda: (ROWS.copy(), ROW),
    "sum_of_squares": lambda: (ROWS,),
    "adamw_update": lambda: (ROWS.copy(), ROWS, ROWS.copy(), ROWS**2, 0.1, 0.9, 0.99, 1e-8, 0.1, 3, 0.5),
    "attention_forward": lambda: (QUERIES, QUERIES, QUERIES, True, 0.2, 0.1, 7, 3),
    "attention_backward": lambda: (
        *(QUERIES,) * 5, QUERIES[..., :2] + 5.0, True, 0.2, 0.1, 7, 3, *(np.empty_like(QUERIES) for _ in range(3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_threads_change_nothing(name: str, threads: Any) -> None:
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        arguments = ARGUMENTS[name]()
        with use_kernels("cython"):
            returned = REGISTRY[name](*arguments)
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


@pytest.mark.parametrize(
    ("M", "K", "N"),
    [(768, 128, 384), (128, 768, 512), (333, 500, 129), (70, 3001, 65), (1000, 1000, 300), (2, 999, 40)],
)
@pytest.mark.parametrize("transposed", ["neither", "left", "right", "both"])
def test_products_are_the_same_on_any_number_of_threads(M: int, K: int, N: int, transposed: str, threads: Any) -> None:
    a = normal(K, M).T if transposed in ("left", "both") else normal(M, K)
    b = normal(N, K).T if transposed in ("right", "both") else normal(K, N)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results += [matrix_product(a, b), matrix_product(a, b, out=np.full((M, N), np.nan, np.float32))]
    assert np.abs(results[0] - exact).max() < 1e-6 * K
    assert all(np.array_equal(result, results[0]) for result in results)


def test_a_single_row_is_the_same_on_any_number_of_threads(threads: Any) -> None:
    a, b = normal(1, 768), normal(768, 9001)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results.append(matrix_product(a, b))
    assert all(np.array_equal(result, results[0]) for result in results)
    assert np.abs(results[0] - a.astype(np.float64) @ b.astype(np.float64)).max() < 1e-3


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
    assert numpy_backend.default_num_threads() == numpy_backend.MOST_THREADS


def test_a_level_that_does_not_exist_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYGPT_LEVEL", "avx3")
    with pytest.raises(tg.UsageError, match="TINYGPT_LEVEL is 'avx3': set it to one of native"):
        load()
