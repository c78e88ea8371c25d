"""Adapters of classifiers: the head is in the file, and every command takes the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tinygpt import GPTForSequenceClassification, interop, nn
from tinygpt.errors import CheckpointError
from tinygpt.nn.lora import lora_layers
from tinygpt.safetensors_io import SafetensorsFile, write_safetensors
from tinygpt.tokenizers import ByteTokenizer

pytestmark = pytest.mark.usefixtures("without_picture")
IDS = np.random.default_rng(0).integers(0, 256, (3, 9))
FILE = "adapter_model.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tg.GPT(tg.GPTConfig(256, 16, 1, 2, 16), seed=1).save_pretrained(tmp_path / "base", tokenizer=ByteTokenizer())
    return tmp_path / "base"


def adapted(base: Path, names: tuple[str, ...] = ("neg", "other", "pos")) -> GPTForSequenceClassification:
    body = nn.add_lora(tg.GPT.from_pretrained(base), rank=2)
    clf = GPTForSequenceClassification(body, len(names), "single_label_classification", label_names=names)
    rng = np.random.default_rng(4)
    for layer in lora_layers(clf).values():
        layer.lora_B.data[...] = rng.standard_normal(layer.lora_B.shape)
    clf.score.weight.data[...] = rng.standard_normal(clf.score.weight.shape)
    return clf.eval()


def test_a_classifier_comes_back(base: Path, tmp_path: Path) -> None:
    clf = adapted(base)
    interop.save_adapter(clf, tmp_path / "adapter")
    again = GPTForSequenceClassification.from_pretrained(tmp_path / "adapter")
    np.testing.assert_array_equal(again(IDS).data, clf(IDS).data)
    assert again.label_names == ["neg", "other", "pos"]
    assert again.problem_type == clf.problem_type
    onto = GPTForSequenceClassification.from_pretrained(base, num_labels=3)
    assert interop.load_adapter(onto, tmp_path / "adapter") is onto
    np.testing.assert_array_equal(onto.eval()(IDS).data, clf(IDS).data)
    assert not onto.transformer.wte.weight.requires_grad
    assert onto.score.weight.requires_grad
    # On a base that is a classifier: its head gives way.
    plain = GPTForSequenceClassification.from_pretrained(base, label_names=["a", "b", "c"])
    plain.save_pretrained(tmp_path / "classifier", tokenizer=ByteTokenizer())
    content = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    content["base_model_name_or_path"] = str(tmp_path / "classifier")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(tg.UsageError, match="a classifier of the labels"):
        GPTForSequenceClassification.from_pretrained(tmp_path / "adapter")


def test_the_commands_take_it(run: Any, base: Path, tmp_path: Path) -> None:
    interop.save_adapter(adapted(base), tmp_path / "adapter")
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "ab", "label": "neg"}\n{"text": "cde", "label": "pos"}\n', encoding="utf-8")
    answer = run("predict", "--model", tmp_path / "adapter", "--data", data)
    assert answer.code == 0, answer.err
    ids = [ByteTokenizer().encode(text)[None] for text in ("ab", "cde")]
    names = ["neg", "other", "pos"]
    expected = [names[int(adapted(base).predict(one)[0])] for one in ids]
    assert [json.loads(line)["prediction"] for line in answer.out.splitlines()] == expected
    assert run("eval", "--model", tmp_path / "adapter", "--data", data).code == 0
    assert_one_sentence(run("sample", "--model", tmp_path / "adapter"), "is for a classifier: load it with GPTForS")


def test_convert_writes_a_classifier_its_adapter_or_the_sum(run: Any, base: Path, tmp_path: Path) -> None:
    """Of a PEFT adapter, and of a run whose base is packed, which can't leave a whole model behind."""
    clf = adapted(base)
    interop.save_adapter(clf, tmp_path / "adapter", tokenizer=ByteTokenizer())
    answer = run("convert", tmp_path / "adapter", tmp_path / "sum", "--merge-lora")
    assert answer.code == 0, answer.err
    assert "holds the model in float32" in answer.out
    again = GPTForSequenceClassification.from_pretrained(tmp_path / "sum")
    assert again.label_names == ["neg", "other", "pos"]
    assert not lora_layers(again)
    np.testing.assert_allclose(again(IDS).data, clf(IDS).data, rtol=0, atol=1e-5)
    assert (tmp_path / "sum" / "tokenizer.tinygpt.json").exists()
    answer = run("convert", tmp_path / "sum", tmp_path / "half", "--dtype=bfloat16")
    assert answer.code == 0, answer.err
    half = GPTForSequenceClassification.from_pretrained(tmp_path / "half")
    np.testing.assert_allclose(half(IDS).data, clf(IDS).data, rtol=0, atol=0.05 * np.abs(clf(IDS).data).max())
    assert_one_sentence(run("convert", tmp_path / "sum", tmp_path / "no", "--merge-lora"), "has no adapter")
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "".join(f"{'ab'[i % 2]}{i},{'np'[i % 2]}\n" for i in range(20)))
    quick = ["--steps=2", "--batch-size=4", "--lora-rank=2", "--quantize=int8", "--warmup-steps=1"]
    answer = run("finetune", "--model", base, "--data", data, "--out", tmp_path / "run", *quick)
    assert answer.code == 0, answer.err
    assert "`tinygpt convert` writes it for PEFT" in answer.err
    trained = GPTForSequenceClassification.from_pretrained(tmp_path / "run")
    for name, options in (("for-peft", []), ("whole", ["--merge-lora"])):
        answer = run("convert", tmp_path / "run", tmp_path / name, *options)
        assert answer.code == 0, answer.err
        found = GPTForSequenceClassification.from_pretrained(tmp_path / name)
        np.testing.assert_allclose(found(IDS).data, trained(IDS).data, rtol=0, atol=0.02)  # the base is not packed


def test_what_does_not_fit(base: Path, tmp_path: Path) -> None:
    interop.save_adapter(adapted(base), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="is for a classifier: load it with GPTForSequenceClassification"):
        interop.load_adapter(tg.GPT.from_pretrained(base), tmp_path / "adapter")
    two = GPTForSequenceClassification.from_pretrained(base, num_labels=2)
    before = two(IDS).data.copy()
    with pytest.raises(CheckpointError, match=r"has shape \(3, 16\), and this classifier's head \(2, 16\)"):
        interop.load_adapter(two, tmp_path / "adapter")
    np.testing.assert_array_equal(two(IDS).data, before)
    for name, change, words in (
        ("names", lambda arrays, labels: labels.update(names=["a", "a", "b"]), "does not name the labels"),
        ("problem", lambda arrays, labels: labels.update(problem_type="guess"), "does not name the labels"),
        ("none", lambda arrays, labels: arrays.pop("base_model.model.score.weight"), "lacks 'base_model.model.score"),
        ("more", lambda arrays, labels: arrays.update({"base_model.model.score.bias": np.zeros(3)}), "score.bias'"),
    ):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "adapter", folder)
        with SafetensorsFile(folder / FILE) as file:
            arrays = {array: np.asarray(file.read(array)) for array in file.arrays}
            metadata = dict(file.metadata)
        labels = json.loads(metadata["tinygpt_labels"])
        change(arrays, labels)  # type: ignore[no-untyped-call]
        with open(folder / FILE, "wb") as out:
            write_safetensors(out, arrays, metadata | {"tinygpt_labels": json.dumps(labels)}, "float32")
        with pytest.raises(CheckpointError, match=words):
            GPTForSequenceClassification.from_pretrained(folder)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"modules_to_save": ["wte", "score"]}))
    with pytest.raises(CheckpointError, match=r"modules_to_save is \['wte', 'score'\], which"):
        GPTForSequenceClassification.from_pretrained(tmp_path / "adapter")
