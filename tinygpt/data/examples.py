"""Rows as examples: token ids, and which of them a model learns to predict.

    maker = AnswerExamples(tokenizer, block_size, end, columns, template)
    example = maker.make(row)
    inputs, targets = collate([example, ...])

An example ends with the end-of-text token, which is a target, so that the model learns where to stop. If there is no
such token, the template's own ending is the target instead. Prompt and answer are encoded separately, because that is
how the model is used: the prompt is encoded before an answer exists.

Rows of a batch are padded on the right. Causal attention never looks to the right, and padding is not a target, so it
changes nothing and needs no mask.

Letters: B batch, T time (the longest row of a batch), n tokens of an example.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from ..ops.cross_entropy import IGNORE_INDEX
from ..tokenizers import Tokenizer, UnknownCharacterError
from .columns import dialogue_of, text_of
from .dialogue import Part, Template, encode, with_start
from .rows import BadRows, Row

PAD = 0  # any id would do


@dataclass(frozen=True, eq=False)
class Example:
    """ids: (n,) tokens. learned: (n,) bool, whether each is a target. key: its text or prompt; examples with equal keys
    belong on the same side of a split. truncated: whether the row was longer."""

    ids: np.ndarray
    learned: np.ndarray
    key: str
    truncated: bool

    def __len__(self) -> int:
        return len(self.ids)


class TextExamples:
    """One text per row, all of it learned."""

    def __init__(self, tokenizer: Tokenizer, block_size: int, end: int | None) -> None:
        self.tokenizer, self.block_size, self.end = tokenizer, block_size, end

    def make(self, row: Row) -> Example:
        """The row's example. Raises UsageError with the row's line."""
        text = text_of(row, "text")
        ids = with_start(self.tokenizer, encoded(self.tokenizer, [(text, False)], row))
        return self.cut(row, text, [(ids, True)])

    def cut(self, row: Row, key: str, pieces: Sequence[tuple[np.ndarray, bool]]) -> Example:
        """One example, from pieces of ids that are learned or not, and the end token; at most block_size + 1 tokens."""
        if self.end is not None:
            pieces = [*pieces, (np.array([self.end]), True)]
        ids = np.concatenate([piece for piece, _ in pieces]).astype(np.int32)  # (n,)
        learned = np.concatenate([np.full(len(piece), flag) for piece, flag in pieces])  # (n,)
        longest = self.block_size + 1  # a full block of inputs, and the token that follows it
        if not learned[1:longest].any():
            raise UsageError(
                f"{row.where}: nothing is left to learn from: the prompt takes {int(learned.argmax())} tokens, and the "
                f"block has {self.block_size}: shorten it, or leave such rows out with --skip-bad-rows"
                if learned[1:].any()
                else f"{row.where}: the text is a single token, so there is nothing to predict: leave the row out"
            )
        return Example(ids[:longest], learned[:longest], key, len(ids) > longest)


class AnswerExamples(TextExamples):
    """One dialogue per row. The answers are learned or, with loss_on "all", everything."""

    def __init__(
        self, tokenizer: Tokenizer, block_size: int, end: int | None, columns: tuple[str, ...], template: Template,
        loss_on: str = "answer",
    ) -> None:  # fmt: skip
        super().__init__(tokenizer, block_size, end)
        self.columns, self.template, self.loss_on = columns, template, loss_on
        if end is None and not template.ending.strip(" "):
            raise UsageError(
                "the model has no end-of-text token, and the template has no text after an answer, so the model could "
                "not learn where an answer ends: use a template with `stop`, such as --template lines"
            )

    def make(self, row: Row) -> Example:
        system, turns, given = dialogue_of(row, self.columns)
        before, between, after = self.template.pieces
        following, ending = after + before, self.template.ending
        ending = ending if following.startswith(ending) else after  # for an answer with another turn after it
        pieces: list[tuple[np.ndarray, bool]] = []
        for number, (said, answer) in enumerate(turns):
            opening = self.template.opening(system, said)
            if number:
                opening = [(following[len(ending) :], True), (said, False), (between.rstrip(" "), True)]
            prompt = encoded(self.tokenizer, opening, row)
            pieces.append((with_start(self.tokenizer, prompt) if number == 0 else prompt, self.loss_on == "all"))
            ids = encoded(self.tokenizer, self._answer(answer, number == len(turns) - 1, ending), row)
            pieces.append((ids, number >= given or self.loss_on == "all"))
        return self.cut(row, "\n".join([system, *(said for said, _ in turns)]), pieces)

    def _answer(self, answer: str, last: bool, ending: str) -> list[Part]:
        if last:
            ending = self.template.ending if self.end is None else self.template.closing
        return [(self.template.gap, True), (answer, False), (ending, True)]


def encoded(tokenizer: Tokenizer, parts: list[Part], row: Row) -> np.ndarray:
    """The ids (n,) of the parts. Raises UsageError with the row's line for a character outside the vocabulary."""
    try:
        return encode(tokenizer, parts)
    except UnknownCharacterError as error:
        raise UsageError(
            f"{row.where}: the character {error.character!r} is not in the model's vocabulary: remove it, or add it "
            f"with --add-token {error.character}"
        ) from error


def make_examples(maker: TextExamples, rows: Iterable[Row], skip_bad: BadRows | None = None) -> list[Example]:
    """The examples of all rows. skip_bad: counts rows that can't be used; without it, the first one is an error."""
    examples = []
    for row in rows:
        try:
            examples.append(maker.make(row))
        except UsageError as error:
            if skip_bad is None:
                raise
            skip_bad.add(str(error))
    return examples


def collate(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """`(inputs, targets)`: int64, (B, T) each; targets are -100 where nothing is learned."""
    T = max((len(example) - 1 for example in examples), default=1)
    inputs = np.full((len(examples), T), PAD, np.int64)
    targets = np.full((len(examples), T), IGNORE_INDEX, np.int64)
    for row, example in enumerate(examples):
        n = len(example) - 1
        inputs[row, :n] = example.ids[:-1]
        targets[row, :n] = np.where(example.learned[1:], example.ids[1:], IGNORE_INDEX)
    return inputs, targets
