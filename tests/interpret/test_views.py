"""Attention maps, the logit lens, ablation and statistics: what must hold of them without another library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.interpret.helpers import IDS, logits, make_model, with_adapter
from tinygpt import nn
from tinygpt.errors import DtypeError, RangeError, ShapeError, UsageError
from tinygpt.generation.decoder_checks import obstacle_to_a_cache
from tinygpt.interpret import ablate, activations, attention_maps, layer_statistics, logit_lens
from tinygpt.ops.attention import attention_composed


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def merged(model: tg.GPT) -> tg.GPT:
    return nn.merge_lora(model)


@pytest.mark.parametrize("adapted", [False, True])
def test_attention_maps(adapted: bool) -> None:
    """Rows are probabilities of earlier tokens, and times the values they are what attention computes."""
    model = with_adapter(make_model()) if adapted else make_model()
    maps = attention_maps(model, IDS)
    assert maps.shape == (3, 4, 7, 7)
    np.testing.assert_allclose(maps.sum(-1), 1.0, rtol=1e-12)
    assert not maps[:, :, *np.triu_indices(7, 1)].any()
    for i in range(3):
        found = activations(model, IDS, [f"h.{i}.attn.c_attn", f"h.{i}.attn.c_proj.input"])
        qkv, heads = found.values()
        v = qkv.reshape(7, 3, 4, 6)[:, 2].transpose(1, 0, 2)  # (H, T, D)
        np.testing.assert_allclose((maps[i] @ v).transpose(1, 0, 2).reshape(7, 24), heads, rtol=1e-10)
    if adapted:
        np.testing.assert_allclose(maps, attention_maps(merged(model), IDS), rtol=1e-10, atol=1e-14)


class Own(nn.Module):
    """Attention of a user's own, in other words."""

    def __init__(self, attention: Any) -> None:
        self.inner = attention

    def forward(self, h: tg.Tensor) -> tg.Tensor:
        return self.inner(h)


class OwnWithWeights(Own):
    def attention_weights(self, h: tg.Tensor) -> tg.Tensor:
        """From the oracle: with one-hot values, attention returns its probabilities."""
        q, k, _ = (
            x.reshape(1, -1, 4, 6).transpose(0, 2, 1, 3) for x in tg.ops.split(self.inner.c_attn(h), 24, axis=-1)
        )
        T = h.shape[1]
        return attention_composed(q, k, tg.tensor(np.broadcast_to(np.eye(T), (1, 4, T, T)).copy()))


def test_attention_of_ones_own() -> None:
    model = make_model()
    expected = attention_maps(model, IDS)
    inner, model.h[1].attn = model.h[1].attn, Own(model.h[1].attn)  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"h\.1 is not of tinygpt's own layers .* give its attention a method"):
        attention_maps(model, IDS)
    model.h[1].attn = OwnWithWeights(inner)  # type: ignore[assignment]
    np.testing.assert_allclose(attention_maps(model, IDS), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("adapted", [False, True])
def test_the_last_lens_is_the_model(adapted: bool) -> None:
    model = with_adapter(make_model()) if adapted else make_model()
    lens = logit_lens(model, IDS)
    assert lens.shape == (4, 7, 31)
    np.testing.assert_allclose(lens[-1], log_softmax(logits(model)), rtol=1e-10)
    np.testing.assert_allclose(np.exp(lens).sum(-1), 1.0, rtol=1e-12)
    with ablate(model, layers=[1, 2]):  # then the model stops after block 0
        np.testing.assert_allclose(lens[1], log_softmax(logits(model)), rtol=1e-10)


def test_lens_of_packed_weights_and_of_a_classifier() -> None:
    model = make_model("float32")
    expected = logit_lens(model, IDS)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(logit_lens(model.pack("bfloat16"), IDS), expected, atol=0.1)
    with pytest.raises(UsageError, match="must be a LanguageModel"):
        logit_lens(tg.GPTForSequenceClassification(make_model(), 2), IDS)  # type: ignore[arg-type]


# Ablation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapted", [False, True])
def test_a_head_equals_zero_rows_of_c_proj(adapted: bool) -> None:
    model = with_adapter(make_model()) if adapted else make_model()
    with ablate(model, heads=[(1, 2), (1, 0), (2, 3)]):
        found = logits(model)
        texts = model.generate([IDS, IDS[::-1]], 5, do_sample=False)
    assert not np.allclose(found, logits(model))
    model = merged(model) if adapted else model
    for block, head in ((1, 2), (1, 0), (2, 3)):
        model.h[block].attn.c_proj.weight.data[6 * head : 6 * head + 6] = 0.0
    np.testing.assert_allclose(found, logits(model), rtol=1e-10, atol=1e-12)
    assert np.array_equal(texts, model.generate([IDS, IDS[::-1]], 5, do_sample=False))


def test_a_block_is_left_out() -> None:
    for layer in range(3):
        model = make_model()
        with ablate(model, layers=[layer]):
            found = logits(model)
            texts = model.generate([IDS], 5, do_sample=False)  # the last block cuts the stream to the last position
        del model.h[layer]
        np.testing.assert_allclose(found, logits(model), rtol=1e-12)
        assert np.array_equal(texts, model.generate([IDS], 5, do_sample=False))


def test_the_cache_is_kept() -> None:
    """What is switched off is so for each position, and the last block still cuts the stream to the last one."""
    model = make_model().eval()
    with tg.no_grad(), ablate(model, heads=[(0, 1)], layers=[0, 2]):
        assert obstacle_to_a_cache(model) is None
        cache = model.new_cache(1, 12)
        h = model.hidden([IDS], cache).data
        assert h.shape == (1, 1, 24)
        np.testing.assert_allclose(h[0, -1], model.hidden([IDS]).data[0, -1], rtol=1e-10)


def test_all_heads_and_a_classifier() -> None:
    """Without any head a token sees no other one."""
    classifier = tg.GPTForSequenceClassification(make_model(), 2).eval()
    other = [(i + 1) % 31 for i in IDS[:-1]] + IDS[-1:]
    with ablate(classifier, heads=[(block, head) for block in range(3) for head in range(4)]):
        assert np.array_equal(classifier([IDS]).data, classifier([other]).data)
    assert not np.array_equal(classifier([IDS]).data, classifier([other]).data)


def test_training_with_a_head_off() -> None:
    model = make_model(dropout=0.0)
    with ablate(model, heads=[(0, 1)]):
        model.loss([IDS], labels=[IDS]).backward()
    gradient = model.h[0].attn.c_proj.weight.grad
    assert not gradient[6:12].any()
    assert gradient[:6].all()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"layers": [3]}, RangeError, r"there is no block 3: they are 0 \.\. 2"),
        ({"layers": [-1]}, UsageError, "must be at least 0"),
        ({"layers": ["a"]}, DtypeError, "must be a whole number"),
        ({"layers": 1}, DtypeError, "a list of numbers, not 1"),
        ({"heads": [(0, 4)]}, RangeError, r"there is no head in h\.0 4: they are 0 \.\. 3"),
        ({"heads": [(5, 0)]}, RangeError, "there is no block 5"),
        ({"heads": [3]}, DtypeError, r"pairs \(block, head\)"),
        ({"heads": [(True, 0)]}, DtypeError, "must be a whole number"),
    ],
)
def test_what_can_not_be_switched_off(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words), ablate(make_model(), **options):
        pass


def test_heads_of_an_attention_that_has_none() -> None:
    model = make_model()
    model.h[0].attn = Own(model.h[0].attn)  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"h\.0 has no attn with n_head"), ablate(model, heads=[(0, 0)]):
        pass
    with ablate(model, layers=[0]):
        assert np.isfinite(logits(model)).all()


# Statistics -----------------------------------------------------------------------------------------


def test_gradients_by_differences() -> None:
    """The gradient at a place is what a small change there does to the loss."""
    model, direction = make_model(), np.random.default_rng(5).standard_normal((1, 7, 24))
    found: dict[str, Any] = {}

    def loss_at(step: float, place: str) -> float:
        hooks = {place: lambda x: x + tg.tensor(step * direction)}
        with tg.no_grad(), model.evaluating(), tg.interpret.hooked(model, hooks):
            return model.loss([IDS], labels=[IDS]).item()

    def seen(model: Any, idx: Any) -> tg.Tensor:
        return model.loss(idx, labels=idx)

    for place in ("h.0.input", "h.0", "h.1.mlp", "h.2.attn.c_proj", "h.2"):
        found[place] = layer_statistics(model, IDS, place, loss=seen)[place].gradient
        slope = (loss_at(1e-5, place) - loss_at(-1e-5, place)) / 2e-5
        assert abs(slope) <= np.abs(direction).sum() * found[place].largest * (1 + 1e-6)
    assert found["h.2"].zeros == pytest.approx(1 / 7)  # nothing is predicted from the last token
    assert found["h.0"].zeros == pytest.approx(1 / 7)


def test_statistics_touch_nothing() -> None:
    model = with_adapter(make_model()).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = np.ones(parameter.shape)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    found = layer_statistics(model, IDS)
    assert list(found) == ["h.0.input", "h.0", "h.1", "h.2"]
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all((parameter.grad == 1).all() for parameter in model.parameters() if parameter.requires_grad)
    assert all(module.training for module in model.modules())
    np.testing.assert_allclose(found["h.1"].activation.rms, np.sqrt((activations(model, IDS)["h.1"] ** 2).mean()))


def test_statistics_of_a_classifier_and_of_packed_weights() -> None:
    classifier = tg.GPTForSequenceClassification(make_model(), 2)
    with pytest.raises(UsageError, match="needs a loss"):
        layer_statistics(classifier, IDS)
    found = layer_statistics(classifier, IDS, loss=lambda model, idx: model.loss(idx, [1]))
    gradient = found["transformer.h.2"].gradient
    assert gradient is not None
    assert gradient.zeros == pytest.approx(6 / 7)  # the label is read from the last token
    packed = layer_statistics(make_model("float32").pack("bfloat16"), IDS)
    assert all(one.gradient is not None and one.gradient.rms > 0 for one in packed.values())


def test_a_place_without_a_gradient() -> None:
    model = make_model()
    found = layer_statistics(model, IDS, ["h.0", "h.2"], loss=lambda model, idx: model(idx)[:, :0].sum())
    assert all(one.gradient is None or one.gradient.zeros == 1.0 for one in found.values())
    with pytest.raises(ShapeError, match="at least 2 tokens"):
        layer_statistics(model, [3])
