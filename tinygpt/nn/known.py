"""Which modules are unmodified layers of this package: only for these may the weights be read instead of a call.

Fast paths read a layer's weights instead of calling it: decoding, packing, the addition that includes a projection's
bias, saving to a file. That is right for the classes of this package and wrong for anything user-defined: a subclass,
another class in place of a layer, an instance or a class whose `forward` was patched (which is also how hooks are
made). So each class of the package declares the methods that define its computation:

    @known("forward", "product", "matrix")
    class Linear(Module): ...

and a fast path checks them first. If they were changed, it only calls the module; where a call does not help (a file, a
packed matrix), it raises an error that names the module.

    is_known(layer, Linear)             exactly a Linear, with its original methods
    computes_as(layer, Linear)          the same, but checks only what a call runs: quick, for the training step
    keeps(model, GPT, "forward")        a GPT, or a subclass that does not override these methods
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from .module import Module

_Class = TypeVar("_Class", bound=type)


class _Methods(NamedTuple):
    """The methods that define a class's computation, as originally defined. `of` returns the current ones."""

    order: tuple[str, ...]
    names: frozenset[str]
    of: Callable[[type], tuple[Any, ...]]
    defined: tuple[Any, ...]


_METHODS: dict[type, _Methods] = {}
_CALLS: dict[type, tuple[Any, Any]] = {}  # the original __call__ and forward


def known(*names: str) -> Callable[[_Class], _Class]:
    """Class decorator: `names`, "forward" first, are the methods and properties that define the computation."""

    def register(cls: _Class) -> _Class:
        order = ("__call__", *names)
        of = operator.attrgetter(*order)
        _METHODS[cls] = _Methods(order, frozenset(names), of, of(cls))
        _CALLS[cls] = _METHODS[cls].defined[:2]
        return cls

    return register


def definition(cls: type) -> tuple[Any, ...]:
    """The methods that define the computation of a known class, as they are now; nothing for any other class."""
    methods = _METHODS.get(cls)
    return () if methods is None else methods.of(cls)


def is_known(module: Any, *kinds: type) -> bool:
    """Whether `module` is exactly of one of `kinds` (if none are given, of any known class) and unmodified."""
    cls = type(module)
    if kinds and cls not in kinds:
        return False
    methods = _METHODS.get(cls)
    return methods is not None and methods.defined == methods.of(cls) and methods.names.isdisjoint(module.__dict__)


def computes_as(module: Any, kind: Any) -> bool:
    """Whether calling `module` runs the original code of the known class `kind`. Checked at every training step.

    It checks only what a call would run, so it takes a fraction of the time of `is_known`.
    """
    if type(module) is not kind:
        return False
    called, forward = _CALLS[kind]
    return getattr(module.forward, "__func__", None) is forward and kind.__call__ is called


def computes_as_defined(module: Any) -> bool:
    """`computes_as` for the module's own class; False if that is not a known class."""
    kind = type(module)
    return kind in _CALLS and computes_as(module, kind)


def keeps(module: Any, kind: type, *names: str) -> bool:
    """Whether `module`, an instance of `kind` or a subclass, has the original methods `names` (default: all)."""
    if type(module) is kind and is_known(module):
        return True
    cls, methods = type(module), _METHODS[kind]
    wanted = ("__call__", *(names or methods.names))
    defined = dict(zip(methods.order, methods.defined, strict=True))
    return all(name not in module.__dict__ and getattr(cls, name, None) is defined[name] for name in wanted)


def takes_cache(function: Any) -> bool:
    """Whether a `forward`, or a model's `hidden`, has a parameter `cache`, so that it can continue a text."""
    try:
        return "cache" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # not a Python function
        return False


def unknown_modules(module: Module) -> Iterator[tuple[str, Module]]:
    """`(path, module)` of every submodule that is not known."""
    for path, one in module.named_modules():
        if path and not is_known(one):
            yield path, one


def described(module: Any) -> str:
    """A name for a module in an error message; it says if the module's methods were replaced."""
    name = type(module).__name__
    return f"{name} whose methods were replaced" if type(module) in _METHODS and not is_known(module) else name
