"""Recomputation: run a part of a model a second time in the backward pass instead of keeping what it saves.

    y = recompute(part, x)                    y = part(x); of all that part saves for its backward pass, only x is kept

The forward pass runs the part without recording a graph. The backward pass, given dy, runs it again from x, this time
with a graph, and backpropagates dy through that graph at once; then the graph is freed.

A GPT with `model.recompute = True` does so with the attention and the MLP of each block. All that is kept of a block
is then the two sums of the residual stream, 2 (B, T, C), instead of 9 to 12 such arrays; the backward pass adds what
one attention or one MLP saves. The price is a second forward pass of the blocks: about a third of a step more.

The results are the same bit for bit: the second run reads the same weights, and draws the same dropout masks, because a
mask is a function of the number of its stream, which is reset for the second run (`tinygpt.random`). In 16 bits the
gradient of x may be rounded once more.

A part is a module, whose parameters are inputs of the node. If one of them is changed before the backward pass, that
raises UsageError, as everywhere. Side effects of `forward`, such as printing, happen twice.

PyTorch calls this activation checkpointing (`torch.utils.checkpoint`).
Source: Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016, section 4.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ..engine import backward_pass
from ..errors import DtypeError
from ..function import Function
from ..graph import enable_grad, mode, no_grad
from ..random import Generator
from ..tensor import Tensor
from ..typing import Array
from .module import Module, Parameter

Run = Callable[[Tensor], Tensor]


class Recompute(Function):
    """A part of a model as one node: its inputs are x and the part's parameters."""

    may_ignore_inputs = True  # a part may have a parameter that it does not use

    def forward(
        self, x: Array, *parameters: Array, run: Run, leaves: list[Parameter], generators: list[Generator]
    ) -> Array:
        self.run, self.leaves, self.generators = run, leaves, generators
        self.states = [generator.state_dict() for generator in self.generators]
        self.save(x, *parameters)
        with no_grad():
            return run(Tensor(x)).data

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x = Tensor(self.saved[0], requires_grad=self.needs[0])
        with enable_grad(), self.as_in_forward():
            y = self.run(x)
        if y.node is not None:  # otherwise it depends on nothing that needs a gradient
            # The parameters' last contributions are counted by the graph that contains this node.
            ready, mode.leaf_ready = mode.leaf_ready, None
            try:
                backward_pass(y.node, y.output_index, dy, retain_graph=False)
            finally:
                mode.leaf_ready = ready
        return x.grad, *(leaf.grad for leaf in self.leaves)  # the pass has already added to the leaves' gradients

    @contextlib.contextmanager
    def as_in_forward(self) -> Iterator[None]:
        """Inside the block, the generators repeat the random numbers of the forward pass."""
        now = [generator.state_dict() for generator in self.generators]
        try:
            for generator, state in zip(self.generators, self.states, strict=True):
                generator.load_state_dict(state)
            yield
        finally:
            for generator, state in zip(self.generators, now, strict=True):
                generator.load_state_dict(state)


def recompute(part: Module, x: Tensor) -> Tensor:
    """part(x), with the same gradients, but part runs again in the backward pass and keeps nothing for it but x.

    part: a module whose `forward` takes one tensor and returns one. x: any shape. Raises DtypeError for anything else.
    """
    if not isinstance(part, Module):
        raise DtypeError(f"recompute: needs a module, whose parameters it can see, not {type(part).__name__}")

    def run(x: Tensor) -> Tensor:
        y = part(x)
        if not isinstance(y, Tensor):
            raise DtypeError(f"recompute: the module must return one tensor, not {type(y).__name__}")
        return y

    return _apply(part, run, x)


def recompute_branch(layer: Any, h: Tensor) -> tuple[Tensor, Tensor | None]:
    """layer.branch(h): the result without the bias of the layer's last projection, and that bias."""
    biases: list[Tensor | None] = []

    def run(h: Tensor) -> Tensor:
        y: Tensor
        y, bias = layer.branch(h)
        biases.append(bias)
        return y

    y = _apply(layer, run, h)
    return y, biases.pop()


def _apply(part: Module, run: Run, x: Tensor) -> Tensor:
    leaves = [parameter for parameter in part.parameters() if parameter.requires_grad]
    found = (value for module in part.modules() for value in vars(module).values() if isinstance(value, Generator))
    generators = list({id(generator): generator for generator in found}.values())
    y: Tensor = Recompute.apply(x, *leaves, run=run, leaves=leaves, generators=generators)
    return y
