"""The model in training: dropout, the modes, that it learns, and that two runs are the same."""

import numpy as np
import pytest

import tinygpt as tg
from tests.gpt.helpers import IDX, TARGETS, make, perturbed
from tinygpt import UsageError
from tinygpt.optim import AdamW


def test_dropout_follows_the_generator_and_the_mode():
    model = perturbed(dropout=0.5)
    start = model.generator.state_dict()
    first, second = model.loss(IDX, TARGETS).item(), model.loss(IDX, TARGETS).item()
    assert first != second
    model.generator.load_state_dict(start)
    assert model.loss(IDX, TARGETS).item() == first
    model.eval()
    state = model.generator.state_dict()
    quiet = model.loss(IDX, TARGETS).item()
    assert model.generator.state_dict() == state  # nothing drawn
    assert quiet == perturbed(dropout=0.0).loss(IDX, TARGETS).item()


def test_every_dropout_draws_its_own_mask():
    model = perturbed(dropout=0.5)
    before = model.generator.stream
    model.loss(IDX, TARGETS)
    assert model.generator.stream - before == 1 + 3 * model.config.n_layer  # embedding; attention and two branches


def train(model, ids, steps, lr=1e-2):
    optimizer = AdamW(model.named_parameters(), lr=lr, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("bias", [True, False])
def test_it_learns_a_sequence_by_heart(bias):
    model = make(bias=bias, block_size=16, n_embd=32, dtype=np.float32)
    ids = np.random.default_rng(5).integers(0, 11, (1, 17))
    losses = train(model, ids, 150)
    assert losses[0] > 2
    assert losses[-1] < 0.02
    np.testing.assert_array_equal(model.generate(ids[:, :4], 12, temperature=0)[0], ids[0, :16])


def test_two_runs_are_the_same_to_the_last_bit():
    ids = np.random.default_rng(5).integers(0, 11, (4, 9))
    states = []
    for _ in range(2):
        model = make(dropout=0.2, dtype=np.float32)
        train(model, ids, 5)
        states.append(model.state_dict())
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name], err_msg=name)


def test_state_dict_carries_the_model():
    source, target = perturbed(), make(seed=9)
    target.load_state_dict(source.state_dict())
    np.testing.assert_array_equal(target(IDX).data, source(IDX).data)
    with pytest.raises(UsageError, match=r"unexpected 'h\.0\.ln_1\.bias'"):
        make(bias=False).load_state_dict(source.state_dict())
    with pytest.raises(UsageError, match=r"'wte.weight' has shape \(11, 12\), this model's has \(12, 12\)"):
        make(vocab_size=12).load_state_dict(source.state_dict())


@pytest.mark.slow
def test_no_grad_makes_no_graph():
    model = make()
    with tg.no_grad():
        assert model.loss(IDX, TARGETS).is_leaf
