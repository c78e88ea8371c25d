"""PyTorch's side of `ops.py`: for each kernel, PyTorch's operations that do the same work.

If PyTorch has a single operation for it, that is called, otherwise the operations that eager mode would call. Backward
passes are called directly, without autograd's graph, and what eager mode saves in the forward pass (a dropout mask, the
sum with the residual) is passed in ready-made.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import ops_ours
import torch
from ops_sizes import DROPOUT, PRODUCTS, Sizes, ids, normal

aten = torch.ops.aten
Body = Callable[[], Any]
WANTED = [True, True, True]


def tensor(*shape: int, seed: int = 0) -> Any:
    return torch.from_numpy(normal(*shape, seed=seed))


def keep_freed_memory() -> None:
    """Use tinygpt's glibc settings (`_ext/threads`), so that the comparison leaves out the cost of new pages."""
    if sys.platform.startswith("linux"):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((-3, 32 << 20), (-1, 1 << 30), (-2, 16 << 20)):  # mmap threshold, trim threshold, top pad
            mallopt(option, value)


def layer_norm_forward(s: Sizes) -> Body:
    x, w = tensor(s.N, s.C), torch.ones(s.C)
    return lambda: aten.native_layer_norm(x, [s.C], w, w, 1e-5)


def layer_norm_backward(s: Sizes) -> Body:
    x, w, dy = tensor(s.N, s.C), torch.ones(s.C), tensor(s.N, s.C, seed=1)
    _, mean, rstd = aten.native_layer_norm(x, [s.C], w, w, 1e-5)
    return lambda: aten.native_layer_norm_backward(dy, x, [s.C], mean, rstd, w, w, WANTED)


def residual_layer_norm_forward(s: Sizes, p: float = 0.0) -> Body:
    x, other, w = tensor(s.N, s.C), tensor(s.N, s.C, seed=1), torch.ones(s.C)

    def body() -> Any:
        added = aten.native_dropout(other, p, True)[0] if p else other
        total = x + added
        return total, aten.native_layer_norm(total, [s.C], w, w, 1e-5)

    return body


def residual_layer_norm_backward(s: Sizes, p: float = 0.0) -> Body:
    x, w = tensor(s.N, s.C), torch.ones(s.C)
    dy, ds = tensor(s.N, s.C, seed=1), tensor(s.N, s.C, seed=2)
    _, mean, rstd = aten.native_layer_norm(x, [s.C], w, w, 1e-5)
    mask = torch.rand(s.N, s.C) > p

    def body() -> Any:
        dx, dweight, dbias = aten.native_layer_norm_backward(dy, x, [s.C], mean, rstd, w, w, WANTED)
        total = dx + ds
        return total, aten.native_dropout_backward(total, mask, 1 / (1 - p)) if p else total, dweight, dbias

    return body


def gelu_forward(approximate: str) -> Callable[[Sizes], Body]:
    def make(s: Sizes) -> Body:
        x = tensor(s.N, 4 * s.C)
        return lambda: aten.gelu(x, approximate=approximate)

    return make


def gelu_backward(approximate: str) -> Callable[[Sizes], Body]:
    def make(s: Sizes) -> Body:
        x, dy = tensor(s.N, 4 * s.C), tensor(s.N, 4 * s.C, seed=1)
        return lambda: aten.gelu_backward(dy, x, approximate=approximate)

    return make


def bias_gelu_forward(s: Sizes) -> Body:
    x, bias = tensor(s.N, 4 * s.C), tensor(4 * s.C)

    def body() -> Any:
        total = x + bias
        return total, aten.gelu(total, approximate="tanh")

    return body


def bias_gelu_backward(s: Sizes) -> Body:
    x, dy = tensor(s.N, 4 * s.C) + tensor(4 * s.C), tensor(s.N, 4 * s.C, seed=1)

    def body() -> Any:
        dx = aten.gelu_backward(dy, x, approximate="tanh")
        return dx, dx.sum(0)

    return body


def softmax_forward(name: str) -> Callable[[Sizes], Body]:
    def make(s: Sizes) -> Body:
        x = tensor(s.N, s.V)
        return lambda: getattr(aten, name)(x, -1, False)

    return make


def softmax_backward(name: str) -> Callable[[Sizes], Body]:
    def make(s: Sizes) -> Body:
        dy = tensor(s.N, s.V)
        y = getattr(aten, name)(dy, -1, False)
        backward = getattr(aten, name + "_backward_data")
        return lambda: backward(dy, y, -1, torch.float32)

    return make


def cross_entropy_forward(s: Sizes) -> Body:
    x, targets = tensor(s.N, s.V), torch.from_numpy(ids(s))
    return lambda: torch.nn.functional.cross_entropy(x, targets)


def cross_entropy_backward(s: Sizes) -> Body:
    targets = torch.from_numpy(ids(s))
    log_p = aten._log_softmax(tensor(s.N, s.V), -1, False)
    _, total = aten.nll_loss_forward(log_p, targets, None, 1, -100)
    upstream = torch.ones(())

    def body() -> Any:
        dlog_p = aten.nll_loss_backward(upstream, log_p, targets, None, 1, -100, total)
        return aten._log_softmax_backward_data(dlog_p, log_p, -1, torch.float32)

    return body


def heads(packed: Any) -> list[Any]:
    return [packed[:, :, i].transpose(1, 2) for i in range(3)]


def attention_forward(s: Sizes, p: float = 0.0) -> Body:
    q, k, v = heads(tensor(s.B, s.T, 3, s.H, s.D))
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)


def attention_backward(s: Sizes, p: float = 0.0) -> Body:
    q, k, v = heads(tensor(s.B, s.T, 3, s.H, s.D))
    dy = tensor(s.B, s.T, s.H, s.D, seed=1).transpose(1, 2)
    scale = 1 / math.sqrt(s.D)
    if p == 0:
        forward, backward = (
            getattr(aten, "_scaled_dot_product_flash_attention_for_cpu" + end) for end in ("", "_backward")
        )
        y, lse = forward(q, k, v, 0.0, True, scale=scale)
        return lambda: backward(dy, q, k, v, y, lse, 0.0, True, scale=scale)
    for array in (q, k, v):  # PyTorch has no such pair with dropout: autograd runs the composed form
        array.requires_grad_()
    with torch.enable_grad():
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
    return lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True)


def embedding_forward(s: Sizes) -> Body:
    table, numbers = tensor(s.V, s.C), torch.from_numpy(ids(s))
    return lambda: aten.embedding(table, numbers)


def embedding_backward(s: Sizes) -> Body:
    dy, numbers = tensor(s.N, s.C), torch.from_numpy(ids(s))
    return lambda: aten.embedding_dense_backward(dy, numbers, s.V, -1, False)


def dropout_forward(s: Sizes) -> Body:
    x = tensor(s.N, s.C)
    return lambda: aten.native_dropout(x, DROPOUT, True)


def dropout_backward(s: Sizes) -> Body:
    dy, mask = tensor(s.N, s.C), torch.rand(s.N, s.C) > DROPOUT
    return lambda: aten.native_dropout_backward(dy, mask, 1 / (1 - DROPOUT))


def add_bias(s: Sizes) -> Body:
    y, bias = tensor(s.N, 3 * s.C), tensor(3 * s.C)
    return lambda: y.add_(bias)


def column_sum(s: Sizes) -> Body:
    x = tensor(s.N, 3 * s.C)
    return lambda: x.sum(0)


def sum_of_squares(s: Sizes) -> Body:
    x = tensor(s.parameters)
    return lambda: torch.linalg.vector_norm(x)


def adamw_update(s: Sizes) -> Body:
    param, grad, m = ([tensor(s.parameters, seed=i)] for i in range(3))
    v, step = [tensor(s.parameters, seed=3).abs()], [torch.tensor(5.0)]
    options: dict[str, Any] = {
        "lr": 1e-6, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1, "eps": 1e-8, "amsgrad": False, "maximize": False,
    }  # fmt: skip
    return lambda: torch._fused_adamw_(param, grad, m, v, [], step, **options)


def product(a: tuple[int, int], b: tuple[int, int], transposed: str = "") -> Body:
    left = tensor(*a[::-1]).T if transposed == "left" else tensor(*a)
    right = tensor(*b[::-1], seed=1).T if transposed == "right" else tensor(*b, seed=1)
    out = torch.empty(a[0], b[1])
    return lambda: torch.mm(left, right, out=out)


def beside_ours(row: str) -> Callable[[Sizes], Body]:
    """PyTorch's body of a row that `ops_ours.py` lists in TORCH."""

    def make(s: Sizes) -> Body:
        arguments = ops_ours.ROWS[row](s).arguments
        tensors = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arguments]
        return lambda: ops_ours.TORCH[row](torch, *tensors)

    return make


OWN_ROWS: dict[str, Callable[[Sizes], Body]] = {
    "layer_norm_forward": layer_norm_forward,
    "layer_norm_backward": layer_norm_backward,
    "residual_layer_norm_forward": residual_layer_norm_forward,
    "residual_layer_norm_backward": residual_layer_norm_backward,
    "residual_layer_norm_forward, dropout": lambda s: residual_layer_norm_forward(s, DROPOUT),
    "residual_layer_norm_backward, dropout": lambda s: residual_layer_norm_backward(s, DROPOUT),
    "gelu_forward": gelu_forward("tanh"),
    "gelu_backward": gelu_backward("tanh"),
    "gelu_erf_forward": gelu_forward("none"),
    "gelu_erf_backward": gelu_backward("none"),
    "bias_gelu_forward": bias_gelu_forward,
    "bias_gelu_backward": bias_gelu_backward,
    "softmax_forward": softmax_forward("_softmax"),
    "softmax_backward": softmax_backward("_softmax"),
    "log_softmax_forward": softmax_forward("_log_softmax"),
    "log_softmax_backward": softmax_backward("_log_softmax"),
    "cross_entropy_forward": cross_entropy_forward,
    "cross_entropy_backward": cross_entropy_backward,
    "attention_forward": attention_forward,
    "attention_backward": attention_backward,
    "attention_forward, dropout": lambda s: attention_forward(s, DROPOUT),
    "attention_backward, dropout": lambda s: attention_backward(s, DROPOUT),
    "embedding_forward": embedding_forward,
    "embedding_backward": embedding_backward,
    "dropout_forward": dropout_forward,
    "dropout_backward": dropout_backward,
    "add_bias": add_bias,
    "column_sum": column_sum,
    "sum_of_squares": sum_of_squares,
    "adamw_update": adamw_update,
    **{f"product {name}": lambda s, shapes=shapes: product(*shapes(s)) for name, shapes in PRODUCTS.items()},
}
ROWS = {name: OWN_ROWS[name] if name in OWN_ROWS else beside_ours(name) for name in ops_ours.ROWS}
