"""Which modules compute what this package's own classes compute: only their weights may be used without a call.

A fast path reads a layer's weights instead of calling it: decoding, packing, the addition that adds a projection's
bias, a file of weights. That is right for the classes of this package and wrong for anything that somebody has changed:
a subclass, another class in the place of a layer, an instance or a class whose `forward` was replaced (which is also
how hooks are made). So each class of the package says which methods its computation is:

    @known("forward", "product", "matrix")
    class Linear(Module): ...

and whoever wants to go past the call asks first. Where the answer is no, the module is called and nothing else of it is
used; where a call is no help (a file, a packed matrix), it is refused by its name.

    is_known(layer, Linear)             a Linear of exactly this class, with the methods that it was defined with
    computes_as(layer, Linear)          the same for whoever would call it: quick, for the training step
    keeps(model, GPT, "forward")        a GPT or a subclass that has not replaced these methods
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
    """What a class computes with, as it was defined. `of` finds the same in the class as it is now."""

    order: tuple[str, ...]
    names: frozenset[str]
    of: Callable[[type], tuple[Any, ...]]
    defined: tuple[Any, ...]


_METHODS: dict[type, _Methods] = {}
_CALLS: dict[type, tuple[Any, Any]] = {}  # its __call__ and forward, as they were defined


def known(*names: str) -> Callable[[_Class], _Class]:
    """Class decorator: `names`, "forward" first, are the methods and properties that the class computes with."""

    def register(cls: _Class) -> _Class:
        order = ("__call__", *names)
        of = operator.attrgetter(*order)
        _METHODS[cls] = _Methods(order, frozenset(names), of, of(cls))
        _CALLS[cls] = _METHODS[cls].defined[:2]
        return cls

    return register


def is_known(module: Any, *kinds: type) -> bool:
    """Whether `module` is exactly one of `kinds` (of any known class where none is given) and nothing was replaced."""
    cls = type(module)
    if kinds and cls not in kinds:
        return False
    methods = _METHODS.get(cls)
    return methods is not None and methods.defined == methods.of(cls) and methods.names.isdisjoint(module.__dict__)


def computes_as(module: Any, kind: Any) -> bool:
    """Whether calling `module` is calling the known class `kind`: the question of a forward pass, asked in every step.

    It looks at what a call would run and no further, so it takes a fraction of the time of `is_known`.
    """
    if type(module) is not kind:
        return False
    called, forward = _CALLS[kind]
    return getattr(module.forward, "__func__", None) is forward and kind.__call__ is called


def computes_as_defined(module: Any) -> bool:
    """`computes_as` for whichever known class `module` is of; False where it is of none."""
    kind = type(module)
    return kind in _CALLS and computes_as(module, kind)


def keeps(module: Any, kind: type, *names: str) -> bool:
    """Whether `module`, of the known class `kind` or of a subclass, has these methods of it (all, if none is given)."""
    if type(module) is kind and is_known(module):
        return True
    cls, methods = type(module), _METHODS[kind]
    wanted = ("__call__", *(names or methods.names))
    defined = dict(zip(methods.order, methods.defined, strict=True))
    return all(name not in module.__dict__ and getattr(cls, name, None) is defined[name] for name in wanted)


def takes_cache(function: Any) -> bool:
    """Whether a `forward`, or a model's `hidden`, has a parameter called `cache`, and so can go on with a text."""
    try:
        return "cache" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # not a function of Python's
        return False


def unknown_modules(module: Module) -> Iterator[tuple[str, Module]]:
    """`(path, module)` of all inside `module` that are not known, itself left out."""
    for path, one in module.named_modules():
        if path and not is_known(one):
            yield path, one


def described(module: Any) -> str:
    """What to call a module that is not known, in a sentence."""
    name = type(module).__name__
    return f"{name} whose methods were replaced" if type(module) in _METHODS else name
