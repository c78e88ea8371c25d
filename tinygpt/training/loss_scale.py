"""Loss scaling: what float16 needs to see small gradients.

float16 has no numbers between 0 and 6e-8, where many gradients of a model lie; above 65504 it is infinite. So the loss
is multiplied by a large number before the backward pass, and with it every gradient; the optimizer divides it out,
in float32. The largest number that makes nothing infinite is found by trying:

    begin with 2**16
    a gradient that is not finite: halve it, and leave this step out
    2000 good steps in a row: double it

Powers of two change no digits. bfloat16 has float32's range: it needs none of this, and neither does float32.

Source: Micikevicius et al., "Mixed Precision Training", 2018, section 3.2; the doubling and halving as in PyTorch's
GradScaler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checks import number, whole_number

START = 2.0**16
PATIENCE = 2000  # good steps before it is doubled
MIN_SCALE = 1.0  # what is infinite without being scaled up is so for another reason
MAX_SCALE = 2.0**24  # it lifts to 1 what would become float16's smallest number


class LossScale:
    """The factor for the loss of the next step: `scale`. It is 1 unless `dtype` is "float16".

    loss.backward(scale.scale)
    norm = grad_norm(parameters) / scale.scale
    if math.isfinite(norm):
        optimizer.step(grad_scale=clip_coefficient(norm, 1.0) / scale.scale)
        scale.raise_after_good_step()
    elif not scale.lower():
        raise ...                                         # it is not the scale's doing
    """

    def __init__(self, dtype: str) -> None:
        self.active = dtype == "float16"
        self.scale = START if self.active else 1.0
        self.good_steps = 0  # since the scale was last changed

    def raise_after_good_step(self) -> None:
        """Count a step whose gradients were finite; double the scale after so many of them."""
        self.good_steps += 1
        if self.active and self.good_steps >= PATIENCE:
            self.scale, self.good_steps = min(2 * self.scale, MAX_SCALE), 0

    def lower(self) -> bool:
        """Halve the scale after a step whose gradients were not finite. False: it can't be halved any more."""
        if self.scale <= MIN_SCALE:
            return False
        self.scale, self.good_steps = max(self.scale / 2, MIN_SCALE), 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: empty unless it is active."""
        return {"scale": self.scale, "good_steps": self.good_steps} if self.active else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict()`, or begin anew where the run was in another dtype then. Raises UsageError."""
        if self.active and state:
            self.scale = number("LossScale", "scale", state.get("scale"), at_least=MIN_SCALE)
            self.good_steps = whole_number("LossScale", "good_steps", state.get("good_steps"), at_least=0)
