"""tinygpt's side of `ops.py`: each kernel with its arguments, and the bytes and operations that it needs.

A new kernel needs a function here that builds its `Work`, an entry in ROWS, and PyTorch's body for the same arguments
in TORCH.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ops_sizes import DROPOUT, PRODUCTS, Sizes, ids, normal

import tinygpt.optim  # noqa: F401  registers its kernels
from tinygpt.kernel import REGISTRY
from tinygpt.ops._matmul import matmul_arrays


@dataclass
class Work:
    """A kernel and its arguments; bytes: each input read once, each output written once; flops: of matrix products."""

    kernel: Any
    arguments: tuple[Any, ...]
    bytes: int
    flops: float = 0.0

    def ours(self) -> Any:
        return self.kernel(*self.arguments)

    def reference(self) -> Any:
        return getattr(self.kernel, "reference", self.kernel)(*self.arguments)


def work(kernel: str, arguments: tuple[Any, ...], moved: int, flops: float = 0.0) -> Work:
    return Work(REGISTRY[kernel], arguments, moved, flops)


def hidden(s: Sizes) -> np.ndarray:
    return normal(s.N, s.C)


def wide(s: Sizes) -> np.ndarray:
    return normal(s.N, 4 * s.C)


def ones(count: int) -> np.ndarray:
    return np.ones(count, np.float32)


def layer_norm_forward(s: Sizes) -> Work:
    x = hidden(s)
    return work("layer_norm_forward", (x, ones(s.C), ones(s.C), 1e-5), 2 * x.nbytes)


def layer_norm_backward(s: Sizes) -> Work:
    x, weight = hidden(s), ones(s.C)
    _, mean, rstd = REGISTRY["layer_norm_forward"](x, weight, weight, 1e-5)
    return work("layer_norm_backward", (normal(s.N, s.C, seed=1), x, weight, mean, rstd, True), 3 * x.nbytes)


def rms_norm_forward(s: Sizes) -> Work:
    x = hidden(s)
    return work("rms_norm_forward", (x, ones(s.C), 1e-5), 2 * x.nbytes)


def rms_norm_backward(s: Sizes) -> Work:
    x, weight = hidden(s), ones(s.C)
    _, rstd = REGISTRY["rms_norm_forward"](x, weight, 1e-5)
    return work("rms_norm_backward", (normal(s.N, s.C, seed=1), x, weight, rstd), 3 * x.nbytes)


def torch_rms_norm_backward(torch: Any, dy: Any, x: Any, weight: Any, rstd: Any) -> Any:
    """What eager mode's autograd runs: PyTorch has no kernel for it."""
    norm = x * rstd[:, None]
    dnorm = dy * weight
    return rstd[:, None] * (dnorm - norm * (dnorm * norm).mean(1, keepdim=True)), (dy * norm).sum(0)


def residual_layer_norm_forward(s: Sizes, p: float = 0.0) -> Work:
    x = hidden(s)
    arguments = (x, normal(s.N, s.C, seed=1), None, ones(s.C), ones(s.C), 1e-5, p, 5, 6)
    return work("residual_layer_norm_forward", arguments, 4 * x.nbytes)


def residual_layer_norm_backward(s: Sizes, p: float = 0.0) -> Work:
    x, weight = hidden(s), ones(s.C)
    _, mean, rstd = REGISTRY["layer_norm_forward"](x, weight, weight, 1e-5)
    dy, ds = normal(s.N, s.C, seed=1), normal(s.N, s.C, seed=2)
    arguments = (dy, ds, x, weight, mean, rstd, p, 5, 6, False, True)
    return work("residual_layer_norm_backward", arguments, (5 if p else 4) * x.nbytes)


def gelu(form: str, direction: str) -> Callable[[Sizes], Work]:
    def make(s: Sizes) -> Work:
        x = wide(s)
        arguments = (x,) if direction == "forward" else (normal(s.N, 4 * s.C, seed=1), x)
        return work(f"{form}_{direction}", arguments, (len(arguments) + 1) * x.nbytes)

    return make


def bias_gelu_forward(s: Sizes) -> Work:
    x = wide(s)
    return work("bias_gelu_forward", (x, normal(4 * s.C)), 2 * x.nbytes)


def bias_gelu_backward(s: Sizes) -> Work:
    x = wide(s)
    return work("bias_gelu_backward", (normal(s.N, 4 * s.C, seed=1), x, normal(4 * s.C)), 3 * x.nbytes)


def softmax(form: str, direction: str) -> Callable[[Sizes], Work]:
    def make(s: Sizes) -> Work:
        logits = normal(s.N, s.V)
        if direction == "forward":
            return work(f"{form}_forward", (logits,), 2 * logits.nbytes)
        y = REGISTRY[f"{form}_forward"](logits)
        return work(f"{form}_backward", (logits, y), 3 * logits.nbytes)

    return make


def cross_entropy_forward(s: Sizes) -> Work:
    logits = normal(s.N, s.V)
    return work("cross_entropy_forward", (logits, ids(s), -100), logits.nbytes)


def cross_entropy_backward(s: Sizes) -> Work:
    logits, targets = normal(s.N, s.V), ids(s)
    _, lse = REGISTRY["cross_entropy_forward"](logits, targets, -100)
    arguments = (np.full(s.N, 1 / s.N, np.float32), logits, targets, lse, -100)
    return work("cross_entropy_backward", arguments, 2 * logits.nbytes)


def cross_entropy_inplace(s: Sizes) -> Work:
    logits = normal(s.N, s.V)
    return work("cross_entropy_inplace", (logits, ids(s), -100, 1 / s.N), 2 * logits.nbytes)


def torch_cross_entropy_inplace(torch: Any, logits: Any, targets: Any, ignored: int, scale: float) -> Any:
    """The operations that eager mode would run, forward and backward."""
    log_p = torch.ops.aten._log_softmax(logits, -1, False)
    losses, total = torch.ops.aten.nll_loss_forward(log_p, targets, None, 0, ignored)
    upstream = torch.full_like(losses, scale)
    dlog_p = torch.ops.aten.nll_loss_backward(upstream, log_p, targets, None, 0, ignored, total)
    return losses, torch.ops.aten._log_softmax_backward_data(dlog_p, log_p, -1, torch.float32)


def heads(packed: np.ndarray) -> tuple[np.ndarray, ...]:
    """(B, T, 3, H, D) -> three views (B, H, T, D), as the model's packed projection returns them."""
    return tuple(packed[:, :, i].transpose(0, 2, 1, 3) for i in range(3))


def attention_flops(s: Sizes) -> float:
    """FLOPs of one product over the half of the scores that the mask allows."""
    return 2.0 * s.B * s.H * (s.T * (s.T + 1) / 2) * s.D


def attention_forward(s: Sizes, p: float = 0.0) -> Work:
    packed = normal(s.B, s.T, 3, s.H, s.D)
    arguments = (*heads(packed), True, 1 / math.sqrt(s.D), p, 5, 6)
    return work("attention_forward", arguments, 4 * packed.nbytes // 3, 2 * attention_flops(s))


def attention_backward(s: Sizes, p: float = 0.0) -> Work:
    packed = normal(s.B, s.T, 3, s.H, s.D)
    q, k, v = heads(packed)
    options = (True, 1 / math.sqrt(s.D), p, 5, 6)
    y, lse = REGISTRY["attention_forward"](q, k, v, *options)
    dy = normal(s.B, s.T, s.H, s.D, seed=1).transpose(0, 2, 1, 3)
    arguments = (dy, q, k, v, y, lse, *options, *heads(np.empty_like(packed)))
    return work("attention_backward", arguments, 8 * packed.nbytes // 3, 5 * attention_flops(s))


def embedding_forward(s: Sizes) -> Work:
    return work("embedding_forward", (normal(s.V, s.C), ids(s)), 2 * s.N * s.C * 4)


def embedding_backward(s: Sizes) -> Work:
    """Adds to an existing gradient, as in a training step; PyTorch's body allocates a new one."""
    return work("embedding_backward", (hidden(s), ids(s), normal(s.V, s.C)), 3 * s.N * s.C * 4)


def dropout(s: Sizes) -> Work:
    x = hidden(s)
    return work("dropout_apply", (x, DROPOUT, 5, 6), 2 * x.nbytes)


def add_bias(s: Sizes) -> Work:
    y = normal(s.N, 3 * s.C)
    return work("add_bias", (y, normal(3 * s.C)), 2 * y.nbytes)


def column_sum(s: Sizes) -> Work:
    x = normal(s.N, 3 * s.C)
    return work("column_sum", (x,), x.nbytes)


def sum_of_squares(s: Sizes) -> Work:
    x = normal(s.parameters)
    return work("sum_of_squares", (x,), x.nbytes)


def adamw_update(s: Sizes) -> Work:
    param, grad, m = (normal(s.parameters, seed=i) for i in range(3))
    v = np.abs(normal(s.parameters, seed=3))
    return work("adamw_update", (param, grad, m, v, 1e-6, 0.9, 0.99, 1e-8, 0.1, 5, 1.0), 7 * grad.nbytes)


def product(a: tuple[int, int], b: tuple[int, int], transposed: str = "") -> Work:
    """(M, K) @ (K, N); the "left" or "right" matrix may be stored transposed."""
    left = normal(*a[::-1]).T if transposed == "left" else normal(*a)
    right = normal(*b[::-1], seed=1).T if transposed == "right" else normal(*b, seed=1)
    out = np.empty((a[0], b[1]), np.float32)
    moved = left.nbytes + right.nbytes + out.nbytes
    return Work(matmul_arrays, (left, right, out), moved, 2.0 * a[0] * a[1] * b[1])


ROWS: dict[str, Callable[[Sizes], Work]] = {
    "layer_norm_forward": layer_norm_forward,
    "layer_norm_backward": layer_norm_backward,
    "rms_norm_forward": rms_norm_forward,
    "rms_norm_backward": rms_norm_backward,
    "residual_layer_norm_forward": residual_layer_norm_forward,
    "residual_layer_norm_backward": residual_layer_norm_backward,
    "residual_layer_norm_forward, dropout": lambda s: residual_layer_norm_forward(s, DROPOUT),
    "residual_layer_norm_backward, dropout": lambda s: residual_layer_norm_backward(s, DROPOUT),
    "gelu_forward": gelu("gelu", "forward"),
    "gelu_backward": gelu("gelu", "backward"),
    "gelu_erf_forward": gelu("gelu_erf", "forward"),
    "gelu_erf_backward": gelu("gelu_erf", "backward"),
    "silu_forward": gelu("silu", "forward"),
    "silu_backward": gelu("silu", "backward"),
    "bias_gelu_forward": bias_gelu_forward,
    "bias_gelu_backward": bias_gelu_backward,
    "softmax_forward": softmax("softmax", "forward"),
    "softmax_backward": softmax("softmax", "backward"),
    "log_softmax_forward": softmax("log_softmax", "forward"),
    "log_softmax_backward": softmax("log_softmax", "backward"),
    "cross_entropy_forward": cross_entropy_forward,
    "cross_entropy_backward": cross_entropy_backward,
    "cross_entropy_inplace": cross_entropy_inplace,
    "attention_forward": attention_forward,
    "attention_backward": attention_backward,
    "attention_forward, dropout": lambda s: attention_forward(s, DROPOUT),
    "attention_backward, dropout": lambda s: attention_backward(s, DROPOUT),
    "embedding_forward": embedding_forward,
    "embedding_backward": embedding_backward,
    "dropout_forward": dropout,
    "dropout_backward": dropout,
    "add_bias": add_bias,
    "column_sum": column_sum,
    "sum_of_squares": sum_of_squares,
    "adamw_update": adamw_update,
    **{f"product {name}": lambda s, shapes=shapes: product(*shapes(s)) for name, shapes in PRODUCTS.items()},
}

# PyTorch's bodies, called with the module and our arguments as tensors; those of the older rows are in ops_torch.py.
TORCH: dict[str, Callable[..., Any]] = {
    "cross_entropy_inplace": torch_cross_entropy_inplace,
    "silu_forward": lambda torch, x: torch.nn.functional.silu(x),
    "silu_backward": lambda torch, dy, x: torch.ops.aten.silu_backward(dy, x),
    "rms_norm_forward": lambda torch, x, weight, eps: torch.nn.functional.rms_norm(x, weight.shape, weight, eps),
    "rms_norm_backward": torch_rms_norm_backward,
}
