"""The limits of a decoder, and what a mistake leaves as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.generation.slow_decoder import SlowDecoder
from tests.generation.test_decoder import model_of, prompts_of, ready, together
from tinygpt import GPT
from tinygpt.generation.decoder import Decoder


@pytest.mark.parametrize("capacity", [13, 24, None])
def test_a_row_may_be_filled_to_its_last_place(capacity: int | None) -> None:
    model, size = model_of(), capacity or 24
    together(model, prompts_of([12, 3]), size - 12, 1e-5, capacity)
    decoder = Decoder(model, capacity)
    assert decoder.capacity == size
    assert (
        np.abs(decoder.prefill(prompts_of([size])) - SlowDecoder(model, size).prefill(prompts_of([size]))).max() < 1e-5
    )
    with pytest.raises(tg.UsageError, match=f"row 0 is full: it has {size} tokens"):
        decoder.step([1])


@pytest.mark.parametrize(
    ("capacity", "sentence"),
    [
        (0, "Decoder: capacity must be at least 1, not 0"),
        (25, "Decoder: capacity must be at most the model's block_size, 24, not 25"),
        (2.0, "Decoder: capacity must be a whole number, not 2.0"),
    ],
)
def test_a_capacity_that_does_not_fit_is_refused(capacity: Any, sentence: str) -> None:
    with pytest.raises(tg.UsageError) as refused:
        Decoder(model_of(), capacity)
    assert str(refused.value) == sentence


MISTAKES: dict[str, tuple[Callable[[Decoder], Any], str]] = {
    "step: too few": (lambda d: d.step([1, 2]), "Decoder.step: expected 3 ids, one for each row, not 2"),
    "step: none": (lambda d: d.step([]), "Decoder.step: expected 3 ids, one for each row, not 0"),
    "step: two axes": (lambda d: d.step([[1, 2, 3]]), r"Decoder.step: ids must be .*, not int64 \(1, 3\)"),
    "step: a number": (lambda d: d.step(1), r"Decoder.step: ids must be .* \(N,\), not int64 \(\)"),
    "step: floats": (lambda d: d.step([1.0, 2.0, 3.0]), "Decoder.step: ids must be .*, not float64"),
    "step: booleans": (lambda d: d.step([True] * 3), r"Decoder.step: ids must be .* \(N,\), not bool \(3,\)"),
    "step: ragged": (lambda d: d.step([[1], [2, 3], [4]]), r"Decoder.step: ids .* not rows that differ in length"),
    "step: negative": (lambda d: d.step([1, -1, 2]), r"Decoder.step: ids must be in 0 .. 30, not -1 .. 2"),
    "step: beyond": (lambda d: d.step([1, 0, 31]), r"Decoder.step: ids must be in 0 .. 30, not 0 .. 31"),
    "step: huge": (lambda d: d.step(np.array([1, 0, 2**64 - 1], np.uint64)), "Decoder.step: ids must be in 0 .. 30"),
    "prefill: empty": (lambda d: d.prefill([[1], []]), "with at least one token"),
    "prefill: floats": (lambda d: d.prefill([[1.5]]), "must be integers, not"),
    "prefill: two axes": (lambda d: d.prefill([[[1, 2]]]), r"\(1, 1, 2\)"),
    "prefill: ragged": (lambda d: d.prefill([[[1, 2], [3]]]), "differ in length"),
    "prefill: a number": (lambda d: d.prefill([3]), r"\(1,\)"),
    "prefill: negative": (lambda d: d.prefill([[1], [-1]]), "ids must be in 0 .. 30"),
    "prefill: beyond": (lambda d: d.prefill([[1], [31]]), "ids must be in 0 .. 30"),
    "prefill: too long": (lambda d: d.prefill([[1], [2] * 21]), "a prompt of 21 tokens .* the capacity, 20"),
    "prefill: beyond the block": (lambda d: d.prefill([[1] * 25]), "block_size of 24"),
    "select: beyond": (lambda d: d.select([0, 3]), r"Decoder.select: rows must be in 0 .. 2, not 0 .. 3"),
    "select: negative": (lambda d: d.select([-1]), r"Decoder.select: rows must be in 0 .. 2, not -1 .. -1"),
    "select: floats": (lambda d: d.select([0.5]), r"Decoder.select: rows must be .* \(N,\), not float64 \(1,\)"),
    "select: a mask": (lambda d: d.select([True, False, True]), "Decoder.select: rows must be .*, not bool"),
    "select: two axes": (lambda d: d.select([[0, 1]]), r"Decoder.select: rows must be .*, not int64 \(1, 2\)"),
    "select: names": (lambda d: d.select(["a"]), "Decoder.select: rows must be integers"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_a_sentence_and_changes_nothing(mistake: str) -> None:
    model, (function, sentence) = model_of(), MISTAKES[mistake]
    decoder, other = ready(model, [4, 2, 7], 20), ready(model, [4, 2, 7], 20)
    with pytest.raises(tg.UsageError, match=sentence) as refused:
        function(decoder)
    assert "\n" not in str(refused.value)
    assert np.array_equal(decoder.lengths, other.lengths)
    for ids in ([1, 2, 3], [4, 5, 6]):
        assert np.array_equal(decoder.step(ids), other.step(ids))


def test_a_full_row_stops_all_and_changes_nothing() -> None:
    model = model_of()
    decoder = ready(model, [3, 23], 24)
    logits = decoder.step([1, 2]).copy()
    for _ in range(2):
        with pytest.raises(tg.UsageError, match=r"^Decoder.step: row 1 is full: it has 24 tokens$"):
            decoder.step([3, 4])
    assert list(decoder.lengths) == [4, 24]
    decoder.select([0])  # the other goes on
    slow = SlowDecoder(model, 24)
    slow.prefill([np.append(prompts_of([3, 23])[0], 1)])
    assert np.abs(decoder.step([5]) - slow.step([5])).max() < 1e-5
    assert np.isfinite(logits).all()


def test_a_prefill_that_is_broken_off_leaves_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the model runs: the caches are those of other texts then."""
    decoder = ready(model_of())
    monkeypatch.setattr(GPT, "hidden", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decoder.prefill(prompts_of([2]))
    assert len(decoder.lengths) == 0
    with pytest.raises(tg.UsageError, match=r"expected 0 ids, one for each row, not 4"):
        decoder.step([1, 2, 3, 4])


def interrupted(*arguments: Any, **options: Any) -> Any:
    raise KeyboardInterrupt
