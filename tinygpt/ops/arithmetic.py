"""Addition, subtraction, multiplication, division, negation and powers, with broadcasting.

Each element of the result depends on one element of each operand, so these are the derivatives you know from school:

    y = a + b     da = dy              db = dy
    y = a - b     da = dy              db = -dy
    y = a * b     da = dy * b          db = dy * a
    y = a / b     da = dy / b          db = -dy * (a / b) / b
    y = -a        da = -dy
    y = a ** b    da = dy * b * a**(b - 1)          db = dy * log(a) * y

If broadcasting repeated an operand, it is used once for each copy, and its gradient is the sum over the copies:
da = unbroadcast(the formula above, a's shape).

No oracle: these are the primitive operations that oracles are composed of. The tests check them against differences and
against each other (a / b = a * b**-1).

Saved: each operand, if the other one's gradient needs it. Sums and differences save only the shapes.

Shapes: any two that broadcast against each other. Dtypes follow NumPy's promotion rules; a Python number takes the
dtype of the other operand.
Source: the derivatives are elementary; for a product and a quotient of arrays: Griewank, Walther, "Evaluating
Derivatives", 2nd edition, 2008, section 3.2.
"""

from __future__ import annotations

from ..backends import array_module
from ..backends.precision import is_floating, upcast
from ..errors import DtypeError, UsageError
from ..function import Function
from ..tensor import Tensor, as_tensor
from ..typing import Array, TensorLike
from ._shapes import added, broadcast_shape, unbroadcast


class Add(Function):
    def forward(self, a: Array, b: Array) -> Array:
        self.shapes = a.shape, b.shape
        return added(a, b)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        a_shape, b_shape = self.shapes
        da = unbroadcast(dy, a_shape) if self.needs[0] else None
        db = unbroadcast(dy, b_shape) if self.needs[1] else None
        return da, db


class Sub(Function):
    def forward(self, a: Array, b: Array) -> Array:
        self.shapes = a.shape, b.shape
        return a - b

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        a_shape, b_shape = self.shapes
        da = unbroadcast(dy, a_shape) if self.needs[0] else None
        db = -unbroadcast(dy, b_shape) if self.needs[1] else None
        return da, db


class Mul(Function):
    def forward(self, a: Array, b: Array) -> Array:
        self.shapes = a.shape, b.shape
        self.save(a if self.needs[1] else None, b if self.needs[0] else None)
        return a * b

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        (a, b), (a_shape, b_shape) = self.saved, self.shapes
        da = unbroadcast(dy * b, a_shape) if self.needs[0] else None
        db = unbroadcast(dy * a, b_shape) if self.needs[1] else None
        return da, db


class Div(Function):
    def forward(self, a: Array, b: Array) -> Array:
        self.shapes = a.shape, b.shape
        self.save(a if self.needs[1] else None, b)
        return a / b

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        (a, b), (a_shape, b_shape) = self.saved, self.shapes
        da = unbroadcast(dy / b, a_shape) if self.needs[0] else None
        db = unbroadcast(-dy * (a / b / b), b_shape) if self.needs[1] else None  # b**2 may leave the range of floats
        return da, db


class Neg(Function):
    def forward(self, a: Array) -> Array:
        return -a

    def backward(self, dy: Array) -> Array:
        return -dy


class Pow(Function):
    def forward(self, a: Array, b: Array) -> Array:
        y = a**b
        self.save(a, b, y if self.needs[1] else None)
        return y

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        a, b, y = self.saved
        xp = array_module(a)
        da = db = None
        if self.needs[0]:  # a**0 is 1 everywhere, even at a = 0, where the formula gives 0 * infinity
            da = unbroadcast(dy * xp.where(b == 0, 0, b * a ** (b - 1)), a.shape)
        if self.needs[1]:  # 0**b is 0 for every b > 0, but the formula gives -infinity * 0
            log_a = xp.log(upcast(a), dtype="float64").astype(y.dtype)  # NumPy's float32 log is off by two roundings
            db = unbroadcast(dy * xp.where((a == 0) & (b >= 0), 0, y * log_a), b.shape)
        return da, db


def add(a: TensorLike, b: TensorLike) -> Tensor:
    """a + b. Raises ShapeError for shapes that do not broadcast."""
    return Add.apply(*_operands("add", a, b))


def sub(a: TensorLike, b: TensorLike) -> Tensor:
    """a - b. Raises ShapeError for shapes that do not broadcast, DtypeError for booleans."""
    return Sub.apply(*_numbers("sub", a, b))


def mul(a: TensorLike, b: TensorLike) -> Tensor:
    """a * b, element by element. Raises ShapeError for shapes that do not broadcast."""
    return Mul.apply(*_operands("mul", a, b))


def div(a: TensorLike, b: TensorLike) -> Tensor:
    """a / b. Division by zero gives an infinity or NaN. Raises ShapeError for shapes that do not broadcast."""
    return Div.apply(*_operands("div", a, b))


def neg(a: TensorLike) -> Tensor:
    """-a. Raises DtypeError for booleans."""
    return Neg.apply(*_numbers("neg", a))


def pow(a: TensorLike, b: TensorLike) -> Tensor:
    """a ** b, for a number or a tensor b. A negative a with a fractional b gives NaN, as in NumPy.

    Raises ShapeError for shapes that do not broadcast, UsageError for integers to negative integer powers.
    """
    a, b = _numbers("pow", a, b)
    if not is_floating(a.dtype) and not is_floating(b.dtype) and b.size and int(b.data.min()) < 0:
        raise UsageError(
            f"pow: integers ({a.dtype}) can't be raised to negative integer powers: make the base floating-point"
        )
    return Pow.apply(a, b)


def _operands(operation: str, *values: TensorLike) -> list[Tensor]:
    """All operands as tensors. Raises ShapeError unless their shapes broadcast."""
    like = next((value for value in values if isinstance(value, Tensor)), None)
    tensors = [as_tensor(value, like) for value in values]
    broadcast_shape(operation, *tensors)
    return tensors


def _numbers(operation: str, *values: TensorLike) -> list[Tensor]:
    """Like `_operands`, but refuses booleans, for which NumPy does not define differences and powers."""
    tensors = _operands(operation, *values)
    for tensor in tensors:
        if tensor.dtype.kind == "b":
            raise DtypeError(
                f"{operation}: booleans can't be subtracted, negated or raised to powers: cast to a number"
            )
    return tensors
