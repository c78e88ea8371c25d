"""Loss scaling keeps small gradients from underflowing in float16.

float16 has no numbers between 0 and 6e-8, where many gradients of a model lie, and above 65504 it overflows. So the
loss, and with it every gradient, is multiplied by a large factor before the backward pass, and the optimizer divides it
out in float32. The largest factor that does not overflow is found by trial:

    start at 2**16
    after a non-finite gradient: halve it, and skip the step
    after 2000 good steps in a row: double it

Multiplying by a power of two is exact. bfloat16 has the range of float32, so neither needs loss scaling.

Source: Micikevicius et al., "Mixed Precision Training", 2018, section 3.2; the doubling and halving as in PyTorch's
GradScaler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...checks import number, whole_number

START = 2.0**16
PATIENCE = 2000  # good steps before the scale is doubled
MIN_SCALE = 1.0  # below it, an overflow has another cause
MAX_SCALE = 2.0**24  # lifts the smallest float16 number to 1


class LossScale:
    """`scale` is the factor for the next step's loss. It is 1 unless `dtype` is "float16".

    loss.backward(scale.scale)
    norm = grad_norm(parameters) / scale.scale
    if math.isfinite(norm):
        optimizer.step(grad_scale=clip_coefficient(norm, 1.0) / scale.scale)
        scale.raise_after_good_step()
    elif not scale.lower():
        raise ...                                         # the scale is not the cause
    """

    def __init__(self, dtype: str) -> None:
        self.active = dtype == "float16"
        self.scale = START if self.active else 1.0
        self.good_steps = 0  # since the scale was last changed

    def raise_after_good_step(self) -> None:
        """Count a step with finite gradients; double the scale after PATIENCE of them."""
        self.good_steps += 1
        if self.active and self.good_steps >= PATIENCE:
            self.scale, self.good_steps = min(2 * self.scale, MAX_SCALE), 0

    def lower(self) -> bool:
        """Halve the scale after a step with non-finite gradients. False if it can't be halved further."""
        if self.scale <= MIN_SCALE:
            return False
        self.scale, self.good_steps = max(self.scale / 2, MIN_SCALE), 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: empty unless scaling is active."""
        return {"scale": self.scale, "good_steps": self.good_steps} if self.active else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict()`, or start afresh if the run used another dtype before. Raises UsageError."""
        if self.active and state:
            self.scale = number("LossScale", "scale", state.get("scale"), at_least=MIN_SCALE)
            self.good_steps = whole_number("LossScale", "good_steps", state.get("good_steps"), at_least=0)
