"""Prompts that are read in one pass: each to the last bit as alone, and as the model's own `forward` up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.generation.helpers import make
from tests.ops.cases.packed import compiled
from tinygpt.generation.decoder import Decoder
from tinygpt.generation.joint_prompts import JointPrompts, passes
from tinygpt.generation.prompt_reader import PromptReader, read_together
from tinygpt.ops._matmul import matmul_arrays

SHAPE = {"vocab_size": 61, "block_size": 160, "n_layer": 3, "n_head": 2}
LENGTHS = [1, 40, 2, 64, 31, 5, 32, 9, 70, 33, 128, 150]
PIECE = 64


def model_of(n_embd: int = 48, form: str | None = None, **settings: Any) -> tg.GPT:
    model = make(np.float32, **SHAPE, n_embd=n_embd, **settings).eval()
    return model if form is None else model.pack(form)


def prompts() -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 61, length) for seed, length in enumerate(LENGTHS)]


def read(readers: list[PromptReader]) -> None:
    while left := [(reader, PIECE) for reader in readers if reader.rest]:
        read_together(left)


MODELS = [
    {}, {"form": "bfloat16"}, {"form": "int8"}, {"n_embd": 16}, {"bias": False}, {"activation_function": "relu"},
    {"n_inner": 40, "tie_word_embeddings": False}, {"scale_attn_by_inverse_layer_idx": True},
]  # fmt: skip


@compiled
@pytest.mark.parametrize("options", MODELS)
def test_together_as_alone_to_the_last_bit(options: dict[str, Any]) -> None:
    """Logits, keys and values of prompts of all lengths, in pieces; and the steps after them."""
    model = model_of(**options)
    together = Decoder(model)
    readers = [together.reader(prompt) for prompt in prompts()]
    read(readers)
    logits = together.join_all([(reader, 1) for reader in readers]).copy()
    next_ids = np.arange(len(readers))
    after = together.step(next_ids).copy()
    for b, prompt in enumerate(prompts()):
        alone = Decoder(model)
        reader = alone.reader(prompt)
        read([reader])
        assert np.array_equal(alone.join(reader)[0], logits[b])
        assert np.array_equal(alone.step([b])[0], after[b])
        for one, other in zip(alone.cache, together.cache, strict=True):
            for mine, theirs in ((one.keys, other.keys), (one.values, other.values)):
                assert np.array_equal(mine[0, :, : len(prompt) + 1], theirs[b, :, : len(prompt) + 1])


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("options", MODELS)
def test_prefill_reads_them_so_too(options: dict[str, Any]) -> None:
    model = model_of(**options)
    logits = Decoder(model).prefill(prompts()).copy()
    for b, prompt in enumerate(prompts()):
        assert np.array_equal(Decoder(model).prefill([prompt])[0], logits[b])
        assert np.array_equal(Decoder(model).join(prompt)[0], logits[b])


@pytest.mark.parametrize("options", MODELS)
def test_equal_to_the_model_itself(options: dict[str, Any]) -> None:
    model = model_of(**options)
    logits = Decoder(model).prefill(prompts())
    with tg.no_grad():
        for row, prompt in zip(logits, prompts(), strict=True):
            np.testing.assert_allclose(row, model(prompt[None]).data[0, -1], atol=2e-5)


def test_samples_of_several_prompts_join_at_once() -> None:
    model, (first, second) = model_of(), prompts()[1:3]
    decoder, expected = Decoder(model), Decoder(model)
    decoder.join([7, 8])
    logits = decoder.join_all([(decoder.reader(first), 2), (decoder.reader(second), 1)]).copy()
    assert decoder.lengths.tolist() == [2, 40, 40, 2]
    np.testing.assert_allclose(logits, expected.prefill([first, second]), atol=1e-5)
    expected.select([0, 0, 1])
    np.testing.assert_allclose(decoder.step([0, 1, 2, 3])[1:], expected.step([1, 2, 3]), atol=1e-5)


def test_an_error_leaves_the_readers_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(model_of())
    readers = [decoder.reader(prompt) for prompt in prompts()[:3]]
    expected = [decoder.reader(prompt) for prompt in prompts()[:3]]
    with monkeypatch.context() as patched:
        patched.setattr("tinygpt.gpt.MLP.branch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            read_together([(reader, PIECE) for reader in readers])
    assert [reader.length for reader in readers] == [0, 0, 0]
    read(readers)
    read(expected)
    for one, other in zip(readers, expected, strict=True):
        assert np.array_equal(one.hidden, other.hidden)


def test_whose_layers_have_to_be_called() -> None:
    """A model with a user's layer is read a prompt at a time."""
    model = model_of()
    assert isinstance(Decoder(model).reader([1]).joint, JointPrompts)
    calls = []
    forward = model.h[1].mlp.forward
    model.h[1].mlp.positionwise = True
    model.h[1].mlp.forward = lambda h: calls.append(h.shape) or forward(h)
    decoder = Decoder(model)
    decoder.prefill(prompts()[:2])
    assert decoder.joint is None
    assert [shape[:2] for shape in calls] == [(1, 1), (1, 40)]


def test_an_adapter() -> None:
    """A new one changes no bit; one that has learned is read as the model's own `forward` computes it."""
    model = model_of()
    expected = Decoder(model).prefill(prompts()).copy()
    tg.nn.add_lora(model, rank=2)
    assert isinstance(Decoder(model).reader([1]).joint, JointPrompts)
    assert np.array_equal(Decoder(model).prefill(prompts()), expected)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += np.float32(0.1)
    logits = Decoder(model).prefill(prompts())
    assert np.abs(logits - expected).max() > 1e-2
    with tg.no_grad():
        for row, prompt in zip(logits, prompts(), strict=True):
            np.testing.assert_allclose(row, model(prompt[None]).data[0, -1], atol=1e-4)


def test_passes() -> None:
    lengths = [3, 3, 3, 20, 1, 9, 1]
    assert list(passes(range(7), lengths, 10)) == [[0, 1, 2], [3], [4, 5], [6]]
    assert list(passes([5, 0], lengths, 10)) == [[5], [0]]
    assert list(passes([], lengths, 10)) == []


@compiled
def test_rows_of_a_large_product_do_not_depend_on_their_number() -> None:
    """What `JointPrompts.many_rows` promises."""
    if not JointPrompts(model_of()).many_rows:
        pytest.skip("this processor's products are NumPy's BLAS")
    rng = np.random.default_rng(0)
    for K, N in ((32, 32), (768, 96), (3072, 40)):
        x, w = rng.standard_normal((300, K), np.float32), rng.standard_normal((K, N), np.float32)
        whole = matmul_arrays(x, w)
        for first, count in ((0, 32), (5, 33), (17, 64), (90, 131), (1, 299)):
            assert np.array_equal(matmul_arrays(x[first : first + count], w), whole[first : first + count])
