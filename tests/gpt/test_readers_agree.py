"""Generation, scoring and evaluation of a model with an adapter, or with a user's own Linear, say the same.

At sizes at which the compiled decoder, its tiles and its chunks are used, from prompts to the end of the block: a
decoder that reads plain weights where a layer computes something else is right for the first token only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tinygpt import GPT, GPTConfig, nn
from tinygpt.generation import log_likelihood
from tinygpt.generation.one_pass import one_pass
from tinygpt.nn.lora import lora_layers
from tinygpt.training.evaluation import mean_loss

CONFIG = GPTConfig(vocab_size=700, block_size=48, n_layer=2, n_head=4, n_embd=128)
PROMPT, NEW = 17, 31


class Scaled(nn.Linear):
    """What people write: a Linear that does a little more."""

    def forward(self, x: Any) -> Any:
        return super().forward(x) * 1.7


def adapted(model: GPT) -> GPT:
    nn.add_lora(model, rank=8, alpha=32, targets=("c_attn", "c_proj", "c_fc"))
    rng = np.random.default_rng(7)
    for layer in lora_layers(model).values():
        layer.lora_B.data += 0.1 * rng.standard_normal(layer.lora_B.shape, np.float32)
    return model


def with_own_linear(model: GPT) -> GPT:
    for block in model.h:
        block.mlp.c_proj.__class__ = Scaled
    return model


def with_both(model: GPT) -> GPT:
    return adapted(with_own_linear(model))


def plain() -> GPT:
    model = GPT(CONFIG, seed=3).eval()
    rng = np.random.default_rng(5)
    for parameter in model.parameters():
        parameter.data += 0.05 * rng.standard_normal(parameter.shape, np.float32)
    return model


@pytest.mark.parametrize(
    ("change", "fast"), [(adapted, True), (with_own_linear, False), (with_both, False)], ids=["lora", "own", "both"]
)
def test_generate_log_likelihood_and_evaluation_agree(change: Callable[[GPT], GPT], fast: bool) -> None:
    model = change(plain())
    assert (one_pass(model) is not None) == fast
    prompts = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (3, PROMPT))
    found = model.generate(prompts, NEW, seed=1, return_details=True)
    assert found.sequences.shape == (3, PROMPT + NEW)
    for row, log_probs in zip(found.sequences, found.log_probs, strict=True):
        score = log_likelihood(model, row[PROMPT:], context=row[:PROMPT])
        np.testing.assert_allclose(log_probs, score.log_probs, rtol=0, atol=2e-4)
        targets = np.where(np.arange(1, len(row)) < PROMPT, -100, row[1:])
        loss = mean_loss(model, [(row[None, :-1], targets[None])])
        assert loss == pytest.approx(-score.total / NEW, abs=2e-4)
        with tg.no_grad():
            logits = model(row[None, :-1]).data[0, PROMPT - 1 :].astype(np.float64)  # (NEW, V)
        logits -= logits.max(axis=1, keepdims=True)
        right = logits[np.arange(NEW), row[PROMPT:]] - np.log(np.exp(logits).sum(axis=1))
        np.testing.assert_allclose(log_probs, right, rtol=0, atol=2e-4)
        other = log_likelihood(plain(), row[PROMPT:], context=row[:PROMPT])
        assert np.abs(other.log_probs - score.log_probs).max() > 0.1  # a reader of the plain weights would be noticed
