"""Learning-rate schedules against their formulas."""

import math

import pytest

from tinygpt import UsageError
from tinygpt.optim import schedules


def nanogpt(step, lr, min_lr, warmup, total):
    """The function of nanoGPT's training script, as a formula."""
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if step > total:
        return min_lr
    return min_lr + 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) * (lr - min_lr)


def test_cosine_is_nanogpts():
    schedule = schedules.Cosine(lr=1e-3, min_lr=1e-4, warmup_steps=10, total_steps=100)
    for step in range(130):
        assert schedule(step) == pytest.approx(nanogpt(step, 1e-3, 1e-4, 10, 100), rel=1e-12)
    assert schedule(10) == 1e-3
    assert schedule(100) == schedule(10**9) == 1e-4


def test_linear_and_constant():
    linear = schedules.make("linear", 1.0, 0.5, 1, 5)
    assert [linear(step) for step in range(7)] == [0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.5]
    constant = schedules.Constant(lr=1.0, warmup_steps=3)  # needs no end
    assert [constant(step) for step in (0, 1, 2, 3, 1000)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_inverse_square_root():
    schedule = schedules.make("inverse_sqrt", 1.0, 0.1, 3)
    assert [schedule(step) for step in (0, 2, 3, 15)] == [0.25, 0.75, 1.0, 0.5]
    assert schedule(10**6) == 0.1
    with pytest.raises(UsageError, match="InverseSquareRoot: step must be at least 0"):
        schedule(-1)


def test_warm_up_stable_decay():
    schedule = schedules.make("wsd", 1.0, 0.5, 2, 12, 0.4)
    assert [schedule(step) for step in (0, 1, 2, 8, 9, 10, 12, 99)] == pytest.approx(
        [1 / 3, 2 / 3, 1.0, 1.0, 0.875, 0.75, 0.5, 0.5]
    )
    assert schedules.WarmupStableDecay(lr=1.0, total_steps=10)(9) == pytest.approx(0.5)  # the default: the last fifth
    with pytest.raises(UsageError, match="decay_fraction must be above 0 and at most 1, not 0"):
        schedules.make("wsd", 1.0, total_steps=10, decay_fraction=0)
    with pytest.raises(UsageError, match="WarmupStableDecay: total_steps"):
        schedules.make("wsd", 1.0)


def test_a_run_that_is_all_warmup():
    schedule = schedules.Cosine(lr=1.0, min_lr=0.1, warmup_steps=5, total_steps=5)
    assert [schedule(step) for step in (4, 5)] == [pytest.approx(5 / 6), 0.1]
