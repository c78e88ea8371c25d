"""The classifier beside transformers' GPT2ForSequenceClassification: logits, losses, gradients, files both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import SIZES, torch, transformers
from tinygpt import GPT, GPTForSequenceClassification, UsageError
from tinygpt.nn.losses import classification_loss, l1_loss, mse_loss
from tinygpt.tensor import tensor

pytestmark = pytest.mark.compat

PAD = 30
LENGTHS = np.array([9, 1, 5, 7])
RNG = np.random.default_rng(5)
IDS = np.where(np.arange(9) < LENGTHS[:, None], RNG.integers(0, 30, (4, 9)), PAD)
PROBLEMS: list[tuple[str | None, int, np.ndarray]] = [
    (None, 3, np.array([2, 0, 1, 1])),
    (None, 3, RNG.integers(0, 2, (4, 3)).astype("f4")),
    (None, 1, RNG.standard_normal(4).astype("f4")),
    ("single_label_classification", 2, np.array([0, 1, 1, 0])),
    ("multi_label_classification", 2, RNG.random((4, 2)).astype("f4")),
    ("regression", 2, RNG.standard_normal((4, 2)).astype("f4")),
]


def make_theirs(K: int, problem: str | None, **settings: Any) -> Any:
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": PAD}
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(**(SIZES | tokens | off | settings), num_labels=K, problem_type=problem)
    model = transformers.GPT2ForSequenceClassification(config)
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
            parameter.copy_(torch.tensor(center + 0.2 * rng.standard_normal(parameter.shape)))
    return model.eval()


def of_numpy(labels: np.ndarray, dtype: Any) -> Any:
    found = torch.tensor(labels)
    return found.to(dtype) if found.is_floating_point() else found


@pytest.mark.parametrize(("name", "tolerance"), [("float32", 2e-5), ("float64", 1e-12)])
@pytest.mark.parametrize(("problem", "K", "labels"), PROBLEMS, ids=str)
def test_logits_loss_and_gradients(
    problem: str | None, K: int, labels: np.ndarray, name: str, tolerance: float, tmp_path: Path
) -> None:
    theirs = make_theirs(K, problem).to(getattr(torch, name))
    theirs.save_pretrained(tmp_path)
    ours = GPTForSequenceClassification.from_pretrained(tmp_path, dtype=name)
    mask = torch.tensor(np.arange(9) < LENGTHS[:, None]).long()
    wanted = theirs(torch.tensor(IDS), attention_mask=mask, labels=of_numpy(labels, getattr(torch, name)))
    found = ours(IDS, lengths=LENGTHS)
    np.testing.assert_allclose(found.data, wanted.logits.detach().numpy(), rtol=0, atol=tolerance)
    loss = ours.loss(IDS, labels, lengths=LENGTHS)
    assert loss.item() == pytest.approx(wanted.loss.item(), abs=tolerance)
    assert ours.problem_type == theirs.config.problem_type
    wanted.loss.backward()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for key, parameter in theirs.named_parameters():
        np.testing.assert_allclose(gradients.pop(key), parameter.grad.numpy(), rtol=0, atol=tolerance, err_msg=key)
    assert not gradients


def test_on_purpose_a_text_that_ends_with_the_padding_id_is_read_to_its_end(tmp_path: Path) -> None:
    """transformers looks for the last token that isn't the padding id, and so reads such a text one place early."""
    theirs = make_theirs(3, None)
    theirs.save_pretrained(tmp_path)
    ours = GPTForSequenceClassification.from_pretrained(tmp_path)
    ids = IDS[:1].copy()
    ids[0, -1] = PAD
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids)).logits.numpy()
        theirs.config.pad_token_id = None
        by_position = theirs(torch.tensor(ids)).logits.numpy()
    assert np.abs(ours(ids).data - wanted).max() > 0.01
    np.testing.assert_allclose(ours(ids).data, by_position, rtol=0, atol=2e-5)
    np.testing.assert_allclose(ours(ids, lengths=[8]).data, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("names", [None, ["neg", "pos", "好"]], ids=str)
@pytest.mark.parametrize("untied", [False, True])
def test_their_files_load_here_and_ours_there(names: list[str] | None, untied: bool, tmp_path: Path) -> None:
    theirs = make_theirs(3, "single_label_classification", tie_word_embeddings=not untied)
    if names:
        theirs.config.id2label, theirs.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    theirs.save_pretrained(tmp_path / "theirs")
    ours = GPTForSequenceClassification.from_pretrained(tmp_path / "theirs")
    assert ours.label_names == (names or ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert (ours.num_labels, ours.problem_type) == (3, "single_label_classification")
    ours.save_pretrained(tmp_path / "ours")
    kinds = (transformers.AutoModelForSequenceClassification, transformers.GPT2ForSequenceClassification)
    for kind in kinds:
        again, found = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), found
        assert again.config.id2label == dict(enumerate(ours.label_names))
        assert again.config.label2id == {name: i for i, name in enumerate(ours.label_names)}
        assert again.config.problem_type == "single_label_classification"
        assert again.config.pad_token_id == PAD
        state = again.state_dict()
        for name, parameter in theirs.named_parameters():
            assert torch.equal(state[name], parameter), name


def test_two_labels_without_names_are_not_in_their_config(tmp_path: Path) -> None:
    make_theirs(2, None).save_pretrained(tmp_path)
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text())
    clf = GPTForSequenceClassification.from_pretrained(tmp_path, label_names=["neg", "pos"])
    assert (clf.num_labels, clf.label_names, clf.problem_type) == (2, ["neg", "pos"], None)


def test_a_new_head_on_their_language_model(tmp_path: Path) -> None:
    """The features are those of their GPT2Model, whatever becomes of its head."""
    body = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, tie_word_embeddings=False)).eval()
    body.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="without a classifier's head: say which head it gets, with num_labels=2"):
        GPTForSequenceClassification.from_pretrained(tmp_path)
    clf = GPTForSequenceClassification.from_pretrained(tmp_path, label_names=["a", "b"], seed=4)
    assert clf.num_labels == 2
    with torch.no_grad():
        h = body.transformer(torch.tensor(IDS)).last_hidden_state.numpy()[np.arange(4), LENGTHS - 1]
    np.testing.assert_allclose(clf(IDS, LENGTHS).data, h @ clf.score.weight.data.T, rtol=0, atol=1e-5)
    assert 0.01 < clf.score.weight.data.std() < 0.03
    other = GPTForSequenceClassification.from_pretrained(tmp_path, num_labels=2, seed=5)
    assert not np.array_equal(clf.score.weight.data, other.score.weight.data)
    same = GPTForSequenceClassification.from_pretrained(tmp_path, num_labels=2, seed=4)
    assert np.array_equal(clf.score.weight.data, same.score.weight.data)


def test_a_classifier_is_no_language_model(tmp_path: Path) -> None:
    make_theirs(2, None).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"holds a classifier, as 'score.weight' says.* GPTForSequenceClassification"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 0.0, 1.5]], ids=str)
def test_label_smoothing_and_class_weights_are_pytorchs(smoothing: float, weights: Any) -> None:
    logits, labels = RNG.standard_normal((6, 4)) * 3, np.array([3, 0, 1, 1, -100, 2])
    x, their = tensor(logits, requires_grad=True), torch.tensor(logits, requires_grad=True)
    loss = classification_loss(x, labels, label_smoothing=smoothing, class_weights=weights)
    wanted = torch.nn.functional.cross_entropy(
        their, torch.tensor(labels), label_smoothing=smoothing,
        weight=None if weights is None else torch.tensor(weights, dtype=torch.float64),
    )  # fmt: skip
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
    (loss * 1.7).backward()
    (wanted * 1.7).backward()
    np.testing.assert_allclose(x.grad, their.grad.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("ours", "theirs"), [(mse_loss, "mse_loss"), (l1_loss, "l1_loss")], ids=["mse", "l1"])
def test_losses_of_numbers_are_pytorchs(ours: Any, theirs: str) -> None:
    values, targets = RNG.standard_normal((5, 2)), RNG.standard_normal((5, 2))
    targets[2] = values[2]  # where |d| has a corner
    x, their = tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    loss, wanted = ours(x, targets), getattr(torch.nn.functional, theirs)(their, torch.tensor(targets))
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
    (loss * -0.6).backward()
    (wanted * -0.6).backward()
    np.testing.assert_allclose(x.grad, their.grad.numpy(), rtol=0, atol=1e-12)
