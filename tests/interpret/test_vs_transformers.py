"""The views of a model against transformers' `output_attentions` and `output_hidden_states`, and PyTorch's autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import load_ours, make_theirs, torch
from tinygpt.interpret import activations, attention_maps, layer_statistics, logit_lens, saliency

IDS = [7, 0, 30, 7, 19, 3, 3, 28, 1]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"n_head": 1, "n_embd": 24, "n_layer": 3},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    {"tie_word_embeddings": False, "activation_function": "relu"},
]


@pytest.fixture(params=VARIANTS, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    theirs = make_theirs(**request.param, attn_implementation="eager")
    return load_ours(theirs, tmp_path, dtype="float64"), theirs.double()


def outputs(theirs: Any) -> Any:
    return theirs(torch.tensor([IDS]), output_attentions=True, output_hidden_states=True)


def assert_close(found: np.ndarray, wanted: Any, tolerance: float = 1e-10) -> None:
    np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=tolerance, atol=tolerance)


def test_attention_maps(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    found = attention_maps(ours, IDS)
    L, H, T = ours.config.n_layer, ours.config.n_head, len(IDS)
    assert found.shape == (L, H, T, T)
    # they compute the softmax of float64 scores in float32
    assert_close(found, torch.cat(outputs(theirs).attentions), 1e-6)


def test_hidden_states(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    *wanted, last = outputs(theirs).hidden_states  # their last one is after ln_f
    found = activations(ours, IDS)
    assert list(found) == ["h.0.input", *(f"h.{i}" for i in range(ours.config.n_layer))]
    for array, theirs_then in zip(found.values(), wanted, strict=False):
        assert_close(array, theirs_then[0])
    assert_close(activations(ours, IDS, "ln_f")["ln_f"], last[0])


def test_places_inside_a_block(pair: tuple[Any, Any]) -> None:
    """Every place of the table in hooks.py that both have, against PyTorch's own hooks."""
    ours, theirs = pair
    names = ["wte", "h.0.ln_1", "h.1.attn", "h.1.attn.c_attn", "h.0.ln_2", "h.1.mlp", "h.0.mlp.c_fc", "ln_f"]
    inputs = ["h.1.attn.c_proj", "h.0.mlp.c_proj", "h.1"]
    seen: dict[str, Any] = {}

    def keep(name: str, value: Any) -> None:
        seen[name] = (value[0] if isinstance(value, tuple) else value)[0]

    for name in names:
        theirs.transformer.get_submodule(name).register_forward_hook(lambda m, x, y, name=name: keep(name, y))
    for name in inputs:
        theirs.transformer.get_submodule(name).register_forward_hook(
            lambda m, x, y, name=name: keep(name + ".input", x)
        )
    outputs(theirs)
    found = activations(ours, IDS, [*names, *(f"{name}.input" for name in inputs)])
    assert found.keys() == seen.keys()
    for name, array in found.items():
        assert_close(array, seen[name])


def test_logit_lens(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    *streams, last = outputs(theirs).hidden_states
    hidden = [*(theirs.transformer.ln_f(x) for x in streams), last]
    wanted = torch.log_softmax(torch.cat([theirs.lm_head(h) for h in hidden]), dim=-1)
    assert_close(logit_lens(ours, IDS), wanted)


def their_gradient(theirs: Any, factor: float, target: int) -> tuple[Any, Any, Any]:
    """The embeddings (T, C), the log-probability of the target at `factor` times them, and its gradient there."""
    x = theirs.transformer.wte(torch.tensor([IDS])).detach()
    leaf = (x * factor).requires_grad_()
    value = torch.log_softmax(theirs(inputs_embeds=leaf).logits[0, -1], dim=-1)[target]
    (gradient,) = torch.autograd.grad(value, leaf)
    return x[0], value.detach(), gradient[0]


def test_gradient_x_input(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    for target in (0, 30):
        x, _, gradient = their_gradient(theirs, 1.0, target)
        assert_close(saliency(ours, IDS, target), (x * gradient).sum(-1), 1e-9)


@pytest.mark.filterwarnings("ignore:saliency")  # 20 steps are few for these weights
def test_integrated_gradients(pair: tuple[Any, Any]) -> None:
    """The same quadrature on PyTorch's gradients."""
    ours, theirs = pair
    points, weights = np.polynomial.legendre.leggauss(20)
    total = torch.zeros(len(IDS), dtype=torch.float64)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        x, _, gradient = their_gradient(theirs, float(point), 5)
        total += float(weight) * (x * gradient).sum(-1)
    assert_close(saliency(ours, IDS, 5, "integrated_gradients", steps=20), total, 1e-9)


def test_layer_statistics(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    out = outputs(theirs)
    loss = torch.nn.functional.cross_entropy(out.logits[0, :-1], torch.tensor(IDS[1:]))  # theirs is in float32
    streams = out.hidden_states[:-1]  # the last is not the stream, but ln_f of it
    gradients = torch.autograd.grad(loss, streams)
    found = layer_statistics(ours, IDS)
    for statistics, x, dx in zip(found.values(), streams, gradients, strict=False):
        for summary, values in ((statistics.activation, x.detach()), (statistics.gradient, dx)):
            assert summary is not None
            assert summary.mean == pytest.approx(float(values.mean()), rel=1e-8, abs=1e-12)
            assert summary.std == pytest.approx(float(values.std(correction=0)), rel=1e-8)
            assert summary.rms == pytest.approx(float(values.square().mean().sqrt()), rel=1e-8)
            assert summary.largest == pytest.approx(float(values.abs().max()), rel=1e-8)
            assert summary.zeros == float((values == 0).double().mean())
