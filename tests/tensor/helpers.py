"""Random leaves of a graph, and the generator that draws them: conftest.py sets it back for each test."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygpt.tensor import Tensor

rng = np.random.default_rng(0)
START = rng.bit_generator.state


def leaf(*shape: int, dtype: Any = np.float64) -> Tensor:
    return Tensor(np.asarray(rng.standard_normal(shape)).astype(dtype), requires_grad=True)
