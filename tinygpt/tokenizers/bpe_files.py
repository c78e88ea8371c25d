"""The files of GPT-2's tokenizer in the Hugging Face format: read, checked, written.

| file | what is in it |
|---|---|
| `tokenizer.json` | everything that turns text into ids, as the library `tokenizers` writes it |
| `vocab.json`, `merges.txt` | the same for GPT-2's scheme alone: tokens with their ids; merges in their order |
| `tokenizer_config.json`, `special_tokens_map.json` | which tokens mark the beginning, the end, padding |
| `added_tokens.json` | ids of tokens that `vocab.json` lacks; only older folders have it |

A file from elsewhere is looked through here before the library gets it, which explains little and takes much: it
would drop the bytes that a vocabulary lacks without a word.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UsageError
from ..files import atomic_write

TOKENIZER, CONFIG, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
VOCAB, MERGES, ADDED = "vocab.json", "merges.txt", "added_tokens.json"
FILES = (TOKENIZER, CONFIG, SPECIAL, VOCAB, MERGES, ADDED)
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
END_OF_TEXT = "<|endoftext|>"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@functools.cache
def byte_of_character() -> dict[str, int]:
    """GPT-2's table: the character that stands for a byte in the files -> the byte.

    Printable characters of Latin-1 stand for themselves; the others, with which a text file would be hard to read or
    to cut into lines, are represented in their order by the characters from U+0100 on: the space is "Ġ" (U+0120).
    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2, and its code.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in sorted(printable)}
    return table | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def bytes_of_token(token: str) -> bytes:
    """The bytes behind a token of the vocabulary; a token that is not written in GPT-2's table stands for its text."""
    table = byte_of_character()
    try:
        return bytes(table[character] for character in token)
    except KeyError:
        return token.encode("utf-8")


# Reading ------------------------------------------------------------------------------------------


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(description, settings)`: what tokenizer.json and tokenizer_config.json say, or what the other files come to."""
    settings = _settings(folder)
    if (folder / TOKENIZER).exists() or not (folder / VOCAB).exists():
        return read_json(folder / TOKENIZER), settings
    description = describe(read_json(folder / VOCAB), _read_merges(folder / MERGES))
    if (folder / ADDED).exists():
        added = read_json(folder / ADDED)
        known = description["model"]["vocab"]
        entries = [added_token(token, number) for token, number in added.items() if token not in known]
        entries.sort(key=lambda entry: entry["id"] if isinstance(entry["id"], int) else -1)  # `check` looks at them
        description["added_tokens"] = entries
    return description, settings


def read_files(vocab: Path, merges: Path) -> dict[str, Any]:
    """The description of the tokenizer that vocab.json and merges.txt make."""
    return describe(read_json(vocab), _read_merges(merges))


def describe(vocab: dict[str, Any], merges: list[list[str]]) -> dict[str, Any]:
    """The content of tokenizer.json for GPT-2's scheme with this vocabulary."""
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges,
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL, "post_processor": BYTE_LEVEL | {"trim_offsets": False},
        "decoder": BYTE_LEVEL | {"add_prefix_space": True}, "model": model,
    }  # fmt: skip


def added_token(content: str, number: Any) -> dict[str, Any]:
    """An entry of "added_tokens": a special token, found in a text as it stands."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": content, **flags}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; CheckpointError where there is none."""
    try:
        content = json.loads(_read(path))
        json.dumps(content, ensure_ascii=False).encode("utf-8")  # JSON can hold half a surrogate pair, UTF-8 can't
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the tokenizer file {path} is damaged or cut short: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"the tokenizer file {path} holds a {type(content).__name__}, not a JSON object")
    return content


def _read_merges(path: Path) -> list[list[str]]:
    merges = []
    for number, line in enumerate(_read(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise CheckpointError(
                f"the tokenizer file {path} is damaged: line {number} is {line[:60]!r}, not two tokens with a space "
                "between them"
            )
        merges.append(pair)
    return merges


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"the tokenizer file {path} is damaged: it is not UTF-8 ({error})") from error


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, and the names that only special_tokens_map.json knows."""
    settings = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    older = read_json(folder / SPECIAL) if (folder / SPECIAL).exists() else {}
    return settings | {name: older[name] for name in NAMES if settings.get(name) is None and name in older}


# Checking -----------------------------------------------------------------------------------------


def check(description: dict[str, Any]) -> dict[str, int]:
    """The ids of all tokens. Raises ValueError with the words of what is wrong, for the sentence of the caller."""
    model = description.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        found = model.get("type") if isinstance(model, dict) else model
        raise ValueError(f"its model is {found!r}, not BPE")
    if not _is_byte_level(description.get("pre_tokenizer")):
        raise ValueError("its pre_tokenizer is not ByteLevel, so its tokens do not stand for bytes")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"it has the {name} {model[name]!r}, which byte-level tokens do not have")
    ids = _ids(model.get("vocab"), description.get("added_tokens"))
    absent = [byte for character, byte in byte_of_character().items() if character not in ids]
    if absent:
        raise ValueError(f"its vocabulary lacks {len(absent)} of the 256 bytes, the first of them 0x{absent[0]:02x}")
    return ids


def check_added(description: dict[str, Any]) -> None:
    """Refuse an added token that is written like an ordinary one of other bytes: it has the id that these need."""
    merges = description["model"]["merges"]
    merged = {merge.replace(" ", "") if isinstance(merge, str) else "".join(merge) for merge in merges}
    for token in description["added_tokens"]:
        content = token["content"]
        if (content in merged or content in byte_of_character()) and bytes_of_token(content) != content.encode("utf-8"):
            raise ValueError(f"the added token {content!r} is also the ordinary token for {bytes_of_token(content)!r}")


def is_gpt2_scheme(description: dict[str, Any]) -> bool:
    """Whether text is cut into words by GPT-2's expression and by nothing else: then pieces.py's borders are safe.

    A token that is found in the text before that must not reach over such a border.
    """
    pre_tokenizer = description.get("pre_tokenizer") or {}
    plain = pre_tokenizer.get("type") == "ByteLevel" and pre_tokenizer.get("use_regex", True)
    added = description.get("added_tokens") or []
    reaching = any(token.get("rstrip") or re.search(r"\S\s", token["content"]) for token in added)
    return bool(plain and not reaching and not description.get("normalizer"))


def _is_byte_level(pre_tokenizer: Any) -> bool:
    if not isinstance(pre_tokenizer, dict):
        return False
    if pre_tokenizer.get("type") == "Sequence":
        parts = pre_tokenizer.get("pretokenizers")
        return isinstance(parts, list) and any(_is_byte_level(part) for part in parts)
    return pre_tokenizer.get("type") == "ByteLevel"


def _ids(vocab: Any, added: Any) -> dict[str, int]:
    if not isinstance(vocab, dict):
        raise ValueError("its vocabulary is no JSON object of tokens and ids")
    if not isinstance(added, list | None):
        raise ValueError("its added_tokens are no list")
    ids = dict(vocab)
    for token in added or []:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
            raise ValueError("its added_tokens are no list of tokens with content and id")
        if ids.setdefault(token["content"], token.get("id")) != token.get("id"):
            raise ValueError(
                f"the token {token['content']!r} has two ids, {ids[token['content']]} and {token.get('id')}"
            )
    for token, number in ids.items():
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"the id of the token {token!r} is {number!r}, not an integer")
    for expected, (token, number) in enumerate(sorted(ids.items(), key=lambda item: item[1])):
        if number != expected:
            what = f"two tokens have the id {number}" if number == expected - 1 else f"no token has the id {expected}"
            raise ValueError(f"its {len(ids)} ids are not 0 .. {len(ids) - 1}: {what} (see {token!r})")
    return ids


# Writing ------------------------------------------------------------------------------------------


def write_folder(folder: Path, description: dict[str, Any], settings: dict[str, Any]) -> None:
    """All files of the table above that say something, each whole or not at all. Raises UsageError."""
    model, files = description["model"], {TOKENIZER: _json(description), CONFIG: _json(settings)}
    names = {name: settings[name] for name in NAMES if settings.get(name) is not None}
    if names:
        files[SPECIAL] = _json(names)
    if is_gpt2_scheme(description):
        pairs = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
        files[MERGES] = "\n".join(["#version: 0.2", *pairs, ""])
        files[VOCAB] = json.dumps(model["vocab"], ensure_ascii=False)
        added = {token["content"]: token["id"] for token in description["added_tokens"]}
        beyond = {token: number for token, number in added.items() if token not in model["vocab"]}
        if beyond:
            files[ADDED] = _json(beyond)
    for name in FILES:
        try:
            if name in files:
                with atomic_write(folder / name, "wb") as file:
                    file.write(files[name].encode("utf-8"))
            else:  # another tokenizer's, that was here before
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write the tokenizer to {folder / name}: {error.strerror or error}") from error


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"
