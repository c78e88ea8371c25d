"""Groups made from names, and the average of the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinygpt import GPT, GPTConfig, UsageError, tensor
from tinygpt.optim import EMA, AdamW, by_name, layer_decay

CONFIG = GPTConfig(vocab_size=11, block_size=8, n_layer=3, n_head=2, n_embd=8)


def scales(groups: Any) -> dict[str, float]:
    return {slot.name: slot.lr_scale for slot in AdamW(groups).slots}


def test_layer_decay_falls_from_the_head_to_the_embeddings() -> None:
    found = scales(layer_decay(GPT(CONFIG, seed=0).named_parameters(), 0.5))
    wanted = {"wte": 0.5**4, "wpe": 0.5**4, "h.0": 0.5**3, "h.1": 0.5**2, "h.2": 0.5, "ln_f": 1.0}
    for name, scale in found.items():
        assert scale == next(value for start, value in wanted.items() if name.startswith(f"{start}."))
    assert len(found) == len(list(GPT(CONFIG, seed=0).named_parameters()))


def test_layer_decay_of_a_head_of_its_own_is_1() -> None:
    config = GPTConfig(**(CONFIG.to_dict() | {"tie_word_embeddings": False}))
    found = scales(layer_decay(GPT(config, seed=0).named_parameters(), 0.5))
    assert found["lm_head.weight"] == 1.0
    assert found["wte.weight"] == 0.5**4


def test_by_name_gives_settings_to_what_matches() -> None:
    groups = by_name(
        GPT(CONFIG, seed=0).named_parameters(),
        {"h.*": {"lr_scale": 0.5}, "h.0.*": {"lr_scale": 0.1, "betas": (0.5, 0.5)}, "*.bias": {"weight_decay": 0.3}},
    )
    slots = {slot.name: slot for slot in AdamW(groups, weight_decay=0.1).slots}
    assert slots["wte.weight"].lr_scale == 1.0
    assert slots["h.1.ln_1.weight"].lr_scale == 0.5
    assert slots["h.0.ln_1.weight"].lr_scale == 0.1  # the last pattern that matches
    assert slots["h.0.ln_1.bias"].settings == {"betas": (0.5, 0.5)}
    assert slots["ln_f.bias"].weight_decay == 0.3
    assert slots["wte.weight"].weight_decay == 0.1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda pairs: layer_decay(pairs, 0), "decay must be above 0 and at most 1, not 0"),
        (lambda pairs: layer_decay([("w", pairs[0][1])], 0.5), "no name has the number of a block"),
        (lambda pairs: layer_decay([pairs[0][1]], 0.5), r"expected pairs \(name, tensor\)"),
        (lambda pairs: by_name(pairs, {"h.9.*": {}}), "no parameter has a name like 'h.9.*': there are wte.weight, "),
        (lambda pairs: EMA(pairs, decay=1), "EMA: decay must be at least 0 and below 1, not 1"),
        (lambda pairs: EMA(pairs[0][1]), "not one tensor"),
        (lambda pairs: EMA([np.ones(3)]), "a parameter is a tensor or a pair"),
    ],
)
def test_bad_options_get_a_sentence(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make(list(GPT(CONFIG, seed=0).named_parameters()))


# The average ----------------------------------------------------------------------------------------


def moved(ema: EMA, steps: int, seed: int = 0) -> list[Any]:
    """Moves the parameters and updates the average; returns the weights after each step."""
    rng, weights = np.random.default_rng(seed), []
    for _ in range(steps):
        for p in ema.parameters.values():
            p.data += rng.standard_normal(p.shape).astype(p.dtype)
        ema.update()
        weights.append([p.data.copy() for p in ema.parameters.values()])
    return weights


@pytest.mark.parametrize("warm_up", [True, False])
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_the_average_is_the_formula(dtype: Any, rtol: float, warm_up: bool) -> None:
    p = tensor(np.ones((2, 3), dtype), requires_grad=True)
    ema = EMA([("w", p)], decay=0.6, warm_up=warm_up)
    wanted = np.ones((2, 3))
    for t, (weights,) in enumerate(moved(ema, 20), start=1):
        decay = min(0.6, (1 + t) / (10 + t)) if warm_up else 0.6
        wanted = decay * wanted + (1 - decay) * weights
    np.testing.assert_allclose(ema.average["w"], wanted, rtol=rtol)
    assert ema.average["w"].dtype == dtype


def test_applied_swaps_the_average_in_and_back_into_the_same_arrays() -> None:
    p = tensor(np.ones(3, np.float32), requires_grad=True)
    ema = EMA([p], decay=0.5)
    moved(ema, 3)
    array, weights, average = p.data, p.data.copy(), ema.average["0"].copy()
    with ema.applied():
        assert p.data is array
        assert np.array_equal(p.data, average)
    assert p.data is array
    assert np.array_equal(p.data, weights)
    assert np.array_equal(ema.average["0"], average)


def failing_inside(ema: EMA) -> None:
    with ema.applied():
        raise ZeroDivisionError


def test_the_weights_come_back_after_an_error() -> None:
    ema = EMA([tensor(np.ones(3), requires_grad=True)])
    ((weights,),) = moved(ema, 1)
    with pytest.raises(ZeroDivisionError):
        failing_inside(ema)
    assert np.array_equal(ema.parameters["0"].data, weights)


def test_backward_notices_that_the_weights_were_swapped() -> None:
    p = tensor(np.ones(3), requires_grad=True)
    ema = EMA([p])
    loss = (p * p).sum()
    with pytest.raises(UsageError, match="changed"), ema.applied():
        loss.backward()


def test_a_restored_average_continues_bit_for_bit() -> None:
    whole, restored = (EMA([("w", tensor(np.ones(4, np.float32), requires_grad=True))], decay=0.7) for _ in range(2))
    moved(whole, 3)
    state = whole.state_dict()
    restored.load_state_dict({"steps": state["steps"], "average": {"w": state["average"]["w"].copy()}})
    restored.parameters["w"].data[...] = whole.parameters["w"].data
    for ema in (whole, restored):
        moved(ema, 4, seed=1)
    assert np.array_equal(whole.average["w"], restored.average["w"])
    for bad, words in [
        ({"steps": 1}, "expected the entries"),
        ({"steps": -1, "average": state["average"]}, "steps must be at least 0"),
        ({"steps": 1, "average": {"v": np.ones(4)}}, r"missing: \['w'\]; unexpected: \['v'\]"),
        ({"steps": 1, "average": {"w": np.ones(5)}}, r"'w' has shape \(5,\), the parameter has \(4,\)"),
    ]:
        with pytest.raises(UsageError, match=words):
            restored.load_state_dict(bad)
    assert restored.steps == 7
