"""The operations of `random_graph_operations.py` in PyTorch, and a graph's values and gradients beside PyTorch's."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch

from tests.ops import random_graphs
from tests.ops.cases import ROWS
from tinygpt.ops.dropout import dropout_mask
from tinygpt.random import Generator

F: Any = torch.nn.functional


def dims(x: Any, axis: Any) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)


def maximum(x: Any, axis: Any, keepdims: bool) -> Any:
    return x.amax(dim=dims(x, axis), keepdim=keepdims)


def mask(x: Any, p: float, seed: int) -> Any:
    if p == 0:
        return torch.ones(x.shape, dtype=x.dtype)
    C = x.shape[-1] if x.ndim else 1
    rows = x.numel() // C if C else 0
    drawn = dropout_mask(p, *Generator(seed).next_key(), rows, C, np.zeros(0, str(x.dtype).partition(".")[2]))
    return torch.tensor(drawn).reshape(x.shape)


def getitem(x: Any, key: Any) -> Any:
    """PyTorch has no negative steps: the indices one by one."""
    if isinstance(key, np.ndarray):
        return x[torch.tensor(key)]
    picked = np.arange(x.numel()).reshape(tuple(x.shape))[key]
    return x.reshape(-1)[torch.tensor(picked.copy())]


def split(x: Any, sizes: Any, axis: int) -> Any:
    return torch.split(x, sizes, dim=axis)


def matmul(a: Any, b: Any, swap: bool = False, turn: bool = False) -> Any:
    return a @ b.T if turn else b @ a if swap else a @ b


def residual(r: Any, x: Any, w: Any, *given: Any, biases: Any, p: float, seed: int) -> Any:
    rest = iter(given)
    bias, x_bias = (next(rest) if present else None for present in biases)
    update = x if x_bias is None else x + x_bias
    total = r + update * mask(update, p, seed)
    return total, F.layer_norm(total, w.shape, w, bias)


def qkv_attention(x: Any, n_head: int, is_causal: bool) -> Any:
    B, T, width = x.shape
    q, k, v = (part.reshape(B, T, n_head, -1).transpose(1, 2) for part in x.split(width // 3, dim=2))
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(1, 2).reshape(B, T, width // 3)


def pow(a: Any, b: Any = None, number: Any = None, base: Any = None) -> Any:
    return a**b if b is not None else a**number if number is not None else (abs(base) + 0.5) ** a


def nll(logits: Any, targets: np.ndarray) -> Any:
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), torch.tensor(targets.reshape(-1)))


def no_grad(x: Any) -> Any:
    with torch.no_grad():
        return x * 2.0


TABLE: dict[str, Any] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "affine": lambda x: 1.5 - 2.0 * x / 3.0 + 0.5,
    "neg": torch.neg,
    "pow": pow,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "erf": torch.erf,
    "gelu": lambda x, approximate: F.gelu(x, approximate=approximate),
    "sum": lambda x, axis=None, keepdims=False: x.sum(dim=dims(x, axis), keepdim=keepdims) if x.ndim else x * 1.0,
    "mean": lambda x, axis, keepdims: x.mean(dim=dims(x, axis), keepdim=keepdims) if x.ndim else x * 1.0,
    "var": lambda x, axis, keepdims: x.var(dim=dims(x, axis), keepdim=keepdims),
    "max": maximum,
    "min": lambda x, axis, keepdims: x.amin(dim=dims(x, axis), keepdim=keepdims),
    "abs": torch.abs,
    "reshape": lambda x, shape: x.reshape(shape),
    "transpose": lambda x, axes: x.permute(axes),
    "getitem": getitem,
    "concatenate": lambda *x, axis: torch.cat(x, dim=axis),
    "stack": lambda *x, axis: torch.stack(x, dim=axis),
    "split": split,
    "where": lambda a, c, condition: torch.where(a > 0 if condition is None else torch.tensor(condition), a, c),
    "softmax": lambda x, axis: F.softmax(x, dim=axis),
    "log_softmax": lambda x, axis: F.log_softmax(x, dim=axis),
    "matmul": matmul,
    "linear": lambda x, w, b=None: x @ w if b is None else x @ w + b,
    "layer_norm": lambda x, w, b=None: F.layer_norm(x, w.shape, w, b),
    "bias_gelu": lambda x, b: F.gelu(x + b, approximate="tanh"),
    "residual_layer_norm": residual,
    "attention": lambda q, k, v, is_causal, dropout_p: F.scaled_dot_product_attention(q, k, v, is_causal=is_causal),
    "qkv_attention": qkv_attention,
    "dropout": lambda x, p, seed: x * mask(x, p, seed),
    "embedding": lambda w, ids: F.embedding(torch.tensor(ids), w),
    "cross_entropy": nll,
    "linear_cross_entropy": lambda x, w, targets: nll(x @ w.T, targets),
    "binary_cross_entropy": lambda x, targets: F.binary_cross_entropy_with_logits(
        x, torch.tensor(targets, dtype=x.dtype)
    ),
    "cast": lambda x: x.double().to(x.dtype),
    "in_dtype_of": lambda x, p: p,
    "l1": lambda *x, strength: strength * sum(p.abs().sum() for p in x),
    "l2": lambda *x, strength: 0.5 * strength * sum((p * p).sum() for p in x),
    "detach": torch.Tensor.detach,
    "no_grad": no_grad,
    "both": lambda x, w: (x * x, w * 3.0),
}
TABLE |= {
    row.name: functools.partial(row.torch, torch) for row in ROWS if row.graph is not None and row.torch is not None
}


def check_with_torch(program: random_graphs.Program) -> None:
    """Equal values, equal gradients (None where PyTorch has none), in float64 and, but for rounding, in float32."""
    for dtype, allowed in ((np.float64, 1e-9), (np.float32, random_graphs.ROUNDING)):
        values, grads = random_graphs.gradients(program, dtype)
        leaves = {
            i: torch.tensor(leaf.array.astype(dtype), requires_grad=leaf.requires_grad)
            for i, leaf in program.leaves.items()
        }
        theirs = random_graphs.values_of(program, leaves, TABLE)
        for root, upstream, times in program.roots:
            for _ in range(times):
                theirs[root].backward(torch.tensor(upstream.astype(dtype)), retain_graph=True)
        found = {i: None if leaf.grad is None else leaf.grad.numpy() for i, leaf in leaves.items()}
        for i, value in enumerate(values):
            equal = value.shape == tuple(theirs[i].shape)
            random_graphs.require(equal, program, f"v{i} has another shape than PyTorch's {tuple(theirs[i].shape)}")
        off = random_graphs.worst(values, [value.detach().numpy() for value in theirs])
        random_graphs.require(off < allowed * random_graphs.LARGEST, program, f"values are {off:.2g} off PyTorch's")
        for i, grad in grads.items():
            both = (grad is None) == (found[i] is None)
            random_graphs.require(both, program, f"leaf v{i}: a gradient here or in PyTorch alone")
        scale = max([1.0, *(float(np.abs(g).max()) for g in found.values() if g is not None and g.size)])
        off = random_graphs.worst(grads.values(), found.values())
        random_graphs.require(off < allowed * scale, program, f"gradients are {off:.2g} off PyTorch's")
        assert math.isfinite(scale)
