"""What was read stays in memory between calls: the same texts as without, and no token is computed twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.generation.helpers import make
from tests.generation.slow_decoder import SlowDecoder
from tinygpt.generation import PromptCache, generate, stream, stream_text
from tinygpt.generation.decoder import Decoder
from tinygpt.generation.stepper import Stepper
from tinygpt.tokenizers import CharTokenizer

TOKENIZER = CharTokenizer("abcdefghijklm")
WAYS = [{"do_sample": False}, {"temperature": 1.3, "top_k": 9}]


class Doubled(tg.nn.Linear):
    """A layer of a user's own, for which there is no cache."""

    def forward(self, x: Any) -> Any:
        return super().forward(x) * 2.0


def model_of(kind: type[Decoder], **changes: Any) -> Any:
    model = make(**changes)
    if kind is Stepper:
        model.h[0].mlp.c_fc = Doubled(16, 64, dtype=np.float64)
    assert type(PromptCache(model)._decoder) is kind
    return model


def dialogue(model: Any, cache: PromptCache | None, options: dict[str, Any]) -> tuple[list[list[int]], list[int]]:
    """Five turns of two new tokens and five of an answer: the texts, and how many tokens were read for each."""
    text, texts, read = np.array([1, 2, 3]), [], []
    for turn in range(5):
        text = generate(model, text[None], 5, seed=turn, prompt_cache=cache, **options)[0]
        texts.append(text.tolist())
        text = np.append(text, [turn, 7])
        read.append(0 if cache is None else cache.tokens_read)
    return texts, read


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("kind", [Decoder, Stepper])
def test_a_dialogue_reads_what_is_new(kind: type[Decoder], options: dict[str, Any]) -> None:
    model = model_of(kind, block_size=40)
    texts, read = dialogue(model, PromptCache(model), options)
    assert texts == dialogue(model, None, options)[0]
    assert read == [3, 3, 3, 3, 3]  # the last token of an answer was chosen, not read


@pytest.mark.parametrize("options", WAYS)
def test_past_the_block(options: dict[str, Any]) -> None:
    """The window slides, and later prompts are longer than the block."""
    model = model_of(Decoder, block_size=16)
    cache = PromptCache(model)
    texts, read = dialogue(model, cache, options)
    assert texts == dialogue(model, None, options)[0]
    assert read[:2] == [3, 3]
    assert len(cache.ids) == 16


@pytest.mark.parametrize("kind", [Decoder, Stepper])
def test_what_is_shared_is_found(kind: type[Decoder]) -> None:
    """A last turn that was taken back, another beginning, the same prompt again, one that is part of the last."""
    model = model_of(kind, block_size=40)
    cache = PromptCache(model)
    for prompt, kept in [
        ([1, 2, 3, 4, 5, 6], 0),
        ([1, 2, 3, 9, 9, 9, 9], 3),
        ([1, 2, 3, 9, 9, 9, 9], 6),
        ([1, 2, 3], 2),
        ([5, 2, 3], 0),
        ([5], 0),
    ]:
        out = generate(model, [prompt], 4, do_sample=False, prompt_cache=cache)
        np.testing.assert_array_equal(out, generate(model, [prompt], 4, do_sample=False))
        assert (cache.tokens_kept, cache.tokens_read) == (kept, len(prompt) - kept), prompt
        assert cache.ids.tolist() == out[0, :-1].tolist()
    cache.clear()
    assert (len(cache.ids), cache.tokens_kept, cache.tokens_read) == (0, 0, 0)
    np.testing.assert_array_equal(generate(model, [[5]], 4, do_sample=False, prompt_cache=cache), out)


def test_streams_take_it() -> None:
    model = model_of(Decoder, block_size=40)
    cache, prompt = PromptCache(model), "abcabc"
    words = "".join(stream_text(model, TOKENIZER, prompt, 6, seed=3, prompt_cache=cache))
    assert words == "".join(stream_text(model, TOKENIZER, prompt, 6, seed=3))
    ids = TOKENIZER.encode(prompt + words)
    new = np.concatenate(list(stream(model, ids[None], 3, seed=1, prompt_cache=cache)))
    np.testing.assert_array_equal(new, generate(model, ids[None], 3, seed=1)[0, len(ids) :])
    assert cache.tokens_read == 1


@pytest.mark.parametrize("kind", [Decoder, Stepper])
@pytest.mark.parametrize("when", ["a new text is read", "more is read", "a step"])
def test_an_interrupt_anywhere_leaves_what_is_true(
    kind: type[Decoder], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(kind, block_size=40)
    cache = PromptCache(model)
    generate(model, [[1, 2, 3]], 4, do_sample=False, prompt_cache=cache)
    prompt = {"a new text is read": [4, 5, 6], "more is read": [1, 2, 5, 6], "a step": [1, 2, 5]}[when]

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(model, "hidden", interrupted)
        patched.setattr(cache._decoder, "_extend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(model, [prompt], 4, do_sample=False, prompt_cache=cache)
    assert cache.ids.tolist() == ([] if when == "a new text is read" else [1, 2])
    expected = generate(model, [prompt], 4, do_sample=False)
    np.testing.assert_array_equal(generate(model, [prompt], 4, do_sample=False, prompt_cache=cache), expected)


def test_mistakes_are_one_sentence() -> None:
    model = make()
    for cache, options, words in [
        ({}, {}, "prompt_cache must be a PromptCache, not dict"),
        (PromptCache(make()), {}, "the prompt_cache belongs to another model"),
        (PromptCache(model), {"num_return_sequences": 2}, "prompt_cache keeps one text"),
        (PromptCache(model), {"num_beams": 2}, "prompt_cache keeps one text"),
    ]:
        with pytest.raises(tg.UsageError, match=words):
            generate(model, [[1, 2]], 2, prompt_cache=cache, **options)
    with pytest.raises(tg.UsageError, match="prompt_cache keeps one text"):
        generate(model, [[1, 2], [3, 4]], 2, prompt_cache=PromptCache(model))


# The decoder's part -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Decoder, Stepper])
@pytest.mark.parametrize("form", [None, "int8"])
def test_rows_are_shortened_and_go_on(kind: type[Decoder], form: str | None) -> None:
    """Beside rows that stay as they are; several tokens at once equal one after another."""
    model = make(np.float32, block_size=16)
    model = model if form is None else model.pack(form)
    decoder, slow = kind(model), SlowDecoder(model, 16)
    decoder.prefill([[1, 2, 3], [4, 5, 6, 7, 8], [9]])
    decoder.truncate([3, 2, 1])
    new = decoder.append(1, [1, 9, 3])
    assert np.abs(new - slow.prefill([[4, 5, 1, 9, 3]])).max() < 1e-5
    assert decoder.lengths.tolist() == [3, 5, 1]
    slow.prefill([[1, 2, 3], [4, 5, 1, 9, 3], [9]])
    assert np.abs(decoder.step([7, 8, 9]) - slow.step([7, 8, 9])).max() < 1e-5
    decoder.truncate([0, 6, 2])
    assert np.abs(decoder.append(0, [5, 6]) - slow.prefill([[5, 6]])).max() < 1e-5


@pytest.mark.parametrize("kind", [Decoder, Stepper])
def test_mistakes_change_nothing(kind: type[Decoder]) -> None:
    model = make(np.float32, block_size=16)
    decoder, untouched = kind(model, 6), kind(model, 6)
    for one in (decoder, untouched):
        one.prefill([[1, 2], [3, 4, 5]])
    for call, words in [
        (lambda: decoder.append(2, [1]), r"Decoder.append: row must be in 0 .. 1, not 2"),
        (lambda: decoder.append(1, [1, 2, 3, 4]), "4 tokens don't fit into row 1: it has 3, and the capacity is 6"),
        (lambda: decoder.append(0, [13]), "ids must be in 0 .. 12"),
        (lambda: decoder.append(0, []), "at least one token"),
        (lambda: decoder.truncate([1]), "expected 2 lengths, one a row, not 1"),
        (lambda: decoder.truncate([1, 4]), "can't be kept"),
        (lambda: decoder.truncate([-1, 1]), "can't be kept"),
    ]:
        with pytest.raises(tg.UsageError, match=words):
            call()
    assert np.abs(decoder.step([5, 6]) - untouched.step([5, 6])).max() == 0
