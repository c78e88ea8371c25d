"""The tokens that a folder's settings add to a vocabulary, and those of them that have a name (eos_token and so on).

Step 2 of `as_transformers.py`, which says where the rules come from. What transformers would silently ignore raises a
ValueError that names it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .hf_tokenizers import tokenizers

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
BOOLEAN_SETTINGS = ("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens")


@dataclass
class Folder:
    """The parsed files of a folder. `complete`: the description comes from a tokenizer.json."""

    description: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    complete: bool = True
    names: dict[str, Any] = field(default_factory=dict)  # special_tokens_map.json
    added: dict[str, Any] = field(default_factory=dict)  # added_tokens.json
    model: dict[str, Any] = field(default_factory=dict)  # config.json


def settings_of(folder: Folder) -> dict[str, Any]:
    """tokenizer_config.json as transformers reads it, merged with special_tokens_map.json where that takes effect."""
    settings = {key: value for key, value in folder.settings.items() if key != "tokenizer_class"}
    if folder.complete:  # then tokenizer.json decides what is added around a text
        settings.pop("add_bos_token", None)
        settings.pop("add_eos_token", None)
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    _name_extra(settings)
    if "added_tokens_decoder" not in settings:
        for key, value in folder.names.items():
            if key == "extra_special_tokens" and isinstance(value, list):
                before = settings.get(key) or []
                value = (
                    [*before, *(token for token in value if token not in before)] if isinstance(before, list) else value
                )
            settings[key] = value
        _name_extra(settings)
    return settings


def _name_extra(settings: dict[str, Any]) -> None:
    """Move extra special tokens that have names to the named special tokens."""
    if isinstance(settings.get("extra_special_tokens"), dict):
        named = settings.get("model_specific_special_tokens") or {}
        settings["model_specific_special_tokens"] = named | settings.pop("extra_special_tokens")


def named_tokens(settings: dict[str, Any]) -> dict[str, Any]:
    """Named special tokens, as strings or AddedToken: the standard names, then others found in the settings."""
    own = {
        key: value
        for key, value in settings.items()
        if key.endswith("_token") and key not in (*SPECIAL_TOKENS, *BOOLEAN_SETTINGS) and isinstance(value, str)
    }
    named = settings.get("model_specific_special_tokens") or {}
    if not isinstance(named, dict):
        raise ValueError(f"its model_specific_special_tokens is {named!r:.60}, not a JSON object of names and tokens")
    own |= named
    found = {}
    for key, value in ({key: settings.get(key) for key in SPECIAL_TOKENS} | own).items():
        if value is None:
            continue
        if not content_of(value):
            raise ValueError(f"the {key} is {value!r}, not a string")
        found[key] = value if isinstance(value, str) else added_token(value, special=True)
    return found


def unnamed_tokens(settings: dict[str, Any]) -> list[Any]:
    """Extra special tokens without a name."""
    extra = settings.get("extra_special_tokens")
    if extra is None:
        return []
    if not isinstance(extra, list) or not all(content_of(token) for token in extra):
        raise ValueError(f"its extra_special_tokens is {extra!r:.60}, not a list of strings")
    return [token if isinstance(token, str) else added_token(token) for token in extra]


def tokens_to_add(folder: Folder, settings: dict[str, Any]) -> list[tuple[int, Any]]:
    """(id, AddedToken) pairs in the order in which to add them."""
    found: dict[int, Any] = {}
    if (decoder := settings.get("added_tokens_decoder")) is not None:
        if not isinstance(decoder, dict) or not all(isinstance(entry, dict) for entry in decoder.values()):
            raise ValueError("its added_tokens_decoder is not a JSON object of ids and tokens")
        for digits, entry in decoder.items():
            if not digits.isascii() or not digits.isdecimal() or len(digits) > 9:
                raise ValueError(f"its added_tokens_decoder has the id {digits[:40]!r}, which is not an integer")
            found[int(digits)] = added_token(entry)
        return sorted(found.items(), key=lambda item: item[0])
    special = {content_of(settings[key]) for key in SPECIAL_TOKENS if settings.get(key)}
    special |= {content_of(token) for token in settings.get("extra_special_tokens") or []}
    for content, token_id in folder.added.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            raise ValueError(f"the id of the token {content!r} is {token_id!r}, not an integer")
        flags = {"normalized": content not in special, "special": content in special}
        found[token_id] = added_token({"content": content} | flags)
    for entry in (folder.description.get("added_tokens") or []) if folder.complete else ():
        found[entry["id"]] = added_token({key: value for key, value in entry.items() if key != "id"})
    return sorted(found.items(), key=lambda item: item[0])


def content_of(token: Any) -> str:
    """The text of a token given as a string, an entry with flags, or an AddedToken; "" for anything else."""
    if isinstance(token, dict):
        token = token.get("content")
    content = getattr(token, "content", token)
    return content if isinstance(content, str) else ""


def added_token(entry: Any, special: bool | None = None) -> Any:
    """An AddedToken from a string, an entry with flags, or another AddedToken. special: overrides the entry's flag."""
    make = tokenizers().AddedToken
    if isinstance(entry, str):
        return make(entry, special=bool(special), normalized=not special)
    if not isinstance(entry, dict):
        if special and not entry.special:
            entry.special = True
        return entry
    flags = {key: entry[key] for key in FLAGS if key in entry}
    unknown = sorted(entry.keys() - {"content", "__type", *FLAGS})
    if not content_of(entry) or unknown or not all(isinstance(flag, bool) for flag in flags.values()):
        raise ValueError(f"the token {str(entry)[:120]} is not a string with the flags {', '.join(FLAGS)}")
    return make(entry["content"], **(flags | ({"special": True} if special else {})))
