"""Hooks: observe or replace the input and the output of any module of a model.

    with hooked(model, {"h.3": print}):                          # the residual stream after block 3, (B, T, C)
        model(ids)
    with hooked(model, {"h.0.attn.c_proj.input": edit}):         # the concatenated heads, before they are mixed
        ids = model.generate(prompt, 20)

A name is the path of a module (`model.named_modules()`), for its output; with `.input` after it, for its input. For a
GPT of L blocks:

    wte, wpe, dropout            (B, T, C)       embeddings of tokens and positions; the sum, after dropout
    h.0.input                    (B, T, C)       the residual stream that enters the first block
    h.i                          (B, T, C)       the residual stream after block i
    h.i.ln_1, h.i.attn           (B, T, C)       input of the attention, what it adds to the stream
    h.i.attn.c_attn              (B, T, 3C)      queries, keys, values
    h.i.attn.c_proj.input        (B, T, C)       the outputs of the H heads, concatenated
    h.i.ln_2, h.i.mlp            (B, T, C)       the same two for the MLP
    h.i.mlp.c_fc                 (B, T, inner)   before the activation function
    h.i.mlp.c_proj.input         (B, T, inner)   after it: the neurons
    ln_f                         (B, T, C)       the input of the head

How it works: inside the `with` block, a hook replaces the `forward` of one module object. The fused and compiled paths
check for each module whether it computes as its class does (`tinygpt/nn/known.py`), and call it if not. So the core
knows nothing of hooks, and they cost nothing when not in use; with them, a sum that was fused may differ in its last
bit. Generation with hooks runs the whole text at each step, unless the hooks are declared `positionwise`.

Hooks act in every thread that uses the model. Inner ones see what outer ones produced.
Source of the idea: PyTorch's `register_forward_hook`; Nanda, Bloom, "TransformerLens", 2022 (its hook points).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..backends.precision import is_floating
from ..errors import DtypeError, ShapeError, UsageError
from ..graph import no_grad
from ..nn import Module
from ..nn.known import is_known, takes_cache
from ..tensor import Tensor
from ..typing import Ids
from .text import AnyModel, block_names, host, nearest, one_text, without_batch

Hook = Callable[[Tensor], Tensor | None]
Around = Callable[..., Any]  # (the module's forward, its arguments) -> its output

_INPUT = ".input"


@contextlib.contextmanager
def hooked(model: Module, hooks: Mapping[str, Hook], *, positionwise: bool = False) -> Iterator[None]:
    """Inside the block, call `hooks[name]` with the tensor at that place, each time that it is computed.

    hooks: name -> function of a tensor. It returns None, or a tensor of the same shape and dtype that replaces it;
    gradients flow through it. positionwise: promises that a hook's result at each position depends on that position
    alone, so that generation can use its cache.
    Raises UsageError for a name that does not exist, DtypeError or ShapeError for an invalid result of a hook.
    """
    around: dict[str, dict[str, Hook]] = {}
    for name, hook in hooks.items():
        if not callable(hook):
            raise DtypeError(f"hooked: the hook of {name!r} must be a function of a tensor, not {type(hook).__name__}")
        path, ends = _place("hooked", model, name)
        around.setdefault(path, {})[ends] = hook
    with wrapped(model, {path: _calling(path, **ends) for path, ends in around.items()}, positionwise):
        yield


def _place(where: str, model: Module, name: str) -> tuple[str, str]:
    """The path of a module, and which end of it a name means. Raises UsageError naming the nearest."""
    paths = {path for path, _ in model.named_modules() if path}
    if isinstance(name, str):
        if name in paths:
            return name, "output"
        if name.endswith(_INPUT) and name.removesuffix(_INPUT) in paths:
            return name.removesuffix(_INPUT), "input"
    ends = sorted(paths) + sorted(path + _INPUT for path in paths)
    raise UsageError(f"{where}: there is no module {name!r} in this {type(model).__name__}: {nearest(name, ends)}")


def _calling(path: str, input: Hook | None = None, output: Hook | None = None) -> Around:
    def around(forward: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        x = x if input is None else _replaced(path + _INPUT, input, x)
        y = forward(x, *args, **kwargs)
        return y if output is None else _replaced(path, output, y)

    return around


def _replaced(name: str, hook: Hook, value: Any) -> Any:
    if not isinstance(value, Tensor):
        raise UsageError(f"hooked: {name} is not a tensor but {type(value).__name__} (ids): use the module's output")
    made = hook(value)
    if made is None:
        return value
    if not isinstance(made, Tensor) or made.dtype != value.dtype:
        what = f"one of {made.dtype}" if isinstance(made, Tensor) else type(made).__name__
        raise DtypeError(f"hooked: the hook of {name!r} must return None or a tensor of {value.dtype}, not {what}")
    if made.shape != value.shape:
        raise ShapeError(
            f"hooked: the hook of {name!r} must return the shape that it got, {value.shape}, not {made.shape}"
        )
    return made


@contextlib.contextmanager
def wrapped(model: Module, around: Mapping[str, Around], positionwise: bool = False) -> Iterator[None]:
    """Inside the block, each module at a path of `around` computes `around[path](its forward, its arguments)`.

    positionwise: promises that the change acts on each position alone, so a module that supported caching still does.
    """
    modules, names = dict(model.named_modules()), ("forward", "positionwise")
    before: list[tuple[Module, dict[str, Any]]] = []
    try:
        for path, function in around.items():
            module = modules[path]
            before.append((module, {name: vars(module)[name] for name in names if name in vars(module)}))
            cacheable = positionwise and (is_known(module) or module.positionwise or takes_cache(module.forward))
            vars(module).update(forward=_wrapping(module.forward, function, cacheable), positionwise=cacheable)
        yield
    finally:
        for module, attributes in reversed(before):
            for name in names:
                vars(module).pop(name, None)
            vars(module).update(attributes)


def _wrapping(forward: Any, around: Around, cacheable: bool) -> Any:
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return around(forward, *args, **kwargs)

    if cacheable:
        functools.update_wrapper(replaced, forward)  # with its signature, which tells whether it takes a cache
    return replaced


def activations(model: AnyModel, ids: Ids, names: str | Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The activations at these places when the model reads `ids`, (T,) integers: name -> (T, C); see the table above.

    names: of places, as for `hooked`; None: the residual stream, "h.0.input" and each block. transformers'
    `output_hidden_states` has the same L + 1 arrays, except that it has applied `ln_f` to the last one.
    Raises UsageError for a name that does not exist, or that is not computed exactly once; ShapeError, DtypeError,
    RangeError for wrong ids.
    """
    idx = one_text("activations", model, ids)
    names = block_names("activations", model) if names is None else [names] if isinstance(names, str) else list(names)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    with no_grad(), model.evaluating(), hooked(model, {name: _kept(values) for name, values in found.items()}):
        model(idx)
    return {
        name: host(without_batch(once("activations", name, values).data, idx.shape[1]))
        for name, values in found.items()
    }


def _kept(values: list[Tensor]) -> Hook:
    return lambda x: values.append(x)


def once(where: str, name: str, values: Sequence[Tensor]) -> Tensor:
    """The tensor seen at a place. Raises UsageError unless it was computed once, and is of floating-point numbers."""
    if len(values) != 1:
        how = "is not called" if not values else f"is called {len(values)} times"
        raise UsageError(f"{where}: {name} {how} when the model reads a text: choose the module around it")
    if not is_floating(values[0].dtype):
        raise DtypeError(f"{where}: {name} holds {values[0].dtype}, not floating-point numbers")
    return values[0]
