"""Check that predictions and references are pairs, before anything is measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import DtypeError, ShapeError, UsageError


def paired(metric: str, predictions: Iterable[Any], references: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Both as lists of one length, with at least one pair. Raises DtypeError, ShapeError, UsageError."""
    for name, value in (("predictions", predictions), ("references", references)):
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise DtypeError(f"{metric}: {name} must be a list with one item for each example, not {value!r:.80}")
    found = [[_plain(item) for item in side] for side in (predictions, references)]
    if len(found[0]) != len(found[1]):
        raise ShapeError(f"{metric}: there are {len(found[0])} predictions, but {len(found[1])} references")
    if not found[0]:
        raise UsageError(f"{metric}: there is nothing to measure: no predictions")
    return found[0], found[1]


def paired_texts(
    metric: str, predictions: Iterable[str], references: Iterable[str | Iterable[str]]
) -> tuple[list[str], list[list[str]]]:
    """As `paired`, for texts: each reference becomes a list of one or more texts. Also raises DtypeError."""
    texts, right = paired(metric, predictions, references)
    several = [[one] if isinstance(one, str) else list(one) if isinstance(one, Iterable) else [one] for one in right]
    for i, (text, answers) in enumerate(zip(texts, several, strict=True)):
        wrong = [one for one in (text, *answers) if not isinstance(one, str)]
        if wrong or not answers:
            what = f"texts, not {wrong[0]!r:.80}" if wrong else "at least one reference"
            raise DtypeError(f"{metric}: pair {i} must have {what}")
    return texts, several


def _plain(item: Any) -> Any:
    """NumPy's numbers as Python's, so that labels from an array and from a list are the same labels."""
    return item.item() if hasattr(item, "item") and getattr(item, "ndim", None) == 0 else item
