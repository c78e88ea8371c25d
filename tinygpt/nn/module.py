"""Module: a part of a model that owns parameters and other modules.

    class Perceptron(Module):
        def __init__(self, generator):
            self.hidden = Linear(4, 8, generator=generator)
            self.scale = Parameter(np.ones(8, np.float32))
            self.heads = [Linear(8, 1, generator=generator) for _ in range(3)]

        def forward(self, x):
            ...

There is no registration. A module finds its parts by walking its attributes in order of assignment: parameters,
modules, and lists or tuples of modules. Their names are the attributes' names, joined by dots: `hidden.weight`,
`scale`, `heads.0.weight`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from .. import backends
from ..errors import DtypeError, ShapeError, UsageError
from ..tensor import Tensor
from ..typing import Array


class Parameter(Tensor):
    """A tensor that the model learns: a leaf that requires a gradient.

    data: a float32 or float64 array. It is moved to the current backend and made contiguous, because optimizers
    update it in place. Raises DtypeError.
    """

    __slots__ = ()

    def __init__(self, data: Array) -> None:
        if not backends.is_array(data) or data.dtype not in (np.float32, np.float64):
            what = f"an array of {data.dtype}" if backends.is_array(data) else type(data).__name__
            raise DtypeError(f"Parameter: data must be an array of float32 or float64, not {what}")
        data = backends.move(data, backends.current())
        super().__init__(backends.array_module(data).ascontiguousarray(data).reshape(data.shape), requires_grad=True)


class Module:
    """Base class for layers and models. A subclass defines `forward`; calling the module runs it.

    positionwise: True promises that the output at a position depends on the input at that position alone. A model with
    a user-defined layer then generates with a cache, and is called for the new tokens only.
    """

    training = True
    positionwise = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    # What is in it --------------------------------------------------------------------------------

    def children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly inside this one, with their names, in the order of assignment."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for index, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{index}", item

    def modules(self) -> Iterator[Module]:
        """This module and all modules inside it."""
        yield self
        for _, child in self.children():
            yield from child.modules()

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """`(path, module)` for this module, whose path is `prefix`, and for all modules inside it."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> list[tuple[str, Parameter]]:
        """`(name, parameter)` in the order of definition. A parameter used in two places appears once."""
        found: dict[int, tuple[str, Parameter]] = {}
        for name, parameter in self._walk(""):
            found.setdefault(id(parameter), (name, parameter))
        return list(found.values())

    def _walk(self, prefix: str) -> Iterator[tuple[str, Parameter]]:
        children = dict(self.children())
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield prefix + name, value
            elif name in children:
                yield from children[name]._walk(f"{prefix}{name}.")
            elif isinstance(value, (list, tuple)):
                for index in range(len(value)):
                    if f"{name}.{index}" in children:
                        yield from children[f"{name}.{index}"]._walk(f"{prefix}{name}.{index}.")

    def parameters(self) -> list[Parameter]:
        """All parameters, each once, in the order of definition."""
        return [parameter for _, parameter in self.named_parameters()]

    def num_parameters(self) -> int:
        """The number of weights, packed ones included. A shared parameter counts once."""
        packed = sum(module.packed_size() for module in self.modules())
        return sum(parameter.size for parameter in self.parameters()) + packed

    # How it looks ---------------------------------------------------------------------------------

    def __repr__(self) -> str:
        """The tree of modules, each with its settings and parameter shapes; equal neighbours in a list appear once."""
        lines = self._outline()
        if len(lines) > 1:
            lines[0] += f": {self.num_parameters():,} parameters"
        return "\n".join(lines)

    def _outline(self) -> list[str]:
        parts: list[tuple[str, str, list[str]]] = []  # the first and the last name of equal modules, their outline
        for name, child in self.children():
            outline, own_list = child._outline(), name.rpartition(".")[0]
            first = name
            if parts and own_list and parts[-1][1].rpartition(".")[0] == own_list and parts[-1][2] == outline:
                first = parts.pop()[0]
            parts.append((first, name, outline))
        lines = [self._facts()]
        for first, last, (head, *rest) in parts:
            names = first if first == last else f"{first} ... {last}"
            lines += [f"  {names}: {head}", *(f"  {line}" for line in rest)]
        return lines

    def _facts(self) -> str:
        facts = []
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                facts.append(f"{name} {value.shape}{'' if value.requires_grad else ' frozen'}")
            elif isinstance(value, (int, float, str)) and not isinstance(value, bool) and not name.startswith("_"):
                facts.append(f"{name}={value!r}")
        if self.packed_size():
            facts.append(f"{self.packed_size():,} packed weights")
        return f"{type(self).__name__}({', '.join(facts)})" if facts else type(self).__name__

    # Modes and places -----------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Module:
        """Set the training mode (dropout acts) on this module and all inside it. Returns the module."""
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self) -> Module:
        """Turn off training mode: dropout does nothing. Returns the module."""
        return self.train(False)

    @contextlib.contextmanager
    def in_mode(self, training: bool) -> Iterator[None]:
        """`train(training)` inside the block; afterwards every module in it is back in its previous mode.

        A module that is in training mode already is left as it is: parts of it that aren't were frozen by the user.
        """
        before = [(module, module.training) for module in self.modules()]
        try:
            if not (training and self.training):
                self.train(training)
            yield
        finally:
            for module, mode in before:
                module.training = mode

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        """`eval()` inside the block: a loss, a score or a text is computed without dropout."""
        return self.in_mode(False)

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, backend: str) -> Module:
        """Move all parameters, and their gradients, to "numpy" or "cupy" ("cpu" or "cuda"). Returns the module.

        The `Parameter` objects stay the same, so existing optimizers keep working. Raises UsageError if the backend is
        unknown or unavailable or the GPU runs out of memory; every parameter then stays where it was.
        """
        backends.get(backend)
        arrays = [(parameter.data, parameter.grad) for parameter in self.parameters()]
        moved = [[None if a is None else backends.move(a, backend) for a in pair] for pair in arrays]
        for module in self.modules():
            module.move_packed(backend)
        for parameter, (data, grad) in zip(self.parameters(), moved, strict=True):
            parameter.data, parameter.grad = data, grad
        return self

    def cpu(self) -> Module:
        """`to("numpy")`."""
        return self.to("numpy")

    def cuda(self) -> Module:
        """`to("cupy")`."""
        return self.to("cupy")

    @property
    def device(self) -> str:
        """ "cpu" or "cuda": where the first parameter is; a module without parameters is on the CPU."""
        return next((parameter.device for parameter in self.parameters()), "cpu")

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze (False) or unfreeze all parameters. Returns the module."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    # Packed weights: the layers of `tinygpt.nn.packed` override these.

    def packed_size(self) -> int:
        """The number of packed weights in this module itself, without its children."""
        return 0

    def move_packed(self, backend: str) -> None:
        """Move this module's packed weights to `backend`."""

    # Saving and loading ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Name -> array, for every parameter. The arrays are the model's own, not copies."""
        return {name: parameter.data for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy arrays into the parameters of the same names, in place, converting to the parameters' dtype.

        strict: `state` must have exactly this model's names. Otherwise missing parameters keep their values and unknown
        names are ignored. Shapes must match in either case. Raises UsageError, ShapeError or DtypeError before anything
        is changed.
        """
        where = f"{type(self).__name__}.load_state_dict"
        parameters = dict(self.named_parameters())
        wrong = {
            "missing": [name for name in parameters if name not in state],
            "unexpected": [name for name in state if name not in parameters],
        }
        if strict and any(wrong.values()):
            parts = [f"{what} {_listed(names)}" for what, names in wrong.items() if names]
            raise UsageError(f"{where}: the names do not match this model's: {'; '.join(parts)}")
        arrays = {name: _fitting(where, name, state[name], p) for name, p in parameters.items() if name in state}
        for name, array in arrays.items():
            parameters[name].data[...] = backends.move(array, parameters[name].backend)
            parameters[name].mark_changed()


def _fitting(where: str, name: str, value: Any, parameter: Parameter) -> Any:
    array = value.data if isinstance(value, Tensor) else value
    if not backends.is_array(array) or array.dtype.kind != "f":
        what = f"an array of {array.dtype}" if backends.is_array(array) else type(array).__name__
        raise DtypeError(f"{where}: {name!r} must be an array of floating-point numbers, not {what}")
    if array.shape != parameter.shape:
        raise ShapeError(f"{where}: {name!r} has shape {array.shape}, this model's has {parameter.shape}")
    return array


def _listed(names: list[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def replaced(model: Any, layers: Mapping[str, Any]) -> Any:
    """A copy of `model` in which the modules at the paths in `layers` are replaced; the rest is shared.

    Only the modules on the path to a replaced one are copied.
    """
    ways = {path[:end] for path in layers for end, sign in enumerate(path) if sign == "."} | {""}

    def copied(value: Any, path: str) -> Any:
        if path in layers:
            return layers[path]
        if path not in ways:
            return value
        if isinstance(value, list):
            return [copied(item, f"{path}.{i}") for i, item in enumerate(value)]
        made = copy.copy(value)
        for name in [name for name, inner in vars(value).items() if isinstance(inner, (Module, list))]:
            setattr(made, name, copied(getattr(value, name), f"{path}.{name}" if path else name))
        return made

    return copied(model, "")
