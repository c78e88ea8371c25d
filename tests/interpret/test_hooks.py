"""Hooks: they see and replace what flows, everywhere, and leave nothing behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.interpret.helpers import IDS, logits, make_model, with_adapter
from tinygpt import nn
from tinygpt.errors import DtypeError, RangeError, ShapeError, UsageError
from tinygpt.generation.decoder_checks import obstacle_to_a_cache
from tinygpt.interpret import activations, hooked
from tinygpt.interpret.hooks import wrapped


def state(model: Any) -> dict[str, Any]:
    return {path: dict(vars(module)) for path, module in model.named_modules()}


@pytest.mark.parametrize("adapted", [False, True])
def test_a_hook_everywhere_changes_nothing(adapted: bool) -> None:
    """Each module of the model is called and hands on what it got."""
    model = with_adapter(make_model()) if adapted else make_model()
    expected, before, seen = logits(model), state(model), []
    paths = [path for path, module in model.named_modules() if path and not path.endswith("dropout")]
    with hooked(model, {path: lambda x, path=path: seen.append(path) for path in paths}):
        np.testing.assert_allclose(logits(model), expected, rtol=1e-12, atol=1e-12)
    assert sorted(seen) == sorted(paths)
    assert state(model) == before
    assert np.array_equal(logits(model), expected)


def test_what_is_returned_takes_the_place() -> None:
    model, x = make_model(), tg.tensor(np.random.default_rng(3).standard_normal((1, len(IDS), 24)))
    with tg.no_grad(), model.evaluating():
        expected = model.head(model.ln_f(model.h[2](x))).data[0]
        with hooked(model, {"h.1": lambda _: x}):
            np.testing.assert_allclose(model([IDS]).data[0], expected, rtol=1e-12)
        with hooked(model, {"h.2.input": lambda _: x}):
            np.testing.assert_allclose(model([IDS]).data[0], expected, rtol=1e-12)


def test_both_ends_of_a_module_and_gradients() -> None:
    """Input and output of a linear layer; the loss's gradient flows through both replacements."""
    model = make_model(dropout=0.0)
    with hooked(model, {"h.0.mlp.c_fc.input": lambda x: x * 2.0, "h.0.mlp.c_fc": lambda y: y * 3.0}):
        model.loss([IDS], labels=[IDS]).backward()
    found = model.h[0].mlp.c_fc.weight.grad
    model.zero_grad()
    model.h[0].mlp.c_fc.weight.data *= 6.0
    model.h[0].mlp.c_fc.bias.data *= 3.0
    model.loss([IDS], labels=[IDS]).backward()
    np.testing.assert_allclose(found, 6.0 * model.h[0].mlp.c_fc.weight.grad, rtol=1e-10)


def test_inner_hooks_see_what_outer_ones_made() -> None:
    model = make_model()
    with hooked(model, {"h.0": lambda x: x * 0.0}):
        assert not activations(model, IDS, "h.0")["h.0"].any()
        with hooked(model, {"h.0": lambda x: x + 1.0}):
            assert (activations(model, IDS, "h.0")["h.0"] == 1.0).all()
        assert not activations(model, IDS, "h.0")["h.0"].any()
    assert activations(model, IDS, "h.0")["h.0"].all()


def test_removed_after_an_error() -> None:
    model = make_model()
    before = state(model)
    with pytest.raises(ZeroDivisionError), hooked(model, {"h.0": lambda x: 1 / 0}):
        model([IDS])
    assert state(model) == before


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("positionwise", [False, True])
@pytest.mark.parametrize("place", ["h.0.mlp", "h.0.attn", "h.1"])
def test_generation(place: str, adapted: bool, positionwise: bool) -> None:
    """Hooks act while text is generated; with the promise the cache is kept, and each token is seen once."""
    model = with_adapter(make_model()) if adapted else make_model()
    lengths: list[int] = []

    def double(x: tg.Tensor) -> tg.Tensor:
        lengths.append(x.shape[1])
        return x * 2.0

    with hooked(model, {place: double}, positionwise=positionwise):
        found = model.generate([IDS], 4, do_sample=False)
    assert lengths == ([7, 1, 1, 1] if positionwise else [7, 8, 9, 10])
    ids = [*IDS]
    with hooked(model, {place: lambda x: x * 2.0}):
        for _ in range(4):
            ids.append(int(logits(model, ids)[-1].argmax()))
    assert found[0].tolist() == ids


def test_activations_are_copies_in_the_order_of_the_names() -> None:
    model = make_model("float32")
    names = ["ln_f", "wte", "h.1.attn.c_attn", "wpe"]
    found = activations(model, tg.tensor(np.array([IDS])), names)
    assert list(found) == names
    assert [array.shape for array in found.values()] == [(7, 24), (7, 24), (7, 72), (7, 24)]
    assert all(array.dtype == np.float32 and array.flags.owndata for array in found.values())


def test_packed_weights() -> None:
    """What flows in a packed model is near to what flows in the model itself."""
    model = make_model("float32")
    expected = activations(model, IDS)
    for name, array in activations(model.pack("bfloat16"), IDS).items():
        np.testing.assert_allclose(array, expected[name], atol=0.05 * np.abs(expected[name]).max())


def test_a_classifier() -> None:
    classifier = tg.GPTForSequenceClassification(make_model(), 3)
    found = activations(classifier, IDS)
    assert list(found) == ["transformer.h.0.input", *(f"transformer.h.{i}" for i in range(3))]
    with tg.no_grad(), classifier.evaluating():
        h = activations(classifier, IDS, "transformer.ln_f")["transformer.ln_f"]
        np.testing.assert_allclose(classifier.score.project(tg.tensor(h[-1:])).data, classifier([IDS]).data, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("h.7", "did you mean 'h."),
        ("h.0.atn", "did you mean 'h.0.attn'?"),
        ("h.0.attn.inputs", "did you mean 'h.0.attn.input'?"),
        ("", "there are dropout, h.0, "),
        ("zzz", "there are dropout, h.0, "),
        (3, "did you mean"),
    ],
)
def test_a_name_that_does_not_exist(name: Any, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        activations(make_model(), IDS, [name])
    if name != 3:
        assert f"there is no module {name!r} in this GPT: {hint}" in str(caught.value)


def test_places_that_are_not_computed_once() -> None:
    model = make_model()
    with pytest.raises(UsageError, match=r"h\.0\.dropout is called 2 times"):
        activations(model, IDS, "h.0.dropout")
    untied = make_model(tie_word_embeddings=False)
    with pytest.raises(UsageError, match="lm_head is not called"):
        activations(untied, IDS, "lm_head")
    with pytest.raises(UsageError, match=r"wte\.input is not a tensor"):
        activations(model, IDS, "wte.input")


@pytest.mark.parametrize(
    ("returned", "error", "words"),
    [
        (lambda x: x.data, DtypeError, "must return None or a tensor of float64, not ndarray"),
        (lambda x: tg.tensor(x.data.astype("float32")), DtypeError, "not one of float32"),
        (lambda x: x[:, 1:], ShapeError, r"the shape that it got, \(1, 7, 24\), not \(1, 6, 24\)"),
    ],
)
def test_what_a_hook_may_not_return(returned: Any, error: type[Exception], words: str) -> None:
    model = make_model()
    with pytest.raises(error, match=words), hooked(model, {"h.1": returned}):
        model([IDS])
    with pytest.raises(DtypeError, match="must be a function of a tensor, not int"), hooked(model, {"h.1": 3}):  # type: ignore[dict-item]
        pass


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        ([7, 31], RangeError, r"must be in 0 \.\. 30"),
        ([-1], RangeError, r"must be in 0 \.\. 30"),
        ([], ShapeError, "at least 1 token"),
        ([[1, 2], [3, 4]], ShapeError, r"one text, integers of shape \(T,\), not \(2, 2\)"),
        ([0.5], DtypeError, "must be integers"),
        (list(range(13)), ShapeError, "block_size of 12"),
    ],
)
def test_wrong_ids(ids: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        activations(make_model(), ids)


def test_another_model_is_refused() -> None:
    with pytest.raises(UsageError, match="blocks `h` and a final norm `ln_f`"):
        activations(tg.nn.Linear(2, 2), IDS)


@pytest.mark.parametrize("promises", [(True, False), (False, True), (True, True)])
def test_generation_under_two_hooks(promises: tuple[bool, bool]) -> None:
    """The cache is kept only if both promise that they are positionwise."""
    model, lengths = make_model(), list[int]()
    with (
        hooked(model, {"h.1": lambda x: lengths.append(x.shape[1])}, positionwise=promises[0]),
        hooked(model, {"h.1": lambda x: x * 2.0}, positionwise=promises[1]),
    ):
        found = model.generate([IDS], 3, do_sample=False)
    assert lengths == ([7, 1, 1] if all(promises) else [7, 8, 9])
    with hooked(model, {"h.1": lambda x: x * 2.0}):
        assert np.array_equal(found, model.generate([IDS], 3, do_sample=False))


def test_a_promise_does_not_cover_the_layer() -> None:
    """A layer of a user's own that needs the whole text gets it, whatever a hook on it promises."""

    class Mean(nn.Module):
        def forward(self, h: tg.Tensor) -> tg.Tensor:
            return h + h.mean(axis=1, keepdims=True)

    model = make_model()
    model.h[0].mlp = Mean()  # type: ignore[assignment]
    expected = model.generate([IDS], 4, do_sample=False)
    with hooked(model, {"h.0.mlp": lambda x: None}, positionwise=True):
        assert obstacle_to_a_cache(model) == "h.0.mlp is a Mean"
        assert np.array_equal(expected, model.generate([IDS], 4, do_sample=False))


def test_a_module_in_two_places() -> None:
    """Both hooks act on both, and both are removed."""
    model = make_model()
    model.h[1] = model.h[0]
    expected, before = logits(model), state(model)
    seen: list[str] = []
    with hooked(model, {"h.0": lambda x: seen.append("a"), "h.1": lambda x: seen.append("b")}):
        np.testing.assert_allclose(logits(model), expected, rtol=1e-12)
    assert seen == ["a", "b"] * 2
    assert state(model) == before


def test_exits_in_any_module_order() -> None:
    """A module that already had a forward of its own gets it back."""
    model = make_model()
    own = model.h[0].forward
    model.h[0].forward = own  # type: ignore[method-assign]
    with wrapped(model, {"h.0": lambda forward, *args: forward(*args)}, positionwise=True):
        assert model.h[0].positionwise  # it takes a cache
    assert vars(model.h[0])["forward"] is own
    assert "positionwise" not in vars(model.h[0])
