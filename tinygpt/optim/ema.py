"""An exponential moving average (EMA) of the weights.

    ema = EMA(model.named_parameters(), decay=0.999)
    ...
    optimizer.step()
    ema.update()                           # after each step
    ...
    with ema.applied():                    # the model has the averaged weights inside the block
        loss = evaluate(model, tokens)

After step t each averaged weight a moves towards its weight p:

    a = d a + (1 - d) p                    d = min(decay, (1 + t) / (10 + t))

With d = decay from the start, the random weights at the start would count for many steps: with 0.999, for 37% after
1,000. So d rises to `decay`. The last weights of a run with a high learning rate jitter around a better point, to
which the average is closer.

Saved: the averaged weights, of the shapes and dtypes of the parameters, and t.
Source: Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", 1992; the warm-up of d is that of
TensorFlow's ExponentialMovingAverage. Without it (`warm_up=False`), EMA is torch.optim.swa_utils.AveragedModel with
get_ema_multi_avg_fn, but starts at the initial weights rather than at those after the first step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..backends import is_array, move, name_of
from ..changes import note_change
from ..checks import number, whole_number
from ..errors import DtypeError, ShapeError, UsageError
from ..tensor import Tensor
from ..typing import Array


class EMA:
    """The average of `parameters`, tensors or (name, tensor) pairs, with weights that fall by `decay` per update.

    decay: in [0, 1). warm_up: begin with a smaller decay, see above. Raises UsageError, DtypeError.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
        decay: float = 0.999,
        warm_up: bool = True,
    ) -> None:
        self.decay = number("EMA", "decay", decay, at_least=0, below=1)
        self.warm_up, self.steps = warm_up, 0
        if isinstance(parameters, Tensor):
            raise DtypeError("EMA: parameters must be a list of tensors, such as model.parameters(), not one tensor")
        self.parameters: dict[str, Tensor] = {}
        for i, entry in enumerate(parameters):
            name, parameter = entry if isinstance(entry, tuple) and len(entry) == 2 else (str(i), entry)
            if not isinstance(parameter, Tensor):
                raise DtypeError(f"EMA: a parameter is a tensor or a pair (name, tensor), not {parameter!r}")
            self.parameters[name] = parameter
        self.average: dict[str, Array] = {name: p.data.copy() for name, p in self.parameters.items()}

    def update(self) -> None:
        """Update the average with the current weights."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.warm_up else self.decay
        for name, parameter in self.parameters.items():
            average = self._follow(name)
            average *= decay
            average += (1 - decay) * parameter.data

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Swap the averaged weights into the parameters for the duration of a `with` block; they keep their arrays."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            average = self._follow(name)
            weights = parameter.data.copy()
            parameter.data[...] = average
            average[...] = weights
        note_change([parameter.data for parameter in self.parameters.values()])

    def _follow(self, name: str) -> Array:
        """The average, on the parameter's backend: `model.to("cupy")` may be called after the average is made."""
        if name_of(self.average[name]) != self.parameters[name].backend:
            self.average[name] = move(self.average[name], self.parameters[name].backend)
        return self.average[name]

    def state_dict(self) -> dict[str, Any]:
        """`{"steps": int, "average": {name: array}}`. The arrays are the average's own, not copies."""
        return {"steps": self.steps, "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a `state_dict()` into this average. If anything in it does not fit, nothing is changed.

        Raises UsageError, ShapeError.
        """
        where = "EMA.load_state_dict"
        if set(state) != {"steps", "average"}:
            raise UsageError(f"{where}: expected the entries ['average', 'steps'], got {sorted(state)}")
        steps, average = whole_number(where, "steps", state["steps"], at_least=0), state["average"]
        if set(average) != set(self.average):
            raise UsageError(
                f"{where}: the names are not those of the parameters "
                f"(missing: {sorted(set(self.average) - set(average)) or 'none'}; "
                f"unexpected: {sorted(set(average) - set(self.average)) or 'none'})"
            )
        for name, parameter in self.parameters.items():
            shape = tuple(average[name].shape) if is_array(average[name]) else np.shape(average[name])
            if shape != parameter.shape:
                raise ShapeError(f"{where}: {name!r} has shape {shape}, the parameter has {parameter.shape}")
        self.steps = steps
        for name, parameter in self.parameters.items():
            self._follow(name)[...] = move(average[name], parameter.backend)
