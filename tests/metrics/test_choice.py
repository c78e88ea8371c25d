"""Multiple choice by log-likelihood, and the requests of lm-evaluation-harness."""

from __future__ import annotations

import sys
import types
from typing import Any, NamedTuple

import numpy as np
import pytest

import tinygpt as tg
from tests.generation.helpers import log_softmax
from tinygpt import metrics
from tinygpt.errors import MissingExtraError
from tinygpt.generation import log_likelihood
from tinygpt.interop.harness import Requests, harness_model
from tinygpt.metrics.choice import encode_pair
from tinygpt.tokenizers import ByteTokenizer, CharTokenizer

CONFIG = tg.GPTConfig(vocab_size=257, block_size=24, n_layer=2, n_head=2, n_embd=16)


class Request(NamedTuple):
    args: tuple[Any, ...]


@pytest.fixture(scope="module")
def model() -> tg.GPT:
    model = tg.GPT(CONFIG, seed=3, dtype=np.float64).eval()
    rng = np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.data[...] += 0.2 * rng.standard_normal(parameter.shape)
    return model


TOKENIZER = ByteTokenizer()


def test_the_log_likelihoods_are_those_of_the_logits(model: tg.GPT) -> None:
    found = metrics.multiple_choice(model, TOKENIZER, "the cat", [" sat", " is here"])
    for i, choice in enumerate((" sat", " is here")):
        ids = TOKENIZER.encode("the cat" + choice)
        logits = log_softmax(model(ids[None, :-1]).data[0])
        n = len(choice)
        wanted = logits[np.arange(len(ids) - 1), ids[1:]][-n:].sum()
        assert found.total[i] == pytest.approx(wanted, abs=1e-9)
        assert found.per_character[i] == pytest.approx(wanted / n, abs=1e-9)
    assert found.best == int(found.total.argmax())
    assert found.best_per_character == int(found.per_character.argmax())


def test_length_matters_to_the_sum_alone(model: tg.GPT) -> None:
    """Of a choice and the same twice over the short one wins by the sum; by characters either may."""
    short, long = "ab", "abab"
    found = metrics.multiple_choice(model, TOKENIZER, "x", [long, short])
    assert found.best == 1
    assert abs(found.per_character[0] - found.per_character[1]) < abs(found.total[0] - found.total[1])


def test_spaces_at_the_end_of_the_context_go_to_what_follows() -> None:
    before, ids = encode_pair(TOKENIZER, "a cat  ", "sat")
    assert TOKENIZER.decode(before) == "a cat"
    assert TOKENIZER.decode(ids) == "  sat"


def test_without_a_context_it_begins_like_a_text(model: tg.GPT) -> None:
    begin = TOKENIZER.eos_token_id if TOKENIZER.bos_token_id is None else TOKENIZER.bos_token_id
    before, ids = encode_pair(TOKENIZER, " ", "sat")
    assert list(before) == ([] if begin is None else [begin])
    assert TOKENIZER.decode(ids) == " sat"
    assert len(metrics.multiple_choice(model, TOKENIZER, "", ["ab", "cd"]).total) == 2


def test_a_long_context_is_cut_on_the_left(model: tg.GPT) -> None:
    long = metrics.multiple_choice(model, TOKENIZER, "y" * 40 + "the cat", [" sat"]).total[0]
    ids = TOKENIZER.encode("y" * 40 + "the cat sat")[-25:]
    logits = log_softmax(model(ids[None, :-1]).data[0])
    assert long == pytest.approx(logits[np.arange(24), ids[1:]][-4:].sum(), abs=1e-9)


def test_last_words(model: tg.GPT) -> None:
    """A text that the model wrote itself, greedily, ends in a word of its first choice."""
    prompt = "once more"
    ids = model.generate(TOKENIZER.encode(prompt)[None], 8, do_sample=False)[0]
    choices = log_likelihood(model, ids[9:], context=ids[:9], greedy=True)
    assert choices.greedy is not None
    assert choices.greedy.all()
    other = ids.copy()
    other[12] = (other[12] + 1) % 256
    again = log_likelihood(model, other[9:], context=other[:9], greedy=True)
    assert again.greedy is not None
    assert again.greedy[:3].all()
    assert not again.greedy[3]
    assert log_likelihood(model, other).greedy is None
    found = metrics.last_words(model, TOKENIZER, ["we saw the sea", "it was a day "])
    totals = [
        log_likelihood(model, TOKENIZER.encode(word), context=TOKENIZER.encode(text)).total
        for text, word in (("we saw the", " sea"), ("it was a", " day"))
    ]
    assert found["perplexity"] == pytest.approx(np.exp(-np.mean(totals)))
    assert 0 <= found["accuracy"] <= 1


REFUSED: list[tuple[Any, str]] = [
    (lambda m: metrics.multiple_choice(m, TOKENIZER, "a", []), "choices must be a list of texts"),
    (lambda m: metrics.multiple_choice(m, TOKENIZER, "a", "bc"), "choices must be a list of texts"),
    (lambda m: metrics.multiple_choice(m, TOKENIZER, "a", ["b", ""]), "none of them empty"),
    (lambda m: metrics.last_words(m, TOKENIZER, ["one"]), "text 0 must have two words or more"),
    (lambda m: metrics.last_words(m, TOKENIZER, []), "there is nothing to measure"),
    (lambda m: metrics.multiple_choice(m, CharTokenizer("ab"), "a", ["z"]), "'z'"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_mistake_gets_a_sentence(call: Any, words: str, model: tg.GPT) -> None:
    with pytest.raises(tg.UsageError, match=words):
        call(model)


# The harness ------------------------------------------------------------------------------------------


def test_the_harness_gets_what_it_asks_for(model: tg.GPT) -> None:
    requests = Requests(model, TOKENIZER)
    (total, greedy), (again, _) = requests.loglikelihood([Request(("the cat", " sat")), Request(("the cat ", "sat"))])
    assert total == again == metrics.multiple_choice(model, TOKENIZER, "the cat", [" sat"]).total[0]
    assert isinstance(greedy, bool)
    assert isinstance(total, float)
    (whole,) = requests.loglikelihood_rolling([Request(("a longer text than the block of this model",))])
    ids = TOKENIZER.encode("a longer text than the block of this model")
    begin = [] if TOKENIZER.eos_token_id is None else [TOKENIZER.eos_token_id]
    assert whole == pytest.approx(log_likelihood(model, ids, begin, stride=24).total)
    options = {"until": ["\n"], "max_gen_toks": 6}
    (text,) = requests.generate_until([Request(("the cat", options))])
    wanted = model.generate(TOKENIZER.encode("the cat")[None], 6, do_sample=False)[0, 7:]
    assert text == TOKENIZER.token_bytes(wanted).decode("utf-8", errors="replace").partition("\n")[0]
    stop = text[1]
    (cut,) = requests.generate_until([Request(("the cat", {"until": stop, "max_gen_toks": 6}))])
    assert cut == text.partition(stop)[0]
    (long,) = requests.generate_until([Request(("y" * 30 + "the cat", options))])  # 24 positions, 6 of them for the new
    wanted = model.generate(TOKENIZER.encode("y" * 30 + "the cat")[None, -18:], 6, do_sample=False)[0, 18:]
    assert long == TOKENIZER.token_bytes(wanted).decode("utf-8", errors="replace").partition("\n")[0]
    sampled = {"until": None, "max_gen_toks": 3, "do_sample": True, "temperature": 0.9}
    assert len(requests.generate_until([Request(("y" * 50, sampled))])) == 1


def test_the_adapter_is_a_model_of_the_harness(model: tg.GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the harness: the class that it looks for is a base of ours, and is initialized."""

    class LM:
        def __init__(self) -> None:
            self.rank = 0

    module = types.ModuleType("lm_eval.api.model")
    module.LM = LM  # type: ignore[attr-defined]
    for name in ("lm_eval", "lm_eval.api"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", module)
    adapter = harness_model(model, TOKENIZER)
    assert isinstance(adapter, LM)
    assert adapter.rank == 0
    assert adapter.loglikelihood([Request(("a", "b"))])
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(MissingExtraError, match="lm-evaluation-harness needs the package 'lm_eval'"):
        harness_model(model, TOKENIZER)
