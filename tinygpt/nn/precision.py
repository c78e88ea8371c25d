"""Mixed precision: the model computes in 16 bits, and its parameters stay in float32.

    with model.compute_in("bfloat16"):
        loss = model.loss(inputs, targets)
    loss.backward()

Inside the block `model.activations` is the dtype to which the model casts its first activations. Every later operation
then computes in that dtype, without being told (`tinygpt/ops/cast.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..backends.precision import activation_dtype
from ..errors import DtypeError, UsageError


@contextlib.contextmanager
def compute_in(model: Any, dtype: str) -> Iterator[None]:
    """Set `model.activations` inside the block. Raises UsageError, DtypeError: see `GPT.compute_in`."""
    parameter = model.parameters()[0]
    target = activation_dtype(dtype, parameter.backend)
    if dtype != "float32":
        if model.packed:
            raise UsageError(f"compute_in: a model packed into {model.packed} computes in float32")
        if parameter.dtype != np.float32:
            raise DtypeError(f"compute_in: {dtype} needs a float32 model, this one is {parameter.dtype}")
    previous, model.activations = model.activations, None if dtype == "float32" else target
    try:
        yield
    finally:
        model.activations = previous
