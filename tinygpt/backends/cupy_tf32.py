"""Where CuPy keeps the choice of TF32 for products of float32 matrices; there is no public access to it.

It is a separate file, below both the backend (`cupy.py`) and the products that bypass CuPy to call cuBLAS.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np


def products() -> Any:
    """CuPy's module with `get_compute_type` and `set_compute_type`."""
    return importlib.import_module("cupy._core._routines_linalg")


def in_use() -> bool:
    """Whether products of float32 matrices use TF32."""
    return bool(products().get_compute_type(np.float32) == products().COMPUTE_TYPE_TF32)
