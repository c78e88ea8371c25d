"""The pages of "The backward pass, operation by operation": made from the files of tinygpt/ops.

python -m parts.operations         # in docs/: writes operations/*.md; conf.py does it at each build
"""

from __future__ import annotations

import ast
from pathlib import Path

from . import bodies
from .docstrings import to_markdown

DOCS = Path(__file__).parents[1]
OPS = DOCS.parent / "tinygpt" / "ops"

NOTATION = "`dx` stands for dL/dx: [the notation](index.md#notation).\n"
ONE_BODY = "One body: these lines call NumPy's loops on the CPU and CuPy's on a GPU.\n\n"

# In the order in which they are best read. All that is named here is whole in Chinese (`untranslated.py`).
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
WITHOUT_EXAMPLE = ["sample_tokens"]  # they follow, under `MORE`
MORE = "More operations"


def others() -> list[str]:
    """The operations that are named nowhere above: new ones, which come last and may wait for their Chinese."""
    named = {*ORDER, *WITHOUT_EXAMPLE}
    return sorted(path.stem for path in OPS.glob("[!_]*.py") if path.stem not in named)


def all_pages() -> list[str]:
    return [*ORDER, *WITHOUT_EXAMPLE, *others()]


def page(name: str) -> str:
    """The page of one file: its docstring, an example with numbers, and the code."""
    tree = ast.parse((OPS / f"{name}.py").read_text(encoding="utf-8"))
    parts = [f"# {name}\n", NOTATION, to_markdown(ast.get_docstring(tree) or "")]
    if (DOCS / "worked" / f"{name}.md").exists():
        parts.append(f"```{{include}} ../worked/{name}.md\n```\n")
    shown = bodies.bodies(name)
    parts.append("## The code\n\n" + ("" if len(shown) > 1 else ONE_BODY) + f"```{{bodies}} {name}\n```\n")
    if name == "matmul":
        parts.append("## unbroadcast\n")
        parts.append(_included("../../tinygpt/ops/_shapes.py", "unbroadcast"))
    others = [piece for piece in _others(tree) if piece not in bodies.NUMPY.get(name, bodies.hearts(tree))]
    if others:
        parts.append("## The oracle and the node of the graph\n")
        parts += [_included(f"../../tinygpt/ops/{name}.py", piece) for piece in others]
    return "\n".join(parts)


def _others(tree: ast.Module) -> list[str]:
    """The oracles, then the nodes."""
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if name.endswith("_composed")] + bodies.nodes(tree)


def _included(path: str, piece: str) -> str:
    return f"```{{literalinclude}} {path}\n:language: python\n:pyobject: {piece}\n```\n"


def contents() -> str:
    """The chapter's first page: the notation, and the table of contents."""
    text = (OPS / "__init__.py").read_text(encoding="utf-8")
    _, _, notation = (ast.get_docstring(ast.parse(text)) or "").partition("Notation, the same in every file:\n")
    parts = [
        (DOCS / "parts" / "contents.md").read_text(encoding="utf-8"),
        "## Notation\n\nThe same on every page:\n",
        "- `Σ_i`: the sum over i\n" + to_markdown(notation.strip("\n")),
    ]
    for chapter, names in {**CHAPTERS, MORE: [*WITHOUT_EXAMPLE, *others()]}.items():
        if names:
            parts.append(f"## {chapter}\n\n```{{toctree}}\n:maxdepth: 1\n\n" + "\n".join(names) + "\n```\n")
    return "\n".join(parts)


def write(folder: Path) -> None:
    """Write the pages; one that is the same stays untouched, so that Sphinx does not read it again."""
    folder.mkdir(exist_ok=True)
    pages = {"index": contents(), **{name: page(name) for name in all_pages()}}
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.glob("*.md"):
        if path.stem not in pages:
            path.unlink()


if __name__ == "__main__":
    write(DOCS / "operations")
