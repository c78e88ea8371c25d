"""A classifier: where a text ends, what padding may be, its losses, its predictions, any model below it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.gpt.test_language_model import Average, Config, OneBlock
from tinygpt import GPTConfig, GPTForSequenceClassification, nn, ops
from tinygpt.language_model import LanguageModel

SIZES = GPTConfig(vocab_size=19, block_size=10, n_layer=2, n_head=2, n_embd=16)
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 19, (5, 7))
LENGTHS = np.array([7, 1, 4, 6, 2])
LABELS = np.array([0, 2, 1, 1, 0])


def make(num_labels: int = 3, problem: str | None = None, seed: int = 0, **options: Any) -> Any:
    """A classifier all of whose parameters are far from special."""
    clf = GPTForSequenceClassification(SIZES, num_labels, problem, **({"dtype": np.float64} | options))
    rng = np.random.default_rng(seed)
    for _, parameter in clf.named_parameters():
        parameter.data[...] += 0.3 * rng.standard_normal(parameter.shape)
    return clf.eval()


def gradients(clf: Any, loss: tg.Tensor) -> dict[str, np.ndarray]:
    clf.zero_grad()
    loss.backward()
    found = {name: parameter.grad.copy() for name, parameter in clf.named_parameters()}
    clf.zero_grad()
    return found


# Where a text ends ------------------------------------------------------------------------------------


def test_the_logits_are_those_of_the_last_token_by_length() -> None:
    clf = make()
    found = clf(IDS, LENGTHS).data
    for row, (ids, length) in enumerate(zip(IDS, LENGTHS, strict=True)):
        h = clf.transformer.hidden(ids[None, :length]).data[0, -1]
        np.testing.assert_allclose(found[row], h @ clf.score.weight.data.T, rtol=0, atol=1e-12)
    full = clf(IDS).data
    assert np.array_equal(full[0], found[0])
    assert not np.isclose(full[1:], found[1:]).any(axis=1).all()


@pytest.mark.parametrize("padding", [0, 18, -100, 10**9, "the last real token"])
def test_what_the_padding_is_changes_not_a_bit(padding: Any) -> None:
    """Neither the logits nor any gradient, even where the padding is no token of the model's."""
    clf = make(dtype=np.float32)
    wanted = clf(IDS, LENGTHS).data
    expected = gradients(clf, clf.loss(IDS, LABELS, LENGTHS))
    padded = IDS.copy()
    for row, length in enumerate(LENGTHS):
        padded[row, length:] = IDS[row, length - 1] if isinstance(padding, str) else padding
    before = padded.copy()
    assert np.array_equal(clf(padded, LENGTHS).data, wanted)
    for name, gradient in gradients(clf, clf.loss(padded, LABELS, LENGTHS)).items():
        assert np.array_equal(gradient, expected[name]), name
    assert np.array_equal(padded, before)


def test_more_padding_changes_nothing_but_rounding() -> None:
    """The products have other shapes then, which a BLAS may sum in another order: equal to 1e-12 in float64."""
    clf = make()
    wide = np.pad(IDS, ((0, 0), (0, 3)))
    np.testing.assert_allclose(clf(wide, LENGTHS).data, clf(IDS, LENGTHS).data, rtol=0, atol=1e-12)
    wanted = gradients(clf, clf.loss(IDS, LABELS, LENGTHS))
    for name, gradient in gradients(clf, clf.loss(wide, LABELS, LENGTHS)).items():
        if name == "transformer.wpe.weight":
            assert not gradient[7:].any()
        np.testing.assert_allclose(gradient, wanted[name], rtol=0, atol=1e-12, err_msg=name)


# Losses -----------------------------------------------------------------------------------------------


def test_the_names_of_the_parameters_are_transformers() -> None:
    clf = make()
    names = [name for name, _ in clf.named_parameters()]
    assert names[0] == "transformer.wte.weight"
    assert names[-1] == "score.weight"
    assert clf.score.weight.shape == (3, 16)
    assert "transformer.lm_head.weight" not in names
    untied = GPTForSequenceClassification(GPTConfig(19, 10, 1, 2, 16, tie_word_embeddings=False), 2)
    assert "transformer.lm_head.weight" not in untied.state_dict()


LOSSES: list[tuple[int, str | None, Any, dict[str, Any]]] = [
    (3, None, LABELS, {}),
    (3, None, LABELS, {"label_smoothing": 0.2, "class_weights": [0.5, 2.0, 1.0]}),
    (3, "multi_label_classification", RNG.integers(0, 2, (5, 3)), {}),
    (1, None, RNG.standard_normal(5), {}),
    (1, None, RNG.standard_normal(5), {"kind": "l1"}),
    (2, "regression", RNG.standard_normal((5, 2)), {}),
]


@pytest.mark.parametrize(("K", "problem", "labels", "options"), LOSSES, ids=str)
def test_the_gradient_is_that_of_differences(K: int, problem: Any, labels: Any, options: Any) -> None:
    clf = make(K, problem)
    parameters = [parameter for _, parameter in clf.named_parameters()]
    directions = [RNG.standard_normal(p.shape) for p in parameters]
    found = gradients(clf, clf.loss(IDS, labels, LENGTHS, **options))
    slope = sum(float((found[name] * d).sum()) for (name, _), d in zip(clf.named_parameters(), directions, strict=True))

    def at(step: float) -> float:
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.data += step * direction
            parameter.mark_changed()
        value = clf.loss(IDS, labels, LENGTHS, **options).item()
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.data -= step * direction
        return float(value)

    h = 1e-5
    numeric = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    assert slope == pytest.approx(numeric, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("cut", [1, 2, 4])
@pytest.mark.parametrize(("K", "problem", "labels", "options"), LOSSES, ids=str)
def test_any_split_into_parts_has_the_gradient_of_the_whole(
    K: int, problem: Any, labels: Any, options: Any, cut: int
) -> None:
    clf = make(K, problem)
    weights = options.get("class_weights")
    whole = gradients(clf, clf.loss(IDS, labels, LENGTHS, **options))
    total = clf.loss_weight(labels, weights)
    parts = []
    for part in (slice(None, cut), slice(cut, None)):
        loss = clf.loss(IDS[part], labels[part], LENGTHS[part], **options)
        parts.append(gradients(clf, loss * (clf.loss_weight(labels[part], weights) / total)))
    for name, gradient in whole.items():
        np.testing.assert_allclose(parts[0][name] + parts[1][name], gradient, rtol=0, atol=1e-12, err_msg=name)


def test_a_row_without_a_label_is_left_out() -> None:
    clf = make()
    some = np.array([0, -100, 1, -100, 2])
    kept = some >= 0
    wanted = clf.loss(IDS[kept], some[kept], LENGTHS[kept]).item()
    assert clf.loss(IDS, some, LENGTHS).item() == pytest.approx(wanted, abs=1e-12)
    assert clf.loss(IDS, some, LENGTHS, class_weights=[1, 1, 1]).item() == pytest.approx(wanted, abs=1e-12)
    assert clf.loss_weight(some) == 3


def test_it_learns(capsys: Any) -> None:
    """Which of two tokens comes first in a text: the loss falls and the predictions are right."""
    rng = np.random.default_rng(1)
    ids = rng.integers(2, 19, (32, 7))
    labels, lengths = rng.integers(0, 2, 32), rng.integers(2, 8, 32)
    ids[np.arange(32), 0] = labels
    clf = GPTForSequenceClassification(SIZES, 2, label_names=["no", "yes"])
    optimizer = tg.optim.AdamW(clf.named_parameters(), lr=0.01)
    first = clf.loss(ids, labels, lengths).item()
    for _ in range(40):
        clf.loss(ids, labels, lengths).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert clf.loss(ids, labels, lengths).item() < first / 4
    assert (clf.predict(ids, lengths) == labels).all()
    assert clf.problem_type == "single_label_classification"


# Predictions ------------------------------------------------------------------------------------------


def test_predictions_of_each_kind() -> None:
    clf = make()
    logits = clf(IDS, LENGTHS).data
    scores = clf.scores(IDS, LENGTHS)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-12)
    assert np.array_equal(clf.predict(IDS, LENGTHS), logits.argmax(axis=1))
    assert np.array_equal(scores.argsort(axis=1), logits.argsort(axis=1))
    clf.problem_type = "multi_label_classification"
    assert np.array_equal(clf.predict(IDS, LENGTHS), logits > 0)
    clf.problem_type = "regression"
    assert np.array_equal(clf.predict(IDS, LENGTHS), logits)
    one = make(1)
    assert np.array_equal(one.predict(IDS, LENGTHS), one(IDS, LENGTHS).data[:, 0])


def test_predictions_are_without_dropout_and_leave_the_mode() -> None:
    clf = GPTForSequenceClassification(GPTConfig(19, 10, 1, 2, 16, dropout=0.5), 2).train()
    assert clf.training
    assert clf.transformer.h[0].training
    assert np.array_equal(clf.scores(IDS), clf.scores(IDS))
    assert clf.training
    assert clf.transformer.h[0].training
    assert not np.array_equal(clf(IDS).data, clf(IDS).data)


def test_the_first_labels_say_what_they_are() -> None:
    clf = make()
    assert clf.problem_type is None
    clf.loss(IDS, RNG.random((5, 3)), LENGTHS)
    assert clf.problem_type == "multi_label_classification"
    assert make(1).problem_type == "regression"


# Any model below it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Average, OneBlock])
def test_any_language_model_carries_it(kind: Any) -> None:
    """Its features come through `hidden` alone."""
    ids = IDS[:, :6] % 13
    body = kind(Config()).eval()
    clf = GPTForSequenceClassification(body, 2)
    assert clf.transformer is body
    assert clf.score.weight.dtype == np.float64
    lengths = np.minimum(LENGTHS, 6)
    h = body.hidden(ids).data[np.arange(5), lengths - 1]
    np.testing.assert_allclose(clf(ids, lengths).data, h @ clf.score.weight.data.T, rtol=0, atol=1e-12)
    clf.loss(ids, [0, 1, 0, 1, 1], lengths).backward()
    assert body.wte.weight.grad is not None


def test_a_subclass_with_its_own_hidden_is_called() -> None:
    class Doubled(tg.GPT):
        def hidden(self, idx: Any, cache: Any = None) -> tg.Tensor:
            return super().hidden(idx, cache) * 2.0

    plain = tg.GPT(SIZES, dtype=np.float64).eval()
    doubled = Doubled(SIZES, dtype=np.float64).eval()
    one, two = (GPTForSequenceClassification(body, 3) for body in (plain, doubled))
    np.testing.assert_allclose(two(IDS).data, 2 * one(IDS).data, rtol=1e-12)


def test_hidden_of_another_shape_is_refused() -> None:
    class Wrong(tg.GPT):
        def hidden(self, idx: Any, cache: Any = None) -> tg.Tensor:
            return super().hidden(idx, cache)[:, -1]

    with pytest.raises(tg.UsageError, match=r"Wrong.hidden must return \(B, T, C\), here \(5, 7, 16\), not \(5, 16\)"):
        GPTForSequenceClassification(Wrong(SIZES), 3)(IDS)


def test_a_frozen_head_or_body_gets_no_gradient() -> None:
    clf = make()
    for parameter in clf.transformer.parameters():
        parameter.requires_grad = False
    clf.loss(IDS, LABELS, LENGTHS).backward()
    assert clf.score.weight.grad is not None
    assert clf.transformer.wte.weight.grad is None


def test_packed_it_still_predicts(tmp_path: Any) -> None:
    clf = make(dtype=np.float32)
    plain = clf.scores(IDS, LENGTHS)
    clf.save_pretrained(tmp_path)
    for how in ({"quantize": "int8"}, {"dtype": "bfloat16"}):
        packed = GPTForSequenceClassification.from_pretrained(tmp_path, **how)
        assert packed.packed
        assert np.abs(packed.scores(IDS, LENGTHS) - plain).max() < 0.1
        with pytest.raises(tg.UsageError, match="can't be saved"):
            packed.save_pretrained(tmp_path / "again")


# Bad input --------------------------------------------------------------------------------------------

Refused = tuple[Any, str]
REFUSED: list[Refused] = [
    (lambda: make()(IDS, [7, 0, 4, 6, 2]), r"the length of row 1 is 0, but idx has rows of 7 tokens: lengths must be"),
    (lambda: make()(IDS, [7, 8, 4, 6, 2]), "the length of row 1 is 8"),
    (lambda: make()(IDS, [7, 1]), r"lengths must have the shape \(5,\)"),
    (lambda: make()(IDS, [1.0] * 5), "lengths must be integers"),
    (lambda: make()(IDS[0]), r"idx must have the shape \(batch, time\)"),
    (lambda: make()(IDS + 0.5), "idx must be integers"),
    (lambda: make()(IDS + 19), "ids must be in 0 .. 18"),
    (lambda: make()(np.pad(IDS, ((0, 0), (0, 9)))), "longer than this model's block_size of 10"),
    (lambda: make().loss(IDS, [0, 1, 2, 3, 0]), "the label of row 3 is 3, but with num_labels=3 labels must be in 0 "),
    (lambda: make().loss(IDS, [0, 1, -1, 1, 0]), "the label of row 2 is -1"),
    (lambda: make().loss(IDS, [0, 1]), "there are 5 texts, but 2 labels"),
    (lambda: make().loss(IDS, [-100] * 5), "no target is left"),
    (lambda: make().loss(IDS, LABELS, kind="l2"), 'kind must be "mse" or "l1"'),
    (lambda: make().loss(IDS, LABELS, kind="l1"), "is for regression, but this is single_label"),
    (lambda: make(1).loss(IDS, LABELS, label_smoothing=0.1), "are for single labels, not for regression"),
    (lambda: make().loss(IDS, LABELS, label_smoothing=1.0), "label_smoothing must be at least 0 and below 1"),
    (lambda: make().loss(IDS, LABELS, class_weights=[1, 2]), r"class_weights must have the shape \(3,\)"),
    (lambda: make().loss(IDS, LABELS, class_weights=[1, 2, -1]), "class_weights must be finite and at least 0"),
    (lambda: make().loss(IDS, [0] * 5, class_weights=[0, 1, 1]), "the class weights of all 5 labels .* are 0"),
    (lambda: make(3, "multi_label_classification").loss(IDS, LABELS), r"labels must have the shape \(B, 3\)"),
    (lambda: make(1).loss(IDS, [0.0, np.nan, 1, 1, 1]), "targets must be finite"),
    (lambda: make(2, "several"), "problem_type must be one of single_label_classification"),
    (lambda: make(1, "single_label_classification"), "needs at least two labels"),
    (lambda: make(0), "num_labels must be at least 1"),
    (lambda: make(2, label_names=["a"]), "label_names must be 2 different names"),
    (lambda: make(2, label_names=["a", "a"]), "label_names must be 2 different names"),
    (lambda: make(2, label_names="ab"), "label_names must be a list of texts"),
    (lambda: GPTForSequenceClassification({"n_embd": 3}, 2), "config must be a GPTConfig or a LanguageModel"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_mistake_gets_a_sentence(call: Any, words: str) -> None:
    with pytest.raises(tg.UsageError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_nothing_is_decided_by_a_loss_that_failed() -> None:
    clf = make()
    with pytest.raises(tg.UsageError):
        clf.loss(IDS, [0, 1])
    assert clf.problem_type is None


def test_a_training_loop_finds_what_a_language_model_has() -> None:
    """What a LanguageModel sets for itself in its constructor, a classifier has of the one inside."""
    model = tg.GPT(tg.GPTConfig(11, 8, n_layer=1, n_head=1, n_embd=8))
    classifier = tg.GPTForSequenceClassification(model, 2)
    of_its_own = {"training", "recompute"}  # the loop sets `recompute` in the model inside
    for name in vars(LanguageModel(model.config, model.generator)).keys() - of_its_own:
        assert getattr(classifier, name) is getattr(model, name), name


def test_it_is_built_of_what_exists() -> None:
    """The single-label loss is cross_entropy's, to the bit."""
    clf = make()
    assert clf.loss(IDS, LABELS, LENGTHS).item() == ops.cross_entropy(clf(IDS, LENGTHS), LABELS).item()
    assert isinstance(clf.score, nn.Embedding)
