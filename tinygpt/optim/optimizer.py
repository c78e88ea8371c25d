"""What all optimizers share: the parameters, the learning rate, and the state that goes into a checkpoint.

An optimizer takes tensors, `(name, tensor)` pairs, or groups:

    AdamW(model.parameters(), lr=1e-3)              # the state is named "0", "1", ...
    AdamW(model.named_parameters(), lr=1e-3)        # the state is named after the parameters: use this for checkpoints
    AdamW([{"params": head, "lr_scale": 10.0}, {"params": body, "weight_decay": 0.0}], lr=1e-3)

There is one learning rate, `optimizer.lr`, which a schedule sets before each step. A group scales it with `lr_scale`,
or states its own `lr`, as in PyTorch: this fixes the ratio, so a schedule acts on all groups alike. A group may also
state `weight_decay`, `l1`, `l2` and whatever the optimizer names in `group_settings`, such as AdamW's `betas`.
`groups.py` makes groups from the parameters' names.

Weight decay acts on matrices only (parameters with two or more axes). There is no reason for biases and LayerNorm's
scales to be small, and GPT-2, GPT-3 and nanoGPT do not decay them. If a group sets its own `weight_decay`, it applies
to everything in the group. The same goes for the penalties `l1` and `l2` (`regularization.py` has their formulas),
whose gradients are added to the clipped gradient:

    g = grad_scale * gradient + l1 * sign(p) + l2 * p

So the loss that a training loop reports is still that of the text. In SGD and Adam weight decay is the same as `l2`, as
in PyTorch; in AdamW, Lion and Muon it is decoupled: p = p - lr * weight_decay * p.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ..backends import array_module, is_array, move, name_of
from ..changes import note_change
from ..checks import number, whole_number
from ..errors import DtypeError, ShapeError, UsageError
from ..ops.cast import Rounded
from ..tensor import Tensor
from ..typing import Array
from .clip import ScaleOnDevice

ACTING_ON_MATRICES = ("weight_decay", "l1", "l2")

# model.parameters(), model.named_parameters(), or groups: {"params": either of them, "lr_scale": ..., ...}
Parameters: TypeAlias = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Mapping[str, Any]]


@dataclass(eq=False)  # a generated __eq__ would compare tensors, which compare element by element
class Slot:
    """One parameter, its own settings, and its optimizer state."""

    name: str
    parameter: Tensor
    lr_scale: float
    weight_decay: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)  # the `group_settings` that its group sets
    step: int = 0  # how many updates it has had; a step in which it has no gradient does not count
    state: dict[str, Array] = field(default_factory=dict)  # arrays of the parameter's shape
    rounded: Rounded | None = None  # a copy in 16 bits, which AdamW keeps up to date


class Optimizer:
    """Base class. A subclass names its state arrays and defines `_update(slot, grad, grad_scale)`."""

    state_names: tuple[str, ...] = ()
    group_settings: tuple[str, ...] = ()  # attributes that a group may override; `_check_setting` checks them
    coupled_decay = False  # whether weight decay is part of the gradient
    keeps_rounded = False  # whether it writes updated parameters into `Slot.rounded` too
    elementwise = True  # whether a number's update depends on its own gradient and state alone: then it can be sharded

    def __init__(
        self, parameters: Parameters, lr: float, weight_decay: float, l1: float = 0.0, l2: float = 0.0
    ) -> None:
        self.where = type(self).__name__
        self.lr = lr
        self.weight_decay = number(self.where, "weight_decay", weight_decay, at_least=0)
        self.l1, self.l2 = number(self.where, "l1", l1, at_least=0), number(self.where, "l2", l2, at_least=0)
        self.slots = self._make_slots(parameters)
        for slot in self.slots:
            data = slot.parameter.data
            zeros = array_module(data).zeros  # takes no memory until it is written to, unlike zeros_like
            slot.state = {kind: zeros(data.shape, data.dtype) for kind in self._state_names(slot)}

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = number(self.where, "lr", value, at_least=0)

    @property
    def takes_scale_on_device(self) -> bool:
        """Whether `step` takes a `ScaleOnDevice` without waiting for it."""
        return False

    def step(self, grad_scale: float | ScaleOnDevice = 1.0) -> None:
        """Update every parameter that has a gradient.

        grad_scale: a factor for the gradients, applied as they are read, so that clipping needs no extra pass over
        them (see `clip_coefficient`). On a GPU it may be a `ScaleOnDevice`, and if that is NaN nothing is changed.
        """
        if isinstance(grad_scale, ScaleOnDevice) and not self.takes_scale_on_device:
            grad_scale = float(grad_scale)
            if math.isnan(grad_scale):
                return
        if not isinstance(grad_scale, ScaleOnDevice):
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
            self._update_all([(slot, *self._with_penalties(slot, grad, grad_scale)) for slot, grad in ready])

    def _with_penalties(self, slot: Slot, grad: Array, grad_scale: Any) -> tuple[Array, Any]:
        """The gradient including the penalties', and the factor still to be applied."""
        l2 = slot.l2 + (slot.weight_decay if self.coupled_decay else 0.0)
        if slot.l1 == l2 == 0:
            return grad, grad_scale
        grad, param = grad * grad_scale, slot.parameter.data
        if l2:
            grad += l2 * param
        if slot.l1:
            grad += slot.l1 * array_module(param).sign(param)
        return grad, 1.0

    def _update_all(self, ready: list[tuple[Slot, Array, Any]]) -> None:
        """Update the slots' parameters one by one, each with its gradient and the gradient's factor. A subclass may
        update them all in one call."""
        for slot, grad, grad_scale in ready:
            self._update(slot, grad, grad_scale)

    def _update(self, slot: Slot, grad: Array, grad_scale: float) -> None:
        """Change `slot.parameter.data` and `slot.state` in place."""
        raise NotImplementedError(f"{type(self).__name__} defines no _update")

    def _state_names(self, slot: Slot) -> tuple[str, ...]:
        """The names of the slot's state arrays."""
        return self.state_names

    def _setting(self, slot: Slot, name: str) -> Any:
        """One of `group_settings`: the group's, or else the optimizer's."""
        return slot.settings.get(name, getattr(self, name))

    def _check_setting(self, name: str, value: Any) -> Any:
        """The value of one of `group_settings`, checked. Raises UsageError, DtypeError."""
        raise NotImplementedError(f"{type(self).__name__} defines no _check_setting")

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for slot in self.slots:
            slot.parameter.grad = None

    # Checkpoints ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """`{"step": {name: int}, kind: {name: array}, ...}`, with one `kind` for each name of a state array.

        The arrays are the optimizer's own, not copies. Hyperparameters are not included: they belong to the run's
        configuration.
        """
        state: dict[str, dict[str, Any]] = {"step": {slot.name: slot.step for slot in self.slots}}
        for slot in self.slots:
            for kind, array in slot.state.items():
                state.setdefault(kind, {})[slot.name] = array
        return state

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Copy a `state_dict()` into this optimizer. If anything in it does not fit, nothing is changed.

        Raises UsageError, ShapeError.
        """
        where = f"{self.where}.load_state_dict"
        own = self.state_dict()
        if set(state) != set(own):
            raise UsageError(f"{where}: expected the entries {sorted(own)}, got {sorted(state)}")
        for kind, names in own.items():
            if set(state[kind]) != set(names):
                missing = sorted(set(names) - set(state[kind])) or "none"
                unexpected = sorted(set(state[kind]) - set(names)) or "none"
                raise UsageError(
                    f"{where}: the names in {kind!r} are not those of this optimizer's parameters "
                    f"(missing: {missing}; unexpected: {unexpected})"
                )
        steps = [whole_number(where, f"step of {name!r}", state["step"][name], at_least=0) for name in own["step"]]
        for slot in self.slots:
            for kind in slot.state:
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
            for kind in slot.state:
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
        optional = ("lr_scale", "lr", "weight_decay", "l1", "l2", *self.group_settings)
        if not isinstance(group, Mapping) or "params" not in group or not set(group) <= {"params", *optional}:
            raise UsageError(
                f"{self.where}: a group is a dictionary with 'params' and, optionally, {', '.join(optional)}, "
                f"not {sorted(group) if isinstance(group, Mapping) else type(group).__name__}"
            )
        lr_scale = self._lr_scale(group)
        given = [name for name in ACTING_ON_MATRICES if group.get(name) is not None]
        own = {name: number(self.where, name, group[name], at_least=0) for name in given}
        settings = {name: self._check_setting(name, group[name]) for name in self.group_settings if name in group}
        for entry in group["params"]:
            name, parameter = entry if isinstance(entry, tuple) and len(entry) == 2 else (str(len(slots)), entry)
            self._check_parameter(name, parameter)
            common = {name: getattr(self, name) if parameter.ndim >= 2 else 0.0 for name in ACTING_ON_MATRICES}
            slot = Slot(name, parameter, lr_scale, settings=dict(settings))
            slot.weight_decay, slot.l1, slot.l2 = (common | own).values()
            slots.append(slot)

    def _lr_scale(self, group: Mapping[str, Any]) -> float:
        """The group's factor for `optimizer.lr`, from its `lr_scale` or its `lr`."""
        if "lr" not in group:
            return number(self.where, "lr_scale", group.get("lr_scale", 1.0), at_least=0)
        lr = number(self.where, "lr of a group", group["lr"], at_least=0)
        if "lr_scale" in group:
            raise UsageError(f"{self.where}: a group states both lr and lr_scale: remove one")
        if self.lr == 0:
            raise UsageError(f"{self.where}: a group states lr, but the optimizer's lr is 0: give the group lr_scale")
        return lr / self.lr

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
