"""What a type checker knows of tensors: it refuses wrong calls, and takes right ones and knows what they return."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinygpt import ops, torch_names
from tinygpt.ops._bind import METHODS, OPERATORS

ROOT = Path(__file__).resolve().parents[2]
TENSOR = (ROOT / "tinygpt/tensor.py").read_text(encoding="utf-8")
OF_OPERATORS = {*OPERATORS.values(), "neg", "getitem"}

# Each line is right, or ends with the code of the error that mypy must find there.
CALLS = """
from typing import assert_type

import numpy as np

import tinygpt as tg
from tinygpt import Tensor, nn, ops
from tinygpt.generation import generate
from tinygpt.generation.decoder import Decoder
from tinygpt.language_model import Generated
from tinygpt.ops.layer_norm import layer_norm_forward

array = np.ones((2, 3), np.float32)
x = tg.tensor(array, requires_grad=True)
p = nn.Parameter(array)

assert_type(x.sum(), Tensor)
assert_type(x.sum(axis=(0, 1), keepdims=True).exp(), Tensor)
assert_type(x.reshape(3, 2), Tensor)
assert_type(x.reshape((3, 2)), Tensor)
assert_type(x.split(2), tuple[Tensor, ...])
assert_type(x.sum(dim=0, keepdim=True), Tensor)
assert_type(x.view(3, -1).permute(1, 0).unsqueeze(0), Tensor)
assert_type(x.size(), tuple[int, ...])
assert_type(x.size(0) + x.size, int)
assert_type(p.requires_grad_(False), nn.Parameter)
assert_type(tg.cat([x, x], dim=1), Tensor)
assert_type(abs(x), Tensor)
assert_type(float(x.sum()), float)
assert_type(x @ x.T, Tensor)
assert_type(1 - x * 2.0 + array, Tensor)
assert_type(x > 0, Tensor)
assert_type(x == x, Tensor)
assert_type(x[0, 1:], Tensor)
assert_type([row for row in x], list[Tensor])
assert_type(ops.where(x > 0, x, 0.0), Tensor)
assert_type(ops.gelu(x, approximate="none"), Tensor)
assert_type(x.dtype, np.dtype)
with tg.no_grad():
    p -= 0.1
assert_type(p, nn.Parameter)

linear, optimizer = nn.Linear(3, 4), tg.optim.AdamW([p], lr=1e-3)
assert_type(linear(x), Tensor)
tg.optim.SGD(linear.named_parameters(), lr=0.1)

model = tg.GPT(tg.GPTConfig(13, 8, 1, 1, 4))
ids = np.zeros((1, 3), np.int64)
assert_type(model(ids), Tensor)
assert_type(model.config, tg.GPTConfig)
assert_type(model.wte, nn.Embedding)
assert_type(generate(model, ids, 3, logits_processor=lambda rows, logits: logits + rows.new_tokens), np.ndarray)
assert_type(generate(model, [[1, 2]], 3, config={"do_sample": False}, return_details=True), Generated)
assert_type(nn.add_lora(model), tg.GPT)

Decoder(model).prefill([[1, 2]]).shap  # attr-defined
generate(model, "to be", 3)  # call-overload
generate(model, ids, 3, tokenizer="bpe")  # call-overload
generate(model, ids, 3, logits_processor=[3])  # list-item
model.config.n_embed  # attr-defined
linear(x, x)  # call-arg
linear(array)  # arg-type
tg.optim.AdamW([array], lr=1e-3)  # arg-type
x.sum(axs=0)  # call-arg
x.mean(axis="rows")  # arg-type
x.gelu(approx="none")  # call-arg
x.reshape("rows")  # arg-type
x.flatten()  # attr-defined
x.max(dim=1)  # arg-type
x @ None  # arg-type
x + "one"  # arg-type
x.backward(axis=1)  # call-arg
x.item(0)  # call-arg
ops.layer_norm(x, p, p, epsilon=1e-5)  # call-arg
ops.softmax(x, "rows")  # arg-type
number: float = x.sum()  # assignment
"""


def one_sided(
    tensor: str = TENSOR,
    methods: tuple[str, ...] = METHODS,
    of_torch: tuple[str, ...] = torch_names.METHODS,
    properties: tuple[str, ...] = torch_names.PROPERTIES,
) -> Iterator[str]:
    """A sentence for each method that only type checkers know, or only Python.

    The class says `name = ops.name` to type checkers alone; at run time the modules bind the methods.
    """
    block = tensor.partition("    if TYPE_CHECKING:\n        ")[2].partition("\n\n\n")[0]
    assert block, "tinygpt/tensor.py has no TYPE_CHECKING block in its class"
    places = (
        (r"\bops\.(\w+)", {*methods, *OF_OPERATORS}, "METHODS of tinygpt/ops/_bind.py", "{0} = ops.{0}"),
        (r"\btorch_names\.([a-z]\w+)", {*of_torch}, "METHODS of tinygpt/torch_names.py", "{0} = torch_names.{0}"),
        (r"\bdef ([a-z]\w+)\(self\)", {*properties}, "PROPERTIES of tinygpt/torch_names.py", "a property {0}"),
    )
    for pattern, bound, place, way in places:
        declared = {*re.findall(pattern, block)}
        for name in sorted(declared - bound):
            yield f"tinygpt/tensor.py declares {name} to type checkers, but no tensor has it: add it to {place}"
        for name in sorted(bound - declared):
            declaration = way.format(name)
            yield f"{place} has {name}, which type checkers do not know: add {declaration} to Tensor in tensor.py"


def test_the_methods_that_tensor_declares_are_those_that_are_bound() -> None:
    found = list(one_sided())
    assert not found, "\n".join(found)
    for name in METHODS:
        assert name in ops.__all__, f"METHODS of ops/_bind.py has {name}, which tinygpt/ops/__init__.py does not export"


def test_a_method_that_is_declared_or_bound_alone_is_named() -> None:
    assert list(one_sided(methods=(*METHODS, "hush"))) == [
        "METHODS of tinygpt/ops/_bind.py has hush, which type checkers do not know: "
        "add hush = ops.hush to Tensor in tensor.py"
    ]
    declared = TENSOR.replace("silu = ops.relu,", "silu, hush = ops.relu, ops.hush,")
    assert declared != TENSOR
    assert list(one_sided(declared)) == [
        "tinygpt/tensor.py declares hush to type checkers, but no tensor has it: "
        "add it to METHODS of tinygpt/ops/_bind.py"
    ]
    assert list(one_sided(of_torch=torch_names.METHODS[1:], properties=("size",))) == [
        "tinygpt/tensor.py declares view to type checkers, but no tensor has it: "
        "add it to METHODS of tinygpt/torch_names.py",
        "tinygpt/tensor.py declares device to type checkers, but no tensor has it: "
        "add it to PROPERTIES of tinygpt/torch_names.py",
    ]


def errors_of_mypy(path: Path) -> dict[int, str]:
    """{line: code} of the errors that mypy finds in a file, with the settings of this repository."""
    command = [sys.executable, "-m", "mypy", "--no-error-summary", str(path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode in (0, 1), answer.stdout + answer.stderr
    # The name alone: what mypy has in its cache it repeats with the folder of the run before.
    found = re.findall(rf"^.*{re.escape(path.name)}:(\d+): error: .*\[([a-z-]+)\]$", answer.stdout, re.MULTILINE)
    assert len(found) == answer.stdout.count(": error: "), answer.stdout
    return {int(line): code for line, code in found}


@pytest.mark.slow
def test_mypy_refuses_wrong_calls_and_those_alone(tmp_path: Path) -> None:
    lines = [*CALLS.splitlines(), *(f"x.{name}" for name in (*METHODS, *torch_names.METHODS))]
    path = tmp_path / "calls.py"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    expected = {i: line.rpartition("  # ")[2] for i, line in enumerate(lines, 1) if "  # " in line}
    assert errors_of_mypy(path) == expected
