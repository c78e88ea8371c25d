"""A prompt read in pieces, beside rows that go on: as if read at once; pieces of another reader, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.generation.helpers import make
from tests.generation.slow_decoder import SlowDecoder
from tests.generation.test_decoder import SHAPE, packed_model
from tests.ops.cases.packed import FORMATS
from tinygpt.generation.decoder import Decoder
from tinygpt.generation.prompt_reader import PromptReader
from tinygpt.generation.stepper import Stepper

PROMPT = np.random.default_rng(0).integers(0, 31, 21)
CUTS = [[21], [8, 8, 5], [20, 1], [1] * 21, [16, 16]]
each_kind = pytest.mark.parametrize("kind", [Decoder, Stepper])


def read(reader: PromptReader, cut: list[int]) -> PromptReader:
    for count in cut:
        reader.read(count)
    return reader


@pytest.mark.parametrize("cut", CUTS)
@each_kind
def test_pieces_beside_rows_that_go_on(kind: type[Decoder], cut: list[int]) -> None:
    model = make(np.float32, **SHAPE)
    decoder, slow = kind(model), SlowDecoder(model, 24)
    texts = [[1, 2], [3]]
    decoder.prefill(texts)
    reader = decoder.reader(PROMPT)
    for number, count in enumerate(cut):
        reader.read(count)
        texts = [[*text, number] for text in texts] if len(texts[0]) < 20 else texts
        if len(texts[0]) > decoder.lengths[0]:
            decoder.step([number, number])
    assert reader.rest == 0
    assert np.abs(decoder.join(reader, copies=2) - slow.prefill([PROMPT])).max() < 1e-5
    assert decoder.lengths.tolist() == [*map(len, texts), 21, 21]
    texts = [[*text, 7] for text in [*texts, PROMPT, PROMPT]]
    expected = SlowDecoder(model, 24).prefill([np.array(text) for text in texts])
    assert np.abs(decoder.step([7] * 4) - expected).max() < 1e-5


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_what_another_reader_computed_changes_no_bit(form: Any) -> None:
    """A beginning in common, of one piece or two, then other tokens."""
    decoder = Decoder(packed_model(form))
    first = read(decoder.reader(PROMPT), [8, 8, 5])
    for known in (1, 2):
        prompt = PROMPT.copy()
        prompt[8 * known + 1 :] = 0
        expected = read(decoder.reader(prompt), [8, 8, 5])
        reader = decoder.reader(prompt)
        for i in range(known):
            reader.put(first.copy_of(8 * i, 8 * i + 8))
        assert reader.length == 8 * known
        read(reader, [8, 8, 5][known:])
        assert np.array_equal(decoder.join(reader).copy(), decoder.join(expected))
        for layer, other in zip(reader.cache or (), expected.cache or (), strict=True):
            assert np.array_equal(layer.keys, other.keys)
            assert np.array_equal(layer.values, other.values)


def test_a_copy_is_a_copy() -> None:
    decoder = Decoder(make(np.float32, **SHAPE))
    reader = read(decoder.reader(PROMPT), [8])
    span = reader.copy_of(0, 8)
    kept = [(keys.copy(), values.copy()) for keys, values in span]
    for layer in reader.cache or ():
        layer.keys[:], layer.values[:] = 0, 0
    assert all((a == c).all() and (b == d).all() for (a, b), (c, d) in zip(span, kept, strict=True))


def test_a_model_without_a_cache_has_nothing_to_share() -> None:
    decoder = Stepper(make(np.float32, **SHAPE))
    reader = read(decoder.reader(PROMPT), [8])
    assert reader.copy_of(0, 8) == []
    reader.put([])
    assert reader.rest == 13


@each_kind
def test_what_is_refused(kind: type[Decoder]) -> None:
    decoder = kind(make(np.float32, **SHAPE), 10)
    with pytest.raises(tg.errors.ShapeError, match="a prompt of 11 tokens is longer than the capacity, 10"):
        decoder.reader([1] * 11)
    with pytest.raises(tg.errors.RangeError):
        decoder.reader([31])
