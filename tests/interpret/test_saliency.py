"""Saliency: completeness, differences, models of every kind, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.interpret.helpers import IDS, logits, make_model, with_adapter
from tinygpt import nn
from tinygpt.errors import DtypeError, RangeError, UsageError
from tinygpt.interpret import hooked, saliency


def value(model: Any, factor: float, target: int, token: int | None = None, logit: bool = False) -> float:
    """The log-probability (or the logit) of the target with the embeddings (or that of one token) times `factor`."""
    factors = np.ones((1, len(IDS), 1))
    factors[:, slice(None) if token is None else token] = factor
    with hooked(model, {"wte": lambda x: x * tg.tensor(factors.astype(x.dtype))}):
        last = logits(model)[-1].astype(np.float64)
    return float(last[target] - (0.0 if logit else np.log(np.exp(last).sum())))


@pytest.mark.slow
@pytest.mark.parametrize("logit", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("target", [0, 13])
def test_completeness(target: int, adapted: bool, logit: bool) -> None:
    """The tokens' shares add up to what the text adds to an empty one."""
    model = with_adapter(make_model()) if adapted else make_model()
    found = saliency(model, IDS, target, "integrated_gradients", steps=400, logit=logit)
    assert found.shape == (7,)
    difference = value(model, 1.0, target, logit=logit) - value(model, 0.0, target, logit=logit)
    assert found.sum() == pytest.approx(difference, abs=1e-8)


def test_gradient_x_input_is_the_slope_of_scaling_a_token() -> None:
    model = make_model()
    found = saliency(model, IDS, 5)
    for t in range(7):
        slope = (value(model, 1 + 1e-5, 5, t) - value(model, 1 - 1e-5, 5, t)) / 2e-5
        assert found[t] == pytest.approx(slope, abs=1e-8)


def test_few_steps_warn() -> None:
    with pytest.warns(UserWarning, match="with 1 steps the integrated gradients add up to .* take more steps"):
        saliency(make_model(), IDS, 5, "integrated_gradients", steps=1)


@pytest.mark.parametrize("method", ["gradient_x_input", "integrated_gradients"])
def test_an_adapter_is_the_merged_model(method: str) -> None:
    model = with_adapter(make_model())
    found = saliency(model, IDS, 5, method, steps=100)
    np.testing.assert_allclose(found, saliency(nn.merge_lora(model), IDS, 5, method, steps=100), rtol=1e-8)


def test_packed_weights() -> None:
    model = make_model("float32")
    expected = saliency(model, IDS, 5)
    found = saliency(model.pack("bfloat16"), IDS, 5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(expected).max())


def test_nothing_is_left_behind() -> None:
    model = make_model().train()
    saliency(model, IDS, 5)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert "forward" not in vars(model.wte)


@pytest.mark.slow
def test_labels_of_a_classifier() -> None:
    """The log-probability of a label; of several labels at once, and of a regression, the output itself."""
    for kind, K in (("single_label_classification", 3), ("multi_label_classification", 3), ("regression", 1)):
        classifier = tg.GPTForSequenceClassification(make_model(), K, kind, dtype="float64").eval()
        found = saliency(classifier, IDS, K - 1, "integrated_gradients", steps=300)
        with tg.no_grad():
            scores = []
            for factor in (1.0, 0.0):
                with hooked(classifier, {"transformer.wte": lambda x, factor=factor: x * factor}):
                    z = classifier([IDS]).data[0]
                log_sum = np.log(np.exp(z).sum()) if kind.startswith("single") else 0.0
                scores.append(z[K - 1] - log_sum)
        assert found.sum() == pytest.approx(scores[0] - scores[1], abs=1e-8)
        with pytest.raises(RangeError, match=f"target must be in 0 .. {K - 1}, not {K}"):
            saliency(classifier, IDS, K)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((IDS, 31), RangeError, r"target must be in 0 \.\. 30, not 31"),
        ((IDS, -1), UsageError, "target must be at least 0"),
        ((IDS, "a"), DtypeError, "target must be a whole number"),
        ((IDS, 3, "integrated_gradient"), UsageError, "no method .* did you mean 'integrated_gradients'"),
        (([31], 3), RangeError, r"must be in 0 \.\. 30"),
    ],
)
def test_wrong_arguments(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        saliency(make_model(), *arguments)
    with pytest.raises(UsageError, match="steps must be at least 1"):
        saliency(make_model(), IDS, 3, steps=0)


def test_under_no_grad() -> None:
    with tg.no_grad(), pytest.raises(UsageError, match="no_grad"):
        saliency(make_model(), IDS, 3)
