"""The page of `tinygpt explain`: what it says is what the model does, in HTML that needs nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tests.html_page import Page
from tests.interpret.helpers import make_model
from tinygpt import tokenizers
from tinygpt.errors import UsageError
from tinygpt.interpret import Explanation, attention_maps, explain, page, saliency
from tinygpt.interpret.page import visible

TEXT = "a<b>&\n \"c'"


@pytest.fixture(scope="module")
def model() -> tg.GPT:
    return make_model("float32", vocab_size=256).eval()


@pytest.fixture(scope="module")
def found(model: tg.GPT) -> Explanation:
    return explain(model, tokenizers.ByteTokenizer(), TEXT, "b", steps=40)


def ids() -> np.ndarray:
    return tokenizers.ByteTokenizer().encode(TEXT)


def test_what_it_says(model: tg.GPT, found: Explanation) -> None:
    with tg.no_grad():
        scores = model(ids()[None]).log_softmax().data[0].astype(np.float64)
    assert "".join(found.tokens) == TEXT
    assert np.isnan(found.surprise[0])
    expected = [-scores[t, token] / np.log(2) for t, token in enumerate(ids()[1:])]
    np.testing.assert_allclose(found.surprise[1:], expected, rtol=1e-4)
    assert np.array_equal(found.lens_ids[-1], scores.argmax(-1))
    np.testing.assert_allclose(found.lens_probabilities[-1], np.exp(scores.max(-1)), rtol=1e-4)
    assert np.array_equal(found.maps, attention_maps(model, ids()))
    assert found.target == "b"
    assert found.target_probability == pytest.approx(np.exp(scores[-1, ord("b")]), rel=1e-4)
    for method, values in found.saliency.items():
        assert np.array_equal(values, saliency(model, ids(), ord("b"), method, steps=40))
    best = np.sort(np.exp(scores[2]))[::-1][:5]
    np.testing.assert_allclose([p for _, p in found.alternatives[2]], best, rtol=1e-4)


def test_when_the_answer_appears(found: Explanation) -> None:
    for t, column in enumerate(found.lens_ids.T):
        depth = found.settled(t)
        assert (column[depth:] == column[-1]).all()
        assert depth == 0 or column[depth - 1] != column[-1]


def test_the_card(model: tg.GPT, found: Explanation) -> None:
    assert sum(part.weights for part in found.parts) == model.num_parameters()
    assert sum(part.bytes for part in found.parts) == 4 * model.num_parameters()
    assert [part.name for part in found.parts] == ["embeddings", "attention", "MLP", "norms", "head"]
    assert all(part.seconds > 0 for part in found.parts)
    facts = dict(found.facts)
    assert facts["blocks, heads, channels"] == "3 x 4 x 24"
    assert facts["keys and values"] == "576 bytes per token, 6,912 for a full block"
    packed = explain(make_model("float32", vocab_size=256).pack("int8"), tokenizers.ByteTokenizer(), "abc", steps=40)
    assert sum(part.weights for part in packed.parts) == model.num_parameters()
    assert sum(part.bytes for part in packed.parts) < 2 * model.num_parameters()
    assert dict(packed.facts)["dtype"] == "packed in int8"


def test_the_page_is_whole_and_alone(found: Explanation) -> None:
    html = page("<model> & co", found)
    read = Page(html)
    assert ("title", "<model> & co: explained") in read.texts
    assert not [attributes for _, attributes in read.found if {"src", "href"} & attributes.keys()]
    assert not re.search(r"https?://|url\(|@import", html)
    (data,) = [text for tag, text in read.texts if tag == "script" and text.startswith("{")]
    assert json.loads(data)["tokens"] == [visible(token) for token in TEXT]
    assert html.count("</script>") == 2
    shown = [text for tag, text in read.texts if tag == "span"]
    for token in TEXT:
        assert visible(token) in shown
    assert "width=device-width" in html
    assert "prefers-color-scheme: dark" in html


def test_a_token_that_would_end_the_script(model: tg.GPT) -> None:
    found = explain(model, tokenizers.ByteTokenizer(), "</script>", steps=40)
    Page(page("x", found))
    hostile = Explanation(**(vars(found) | {"tokens": ["</script><script>alert(1)</script>"] * len(found.tokens)}))
    html = page("x", hostile)
    assert html.count("</script>") == 2
    assert "<script>alert" not in html
    Page(html)


@pytest.mark.parametrize(
    ("text", "target", "words"),
    [
        ("", None, "must have 2 to 12 tokens, this one has 0"),
        ("x", None, "this one has 1"),
        ("x" * 13, None, "this one has 13"),
        ("abc", "de", r"target 'de' must be one token, but is 2 \('d', 'e'\)"),
        ("abc", "", "but is 0"),
    ],
)
def test_what_can_not_be_explained(model: tg.GPT, text: str, target: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        explain(model, tokenizers.ByteTokenizer(), text, target)


def test_the_command(run: Any, tmp_path: Path, model: tg.GPT) -> None:
    folder, out = tmp_path / "model", tmp_path / "explain.html"
    folder.mkdir()
    model.save_pretrained(folder, tokenizer=tokenizers.ByteTokenizer())
    answer = run("explain", "--model", folder, "--text=abcabc", "--target=a", "--steps=40", "--out", out)
    assert answer.code == 0, answer.err
    assert re.fullmatch(rf"{re.escape(str(out))}: 6 tokens, a perplexity of [\d.e+]+\n", answer.out)
    html = out.read_text(encoding="utf-8")
    Page(html)
    assert str(tmp_path) not in html  # where a model lies is nobody's business
    before = out.read_bytes()
    for options, words in (
        (("--text=x", "--out", out), "must have 2 to 12 tokens"),
        (("--text=abc", "--target=de", "--out", out), "must be one token"),
        (("--text=abc", "--out", tmp_path), "is a folder: give the name of a file"),
        (("--text=abc", "--out", tmp_path / "none" / "x.html"), "which is not a folder"),
        (("--text=abc", "--steps=0", "--out", out), "steps must be at least 1"),
    ):
        assert_one_sentence(run("explain", "--model", folder, *options), words)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["explain.html", "model"]
