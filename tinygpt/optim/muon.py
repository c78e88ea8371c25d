"""Muon: momentum whose matrices are made orthogonal, for the weight matrices of the blocks; AdamW for the rest.

For a weight matrix with gradient g:

    m = momentum * m + (1 - momentum) * g
    u = (1 - momentum) * g + momentum * m                Nesterov; plain: u = m
    p = p - lr * weight_decay * p                        (decoupled, as in AdamW)
    p = p - lr * sqrt(max(1, out / in)) * orthogonal(u)

With the singular value decomposition u = U S V^T, the orthogonal matrix nearest to u is U V^T: all directions of the
update get the same length, where the plain gradient has a few that are much longer than the others. Newton-Schulz
iteration comes close to it with products alone. It starts at X = u / |u|, whose singular values are at most 1, and
repeats

    X = a X + b (X X^T) X + c (X X^T)^2 X                a, b, c = 3.4445, -4.7750, 2.0315

which changes each singular value s to a s + b s^3 + c s^5. The coefficients make small ones grow as fast as possible:
after five steps they lie between about 0.7 and 1.2 rather than at 1, which trains as well. u is transposed first if it
has more rows than columns, so that X X^T is the smaller of the two possible products. One step makes
5 * (2 m^2 n + m^3) multiplications for an m x n matrix with m <= n (2 m^2 n + 17 m^3 if n >= 2 m, see
`_by_gram_matrices`), whatever the size of the batch. The model itself makes 3 m n per token.

Which parameters: the matrices in numbered blocks, such as `h.0.mlp.c_fc.weight`. Embeddings, the head, biases and norms
get AdamW. A group can decide for itself (`use_muon`), and must where parameters have no names. Concatenated matrices
are split and made orthogonal separately: `c_attn.weight`, which computes q, k and v, in 3 parts, others if their group
says so (`parts`). The sources keep q, k and v in separate matrices.

The factor sqrt(max(1, out / in)) is that of the sources below, for a layer from `in` to `out` channels. They store
weights as (out, in); here they are (in, out).

Saved between steps: m for a matrix; AdamW's m and v for the rest.

In float32 the result for a wide matrix differs from that in float64 by up to 7e-4 of its size (measured in a run of
`tiny`), less than the sources lose to bfloat16.

Source: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024, and its code, also used in
modded-nanoGPT and nanochat; they iterate in bfloat16, here it is the parameter's dtype.
"""

from __future__ import annotations

import math
import re
from typing import Any

from ..backends import array_module
from ..checks import number, whole_number
from ..errors import ShapeError, UsageError
from ..kernel import kernel
from ..ops._matmul import matmul_arrays
from ..typing import Array
from .adamw import adamw_update, check_betas
from .optimizer import Optimizer, Parameters, Slot

A, B, C = 3.4445, -4.7750, 2.0315
QUERY_KEY_VALUE = re.compile(r"(^|\.)c_attn\.weight$")
IN_A_BLOCK = re.compile(r"(^|\.)\d+\..")  # a number among the parts of a name: "h.3.attn.c_proj.weight"


@kernel
def newton_schulz(x: Array, steps: int) -> Array:
    """The matrices of a stack x (S, M, N), M <= N, each made nearly orthogonal -> (S, M, N)."""
    xp = array_module(x)
    norm = xp.sqrt(xp.square(x).sum(axis=(1, 2), keepdims=True))  # (S, 1, 1)
    x = x / (norm + 1e-7)
    if x.shape[2] >= 2 * x.shape[1]:
        return _by_gram_matrices(x, steps)
    for _ in range(steps):
        x = matmul_arrays(_polynomial(matmul_arrays(x, x.swapaxes(1, 2))), x)
    return x


def _by_gram_matrices(x: Array, steps: int) -> Array:
    """The same for wide matrices, with products of G = X X^T (S, M, M) alone: 44% fewer multiplications for N = 4 M.

    An iteration takes X to P X with P = a I + b G + c G^2, and so G to P G P = G P P, for P and G commute. X itself
    only multiplies the product of all P, at the end.
    """
    gram = matmul_arrays(x, x.swapaxes(1, 2))  # (S, M, M)
    product = last = _polynomial(gram)
    for _ in range(steps - 1):
        gram = matmul_arrays(matmul_arrays(gram, last), last)
        last = _polynomial(gram)
        product = matmul_arrays(last, product)
    return matmul_arrays(product, x)


def _polynomial(gram: Array) -> Array:
    """a I + b G + c G^2 for a stack of matrices G (S, M, M)."""
    result = matmul_arrays(gram, gram)
    result *= C
    result += B * gram
    diagonal = array_module(gram).arange(gram.shape[1])
    result[:, diagonal, diagonal] += A
    return result


class Muon(Optimizer):
    """Muon over `parameters`: (name, tensor) pairs, or groups (see `tinygpt.optim.optimizer`).

    lr: the learning rate of the matrices. adamw_lr: that of the rest; a change of `optimizer.lr` changes it in
    proportion. momentum: in [0, 1). steps: of the Newton-Schulz iteration. betas, eps: AdamW's. weight_decay, l1, l2:
    act on matrices only. A group may set its own momentum, nesterov, betas and eps; use_muon: whether its parameters
    get Muon, for which they must be matrices, or AdamW; parts: how many matrices are concatenated in each of them, by
    default 3 for `c_attn.weight`, else 1. Raises UsageError, ShapeError and DtypeError.
    """

    elementwise = False
    group_settings = ("momentum", "nesterov", "betas", "eps", "use_muon", "parts")
    use_muon: bool | None = None  # by default the name decides
    parts: int | None = None

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        adamw_lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        steps: int = 5,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        self.where = "Muon"
        self.momentum: float = self._check_setting("momentum", momentum)
        self.nesterov: bool = self._check_setting("nesterov", nesterov)
        self.betas: tuple[float, float] = self._check_setting("betas", betas)
        self.eps: float = self._check_setting("eps", eps)
        self.steps = whole_number("Muon", "steps", steps)
        super().__init__(parameters, lr, weight_decay, l1, l2)
        adamw_lr = number("Muon", "adamw_lr", adamw_lr, at_least=0)
        self.adamw_scale = adamw_lr / self.lr if self.lr else 1.0

    def _check_setting(self, name: str, value: Any) -> Any:
        if name == "betas":
            return check_betas(self.where, value)
        if name == "parts":
            return whole_number(self.where, name, value)
        if name == "momentum":
            return number(self.where, name, value, at_least=0, below=1)
        return number(self.where, name, value, above=0) if name == "eps" else bool(value)

    def _state_names(self, slot: Slot) -> tuple[str, ...]:
        return ("momentum",) if self._is_matrix(slot) else ("m", "v")

    def _is_matrix(self, slot: Slot) -> bool:
        """Whether a parameter gets Muon. Raises UsageError if nothing decides it, ShapeError if it can't."""
        wanted, shape, parts = self._setting(slot, "use_muon"), slot.parameter.shape, self.parts_of(slot)
        if wanted is None:
            if len(shape) == 2 and slot.name.isdecimal():
                raise UsageError(
                    f"Muon: the matrix {slot.name}, of shape {shape}, has no name, from which Muon would know whether "
                    "it belongs to a block: give model.named_parameters(), or groups with 'use_muon'"
                )
            wanted = len(shape) == 2 and IN_A_BLOCK.search(slot.name) is not None
        if wanted and (len(shape) != 2 or shape[1] % parts):
            raise ShapeError(
                f"Muon: parameter {slot.name!r} must be a matrix{f' of {parts} equal parts' if parts > 1 else ''}, "
                f"but has shape {shape}: give it a group with 'use_muon': False"
            )
        return bool(wanted)

    def parts_of(self, slot: Slot) -> int:
        """How many matrices are concatenated in this one."""
        own: int | None = self._setting(slot, "parts")
        return own if own is not None else 3 if QUERY_KEY_VALUE.search(slot.name) else 1

    def _update_all(self, ready: list[tuple[Slot, Array, float]]) -> None:
        adamw_update.each(
            [
                (
                    slot.parameter.data, grad, slot.state["m"], slot.state["v"],
                    self.lr * self.adamw_scale * slot.lr_scale, *self._setting(slot, "betas"),
                    self._setting(slot, "eps"), slot.weight_decay, slot.step, grad_scale,
                )
                for slot, grad, grad_scale in ready
                if "m" in slot.state
            ]
        )  # fmt: skip
        matrices = [(slot, grad, grad_scale) for slot, grad, grad_scale in ready if "momentum" in slot.state]
        self._subtract([(slot, self._direction(slot, grad, scale)) for slot, grad, scale in matrices])

    def _direction(self, slot: Slot, grad: Array, grad_scale: float) -> Array:
        """Add the gradient to the momentum, and return the matrix to orthogonalize, of the parameter's shape."""
        m, momentum = slot.state["momentum"], self._setting(slot, "momentum")
        grad = grad * ((1 - momentum) * grad_scale)
        m *= momentum
        m += grad
        return grad + momentum * m if self._setting(slot, "nesterov") else m

    def _subtract(self, directions: list[tuple[Slot, Array]]) -> None:
        """Orthogonalize the directions, all of one shape together, and subtract them from the parameters."""
        pieces: dict[Any, list[tuple[Array, Array]]] = {}  # (part of a parameter, part of its direction), both wide
        for slot, direction in directions:
            param = slot.parameter.data
            param *= 1 - self.lr * slot.lr_scale * slot.weight_decay
            width = param.shape[1] // self.parts_of(slot)
            scale = self.lr * slot.lr_scale * math.sqrt(max(1.0, width / max(1, param.shape[0])))
            for begin in range(0, param.shape[1], max(1, width)):
                pair = param[:, begin : begin + width], direction[:, begin : begin + width]
                if param.shape[0] > width:
                    pair = pair[0].T, pair[1].T
                key = (pair[0].shape, param.dtype.name, slot.parameter.backend, scale)
                pieces.setdefault(key, []).append(pair)
        for key, pairs in pieces.items():
            stack = array_module(pairs[0][1]).stack([direction for _, direction in pairs])  # (S, M, N)
            for (param, _), update in zip(pairs, newton_schulz(stack, self.steps), strict=True):
                param -= key[-1] * update
