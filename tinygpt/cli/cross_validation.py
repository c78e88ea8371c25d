"""`tinygpt finetune --folds K`: K classifiers, each tested on the part of the rows that it was not trained on.

Every text is tested once, and equal texts are in the same fold. Each fold is a separate run, in FOLDER/fold-1 ...
fold-K, from the same model and with the same settings. It is tested with its last weights, not with those of the best
evaluation, which would have been selected on the test rows themselves. FOLDER/folds.json holds the metrics.

With --overwrite, surplus folds of an earlier cross-validation with a larger K are deleted at the end: nothing in
folds.json refers to them. Anything else in their folders stays.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import whole_number
from ..console import say
from ..errors import CheckpointError, UsageError
from ..files import folder_made, shown, user_path
from ..metrics.labelling import label_report, label_scores, label_table
from ..training.finetuning.data_facts import read_data_facts
from ..training.finetuning.run import begin_finetuning
from ..training.monitoring.following import choose_following, follow
from ..training.storage.discard import discard
from ..training.storage.folder import RunFolder
from .rows import write_json

FIGURES = ("accuracy", "micro_f1", "macro_f1", "root_mean_squared_error", "correlation", "rank_correlation", "loss")
REPORT = "folds.json"


def cross_validate(options: argparse.Namespace) -> int:
    """Train and test on each fold; print the mean of the metrics and their standard deviation."""
    for name in ("valid", "resume"):
        if getattr(options, name):
            raise UsageError(f"--folds makes its own validation rows and runs: leave --{name} out")
    whole_number("finetune", "folds", options.folds, at_least=2)
    former = former_folds(user_path(options.out), options.folds)
    if former and not options.overwrite:
        raise UsageError(
            f"the folder {shown(former[0].path)} holds a fold of an earlier cross-validation, which had more of them: "
            "choose another --out, or replace it with --overwrite"
        )
    following = choose_following(options, user_path(options.out))
    reports, scores, labels = [], [], []
    said = set[str]()
    for number in range(options.folds):
        fold = copy.copy(options)
        fold.out, fold.fold = os.path.join(options.out, f"fold-{number + 1}"), (number, options.folds)
        with begin_finetuning(fold, following.require_loggers) as run:
            if run.task.name != "classify":
                raise UsageError(f"--folds is for the task classify, not for the task {run.task.name}: leave it out")
            notes = [note for note in run.notes if note not in said]  # most are the same for all folds
            said.update(notes)
            say(f"Fold {number + 1} of {options.folds}, in {fold.out}" + "".join(f";\n       {note}" for note in notes))
            follow(run.trainer, following, run.tokenizer, run.task.template)
            result = run.trainer.run()
            if result.signal is not None:
                return 128 + result.signal
            clf, examples = run.trainer.model, run.trainer.objective.validation.examples  # type: ignore[attr-defined]
            found = label_scores(clf, examples, run.settings.training.batch_size)
            right = [example.label for example in examples]
            reports.append(label_report(clf, found, right))
            scores.append(found)
            labels += right
    whole = label_report(clf, np.concatenate(scores), labels)
    summary = {name: spread([report[name] for report in reports]) for name in FIGURES if name in whole}
    place = folder_made(user_path(options.out)) / REPORT
    write_json(str(place), {**summary, "folds": reports, "all_rows": whole})
    for folder in former:
        discard(folder)
    print(f"{whole['rows']} rows, each tested once in {options.folds} folds; mean and standard deviation of the folds:")
    print("  ".join(f"{name.replace('_', ' ')} {mean:.4f} +- {std:.4f}" for name, (mean, std) in summary.items()))
    print(label_table(whole))
    return 0


def former_folds(place: Path, count: int) -> list[RunFolder]:
    """The runs in `place` left over from an earlier cross-validation, which one with `count` folds would not replace.

    The run's own record decides, not its name: one of the user's runs may have such a name.
    """
    found = []
    for path in sorted(place.glob("fold-*")):
        number = re.fullmatch(r"fold-([1-9]\d*)", path.name)
        folder = RunFolder(path)
        if number is None or int(number[1]) <= count or not folder.holds_run():
            continue
        with contextlib.suppress(CheckpointError):
            fold = read_data_facts(path)["fold"]
            if isinstance(fold, list) and fold[:1] == [int(number[1]) - 1]:
                found.append(folder)
    return found


def spread(values: list[Any]) -> tuple[float, float]:
    """The mean, and the sample standard deviation (n - 1)."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
