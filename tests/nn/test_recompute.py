"""Recomputation: the numbers of a plain pass bit for bit, less memory, and what it refuses."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.training.helpers import make_trainer
from tinygpt import nn
from tinygpt.errors import UsageError
from tinygpt.graph import mode
from tinygpt.random import Generator
from tinygpt.training import CheckpointFolder

CONFIG = tg.GPTConfig(vocab_size=65, block_size=48, n_layer=4, n_head=2, n_embd=32, dropout=0.1)
IDS = np.random.default_rng(0).integers(0, 65, (5, 49))


def gradients(model: Any, recompute: bool) -> tuple[float, dict[str, np.ndarray | None]]:
    """The loss and the gradients of two batches, of which the second adds to the first's."""
    model.recompute = recompute
    for ids in (IDS, IDS[::-1]):
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def assert_same(make: Any) -> None:
    (a, plain), (b, again) = gradients(make(), False), gradients(make(), True)
    assert a == b
    assert sum(grad is not None for grad in plain.values()) > 1
    for name, grad in plain.items():
        assert (grad is None) == (again[name] is None), name
        np.testing.assert_array_equal(again[name], grad, err_msg=name)


class PlainBlock(nn.Module):
    """A user's block, with a parameter that its result does not depend on."""

    def __init__(self, generator: Generator) -> None:
        self.linear, self.dropout = nn.Linear(32, 32, generator=generator), nn.Dropout(0.2, generator)
        self.unused = nn.Parameter(np.ones(3, np.float32))

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        return x + self.dropout(self.linear(x).tanh())


def model_with(change: str) -> tg.GPT:
    model = tg.GPT(CONFIG, seed=1)
    if change == "a user's block":
        model.h[1] = PlainBlock(model.generator)  # type: ignore[call-overload]
    elif change == "the same block twice":
        model.h[2] = model.h[1]
    elif change == "LoRA":
        nn.add_lora(model, 2, seed=3)
        for name, p in model.named_parameters():
            if name.endswith("lora_B"):
                p.data[:] = 0.1
    elif change == "frozen at the bottom":
        for p in [*model.wte.parameters(), *model.wpe.parameters(), *model.h[0].parameters()]:
            p.requires_grad = False
    return model


@pytest.mark.parametrize("change", ["", "a user's block", "the same block twice", "LoRA", "frozen at the bottom"])
def test_losses_and_gradients_are_those_of_a_plain_pass(change: str) -> None:
    assert_same(lambda: model_with(change))


def test_the_random_state_after_a_pass_is_that_of_a_plain_one() -> None:
    plain, again = tg.GPT(CONFIG, seed=1), tg.GPT(CONFIG, seed=1)
    gradients(plain, False)
    gradients(again, True)
    assert plain.generator.state_dict() == again.generator.state_dict()


def test_a_backward_pass_can_be_repeated_through_a_retained_graph() -> None:
    model = tg.GPT(CONFIG, seed=1)
    model.recompute = True
    loss = model.loss(IDS[:, :-1], IDS[:, 1:])
    loss.backward(retain_graph=True)
    first = model.h[0].mlp.c_fc.weight.grad.copy()
    loss.backward()
    np.testing.assert_array_equal(model.h[0].mlp.c_fc.weight.grad, first + first)


@pytest.mark.slow
def test_a_block_keeps_two_arrays_of_its_input() -> None:
    """What lives between the passes, beside the weights: per block the two sums of the residual stream."""

    def kept(n_layer: int, recompute: bool) -> int:
        model = tg.GPT(tg.GPTConfig(65, 64, n_layer, 2, 64), seed=0)
        model.recompute = recompute
        ids = np.zeros((16, 64), np.int64)
        model.loss(ids, ids[::-1] + 1).backward()
        tracemalloc.start()
        loss = model.loss(ids, ids[::-1] + 1)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        del loss
        return size

    array = 16 * 64 * 64 * 4
    assert kept(6, True) - kept(2, True) == pytest.approx(4 * 2 * array, rel=0.1)
    assert kept(6, False) - kept(2, False) > 4 * 8 * array


def test_each_parameter_is_ready_once_and_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """`leaf_ready`, on which several processes build, tells each parameter once, when its gradient is complete."""
    model = model_with("the same block twice")
    model.recompute = True
    _, whole = gradients(model_with("the same block twice"), False)
    told: dict[int, np.ndarray] = {}

    def ready(leaf: Any) -> None:
        assert id(leaf) not in told
        told[id(leaf)] = leaf.grad.copy()

    for ids in (IDS, IDS[::-1]):
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        monkeypatch.setattr(mode, "leaf_ready", ready if ids is not IDS else None)
        loss.backward()
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(told[id(p)], whole[name], err_msg=name)


def test_a_parameter_that_was_changed_in_between_is_noticed() -> None:
    model = tg.GPT(CONFIG, seed=1)
    model.recompute = True
    loss = model.loss(IDS[:, :-1], IDS[:, 1:])
    model.h[3].mlp.c_proj.load_state_dict(model.h[2].mlp.c_proj.state_dict())
    with pytest.raises(UsageError, match="changed since"):
        loss.backward()


def test_without_gradients_nothing_is_recomputed() -> None:
    model = tg.GPT(CONFIG, seed=1).eval()
    plain = model(IDS[:, :-1]).data
    model.recompute = True
    with tg.no_grad():
        y = model(IDS[:, :-1])
    assert y.node is None
    np.testing.assert_array_equal(y.data, plain)
    prompt = IDS[:1, :5]
    np.testing.assert_array_equal(model.generate(prompt, 6, seed=0), tg.GPT(CONFIG, seed=1).generate(prompt, 6, seed=0))


def test_a_module_by_itself() -> None:
    x = tg.tensor(np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32), requires_grad=True)
    block = PlainBlock(Generator(4))
    nn.recompute(block, x).sum().backward()
    again, x.grad = x.grad, None
    PlainBlock(Generator(4))(x).sum().backward()
    np.testing.assert_array_equal(again, x.grad)
    assert block.unused.grad is None


def test_what_is_not_a_module_of_one_tensor_is_refused() -> None:
    x = tg.tensor(np.ones((2, 32), np.float32), requires_grad=True)
    with pytest.raises(UsageError, match="recompute: needs a module, whose parameters it can see, not function"):
        nn.recompute(lambda x: x, x)  # type: ignore[arg-type, return-value]

    class Pair(nn.Module):
        def forward(self, x: tg.Tensor) -> tuple[tg.Tensor, tg.Tensor]:
            return x, x

    with pytest.raises(UsageError, match="the module must return one tensor, not tuple"):
        nn.recompute(Pair(), x)


def test_a_run_may_be_resumed_with_recomputation(tmp_path: Path) -> None:
    make_trainer(tmp_path / "plain").run()
    make_trainer(tmp_path / "parts", steps=12, decay_steps=20).run()
    trainer = make_trainer(tmp_path / "parts", recompute=True)
    assert trainer.model.recompute
    trainer.resume()
    trainer.run()
    plain, parts = (CheckpointFolder(tmp_path / name).load("latest") for name in ("plain", "parts"))
    assert plain.step == parts.step == 20
    assert plain.state["generator"] == parts.state["generator"]
    for name, array in plain.model.items():
        np.testing.assert_array_equal(parts.model[name], array, err_msg=name)
