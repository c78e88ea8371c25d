"""Groups of parameters, made from their names.

    AdamW(layer_decay(model.named_parameters(), 0.9), lr=1e-4)
    AdamW(by_name(model.named_parameters(), {"h.0.*": {"lr_scale": 0.1}, "*.bias": {"weight_decay": 0.0}}), lr=1e-3)

Both return a list of groups, one for each parameter, which all optimizers take.

Layer-wise learning-rate decay is for fine-tuning: the lower layers, which know the language in general, change less
than the upper ones. With L blocks, decay d scales the learning rate

    of what comes after the blocks (the last norm, a head)    by 1
    of block i = L - 1, ..., 0                                by d**(L - i)
    of what comes before them (the embeddings)                by d**(L + 1)

A head that is tied to the token embedding counts as the embedding. Source: Clark et al., "ELECTRA", 2020, appendix A;
BEiT and its successors use the same scales.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from ..checks import number
from ..errors import DtypeError, UsageError
from ..tensor import Tensor

BLOCK = re.compile(r"(?:^|\.)(\d+)\.")  # the first number among the parts of a name: the 3 of "h.3.attn.c_proj.weight"


def layer_decay(named_parameters: Iterable[tuple[str, Tensor]], decay: float) -> list[dict[str, Any]]:
    """Groups whose `lr_scale` falls from the last block to the first by the factor `decay`, in (0, 1], per block.

    named_parameters: in the order of the model, such as `model.named_parameters()`. Raises UsageError.
    """
    decay = number("layer_decay", "decay", decay, above=0, at_most=1)
    pairs = _pairs("layer_decay", named_parameters)
    found = [BLOCK.search(name) for name, _ in pairs]
    blocks = [int(match[1]) for match in found if match]
    if not blocks:
        raise UsageError(
            "layer_decay: no name has the number of a block in it, such as h.0.ln_1.weight: give "
            "model.named_parameters()"
        )
    first, count = next(i for i, match in enumerate(found) if match), max(blocks) + 1
    groups = []
    for i, (pair, match) in enumerate(zip(pairs, found, strict=True)):
        above = count - int(match[1]) if match else count + 1 if i < first else 0
        groups.append({"params": [pair], "lr_scale": decay**above})
    return groups


def by_name(
    named_parameters: Iterable[tuple[str, Tensor]], settings: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Groups with the settings of all patterns that match a parameter's name; if several set a value, the last wins.

    settings: pattern -> settings of a group. In a pattern, * stands for any characters, ? for one. Raises UsageError
    for a pattern that matches no name.
    """
    pairs = _pairs("by_name", named_parameters)
    for pattern in settings:
        if not any(fnmatchcase(name, pattern) for name, _ in pairs):
            names = ", ".join(name for name, _ in pairs[:5]) + (", ..." if len(pairs) > 5 else "")
            raise UsageError(f"by_name: no parameter has a name like {pattern!r}: there are {names}")
    groups: list[dict[str, Any]] = []
    for pair in pairs:
        group: dict[str, Any] = {"params": [pair]}
        for pattern, values in settings.items():
            if fnmatchcase(pair[0], pattern):
                group |= values
        groups.append(group)
    return groups


def _pairs(where: str, named_parameters: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    pairs = list(named_parameters)
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise DtypeError(f"{where}: expected pairs (name, tensor), as from model.named_parameters(), not {pair!r}")
    return pairs
