"""Frozen parameters: they keep their values, no gradient is computed for them, and the optimizer holds no state.

    freeze(model, "wte,wpe,h.0-5")     # the embeddings and the first six blocks
    freeze(model, "h.*.mlp")           # the MLP of every block

A pattern names a parameter or everything below a module. Each of its parts is a name, a range of numbers, or *.
A head that shares its matrix with `wte` is frozen with it.
"""

from __future__ import annotations

import re

from ..errors import UsageError
from ..nn import Module

_BODY = "transformer."  # of a classifier's parameters: patterns mean the same there as in the language model inside


def freeze(model: Module, patterns: str | None) -> None:
    """Freeze the parameters that match one of the comma-separated patterns.

    Raises UsageError for a pattern that matches nothing, and if all parameters match.
    """
    parameters = model.named_parameters()
    for pattern in [part.strip() for part in patterns.split(",")] if patterns else []:
        found = [parameter for name, parameter in parameters if _matches(pattern, name.removeprefix(_BODY))]
        if not found:
            raise UsageError(
                f"freeze: {pattern!r} matches none of the model's parameters: give names such as "
                f"{', '.join(_examples([name.removeprefix(_BODY) for name, _ in parameters]))}"
            )
        for parameter in found:
            parameter.requires_grad = False
    if not any(parameter.requires_grad for _, parameter in parameters):
        raise UsageError("freeze: all parameters of the model are frozen, so there is nothing to train: freeze fewer")


def _matches(pattern: str, name: str) -> bool:
    wanted, parts = pattern.split("."), name.split(".")
    return len(wanted) <= len(parts) and all(map(_matches_part, wanted, parts))


def _matches_part(wanted: str, part: str) -> bool:
    span = re.fullmatch(r"(\d{1,9})-(\d{1,9})", wanted)
    if span and part.isdecimal():
        return int(span[1]) <= int(part) <= int(span[2])
    return wanted in ("*", part)


def _examples(names: list[str]) -> list[str]:
    """The top-level modules, with the range of numbered ones: wte, wpe, h.0-11, ln_f."""
    found: dict[str, list[int]] = {}
    for name in names:
        first, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        found.setdefault(first, []).extend([int(number)] if number.isdecimal() else [])
    return [f"{name}.{min(numbers)}-{max(numbers)}" if numbers else name for name, numbers in found.items()]
