"""The loop and the model: what the decoder is asked for, the oracle in its place, and how the model is left."""

import math

import numpy as np
import pytest

from tests.generation.helpers import CONFIG, PROMPTS, make, ragged
from tests.generation.slow_decoder import SlowDecoder
from tinygpt import GPT, UsageError
from tinygpt.generation import row_decoder, stream

SAMPLED = {"temperature": 1.3, "top_k": 9, "top_p": 0.95}
LONG = {"block_size": 32}  # room for everything


class Counting(SlowDecoder):
    """What the decoders of a call were asked to do."""

    def __init__(self, model, capacity):
        super().__init__(model, capacity)
        self.calls.append(("capacity", capacity))

    def prefill(self, prompts):
        self.calls.append(("prefill", [len(prompt) for prompt in prompts]))
        return super().prefill(prompts)

    def step(self, ids):
        self.calls.append(("step", len(ids)))
        return super().step(ids)


@pytest.fixture
def calls(monkeypatch):
    Counting.calls = []
    monkeypatch.setattr(row_decoder, "decoder_for", Counting)
    return Counting.calls


@pytest.mark.slow
def test_the_decoder_gives_what_the_whole_model_gives(monkeypatch):
    """With the oracle in its place everything stays the same, past the block and with rows that end."""
    model = make()
    options = {"seed": 4, "eos_token_id": 3, "pad_token_id": 0, "num_return_sequences": 2, **SAMPLED}
    cached = model.generate(ragged(), 12, **options)
    beams = model.generate(ragged(), 9, do_sample=False, num_beams=3, eos_token_id=3)
    monkeypatch.setattr(row_decoder, "decoder_for", SlowDecoder)
    np.testing.assert_array_equal(model.generate(ragged(), 12, **options), cached)
    np.testing.assert_array_equal(model.generate(ragged(), 9, do_sample=False, num_beams=3, eos_token_id=3), beams)


def test_each_prompt_is_read_once_and_ended_rows_cost_nothing(calls):
    model = make(**LONG)
    out = model.generate(ragged(), 8, seed=4, num_return_sequences=3, eos_token_id=[3, 5], return_details=True)
    assert calls[:2] == [("capacity", 4 + 8 - 1), ("prefill", [2, 4, 1, 3])]
    alive = [int((out.lengths > t).sum()) for t in range(1, out.lengths.max())]
    assert calls[2:] == [("step", count) for count in alive]
    assert min(alive) < 12


def test_past_the_block_only_the_long_rows_are_computed_anew(calls):
    make().generate([PROMPTS[0], PROMPTS[1, :2]], 7, seed=4, pad_token_id=0)
    assert calls == [
        ("capacity", 6), ("prefill", [4, 2]), ("step", 2), ("step", 2), ("step", 1), ("capacity", 6), ("prefill", [6]),
        ("step", 1), ("prefill", [6]), ("prefill", [6, 6]), ("prefill", [6, 6]),
    ]  # fmt: skip


def test_the_mode_and_the_graph_are_left_as_they_were():
    model = make()
    model.h[0].eval()
    modes = [m.training for m in model.modules()]
    state = model.generator.state_dict()
    tokens = stream(model, PROMPTS, 3, seed=0)
    next(tokens)
    assert [m.training for m in model.modules()] == modes
    assert not model(PROMPTS).is_leaf  # between two tokens a graph is made as usual
    model.generator.load_state_dict(state)
    list(tokens)
    assert [m.training for m in model.modules()] == modes
    assert model.generator.state_dict() == state  # dropout was off: no mask drawn
    assert all(p.grad is None for p in model.parameters())


def test_a_ruined_model_gets_a_sentence():
    model = make()
    model.ln_f.weight.data[0] = math.nan
    for options in ({}, {"do_sample": False}, {"do_sample": False, "num_beams": 2}):
        with pytest.raises(UsageError, match="logits are not finite"):
            model.generate(PROMPTS, 1, **options)


@pytest.mark.slow
def test_very_many_tokens_need_no_memory_beforehand():
    model = GPT(CONFIG)
    first = int(model.generate(PROMPTS[:1], 1, do_sample=False)[0, -1])
    assert model.generate(PROMPTS[:1], 10**12, do_sample=False, eos_token_id=first).shape == (1, 5)
    assert model.generate(PROMPTS[:1], 1100, seed=0).shape == (1, 1104)
