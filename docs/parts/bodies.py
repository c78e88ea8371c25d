"""The three bodies of an operation: NumPy's, that of the processor, that of a GPU.

The pieces are cut out of the sources by name at each build, so that code and page cannot part. A name that is not found
stops the build.
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LANGUAGES = {".py": "python", ".pyx": "cython", ".pxi": "cython", ".h": "c", ".cu": "cuda", ".cuh": "cuda"}
CPU, GPU = "tinygpt/_ext/cpu/", "tinygpt/_ext/cuda/"


class Piece(NamedTuple):
    path: str
    text: str

    @property
    def language(self) -> str:
        return LANGUAGES[Path(self.path).suffix]


# What is shown of each compiled body: file, then names. NumPy's body is the kernels of tinygpt/ops/<name>.py. Of a long
# function, `name @ for (...` is one loop, without what comes before and after.
COMPILED: dict[str, tuple[dict[str, list[str]], dict[str, list[str]]]] = {
    "softmax": (
        {"softmax.pyx": ["softmax_forward_rows", "softmax_backward_rows"]},
        {"softmax.cu": ["softmax_forward", "softmax_backward"]},
    ),
    "cross_entropy": (
        {"cross_entropy.pyx": ["cross_entropy_forward_rows", "gradient_row", "cross_entropy_backward_rows"]},
        {"cross_entropy.cu": ["cross_entropy_forward", "write_gradient", "cross_entropy_backward"]},
    ),
    "layer_norm": (
        {"normalize.pxi": ["norm_of", "normalize_rows", "normalize_row_backward"]},
        {"layer_norm.cuh": ["Norm", "normalize_row", "row_gradient_means"], "layer_norm.cu": ["layer_norm_backward"]},
    ),
    "gelu": (
        {"gelu.pxi": ["gelu_value", "gelu_slope"], "gelu.pyx": ["gelu_backward_span"]},
        {"gelu.cu": ["Tanh", "backward_pack", "gelu_backward"]},
    ),
    "matmul": (
        {"matmul/product_block.h": ["tg_step", "tg_multiply_block"]},
        {"/tinygpt/backends/cupy_matmul.py": ["gemm"]},
    ),
    "linear": (
        {"linear.pyx": ["add_bias_rows", "column_sum_rows"]},
        {"linear.cu": ["add_bias", "column_sum"]},
    ),
    "embedding": (
        {"embedding.pyx": ["embedding_forward_rows", "embedding_backward_columns"]},
        {"embedding.cu": ["embedding_forward", "embedding_backward"]},
    ),
    "attention": (
        {
            "attention/attention_tile.h": [
                "softmax",
                "head_forward @ for (; t.keys > 0",
                "softmax_backward",
                "head_backward @ for (; t.keys > 0",
            ]
        },
        {
            "attention/attention.cu": [
                "attention_forward @ for (int first_key = 0",
                "score_gradient",
                "attention_backward_keys @ for (int first = problem",
            ]
        },
    ),
    "dropout": ({"dropout.pyx": ["dropout_apply_rows"]}, {"dropout.cu": ["dropout_apply"]}),
    "bias_gelu": (
        {"bias_gelu.pyx": ["bias_gelu_forward_rows", "bias_gelu_backward_rows"]},
        {"gelu.cu": ["bias_gelu_forward", "bias_gelu_backward"]},
    ),
    "residual_layer_norm": (
        {"residual_layer_norm.pyx": ["residual_layer_norm_backward_rows"]},
        {"residual_layer_norm.cu": ["residual_layer_norm_forward", "residual_layer_norm_backward"]},
    ),
    "linear_cross_entropy": (
        {"cross_entropy.pyx": ["gradient_row", "cross_entropy_inplace_rows"]},
        {"cross_entropy.cu": ["write_gradient", "cross_entropy_inplace"]},
    ),
    "rms_norm": (
        {"rms_norm.pyx": ["rms_norm_forward_rows", "rms_norm_backward_blocks"]},
        {"rms_norm.cu": ["rms_norm_forward", "rms_norm_backward"]},
    ),
    "silu": (
        {"silu.pyx": ["silu_slope", "silu_forward_span", "silu_backward_span"]},
        {"silu.cu": ["forward_pack", "backward_pack", "silu_backward"]},
    ),
    "binary_cross_entropy": ({}, {"binary_cross_entropy.cu": ["loss_of", "gradient_of", "backward_pack"]}),
    "cast": ({}, {"cast.cu": ["round_pack", "rounded_each"]}),
    "cached_attention": (
        {"decode/decode.h": ["tg_attend"]},
        {"decode/decode_block.cu": ["attend_to_cache @ for (int start = first"]},
    ),
    "decode_block": (
        {"decode/decode.h": ["tg_attend_heads", "tg_decode_block"]},
        {"decode/decode_block.py": ["decode_block"]},
    ),
    "packed": (
        {
            "decode/weights.h": ["tg_weight"],
            "decode/few_rows.h": ["tg_add_stripe", "tg_stripe"],
            "decode/four_bits.h": ["tg_nibbles", "tg_panel_sums"],
        },
        {"decode/packed.cu": ["few_rows_product @ for (int k = first"]},
    ),
    "packed_linear": ({"decode/weights.h": ["tg_weight", "tg_unpack_rows"]}, {"decode/packed.cu": ["unpack_rows"]}),
}
# Other pieces of NumPy's body than the kernels and, without kernels, the Functions.
NUMPY: dict[str, list[str]] = {
    "linear_cross_entropy": ["loss_and_gradients"],
    "linear": ["add_bias", "column_sum", "product_and_bias", "gradients", "Linear"],
    "cached_attention": ["_attend_to_all"],
    "packed": ["_to_bfloat16", "_to_int8", "_to_int4", "unpack_into", "few_rows_product"],
    "erf": ["_polynomial", "_erfc_positive", "erf_array", "Erf"],
}


def bodies(name: str) -> dict[str, list[Piece]]:
    """The pieces of each body of an operation, by the name of what runs it. A body that there isn't is left out."""
    path = f"tinygpt/ops/{name}.py"
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = {"NumPy": [Piece(path, cut(path, piece)) for piece in NUMPY.get(name) or hearts(tree)]}
    for what, folder, files in zip(("CPU", "CUDA"), (CPU, GPU), COMPILED.get(name, ({}, {})), strict=True):
        paths = {file[1:] if file.startswith("/") else folder + file: names for file, names in files.items()}
        pieces = [Piece(path, cut(path, piece)) for path, names in paths.items() for piece in names]
        if pieces:
            found[what] = pieces
    return found


def hearts(tree: ast.Module) -> list[str]:
    """The kernels of an operation's file; the Functions, if it has none."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    kernels = [node.name for node in functions if any("kernel" in ast.unparse(d) for d in node.decorator_list)]
    return kernels or nodes(tree)


def nodes(tree: ast.Module) -> list[str]:
    """The Functions of an operation's file: the nodes of the graph."""
    found: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in ("Function", *found) for base in node.bases):
            found.append(node.name)
    return found


def cut(path: str, piece: str) -> str:
    """The lines of a function, class or struct of a source file. Raises LookupError if there isn't exactly one."""
    text = (ROOT / path).read_text(encoding="utf-8")
    name, _, start = piece.partition(" @ ")
    chunks = _python(text, name) if path.endswith(".py") else (_cython if ".p" in path else _c)(text, name)
    if len(chunks) != 1:
        raise LookupError(f"{path} has {len(chunks)} definitions of {name}, which a page shows")
    return (_block(path, chunks[0], start) if start else chunks[0].rstrip()) + "\n"


def _block(path: str, text: str, start: str) -> str:
    """The block of a function that begins with a line, up to the } below its first letter, moved to the left."""
    found = list(re.finditer(rf"^( *){re.escape(start)}.*\n(?:.*\n)*?\1\}}", text, re.M))
    if len(found) != 1:
        raise LookupError(f"{path} has {len(found)} blocks that begin with {start!r}, of which a page shows one")
    return textwrap.dedent(found[0][0])


def _python(text: str, name: str) -> list[str]:
    lines, found = text.splitlines(), []
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found.append("\n".join(lines[first - 1 : node.end_lineno]))
    return found


def _cython(text: str, name: str) -> list[str]:
    """From the line `cdef ... name(` to the next line that is not indented; a signature goes on in indented lines."""
    return re.findall(rf"^(?:cdef|def) [^\n(]*\b{name}\(.*\n(?:(?:[ \t].*)?\n)*", text, re.M)


def _c(text: str, name: str) -> list[str]:
    """The chunk that defines a name, with the comment above it. A chunk ends with a } or ; at the outermost level."""
    found, chunk, depth = [], list[str](), 0
    for line in text.splitlines():
        if depth == 0 and (not line.strip() or line.startswith("#")):
            chunk = []  # a comment that stands alone, or a line of the preprocessor
            continue
        chunk.append(line)
        code = re.sub(r"//.*|/\*.*?\*/|\"[^\"]*\"", "", line)
        depth += code.count("{") - code.count("}")
        if depth == 0 and code.rstrip().endswith(("}", "};")):
            whole = "\n".join(chunk)
            head = re.sub(r"//.*|/\*.*?\*/", "", whole, flags=re.DOTALL if whole.startswith("/*") else 0).split("{")[0]
            if re.search(rf"(?:\b{name}\b\)?\(|\bstruct {name}\b\s*$)", head):
                found.append(whole)
            chunk = []
    return found
