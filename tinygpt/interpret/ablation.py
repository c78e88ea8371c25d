"""Ablation: switch off heads or whole blocks, and see what the model can no longer do.

    before = model.loss(ids, labels=ids).item()
    for head in range(12):
        with ablate(model, heads=[(5, head)]):
            print(head, model.loss(ids, labels=ids).item() - before)

A head is switched off by replacing its output with zeros, which is the same as zeros in its D rows of `c_proj.weight`;
the bias of that projection stays. A block is switched off by leaving out what it adds to the residual stream: x passes
through unchanged. No weight is changed. Zeros are far from what the later layers have seen in training, so the rise of
the loss may overstate what the part contributes.

Source: Michel, Levy, Neubig, "Are Sixteen Heads Really Better than One?", 2019, sections 2.3 and 3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..backends import array_module
from ..checks import whole_number
from ..errors import DtypeError, RangeError, UsageError
from ..tensor import Tensor
from .hooks import Around, wrapped
from .text import AnyModel, body_of


@contextlib.contextmanager
def ablate(
    model: AnyModel,
    heads: Iterable[tuple[int, int]] = (),
    layers: Iterable[int] = (),
) -> Iterator[None]:
    """Inside the block, these heads and blocks of the model are switched off, in training and generation too.

    heads: pairs (block, head); layers: blocks; both counted from 0. A user-defined attention layer needs `n_head` and
    `c_proj`, whose input is the concatenated heads.
    Raises RangeError for a block or a head that the model does not have, UsageError for layers without heads.
    """
    body, prefix = body_of("ablate", model)
    chosen: dict[int, set[int]] = {}
    for block, head in _pairs(heads):
        attention: Any = getattr(body.h[_below("block", block, len(body.h))], "attn", None)
        if not hasattr(attention, "c_proj") or not hasattr(attention, "n_head"):
            raise UsageError(f"ablate: h.{block} has no attn with n_head and c_proj, so its heads are not known")
        chosen.setdefault(block, set()).add(_below(f"head in h.{block}", head, attention.n_head))
    around: dict[str, Around] = {
        f"{prefix}h.{_below('block', layer, len(body.h))}": _skipped for layer in _listed(layers)
    }
    for block, off in chosen.items():
        around[f"{prefix}h.{block}.attn.c_proj"] = _without(sorted(off), body.h[block].attn.n_head)
    with wrapped(model, around, positionwise=True):
        yield


def _pairs(heads: Any) -> list[tuple[int, int]]:
    pairs = _listed(heads)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise DtypeError(f"ablate: heads must be pairs (block, head), such as [(0, 3)], not {pair!r}")
    return pairs


def _listed(values: Any) -> list[Any]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise DtypeError(f"ablate: expected a list of numbers, not {values!r}")
    return list(values)


def _below(what: str, value: Any, count: int) -> int:
    value = whole_number("ablate", f"a {what}", value, at_least=0)
    if value >= count:
        raise RangeError(f"ablate: there is no {what} {value}: they are 0 .. {count - 1}")
    return value


def _without(heads: list[int], n_head: int) -> Around:
    """c_proj with zeros in place of these heads' outputs."""

    def around(forward: Any, y: Tensor, *args: Any, **kwargs: Any) -> Any:
        C = y.shape[-1]
        keep = np.ones((n_head, C // n_head), np.float32)
        keep[heads] = 0.0
        mask = array_module(y.data).asarray(keep.reshape(C)).astype(y.dtype)
        return forward(y * Tensor(mask), *args, **kwargs)

    return around


def _skipped(forward: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """x itself. The block still runs, since it fills its cache and determines how many positions go on."""
    y: Tensor = forward(x, *args, **kwargs)
    return x if x.shape == y.shape else x[:, -y.shape[1] :]
