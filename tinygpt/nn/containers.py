"""Modules that hold others in a numbered order, and activations as modules, under PyTorch's names.

    Sequential(Linear(4, 8), GELU(), Linear(8, 1))          parameters 0.weight, 0.bias, 2.weight, 2.bias

A plain list of modules as an attribute does what a `ModuleList` does: `Module` finds modules in lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import overload

from .. import ops
from ..errors import DtypeError, RangeError, UsageError
from ..tensor import Tensor
from .known import known
from .module import Module


class ModuleList(Module):
    """A list of modules that is itself a module. Raises DtypeError for anything else in it."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.extend(modules)

    def append(self, module: Module) -> ModuleList:
        if not isinstance(module, Module):
            raise DtypeError(f"{type(self).__name__}: takes modules, not {type(module).__name__}")
        setattr(self, str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        for module in modules:
            self.append(module)
        return self

    def __len__(self) -> int:
        return sum(name.isdigit() for name in vars(self))

    def __iter__(self) -> Iterator[Module]:
        return (module for name, module in vars(self).items() if name.isdigit())

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> list[Module]: ...
    def __getitem__(self, index: int | slice) -> Module | list[Module]:
        try:
            return list(self)[index]
        except IndexError:
            raise RangeError(f"{type(self).__name__}: there is no module {index}: it holds {len(self)}") from None


class Sequential(ModuleList):
    """Modules called one after the other, each with the result of the one before."""

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x


@known("forward")
class ReLU(Module):
    """max(x, 0)."""

    positionwise = True

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)


@known("forward")
class GELU(Module):
    """x times the normal distribution's Phi(x). approximate: "none", as in PyTorch, or "tanh", which GPT-2 uses."""

    positionwise = True

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate
        if approximate not in ("none", "tanh"):
            raise UsageError(f"GELU: approximate must be 'none' or 'tanh', not {approximate!r}")

    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu(x, self.approximate)
