"""Models for the tests of generation: small, with opinions, and one whose probabilities are a table."""

from __future__ import annotations

import numpy as np

from tinygpt import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=13, block_size=6, n_layer=2, n_head=2, n_embd=16, dropout=0.5)
PROMPTS = np.random.default_rng(0).integers(0, 13, (5, 4))


def make(dtype=np.float64, **changes):
    """A model with opinions: random weights large enough that the next token is far from uniform."""
    model = GPT(GPTConfig(**{**CONFIG.to_dict(), **changes}), seed=1, dtype=dtype)
    for parameter in model.parameters():
        parameter.data += 0.2 * np.random.default_rng(parameter.size).standard_normal(parameter.shape)
    return model


def log_softmax(logits):
    """By the definition, in float64."""
    logits = np.asarray(logits, dtype=np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def next_log_probs(model, ids):
    """(V,) log-probabilities of the token after ids (T,), from the whole window, without a cache."""
    model.eval()
    return log_softmax(model(np.asarray(ids)[None, -model.config.block_size :]).data[0, -1])


def greedy_by_hand(model, ids, count):
    ids = list(ids)
    for _ in range(count):
        ids.append(int(next_log_probs(model, ids).argmax()))
    return ids


def ragged():
    """Four prompts of different length."""
    return [PROMPTS[0, :2], PROMPTS[1], PROMPTS[2, :1], PROMPTS[3, :3]]
