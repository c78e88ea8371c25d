"""What all optimizers share: the parameters, the learning rate, and the state that goes into a checkpoint.

An optimizer takes tensors, `(name, tensor)` pairs, or groups:

    AdamW(model.parameters(), lr=1e-3)              # the state is named "0", "1", ...
    AdamW(model.named_parameters(), lr=1e-3)        # the state is named after the parameters: use this for checkpoints
    AdamW([{"params": head, "lr_scale": 10.0}, {"params": body, "weight_decay": 0.0}], lr=1e-3)

There is one learning rate, `optimizer.lr`, which a schedule sets before each step; a group may scale it.

Weight decay acts on matrices only (parameters with two or more axes). There is no reason for biases and LayerNorm's
scales to be small, and GPT-2, GPT-3 and nanoGPT do not decay them. If a group sets its own `weight_decay`, it applies
to everything in the group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..backends import array_module, is_array, move, name_of
from ..changes import note_change
from ..checks import number, whole_number
from ..errors import DtypeError, ShapeError, UsageError
from ..tensor import Tensor
from ..typing import Array

if TYPE_CHECKING:
    # model.parameters(), model.named_parameters(), or groups: {"params": either of them, "lr_scale": ..., ...}
    Parameters: TypeAlias = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Mapping[str, Any]]


@dataclass(eq=False)  # a generated __eq__ would compare tensors, which compare element by element
class Slot:
    """One parameter, its own settings, and its optimizer state."""

    name: str
    parameter: Tensor
    lr_scale: float
    weight_decay: float
    step: int = 0  # how many updates it has had; a step in which it has no gradient does not count
    state: dict[str, Array] = field(default_factory=dict)  # arrays of the parameter's shape


class Optimizer:
    """Base class. A subclass names its state arrays and defines `_update(slot, grad, grad_scale)`."""

    state_names: tuple[str, ...] = ()

    def __init__(self, parameters: Parameters, lr: float, weight_decay: float) -> None:
        self.where = type(self).__name__
        self.lr = lr
        self.weight_decay = number(self.where, "weight_decay", weight_decay, at_least=0)
        self.slots = self._make_slots(parameters)
        for slot in self.slots:
            zeros_like = array_module(slot.parameter.data).zeros_like
            slot.state = {kind: zeros_like(slot.parameter.data, order="C") for kind in self.state_names}

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = number(self.where, "lr", value, at_least=0)

    def step(self, grad_scale: float = 1.0) -> None:
        """Update every parameter that has a gradient.

        grad_scale: a factor for the gradients, applied as they are read, so that clipping needs no extra pass over
        them (see `clip_coefficient`).
        """
        grad_scale = number(f"{self.where}.step", "grad_scale", grad_scale, at_least=0)
        ready = []
        for slot in self.slots:
            if slot.parameter.grad is not None:
                ready.append((slot, slot.parameter.present_grad(f"{self.where}.step: parameter {slot.name!r}")))
        for slot, grad in ready:
            self._check_writable(slot.name, slot.parameter)
            if any(array.shape != grad.shape for array in slot.state.values()):  # compiled bodies trust the shapes
                raise ShapeError(
                    f"{self.where}.step: parameter {slot.name!r} has shape {slot.parameter.shape} now, not the one "
                    "that it had when this optimizer was made: make a new optimizer"
                )
        for slot, _ in ready:
            self._follow(slot)
            slot.step += 1
        note_change([slot.parameter.data for slot, _ in ready])
        with np.errstate(all="ignore"):  # infinities raise no warnings, as in the compiled bodies
            self._update_all(ready, grad_scale)

    def _update_all(self, ready: list[tuple[Slot, Array]], grad_scale: float) -> None:
        """Update the slots' parameters with these gradients, one by one. A subclass may do them all in one call."""
        for slot, grad in ready:
            self._update(slot, grad, grad_scale)

    def _update(self, slot: Slot, grad: Array, grad_scale: float) -> None:
        """Change `slot.parameter.data` and `slot.state` in place."""
        raise NotImplementedError(f"{type(self).__name__} defines no _update")

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for slot in self.slots:
            slot.parameter.grad = None

    # Checkpoints ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """`{"step": {name: int}, kind: {name: array}, ...}`, with one `kind` for each of `state_names`.

        The arrays are the optimizer's own, not copies. Hyperparameters are not included: they belong to the run's
        configuration.
        """
        state: dict[str, dict[str, Any]] = {"step": {slot.name: slot.step for slot in self.slots}}
        for kind in self.state_names:
            state[kind] = {slot.name: slot.state[kind] for slot in self.slots}
        return state

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Copy a `state_dict()` into this optimizer. If anything in it does not fit, nothing is changed.

        Raises UsageError, ShapeError.
        """
        where = f"{self.where}.load_state_dict"
        kinds = ("step", *self.state_names)
        if set(state) != set(kinds):
            raise UsageError(f"{where}: expected the entries {sorted(kinds)}, got {sorted(state)}")
        names = [slot.name for slot in self.slots]
        for kind in kinds:
            if set(state[kind]) != set(names):
                missing = sorted(set(names) - set(state[kind])) or "none"
                unexpected = sorted(set(state[kind]) - set(names)) or "none"
                raise UsageError(
                    f"{where}: the names in {kind!r} are not those of this optimizer's parameters "
                    f"(missing: {missing}; unexpected: {unexpected})"
                )
        steps = [whole_number(where, f"step of {name!r}", state["step"][name], at_least=0) for name in names]
        for slot in self.slots:
            for kind in self.state_names:
                array = state[kind][slot.name]
                shape = tuple(array.shape) if is_array(array) else np.shape(array)
                if shape != slot.parameter.shape:
                    raise ShapeError(
                        f"{where}: {kind!r} of {slot.name!r} has shape {shape}, "
                        f"the parameter has {slot.parameter.shape}"
                    )
        for slot, step in zip(self.slots, steps, strict=True):
            slot.step = step
            self._follow(slot)
            for kind in self.state_names:
                slot.state[kind][...] = move(state[kind][slot.name], slot.parameter.backend)

    def _follow(self, slot: Slot) -> None:
        """Move the state to the parameter's backend: `model.to("cupy")` may be called after the optimizer is made."""
        for kind, array in slot.state.items():
            if name_of(array) != slot.parameter.backend:
                slot.state[kind] = move(array, slot.parameter.backend)

    # Construction ---------------------------------------------------------------------------------

    def _make_slots(self, parameters: Parameters) -> list[Slot]:
        if isinstance(parameters, Tensor) or is_array(parameters) or not isinstance(parameters, Iterable):
            raise DtypeError(
                f"{self.where}: parameters must be a list of tensors, such as model.parameters(), "
                f"not {type(parameters).__name__}"
            )
        entries: list[Any] = list(parameters)
        if not entries or not isinstance(entries[0], Mapping):
            entries = [{"params": entries}]
        slots: list[Slot] = []
        for group in entries:
            self._add_group(group, slots)
        if not slots:
            raise UsageError(f"{self.where}: there are no parameters to optimize")
        for what, keys in (
            ("the same tensor", [id(s.parameter) for s in slots]),
            ("the same name", [s.name for s in slots]),
        ):
            if len(set(keys)) != len(keys):
                raise UsageError(f"{self.where}: {what} is given twice")
        return slots

    def _add_group(self, group: Any, slots: list[Slot]) -> None:
        known = {"params", "lr_scale", "weight_decay"}
        if not isinstance(group, Mapping) or "params" not in group or not set(group) <= known:
            raise UsageError(
                f"{self.where}: a group is a dictionary with 'params' and, optionally, 'lr_scale' and 'weight_decay', "
                f"not {sorted(group) if isinstance(group, Mapping) else type(group).__name__}"
            )
        lr_scale = number(self.where, "lr_scale", group.get("lr_scale", 1.0), at_least=0)
        own_decay = group.get("weight_decay")
        if own_decay is not None:
            own_decay = number(self.where, "weight_decay", own_decay, at_least=0)
        for entry in group["params"]:
            name, parameter = entry if isinstance(entry, tuple) and len(entry) == 2 else (str(len(slots)), entry)
            self._check_parameter(name, parameter)
            decay = own_decay if own_decay is not None else self.weight_decay if parameter.ndim >= 2 else 0.0
            slots.append(Slot(name, parameter, lr_scale, decay))

    def _check_parameter(self, name: Any, parameter: Any) -> None:
        if not isinstance(name, str) or not isinstance(parameter, Tensor):
            raise DtypeError(
                f"{self.where}: a parameter is a tensor or a pair (name, tensor), not {type(parameter).__name__}"
            )
        if parameter.dtype.kind != "f":
            raise DtypeError(f"{self.where}: parameter {name!r} must be float32 or float64, not {parameter.dtype}")
        if not parameter.is_leaf:
            raise UsageError(f"{self.where}: parameter {name!r} is the result of an operation: give a leaf tensor")
        self._check_writable(name, parameter)

    def _check_writable(self, name: str, parameter: Tensor) -> None:
        """Refuse a read-only array: compiled bodies would write into it anyway, even into a memory-mapped file."""
        if not getattr(parameter.data.flags, "writeable", True):
            raise UsageError(f"{self.where}: the array of parameter {name!r} is read-only: give the tensor a copy")
