"""Code: write the body of a function, given its head and its docstring.

    python examples/recipes/python_code.py                     # takes minutes
    python examples/recipes/python_code.py --slice             # takes seconds, to see that it works

Data: the functions of Python's standard library (PSF licence) that have a docstring and a body of at most 200
characters, about 3,500. Nothing is downloaded. All functions of a file are in the same part: 70 % for training, 10 %
for validation and 20 % for testing.

A model of 2 layers and 64 channels, with bytes as tokens, is pre-trained on the training functions, then fine-tuned to
write the body. The metric is the F1 of words. The share of bodies that parse as Python is reported too, but `pass` also
parses. The baseline is the body of the most similar training function, which always parses.

Result of the first command with Python 3.11.7 (200 test functions, 2 minutes on one core): F1 0.1518, with 77 % of the
bodies parsing; the most similar function's 0.1381. The model beats the baseline by 1.36 points.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Sequence

from _answers import Baseline, Row, Sizes, answer, most_similar, references
from _library import add_options, functions
from _recipe import parse

from tinygpt.cli import exit_with
from tinygpt.metrics import token_f1

LONGEST_DOC, LONGEST_BODY = 120, 200  # characters
WHOLE = Sizes(
    {"tokenizer": "byte", "n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 384,
     "batch_size": 8, "steps": 2000, "eval_every": 400, "lr": 2e-3},
    {"batch_size": 8, "epochs": 4, "lr": 1e-3, "weight_decay": 0.1},
    new_tokens=190, test_rows=200,
)  # fmt: skip


def rows(folder: str | None) -> Iterator[tuple[str, Row]]:
    """The file of each function, and its row: the question ends where the body begins."""
    seen = set()
    for function in functions(folder):
        doc = " ".join(function.doc.partition("\n\n")[0].split())[:LONGEST_DOC]
        head = f"{function.head.strip()}\n    {doc!r}\n"
        short = len(function.body) <= LONGEST_BODY and len(head.encode()) <= LONGEST_DOC + 60
        if function.body and short and head not in seen:
            seen.add(head)
            yield function.file, {"question": head, "answer": function.body}


def parses(head: str, body: str) -> bool:
    """Whether head and body together are a function."""
    try:
        found = ast.parse(head + textwrap.indent(body, "    "))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    function = found.body[0] if len(found.body) == 1 else None
    return isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) and len(function.body) > 1


def figures(answers: Sequence[str], rows: Sequence[Row]) -> dict[str, float]:
    right = [references(row) for row in rows]
    parsed = [parses(row["question"], text) for text, row in zip(answers, rows, strict=True)]
    return {"token F1": token_f1(answers, right), "parses": sum(parsed) / len(parsed)}


def main() -> int:
    options = parse(__doc__, "python-code", add_options, package=False)
    found = list(rows(options.folder))
    baseline = Baseline("the most similar function's", most_similar)
    answer([row for _, row in found], [file for file, _ in found], options, WHOLE, baseline, "token F1", figures,
           block_size=256, template="raw")  # fmt: skip
    return 0


if __name__ == "__main__":
    exit_with(main)
