"""The decoder against the model without a cache, at every step; rows copied and dropped; what it refuses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.generation.helpers import make
from tests.generation.slow_decoder import SlowDecoder
from tests.ops.cases.packed import FORMATS, compiled
from tinygpt import GPT, GPTConfig
from tinygpt.generation.decoder import Decoder
from tinygpt.generation.joint_prompts import JointPrompts
from tinygpt.generation.stepper import Stepper, decoder_for
from tinygpt.gpt import ACTIVATIONS
from tinygpt.kernel import use_kernels

SHAPE = {"block_size": 24, "vocab_size": 31, "n_layer": 3, "n_head": 3, "n_embd": 24}
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}
LENGTHS = [5, 1, 12, 2]
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


def prompts_of(lengths: list[int], vocab_size: int = 31, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, length) for length in lengths]


def model_of(dtype: Any = np.float32, **changes: Any) -> GPT:
    return make(dtype, **{**SHAPE, **changes})


def packed_model(form: Any, **changes: Any) -> GPT:
    return model_of(**changes) if form[0] == "float32" else model_of(**changes).pack(*form)


def ready(model: GPT, lengths: list[int] = LENGTHS, capacity: int | None = None) -> Decoder:
    decoder = Decoder(model, capacity)
    decoder.prefill(prompts_of(lengths))
    return decoder


def together(model: GPT, prompts: list[np.ndarray], steps: int, tolerance: float, capacity: int | None = None) -> None:
    """The decoder and the model without a cache write the same texts from logits as close as `tolerance`."""
    decoder, slow = Decoder(model, capacity), SlowDecoder(model, model.config.block_size)
    got, expected = decoder.prefill(prompts), slow.prefill(prompts)
    for _ in range(steps):
        assert got.shape == (len(prompts), model.config.vocab_size)
        assert got.dtype == model.wpe.weight.dtype
        assert np.abs(got - expected).max() <= tolerance
        ids = got.argmax(axis=1)
        assert np.array_equal(ids, expected.argmax(axis=1))
        got, expected = decoder.step(ids), slow.step(ids)
        assert np.array_equal(decoder.lengths, slow.lengths)
    assert np.abs(got - expected).max() <= tolerance


# Against the model without a cache ------------------------------------------------------------------


@pytest.mark.slow
@every_dtype
@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("bias", [True, False])
def test_whole_generations(dtype: Any, kernels: str, bias: bool) -> None:
    """From ragged prompts until the longest row is full."""
    with use_kernels(kernels):
        together(model_of(dtype, bias=bias), prompts_of(LENGTHS), 12, TOLERANCE[dtype])


@every_dtype
@pytest.mark.parametrize(
    "changes",
    [{"n_layer": 1, "n_head": 1, "n_embd": 1}, {"n_head": 5, "n_embd": 5}, {"n_head": 2, "n_embd": 34},
     {"n_layer": 1, "n_head": 1, "n_embd": 80}, {"layer_norm_epsilon": 0.3}, {"vocab_size": 1030}],
)  # fmt: skip
def test_models_of_other_shapes(dtype: Any, changes: Any) -> None:
    model = model_of(dtype, **changes)
    together(
        model,
        prompts_of([3, 14, 1], model.config.vocab_size),
        10,
        TOLERANCE[dtype] * max(1, np.sqrt(model.config.n_embd) / 5),
    )


@pytest.mark.slow
@every_dtype
@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize(
    "changes",
    [*({"activation_function": name} for name in ACTIVATIONS), {"n_inner": 7}, {"scale_attn_weights": False},
     {"scale_attn_by_inverse_layer_idx": True}, {"tie_word_embeddings": False}],
    ids=str,
)  # fmt: skip
def test_variants_of_the_model(dtype: Any, kernels: str, changes: Any) -> None:
    model = model_of(dtype, **changes)
    assert type(decoder_for(model)) is Decoder
    with use_kernels(kernels):
        together(model, prompts_of([3, 14, 1]), 6, TOLERANCE[dtype])


@every_dtype
def test_a_text_longer_than_attention_takes_at_a_time(dtype: Any) -> None:
    model = model_of(dtype, block_size=150, n_layer=2)
    together(model, prompts_of([119, 1, 140]), 10, TOLERANCE[dtype])


@pytest.mark.parametrize("form", FORMATS[1:])
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_packed_models(form: Any, kernels: str) -> None:
    with use_kernels(kernels):
        together(packed_model(form), prompts_of([5, 1, 20]), 4, 1e-5)


def test_the_comparison_would_notice() -> None:
    """Each of the tokens, its place and each layer's cache matter by far more than the tolerance."""
    model = model_of()
    (prompt,), (token,) = prompts_of([12]), [7]
    slow = SlowDecoder(model, 24)
    slow.prefill([prompt])
    expected = slow.step([token])
    for t in range(12):
        other = prompt.copy()
        other[t] = (other[t] + 1) % 31
        slow.prefill([other])
        assert np.abs(slow.step([token]) - expected).max() > 1e-3
    for layer in range(3):
        for name in ("keys", "values"):
            decoder = Decoder(model)
            decoder.prefill([prompt])
            getattr(decoder.cache[layer], name)[0, 1, 4] = 0
            assert np.abs(decoder.step([token]) - expected).max() > 1e-3


# Rows -------------------------------------------------------------------------------------------------


@compiled
@pytest.mark.parametrize("form", FORMATS[:4])
def test_a_row_has_the_same_bits_whatever_the_others_are(form: Any, threads: Any) -> None:
    model, prompts = packed_model(form), prompts_of([*LENGTHS, *range(3, 20)])
    ids = np.random.default_rng(1).integers(0, 31, (4, len(prompts)))

    def logits_of(rows: list[int]) -> list[np.ndarray]:
        decoder = Decoder(model)
        first = decoder.prefill([prompts[row] for row in rows]).copy()
        return [first, *(decoder.step(step[rows]).copy() for step in ids)]

    threads(1)
    everything = logits_of(list(range(len(prompts))))
    for rows, count in [([0], 1), ([2], 2), ([3, 1], 3), ([2, 0, 1, 3], 8), (list(range(17)), 2)]:
        threads(count)
        assert all(np.array_equal(a, b[rows]) for a, b in zip(logits_of(rows), everything, strict=True))


@every_dtype
@pytest.mark.parametrize(
    "choices",
    [
        [[0, 1, 2, 3]],
        [[3, 0, 1, 2]],  # a cycle
        [[1, 0, 3, 2]],
        [[2, 2, 2, 2]],
        [[2]],
        [[3, 1]],
        [[0, 0, 1, 1, 2, 2, 3, 3], [7, 1, 5], [2, 0, 1]],
        [[1, 3], [1, 1, 0, 0, 1, 0], [5, 4, 3, 2, 1, 0], [4]],
        [[1, 1, 1], [0, 1, 2, 0, 1, 2]],
        [[], []],
    ],
)
def test_rows_are_copied_reordered_and_dropped(dtype: Any, choices: list[list[int]]) -> None:
    """With a step, of other tokens for each row, after each choice of rows; what was copied lives its own life."""
    model, rng = model_of(dtype), np.random.default_rng(0)
    decoder, slow = Decoder(model), SlowDecoder(model, 24)
    decoder.prefill(prompts_of(LENGTHS))
    slow.prefill(prompts_of(LENGTHS))
    for rows in choices:
        decoder.select(rows)
        slow.select(rows)
        assert np.array_equal(decoder.lengths, slow.lengths)
        for _ in range(2):
            ids = rng.integers(0, 31, len(rows))
            got = decoder.step(ids)
            assert got.shape == (len(rows), 31)
            if rows:
                assert np.abs(got - slow.step(ids)).max() <= TOLERANCE[dtype]


def test_selecting_takes_lists_and_arrays_of_any_integers() -> None:
    for rows in ([2, 0], (2, 0), np.array([2, 0], np.uint8), np.array([0, 0, 2])[::-2]):
        decoder = ready(model_of())
        decoder.select(rows)
        assert list(decoder.lengths) == [12, 5]


def test_no_rows() -> None:
    decoder = Decoder(model_of())
    for _ in range(2):
        assert decoder.prefill([]).shape == (0, 31)
        assert decoder.step([]).shape == (0, 31)
        decoder.select([])
        assert len(decoder.lengths) == 0
    assert decoder.prefill(prompts_of([3])).shape == (1, 31)


def test_prefill_begins_anew() -> None:
    """Nothing of the texts before is left, whatever their number and length were."""
    model = model_of()
    decoder = ready(model)
    decoder.step([1, 2, 3, 4])
    for lengths in ([1], [3, 2, 4, 1, 5], [24], LENGTHS):
        got = decoder.prefill(prompts_of(lengths)).copy()
        assert np.array_equal(got, Decoder(model).prefill(prompts_of(lengths)))
        if max(lengths) < 24:
            again = ready(model, lengths)
            assert np.array_equal(decoder.step([7] * len(lengths)), again.step([7] * len(lengths)))


def test_prompts_of_every_kind() -> None:
    model = model_of()
    expected = Decoder(model).prefill([np.array([3, 1, 4]), np.array([1])])
    for prompts in ([[3, 1, 4], [1]], [np.array([3, 1, 4], np.uint16), np.array([1], np.int32)], ((3, 1, 4), (1,))):
        assert np.array_equal(Decoder(model).prefill(prompts), expected)


# The model ----------------------------------------------------------------------------------------------


@every_dtype
def test_a_model_in_training_mode_stays_in_it_and_gets_no_dropout(dtype: Any) -> None:
    model = model_of(dtype, dropout=0.9)
    model.train()
    model.h[1].eval()  # a mixture
    modes = [module.training for module in model.modules()]
    state = model.generator.state_dict()
    together(model, prompts_of(LENGTHS), 5, TOLERANCE[dtype])
    assert [module.training for module in model.modules()] == modes
    assert model.generator.state_dict() == state
    assert all(parameter.grad is None for parameter in model.parameters())
    decoder = Decoder(model)
    with pytest.raises(tg.UsageError):
        decoder.prefill([[99]])
    assert [module.training for module in model.modules()] == modes


def test_weights_that_change_are_seen() -> None:
    """In place, as an optimizer and load_state_dict do it, and as new arrays or another format at the next prefill."""
    model, prompts = model_of(), prompts_of([4, 2])
    decoder = Decoder(model)

    def expected() -> np.ndarray:
        return SlowDecoder(model, 24).prefill(prompts)

    seen = [decoder.prefill(prompts).copy()]
    for parameter in model.parameters():
        parameter.data *= 1.1
    seen.append(decoder.prefill(prompts).copy())
    assert np.abs(seen[-1] - expected()).max() < 1e-5
    for parameter in model.parameters():
        parameter.data = parameter.data * np.float32(1.1)
    seen.append(decoder.prefill(prompts).copy())
    assert np.abs(seen[-1] - expected()).max() < 1e-5
    model.pack("int8")
    seen.append(decoder.prefill(prompts).copy())
    assert np.abs(seen[-1] - expected()).max() < 1e-5
    assert np.array_equal(decoder.step([1, 2]), ready_with(model, prompts).step([1, 2]))
    for one, other in pairwise(seen):
        assert np.abs(one - other).max() > 1e-3


def ready_with(model: GPT, prompts: list[np.ndarray]) -> Decoder:
    decoder = Decoder(model)
    decoder.prefill(prompts)
    return decoder


def test_no_graph_is_kept() -> None:
    model = model_of()
    decoder = ready(model)
    assert isinstance(decoder.step([1, 2, 3, 4]), np.ndarray)
    assert isinstance(decoder.cache[0].keys, np.ndarray)


def test_memory_is_what_the_capacity_needs() -> None:
    model = model_of()
    decoder = ready(model, [3, 2], 10)
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in decoder.cache) == 4 * (2 * 3 * 24) * 2 * 10
    decoder.select([0, 1, 1])
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in decoder.cache) == 4 * (2 * 3 * 24) * 3 * 10


def test_two_decoders_of_one_model_do_not_meet() -> None:
    model = model_of()
    one, other = ready(model), ready(model, [2, 2])
    expected = [ready(model).step([1, 2, 3, 4]).copy(), ready(model, [2, 2]).step([5, 6]).copy()]
    first = one.step([1, 2, 3, 4])
    second = other.step([5, 6])
    assert np.array_equal(first, expected[0])
    assert np.array_equal(second, expected[1])


@pytest.mark.slow
def test_a_configuration_of_gpt2s_proportions() -> None:
    """Wider than the blocks of the products and longer than their tiles, with more ids than a chunk of work."""
    config = GPTConfig(vocab_size=2100, block_size=40, n_layer=2, n_head=4, n_embd=256)
    model = GPT(config, seed=3)
    for parameter in model.parameters():
        parameter.data += np.float32(0.03) * np.random.default_rng(parameter.size).standard_normal(
            parameter.shape, np.float32
        )
    together(model, prompts_of([20, 1, 7], 2100), 10, 1e-5)


# Rows that join -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 8])
@pytest.mark.parametrize("kind", [Decoder, Stepper])
def test_rows_join_and_leave(kind: type[Decoder], rows: int) -> None:
    """Beside rows that are under way, in reserved memory and without; as if all had been there from the start."""
    model, prompts = model_of(), prompts_of([5, 1, 12, 2])
    decoder, slow = kind(model), SlowDecoder(model, 24)
    decoder.reserve(rows)
    for prompt in prompts[:2]:
        decoder.join(prompt)
    slow.prefill(prompts[:2])
    decoder.step([3, 4])
    slow.step([3, 4])
    new = decoder.join(prompts[2], copies=2)
    assert np.abs(new - SlowDecoder(model, 24).prefill([prompts[2]])).max() < 1e-5
    assert decoder.lengths.tolist() == [6, 2, 12, 12]
    texts = [[*prompts[0], 3], [*prompts[1], 4], prompts[2], prompts[2]]
    for order in ([0, 1, 2, 3], [3, 1, 2], [2, 0]):
        decoder.select(order)
        ids = np.arange(len(order)) + 5
        texts = [[*texts[row], token] for row, token in zip(order, ids, strict=True)]
        expected = SlowDecoder(model, 24).prefill([np.array(text) for text in texts])
        assert np.abs(decoder.step(ids) - expected).max() < 1e-5


@pytest.mark.parametrize("kind", [Decoder, Stepper])
def test_a_reader_of_another_decoder_joins_one_without_rows(kind: type[Decoder]) -> None:
    model = model_of()
    (prompt,) = prompts_of([5])
    expected = kind(model).join(prompt)
    decoder = kind(model)
    assert len(decoder.join_all([])) == 0
    assert np.abs(decoder.join(kind(model).reader(prompt)) - expected).max() == 0
    assert decoder.step([3]).shape == (1, 31)


def test_reserved_memory_is_used() -> None:
    decoder = Decoder(model_of())
    decoder.reserve(4)
    memory = decoder.memory[0][0]
    for _ in range(3):
        for prompt in prompts_of([5, 1, 12, 2]):
            decoder.join(prompt)
        decoder.step([1, 2, 3, 4])
        decoder.select([3])
        decoder.select([])
    assert decoder.memory[0][0] is memory
    decoder.join([1], copies=5)  # more than that
    assert decoder.step([1] * 5).shape == (5, 31)


@pytest.mark.parametrize("kind", [Decoder, Stepper])
def test_a_row_that_cannot_join(kind: type[Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that are there stay, whatever goes wrong."""
    model = model_of()
    decoder, untouched = kind(model, 10), Decoder(model, 10)
    for one in (decoder, untouched):
        one.prefill([[1, 2], [3]])
    with pytest.raises(tg.errors.ShapeError, match="a prompt of 11 tokens is longer than the capacity, 10"):
        decoder.join([1] * 11)
    with pytest.raises(tg.errors.RangeError):
        decoder.join([31])
    with monkeypatch.context() as patched:
        failing = (JointPrompts, "__call__") if kind is Decoder else (model, "hidden")
        patched.setattr(*failing, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            decoder.join([1])
    assert np.abs(decoder.step([5, 6]) - untouched.step([5, 6])).max() < 1e-5
