"""Read and write the files of GPT-2's tokenizer in the Hugging Face format.

| file | content |
|---|---|
| `tokenizer.json` | the complete tokenizer, as the library `tokenizers` writes it |
| `vocab.json`, `merges.txt` | the same, for GPT-2's scheme only: tokens with their ids; merges in order |
| `tokenizer_config.json`, `special_tokens_map.json` | the bos, eos, padding and unknown tokens; the class |
| `added_tokens.json` | ids of tokens missing from `vocab.json`; only older folders have it |
| `config.json` | the model's: its type implies the tokenizer class if tokenizer_config.json doesn't name one |

as_transformers.py decides which file takes precedence; bpe_checks.py checks their contents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UsageError
from ..files import atomic_write
from .added_tokens import Folder
from .bpe_checks import is_gpt2_scheme

TOKENIZER, CONFIG, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
VOCAB, MERGES, ADDED, MODEL = "vocab.json", "merges.txt", "added_tokens.json", "config.json"
FILES = (TOKENIZER, CONFIG, SPECIAL, VOCAB, MERGES, ADDED)
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


# Reading ------------------------------------------------------------------------------------------


def read_folder(folder: Path) -> Folder:
    """Read all of the folder's files. Raises CheckpointError."""

    def content(name: str) -> dict[str, Any]:
        return read_json(folder / name) if (folder / name).exists() else {}

    complete = (folder / TOKENIZER).exists() or not (folder / VOCAB).exists()
    description = read_json(folder / TOKENIZER) if complete else read_files(folder / VOCAB, folder / MERGES)
    return Folder(description, content(CONFIG), complete, content(SPECIAL), content(ADDED), content(MODEL))


def read_files(vocab: Path, merges: Path) -> dict[str, Any]:
    """The tokenizer.json equivalent to a vocab.json and a merges.txt. Raises CheckpointError."""
    return describe(read_json(vocab), _read_merges(merges))


def describe(vocab: dict[str, Any], merges: list[list[str]]) -> dict[str, Any]:
    """The content of tokenizer.json for GPT-2's scheme with this vocabulary and these merges."""
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges,
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL, "post_processor": BYTE_LEVEL | {"trim_offsets": False},
        "decoder": BYTE_LEVEL | {"add_prefix_space": True}, "model": model,
    }  # fmt: skip


def added_token(content: str, token_id: Any) -> dict[str, Any]:
    """An entry of "added_tokens": a special token, matched literally in a text."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": content, **flags}


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in `path`. Raises CheckpointError if there is none."""
    try:
        content = json.loads(_read(path))
        json.dumps(content, ensure_ascii=False).encode("utf-8")  # JSON can hold half of a surrogate pair, UTF-8 can't
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
                f"the tokenizer file {path} is damaged: line {number} is {line[:60]!r}, not two tokens "
                "separated by a space"
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


# Writing ------------------------------------------------------------------------------------------


def write_folder(folder: Path, description: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write the non-empty files of the table above, each atomically, and remove the others. Raises UsageError."""
    model, files = description["model"], {TOKENIZER: json_text(description), CONFIG: json_text(settings)}
    names = {name: settings[name] for name in NAMES if settings.get(name) is not None}
    if names:
        files[SPECIAL] = json_text(names)
    if is_gpt2_scheme(description):
        pairs = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
        files[MERGES] = "\n".join(["#version: 0.2", *pairs, ""])
        files[VOCAB] = json.dumps(model["vocab"], ensure_ascii=False)
        added = {token["content"]: token["id"] for token in description["added_tokens"]}
        beyond = {token: token_id for token, token_id in added.items() if token not in model["vocab"]}
        if beyond:
            files[ADDED] = json_text(beyond)
    write_files(folder, FILES, files)


def write_files(folder: Path, names: Iterable[str], contents: Mapping[str, str]) -> None:
    """Write a tokenizer's files; those of `names` without contents are left over from another one, and removed."""
    for name in names:
        try:
            if name in contents:
                with atomic_write(folder / name, "wb") as file:
                    file.write(contents[name].encode("utf-8"))
            else:
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write the tokenizer to {folder / name}: {error.strerror or error}") from error


def json_text(content: Mapping[str, Any]) -> str:
    """A file of JSON."""
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"
