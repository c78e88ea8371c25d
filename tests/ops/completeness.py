"""What an operation and a kernel consist of, collected from the files; and a sentence for each part that is missing."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

from tests.modules import module_in
from tests.ops import random_graph_operations
from tests.ops.cases import KERNEL_ROWS, ROWS
from tests.ops.drawing import KernelRow
from tests.ops.extremes import CASES
from tinygpt import ops
from tinygpt._ext import cuda
from tinygpt.function import Function
from tinygpt.kernel import REGISTRY

ROOT = Path(__file__).parents[2]
CPU, CUDA, CASES_FOLDER = "tinygpt/_ext/cpu", "tinygpt/_ext/cuda", "tests/ops/cases"

# Their weights are structures of arrays that are not of one floating type: see tests/ops/cases/packed.py and its tests;
# benchmarks/generate.py measures them.
OF_PACKED_WEIGHTS = {
    "unpack_into", "few_rows_product", "few_rows_product_transposed", "decode_block", "round_columns",
}  # fmt: skip
# How a random graph calls what has a name of its own in `ops`.
SPELLED = {"add", "matmul", "pow", "reshape", "getitem"}
WITHOUT_GRADIENT = {"argmax"}
# Operations that do no arithmetic, or another one's: there is nothing that the rule for numerics could say about them.
EXACT = {
    "argmax", "cast", "concatenate", "dropout", "embedding", "getitem", "in_dtype_of", "linear", "matmul", "neg",
    "qkv_attention", "reshape", "split", "stack", "transpose", "where",
}  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """By name: public functions of op files and exported ones, kernels and their bodies (name: file), rows, and where
    an operation or a kernel is used."""

    functions: Mapping[str, str]
    exported: set[str]
    kernels: set[str]
    rows: Mapping[str, KernelRow]
    compiled: Mapping[str, str]
    launched: Mapping[str, str]
    cuda_sources: set[str]
    cuda_launchers: set[str]
    graphs: set[str]
    numerics: set[str]
    benchmarks: set[str]


def collect() -> Parts:
    folder = ROOT / CUDA
    sources = {file: path.relative_to(folder).with_suffix("").as_posix() for file, path in cuda.PATHS.items()}
    with_launchers = [file for file, path in cuda.PATHS.items() if path.with_suffix(".py").exists()]
    return Parts(
        functions=public_functions(),
        exported=set(ops.__all__),
        kernels=set(REGISTRY),
        rows={row.name: row for row in KERNEL_ROWS},
        compiled=compiled_bodies(),
        launched={name: f"{CUDA}/{sources[file]}.py" for file in with_launchers for name in cuda.launched_by(file)},
        cuda_sources=set(sources.values()),
        cuda_launchers={path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("[!_]*.py")},
        graphs=names_in_graphs() | SPELLED | WITHOUT_GRADIENT,
        numerics={case.name.partition(" ")[0] for case in CASES} | EXACT,
        benchmarks=measured_kernels(),
    )


def public_functions() -> dict[str, str]:
    """What the files of tinygpt/ops define for users: functions that return a tensor, beside their `Function`.

    Those of cached_attention.py and decode_block.py are for decoding alone.
    """
    found = {}
    for info in pkgutil.iter_modules(ops.__path__):
        module = importlib.import_module(f"tinygpt.ops.{info.name}")
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        if not any(issubclass(value, Function) and value.__module__ == module.__name__ for value in classes):
            continue
        for name, value in vars(module).items():
            ours = isinstance(value, FunctionType) and value.__module__ == module.__name__ and name[0] != "_"
            if ours and not info.name.startswith("_") and not name.endswith("_composed") and returns_tensors(value):
                found[name] = f"tinygpt/ops/{info.name}.py"
    return found


def returns_tensors(function: FunctionType) -> bool:
    return "Tensor" in str(inspect.signature(function).return_annotation)


def compiled_bodies() -> dict[str, str]:
    """What the Cython files define for Python, but for helpers: names that a kernel has, or that end as a kernel's."""
    found = {}
    for path in sorted((ROOT / CPU).rglob("*.pyx")):
        for name in re.findall(r"^def (\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            if name in REGISTRY or name.endswith(("_forward", "_backward")):
                found[name] = path.relative_to(ROOT).as_posix()
    return found


def names_in_graphs() -> set[str]:
    source = ast.parse(inspect.getsource(random_graph_operations))
    used = {node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute)}
    return used | {row.name for row in ROWS if row.graph is not None}


def measured_kernels() -> set[str]:
    """The kernels that `benchmarks/ops.py` times."""
    benchmarks = ROOT / "benchmarks"
    rows, sizes = module_in(benchmarks, "ops_ours").ROWS, module_in(benchmarks, "ops_sizes").Sizes
    products = {"matmul_into"}  # under the names of the products
    return {make(sizes(1, 2, 4, 2, 5, 9)).kernel.__name__ for make in rows.values()} | products


def missing(parts: Parts) -> list[str]:
    """A sentence for each part that is missing."""
    return [*missing_of_operations(parts), *missing_of_kernels(parts), *missing_of_cuda(parts)]


def missing_of_operations(parts: Parts) -> Iterator[str]:
    for name, file in parts.functions.items():
        if name not in parts.exported:
            yield f"{file} defines {name}, which tinygpt/ops/__init__.py does not import"
    for name in sorted(parts.exported):
        row = f"give its Row in {CASES_FOLDER}/"
        if name not in parts.graphs:
            yield f"no random graph has tinygpt.ops.{name}: {row} a graph=, and torch="
        if name not in parts.numerics:
            yield f"nothing holds tinygpt.ops.{name} to the rule for errors in float32: {row} numerics="


def missing_of_kernels(parts: Parts) -> Iterator[str]:
    for name in sorted(parts.kernels - set(parts.rows) - OF_PACKED_WEIGHTS):
        yield f'the kernel {name} has no row: add KernelRow("{name}", ...) to a file of {CASES_FOLDER}/'
    for name, row in parts.rows.items():
        if row.large and name not in parts.compiled:
            yield f"the KernelRow of {name} has large=, for a compiled body, but no .pyx of {CPU} defines {name}"
    for name, file in parts.compiled.items():
        if name not in parts.kernels:
            yield f"{file} defines {name}, but no @kernel of tinygpt/ops or tinygpt/optim has that name"
        elif name in parts.rows and not parts.rows[name].large:
            yield f"{name} is compiled ({file}): give its KernelRow in {CASES_FOLDER}/ large=: sizes of several chunks"
        if name in parts.kernels and name not in parts.benchmarks | OF_PACKED_WEIGHTS:
            yield f"no benchmark times {name} ({file}): add a row to benchmarks/ops_ours.py"


def hidden_dependencies(sources: Mapping[str, str]) -> Iterator[str]:
    """Where a Cython file (name: text) uses what another one defines for itself: all of them are one module."""
    for file, text in sources.items():
        functions = re.findall(r"^cdef (?!extern)[^(\n]*?(\w+)\(", text, re.MULTILINE)
        structs = re.findall(r"^cdef struct (\w+):", text, re.MULTILINE)
        for defined in (*functions, *structs):
            for other, its_text in sources.items():
                if other != file and re.search(rf"\b{defined}(\(| \*|\[)", re.sub(r"#.*", "", its_text)):
                    yield f"{CPU}/{other} uses {defined} of {file}: move it to a .pxi, which is for what kernels share"


def missing_of_cuda(parts: Parts) -> Iterator[str]:
    for file in sorted(parts.cuda_sources - parts.cuda_launchers):
        yield f"{CUDA}/{file}.cu has no launchers: write {CUDA}/{file}.py"
    for file in sorted(parts.cuda_launchers - parts.cuda_sources):
        yield f"{CUDA}/{file}.py launches kernels of {CUDA}/{file}.cu, which does not exist"
    singles = {name.removesuffix("_each").removesuffix("_on_device") for name in parts.launched}
    for name, row in parts.rows.items():
        if row.wide is not None and name not in singles:
            yield f"the KernelRow of {name} has wide=, for a CUDA body, but no file of {CUDA} launches {name}"
    for name, file in parts.launched.items():
        single = name.removesuffix("_each").removesuffix("_on_device")
        if single not in parts.kernels:
            yield f"{file} launches {name}, but no @kernel of tinygpt/ops or tinygpt/optim has that name"
        elif single in parts.rows and parts.rows[single].wide is None:
            yield f"{name} has a CUDA body ({file}): give its KernelRow in {CASES_FOLDER}/ wide=: several warps, blocks"
    for file in sorted(
        parts.cuda_sources & parts.cuda_launchers - {"attention/attention_mma"}
    ):  # attention.py launches that
        if f"{CUDA}/{file}.py" not in parts.launched.values():
            yield f"{CUDA}/{file}.py has no function with @launcher: no kernel of {file}.cu would run"
