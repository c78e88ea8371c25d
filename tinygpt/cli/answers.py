"""What `eval` and `predict` do with prompts: the model's answers to the rows of a file, and their quality.

The template is the one in the model's folder, in TOML or Jinja, or `--template`. Decoding is greedy, so the
same model always gives the same answers.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .. import console
from ..data.columns import COLUMNS, Turns, dialogue_of, find_columns, is_conversation
from ..data.dialogue import TEMPLATE, AnyTemplate, Dialogue
from ..data.rows import Row
from ..errors import UsageError, require_together
from ..generation import config_from_dict, stream_text

NEW_TOKENS = 100
_T = TypeVar("_T")
METRICS = ("bleu", "chrf", "rouge")  # those that need a library; exact match and token F1 are always reported


def add_answer_options(parser: Any) -> None:
    """Options for rows with prompts."""
    words = "for rows with prompts: the text around prompt and answer, as for `finetune` (default: the model's own)"
    parser.add_argument("--template", metavar="NAME_OR_FILE", help=words)
    words = f"for rows with prompts: maximum length of an answer in tokens (default: {NEW_TOKENS})"
    parser.add_argument("--max-new-tokens", type=int, default=NEW_TOKENS, metavar="N", help=words)


def template_name(options: argparse.Namespace, folder: Path) -> str | None:
    """The given template, or the file with the model's own; None: the usual one for the columns."""
    if options.template is not None:
        return str(options.template)
    return str(folder / TEMPLATE) if (folder / TEMPLATE).exists() else None


def prompt_columns(row: Row) -> tuple[str, ...]:
    """The columns of a row that asks for an answer; that of the answer may be missing. Raises UsageError."""
    for columns, task in COLUMNS.items():
        if task == "sft" and columns[0] in row.values:
            return columns
    wanted = ", ".join(columns[0] for columns, task in COLUMNS.items() if task == "sft")
    raise UsageError(
        f"{row.where}: there is no prompt: a language model needs a column {wanted}; it is not a classifier"
    )


def asked(row: Row, columns: tuple[str, ...]) -> Turns:
    """The dialogue up to the last question. An answer in the row is ignored. Raises UsageError."""
    values = dict(row.values)
    if columns == ("messages",):
        said = values["messages"]
        said = said[:-1] if isinstance(said, list) and said and _role(said[-1]) == "assistant" else said
        values["messages"] = [*said, {"role": "assistant", "content": "-"}] if isinstance(said, list) else said
    else:
        values[columns[1]] = [{"role": "assistant", "content": "-"}] if is_conversation(row, columns) else "-"
    return dialogue_of(Row(values, row.where), columns)


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


class Answers:
    """The model's answers. Raises UsageError for an invalid generation setting."""

    def __init__(self, model: Any, tokenizer: Any, template: AnyTemplate, max_new_tokens: int) -> None:
        self.model, self.tokenizer, self.template = model, tokenizer, template
        own: Any = model.generation_config
        base = config_from_dict(own) if isinstance(own, dict) else own
        stops = dict.fromkeys([*(base.stop_strings or ()), *template.stops])
        chosen: dict[str, Any] = {
            "max_new_tokens": max_new_tokens, "do_sample": False, "stop_strings": list(stops) or None
        }  # fmt: skip
        if base.eos_token_id is None and tokenizer.eos_token_id is not None:
            chosen["eos_token_id"] = tokenizer.eos_token_id
        self.config = base.with_options(chosen)
        block = model.config.block_size
        self.room = block - min(max_new_tokens, block // 2)  # for the prompt; an answer gets half the block at most

    def to(self, row: Row, columns: tuple[str, ...]) -> str:
        """The answer to a row, without white space around it. Raises UsageError with the row's line."""
        system, turns, _ = asked(row, columns)
        try:
            ids, _ = Dialogue(self.template, system, list(turns[:-1])).prompt(self.tokenizer, turns[-1][0], self.room)
        except UsageError as error:
            raise UsageError(f"{row.where}: {error}") from error
        return "".join(stream_text(self.model, self.tokenizer, np.asarray(ids), config=self.config)).strip()

    def to_all(self, rows: list[Row], columns: tuple[str, ...]) -> list[str]:
        """The answers to all rows, with a progress bar."""
        return [self.to(row, columns) for row in console.bar(rows, "answering", True)]


def answer_report(answers: list[str], right: list[str], wanted: tuple[str, ...]) -> dict[str, Any]:
    """The metrics, as JSON values. wanted: some of METRICS. Raises MissingExtraError."""
    from ..metrics import bleu, chrf, exact_match, rouge, token_f1

    report: dict[str, Any] = {"exact_match": exact_match(answers, right), "token_f1": token_f1(answers, right)}
    for name, metric in (("bleu", bleu), ("chrf", chrf)):
        if name in wanted:
            found = metric(answers, right)
            report |= {name: found.score, f"{name}_signature": found.signature}
    return report | (rouge(answers, right) if "rouge" in wanted else {})


def require_metrics(wanted: tuple[str, ...]) -> None:
    """Raise MissingExtraError, for all of them at once, if a metric's library is not installed."""
    from ..metrics.summaries import require_rouge
    from ..metrics.translation import require_sacrebleu

    checks: dict[str, Callable[[], object]] = {
        "bleu": require_sacrebleu, "chrf": partial(require_sacrebleu, "chrF"), "rouge": require_rouge,
    }  # fmt: skip
    require_together(*[checks[name] for name in wanted])


def columns_of(rows: list[Row], skip: bool, task: str | None = None) -> tuple[str, tuple[str, ...]]:
    """The task of the rows, unless it is given, and its columns. skip, errors: see `first_that`."""
    return first_that(rows, skip, lambda row: find_columns(list(row.values), task, row.where))


def first_that(rows: list[Row], skip: bool, find: Callable[[Row], _T]) -> _T:
    """What `find` finds in the first row or, with `skip`, in the first row where it finds anything.

    Raises the first row's UsageError.
    """
    for row in rows if skip else ():
        with contextlib.suppress(UsageError):
            return find(row)
    return find(rows[0])
