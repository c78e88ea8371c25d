"""The pages of "The backward pass, operation by operation": made from the files of tinygpt/ops.

python -m parts.operations         # in docs/: writes operations/*.md; conf.py does it at each build
"""

from __future__ import annotations

import ast
from pathlib import Path

from .docstrings import to_markdown

DOCS = Path(__file__).parents[1]
OPS = DOCS.parent / "tinygpt" / "ops"
EXT = DOCS.parent / "tinygpt" / "_ext"

# In the order in which they are best read. A test sees to it that every file of tinygpt/ops is in it.
CHAPTERS = {
    "The parts of a GPT": [
        "softmax", "cross_entropy", "layer_norm", "gelu", "matmul", "linear", "embedding", "attention", "dropout",
    ],
    "Several steps in one pass": ["bias_gelu", "residual_layer_norm", "linear_cross_entropy"],
    "Arithmetic": ["arithmetic", "elementwise", "reductions", "erf", "cast"],
    "Shapes and indices": ["shape", "concatenate", "getitem", "where"],
    "Relatives": ["rms_norm", "silu", "binary_cross_entropy"],
    "Writing text": ["cached_attention", "decode_block", "packed", "packed_linear"],
}  # fmt: skip
ORDER = [name for names in CHAPTERS.values() for name in names]


def page(name: str) -> str:
    """The page of one file: its docstring, an example with numbers, and the code."""
    text = (OPS / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    parts = [f"# {name}\n", to_markdown(ast.get_docstring(tree) or "")]
    worked = DOCS / "worked" / f"{name}.md"
    if worked.exists():
        parts.append(f"```{{include}} ../worked/{name}.md\n```\n")
    parts.append(f"## The code\n\nAll of it is in `tinygpt/ops/{name}.py`.\n")
    parts += [_included(f"../../tinygpt/ops/{name}.py", piece) for piece in _pieces(tree)]
    if name == "matmul":
        parts.append("## unbroadcast\n")
        parts.append(_included("../../tinygpt/ops/_shapes.py", "unbroadcast"))
    parts += _compiled(name)
    return "\n".join(parts)


def _pieces(tree: ast.Module) -> list[str]:
    """The oracle, the kernels and the nodes: functions and classes, in the order of the file."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in ("Function", *found) for base in node.bases):
            found.append(node.name)
        elif isinstance(node, ast.FunctionDef):
            decorated = any(ast.unparse(decorator).startswith("kernel") for decorator in node.decorator_list)
            if decorated or node.name.endswith("_composed"):
                found.append(node.name)
    return found


def _included(path: str, piece: str) -> str:
    return f"```{{literalinclude}} {path}\n:language: python\n:pyobject: {piece}\n```\n"


def _compiled(name: str) -> list[str]:
    """The same for the processor and for a GPU, folded."""
    found = []
    for kind, folder, language in (("CPU", "cpu", "cython"), ("GPU", "cuda", "cuda")):
        for path in sorted((EXT / folder).rglob(f"{name}.{'pyx' if kind == 'CPU' else 'cu'}")):
            relative = path.relative_to(DOCS.parent).as_posix()
            found.append(
                f"````{{details}} The same for the {kind}: {relative}\n"
                f"```{{literalinclude}} ../../{relative}\n:language: {language}\n```\n````\n"
            )
    return found


def contents() -> str:
    """The chapter's first page: the notation, and the table of contents."""
    text = (OPS / "__init__.py").read_text(encoding="utf-8")
    _, _, notation = (ast.get_docstring(ast.parse(text)) or "").partition("Notation, the same in every file:\n")
    parts = [
        "# The backward pass, operation by operation\n",
        "Each page is made from the file of one operation: the formula, the derivation of its gradient, what is kept\n"
        "for the backward pass and why that is enough, the code. Every gradient is checked against differences and\n"
        "against the same operation composed of simpler ones.\n",
        "## Notation\n\nThe same on every page:\n",
        to_markdown("\n" + notation.strip("\n").replace("    dx ", "\n    dx ", 1)),
    ]
    for chapter, names in CHAPTERS.items():
        parts.append(f"## {chapter}\n\n```{{toctree}}\n:maxdepth: 1\n\n" + "\n".join(names) + "\n```\n")
    return "\n".join(parts)


def write(folder: Path) -> None:
    """Write the pages; one that is the same stays untouched, so that Sphinx does not read it again."""
    folder.mkdir(exist_ok=True)
    pages = {"index": contents(), **{name: page(name) for name in ORDER}}
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.glob("*.md"):
        if path.stem not in pages:
            path.unlink()


if __name__ == "__main__":
    write(DOCS / "operations")
