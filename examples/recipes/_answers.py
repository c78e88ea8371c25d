"""Train a model to answer: pre-train on the training texts, fine-tune on the answers, test once.

`answer` writes train.jsonl, validation.jsonl and test.jsonl, with the columns `question`, `answer` and, if several are
correct, `answers`; runs the commands; and compares the model's answers with those of a baseline computed here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _recipe import (
    compared,
    divide,
    five,
    options_of,
    read_json,
    read_rows,
    require_rows,
    small,
    tinygpt,
    write_result,
    write_rows,
)

from tinygpt.console import say
from tinygpt.metrics import exact_match, token_f1
from tinygpt.tokenizers.word import SINGLE

Row = dict[str, Any]
Figures = Callable[[Sequence[str], Sequence[Row]], dict[str, float]]  # of answers to rows
_WORD = re.compile(rf"[{SINGLE}]|[^\W{SINGLE}]+")


@dataclass(frozen=True)
class Sizes:
    """Settings of the commands. rows, test_rows: at most this many; 0: all. new_tokens: maximum length of an answer."""

    pretraining: dict[str, Any]
    finetuning: dict[str, Any]
    new_tokens: int
    rows: int = 0
    test_rows: int = 0


def sliced(sizes: Sizes, block_size: int = 64, rows: int = 300) -> Sizes:
    """The same settings for a model that is too small, on rows that are too few, to see that all works."""
    pretraining = {name: sizes.pretraining[name] for name in ("tokenizer", "vocab_size") if name in sizes.pretraining}
    pretraining |= {
        "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": block_size, "batch_size": 8, "steps": 30,
        "warmup_steps": 5, "eval_every": 30, "eval_batches": 5,
    }  # fmt: skip
    return Sizes(pretraining, {"batch_size": 8, "epochs": 1, "lr": 1e-3}, min(sizes.new_tokens, 16), rows, 20)


@dataclass(frozen=True)
class Baseline:
    """name: for the final sentence; answers: a function from training and test rows to answers to the test rows."""

    name: str
    answers: Callable[[Sequence[Row], Sequence[Row]], list[str]]


def references(row: Row) -> list[str]:
    """All answers that count as correct."""
    return row.get("answers") or [row["answer"]]


def usual_figures(answers: Sequence[str], rows: Sequence[Row]) -> dict[str, float]:
    """Exact match and token F1; if several answers are correct, the best match counts."""
    right = [references(row) for row in rows]
    return {"exact match": exact_match(answers, right), "token F1": token_f1(answers, right)}


def answer(
    rows: Sequence[Row], keys: Sequence[str], options: Any, whole: Sizes, baseline: Baseline, metric: str,
    figures: Figures = usual_figures, more: Callable[[list[Row]], list[Row]] | None = None, texts: Iterable[str] = (),
    block_size: int = 64, template: str = "lines", part: Sizes | None = None,
) -> None:  # fmt: skip
    """The recipe. keys: rows with equal keys are in the same part. metric: the one of `figures` that decides.

    The other arguments are those of `fine_tuned`.
    """
    model, train, validation = fine_tuned(rows, keys, options, whole, more, texts, block_size, template, part)
    _conclude(Path(options.out), model, train + validation, baseline, metric, figures)


def fine_tuned(
    rows: Sequence[Row], keys: Sequence[str], options: Any, whole: Sizes,
    more: Callable[[list[Row]], list[Row]] | None = None, texts: Iterable[str] = (), block_size: int = 64,
    template: str = "lines", part: Sizes | None = None,
) -> tuple[Path, list[Row], list[Row]]:  # fmt: skip
    """The model's folder, with report.json and predictions.jsonl of the test part, and the rows for training and for
    validation, without those that were made.

    more: makes further rows to train on of those for training; texts: further ones to pre-train on. block_size: of a
    slice's model. template: "lines", or "raw" for answers of several lines; then a question ends with a line feed.
    part: the settings for a slice, if the usual ones would show nothing.
    """
    require_rows(rows, "questions with answers")
    sizes, out = (part or sliced(whole, block_size)) if options.slice else whole, Path(options.out)
    chosen = small(list(zip(rows, keys, strict=True)), options, sizes.rows)
    parts = [[chosen[i][0] for i in part] for part in divide([key for _, key in chosen])]
    train, validation, test = parts
    test = list({row["question"]: row for row in test}.values())  # one with many right answers is asked once
    if sizes.test_rows and len(test) > sizes.test_rows:
        test = [test[i * len(test) // sizes.test_rows] for i in range(sizes.test_rows)]
    rows_to_learn = train if more is None else small(more(train), options, sizes.rows)
    paths = {
        name: write_rows(out / f"{name}.jsonl", part)
        for name, part in (("train", rows_to_learn), ("validation", validation), ("test", test))
    }
    say(f"{len(rows):,} rows: {len(rows_to_learn):,} for training, {len(validation):,} for validation, "
        f"{len(test):,} for the test.")  # fmt: skip
    start = options.model or _pretrained(out, rows_to_learn, texts, sizes)
    model = out / "model"
    learn = ["--data", paths["train"], "--valid", paths["validation"], "--template", template, "--skip-bad-rows"]
    tinygpt("finetune", "--model", start, *learn, *options_of(sizes.finetuning), "--out", model, "--overwrite")
    tinygpt("eval", "--model", model, "--data", paths["test"], "--max-new-tokens", sizes.new_tokens, "--skip-bad-rows",
            "--json", model / "report.json", "--predictions", model / "predictions.jsonl")  # fmt: skip
    return model, train, validation


def _pretrained(out: Path, train: Sequence[Row], texts: Iterable[str], sizes: Sizes) -> Path:
    """A language model trained on the questions and answers of the training part, and on the other texts."""
    documents = ["{}\n{}".format(row["question"].rstrip("\n"), row["answer"]) for row in train] + list(texts)
    path = write_rows(out / "texts.jsonl", ({"text": text} for text in documents))
    start = out / "language-model"
    tinygpt("train", "--data", path, *options_of(sizes.pretraining), "--out", start, "--overwrite")
    return start


def _conclude(out: Path, model: Path, train: Sequence[Row], baseline: Baseline, metric: str, figures: Figures) -> None:
    test = read_rows(model / "predictions.jsonl")  # the rows of the test part that the model could read
    ours = figures([row["prediction"] for row in test], test)
    theirs = figures(baseline.answers(train, test), test)
    show_five(test)
    for name, found in (("The model", ours), (f"The baseline, {baseline.name}", theirs)):
        say(f"{name}: {'  '.join(f'{figure} {value:.4f}' for figure, value in found.items())}")
    conclusion = compared(metric, ours[metric], baseline.name, theirs[metric])
    say(conclusion)
    report = read_json(model / "report.json")
    write_result(out, {
        "rows": {"train": len(train), "test": len(test)}, "model": ours, "baseline": theirs, "loss": report["loss"],
        "metric": metric, "conclusion": conclusion,
    })  # fmt: skip


def show_five(test: Sequence[Row]) -> None:
    """Questions of the test part, each with the model's answer and a right one."""
    say("\nFive examples of the test part:")
    for row in five(test):
        say(f"  {_line(row['question'])[-70:]}\n    model:  {_line(row['prediction'])[:70]}\n    right:  "
            f"{_line(references(row)[0])[:70]}")  # fmt: skip
    say("")


def _line(text: str) -> str:
    return text.replace("\n", " | ")


# Baselines --------------------------------------------------------------------------------------------


def words_of(text: str) -> set[str]:
    """The words of a text, in lower case; each Chinese character is one."""
    return set(_WORD.findall(text.lower()))


def most_similar(train: Sequence[Row], test: Sequence[Row]) -> list[str]:
    """The answer to the most similar training question (Jaccard index of the words)."""
    known = [(words_of(row["question"]), row["answer"]) for row in train]

    def similarity(words: set[str], others: set[str]) -> float:
        return len(words & others) / max(1, len(words | others))

    found = []
    for row in test:
        words = words_of(row["question"])
        found.append(max(known, key=lambda pair: similarity(words, pair[0]))[1])
    return found


def most_frequent(train: Sequence[Row], test: Sequence[Row]) -> list[str]:
    """The most frequent answer to questions of the same kind."""
    counts: dict[str, Counter[str]] = {}
    for row in train:
        counts.setdefault(row["kind"], Counter())[row["answer"]] += 1
    return [counts[row["kind"]].most_common(1)[0][0] if row["kind"] in counts else "" for row in test]
