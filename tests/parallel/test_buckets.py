"""Gradients summed over processes in buckets, and a sharded optimizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.parallel.together import needs_mpi, together
from tinygpt.errors import UsageError
from tinygpt.graph import mode
from tinygpt.parallel import Communicator, GradientBuckets, ShardedOptimizer

WORK = ("-m", "tests.parallel.roles")


def leaves(*shapes: tuple[int, ...]) -> list[tg.Tensor]:
    rng = np.random.default_rng(0)
    return [tg.tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=True) for shape in shapes]


# When a leaf is ready -------------------------------------------------------------------------------


def ready_order(loss: tg.Tensor) -> list[tg.Tensor]:
    found: list[tg.Tensor] = []
    mode.leaf_ready = found.append
    try:
        loss.backward()
    finally:
        mode.leaf_ready = None
    return found


def test_a_leaf_is_ready_after_its_last_contribution() -> None:
    a, b, c = leaves((4,), (4,), (4,))
    found = ready_order(((a * b).exp() * (a + c)).sum() + (a * a).sum())
    assert {id(leaf) for leaf in found} == {id(a), id(b), id(c)}
    assert len(found) == 3
    assert found[0] is c  # a is used in four places, the first of which comes last in the backward pass
    grads = [leaf.grad.copy() for leaf in (a, b, c)]
    for leaf in (a, b, c):
        leaf.grad = None
    (((a * b).exp() * (a + c)).sum() + (a * a).sum()).backward()
    assert all(np.array_equal(x, leaf.grad) for x, leaf in zip(grads, (a, b, c), strict=True))


def test_the_gradient_is_whole_when_the_leaf_is_ready() -> None:
    a, b = leaves((4,), (4,))
    seen: dict[int, np.ndarray] = {}
    mode.leaf_ready = lambda leaf: seen.update({id(leaf): leaf.grad.copy()})
    try:
        ((a * b).exp() * a + a).sum().backward()
    finally:
        mode.leaf_ready = None
    assert np.array_equal(seen[id(a)], a.grad)
    assert np.array_equal(seen[id(b)], b.grad)


def test_an_unused_output_contributes_nothing_but_counts() -> None:
    """A node behind an output that nobody used gets no gradient: its leaves must not be waited for."""
    (a,) = leaves((6,))
    first, _ = (a * 2.0).split(3, axis=0)
    assert ready_order((first * a[:3]).sum()) == [a]


# Where a gradient is made ---------------------------------------------------------------------------


def test_a_linear_layer_makes_its_gradient_in_the_room_for_it() -> None:
    """If its weight has none yet, and nowhere else: a second use is added, a leaf without room is as ever."""
    x, weight, other = leaves((5, 3), (3, 4), (3, 4))
    rooms = {id(weight): np.full((3, 4), 9.0, np.float32)}

    def gradients(wanted: bool, uses: int = 1) -> list[np.ndarray]:
        for leaf in (x, weight, other):
            leaf.grad = None
        mode.gradient_room = (lambda leaf: rooms.get(id(leaf))) if wanted else None
        try:
            loss = tg.ops.linear(x, other).sum()
            for factor in range(1, uses + 1):
                loss = loss + (tg.ops.linear(x * float(factor), weight) ** 2).sum()
            loss.backward()
        finally:
            mode.gradient_room = None
        return [leaf.grad for leaf in (x, weight, other)]

    for uses in (1, 2):
        expected, found = gradients(False, uses), gradients(True, uses)
        assert found[1] is rooms[id(weight)]
        assert expected[1] is not found[1]
        assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
    before = weight.grad = np.ones((3, 4), np.float32)
    mode.gradient_room = lambda leaf: rooms.get(id(leaf))
    try:
        tg.ops.linear(x, weight).sum().backward()
    finally:
        mode.gradient_room = None
    assert weight.grad is before
    assert np.array_equal(before, 1 + np.repeat(x.data.sum(0)[:, None], 4, 1))


def test_gradients_of_linear_layers_are_not_copied() -> None:
    x, weight, scale = leaves((40, 32), (32, 33), (33,))
    buckets = GradientBuckets([weight, scale], Communicator())
    for _ in range(2):
        weight.grad = scale.grad = None
        with buckets.watching():
            (tg.ops.linear(x, weight) * scale).sum().backward()
            home = buckets.homes[id(weight)]
            assert weight.grad is home
        buckets.finish()
        assert np.shares_memory(weight.grad, home)


# Buckets of one process -----------------------------------------------------------------------------


@pytest.mark.parametrize("bucket_bytes", [1, 40, 1 << 20])
def test_buckets_keep_the_gradient(bucket_bytes: int) -> None:
    parameters = leaves((3, 2), (5,), (2, 2), (1,))
    a, b, c, d = parameters

    def loss() -> tg.Tensor:
        return (a.sum() * b.sum() + (c * d).exp().sum()).exp()

    loss().backward()
    expected = [parameter.grad.copy() for parameter in parameters]
    buckets = GradientBuckets(parameters, Communicator(), bucket_bytes)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = None
        with buckets.watching():
            loss().backward()
        buckets.finish()
        for parameter, grad in zip(parameters, expected, strict=True):
            assert np.array_equal(parameter.grad, grad)
    assert len(buckets.buckets) == {1: 4, 40: 2, 1 << 20: 1}[bucket_bytes]
    assert sum(len(bucket.places) for bucket in buckets.buckets) == 4


def test_gradients_of_earlier_batches_are_in_the_sum() -> None:
    (a,) = leaves((3,))
    buckets = GradientBuckets([a], Communicator())
    (a * 2.0).sum().backward()
    with buckets.watching():
        (a * 3.0).sum().backward()
    buckets.finish()
    assert np.array_equal(a.grad, np.full(3, 5.0, np.float32))


def test_buckets_ask_the_others_for_nothing_before_the_first_step() -> None:
    """Process 0 makes its trainer before the others have what they need to make theirs."""

    class Counting(Communicator):
        asked = 0

        def rooms(self, sizes: Any) -> Any:
            self.asked += 1
            return super().rooms(sizes)

    named, team = [("a", leaves((4,))[0])], Counting()
    for scatter in (False, True):
        buckets = GradientBuckets([named[0][1]], team, scatter=scatter)
        if scatter:
            ShardedOptimizer(tg.optim.AdamW(named), buckets)
        assert team.asked == 0
    buckets.finish()  # without a backward pass: this process had nothing to compute
    assert team.asked == 1


def test_muon_is_not_sharded() -> None:
    parameters = [("h.0.mlp.weight", leaves((4, 4))[0])]
    buckets = GradientBuckets([parameters[0][1]], Communicator(), scatter=True)
    with pytest.raises(
        UsageError, match="Muon works on whole matrices, so its state can't be sharded: leave out --shard"
    ):
        ShardedOptimizer(tg.optim.Muon(parameters), buckets)


def test_a_state_that_does_not_fit() -> None:
    named = [("a", leaves((4,))[0])]
    sharded = ShardedOptimizer(tg.optim.AdamW(named), GradientBuckets([named[0][1]], Communicator(), scatter=True))
    good = sharded.state_dict()
    for state, words in (
        ({}, "expected the entries"),
        ({**good, "m": {}}, "nothing for the parameter 'a'"),
        ({**good, "v": {"a": np.zeros(5)}}, r"has shape \(5,\)"),
    ):
        with pytest.raises(UsageError, match=words):
            sharded.load_state_dict(state)


# Several processes ----------------------------------------------------------------------------------


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize(("processes", "ignored"), [(2, 0), (3, 1), (4, 0)])
def test_the_gradient_of_a_shared_batch(processes: int, ignored: int) -> None:
    arguments = (*WORK, "gradient_of_a_shared_batch", str(ignored))
    assert together(processes, *arguments) == together(processes, *arguments)  # bit for bit


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kind"), [(2, "adamw"), (3, "groups"), (4, "sgd"), (2, "lion")])
def test_sharded_updates(processes: int, kind: str) -> None:
    together(processes, *WORK, "sharded_updates", kind)


@needs_mpi
@pytest.mark.slow
def test_parameters_without_gradients() -> None:
    together(3, *WORK, "parameters_without_gradients")
