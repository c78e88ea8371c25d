"""BLEU, chrF and ROUGE are sacrebleu's and rouge-score's, and 100 (or 1) for what is identical in any script."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tinygpt import UsageError, metrics
from tinygpt.errors import MissingExtraError

sacrebleu = pytest.importorskip("sacrebleu", reason="needs the extra compat")
rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="needs the extra compat")

ENGLISH = ["The cat sat on the mat, quietly.", "It isn't raining today in Berlin.", "A dog!"]
OTHERS = ["The cat is on the mat.", "It is not raining in Berlin today.", "The dog."]
CHINESE = ["今天天气很好\uff0c我们去公园。", "他在北京大学学习中文。"]
ALSO_CHINESE = ["今天天气真好\uff0c我们去公园玩。", "他在北京学中文。"]
JAPANESE = ["東京はとても大きいです。", "私は本を読みます。"]
THAI = ["สวัสดีครับ วันนี้อากาศดี"]


@pytest.mark.parametrize(
    ("references", "tokenizer"),
    [
        (ENGLISH, "13a"),
        (CHINESE, "zh"),
        (JAPANESE, "char"),
        (THAI, "char"),
        (["한국어 문장입니다 오늘은 좋아요"], "13a"),
    ],
    ids=["en", "zh", "ja", "th", "ko"],
)
def test_identical_texts_are_100_and_the_tokenizer_follows_the_script(references: list[str], tokenizer: str) -> None:
    found = metrics.bleu(references, references)
    assert found.score == 100.0  # never 100.00000000000004
    assert f"tok:{tokenizer}|" in found.signature
    assert metrics.chrf(references, references).score == 100.0
    assert set(metrics.rouge(references, references).values()) == {1.0}


def test_the_traps_are_there() -> None:
    """What the libraries say by themselves of two identical Chinese sentences: if this changes, look again."""
    assert sacrebleu.corpus_bleu(CHINESE[:1], [CHINESE[:1]]).score == 0.0
    assert sacrebleu.corpus_bleu(CHINESE[:1], [CHINESE[:1]], tokenize="zh").score > 100.0
    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"])
    assert scorer.score(CHINESE[0], CHINESE[0])["rouge1"].fmeasure == 0.0


@pytest.mark.parametrize(
    ("found", "right", "tokenizer"), [(OTHERS, ENGLISH, "13a"), (ALSO_CHINESE, CHINESE, "zh")], ids=["en", "zh"]
)
def test_bleu_and_chrf_are_sacrebleus(found: list[str], right: list[str], tokenizer: str) -> None:
    metric = sacrebleu.metrics.BLEU(tokenize=tokenizer)
    ours = metrics.bleu(found, right)
    assert 0 < ours.score < 100
    assert ours == (metric.corpus_score(found, [right]).score, str(metric.get_signature()))
    metric = sacrebleu.metrics.CHRF()
    assert metrics.chrf(found, right) == (metric.corpus_score(found, [right]).score, str(metric.get_signature()))


def test_several_references_even_if_their_numbers_differ() -> None:
    right = [[ENGLISH[0], OTHERS[0]], [ENGLISH[1]], ENGLISH[2]]
    columns = [ENGLISH, [OTHERS[0], None, None]]
    ours = metrics.bleu(OTHERS, right)
    assert ours.score == sacrebleu.corpus_bleu(OTHERS, columns).score
    assert "nrefs:var" in ours.signature
    best = metrics.rouge(OTHERS, right)
    assert best["rouge1"] > metrics.rouge(OTHERS, ENGLISH)["rouge1"]


def test_texts_of_less_than_four_words_can_be_right() -> None:
    """BLEU counts runs of up to four words; without any it would be 0, whatever the texts."""
    found = metrics.bleu(["北京", "上海"], ["北京", "上海"])
    assert found.score == 100.0
    assert "eff:yes" in found.signature
    assert metrics.bleu(["北京", "上海"], ["北京", "南京"]).score < 100
    assert "eff:no" in metrics.bleu(ENGLISH, ENGLISH).signature


def test_a_tokenizer_can_be_chosen() -> None:
    assert "tok:char" in metrics.bleu(ENGLISH, ENGLISH, tokenize="char").signature
    with pytest.raises(UsageError, match=r"tokenize must be one of .*13a.*, not 'words'"):
        metrics.bleu(ENGLISH, ENGLISH, tokenize="words")


def test_names_and_placeholders_in_chinese_leave_it_chinese() -> None:
    """Of a message catalogue: the words between spaces are few beside the characters."""
    right = ["%(name)s 必须是一个有效的整数。", "请输入 iPhone 的序列号"]
    assert "tok:zh" in metrics.bleu(right, right).signature
    assert "tok:13a" in metrics.bleu(["The word 好 means good in Chinese"], ["The word 好 means good"]).signature


def test_rouge_on_english_is_rouge_scores_own() -> None:
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    ours = metrics.rouge(OTHERS, ENGLISH)
    for kind, value in ours.items():
        each = [scorer.score(right, found)[kind].fmeasure for found, right in zip(OTHERS, ENGLISH, strict=True)]
        assert value == pytest.approx(sum(each) / 3), kind


def test_rouge_on_chinese_counts_characters_as_often_as_they_occur() -> None:
    """今天天气很好 and 今天天气真好 share 5 of 6; a set of characters would lose the second 天."""
    found = metrics.rouge(["今天天气很好"], ["今天天气真好"])
    assert found["rouge1"] == pytest.approx(5 / 6)
    assert found["rouge2"] == pytest.approx(3 / 5)
    assert found["rougeL"] == pytest.approx(5 / 6)
    assert metrics.rouge(["café noir"], ["cafe noir"])["rouge1"] == pytest.approx(1 / 2)


def test_empty_texts_are_wrong_and_no_error() -> None:
    assert metrics.bleu(["", ""], ENGLISH[:2]).score == 0.0
    assert metrics.chrf([""], ["今天"]).score == 0.0
    assert metrics.rouge([""], ["今天"]) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
    for metric in (metrics.bleu, metrics.chrf, metrics.rouge):
        with pytest.raises(UsageError, match="there is nothing to measure"):
            metric([], [])


@pytest.mark.parametrize(
    ("metric", "package"), [("bleu", "sacrebleu"), ("chrf", "sacrebleu"), ("rouge", "rouge-score")]
)
def test_a_missing_library_is_named(metric: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    call: Any = getattr(metrics, metric)
    with pytest.raises(MissingExtraError, match=f"needs the package '{package}'.*pip install {package}"):
        call(ENGLISH, ENGLISH)
