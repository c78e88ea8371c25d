"""Imports go one way: no file leads back to itself, and no layer knows of one above it.

The package is read, not run: every `import` counts, those inside functions too, since a reader follows them as well,
and so does `importlib.import_module("tinygpt...")`. What a lower layer calls in a higher one goes through seams.py.
Imports under `if TYPE_CHECKING` are of names for annotations. Nothing of the file that they name is run, and two files
of one layer may each be handed what the other makes (an engine walks nodes, a node makes tensors, a tensor calls the
engine). So they are left out where files are looked at one by one, but they may not reach into a layer above either.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tinygpt import seams

ROOT = Path(__file__).parents[2]

# From the bottom up. A name is a file or a folder of tinygpt/; what stands in one line may import each other, as long
# as no file leads back to itself.
LAYERS = [
    ["errors", "typing"],
    ["checks", "console", "notebook", "files", "lock", "cores", "random", "seams"],
    ["exchange", "_ext"],
    ["backends"],
    ["kernel", "array_file", "safetensors_io"],
    ["graph", "changes", "engine", "tensor", "function", "creation"],
    ["ops"],
    ["torch_names", "nn", "optim", "testing"],
    ["tokenizers", "data"],
    ["token_ids", "labels", "language_model", "gpt", "classifier"],
    ["memory", "checkpoint", "generation", "metrics", "interop", "parallel"],
    ["interpret"],
    ["training", "serving"],
    ["report"],
    ["cli", "kernel.__main__", "__main__"],
]

# Said to type checkers alone: the methods of Tensor are the functions that ops binds to it, and `typing` names Tensor.
DECLARED = {("tensor", "ops"), ("tensor", "torch_names"), ("typing", "tensor")}

# Who may know that CuPy, NCCL or the compiled extension exist. The doctor's task is to say which of them are there.
MACHINE = ("kernel", "backends", "_ext", "cli.doctor")
LIBRARIES = ("cupy", "cupyx", "cupy_backends", "nccl", "tinygpt._ext")
MEMBERS = {"extension", "native_body", "ptr", "get_default_memory_pool", "cublas"}  # of the backends, of CuPy's arrays


class Import(NamedTuple):
    """One file's import of another."""

    file: str  # dotted, below tinygpt: "ops.matmul"; a folder's __init__ has the folder's name
    target: str
    line: int
    typing: bool


class Package:
    """The files of a package, and who imports whom."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = {self._dotted(path): path for path in sorted(folder.rglob("*.py"))}
        trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.paths.items()}
        self.nodes = {name: list(ast.walk(tree)) for name, tree in trees.items()}
        self.imports = [found for name in self.paths if name for found in self._imports(name)]

    def _dotted(self, path: Path) -> str:
        parts = path.relative_to(self.folder).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def _imports(self, name: str) -> Iterator[Import]:
        for node, typing in _import_statements(self.nodes[name]):
            for target in self._targets(name, node):
                if target not in ("", name):
                    yield Import(name, target, node.lineno, typing)
        for node in self.nodes[name]:
            if isinstance(node, ast.Call) and _called(node) == "import_module":
                target = self._file(getattr(node.args[0], "value", ""))
                if target not in ("", name):
                    yield Import(name, target, node.lineno, typing=False)

    def _targets(self, name: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        """What a statement imports of this package: the files themselves, not the names in them."""
        for module in imported(self.folder.name, name, self.paths[name].name == "__init__.py", node):
            yield self._file(module)

    def _file(self, module: Any) -> str:
        """The file of this package that holds `module` or a name in it; "" if there is none."""
        package, _, inner = module.partition(".") if isinstance(module, str) else ("", "", "")
        if package != self.folder.name:
            return ""
        return inner if inner in self.paths else inner.rpartition(".")[0]

    def shown(self, name: str) -> str:
        return self.paths[name].relative_to(self.folder.parent).as_posix()


def _called(node: ast.Call) -> str | None:
    """The name of what is called, without what stands before a dot."""
    return getattr(node.func, "attr", getattr(node.func, "id", None))


def _import_statements(nodes: list[ast.AST]) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Each import, and whether it is for annotations alone."""
    for_types = {
        id(inner)
        for node in nodes
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, id(node) in for_types


def imported(package: str, name: str, is_folder: bool, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The absolute dotted names that a statement in the file `name` imports, such as tinygpt.ops.matmul.matmul."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    own = [package, *name.split(".")]
    up = node.level - is_folder  # in a folder's __init__, one dot is the folder itself
    base = own[: len(own) - up] if node.level else []
    yield from (".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names)


def layer_of(name: str) -> int:
    """Where a file stands, by its own name or by its folder's."""
    for key in (name, name.split(".")[0]):
        for number, names in enumerate(LAYERS):
            if key in names:
                return number
    raise AssertionError(
        f"tinygpt/{name.replace('.', '/')} has no place in LAYERS of tests/packaging/test_imports.py: give it one"
    )


def upward(package: Package) -> list[str]:
    """A sentence for each import that reaches into a layer above."""
    found = []
    for file, target, line, typing in package.imports:
        declared = typing and (file, target) in DECLARED
        if not declared and layer_of(target) > layer_of(file):
            found.append(
                f"{package.shown(file)}:{line} imports {package.shown(target)}, which stands above it "
                f"({LAYERS[layer_of(file)]} come before {LAYERS[layer_of(target)]}): move what it needs down"
            )
    return found


def circles(package: Package) -> list[str]:
    """A sentence for each import that leads back to the file that it stands in."""
    ways: dict[str, set[str]] = {name: set() for name in package.paths}
    for file, target, _, typing in package.imports:
        if not typing:
            ways[file].add(target)
    trails = {file: _trails(ways, file) for file in ways}
    found = []
    for file in ways:
        for target in sorted(ways[file]):
            if file in trails[target]:
                back = " -> ".join(map(package.shown, trails[target][file]))
                found.append(f"{package.shown(file)} imports {package.shown(target)}, which leads back: {back}")
    return found


def _trails(ways: dict[str, set[str]], start: str) -> dict[str, list[str]]:
    """The shortest way over imports from a file to each that it leads to, both ends included."""
    trails, waiting = {start: [start]}, [start]
    for file in waiting:
        for target in sorted(ways[file] - trails.keys()):
            trails[target] = [*trails[file], target]
            waiting.append(target)
    return trails


def machine_known(package: Package) -> list[str]:
    """A sentence for each place outside of MACHINE that knows of CuPy, NCCL or the compiled extension."""
    found = []
    for name, nodes in package.nodes.items():
        if name.startswith(MACHINE):
            continue
        where, is_folder = package.shown(name), package.paths[name].name == "__init__.py"
        for node in nodes:
            names = []
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = imported(package.folder.name, name, is_folder, node)
                names = [module for module in modules if f"{module}.".startswith(tuple(f"{x}." for x in LIBRARIES))]
            elif isinstance(node, ast.Attribute) and node.attr in MEMBERS:
                names = [ast.unparse(node)]
            found += [f"{where}:{node.lineno} knows {known}: ask kernel/ or backends/ for it" for known in names]
    return found


@pytest.fixture(scope="module")
def tinygpt_package() -> Package:
    return Package(ROOT / "tinygpt")


def test_no_layer_imports_one_above_it(tinygpt_package: Package) -> None:
    assert not upward(tinygpt_package), "\n".join(upward(tinygpt_package))


def test_no_file_leads_back_to_itself(tinygpt_package: Package) -> None:
    assert not circles(tinygpt_package), "\n".join(circles(tinygpt_package))


def test_only_kernel_and_backends_know_the_machine(tinygpt_package: Package) -> None:
    assert not machine_known(tinygpt_package), "\n".join(machine_known(tinygpt_package))


def test_seams_are_where_an_import_would_lead_upwards(tinygpt_package: Package) -> None:
    """Each seam is called, implemented, and needed: what stands below is imported instead."""
    called = set()
    for file, nodes in tinygpt_package.nodes.items():
        for node in nodes:
            if isinstance(node, ast.Call) and _called(node) == "implementation":
                name = ast.literal_eval(node.args[0])
                target = seams._modules[name].partition(".")[2]
                assert layer_of(target) > layer_of(file), f"{tinygpt_package.shown(file)} can import {name}"
                assert callable(seams.implementation(name))
                called.add(name)
    assert called == set(seams._modules)


# The checks themselves ------------------------------------------------------------------------------

SMALL = {
    "__init__.py": "",
    "errors.py": "",
    "ops/__init__.py": "from .matmul import matmul",
    "ops/matmul.py": "from ..errors import E\nfrom ..tensor import Tensor\ndef matmul(): ...",
    "tensor.py": (
        "from . import errors\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .function import Function"
    ),
    "function.py": "import tinygpt.errors\nfrom .tensor import Tensor",
}


def package_of(folder: Path, **changed: str) -> Package:
    for name, text in (SMALL | {name.replace("__", "/") + ".py": text for name, text in changed.items()}).items():
        path = folder / "tinygpt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Package(folder / "tinygpt")


def test_a_sound_package_passes(tmp_path: Path) -> None:
    package = package_of(tmp_path)
    assert {(file, target) for file, target, _, typing in package.imports if not typing} == {
        ("ops", "ops.matmul"), ("ops.matmul", "errors"), ("ops.matmul", "tensor"), ("tensor", "errors"),
        ("function", "errors"), ("function", "tensor"),
    }  # fmt: skip
    assert upward(package) == circles(package) == machine_known(package) == []


@pytest.mark.parametrize(
    "text",
    [
        "from .ops import matmul",
        "def f():\n    from . import ops",
        "import tinygpt.ops.matmul",
        "from importlib import import_module\nimport_module('tinygpt.ops')",
    ],
)
def test_a_layer_that_knows_one_above_is_named(tmp_path: Path, text: str) -> None:
    (sentence,) = upward(package_of(tmp_path, tensor=text))
    assert sentence.startswith("tinygpt/tensor.py:")
    assert "imports tinygpt/ops/" in sentence
    assert "which stands above it" in sentence


def test_annotations_reach_into_no_layer_above(tmp_path: Path) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .ops.matmul import matmul"
    package = package_of(tmp_path, tensor=text)
    assert len(upward(package)) == 1
    assert not circles(package)


@pytest.mark.parametrize("text", ["from .function import F", "def f():\n    from .function import F"])
def test_two_files_that_import_each_other_are_named(tmp_path: Path, text: str) -> None:
    sentences = circles(package_of(tmp_path, tensor=text))
    assert (
        "tinygpt/tensor.py imports tinygpt/function.py, which leads back: tinygpt/function.py -> tinygpt/tensor.py"
        in (sentences)
    )


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("def f():\n    import cupy", "cupy"),
        ("from cupy.cuda import nccl", "cupy.cuda.nccl"),
        ("from ._ext import cuda", "tinygpt._ext.cuda"),
        ("def f(x): return x.data.ptr", "x.data.ptr"),
        ("from . import numpy_backend\nnumpy_backend.extension()", "numpy_backend.extension"),
    ],
)
def test_who_knows_the_machine_is_named(tmp_path: Path, text: str, known: str) -> None:
    (sentence,) = machine_known(package_of(tmp_path, tensor=text))
    assert sentence.startswith("tinygpt/tensor.py:")
    assert f"knows {known}:" in sentence
