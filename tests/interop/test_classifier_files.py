"""A classifier's folder: written and read again, started from a run or a language model, refused if it is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.interop.helpers import CONFIG, change_json, change_weights, make, saved, snapshot
from tinygpt import GPT, GPTForSequenceClassification, UsageError
from tinygpt.interop.classifier import is_classifier
from tinygpt.interop.weights import open_weights
from tinygpt.tokenizers import ByteTokenizer

IDS = np.random.default_rng(0).integers(0, 11, (3, 5))
load = GPTForSequenceClassification.from_pretrained


def classifier(names: Any = ("neg", "pos", "好"), **settings: Any) -> GPTForSequenceClassification:
    clf = GPTForSequenceClassification(make(**settings), len(names), label_names=names).eval()
    clf.score.weight.data[...] = np.random.default_rng(7).standard_normal(clf.score.weight.shape)
    return clf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    classifier().save_pretrained(tmp_path / "clf")
    return tmp_path / "clf"


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "2KB"}, {"dtype": "float64"}], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_written_is_read_again(options: Any, bias: bool, tmp_path: Path) -> None:
    clf = classifier(bias=bias)
    clf.loss(IDS, [0, 1, 2])
    clf.save_pretrained(tmp_path, **options)
    again = load(tmp_path)
    assert (again.num_labels, again.label_names) == (3, ["neg", "pos", "好"])
    assert again.problem_type == "single_label_classification"
    assert again.config == clf.config
    state = again.state_dict()
    assert state.keys() == clf.state_dict().keys()
    for name, array in clf.state_dict().items():
        assert np.array_equal(state[name], array), name
    assert not again.training
    assert is_classifier(tmp_path)


def test_it_starts_from_a_language_model_with_or_without_a_head_of_its_own(tmp_path: Path) -> None:
    for number, ties in enumerate((True, False)):
        model = make(tie_word_embeddings=ties).eval()
        model.save_pretrained(tmp_path / str(number))
        assert not is_classifier(tmp_path / str(number))
        clf = load(tmp_path / str(number), num_labels=2, dropout=0.3)
        assert clf.config.tie_word_embeddings
        assert clf.config.dropout == 0.3
        assert not any("lm_head" in name for name in clf.state_dict())
        assert np.array_equal(clf.transformer.hidden(IDS).data, model.hidden(IDS).data)
        clf.save_pretrained(tmp_path / "clf")
        assert np.array_equal(load(tmp_path / "clf")(IDS).data, clf(IDS).data)


def test_the_untied_head_of_the_model_below_is_left_out(tmp_path: Path) -> None:
    clf = classifier(tie_word_embeddings=False)
    clf.save_pretrained(tmp_path)
    with open_weights(tmp_path) as weights:
        assert weights.head is None
    assert np.array_equal(load(tmp_path)(IDS).data, clf(IDS).data)


def test_it_starts_from_a_training_run(model: Path) -> None:
    plain = GPT.from_pretrained(model)
    clf = load(model, label_names=["a", "b"])
    ids = IDS % plain.config.vocab_size
    assert np.array_equal(clf.transformer.hidden(ids).data, plain.hidden(ids).data)


def test_a_language_model_is_replaced_by_a_classifier_and_back(tmp_path: Path) -> None:
    saved(tmp_path)
    classifier().save_pretrained(tmp_path)
    assert load(tmp_path).num_labels == 3
    saved(tmp_path)
    assert not is_classifier(tmp_path)
    GPT.from_pretrained(tmp_path)


def test_a_tokenizer_goes_with_it(tmp_path: Path) -> None:
    clf = classifier(vocab_size=257)
    clf.save_pretrained(tmp_path, tokenizer=ByteTokenizer())
    assert (tmp_path / "tokenizer.tinygpt.json").exists()
    with pytest.raises(UsageError, match=r"the tokenizer has .* tokens, but the model has only 11"):
        classifier().save_pretrained(tmp_path / "other", tokenizer=ByteTokenizer())
    assert not (tmp_path / "other").exists()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_labels": 2}, "holds a classifier of 3 labels, not num_labels=2: leave num_labels out"),
    ({"label_names": ["pos", "neg", "好"]}, r"holds a classifier of the labels \['neg', 'pos', '好'\], not \['pos'"),
    ({"problem_type": "several"}, "problem_type must be one of"),
    ({"dtype": "float16"}, "dtype must be 'float32'"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_contradicts_the_file_is_refused(options: dict[str, Any], words: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=words):
        load(folder, **options)


def test_another_problem_than_the_files_is_refused(tmp_path: Path) -> None:
    clf = classifier()
    clf.problem_type = "multi_label_classification"
    clf.save_pretrained(tmp_path)
    assert load(tmp_path, problem_type="multi_label_classification").problem_type == clf.problem_type
    with pytest.raises(UsageError, match="holds a classifier for multi_label_classification, not regression"):
        load(tmp_path, problem_type="regression")


DAMAGED: list[tuple[dict[str, Any], str]] = [
    ({"id2label": {"0": "a", "1": "b"}}, 'id2label must name the labels "0" to "2" of the 3 rows of score.weight'),
    ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "label_names must be 3 different names"),
    ({"id2label": ["a", "b", "c"]}, "id2label must name the labels"),
    ({"id2label": {"0": 1, "1": 2, "2": 3}}, "label_names must be a list of texts"),
    ({"problem_type": "ranking"}, "problem_type must be one of single_label_classification"),
    ({"n_embd": 14}, "the weights in .* have .* config.json implies"),
]


@pytest.mark.parametrize(("changes", "words"), DAMAGED, ids=[words for _, words in DAMAGED])
def test_a_damaged_config_is_named(changes: dict[str, Any], words: str, folder: Path) -> None:
    change_json(folder / CONFIG, **changes)
    with pytest.raises(UsageError, match=words):
        load(folder)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (np.zeros(12, "f4"), r"'score.weight' of shape \(12,\), which is not a \(K, C\) matrix"),
        (np.zeros((3, 13), "f4"), r"'score.weight' of shape \(3, 13\), but config.json implies \(3, 12\)"),
        (np.zeros((0, 12), "f4"), r"'score.weight' of shape \(0, 12\), which is no"),
    ],
)
def test_a_damaged_head_is_named(weight: np.ndarray, words: str, folder: Path) -> None:
    change_weights(folder, lambda arrays: arrays | {"score.weight": weight})
    with pytest.raises(UsageError, match=words):
        load(folder)


def test_nothing_of_an_older_folder_is_touched_by_a_model_that_cant_be_saved(tmp_path: Path) -> None:
    saved(tmp_path)
    before = snapshot(tmp_path)

    class Own(GPT):
        def hidden(self, idx: Any, cache: Any = None) -> Any:
            return super().hidden(idx, cache)

    with pytest.raises(UsageError, match="the class Own overrides forward, hidden or head"):
        GPTForSequenceClassification(Own(make().config), 2).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="dtype must be one of"):
        classifier().save_pretrained(tmp_path, dtype="int8")
    assert snapshot(tmp_path) == before
