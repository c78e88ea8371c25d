"""Deliberately wrong backward passes, made from the right ones.

`mutants(node)` takes the source of a Function's backward and of everything in tinygpt.ops that it calls, kernels
included, and breaks one place at a time: a term or a factor is dropped, a sign is lost, an update is left out, a sum or
a mean takes its first element only (which is what a missing sum over a broadcast axis comes to). Each mutant is a
backward pass that differs in this one place, and leaves the forward pass as it is, also where the two share a function.
"""

from __future__ import annotations
import __future__

import ast
import dis
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType, MethodType
from typing import Any

import numpy as np

from tinygpt.function import Function
from tinygpt.kernel import Kernel

# What takes the place of a sum ---------------------------------------------------------------------


def first_instead_of_sum(array: Any, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> Any:
    """Stands for array.sum(...) and array.mean(...): the first element along each axis instead of all of them."""
    array = np.asarray(array)
    axes = range(array.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    for i in sorted((a % array.ndim for a in axes), reverse=True):
        array = array.take([0], axis=i) if keepdims else array.take(0, axis=i)
    return array


def first_instead_of_unbroadcast(grad: Any, shape: tuple[int, ...]) -> Any:
    """Stands for unbroadcast(grad, shape): one copy's gradient instead of the sum over all copies."""
    grad = grad[(0,) * (grad.ndim - len(shape))]
    return grad[tuple(slice(0, size) for size in shape)]


def assignment_instead_of_add_at(array: Any, key: Any, values: Any) -> None:
    array[key] = values


def first_row(array: Any) -> Any:
    return array[0]


def first_long_sum(array: Any, axes: Any, keepdims: bool = False) -> Any:
    return first_instead_of_sum(array, axes, keepdims)


STAND_INS: dict[str, Callable[..., Any]] = {
    "sum": first_instead_of_sum,
    "mean": first_instead_of_sum,
    "unbroadcast": first_instead_of_unbroadcast,
    "long_sum": first_long_sum,
    "column_sum": first_row,
    "add.at": assignment_instead_of_add_at,
}

# Places and what to put there -----------------------------------------------------------------------


def replacements(node: ast.AST) -> list[ast.AST]:
    """The wrong versions of one node of a syntax tree."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult, ast.Div)):
        return [node.left, node.right]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        return [node.left, ast.UnaryOp(ast.USub(), node.right)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return [node.left]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        return [node.operand]
    if isinstance(node, ast.AugAssign):
        return [ast.Pass()]
    if isinstance(node, ast.Call):
        return stand_in(node)
    return []


def stand_in(node: ast.Call) -> list[ast.AST]:
    """A call of a sum replaced by the first of what it adds up."""
    if isinstance(node.func, ast.Name) and node.func.id in STAND_INS:
        return [ast.Call(ast.Name(f"_{node.func.id}", ast.Load()), node.args, node.keywords)]
    if isinstance(node.func, ast.Attribute):
        if node.func.attr in ("sum", "mean"):
            return [ast.Call(ast.Name("_sum", ast.Load()), [node.func.value, *node.args], node.keywords)]
        if node.func.attr == "at":
            return [ast.Call(ast.Name("_add_at", ast.Load()), node.args, node.keywords)]
    return []


def broken_versions(function: FunctionType) -> Iterator[tuple[str, FunctionType]]:
    """(what was changed, the changed function) for every place in its source."""
    places = [(i, len(replacements(node))) for i, node in enumerate(ast.walk(parsed(function)))]
    for place, count in places:
        for choice in range(count):
            tree = parsed(function)
            node = list(ast.walk(tree))[place]
            wrong = replacements(node)[choice]
            change = f"{function.__name__}: {ast.unparse(node)}  ->  {ast.unparse(wrong)}"
            yield change, compiled(Exchange(node, wrong).visit(tree), function)


class Overlay(dict):  # type: ignore[type-arg]
    """A module's names as they are at each moment, but for those set here."""

    def __init__(self, module: dict[str, Any]) -> None:
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> Any:
        return self.module[name]


class Exchange(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


def parsed(function: FunctionType) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def compiled(tree: ast.Module, function: FunctionType) -> FunctionType:
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    space = Overlay(function.__globals__)
    space.update({f"_{name.replace('.', '_')}": stand_in for name, stand_in in STAND_INS.items()})
    code = compile(ast.fix_missing_locations(tree), "mutant", "exec", flags=__future__.annotations.compiler_flag)
    exec(code, space)
    return space[function.__name__]


# Everything that a backward is made of --------------------------------------------------------------


def called(function: FunctionType) -> dict[str, FunctionType]:
    """The functions of tinygpt.ops, kernels' references included, that a function's code names."""
    return {
        name: value
        for name in loaded(function.__code__, "LOAD_GLOBAL")
        if (value := of_ops(function.__globals__.get(name))) is not None
    }


def of_ops(value: Any) -> FunctionType | None:
    """`value` where it is such a function. A matrix product is taken as given: which library computes it depends on
    dtype and device, and the checks of gradients, in float64 on the references, come to few of its lines. Each body
    has its own tests (tests/kernel, test_planted_faults.py).
    """
    value = value.reference if isinstance(value, Kernel) else value
    if not isinstance(value, FunctionType) or value.__module__ == "tinygpt.ops._matmul":
        return None
    value = inspect.unwrap(value)  # of what notes its calls (`backends/recording.py`)
    return value if value.__module__.startswith("tinygpt.ops.") else None


@functools.cache
def loaded(code: Any, *kinds: str) -> list[str]:
    """The names that instructions of these kinds load, those of comprehensions and inner functions included."""
    names = [instruction.argval for instruction in dis.get_instructions(code) if instruction.opname in kinds]
    for inner in code.co_consts:
        if inspect.iscode(inner):
            names += loaded(inner, *kinds)
    return sorted(set(names))


def parts(function: FunctionType) -> list[FunctionType]:
    """The function and all that it calls, directly or not."""
    found, stack = [function], [function]
    while stack:
        for value in called(stack.pop()).values():
            if value not in found:
                found.append(value)
                stack.append(value)
    return found


def with_part(function: FunctionType, part: FunctionType, replacement: FunctionType) -> FunctionType:
    """A copy of the function that calls the replacement wherever it, or what it calls, calls the part."""
    if function is part:
        return replacement
    if part not in parts(function):
        return function
    space = Overlay(function.__globals__)
    for name, value in called(function).items():
        changed = with_part(value, part, replacement)
        space[name] = Kernel(changed) if isinstance(function.__globals__[name], Kernel) else changed
    copy = FunctionType(function.__code__, space, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def roots(node: type[Function], method: str = "backward") -> dict[str, FunctionType]:
    """The attributes of the class that make up a method: itself, and the kernels and methods it gets from self."""
    whole = getattr(node, method)
    found = {method: whole}
    for name in loaded(whole.__code__, "LOAD_ATTR", "LOAD_METHOD"):
        function = of_ops(inspect.getattr_static(node, name, None))
        if function is not None:
            found[name] = function
    return found


def mutants(node: type[Function], method: str = "backward") -> Iterator[tuple[str, FunctionType]]:
    """(what was changed, a wrong method) for every place of the node's backward pass."""
    return versions(node, method, broken_versions)


def recompiled(node: type[Function]) -> Iterator[tuple[str, FunctionType]]:
    """The same machinery with nothing broken: what it makes must be right."""
    return versions(node, "backward", lambda part: [(part.__name__, compiled(parsed(part), part))])


def versions(
    node: type[Function], method: str, of_part: Callable[[FunctionType], Iterable[tuple[str, FunctionType]]]
) -> Iterator[tuple[str, FunctionType]]:
    whole = getattr(node, method)
    for attribute, right in roots(node, method).items():
        for part in parts(right):
            for change, version in of_part(part):
                changed = with_part(right, part, version)
                yield change, changed if attribute == method else with_attribute(node, whole, attribute, changed)


def with_attribute(node: type[Function], whole: FunctionType, attribute: str, changed: FunctionType) -> FunctionType:
    """The method as it is, on an instance whose attribute is another from now on."""
    is_kernel = isinstance(inspect.getattr_static(node, attribute), Kernel)

    def method(self: Function, *arguments: Any, **options: Any) -> Any:
        setattr(self, attribute, Kernel(changed) if is_kernel else MethodType(changed, self))
        return whole(self, *arguments, **options)

    return method  # type: ignore[return-value]
