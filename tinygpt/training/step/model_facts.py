"""What the calls of a step depend on besides its batch and the numbers in its parameters.

A plan (`planned_step.py`) and a CUDA graph (`graphed_step.py`) know nothing of what they were made from. They may be
used as long as nothing about the model has changed: no attribute of any of its modules, no layer in a list, no method
that defines what a layer computes, no parameter's array, and none was frozen.
"""

from __future__ import annotations

import operator
from itertools import chain
from typing import Any

from ...graph import mode
from ...kernel import forced_kind
from ...nn.known import definition

_COUNTER = "_copy_checks"  # of a language model: it counts in the first steps, and matters to a warning alone


class ModelFacts:
    """`changed()` tells whether the model is another one than when it was asked before. What it consists of:

    modules, parameters; trained: the parameters that are not frozen; hooked: whether an object, and not its class, says
    what it computes, as under `tinygpt.interpret.hooked`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.numbers: tuple[int, int] = (0, 0)
        self.objects: list[Any] = []
        self._look()

    def changed(self) -> bool:
        """Whether something has changed since the last call; True in the first one."""
        generator = self.model.generator
        numbers, objects = (generator.seed, generator.rows_before), self._objects()
        same = numbers == self.numbers and len(objects) == len(self.objects)
        if same and all(map(operator.is_, objects, self.objects)):
            return False
        self._look()
        self.numbers, self.objects = numbers, self._objects()  # held, so that no other object gets the identity of one
        return True

    def _look(self) -> None:
        self.modules, self.parameters = list(self.model.modules()), self.model.parameters()
        self.trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        self.hooked = any("forward" in vars(module) for module in self.modules) or "loss" in vars(self.model)
        self._lists = [value for module in self.modules for value in vars(module).values() if isinstance(value, list)]

    def _objects(self) -> list[Any]:
        """Compared by identity."""
        kinds = [type(module) for module in self.modules]
        own = [value for name, value in vars(self.model).items() if name != _COUNTER]
        return [
            forced_kind(), mode.keep_outputs, type(self.model).loss, *own,
            *chain.from_iterable(vars(module).values() for module in self.modules[1:]),
            *chain.from_iterable(self._lists),
            *kinds, *chain.from_iterable(map(definition, dict.fromkeys(kinds))),
            *chain.from_iterable((parameter.data, parameter.requires_grad) for parameter in self.parameters),
        ]  # fmt: skip
