"""Templates for other programs: chat_template.jinja, which transformers, TRL and servers apply to dialogues.

tinygpt writes such a file next to template.toml, from the same template, so that `tokenizer.apply_chat_template` gives
the text that the model was trained with. A file by another program is followed where dialogues are answered or scored
(`jinja_template.py`, `jinja_examples.py`). It is kept if the model is fine-tuned without a template; where answers are
learned, an error names it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import atomic_write, explain_os_errors
from ..tokenizers import Tokenizer
from ..tokenizers.bpe_files import CONFIG, read_json
from .dialogue import CHAT_TEMPLATE, TEMPLATE, Template

_LONGEST = 1 << 20  # bytes
# The answers end as in training. A message's text is put in as it is, and blanks before an answer belong to the answer.
_JINJA = """\
{#- Written by tinygpt from template.toml. -#}
{%- set turns = messages -%}
{{- START -}}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set turns = messages[1:] -%}
    {%- if messages[0]['content'] -%}
        {{- ABOVE + messages[0]['content'] + BELOW -}}
    {%- endif -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}
        {{- raise_exception('after the system text, if there is one, user and assistant must speak in turn') -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- GAP + message['content'] + (ENDING if loop.last else AFTER) -}}
    {%- elif loop.last and not add_generation_prompt -%}
        {{- BEFORE + message['content'] -}}
    {%- else -%}
        {{- BEFORE + message['content'] + BETWEEN -}}
    {%- endif -%}
{%- endfor -%}
"""


def to_jinja(template: Template, tokenizer: Tokenizer, end: int | None) -> str:
    """The template for transformers' `apply_chat_template`. end: the token that ends an answer.

    With add_generation_prompt it gives the prompt that `chat` makes; for a whole dialogue, the text that is learned.
    """
    before, between, after = template.pieces
    above, _, below = template.system.partition("{system}")
    ending = template.ending if end is None else template.closing + tokenizer.decode([end])
    texts = {
        "START": tokenizer.decode(tokenizer.start_ids), "ABOVE": above, "BELOW": below, "BEFORE": before,
        "BETWEEN": between.rstrip(" "), "GAP": template.gap, "AFTER": after, "ENDING": ending,
    }  # fmt: skip
    quoted = {name: json.dumps(text, ensure_ascii=False) for name, text in texts.items()}  # Jinja reads these escapes
    return re.sub("|".join(quoted), lambda match: quoted[match[0]], _JINJA)


def write_templates(
    place: Path, template: Template | None, tokenizer: Tokenizer, end: int | None, kept: str | None = None
) -> None:
    """Write a model's template for tinygpt and for other programs. kept: for others, if the model has no template.

    Raises OSError.
    """
    if template is not None:
        _write(place / TEMPLATE, template.to_toml())
        kept = to_jinja(template, tokenizer, end)
    if kept is not None:
        _write(place / CHAT_TEMPLATE, kept)


def _write(path: Path, text: str) -> None:
    with atomic_write(path, "wb") as file:
        file.write(text.encode("utf-8"))


def chat_template_in(folder: Path) -> str | None:
    """The Jinja template in a model's folder: of chat_template.jinja or, as older programs wrote it, of
    tokenizer_config.json. Raises UsageError."""
    path = folder / CHAT_TEMPLATE
    if path.exists():
        with explain_os_errors("read", path):
            content = path.read_bytes()[: _LONGEST + 1]
        try:
            if len(content) > _LONGEST:
                raise ValueError(f"it has more than {_LONGEST} bytes")
            return content.decode("utf-8")
        except ValueError as error:
            raise UsageError(f"{path} is not a template: {error}") from error
    found: Any = read_json(folder / CONFIG).get("chat_template") if (folder / CONFIG).exists() else None
    if isinstance(found, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def unread(jinja: str) -> str:
    """What to do about a template in which nothing can be learned."""
    likely = "chatml, most likely" if "<|im_start|>" in jinja else "a preset or a TOML file that makes the same text"
    return f"the model's own chat template is in Jinja, in which answers are not learned: give --template {likely}"


def template_notes(template: Template | None, chat_template: str | None) -> list[str]:
    """Notes for a run that was given no template."""
    if template is not None:
        return [f"the answers are learned in the model's own template, its {TEMPLATE}"]
    return [] if chat_template is None else [unread(chat_template)]
