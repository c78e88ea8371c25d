"""What `test_operations.py` checks of an operation, for all who judge by it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.ops.drawing import Example, Row
from tinygpt.graph import no_grad
from tinygpt.tensor import Tensor
from tinygpt.testing import backward_of


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def call(row: Row, example: Example) -> Any:
    return lambda *tensors: row.function(*tensors, **example.options)


def values_of(row: Row, example: Example, arrays: list[np.ndarray]) -> list[np.ndarray]:
    with no_grad():
        return [y.data for y in as_tuple(row.function(*[Tensor(a) for a in arrays], **example.options))]


def random_upstream(row: Row, example: Example, arrays: list[np.ndarray], seed: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(y.shape)) for y in values_of(row, example, arrays)]


def assert_close(got: Any, expected: Any, relative: float) -> None:
    """Elementwise, relative to the largest element: |got - expected| <= relative * max(1, |expected|)."""
    for g, e in zip(got, expected, strict=True):
        assert (g is None) == (e is None)
        if g is not None:
            assert g.shape == e.shape
            assert np.abs(g - e).max(initial=0) <= relative * np.abs(e).max(initial=1)


def check_against_composed(row: Row, example: Example) -> None:
    """Values and gradients against the oracle, which is made of other operations.

    Values with a graph too: an operation may compute them in another way where it will need gradients.
    """
    arrays = example.make()

    def composed(*tensors: Tensor) -> Any:
        return row.composed(*tensors, **example.options)

    with no_grad():
        oracle = [y.data for y in as_tuple(composed(*[Tensor(a) for a in arrays]))]
    assert_close(values_of(row, example, arrays), oracle, 1e-12)
    with_graph = as_tuple(call(row, example)(*[Tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]))
    assert_close([y.data for y in with_graph], oracle, 1e-12)
    upstream = random_upstream(row, example, arrays)
    assert_close(backward_of(call(row, example), arrays, upstream), backward_of(composed, arrays, upstream), 1e-12)
