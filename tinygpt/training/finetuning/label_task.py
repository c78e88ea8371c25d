"""The task `classify`: train a classifier on rows with a text and a label.

The labels are those of the training rows, in numerical or alphabetical order; a resumed run keeps its labels. Each
evaluation also reports the metrics below; the best weights are those with the lowest loss.

| kind | the column `label` | evaluation |
|---|---|---|
| single | a name | accuracy, macro F1 |
| multi | a list of names, possibly empty, or names separated by vertical bars | texts with all labels right, F1 |
| number | a number | RMSE, Pearson's and Spearman's correlation |
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from ...checks import number
from ...classifier import GPTForSequenceClassification
from ...data.augment import Augmentation, read_augmentation, stream_of
from ...data.labelled import LABEL, TEXT, LabelledExample, LabelledExamples, collate_labelled, kind_of, label_names
from ...data.row_batches import AllRows, RowBatches
from ...errors import UsageError
from ...files import shown
from ...graph import no_grad
from ...labels import MULTI, REGRESSION, SINGLE
from ...metrics.classification import accuracy, f1
from ...metrics.labelling import label_report
from ...nn.losses import classification_loss
from ...random import Generator
from ...tensor import Tensor
from ...tokenizers import Tokenizer, UnknownCharacterError
from ..objective import Batch, Objective
from ..settings.config import TrainingConfig
from .task_options import TaskOptions

BALANCED = "balanced"
KINDS = {"single": SINGLE, "multi": MULTI, "number": REGRESSION}
_FIGURES = ("accuracy", "micro_f1", "macro_f1", "root_mean_squared_error", "correlation", "rank_correlation")


class LabelObjective(Objective):
    """The label of each text. A batch is ids (B, T), labels (B,), lengths (B,).

    class_weights: (K,) or None; label_smoothing: see `tinygpt/nn/losses.py`. Evaluations use no smoothing.
    """

    def __init__(
        self, batches: Any, validation: Iterable[Batch], tokens: int, data: dict[str, Any],
        label_smoothing: float = 0.0, class_weights: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        super().__init__(batches, validation, tokens, data)
        self.label_smoothing, self.class_weights = label_smoothing, class_weights

    def count(self, batch: Batch) -> float:
        """The weight of a batch: the class weights of its labels."""
        labels = batch[1]
        return float(len(labels) if self.class_weights is None else self.class_weights[labels].sum())

    def loss(self, model: Any, *batch: np.ndarray) -> Tensor:
        ids, labels, lengths = batch
        loss: Tensor = model.loss(
            ids, labels, lengths, label_smoothing=self.label_smoothing, class_weights=self.class_weights
        )
        return loss

    def evaluate(self, model: Any, batches: Iterable[Batch]) -> dict[str, float]:
        if model.problem_type != SINGLE:
            return self._evaluate_others(model, batches)
        total, found, right = 0.0, list[int](), list[int]()
        with model.evaluating(), no_grad():
            for ids, labels, lengths in batches:
                logits = model(ids, lengths)
                total += len(labels) * float(classification_loss(logits, labels).item())
                found += logits.numpy().argmax(axis=1).tolist()
                right += labels.tolist()
        return {
            "validation_loss": total / len(right), "accuracy": accuracy(found, right), "macro_f1": f1(found, right)
        }  # fmt: skip

    def _evaluate_others(self, model: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """`evaluate` for several labels per text, or for numbers."""
        total, scores, right = 0.0, list[np.ndarray](), list[np.ndarray]()
        with model.evaluating(), no_grad():
            for ids, labels, lengths in batches:
                total += len(labels) * float(model.loss(ids, labels, lengths).item())
                scores.append(model.scores(ids, lengths))
                right.append(labels)
        labels = np.concatenate(right)
        report = label_report(model, np.concatenate(scores), labels)  # type: ignore[arg-type]
        return {"validation_loss": total / len(labels)} | {name: report[name] for name in _FIGURES if name in report}


class LabelTask:
    """One text and one label per row. A run that starts from a classifier keeps its head and its labels.

    Raises UsageError if there are fewer than two labels.
    """

    name: ClassVar[str] = "classify"
    template = None

    def __init__(self, options: TaskOptions, model: Any, tokenizer: Tokenizer) -> None:
        for option, value in (("--template", options.template), ("--loss-on", options.loss_on)):
            if value is not None:
                raise UsageError(f"{option} is for prompts with answers, not for the task classify: leave it out")
        self.files = options.files
        self.classifier = options.classifier
        self.new = self.classifier is None and options.labels is None
        columns = list(options.columns[1:]) if options.columns[1:] != (LABEL,) else None
        self.kind = self._kind(options, columns is not None)
        for option, given in (
            ("--label-smoothing", options.label_smoothing is not None),
            ("--class-weights", options.class_weights is not None),
        ):
            if given and self.kind != "single":
                raise UsageError(f"{option} is for one label per text, not for --label-kind {self.kind}: leave it out")
        if self.classifier is not None:
            self.labels = list(self.classifier.label_names)
            if columns is not None and {*columns} != {*self.labels}:
                raise UsageError(
                    f"--label-columns must name the labels of the classifier, {', '.join(map(repr, self.labels))}, "
                    f"not {', '.join(map(repr, columns))}"
                )
        elif columns is not None:
            self.labels = columns
        elif self.kind == "number":
            self.labels = ["LABEL_0"]  # transformers' name for the only output
        else:
            with self._naming(0):
                self.labels = list(options.labels or label_names(options.rows(), self.kind == "multi"))
        smoothing = options.label_smoothing or 0.0
        self.smoothing = number("classify", "label_smoothing", smoothing, at_least=0, below=1)
        self.balanced = options.class_weights == BALANCED
        how = self.kind if columns is None else "columns"
        self.maker = LabelledExamples(tokenizer, model.config.block_size, self.labels, how)
        self.augmentation = read_augmentation(options.augment) if options.augment else None
        if self.augmentation is not None:
            self._check_synonyms(self.augmentation)

    def _kind(self, options: TaskOptions, columns: bool) -> str:
        """How the labels are read: as requested, as the starting classifier has them, or "multi" if they are lists."""
        kind: str | None = options.label_kind
        if columns and kind not in (None, "multi"):
            raise UsageError(f"--label-columns means several labels per text, not --label-kind {kind}: leave one out")
        kind = "multi" if columns else kind
        if self.classifier is None or self.classifier.problem_type is None:
            return kind or kind_of(next(iter(options.rows()), None))
        its = next(name for name, problem in KINDS.items() if problem == self.classifier.problem_type)
        if kind not in (None, its):
            raise UsageError(
                f"the model is a classifier for {self.classifier.problem_type}, which reads labels as {its}: leave out "
                f"--label-kind {kind}, or start from another model"
            )
        if its == "number" and self.classifier.num_labels != 1:
            raise UsageError("the model predicts several numbers per text, but finetune learns one: start from another")
        return its

    @property
    def synonyms_sha256(self) -> str | None:
        """Identifies the file of synonyms, if there is one."""
        return None if self.augmentation is None else self.augmentation.sha256

    @contextlib.contextmanager
    def _naming(self, part: int) -> Iterator[None]:
        """Name the file in an error: the one with the training rows (0) or the validation rows (1)."""
        try:
            yield
        except UsageError as error:
            name = "" if self.files is None else shown(self.files[part])
            if str(error).startswith(name):  # an error about a row names its file and line
                raise
            raise UsageError(f"{name}: {error}") from error

    def _check_synonyms(self, augmentation: Augmentation) -> None:
        """Raise UsageError for a synonym outside the vocabulary, before training meets it."""
        for word in augmentation.synonyms:
            try:
                self.maker.tokenizer.encode(word)
            except UnknownCharacterError as error:
                raise UsageError(
                    f"the character {error.character!r} of the synonym {word!r} in {shown(augmentation.path or '')} is "
                    "not in the model's vocabulary: leave the synonym out"
                ) from error

    def model_on(self, body: Any) -> GPTForSequenceClassification:
        """The model to train: the starting model with a new head, unless it already has one."""
        if self.classifier is not None:
            clf: GPTForSequenceClassification = self.classifier
            return clf
        return GPTForSequenceClassification(body, len(self.labels), KINDS[self.kind], label_names=self.labels)

    def objective(
        self, train: Sequence[LabelledExample], validation: Sequence[LabelledExample], config: TrainingConfig
    ) -> Objective:
        """What the run learns. Raises UsageError if a label has no rows to train on, or validation has only one."""
        weights = None
        with self._naming(0):
            if self.kind == "multi" and self.new:
                _require_rows(train, self.labels)
            if self.kind == "single" and (self.new or self.balanced):  # a classifier may now have fewer
                weights = class_weights(train, self.labels)
        with self._naming(1):
            if self.kind == "single" and len({example.label for example in validation}) < 2:
                raise UsageError(
                    f"the {len(validation)} validation rows all have the label {self.labels[validation[0].label]!r}, "
                    "so they say nothing about the others: give rows with several labels with --valid FILE, or a "
                    "larger --validation-fraction"
                )
        batches = RowBatches(
            train, config.batch_size, config.gradient_accumulation, config.seed, collate_labelled,
            self._varied(train, config.seed),
        )  # fmt: skip
        count = batches.steps_per_epoch * config.gradient_accumulation
        rows = AllRows(validation, config.batch_size, collate_labelled, config.eval_batches)
        data = {
            "train": digest(train), "validation": digest(validation), "labels": self.labels,
            "label_smoothing": self.smoothing, "balanced": self.balanced,
        }  # fmt: skip
        if self.kind != "single":
            data["label_kind"] = self.kind
        if self.augmentation is not None:
            data["augmentation"] = self.augmentation.facts()
        return LabelObjective(
            batches, rows, -(-sum(map(len, train)) // count), data, self.smoothing, weights if self.balanced else None
        )

    def _varied(self, train: Sequence[LabelledExample], seed: int) -> Callable[[int, int], LabelledExample] | None:
        """The example of a row in an epoch, its text changed; None without augmentation."""
        augmentation = self.augmentation
        if augmentation is None:
            return None

        def varied(row: int, epoch: int) -> LabelledExample:
            example = train[row]
            text = augmentation(example.key, Generator(seed, stream_of(row, epoch)))
            return self.maker.with_text(example, text)

        return varied


def label_columns(names: str | None) -> list[str] | None:
    """The names in the option --label-columns. Raises UsageError."""
    if names is None:
        return None
    found = [name.strip() for name in names.split(",")]
    if len(found) < 2 or len({*found}) != len(found) or "" in found or TEXT in found:
        raise UsageError(f"--label-columns must be at least two different names separated by commas, not {names!r}")
    return found


def _require_rows(examples: Sequence[LabelledExample], names: Sequence[str]) -> None:
    """Raise UsageError for a label that no text has."""
    for name, count in zip(names, np.sum([example.label for example in examples], axis=0), strict=True):
        if not count:
            raise UsageError(
                f"the label {name!r} has no rows to train on, only for validation: add rows of it, or leave them out"
            )


def class_weights(examples: Sequence[LabelledExample], names: Sequence[str]) -> np.ndarray:
    """(K,): N / (K n_k), so that every label counts the same however rare it is.

    Raises UsageError for a label without rows.
    """
    counts = Counter(example.label for example in examples)
    for k, name in enumerate(names):
        if not counts[k]:
            raise UsageError(
                f"the label {name!r} has no rows to train on, only for validation: add rows of it, or leave them out"
            )
    return np.array([len(examples) / (len(names) * counts[k]) for k in range(len(names))])


def digest(examples: Sequence[LabelledExample]) -> str:
    """Identifies examples: their tokens and labels."""
    found = hashlib.sha256(str(len(examples)).encode())
    for example in examples:
        found.update(len(example).to_bytes(8, "little") + example.ids.tobytes() + _bytes(example.label))
    return found.hexdigest()


def _bytes(label: Any) -> bytes:
    return label.tobytes() if isinstance(label, np.ndarray) else str(label).encode()
