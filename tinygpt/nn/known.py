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
    keeps(model, GPT, "forward")        a GPT or a subclass that has not replaced these methods
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from .module import Module

_Class = TypeVar("_Class", bound=type)
_METHODS: dict[type, tuple[tuple[str, Any], ...]] = {}  # class -> its methods, as they were defined


def known(*names: str) -> Callable[[_Class], _Class]:
    """Class decorator: `names` are the methods and properties that make up what the class computes."""

    def register(cls: _Class) -> _Class:
        _METHODS[cls] = tuple((name, getattr(cls, name)) for name in ("__call__", *names))
        return cls

    return register


def is_known(module: Any, *kinds: type) -> bool:
    """Whether `module` is exactly one of `kinds` (of any known class where none is given) and nothing was replaced."""
    cls = type(module)
    if kinds and cls not in kinds:
        return False
    methods = _METHODS.get(cls)
    if methods is None:
        return False
    own = module.__dict__
    for name, method in methods:  # noqa: SIM110  a loop takes half the time of all(), and this is asked in every step
        if name in own or getattr(cls, name) is not method:
            return False
    return True


def keeps(module: Any, kind: type, *names: str) -> bool:
    """Whether `module`, of the known class `kind` or of a subclass, has these methods of it (all, if none is given)."""
    cls, own = type(module), module.__dict__
    return all(
        name not in own and getattr(cls, name, None) is method
        for name, method in _METHODS[kind]
        if not names or name in names or name == "__call__"
    )


def unknown_modules(module: Module) -> Iterator[tuple[str, Module]]:
    """`(path, module)` of all inside `module` that are not known, itself left out."""
    for path, one in module.named_modules():
        if path and not is_known(one):
            yield path, one


def described(module: Any) -> str:
    """What to call a module that is not known, in a sentence."""
    name = type(module).__name__
    return f"{name} whose methods were replaced" if type(module) in _METHODS else name
