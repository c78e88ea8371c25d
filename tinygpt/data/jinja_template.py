"""Chat templates of other programs, in Jinja: a model that comes with one was trained on the text that it makes.

    template = JinjaTemplate(source, "chat_template.jinja", tokenizer)
    ids = template.prompt(tokenizer, system, turns, user)         # as transformers' apply_chat_template
    template.stops                                                # the text that ends an answer

A template is a program from a stranger. As in transformers it runs in Jinja's sandbox, with no access to Python's
internals, files or imports, and it sees only texts. jinja2 (extra `chat`) is imported when a template is made.

While transformers reads special tokens anywhere, here those that a message contains are text: a user who types
<|im_end|> does not end a turn. For all other messages the ids are the same.

Source: transformers, "Chat templates"; the names that a template may use are those of its documentation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError, missing_extra
from ..files import explain_os_errors, shown
from ..tokenizers import Tokenizer
from .chat_template import chat_template_in
from .dialogue import CHAT_TEMPLATE, TEMPLATE, AnyTemplate, Part, Turns, encode, read_template

PURPOSE = "a chat template in Jinja"
OWN = "own"  # --template own: the model's
_NEWEST_ESCAPE = (3, 1, 6)  # older versions of jinja2 have known sandbox escapes
_QUESTION, _ANSWER = "tinygptquestion", "tinygptanswer"


class JinjaTemplate:
    """A compiled template. where: names it in errors. Raises UsageError if it is not valid Jinja, MissingExtraError."""

    def __init__(self, source: str, where: str, tokenizer: Tokenizer) -> None:
        self.where = where
        names = {"bos_token": tokenizer.bos_token_id, "eos_token": tokenizer.eos_token_id,
                 "pad_token": tokenizer.pad_token_id}  # fmt: skip
        self._tokens = {name: tokenizer.decode([token]) for name, token in names.items() if token is not None}
        self._special = [tokenizer.decode([token]) for token in tokenizer.special_ids]
        environment, error = _environment(), _jinja2().TemplateError
        try:
            self._template = environment.from_string(source)
        except (error, RecursionError) as problem:
            line = getattr(problem, "lineno", None)
            raise UsageError(
                f"the chat template {where} is not valid Jinja{'' if line is None else f' (line {line})'}: "
                f"{_one_line(problem)}: give --template"
            ) from problem
        self.stops = self._found_stops()

    def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = False) -> str:
        """The text of the messages. Raises UsageError if the template fails, or refuses them."""
        try:
            text: str = self._template.render(
                messages=[dict(message) for message in messages], tools=None, documents=None,
                add_generation_prompt=add_generation_prompt, **self._tokens,
            )  # fmt: skip
        except Exception as error:  # whatever a stranger's program does wrong, in Jinja's or in Python's classes
            raise UsageError(
                f"the chat template {self.where} can't be applied to this dialogue: {_one_line(error)}"
            ) from error
        return text

    def parts(self, system: str, turns: Turns, user: str) -> list[Part]:
        """The text up to where the answer to `user` begins, divided where a message has a special token."""
        gap = self.gap_for([system, user, *(text for turn in turns for text in turn)])
        # No part holds such a token whole, so `encode` takes it for characters.
        return [(part, True) for part in self.rendered(system, turns, user, gap).split(gap)]

    def rendered(self, system: str, turns: Turns, user: str | None, gap: str) -> str:
        """The text up to where the answer to `user` begins; with None, the text of a dialogue that ends with an answer.

        gap: a character from `gap_for`, which is put into the special tokens that a message contains.
        """
        said = [("system", system)] if system else []
        for question, answer in turns:
            said += [("user", question), ("assistant", answer)]
        said += [("user", user)] if user is not None else []
        messages = [{"role": role, "content": self._torn(text, gap)} for role, text in said]
        return self.render(messages, add_generation_prompt=user is not None)

    @staticmethod
    def gap_for(texts: Sequence[str]) -> str:
        """A character that is not in the texts: the first such one in the private use area."""
        used = set("".join(texts))
        return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)

    def opening(self, system: str, user: str) -> list[Part]:
        """The text of a dialogue that begins with `user`, up to where the answer begins."""
        return self.parts(system, [], user)

    def prompt(self, tokenizer: Tokenizer, system: str, turns: Turns, user: str) -> np.ndarray:
        """The ids (T,) of `parts`. Nothing is put before them: a template writes the bos token itself."""
        return encode(tokenizer, self.parts(system, turns, user))

    def _torn(self, text: str, gap: str) -> str:
        """The text with `gap` after the first character of each special token."""
        if not self._special:
            return text
        pattern = "|".join(map(re.escape, sorted(self._special, key=len, reverse=True)))
        return re.sub(f"(?=({pattern}))(.)", rf"\2{gap}", text, flags=re.DOTALL)

    def _found_stops(self) -> tuple[str, ...]:
        """The text between an answer and the next question; only its mark, if it begins with one (<|im_end|>)."""
        said = [("user", _QUESTION), ("assistant", _ANSWER), ("user", _QUESTION)]
        try:
            text = self.render([{"role": role, "content": content} for role, content in said])
        except UsageError:  # perhaps it wants a system text: then only the end-of-text token ends an answer
            return ()
        after = text.partition(_ANSWER)[2].partition(_QUESTION)[0]
        marks = [token for token in self._special if token and after.lstrip().startswith(token)]
        marks += re.findall(r"^\s*(<[^<>\s]+>)", after)  # a mark that this tokenizer does not have
        stop = max(marks, key=len) if marks else after.rstrip()
        return (stop,) if stop.strip() else ()


def template_for(folder: Path, tokenizer: Tokenizer, given: str | None) -> AnyTemplate:
    """The template for the model in `folder`: the given one (a preset, a file in TOML or Jinja) or, with none or with
    "own", the model's: its template.toml, or else its chat template in Jinja, or else "plain"."""
    if given is not None and given != OWN:
        return _from_file(Path(given), tokenizer) if Path(given).suffix == ".jinja" else read_template(given)
    if (folder / TEMPLATE).exists():
        return read_template(str(folder / TEMPLATE))
    source = chat_template_in(folder)
    if source is None:
        return read_template("plain")
    file = folder / CHAT_TEMPLATE
    return JinjaTemplate(source, shown(file if file.exists() else folder / "tokenizer_config.json"), tokenizer)


def in_jinja(folder: Path, given: str | None) -> bool:
    """Whether `template_for` would return a template in Jinja."""
    if given is not None and given != OWN:
        return Path(given).suffix == ".jinja"
    return not (folder / TEMPLATE).exists() and chat_template_in(folder) is not None


def require_jinja2(folder: Path | None, given: str | None) -> None:
    """Raise MissingExtraError if `template_for` needs jinja2, which is not installed.

    folder: None if the model is still to be downloaded. `check_given` has looked at a given template.
    """
    if folder is not None and in_jinja(folder, given):
        _jinja2()


def check_given(given: str | None) -> None:
    """Raise UsageError for a template that can't be read, before a model is loaded."""
    if given is None or given == OWN:
        return
    if Path(given).suffix == ".jinja":
        _environment()
        _source(Path(given))
    else:
        read_template(given)


def _from_file(path: Path, tokenizer: Tokenizer) -> JinjaTemplate:
    return JinjaTemplate(_source(path), shown(path), tokenizer)


def _source(path: Path) -> str:
    with explain_os_errors("read", path):
        content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown(path)} is not a template: {error}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# Jinja --------------------------------------------------------------------------------------------


def _jinja2() -> Any:
    try:
        import jinja2.ext
        import jinja2.sandbox
    except ImportError as error:
        raise missing_extra("jinja2", PURPOSE) from error
    if tuple(int(part) for part in re.findall(r"\d+", jinja2.__version__)[:3]) < _NEWEST_ESCAPE:
        raise UsageError(
            f"{PURPOSE} needs jinja2 3.1.6 or newer, and {jinja2.__version__} is installed: pip install -U jinja2"
        )
    return jinja2


def _environment() -> Any:
    """The sandbox, with what templates expect: loop controls, `generation` blocks, and a few functions."""
    jinja2 = _jinja2()
    extension: Any = jinja2.ext.Extension

    class Generation(extension):
        """{% generation %} marks what is learned in training; here it is only text."""

        tags = {"generation"}  # noqa: RUF012  (as Jinja's own extensions have it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
               sort_keys: bool = False) -> str:  # fmt: skip
        """JSON without the escapes for HTML that Jinja's own filter writes."""
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": lambda *pairs, **named: dict(*pairs, **named),  # not the class, which leads to others
    }
    return environment
