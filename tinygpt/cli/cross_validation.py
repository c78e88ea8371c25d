"""`tinygpt finetune --folds K`: K classifiers, each tested on the part of the rows that it was not trained on.

Every text is tested once, and equal texts are in the same fold. Each fold is a run of its own, in FOLDER/fold-1 ...
fold-K, from the same model and with the same settings. It is tested with its last weights, not with those of the best
evaluation, which would have been selected on the test rows themselves. FOLDER/folds.json holds the metrics.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
from typing import Any

import numpy as np

from ..checks import whole_number
from ..console import say
from ..errors import UsageError
from ..files import folder_made, user_path
from ..metrics.labelling import label_report, label_scores, label_table
from ..training.finetuning.run import begin_finetuning
from .rows import write_json

FIGURES = ("accuracy", "micro_f1", "macro_f1", "root_mean_squared_error", "correlation", "rank_correlation", "loss")
REPORT = "folds.json"


def cross_validate(options: argparse.Namespace) -> int:
    """Train and test on each fold; print the mean of the metrics and their standard deviation."""
    for name in ("valid", "resume"):
        if getattr(options, name):
            raise UsageError(f"--folds makes validation rows and runs of its own: leave --{name} out")
    whole_number("finetune", "folds", options.folds, at_least=2)
    reports, scores, labels = [], [], []
    said = set[str]()
    for number in range(options.folds):
        fold = copy.copy(options)
        fold.out, fold.fold = os.path.join(options.out, f"fold-{number + 1}"), (number, options.folds)
        with begin_finetuning(fold) as run:
            if run.task.name != "classify":
                raise UsageError(f"--folds is for the task classify, not for the task {run.task.name}: leave it out")
            notes = [note for note in run.notes if note not in said]  # most are the same for all folds
            said.update(notes)
            say(f"Fold {number + 1} of {options.folds}, in {fold.out}" + "".join(f";\n       {note}" for note in notes))
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
    print(f"{whole['rows']} rows, each tested once in {options.folds} folds; mean and standard deviation of the folds:")
    print("  ".join(f"{name.replace('_', ' ')} {mean:.4f} +- {std:.4f}" for name, (mean, std) in summary.items()))
    print(label_table(whole))
    return 0


def spread(values: list[Any]) -> tuple[float, float]:
    """The mean, and the sample standard deviation (n - 1)."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
