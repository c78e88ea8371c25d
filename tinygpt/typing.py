"""The types that signatures name, for type checkers, editors and readers. At run time each of them is `typing.Any`.

CuPy publishes no types, and its arrays have NumPy's methods, so type checkers take every array to be NumPy's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from .tensor import Tensor

    Array: TypeAlias = np.ndarray[Any, Any]  # numpy.ndarray or cupy.ndarray; all arrays of a call are of one backend
    TensorLike: TypeAlias = (
        Tensor | Array | float | np.generic | list[Any] | tuple[Any, ...]
    )  # what tinygpt.tensor() takes
    Ids: TypeAlias = Tensor | Array | list[Any] | tuple[Any, ...]  # integers: token ids, targets, labels
    Axis: TypeAlias = int | Sequence[int] | None  # one axis, several, or all
    Shape: TypeAlias = tuple[int, ...]
    Sizes: TypeAlias = int | Sequence[int]  # an argument of reshape(*sizes): separate integers, or all as one tuple
    DType: TypeAlias = np.dtype[Any]
    DTypeLike: TypeAlias = npt.DTypeLike  # np.float32, "float32" or a DType
else:
    Array = TensorLike = Ids = Axis = Shape = Sizes = DType = DTypeLike = Any
