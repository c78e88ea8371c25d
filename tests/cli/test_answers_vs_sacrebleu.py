"""`tinygpt eval --metrics`: the figures of sacrebleu and rouge-score, with the signature."""

from __future__ import annotations

import pytest

from tinygpt import metrics
from tinygpt.cli.answers import METRICS, answer_report

pytest.importorskip("sacrebleu", reason="needs the extra compat")
pytest.importorskip("rouge_score", reason="needs the extra compat")


def test_the_metrics_that_need_a_library() -> None:
    found, right = ["今天天气很好", "the cat sat"], ["今天天气真好", "a cat sat down"]
    report = answer_report(found, right, METRICS)
    bleu = metrics.bleu(found, right)
    assert (report["bleu"], report["bleu_signature"]) == bleu
    assert report["chrf"] == metrics.chrf(found, right).score
    assert report["rouge1"] == metrics.rouge(found, right)["rouge1"]
    assert set(answer_report(found, right, ())) == {"exact_match", "token_f1"}
