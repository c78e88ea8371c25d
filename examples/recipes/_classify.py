"""Train a classifier: pre-train on the training texts, fine-tune with their labels, test once.

`classify` writes train.jsonl, validation.jsonl and test.jsonl with labelled texts, runs the commands, and compares the
result with naive Bayes. With --seeds N everything is repeated N times, each time also from random weights, to measure
the effect of pre-training. With --regularizers the fine-tuning is repeated with one setting changed at a time, compared
on the validation part only.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _bayes import naive_bayes
from _recipe import (
    at_least_one,
    compared,
    divide,
    five,
    options_of,
    read_json,
    read_rows,
    require_rows,
    small,
    tinygpt,
    untrained,
    write_result,
    write_rows,
)

from tinygpt.console import say
from tinygpt.metrics import accuracy, f1

Labelled = tuple[str, str]  # a text and its label
FIGURES = {"accuracy": "accuracy", "macro_f1": "macro F1"}  # in a report, and on the screen


@dataclass(frozen=True)
class Sizes:
    """Settings of the commands. rows: at most this many texts; 0: all."""

    pretraining: dict[str, Any]
    finetuning: dict[str, Any]
    rows: int = 0
    synonyms: str = ""  # groups of words that may replace each other, one group per line


SLICE = Sizes(
    {"tokenizer": "word", "vocab_size": 2000, "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 64,
     "batch_size": 8, "steps": 30, "warmup_steps": 5, "eval_every": 30, "eval_batches": 5},
    {"batch_size": 8, "epochs": 1, "lr": 1e-3},
    rows=600,
)  # fmt: skip

# Each changes one thing; the others are compared with the first.
# Each is added to a fine-tuning without any of them.
BARE: dict[str, Any] = {"weight_decay": 0, "dropout": 0}
REGULARIZERS: dict[str, dict[str, Any]] = {
    "none": {},
    "weight decay 0.1": {"weight_decay": 0.1},
    "L2 term 1e-4": {"l2": 1e-4},
    "L1 term 1e-6": {"l1": 1e-6},
    "dropout 0.1": {"dropout": 0.1},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "deletion and swap": {"augment": "deletion=0.1,swap=0.1"},
    "frozen embeddings": {"freeze": "wte,wpe"},
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the classification recipes."""
    words = "repeat with N seeds, and if N > 1 also from random weights, to measure pre-training (default: 1)"
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help=words)
    words = "also fine-tune with one setting changed at a time, and compare on the validation part"
    parser.add_argument("--regularizers", action="store_true", help=words)


def distinct(rows: Sequence[Labelled]) -> list[Labelled]:
    """Each text once, without those that have several labels; both are counted and reported."""
    labels: dict[str, set[str]] = {}
    rows = [(text, label) for text, label in rows if text.strip()]
    for text, label in rows:
        labels.setdefault(" ".join(text.split()), set()).add(label)
    kept = [(text, *found) for text, found in labels.items() if len(found) == 1]
    counts = Counter(label for _, label in kept)
    say(f"{len(rows):,} texts, {len(labels):,} of them distinct; {len(labels) - len(kept):,} with several labels left "
        f"out. {', '.join(f'{counts[label]:,} {label}' for label in sorted(counts))}.")  # fmt: skip
    return [(text, label) for text, label in kept]


def classify(
    rows: Sequence[Labelled], options: Any, whole: Sizes, grams: Callable[[str], list[str]], keys: Sequence[str] = (),
    metric: str = "accuracy",
) -> None:  # fmt: skip
    """The recipe, on distinct texts. grams: what naive Bayes counts. keys: rows with equal ones are in one part.

    metric: of `FIGURES`, by which the model is judged.
    """
    require_rows(rows, "labelled texts")
    count, out = at_least_one("--seeds", options.seeds), Path(options.out)
    sizes = replace(SLICE, synonyms=whole.synonyms) if options.slice else whole
    chosen = small(list(zip(rows, keys or [text for text, _ in rows], strict=True)), options, sizes.rows)
    rows = [row for row, _ in chosen]
    parts = {}
    for name, part in zip(("train", "validation", "test"), divide([key for _, key in chosen]), strict=True):
        parts[name] = write_rows(out / f"{name}.jsonl", ({"text": rows[i][0], "label": rows[i][1]} for i in part))
    seeds = [_train(out, parts, options, sizes, seed, paired=count > 1) for seed in range(count)]
    result: dict[str, Any] = {}
    if options.regularizers:
        result["regularizers"] = _regularizers(out, parts, sizes, seeds[0])
    # Only now, with every model trained, is the test part read.
    result |= {"rows": {name: len(read_rows(path)) for name, path in parts.items()}, "seeds": []}
    for seed, models in enumerate(seeds):
        reports = {name: _test(folder, parts["test"]) for name, folder in models.items() if name != "start"}
        result["seeds"].append({"seed": seed} | reports)
    result["naive_bayes"] = _baseline(parts, grams)
    _conclude(seeds[0]["pretrained"], result, metric)
    write_result(out, result)


def _train(out: Path, parts: dict[str, Path], options: Any, sizes: Sizes, seed: int, paired: bool) -> dict[str, Path]:
    """The folders of a seed's models: the starting model, the classifier, and one trained from random weights."""
    folder = out / f"seed-{seed}"
    start = options.model
    if start is None:
        start = folder / "language-model"
        tinygpt("train", "--data", parts["train"], "--cross-documents", *options_of(sizes.pretraining),
                "--seed", seed, "--out", start, "--overwrite")  # fmt: skip
    models = {"start": start, "pretrained": _finetune(start, folder / "classifier", parts, sizes, seed)}
    if paired:
        random = untrained(start, folder / "random-weights", seed)
        models["scratch"] = _finetune(random, folder / "classifier-from-scratch", parts, sizes, seed)
    return models


def _finetune(model: Any, out: Path, parts: dict[str, Path], sizes: Sizes, seed: int, **changed: Any) -> Path:
    settings = sizes.finetuning | {"seed": seed} | changed
    tinygpt("finetune", "--model", model, "--data", parts["train"], "--valid", parts["validation"],
            *options_of(settings), "--out", out, "--overwrite")  # fmt: skip
    return out


def _test(model: Path, data: Path) -> dict[str, Any]:
    tinygpt("eval", "--model", model, "--data", data, "--batch-size", 32, "--json", model / "report.json",
            "--predictions", model / "predictions.jsonl")  # fmt: skip
    report: dict[str, Any] = read_json(model / "report.json")
    return report


def _regularizers(out: Path, parts: dict[str, Path], sizes: Sizes, models: dict[str, Any]) -> dict[str, Any]:
    """The metrics on the validation part for each setting, with the best weights and with the last."""
    found = {}
    regularizers = dict(REGULARIZERS)
    if sizes.synonyms:
        path = out / "synonyms.txt"
        path.write_text(sizes.synonyms.strip() + "\n", encoding="utf-8")
        regularizers["synonyms"] = {"augment": f"synonyms={path}"}
    for name, changed in regularizers.items():
        folder = out / "regularizers" / name.replace(" ", "-")
        _finetune(models["start"], folder, parts, sizes, 0, **BARE | changed)
        evaluations = [row for row in read_rows(folder / "metrics.jsonl") if "accuracy" in row]
        best = min(evaluations, key=lambda row: row["validation_loss"])  # where training would have stopped early
        found[name] = {
            kind: {figure: row[figure] for figure in ("step", "accuracy", "validation_loss")}
            for kind, row in (("best", best), ("last", evaluations[-1]))
        }
    say("\nOn the validation part: accuracy and loss of the best weights, and of the last")
    for name, each in found.items():
        best, last = each["best"], each["last"]
        say(f"{name:<24} {best['accuracy']:.4f}  {best['validation_loss']:.4f}   (step {best['step']})    "
            f"{last['accuracy']:.4f}  {last['validation_loss']:.4f}")  # fmt: skip
    return found


def _baseline(parts: dict[str, Path], grams: Callable[[str], list[str]]) -> dict[str, float]:
    """Naive Bayes has no settings to choose, so it also learns from the validation part."""
    rows = {name: [(row["text"], row["label"]) for row in read_rows(path)] for name, path in parts.items()}
    train, test = rows["train"] + rows["validation"], rows["test"]
    found, right = naive_bayes(train, [text for text, _ in test], grams), [label for _, label in test]
    return {"accuracy": accuracy(found, right), "macro_f1": f1(found, right)}


def _conclude(model: Path, result: dict[str, Any], metric: str) -> None:
    say("\nFive examples of the test part:")
    for row in five(read_rows(model / "predictions.jsonl")):
        mark = "right" if row["prediction"] == row["label"] else "wrong"
        say(f"  {row['prediction']} ({row['score']:.2f}, {mark}): {row['text']:.60}")
    say("")
    bayes, seeds, word = result["naive_bayes"], result["seeds"], FIGURES[metric]
    if len(seeds) > 1:
        differences = [each["pretrained"][metric] - each["scratch"][metric] for each in seeds]
        for each, difference in zip(seeds, differences, strict=True):
            say(f"Seed {each['seed']}: {word} {each['pretrained'][metric]:.4f} pre-trained, "
                f"{each['scratch'][metric]:.4f} from random weights ({difference:+.4f})")  # fmt: skip
        mean, spread = statistics.mean(differences), statistics.stdev(differences)
        result["pretraining_is_worth"] = {"mean": mean, "standard_deviation": spread}
        say(f"Pre-training gains {100 * mean:+.2f} points of {word} (standard deviation {100 * spread:.2f}).")
    ours = {name: statistics.mean(each["pretrained"][name] for each in seeds) for name in FIGURES}
    for name, found in (("The model", ours), ("Naive Bayes", bayes)):
        say(f"{name}: {'  '.join(f'{FIGURES[figure]} {value:.4f}' for figure, value in found.items())}")
    result["metric"] = metric
    result["conclusion"] = compared(word, ours[metric], "naive Bayes", bayes[metric])
    say(result["conclusion"])
