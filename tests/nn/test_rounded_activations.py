"""Models with weights of 8 or 4 bits and activations rounded to 8: every product, every way to run, refusals."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tests.generation.helpers import make
from tests.ops.cases.packed import compiled, drawn_matrix, normal
from tests.ops.test_decode_block import drawn
from tests.ops.test_decode_block import run as run_block
from tinygpt.cli.handover import built, described
from tinygpt.cli.loading import add_model_options, formats_of
from tinygpt.generation.decoder import Decoder
from tinygpt.gpt import GPT, Block
from tinygpt.kernel import use_kernels
from tinygpt.nn.packed import PackedEmbedding, PackedLinear, activations_of, round_activations
from tinygpt.ops import packed_linear
from tinygpt.ops.packed import Matrix, unpack

SHAPE = {"block_size": 24, "vocab_size": 31, "n_layer": 2, "n_head": 3, "n_embd": 48}
IDX = np.random.default_rng(0).integers(0, 31, (3, 20))
FLIP = (
    0.03  # of what one activation is off by if a last bit before it takes it to the next step, as a share of the result
)
every_group = pytest.mark.parametrize("group", [None, 8, 32, "int4"])  # of int8, and weights of four bits


def form_of(group: Any) -> tuple[str, int | None]:
    return ("int4", None) if group == "int4" else ("int8", group)


def rounding_model(group: Any = None, **changes: Any) -> GPT:
    if group == "int4":
        changes = {"n_embd": 96, **changes}
    return make(np.float32, **{**SHAPE, **changes}).pack(*form_of(group), "int8")


def test_every_product_rounds_and_none_does_again() -> None:
    model, plain = rounding_model(), make(np.float32, **SHAPE).pack("int8")
    layers = [m for m in model.modules() if isinstance(m, (PackedLinear, PackedEmbedding))]
    assert len(layers) == 9
    assert {layer.matrix.activations for layer in layers} == {"int8"}
    assert activations_of(model) == "int8"
    assert activations_of(plain) is None
    got, weights_only = model(IDX).data, plain(IDX).data
    assert 1e-5 < np.abs(got - weights_only).max() / np.abs(weights_only).max() < FLIP
    round_activations(model, None)
    assert np.array_equal(model(IDX).data, weights_only)


@every_group
def test_whatever_way_it_runs(group: Any) -> None:
    """As a whole, or one token at a time with a cache; by compiled kernels or by the reference. Where the last bit of
    what is rounded differs, a number may come to lie one step beside."""
    model = rounding_model(group)
    whole = model(IDX).data
    for kind in ("auto", "reference"):
        with use_kernels(kind):
            assert np.abs(model(IDX).data - whole).max() < FLIP * np.abs(whole).max()
            decoder = Decoder(model)
            logits = [decoder.prefill(list(IDX[:, :4])).copy()] + [decoder.step(IDX[:, t]).copy() for t in range(4, 20)]
        for t, row in enumerate(logits):
            assert np.abs(row - whole[:, t + 3]).max() < FLIP * np.abs(whole).max(), (kind, t)


@compiled
@every_group
def test_a_row_is_the_same_among_any_others_and_on_any_number_of_threads(group: Any, threads: Any) -> None:
    arguments = drawn(2, 24, [0, 3, 17, 5, 1], 20, form_of(group))
    set_activations(arguments[1])
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results.append(run_block(arguments))
    assert all(np.array_equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))
    x, block, keys, values, length = arguments
    for m in range(5):
        alone = run_block([x[m : m + 1], block, keys[m : m + 1], values[m : m + 1], length[m : m + 1]])
        assert all(np.array_equal(a[0], b[m]) for a, b in zip(alone, results[0], strict=True))


def set_activations(block: Block) -> None:
    for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
        layer.matrix = layer.matrix._replace(activations="int8")


@compiled
@every_group
@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_the_block_in_one_pass_is_the_block(group: Any, activation: str) -> None:
    arguments = drawn(2, 40, [0, 3, 17], 20, form_of(group), activation=activation)
    plain = run_block(arguments)
    set_activations(arguments[1])
    got = run_block(arguments)
    with use_kernels("reference"):
        expected = run_block(arguments)
    for a, b, without in zip(got, expected, plain, strict=True):
        used = np.abs(b) < 100  # the cache has a large number where there is no token
        off, rounding = np.abs(a - b)[used], np.abs(a - without)[used]
        assert off.max() < FLIP * np.abs(b[used]).max()
        assert off.mean() < rounding.mean() / 5  # nearly all of them are the same: it is not another rounding
        assert rounding.max() > 1e-4


def test_a_gradient_passes_as_if_nothing_were_rounded() -> None:
    """An adapter beside a packed layer is trained by it."""
    rng = np.random.default_rng(0)
    matrix = drawn_matrix(rng, (64, 5), ("int8", 32), 0)._replace(activations="int8")
    x = tg.tensor(normal(rng, 3, 64), requires_grad=True)
    y = packed_linear.PackedProduct.apply(x, matrix=matrix)
    y.backward(np.ones((3, 5), np.float32))
    assert np.allclose(x.grad, np.ones((3, 5)) @ unpack(matrix).T, rtol=1e-5, atol=1e-6)


def test_loading_and_handing_over(tmp_path: Path) -> None:
    make(np.float32, **SHAPE).save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path, quantize="int8", activations="int8")
    assert activations_of(model) == "int8"
    assert np.array_equal(model(IDX).data, rounding_model()(IDX).data)
    assert np.array_equal(built(*described(model))(IDX).data, model(IDX).data)
    labels = tg.GPTForSequenceClassification.from_pretrained(
        tmp_path, num_labels=2, quantize="int8", activations="int8"
    )
    assert activations_of(labels) == "int8"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"activations": "int8"},
            "activations='int8' is for products with int8 or int4 weights, but this model is not packed",
        ),
        (
            {"dtype": "bfloat16", "activations": "int8"},
            "is for products with int8 or int4 weights, but these are bfloat16",
        ),
        ({"quantize": "int8", "activations": "int4"}, "activations must be None or 'int8', not 'int4'"),
    ],
)
def test_what_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    make(np.float32, **SHAPE).save_pretrained(tmp_path)
    with pytest.raises(tg.UsageError, match=words):
        GPT.from_pretrained(tmp_path, **options)


def test_packing_refuses_before_anything_is_packed() -> None:
    model = make(np.float32, **SHAPE)
    with pytest.raises(
        tg.UsageError, match=r"^GPT.pack: activations='int8' is .* int4 weights, but these are bfloat16$"
    ):
        model.pack("bfloat16", activations="int8")
    assert model.packed is None


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_the_command_line(run: Any, tmp_path: Path, format: str) -> None:
    tokenizer = tg.tokenizers.CharTokenizer.from_text("".join(map(chr, range(65, 65 + 31))))
    make(np.float32, **SHAPE | {"n_embd": 96}).save_pretrained(tmp_path, tokenizer=tokenizer)
    command = ["sample", f"--model={tmp_path}", "--prompt=ABC", "--max-new-tokens=5", "--greedy"]
    assert run(*command, f"--quantize={format}").code == 0
    answer = run(*command, f"--quantize={format}", "--activations=int8")
    assert answer.code == 0
    assert len(answer.out.strip()) == 8
    assert_one_sentence(run(*command, "--activations=int8"), "int4 weights, but this model is not packed")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", None), ("--quantize int8", "int8"), ("--quantize int8 --activations float32", None),
        ("--quantize int4", "int8"), ("--quantize int4 --activations float32", None),
        ("--quantize int4 --backend cupy", None), ("--quantize int8 --backend cupy", None),
        ("--quantize int8 --backend cupy --activations int8", "int8"), ("--activations float32", None),
    ],
)  # fmt: skip
def test_what_the_command_line_rounds(words: str, expected: str | None) -> None:
    """Activations of products with packed weights on a CPU, unless it is told not to."""
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    options = parser.parse_args(["--model=any", *words.split()])
    found = formats_of(options)
    assert found == {"dtype": "float32", "quantize": options.quantize, "activations": expected}


def test_a_matrix_says_what_its_products_do() -> None:
    assert Matrix(np.zeros((2, 2), np.float32)).activations is None
