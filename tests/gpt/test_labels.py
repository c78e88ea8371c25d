"""`model.loss(ids, labels=ids)` shifts; `model.loss(ids, ids)`, which would train a copier, warns."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.generation.helpers import make
from tinygpt.errors import UsageError
from tinygpt.token_ids import IGNORE_INDEX

IDS = np.random.default_rng(0).integers(0, 13, (3, 6))


def by_hand(model: Any, ids: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the positions whose next label is given, from the logits, in float64."""
    logits = model(ids).data[:, :-1]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    following = labels[:, 1:]
    given = following != IGNORE_INDEX
    rows, places = np.nonzero(given)
    return float(-log_probs[rows, places, following[given]].mean())


@pytest.mark.parametrize("ignored", [(), ((0, 0), (0, 1), (2, 5), (1, 3))])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int8])
def test_labels_are_shifted_inside(ignored: Any, dtype: Any) -> None:
    model, labels = make().eval(), IDS.astype(dtype)
    for place in ignored:
        labels[place] = IGNORE_INDEX
    before = labels.copy()
    assert model.loss(IDS, labels=labels).item() == pytest.approx(by_hand(model, IDS, labels), abs=1e-12)
    assert model.loss(IDS, labels=tg.Tensor(labels)).item() == model.loss(IDS, labels=labels.tolist()).item()
    assert np.array_equal(labels, before)


def test_labels_of_unsigned_integers_can_hold_no_minus_100_and_need_none() -> None:
    model = make().eval()
    assert model.loss(IDS, labels=IDS.astype(np.uint8)).item() == model.loss(IDS, labels=IDS).item()


def test_labels_and_targets_of_the_same_meaning_have_the_same_gradients() -> None:
    model, found = make(dropout=0.0), []
    targets = np.concatenate([IDS[:, 1:], np.full((3, 1), IGNORE_INDEX)], axis=1)
    for given in ({"targets": targets}, {"labels": IDS}):
        model.zero_grad()
        model.loss(IDS, **given).backward()
        found.append([parameter.grad.tobytes() for parameter in model.parameters()])
    assert found[0] == found[1]


def test_labels_of_packed_models_and_of_a_forward_of_ones_own() -> None:
    class Own(tg.GPT):
        def forward(self, idx: Any) -> Any:
            return super().forward(idx) * 0.5

    own, packed = make().eval(), make(np.float32).pack("int8")
    own.__class__ = Own
    assert own.loss(IDS, labels=IDS).item() == pytest.approx(by_hand(own, IDS, IDS), abs=1e-12)
    assert packed.loss(IDS, labels=IDS).item() == pytest.approx(by_hand(packed, IDS, IDS), abs=1e-5)


def test_exactly_one_of_targets_and_labels_of_the_shape_of_idx() -> None:
    model = make()
    for options, words in (
        ({}, "give either targets, the tokens that follow, or labels"),
        ({"targets": IDS[:, ::-1], "labels": IDS}, "give either targets, the tokens that follow, or labels"),
        ({"labels": IDS[:, 1:]}, r"labels must have the shape of idx, \(3, 6\), not \(3, 5\)"),
        ({"labels": IDS[0]}, r"labels must have the shape of idx, \(3, 6\), not \(6,\)"),
        ({"labels": IDS * 1.0}, "labels must be integers"),
        ({"labels": IDS + 100}, r"0 \.\. 12"),
    ):
        with pytest.raises(UsageError, match=words):
            model.loss(IDS, **options)


# Targets that are the input ---------------------------------------------------------------------------


def masked(ids: np.ndarray) -> np.ndarray:
    """As in fine-tuning: no loss on the question."""
    labels = ids.copy()
    labels[:, :2] = IGNORE_INDEX
    return labels


@pytest.mark.parametrize(
    "targets",
    [lambda ids: ids, lambda ids: ids.copy(), lambda ids: ids.tolist(), lambda ids: tg.Tensor(ids), masked,
     lambda ids: ids.astype(np.int32)],
    ids=["itself", "a copy", "a list", "a tensor", "masked", "int32"],
)  # fmt: skip
def test_targets_that_are_the_input_warn_once(targets: Any) -> None:
    model = make()
    with pytest.warns(
        UserWarning, match=r"the targets equal the input at every position.*loss\(ids, labels=ids\)"
    ) as caught:
        model.loss(IDS, targets(IDS))
    assert caught[0].filename == __file__
    model.loss(IDS, targets(IDS))  # said once; a second warning would be an error here


def test_one_array_given_twice_is_noticed_at_any_step() -> None:
    model = make()
    for _ in range(5):
        model.loss(IDS[:, :-1], IDS[:, 1:])
    with pytest.warns(UserWarning, match="the targets equal the input at every position"):
        model.loss(IDS, IDS)


def test_only_the_first_losses_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr("tinygpt.language_model.warn_if_copied", lambda *pair: seen.append(1) or False)
    model = make()
    for _ in range(20):
        model.loss(IDS[:, :-1], IDS[:, 1:])
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("ids", "targets"),
    [
        (np.full((2, 5), 7), np.full((2, 5), 7)),  # a text of one letter follows itself
        (np.array([[3]]), np.array([[3]])),  # a single token may be followed by its like
        (IDS[:, :-1], IDS[:, 1:]),
    ],
)
def test_nothing_is_said_of_what_may_be_right(ids: np.ndarray, targets: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().loss(ids, targets)


def test_a_batch_without_a_label_to_predict_is_refused() -> None:
    for idx, labels in ((IDS, np.full(IDS.shape, IGNORE_INDEX)), ([[3]], [[3]])):
        with pytest.raises(UsageError, match="no target is left to average over"):
            make().loss(idx, labels=labels)
