"""The recipes whose figures come from sacrebleu and rouge-score, on small data of the real layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.test_recipes import assert_answered, result_of, run, wheel
from tinygpt.metrics import bleu, rouge

EXTRA = "needs the extra metrics: pip install -e '.[metrics]'"
pytest.importorskip("sacrebleu", reason=EXTRA)
pytest.importorskip("rouge_score", reason=EXTRA)
pytestmark = pytest.mark.slow


def test_translation(tmp_path: Path) -> None:
    """Messages of several lines are left out; the translation memory keeps placeholders as far as it knows them."""
    entries = ['msgid ""\nmsgstr ""\n"Content-Type: text/plain"']
    for i in range(60):
        entries.append(f'msgid "Save file number {i} of %(total)s"\nmsgstr "保存 %(total)s 个文件中的第{i}个"')
    entries.append('msgid "two\\nlines"\nmsgstr "两\\n行"')
    name = "django/contrib/admin/locale/zh_Hans/LC_MESSAGES/django.po"
    out = tmp_path / "out"
    package = wheel(tmp_path / "django-5.2.19-py3-none-any.whl", {name: "\n\n".join(entries)})
    done = run("translation", package, out)
    result = result_of(done, out)
    assert_answered(result, out, lambda answers, right: bleu(answers, right).score)
    assert "60 rows: " in done.stdout
    assert "tok:zh" in done.stdout
    assert result["baseline"]["placeholders kept"] == 1.0
    assert result["baseline"]["BLEU"] > 50


def test_summaries(tmp_path: Path) -> None:
    """The baseline, the first sentence of the text, is the summary itself where that is repeated."""
    pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    library = tmp_path / "library"
    library.mkdir()
    for i in range(40):
        first = f"Return the number {i} of the list."
        rest = f"It is counted from zero, and negative ones are counted from the end of the list {i}."
        text = f"{first}\n\n    {first} {rest}"
        (library / f"m{i}.py").write_text(f'def f{i}():\n    """{text}"""\n    return {i}\n')
    out = tmp_path / "out"
    result = result_of(run("summaries", None, out, f"--library={library}"), out)
    assert_answered(result, out, lambda answers, right: rouge(answers, right)["rougeL"])
    assert result["baseline"]["ROUGE-L"] == 1.0
