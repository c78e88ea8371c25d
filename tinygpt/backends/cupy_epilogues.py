"""Matrix products on a GPU that end with a bias, a GELU or a gradient of these: the epilogues of cuBLASLt.

    fused = epilogues(cupy)                    # None: there are none here
    y = fused.linear(x, weight, bias)          # x W + b                                       BIAS
    y, z = fused.linear_gelu(x, weight, bias)  # gelu(z), z = x W + b or x W                   GELU_AUX_BIAS, GELU_AUX
    dz = fused.gelu_gradient(dy, weight, z)    # gelu'(z) * (dy W.T)                           DGELU
    dw, db = fused.gradients(x, dy)            # x.T dy, and the sum of dy over its rows       BGRADA

A product has its result in registers. A separate kernel for the bias or the GELU would have to read it from memory
and write it again. Each of these returns None where it does not apply; then the caller uses the plain product and
our kernels, which compute the same. All arrays have two axes and one 16-bit type, except dw and db, which are float32.
The GELU is the tanh form (cuBLAS's manual, cublasLtEpilogue_t, note 5).

Rows and columns. cuBLASLt stores matrices column by column, so, as in `cupy_matmul.py`, out = a b is its D = A B with
A = b.T, B = a.T, D = out.T. It adds one number of the bias to each *row* of D, hence to each column of our `out`, and
BGRADA adds up the rows of A, hence the columns of our b: that is db, if b is dy. The auxiliary matrix is z.T.
DGELU could add up its own columns too, but would round the sums to 16 bits; BGRADA leaves them in float32.

This has been written without a GPU, so nothing is taken on trust:

- cuBLASLt is asked which algorithm it has for a product. If it has none, that product is not fused;
- before an epilogue is used for the first time in a process, it computes a small product of numbers that 16 bits hold
  exactly. If one number is wrong, or a call fails later, it is not used any more, and one line says so;
- GELU's epilogues are used from compute capability 9.0 on, as in llm.c, which found them slow on older GPUs.

TINYGPT_EPILOGUES=0 turns them off; 1 uses GELU's on older GPUs, too. `tinygpt doctor` shows what is used.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np

from ..console import say
from ..errors import UsageError
from . import recording
from .cupy_cublaslt import BGRADA, BIAS, DGELU, GELU_AUX, GELU_AUX_BIAS, Library, LtError, Product, load
from .cupy_matmul import cuda_data_type, leading_dimension, operand

NAMES = {
    BIAS: "BIAS", GELU_AUX: "GELU_AUX", GELU_AUX_BIAS: "GELU_AUX_BIAS", DGELU: "DGELU", BGRADA: "BGRADA",
}  # fmt: skip
OF_GELU, GELU_FROM = (GELU_AUX, GELU_AUX_BIAS, DGELU), 90  # compute capability, times ten
ALIGNMENT = 256  # bytes; no algorithm asks for more


def setting() -> str:
    """TINYGPT_EPILOGUES: "0", "1" or "". Raises UsageError."""
    wanted = os.environ.get("TINYGPT_EPILOGUES", "")
    if wanted not in ("", "0", "1"):
        raise UsageError(f"TINYGPT_EPILOGUES is {wanted!r}: set it to 0 or 1")
    return wanted


def epilogues(cupy: Any) -> Epilogues | None:
    """The epilogues of the current GPU; None if they are turned off or there are none."""
    return found(cupy, cupy.cuda.Device().id)[0]


def describe(cupy: Any) -> str:
    """Which of them are used, or why none is, in one line."""
    fused, reason = found(cupy, cupy.cuda.Device().id)
    if fused is None:
        return f"not used: {reason}"
    used = [name for number, name in NAMES.items() if fused.can(number, np.dtype(np.float16))]
    return "; ".join([f"used: {', '.join(used) or 'none'}", *fused.refused])


@functools.cache
def found(cupy: Any, gpu: int) -> tuple[Epilogues | None, str]:
    """The epilogues of a GPU, or why there are none."""
    if setting() == "0":
        return None, "TINYGPT_EPILOGUES is 0"
    try:
        return Epilogues(cupy, Library(cupy, load(cupy))), ""
    except LtError as error:
        return None, f"they need cuBLASLt, and {error}"


class Epilogues:
    """The epilogues of one GPU."""

    def __init__(self, cupy: Any, cublaslt: Library) -> None:
        self.cupy, self.cublaslt = cupy, cublaslt
        self.usable: dict[tuple[int, str], bool] = {}  # (epilogue, dtype) -> whether to use it, once that is known
        self.refused: list[str] = []  # why some are not used

    def has_gelu(self, dtype: Any, with_bias: bool) -> bool:
        """Whether there is a product with a GELU, and one with its derivative."""
        return self.can(GELU_AUX_BIAS if with_bias else GELU_AUX, dtype) and self.can(DGELU, dtype)

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        """x (N, in), weight (in, out), bias (out,) -> x W + b (N, out), or None."""
        if not self.can(BIAS, x.dtype):
            return None
        y = self.cupy.empty((len(x), weight.shape[1]), x.dtype)
        return y if self.run(BIAS, x, weight, y, bias) else None

    def linear_gelu(self, x: Any, weight: Any, bias: Any) -> Any:
        """x (N, in), weight (in, out), bias (out,) or None -> (gelu(z), z = x W + b), both (N, out), or None."""
        epilogue = GELU_AUX if bias is None else GELU_AUX_BIAS
        if not self.can(epilogue, x.dtype):
            return None
        y, z = (self.cupy.empty((len(x), weight.shape[1]), x.dtype) for _ in range(2))
        return (y, z) if self.run(epilogue, x, weight, y, bias, z) else None

    def gelu_gradient(self, dy: Any, weight: Any, z: Any) -> Any:
        """dy (N, out), weight (in, out), z (N, in) -> gelu'(z) * (dy W.T) (N, in), or None."""
        if not self.can(DGELU, dy.dtype):
            return None
        dz = self.cupy.empty(z.shape, z.dtype)
        return dz if self.run(DGELU, dy, weight.T, dz, None, z) else None

    def gradients(self, x: Any, dy: Any) -> Any:
        """x (N, in), dy (N, out) -> (x.T dy (in, out), the sum of dy over its rows (out,)), in float32, or None."""
        if not self.can(BGRADA, x.dtype):
            return None
        dweight, dbias = (self.cupy.empty(shape, np.float32) for shape in ((x.shape[1], dy.shape[1]), dy.shape[1:]))
        return (dweight, dbias) if self.run(BGRADA, x.T, dy, dweight, dbias) else None

    def run(self, epilogue: int, a: Any, b: Any, out: Any, bias: Any = None, aux: Any = None) -> bool:
        """out (M, N) = epilogue(a (M, K) @ b (K, N)); or False, if it can't be."""
        (M, K), N = a.shape, b.shape[1]
        extra = [array for array in (bias, aux) if array is not None]
        if 0 in (M, N, K) or a.dtype != b.dtype or not all(array.flags.c_contiguous for array in extra):
            return False
        if aux is not None and N % 8:  # cuBLASLt's rule for the rows of the auxiliary matrix
            return False
        (b, b_op, b_step), (a, a_op, a_step) = operand(self.cupy, b), operand(self.cupy, a)
        of_factors, of_result, of_bias = (cuda_data_type(self.cupy, x) for x in (b, out, out if bias is None else bias))
        steps = b_step, a_step, leading_dimension(out), 0 if aux is None else leading_dimension(aux)
        alignments = alignment(b), alignment(a), alignment(out), alignment(bias), alignment(aux)
        product = Product(epilogue, (of_factors, of_result, of_bias), (N, M, K), (b_op, a_op), steps, alignments)
        try:
            plan = self.cublaslt.plan(product, bias, aux)
            if plan is not None:
                self.cublaslt.launch(plan, b, a, out, bias, aux)
        except LtError as error:
            self.usable[epilogue, a.dtype.name] = self.refuse(epilogue, str(error))
            return False
        return plan is not None

    # Whether they are right -------------------------------------------------------------------------

    def can(self, epilogue: int, dtype: Any) -> bool:
        """Whether to try this epilogue in this 16-bit type. At first it has to compute a small product."""
        key = epilogue, dtype.name
        if key not in self.usable:
            if recording.is_recording():  # results can't be looked at now
                return False
            capability = int(self.cupy.cuda.Device().compute_capability)
            if epilogue in OF_GELU and capability < GELU_FROM and setting() != "1":
                self.usable[key] = False
                self.refused.append(f"{NAMES[epilogue]} is for compute capability 9.0 and newer")
            else:
                self.usable[key] = True  # for that product
                self.usable[key] = self.is_right(epilogue, dtype) and self.usable[key]
        return self.usable[key]

    def is_right(self, epilogue: int, dtype: Any) -> bool:
        """Compute a product of multiples of 1/2, whose sums 16 bits hold exactly, and compare it."""
        rng = np.random.default_rng(0)
        N, C, D = 48, 32, 80
        shapes = {"x": (N, C), "weight": (C, D), "bias": (D,), "dy": (N, D), "z": (N, C)}
        numbers = {name: rng.integers(-1, 2, shape).astype(np.float32) / 2 for name, shape in shapes.items()}
        numbers["z"] *= 5
        x, weight, bias, dy, z = (self.cupy.asarray(numbers[name]).astype(dtype) for name in shapes)
        found: Any = {
            BIAS: lambda: self.linear(x, weight, bias),
            GELU_AUX: lambda: self.linear_gelu(x, weight, None),
            GELU_AUX_BIAS: lambda: self.linear_gelu(x, weight, bias),
            DGELU: lambda: self.gelu_gradient(dy, weight, z),
            BGRADA: lambda: self.gradients(x, dy),
        }[epilogue]()
        if found is None:
            if self.usable[epilogue, dtype.name]:  # otherwise a call failed, and that has been said
                self.refused.append(f"{NAMES[epilogue]} has no algorithm for a small product in {dtype.name}")
            return False
        results = found if isinstance(found, tuple) else (found,)
        for array, truth in zip(results, expected(epilogue, **numbers), strict=True):
            rounding = 2.0**-6 if epilogue in OF_GELU else 0.0  # of bfloat16, and a hyperbolic tangent of 11 bits
            off = np.abs(array.astype(np.float32).get() - truth)
            if not (off <= rounding * np.maximum(1.0, np.abs(truth))).all():
                return self.refuse(epilogue, f"a small product in {dtype.name} was wrong by {off.max():.3g}")
        return True

    def refuse(self, epilogue: int, reason: str) -> bool:
        """False, and one line that says why."""
        self.refused.append(f"{NAMES[epilogue]} is not used, because {reason}")
        say(f"cuBLASLt's epilogue {self.refused[-1]}: a separate kernel takes its place")
        return False


def alignment(array: Any) -> int:
    """The largest power of two that divides an array's address, up to 256; 0 for no array."""
    return 0 if array is None else min(ALIGNMENT, int(array.data.ptr) & -int(array.data.ptr))


def expected(epilogue: int, x: Any, weight: Any, bias: Any, dy: Any, z: Any) -> list[np.ndarray]:
    """What `Epilogues.is_right` should find: the formulas of tinygpt/ops/gelu.py."""
    if epilogue == DGELU:
        s = sigmoid_of_2u(z)
        return [(s + z * 2 * s * (1 - s) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * z**2)) * (dy @ weight.T)]
    if epilogue == BGRADA:
        return [x.T @ dy, dy.sum(axis=0)]
    y = x @ weight + (0 if epilogue == GELU_AUX else bias)
    return [y] if epilogue == BIAS else [y * sigmoid_of_2u(y), y]


def sigmoid_of_2u(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
