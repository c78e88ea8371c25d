"""The gradient of a batch that the processes share, and the updates that a sharded optimizer makes of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

import tinygpt as tg
from tests.parallel.roles import digest, work
from tinygpt.graph import no_grad
from tinygpt.parallel import Communicator, GradientBuckets, ShardedOptimizer

SHAPE = {"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.2, "bias": True}
ROWS = 12  # divisible by 1, 2, 3 and 4 processes


def batch_of(step: int, ignored: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    inputs = rng.integers(0, 11, (ROWS, 8))
    targets = (3 * inputs + 1) % 11
    if ignored:  # most targets of the first rows, all of the first two, so that the processes have different counts
        targets[:2] = -100
        targets[2:5, 2:] = -100
    return inputs, targets


def gradients(team: Communicator, model: Any, buckets: GradientBuckets, step: int, ignored: bool) -> None:
    """The gradient of the mean loss over all targets of a batch that the processes share."""
    inputs, targets = batch_of(step, ignored)
    begin, end = (ROWS * rank // team.size for rank in (team.rank, team.rank + 1))
    model.generator.rows_before = begin
    mine, every = (targets[begin:end] != -100).sum(), (targets != -100).sum()
    with buckets.watching():
        if mine:
            model.loss(inputs[begin:end], targets[begin:end]).backward(np.float32(mine / every))
        else:
            model.generator.stream += model.streams_of_a_pass  # the masks that the others draw
    buckets.finish()


@work
def gradient_of_a_shared_batch(team: Communicator, ignored: str) -> None:
    """The gradient does not depend on how many processes share the batch, dropout and -100 included."""
    found = []
    for communicator in (team, Communicator()):
        model = tg.GPT(tg.GPTConfig(vocab_size=11, **SHAPE), seed=3).train()
        before = model.generator.stream
        model.loss(*batch_of(0, False))
        model.streams_of_a_pass = model.generator.stream - before
        buckets = GradientBuckets(model.parameters(), communicator, bucket_bytes=4000)
        for step in (0, 1):
            for parameter in model.parameters():
                parameter.grad = None
            gradients(communicator, model, buckets, step, bool(int(ignored)))
        found.append([parameter.grad.copy() for parameter in model.parameters()])
        if communicator is team:
            assert len(buckets.buckets) > 3
            early = buckets.early
    hashes = team.gather_values(digest(*found[0]))
    assert len(set(hashes)) == 1, "the processes have different gradients"
    largest = max(np.abs(gradient).max() for gradient in found[1])
    for ours, alone in zip(*found, strict=True):
        assert np.abs(ours - alone).max() <= 2e-6 * largest
    if not int(ignored):
        assert early >= len(buckets.buckets) - 1, "sums did not start during the backward pass"
    print(json.dumps({"hash": hashes[0]}) if team.rank == 0 else "", end="")


@work
def sharded_updates(team: Communicator, kind: str) -> None:
    """A sharded optimizer makes the updates of a whole one, and its state can be taken over by one."""
    make = {
        "adamw": lambda named: tg.optim.AdamW(named, lr=1e-2, weight_decay=0.1, l1=1e-4),
        "lion": lambda named: tg.optim.Lion(named, lr=1e-3),
        "sgd": lambda named: tg.optim.SGD(named, lr=0.1, momentum=0.9),
        "groups": lambda named: tg.optim.AdamW(tg.optim.layer_decay(named, 0.5), lr=1e-2),
    }[kind]
    models = [tg.GPT(tg.GPTConfig(vocab_size=11, **SHAPE), seed=3).train() for _ in range(2)]
    named = [list(model.named_parameters()) for model in models]
    buckets = [
        GradientBuckets(model.parameters(), team, 4000, scatter)
        for model, scatter in zip(models, (False, True), strict=True)
    ]
    whole, sharded = make(named[0]), ShardedOptimizer(make(named[1]), buckets[1])
    full = sum(array.nbytes for slot in whole.slots for array in slot.state.values())
    assert abs(sharded.state_bytes * team.size / full - 1) < 0.05, "the state is not shared out"
    norm = 0.0
    for step in range(3):
        for model, its_buckets, optimizer in zip(models, buckets, (whole, sharded), strict=True):
            inputs, targets = batch_of(step, False)
            begin, end = (ROWS * rank // team.size for rank in (team.rank, team.rank + 1))
            model.generator.rows_before = begin
            optimizer.zero_grad()
            with its_buckets.watching():
                model.loss(inputs[begin:end], targets[begin:end]).backward(np.float32(1 / team.size))
            if optimizer is sharded:
                sharded.finish()
                assert np.isclose(sharded.grad_norm(), norm, rtol=1e-6)
            else:
                its_buckets.finish()
                norm = tg.optim.grad_norm(model.parameters())
            optimizer.step(grad_scale=0.7)
    for (name, ours), (_, theirs) in zip(named[1], named[0], strict=True):
        assert np.allclose(ours.data, theirs.data, rtol=1e-5, atol=1e-6), name
    state, expected = sharded.state_dict(), whole.state_dict()
    assert state["step"] == expected["step"]
    assert {k: set(v) for k, v in state.items()} == {k: set(v) for k, v in expected.items()}
    for key in set(state) - {"step"}:
        for name, array in state[key].items():
            assert np.allclose(array, expected[key][name], rtol=1e-4, atol=1e-6), (key, name)
    whole.load_state_dict(state)
    sharded.load_state_dict(expected)
    again = sharded.state_dict()
    assert all(np.array_equal(again[key][name], expected[key][name]) for key in set(state) for name in state[key])


@work
def parameters_without_gradients(team: Communicator) -> None:
    """A parameter that no process used stays without a gradient; one that some used gets their sum."""
    a, b, c = (tg.tensor(np.ones(3, np.float32), requires_grad=True) for _ in range(3))
    buckets = GradientBuckets([a, b, c], team)
    for _ in range(2):
        for parameter in (a, b, c):
            parameter.grad = None
        with buckets.watching():
            loss = (a * (team.rank + 1.0)).sum()
            if team.rank == team.size - 1:
                loss = loss + (b * 2.0).sum() + (a * 1.0).sum()  # a is used twice here
            loss.backward()
        buckets.finish()
        assert np.array_equal(a.grad, np.full(3, sum(range(1, team.size + 1)) + 1.0, np.float32))
        assert np.array_equal(b.grad, np.full(3, 2.0, np.float32))
        assert c.grad is None
    with no_grad():
        assert buckets.absent == {2}
