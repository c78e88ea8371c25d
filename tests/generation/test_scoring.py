"""Scores of a text: every token once, with the promised context, and the numbers that the model itself gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.data import open_tokens
from tinygpt.errors import UsageError
from tinygpt.generation import log_likelihood, perplexity, score
from tinygpt.generation.scoring import Windows
from tinygpt.gpt import GPT, GPTConfig
from tinygpt.graph import no_grad
from tinygpt.training import evaluate

V, BLOCK = 13, 8
TOKENS = np.random.default_rng(0).integers(0, V, 60).astype(np.uint16)


@pytest.fixture(scope="module")
def gpt() -> GPT:
    """Not an untrained one: its probabilities are far from equal, and differ with every token of the context."""
    model = GPT(GPTConfig(V, BLOCK, n_layer=2, n_head=2, n_embd=16, dropout=0.2), seed=1, dtype="float64")
    rng = np.random.default_rng(2)
    for parameter in model.parameters():
        parameter.data = parameter.data + rng.normal(0, 0.3, parameter.shape)
    return model


def expected(model: GPT, tokens: np.ndarray, begin: int, place: int) -> float:
    """log p(tokens[place] | tokens[begin:place]), by the model and a softmax written out."""
    model.eval()
    with no_grad():
        logits = model(tokens[None, begin:place].astype(np.int64)).data[0, -1]
    return float(logits[tokens[place]] - np.log(np.exp(logits).sum()))


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("length", [2, 7, 8, 9, 10, 25, 60])
def test_each_token_is_scored_from_its_window(gpt: GPT, stride: int, length: int) -> None:
    tokens = TOKENS[:length]
    total = 0.0
    for place in range(1, length):
        index = max(0, -(-(place - BLOCK) // stride))  # the first window whose predictions reach that far
        total -= expected(gpt, tokens, index * stride, place)
    for batch_size in (1, 3, 100):
        found = score(gpt, tokens, stride, batch_size=batch_size)
        assert found.count == length - 1
        assert found.total == pytest.approx(total, abs=1e-9)
    assert found.loss == found.total / found.count
    assert perplexity(gpt, tokens, stride) == pytest.approx(np.exp(total / (length - 1)), rel=1e-9)


@given(st.integers(2, 40), st.integers(1, 9), st.data())
def test_every_token_but_the_first_is_a_target_once(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    batches = Windows(np.arange(length), window, stride, data.draw(st.integers(1, 5)))
    seen = []
    for inputs, targets in batches:
        assert inputs.shape == targets.shape
        for row_inputs, row in zip(inputs, targets, strict=True):
            scored = np.flatnonzero(row != -100)
            assert (row_inputs[scored] == row[scored] - 1).all()
            context = scored + 1  # tokens before it, itself not counted
            assert all(n >= min(window - stride + 1, place) for n, place in zip(context, row[scored], strict=True))
            seen += row[scored].tolist()
    assert seen == list(range(1, length))
    assert len(list(batches)) == len(batches)


def test_a_stride_of_the_block_is_the_evaluation_of_training(gpt: GPT, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", TOKENS)
    tokens = open_tokens(tmp_path / "tokens.npy")  # memory-mapped
    for stride in (None, BLOCK):
        assert score(gpt, tokens, stride).loss == pytest.approx(evaluate(gpt, tokens, batch_size=3), rel=1e-12)
    assert score(gpt, tokens, 1).loss != pytest.approx(evaluate(gpt, tokens), rel=1e-3)


@pytest.mark.slow
def test_more_context_is_what_a_small_stride_is_for() -> None:
    """A model trained to copy the token of three places before: a short context does not have it."""
    from tinygpt.optim import AdamW

    model = GPT(GPTConfig(5, 6, n_layer=2, n_head=2, n_embd=16), seed=0)
    rng = np.random.default_rng(0)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        rows = np.tile(rng.integers(0, 5, (16, 3)), 3)[:, :7]
        loss = model.loss(rows[:, :-1], rows[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tokens = np.tile(rng.integers(0, 5, 3), 30)
    losses = [score(model, tokens, stride).loss for stride in (6, 3, 1)]
    assert losses[0] > 2 * max(losses[1:])  # strides of 3 and 1 both leave three tokens or more


def test_a_shorter_window(gpt: GPT) -> None:
    found = score(gpt, TOKENS, 2, window=5)
    total = sum(expected(gpt, TOKENS, max(0, -(-(place - 5) // 2)) * 2, place) for place in range(1, len(TOKENS)))
    assert found.total == pytest.approx(-total, abs=1e-9)


# Log-likelihood ---------------------------------------------------------------------------------


def test_of_a_text_and_of_a_continuation(gpt: GPT) -> None:
    ids = TOKENS[:8]
    alone = log_likelihood(gpt, ids)
    assert alone.log_probs == pytest.approx([expected(gpt, ids, 0, place) for place in range(1, 8)], abs=1e-9)
    assert alone.total == pytest.approx(alone.log_probs.sum())
    assert alone.perplexity == pytest.approx(np.exp(-alone.log_probs.mean()))
    after = log_likelihood(gpt, ids[3:].tolist(), context=ids[:3])
    assert after.log_probs == pytest.approx(alone.log_probs[2:], abs=1e-9)
    # A probability distribution: over all continuations it adds up to 1.
    assert sum(np.exp(log_likelihood(gpt, [i], context=ids).total) for i in range(V)) == pytest.approx(1.0)


def test_of_a_continuation_of_a_long_context(gpt: GPT) -> None:
    """One window, and the most context that fits with it."""
    for count in (1, 4, 8):
        found = log_likelihood(gpt, TOKENS[40 : 40 + count], context=TOKENS[:40])
        begin = 40 + count - 1 - BLOCK
        wanted = [expected(gpt, TOKENS, begin, place) for place in range(40, 40 + count)]
        assert found.log_probs == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("stride", [None, 1, 8])
def test_of_more_than_a_block(gpt: GPT, stride: int | None) -> None:
    whole = log_likelihood(gpt, TOKENS, stride=stride)
    assert whole.log_probs.shape == (59,)
    assert -whole.total == pytest.approx(score(gpt, TOKENS, stride or BLOCK // 2).total, abs=1e-9)
    after = log_likelihood(gpt, TOKENS[20:], context=TOKENS[:20], stride=stride)
    assert after.log_probs.shape == (40,)
    assert after.log_probs[0] == pytest.approx(expected(gpt, TOKENS, 20 - BLOCK, 20), abs=1e-9)


def test_float32_and_the_mode_of_the_model(gpt: GPT) -> None:
    model = GPT(GPTConfig(V, BLOCK, 1, 2, 16, dropout=0.5), seed=3)
    model.h[0].mlp.eval()
    modes = [module.training for module in model.modules()]
    first, again = log_likelihood(model, TOKENS), log_likelihood(model, TOKENS)
    assert first.log_probs.dtype == np.float64
    np.testing.assert_array_equal(first.log_probs, again.log_probs)  # no dropout
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("work", "sentence"),
    [
        (lambda model: log_likelihood(model, [3]), "nothing to score"),
        (lambda model: log_likelihood(model, [], context=[3]), "nothing to score"),
        (lambda model: log_likelihood(model, [1, V]), f"ids must be in 0 .. {V - 1}"),
        (lambda model: log_likelihood(model, [1, 2], context=[-1]), "ids must be in 0"),
        (lambda model: log_likelihood(model, [[1, 2]]), r"tokens must be integers of shape \(N,\)"),
        (lambda model: log_likelihood(model, [1.5, 2]), "tokens must be integers"),
        (lambda model: log_likelihood(model, [1, 2], stride=0), "stride must be at least 1"),
        (lambda model: perplexity(model, TOKENS[:1]), "needs at least two tokens"),
        (lambda model: perplexity(model, np.array([1, 2, V])), f"ids must be in 0 .. {V - 1}"),
        (lambda model: perplexity(model, TOKENS, stride=9), "stride must be at most window=8, not 9"),
        (lambda model: perplexity(model, TOKENS, stride=1.5), "whole number"),
        (lambda model: perplexity(model, TOKENS, window=9), "longer than this model's block_size of 8"),
        (lambda model: perplexity(model, TOKENS, batch_size=0), "batch_size must be at least 1"),
    ],
)
def test_mistakes_get_a_sentence(gpt: GPT, work: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        work(gpt)
