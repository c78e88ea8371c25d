"""What a row of the user's data is: a text, a labelled text, or a dialogue whose answers are learned.

| columns | task |
|---|---|
| `messages`: a list of {"role": "system", "user" or "assistant", "content": text} | sft |
| `prompt`, `completion`: texts, or lists of messages of which the completion's answers are learned | sft |
| `question`, `answer` | sft |
| `instruction`, `input` (may be empty or missing), `output` | sft |
| `text`, `label`; or `text` and named columns, of 0s and 1s, one for each label | classify |
| `text` | text |

These are the names that TRL and public data sets use. Unless the task is given, it is that of the first line above
whose columns are all present.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import UsageError
from .rows import Row, separator_hint

COLUMNS: dict[tuple[str, ...], str] = {
    ("messages",): "sft", ("prompt", "completion"): "sft", ("question", "answer"): "sft",
    ("instruction", "output"): "sft", ("text", "label"): "classify", ("text",): "text",
}  # fmt: skip
VERBATIM = ("prompt", "completion")  # the texts follow each other as they are; the others need a template


class Turns(NamedTuple):
    """A dialogue: a system text, or "", and turns, each what the user said and the answer.

    given: the number of turns that belong to the prompt.
    """

    system: str
    turns: list[tuple[str, str]]
    given: int = 0


def find_columns(
    found: Sequence[str], task: str | None, where: str, labels: Sequence[str] = ()
) -> tuple[str, tuple[str, ...]]:
    """The task and the columns that it reads, from the columns that were found. Raises UsageError if none fit.

    labels: columns of 0s and 1s, one for each label, instead of the column `label`.
    """
    there = set(found)
    if labels:
        if task not in (None, "classify"):
            raise UsageError(f"--label-columns is for the task classify, not for the task {task}: leave it out")
        for column in ("text", *labels):
            if column not in there:
                raise UsageError(
                    f"{where}: there is no column {column!r}; the columns are {', '.join(map(repr, found)) or 'none'}"
                )
        return "classify", ("text", *labels)
    for columns, its_task in COLUMNS.items():
        if task in (None, its_task) and there.issuperset(columns):
            return its_task, columns
    wanted = [" and ".join(columns) for columns, its_task in COLUMNS.items() if task in (None, its_task)]
    purpose = f"the task {task}" if task else "fine-tuning"
    raise UsageError(
        f"{where}: {purpose} needs the columns {', or '.join(wanted)}; there is {', '.join(map(repr, found)) or 'none'}"
        f"{separator_hint(found) or ': name them so, in CSV and TSV in the first line'}"
    )


def text_of(row: Row, column: str) -> str:
    """A column that must be text and not blank. Raises UsageError with the row's line."""
    value = row.values.get(column)
    if not isinstance(value, str):
        raise UsageError(f"{row.where}: the column {column!r} is {_kind(value)}, not text")
    if not value.strip():
        raise UsageError(f"{row.where}: the column {column!r} is empty: every row needs a text")
    return value


def _kind(value: Any) -> str:
    kinds = {type(None): "missing or null", bool: "a truth value", list: "an array", dict: "an object"}
    return kinds.get(type(value), "a number")


def dialogue_of(row: Row, columns: tuple[str, ...]) -> Turns:
    """The dialogue in a row with these columns. Raises UsageError with the row's line."""
    if columns == ("messages",):
        return _dialogue(row, _messages(row, "messages"))
    if is_conversation(row, columns):
        prompt, completion = _messages(row, "prompt"), _messages(row, "completion")
        given = sum(isinstance(message, dict) and message.get("role") == "assistant" for message in prompt)
        return _dialogue(row, [*prompt, *completion])._replace(given=given)
    said, answer = (text_of(row, column) for column in columns)
    if columns[0] == "instruction" and (given := row.values.get("input")):
        if not isinstance(given, str):
            raise UsageError(f"{row.where}: the column 'input' is {_kind(given)}, not text")
        said = f"{said}\n\n{given}" if given.strip() else said
    return Turns("", [(said, answer)])


def is_conversation(row: Row, columns: tuple[str, ...]) -> bool:
    """Whether prompt and completion are lists of messages, TRL's "conversational" form, and not texts."""
    return columns == VERBATIM and isinstance(row.values.get(columns[0]), list)


def _messages(row: Row, column: str) -> list[Any]:
    messages: Any = row.values.get(column)
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{row.where}: the column {column!r} must be a list of messages with role and content")
    return messages


def _dialogue(row: Row, messages: list[Any]) -> Turns:
    system, said = "", list[tuple[str, str]]()
    for number, message in enumerate(messages, 1):
        role, content = _role_and_content(row, number, message)
        wanted = ("system", "user") if number == 1 else ("user",) if len(said) % 2 == 0 else ("assistant",)
        if role not in wanted:
            raise UsageError(
                f"{row.where}: message {number} is of the role {role!r}, but {' or '.join(wanted)} is next"
            )
        if role == "system":
            system = content
        else:
            said.append((role, content))
    if len(said) % 2 or not said:
        raise UsageError(f"{row.where}: the messages must end with an answer of the assistant, from which to learn")
    return Turns(system, [(said[i][1], said[i + 1][1]) for i in range(0, len(said), 2)])


def _role_and_content(row: Row, number: int, message: Any) -> tuple[str, str]:
    if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
        raise UsageError(f"{row.where}: message {number} must be an object with the texts role and content")
    if message["role"] == "assistant" and not message["content"].strip():
        raise UsageError(f"{row.where}: message {number}, an answer, is empty, so there is nothing to learn from")
    return message["role"], message["content"]
