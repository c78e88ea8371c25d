"""Layers of a user's own: what the model computes with them is what every reader of the model sees.

The model's `forward` is the definition. The loss, scoring, generation (greedy, drawn, by beams, as a stream, past the
block) must agree with it whatever was changed; what can't agree (packed weights, a file) must refuse by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.generation.helpers import make
from tests.gpt.own_layers import (
    CHANGES,
    PROMPT,
    around,
    changed,
    every_change,
    expected,
)
from tinygpt import GPT, nn
from tinygpt.errors import ShapeError, UsageError
from tinygpt.generation import log_likelihood, stream
from tinygpt.generation.decoder import Decoder
from tinygpt.generation.stepper import Stepper, decoder_for
from tinygpt.training.evaluation import mean_loss


@pytest.mark.slow
@every_change
def test_generation_and_scoring_see_what_the_model_computes(change: Callable[[GPT], None]) -> None:
    """Past the block too: it is 6, and the rows become 8 tokens long."""
    model = changed(change)
    for options in ({"seed": 0}, {"do_sample": False}, {"do_sample": False, "num_beams": 3}):
        found = model.generate(PROMPT, 5, return_details=True, **options)
        for row, log_probs in zip(found.sequences, found.log_probs, strict=True):
            np.testing.assert_allclose(log_probs, expected(model, row)[2:], rtol=0, atol=1e-10)
    row = found.sequences[0][:6]
    np.testing.assert_allclose(log_likelihood(model, row).log_probs, expected(model, row), rtol=0, atol=1e-10)
    likelihood = -mean_loss(model, [(row[None, :-1], row[None, 1:])])  # what `tinygpt eval` computes
    assert likelihood == pytest.approx(expected(model, row).mean(), abs=1e-10)
    streamed = np.stack(list(stream(model, PROMPT, 5, seed=0)), axis=1)
    assert np.array_equal(streamed, model.generate(PROMPT, 5, seed=0)[:, 3:])


@every_change
def test_the_loss_is_that_of_the_models_own_logits(change: Callable[[GPT], None]) -> None:
    model = changed(change)
    targets = PROMPT[:, ::-1].copy()
    model.loss(PROMPT, targets).backward()
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    logits = model(PROMPT)
    loss = tg.ops.cross_entropy(logits, targets)
    assert model.loss(PROMPT, targets).item() == pytest.approx(loss.item(), abs=1e-12)
    loss.backward()
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        if parameter.grad is None:
            assert gradient is None
        else:
            np.testing.assert_allclose(gradient, parameter.grad, rtol=1e-9, atol=1e-12)


@every_change
def test_files_do_not_lose_it(change: Callable[[GPT], None], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^save_pretrained: .*the GPT-2 format can't represent"):
        changed(change).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


NAMED = {
    "a Linear after attention": "h.0.attn.c_proj is a Doubled",
    "a module around an MLP": "h.0.mlp is a Around",
    "an instance's forward": "h.0.attn.c_attn is a Linear whose methods were replaced",
    "ln_f": "ln_f is a OwnNorm",
    "the token embedding": "wte is a OwnEmbedding",
    "a Block": "h.0 is a OwnBlock",
}


@pytest.mark.parametrize(("name", "words"), NAMED.items())
def test_what_can_not_be_packed_or_saved_is_named(name: str, words: str, tmp_path: Path) -> None:
    model = make(np.float32)
    CHANGES[name](model)
    for act in (lambda: model.pack("int8"), lambda: model.save_pretrained(tmp_path / "model")):
        with pytest.raises(UsageError, match=words.replace(".", r"\.")):
            act()
    assert model.packed is None
    assert type(model.h[1].attn.c_attn) is nn.Linear


def test_a_parameter_added_to_a_plain_layer_is_not_packed_away() -> None:
    model = make(np.float32)
    model.h[1].mlp.c_fc.shift = nn.Parameter(np.ones(3, np.float32))
    with pytest.raises(UsageError, match=r"h\.1\.mlp\.c_fc has a parameter 'shift' besides its weights"):
        model.pack("bfloat16")


def test_a_model_that_is_changed_after_packing_is_stepped_through() -> None:
    model = make(np.float32).pack("int8")
    around(model)
    found = model.generate(PROMPT, 3, seed=0, return_details=True)
    for row, log_probs in zip(found.sequences, found.log_probs, strict=True):
        np.testing.assert_allclose(log_probs, expected(model, row)[2:], rtol=0, atol=1e-5)


@pytest.fixture
def patched_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The class itself, as libraries that add hooks do it."""
    original = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: original(self, x) * 1.5)
    return iter(())


@pytest.mark.usefixtures("patched_class")
def test_a_class_whose_method_was_replaced_is_not_known_any_more() -> None:
    model = make().eval()
    found = model.generate(PROMPT, 3, seed=0, return_details=True)
    for row, log_probs in zip(found.sequences, found.log_probs, strict=True):
        np.testing.assert_allclose(log_probs, expected(model, row)[2:], rtol=0, atol=1e-10)
    with pytest.raises(UsageError, match=r"h\.0\.attn\.c_attn is a Linear whose methods were replaced"):
        Decoder(model)


def test_the_decoder_with_a_cache_is_for_what_it_knows() -> None:
    """A subclass of GPT that changes nothing of the computation keeps it; a difference is named."""

    class Mine(GPT):
        def talk(self) -> str:
            return "hello"

    model = make()
    model.__class__ = Mine
    assert type(decoder_for(model)) is Decoder
    assert type(decoder_for(make(np.float32).pack("int8"))) is Decoder
    around(model)
    assert type(decoder_for(model)) is Stepper
    with pytest.raises(UsageError, match=r"^Decoder: h\.0\.mlp is a Around"):
        Decoder(model)


WITH_A_CACHE = [name for name in CHANGES if "positionwise" in name or "a cache" in name] + [
    "the model's head", "an untied head", "the number of heads", "the epsilon of one norm", "a block fewer",
    "an adapter", "an adapter everywhere, with dropout",
]  # fmt: skip


@every_change
def test_which_layers_are_called_for_new_tokens_alone(change: Callable[[GPT], None]) -> None:
    name = next(name for name, one in CHANGES.items() if one is change)
    assert type(decoder_for(changed(change))) is (Decoder if name in WITH_A_CACHE else Stepper)


@pytest.mark.parametrize("name", WITH_A_CACHE)
def test_a_model_in_training_mode_generates_without_dropout(name: str) -> None:
    model = changed(CHANGES[name])
    expected = model.generate(PROMPT, 3, seed=0)
    model.train()
    assert np.array_equal(model.generate(PROMPT, 3, seed=0), expected)
    assert all(module.training for module in model.modules())


def test_a_forward_that_returns_no_logits_gets_a_sentence() -> None:
    class Pair(GPT):
        def forward(self, idx: Any) -> Any:
            return super().forward(idx), None

    model = make()
    model.__class__ = Pair
    for act in (
        lambda: model.loss(PROMPT, PROMPT[:, ::-1]),
        lambda: model.generate(PROMPT, 1),
        lambda: log_likelihood(model, [1, 2]),
    ):
        with pytest.raises(
            ShapeError,
            match=r"Pair\.forward must return logits, a Tensor of shape \(\d, \d, 13\).* it returned a tuple",
        ):
            act()


def test_what_a_stepper_refuses() -> None:
    model = make()
    stepper = Stepper(model, 3)
    stepper.prefill([[1, 2], [3]])
    assert stepper.lengths.tolist() == [2, 1]
    for act, words in (
        (lambda: stepper.prefill([[1, 2, 3, 4]]), "a prompt of 4 tokens is longer than the capacity, 3"),
        (lambda: stepper.step([1]), "expected 2 ids, one for each row, not 1"),
        (lambda: stepper.select([2]), r"rows must be in 0 \.\. 1, not 2 \.\. 2"),
        (lambda: [stepper.step([1, 1]), stepper.step([1, 1])], "row 0 is full: it has 3 tokens"),
    ):
        with pytest.raises(UsageError, match=words):
            act()
    assert stepper.prefill([]).shape == (0, 13)
    with pytest.raises(UsageError, match="capacity must be at most"):
        Stepper(model, 7)
