"""Supervised fine-tuning beside transformers: the masked loss and its gradient, and the folder of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import load_ours, make_theirs, torch, transformers
from tests.training.helpers import OPTIONS
from tinygpt import GPTForSequenceClassification, interop
from tinygpt.data.dialogue import PRESETS
from tinygpt.data.examples import AnswerExamples, collate
from tinygpt.data.rows import Row
from tinygpt.tokenizers import ByteTokenizer


@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_the_masked_loss_is_that_of_transformers_with_labels_of_minus_100(tmp_path: Path, loss_on: str) -> None:
    """On rows of different lengths, padded on the right, with their attention mask."""
    theirs = make_theirs(vocab_size=256, n_positions=40, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    ours = load_ours(theirs, tmp_path).train()
    maker = AnswerExamples(ByteTokenizer(), 40, 0, ("prompt", "completion"), PRESETS["plain"], loss_on)
    pairs = [("2 + 2?", "4"), ("hi", "a longer answer"), ("which?", "none")]
    examples = [maker.make(Row({"prompt": p, "completion": c}, "")) for p, c in pairs]
    loss = ours.loss(*collate(examples))
    loss.backward()
    longest = max(map(len, examples))
    ids, labels, mask = (np.full((len(examples), longest), fill) for fill in (9, -100, 0))
    for i, example in enumerate(examples):
        n = len(example)
        ids[i, :n], mask[i, :n] = example.ids, 1
        labels[i, :n] = np.where(example.learned, example.ids, -100)
    expected = theirs(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), labels=torch.tensor(labels)).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in theirs.named_parameters():
        mine = dict(ours.named_parameters())[name.removeprefix("transformer.")]
        np.testing.assert_allclose(mine.grad, parameter.grad.numpy(), rtol=1e-3, atol=2e-5, err_msg=name)


def test_transformers_answers_as_the_fine_tuned_model_does(
    run: Any, text: Path, tmp_path: Path, without_picture: None
) -> None:
    base, data, folder = tmp_path / "base", tmp_path / "rows.jsonl", tmp_path / "run"
    options = [*OPTIONS, "--tokenizer=bpe", "--vocab-size=270", "--block-size=24", f"--data={text}"]
    assert run("train", *options, f"--out={base}").code == 0
    rows = [{"prompt": f"say {word}:", "completion": " be, or not"} for word in ("to", "be", "or", "not", "that", "is")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["finetune", f"--model={base}", f"--data={data}", f"--out={folder}", "--steps=120", "--lr=0.02"]
    answer = run(*command, "--batch-size=6", "--eval-every=60")
    assert answer.code == 0, answer.err
    ours, tokenizer = interop.load(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = their_tokenizer("say that:", return_tensors="pt")
    found = theirs.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0].tolist()
    assert found[-1] == tokenizer.eos_token_id  # it has learned where an answer ends
    assert tokenizer.decode(found[:-1]) == "say that: be, or not"
    assert ours.generate(ids["input_ids"].numpy(), max_new_tokens=12, do_sample=False)[0].tolist() == found


@pytest.mark.parametrize(
    ("kind", "labels", "problem"),
    [
        ("multi", [["a"], ["b", "c"], [], ["a", "c"]], "multi_label_classification"),
        ("number", [0.5, -1.5, 2, 0], "regression"),
    ],
)
def test_transformers_labels_as_the_classifier_of_a_run_does(
    kind: str, labels: list[Any], problem: str, run: Any, tmp_path: Path, without_picture: None
) -> None:
    base, data, folder = tmp_path / "base", tmp_path / "rows.jsonl", tmp_path / "run"
    load_ours(make_theirs(vocab_size=256), tmp_path / "theirs").save_pretrained(base, tokenizer=ByteTokenizer())
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(labels * 3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["finetune", f"--model={base}", f"--data={data}", f"--out={folder}", f"--label-kind={kind}"]
    answer = run(*command, "--steps=3", "--batch-size=4", "--lr=0.01")
    assert answer.code == 0, answer.err
    theirs = transformers.GPT2ForSequenceClassification.from_pretrained(folder).eval()
    assert theirs.config.problem_type == problem
    assert list(theirs.config.id2label.values()) == (["a", "b", "c"] if kind == "multi" else ["LABEL_0"])
    ids = np.asarray(ByteTokenizer().encode("t7"))
    target = torch.tensor([[1.0, 0, 1]] if kind == "multi" else [0.3])
    with torch.no_grad():
        found = theirs(torch.tensor(ids)[None], labels=target)
    ours = GPTForSequenceClassification.from_pretrained(folder)
    np.testing.assert_allclose(ours(ids[None]).data, found.logits.numpy(), rtol=0, atol=2e-5)
    assert ours.loss(ids[None], target.numpy()).item() == pytest.approx(found.loss.item(), abs=2e-5)
