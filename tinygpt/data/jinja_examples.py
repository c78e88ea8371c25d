"""Rows with answers as examples in a Jinja chat template, to score the answers of other programs' models.

A template in Jinja only makes a text; it does not say which part of it is an answer. That part is what follows the
prompt (the text up to where the answer begins) once the answer is among the messages. It includes whatever the template
puts after an answer, such as <|im_end|>, which the model must write as well.
"""

from __future__ import annotations

import numpy as np

from ..errors import UsageError
from ..tokenizers import Tokenizer
from .columns import dialogue_of
from .examples import Example, TextExamples, encoded
from .jinja_template import JinjaTemplate
from .rows import Row


class JinjaExamples(TextExamples):
    """One dialogue per row, in which only the answers count."""

    def __init__(
        self, tokenizer: Tokenizer, block_size: int, columns: tuple[str, ...], template: JinjaTemplate
    ) -> None:
        super().__init__(tokenizer, block_size, end=None)  # the template writes what ends an answer
        self.columns, self.template = columns, template

    def make(self, row: Row) -> Example:
        """The row's example. Raises UsageError with the row's line, also if the template refuses the dialogue."""
        system, turns, given = dialogue_of(row, self.columns)
        gap = self.template.gap_for([system, *(text for turn in turns for text in turn)])
        pieces: list[tuple[np.ndarray, bool]] = []
        before = ""
        try:
            for number, (said, _) in enumerate(turns):
                prompt = self.template.rendered(system, turns[:number], said, gap)
                whole = self.template.rendered(system, turns[: number + 1], None, gap)
                if not (prompt.startswith(before) and whole.startswith(prompt)):
                    raise UsageError(
                        f"the chat template {self.template.where} changes the text before an answer once the answer is "
                        "there, so answers can't be scored in it: give --template"
                    )
                pieces.append((self._ids(prompt[len(before) :], gap, row), False))
                pieces.append((self._ids(whole[len(prompt) :], gap, row), number >= given))
                before = whole
        except UsageError as error:
            raise UsageError(f"{row.where}: {error}") from error
        return self.cut(row, "\n".join([system, *(said for said, _ in turns)]), pieces)

    def _ids(self, text: str, gap: str, row: Row) -> np.ndarray:
        return encoded(self.tokenizer, [(part, True) for part in text.split(gap)], row)
