"""Dialogues: the turns become the prompt, and the oldest ones are dropped when it no longer fits into the block.

A template is the text around the messages of user and assistant. It is one of `PRESETS`, or a TOML file:

    system = "{system}\\n\\n"                              # comes first if there is a system text
    turn = "User: {user}\\nAssistant: {assistant}\\n"      # one turn; the prompt ends at the last {assistant}
    stop = ["\\nUser:"]                                   # ends an answer (default: the beginning of the next turn);
                                                         # []: only the end-of-text token does

A model has no notion of roles: it continues text. A model that was trained on dialogues needs the template they were
written in, so `tinygpt finetune` saves it in the model's folder, as template.toml, where `chat` finds it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import UsageError
from ..files import explain_os_errors
from ..tokenizers import Tokenizer

# In the folder of a model: the template that it was trained with, and the same for other programs (chat_template.py).
TEMPLATE, CHAT_TEMPLATE = "template.toml", "chat_template.jinja"
Turns = Sequence[tuple[str, str]]  # what the user said, and the answer
Part = tuple[str, bool]  # text, and whether special tokens in it count: yes in the template, no in a user's message


class AnyTemplate(Protocol):
    """What a dialogue needs from a template: a `Template`, or one in Jinja (`jinja_template.py`)."""

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""

    def opening(self, system: str, user: str) -> list[Part]:
        """The text of a dialogue that begins with `user`, up to where the answer begins."""

    def prompt(self, tokenizer: Tokenizer, system: str, turns: Turns, user: str) -> np.ndarray:
        """The ids (T,) of a dialogue, up to where the answer to `user` begins."""


@dataclass(frozen=True)
class Template:
    """The text around the messages; `stop`: the texts that end an answer, None for the beginning of the next turn."""

    turn: str
    system: str = "{system}\n\n"
    stop: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^{]*\{user\}[^{]*\{assistant\}[^{]*", self.turn):
            raise UsageError(
                f"a template's turn must contain {{user}} and then {{assistant}}, once each, unlike {self.turn!r}"
            )
        if self.system.count("{system}") != 1:
            raise UsageError(f"a template's system text must contain {{system}} once, unlike {self.system!r}")
        if self.stop is None and not self.stops:
            raise UsageError(
                "a template needs `stop`, the texts that end an answer: its turns have no text around them"
            )

    @property
    def pieces(self) -> tuple[str, str, str]:
        """The text before the user's message, between it and the answer, and after the answer."""
        before, _, rest = self.turn.partition("{user}")
        between, _, after = rest.partition("{assistant}")
        return before, between, after

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer: `stop`, or else the end of its turn plus the beginning of the next."""
        before, _, after = self.pieces
        return tuple(filter(None, [after + before.rstrip()])) if self.stop is None else self.stop

    @property
    def ending(self) -> str:
        """What a model must write after its answer to end it: everything up to the first of `stops`, if any."""
        _, _, after = self.pieces
        if not self.stops:
            return after
        stop = self.stops[0]
        if stop.startswith(after):
            return stop
        return after[: after.index(stop) + len(stop)] if stop in after else after + stop

    @property
    def closing(self) -> str:
        """What comes between an answer and the end-of-text token: a mark such as <|im_end|>, or nothing."""
        return self.pieces[2].rstrip()

    def opening(self, system: str, user: str, first: bool = True) -> list[Part]:
        """The text up to where the answer to `user` begins. first: the system text comes before it, if there is one."""
        before, between, _ = self.pieces
        parts: list[Part] = []
        if system and first:
            above, _, below = self.system.partition("{system}")
            parts += [(above, True), (system, False), (below, True)]
        # A space before the answer belongs to the answer's first token.
        return [*parts, (before, True), (user, False), (between.rstrip(" "), True)]

    def prompt(self, tokenizer: Tokenizer, system: str, turns: Turns, user: str) -> np.ndarray:
        """The ids (T,) of a dialogue, up to where the answer to `user` begins."""
        parts: list[Part] = []
        for number, (said, answered) in enumerate(turns):
            parts += self.opening(system, said, first=number == 0)
            parts += [(self.gap, True), (answered, False), (self.pieces[2], True)]
        parts += self.opening(system, user, first=not turns)
        return with_start(tokenizer, encode(tokenizer, parts))

    @property
    def gap(self) -> str:
        """The spaces before an answer, which `opening` leaves out."""
        between = self.pieces[1]
        return between[len(between.rstrip(" ")) :]

    def to_toml(self) -> str:
        """The content of a template's file. JSON's strings are TOML's."""
        lines = {"turn": self.turn, "system": self.system}
        found = {name: json.dumps(text) for name, text in lines.items()}
        if self.stop is not None:
            found["stop"] = json.dumps(list(self.stop))
        return "".join(f"{name} = {text}\n" for name, text in found.items())


PRESETS = {
    "plain": Template("User: {user}\nAssistant: {assistant}\n"),
    "lines": Template("{user}\n{assistant}\n"),
    "play": Template("FIRST:\n{user}\n\nSECOND:\n{assistant}\n\n", stop=("\n\n",)),
    "chatml": Template(
        "<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{assistant}<|im_end|>\n",
        system="<|im_start|>system\n{system}<|im_end|>\n",
        stop=("<|im_end|>",),
    ),
    "raw": Template("{user}{assistant}", system="{system}", stop=()),
}


def read_template(name_or_file: str) -> Template:
    """The preset of that name, or the template in that file. Raises UsageError."""
    if name_or_file in PRESETS:
        return PRESETS[name_or_file]
    path = Path(name_or_file)
    if not path.exists():
        raise UsageError(f"there is no template {name_or_file!r}: use one of {', '.join(PRESETS)}, or a TOML file")
    if path.suffix == ".jinja":
        raise UsageError(
            f"the template {path} is in Jinja, in which dialogues are answered and scored, but not learned: write it "
            "as a TOML file"
        )
    try:
        with explain_os_errors("read", path):
            content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"the template {path} is not a TOML file: {error}") from error
    stop = content.get("stop", [])
    texts = [content.get("turn"), content.get("system", ""), *(stop if isinstance(stop, list) else [None])]
    unknown = sorted(content.keys() - {"turn", "system", "stop"})
    if unknown or not all(isinstance(text, str) for text in texts) or "" in stop:
        found = f"there is {unknown[0]}" if unknown else "they are not"
        raise UsageError(
            f"the template {path} must have the texts turn and, if need be, system, and a list stop: {found}"
        )
    return Template(content["turn"], content.get("system", Template.system), tuple(stop) if "stop" in content else None)


def as_template(name_or_template: str | AnyTemplate) -> AnyTemplate:
    """A template by its name or file; one that is already loaded is returned as it is. Raises UsageError."""
    return read_template(name_or_template) if isinstance(name_or_template, str) else name_or_template


def end_of_text(model: Any, tokenizer: Tokenizer) -> int | None:
    """The token at which generation stops: from the model's settings, or else the tokenizer's."""
    ids: Any = dict(model.generation_config).get("eos_token_id")
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    return next((number for number in ids if number < model.config.vocab_size), tokenizer.eos_token_id)


@dataclass
class Dialogue:
    """The turns so far, and the template that turns them into a prompt."""

    template: AnyTemplate
    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)

    def prompt(self, tokenizer: Tokenizer, user: str, room: int, keep: int | None = None) -> tuple[np.ndarray, int]:
        """The prompt (T,), T <= room, up to where the answer to `user` begins, and how many turns were dropped.

        If it doesn't fit, the oldest turns are dropped, for good, until at most `keep` tokens are left (default: room).
        A `keep` well below `room` drops several at once, and then none for a while: meanwhile all prompts begin alike,
        so that their keys and values stay valid. Raises UsageError if `user` alone does not fit, and drops nothing.
        """
        keep = room if keep is None else keep
        for dropped in range(len(self.turns) + 1):
            ids = self.template.prompt(tokenizer, self.system, self.turns[dropped:], user)
            if len(ids) <= (keep if 0 < dropped < len(self.turns) else room):
                del self.turns[:dropped]
                return ids, dropped
        raise UsageError(
            f"the message is too long: {len(ids)} tokens with its template, and {room} fit along with the answer"
        )


def with_start(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Prepend the tokenizer's `start_ids` to `ids` (T,), unless they are already there."""
    start = tokenizer.start_ids
    return ids if ids[: len(start)].tolist() == start else np.concatenate([np.array(start, dtype=np.int64), ids])


def encode(tokenizer: Tokenizer, parts: list[Part]) -> np.ndarray:
    """The ids (T,) of the concatenated parts. Special tokens become one id each in trusted parts only.

    All other text is encoded across the boundaries of parts, so that it gets the ids it would have in any text.
    """
    if not tokenizer.knows_special:
        return tokenizer.encode("".join(part for part, _ in parts))
    special = {tokenizer.decode([number]): number for number in tokenizer.special_ids}
    either = "|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)"
    if not _written_by_others(
        re.compile(f"(?=({either}))"), parts
    ):  # as the tokenizer finds them, blanks around included
        return tokenizer.encode_special("".join(part for part, _ in parts))
    pattern = re.compile(either)
    found: list[np.ndarray] = []
    text = ""
    for part, trusted in parts:
        begin = 0
        for match in pattern.finditer(part) if trusted else ():
            found += [tokenizer.encode(text + part[begin : match.start()]), np.array([special[match[0]]])]
            text, begin = "", match.end()
        text += part[begin:]
    return np.concatenate([*found, tokenizer.encode(text)]).astype(np.int64)


def _written_by_others(pattern: re.Pattern[str], parts: list[Part]) -> bool:
    """Whether the text contains a special token that does not lie entirely within one trusted part."""
    allowed = np.zeros(sum(len(part) for part, _ in parts) + 1, dtype=np.int64)  # index of its trusted part, or 0
    begin = 0
    for number, (part, trusted) in enumerate(parts, 1):
        allowed[begin : begin + len(part)] = number * trusted
        begin += len(part)
    spans = (match.span(1) for match in pattern.finditer("".join(part for part, _ in parts)))
    return any(allowed[a] == 0 or allowed[a] != allowed[b - 1] for a, b in spans)
