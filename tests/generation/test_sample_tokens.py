"""Tokens drawn where the logits are (`tinygpt/ops/sample_tokens.py`) are those that the host's sampler draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinygpt.generation import GenerationConfig
from tinygpt.generation.processors import Rows
from tinygpt.generation.token_sampler import TokenSampler, Uniforms
from tinygpt.ops.sample_tokens import UNIT, sample_tokens

OPTIONS: list[dict[str, Any]] = [
    {}, {"temperature": 0.7}, {"top_k": 1}, {"top_k": 20}, {"top_p": 0.9}, {"top_p": 1e-3}, {"temperature": 0.0},
    {"temperature": 1.5, "top_k": 30, "top_p": 0.6}, {"temperature": 1e-300}, {"top_p": 1e-18}, {"top_k": 1000},
]  # fmt: skip


def drawn(logits: np.ndarray, seed: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The host's tokens, and those of `sample_tokens`."""
    config = GenerationConfig(**{"do_sample": True, **options})
    numbers, R = Uniforms(seed, len(logits)), len(logits)
    sampler = TokenSampler(config, [], numbers)
    assert sampler.draws_on_device
    host = sampler(Rows([[0]] * R, 3), logits, np.arange(R)).ids
    number = (numbers(3) / UNIT).astype(np.int64)
    temperature = 0.0 if config.greedy else config.temperature
    there = sample_tokens(
        logits, number, logits.shape[1], temperature, config.top_k or 0, 1.0 if config.top_p is None else config.top_p
    )
    return host, there


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("V", [1, 2, 50, 700])
def test_both_draw_the_same_tokens(V: int, options: dict[str, Any]) -> None:
    """Logits that all differ, and logits of which many are equal, where the lower id is dropped first."""
    rng = np.random.default_rng(V)
    for seed in range(3):
        for logits in (3 * rng.standard_normal((40, V)), rng.integers(-4, 5, (40, V)) / 2.0):
            host, there = drawn(logits.astype(np.float32), seed, **options)
            assert np.array_equal(host, there)


def test_all_tokens_and_none_but_those_that_are_kept() -> None:
    logits = np.zeros((4000, 5), np.float32)
    logits[:, 2] = -np.float32(1e30)
    assert set(drawn(logits, 0)[1].tolist()) == {0, 1, 3, 4}
    assert set(drawn(logits, 0, top_p=0.5)[1].tolist()) == {3, 4}


def test_what_keeps_a_sampler_on_the_host() -> None:
    for options, details in (({"min_p": 0.1}, False), ({"typical_p": 0.5}, False), ({}, True)):
        assert not TokenSampler(GenerationConfig(do_sample=True, **options), [], None, details).draws_on_device
    assert not TokenSampler(GenerationConfig(do_sample=True), [lambda rows, logits: logits], None).draws_on_device
