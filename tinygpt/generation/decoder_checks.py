"""What a `Decoder` checks of its arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backends
from ..checks import integer_array, whole_number
from ..errors import UsageError
from ..language_model import LanguageModel
from ..nn.known import described, keeps, takes_cache, unknown_modules

if TYPE_CHECKING:
    from ..gpt import GPT


def obstacle_to_a_cache(model: Any) -> str | None:
    """The first part of `model` that may need the whole text, as a clause for an error message; None if none does."""
    if not keeps(model, LanguageModel, "forward") or not takes_cache(model.hidden):
        return f"the class {type(model).__name__} overrides forward or hidden"
    for path, module in unknown_modules(model):
        if not (module.positionwise or takes_cache(module.forward)):
            return f"{path} is a {described(module)}"
    return None


def require_cache(model: Any) -> None:
    """Raise UsageError for a model that a `Decoder` can't serve."""
    if (obstacle := obstacle_to_a_cache(model)) is not None:
        raise UsageError(f"Decoder: {obstacle}, which may need the whole text at each step: use decoder_for")


def checked_capacity(model: GPT, capacity: int | None) -> int:
    block = model.config.block_size
    capacity = block if capacity is None else whole_number("Decoder", "capacity", capacity)
    if capacity > block:
        raise UsageError(f"Decoder: capacity must be at most the model's block_size, {block}, not {capacity}")
    return capacity


def flat_integers(what: str, values: Any) -> np.ndarray:
    """A list or an array (N,) of integers, as a NumPy array. Raises ShapeError or DtypeError for anything else."""
    return backends.move(integer_array(what, values, flat=True), "numpy")
