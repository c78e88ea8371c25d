"""The rows of the first two tables of docs/from_pytorch.md in PyTorch: the same values, the same gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.compat import torch
from tests.docs.tables import Row, rows

HEADINGS = ("Tensors", "Functions, layers, optimizers")
ROWS = [row for row in rows() if row.heading in HEADINGS and "model" not in row.ours and "optimizer" not in row.ours]
VALUES = [[1.0, 5.0, 3.0], [4.0, 2.0, 6.0]]


def evaluate(code: str, names: dict[str, Any]) -> tuple[Any, Any]:
    """The value, and the gradient of its sum with respect to x (None where there is none)."""
    x = names["x"]
    value = eval(code, names)
    if getattr(value, "requires_grad", False):
        (value * value.detach()).sum().backward()
    return value, x.grad


@pytest.mark.parametrize("row", [row for row in ROWS if row.theirs != "print(layer)"], ids=lambda row: row.theirs)
def test_row(row: Row) -> None:
    ours = {
        "tg": tg,
        "x": tg.tensor(VALUES, requires_grad=True),
        "labels": tg.tensor([1, 0]),
        "layer": tg.nn.Linear(3, 2),
    }
    theirs = {
        "torch": torch, "nn": torch.nn, "F": torch.nn.functional, "x": torch.tensor(VALUES, requires_grad=True),
        "labels": torch.tensor([1, 0]), "layer": torch.nn.Linear(3, 2),
        "clip_grad_norm_": torch.nn.utils.clip_grad_norm_,
    }  # fmt: skip
    (a, da), (b, db) = evaluate(row.ours, ours), evaluate(row.theirs, theirs)
    if isinstance(a, tg.Tensor):
        a, b = a.numpy(), b.detach().numpy()
        assert a.dtype == b.dtype
    if "randn" not in row.ours:
        assert np.shape(a) == np.shape(b)
        assert np.allclose(a, b, atol=1e-6) if isinstance(a, np.ndarray) else a == b
    assert (da is None) == (db is None)
    if da is not None and db is not None:
        assert np.allclose(da, db.numpy(), atol=1e-6)
