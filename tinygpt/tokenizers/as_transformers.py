"""Build the tokenizer that `transformers.AutoTokenizer` would load from a folder.

The ids of a text depend on more than tokenizer.json. tokenizer_config.json can add tokens, name the token that begins a
text or put a space before the text; which of its settings take effect depends on the class it names and on which files
the folder has. We follow the same steps with the library `tokenizers`, so the ids are those of transformers 5, and the
result is one complete tokenizer.json. `tests/tokenizers/test_folders_vs_transformers.py` compares random folders.

1. The class. GPT2Tokenizer uses only vocabulary and merges, with its own pre-tokenizer, which takes add_prefix_space
   from the settings. The general class takes tokenizer.json as it is. Other classes have their own rules.
2. The tokens: those of added_tokens_decoder or, without it, of special_tokens_map.json, added_tokens.json and
   tokenizer.json. Then every named special token (pad_token etc.) that is still missing gets the next id.
3. Tokens around a text: the post_processor of tokenizer.json or, without that file, add_bos_token and add_eos_token.

Anything that we can't do as transformers does, or that transformers would silently ignore, raises a ValueError that
names it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .added_tokens import (
    BOOLEAN_SETTINGS,
    Folder,
    added_token,
    content_of,
    named_tokens,
    settings_of,
    tokens_to_add,
    unnamed_tokens,
)
from .hf_tokenizers import explain, tokenizers

GPT2, GENERAL = "GPT2Tokenizer", "PreTrainedTokenizerFast"
_GENERAL = {GENERAL, "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend", "BloomTokenizer"}
_OF_GPT2 = {"gpt2", "gpt_neo", "gptj", "codegen", "opt", "phi", "starcoder2"}  # model types that use it
END_OF_TEXT = "<|endoftext|>"
# Settings that override the files, or alter the text, in ways that only transformers implements.
_UNSUPPORTED = (
    "vocab", "merges", "init_inputs", "tokenizer_object", "tokenizer_file", "gguf_file", "post_processor",
    "tokenizer_padding", "tokenizer_truncation", "_json_padding", "fix_mistral_regex",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
)  # fmt: skip


@dataclass
class Assembled:
    """The library's tokenizer, and the settings that its description (tokenizer.json) does not contain."""

    tokenizer: Any
    settings: dict[str, Any]
    special_tokens: dict[str, str]  # bos_token -> "<|endoftext|>" and so on


def assemble(folder: Folder) -> Assembled:
    """Build the tokenizer of a folder whose description has been checked. Raises ValueError."""
    _check_settings(folder.settings)
    name = _class_name(folder)
    settings = settings_of(folder)
    tokens = tokens_to_add(folder, settings)
    if "additional_special_tokens" in settings and "extra_special_tokens" not in settings:
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    library = _library(name, folder, settings)
    if name == GPT2 or (_names_no_class(folder) and _is_special(library, END_OF_TEXT)):
        settings = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT) | settings
    if name != GPT2 and isinstance(padding := folder.description.get("padding"), dict):
        settings.setdefault("pad_token", padding.get("pad_token"))
    known = {token.content: token for _, token in tokens}
    named = {key: known.get(content_of(value), value) for key, value in named_tokens(settings).items()}
    extra = unnamed_tokens(settings)
    to_add: list[Any] = [token for _, token in tokens]
    present = {entry.content for entry in library.get_added_tokens_decoder().values()} | known.keys()
    for value in [*named.values(), *extra]:
        if content_of(value) not in present and value not in to_add:
            to_add.append(value)
    special_tokens = {key: content_of(value) for key, value in named.items()}
    special = special_tokens.values()
    library.add_tokens(
        [added_token(token, special=isinstance(token, str) or content_of(token) in special) for token in to_add]
    )
    for token_id, token in tokens:
        found = library.token_to_id(token.content)
        if found != token_id:
            ordinary = token.content in folder.description["model"]["vocab"]
            problem = f"the vocabulary gives it {found}" if ordinary else f"the next free id is {found}"
            raise ValueError(f"the files give {token.content!r} the id {token_id}, but {problem}")
    _set_template(library, folder, settings, special_tokens)
    return Assembled(library, _remaining_settings(folder.settings, special_tokens, extra), special_tokens)


# The class ----------------------------------------------------------------------------------------


def _class_name(folder: Folder) -> str:
    """Return GPT2 or GENERAL. Raises ValueError for a class with its own rules."""
    named = folder.settings.get("tokenizer_class") or folder.model.get("tokenizer_class")
    model = folder.model.get("model_type") or ""
    if named is None and isinstance(model, str):
        if not folder.complete or model in _OF_GPT2:
            return GPT2
        named = GENERAL if not model else f"that of {model}"
    if not isinstance(named, str) or not isinstance(model, str):
        raise ValueError(f"its tokenizer_class is {named!r:.60} and its model_type {model!r:.60}: both must be strings")
    if named.removesuffix("Fast") == GPT2 and (not model or model in _OF_GPT2):
        return GPT2
    if named in _GENERAL | {general + "Fast" for general in _GENERAL} or named.removesuffix("Fast") == "LlamaTokenizer":
        if not folder.complete:
            raise ValueError(f"its tokenizer_class {named} needs a tokenizer.json")
        return GENERAL
    raise ValueError(
        f"its tokenizer_class {named} is not supported: to use tokenizer.json as it is, set tokenizer_class to "
        f"{GENERAL!r} in tokenizer_config.json"
    )


def _names_no_class(folder: Folder) -> bool:
    """Whether the files name neither a class nor a model type. GPT-2's original files did not."""
    return not any((folder.settings.get("tokenizer_class"), *map(folder.model.get, ("tokenizer_class", "model_type"))))


def _is_special(library: Any, content: str) -> bool:
    return any(token.special and token.content == content for token in library.get_added_tokens_decoder().values())


def _library(name: str, folder: Folder, settings: dict[str, Any]) -> Any:
    """The library's tokenizer before any setting is applied."""
    description = folder.description
    if name == GPT2:
        description = _of_gpt2(description, bool(settings.get("add_prefix_space")))
    if isinstance(description.get("model"), dict):
        description = description | {"model": description["model"] | {"dropout": None}}
    with explain("", ValueError):
        library = tokenizers().Tokenizer.from_str(json.dumps(description | {"truncation": None, "padding": None}))
    return library


def _of_gpt2(description: dict[str, Any], prefix: bool) -> dict[str, Any]:
    """Rewrite a description as GPT2Tokenizer does. Raises ValueError if that would drop a part of it."""
    model = description["model"]
    pre_tokenizer = description.get("pre_tokenizer") or {}
    lost = [f"its normalizer {description['normalizer'].get('type')}"] if description.get("normalizer") else []
    if pre_tokenizer.get("type") != "ByteLevel" or not pre_tokenizer.get("use_regex", True):
        lost.append("its pre_tokenizer, which is not plain ByteLevel")
    lost += [f"its {key}" for key in ("ignore_merges", "byte_fallback", "fuse_unk") if model.get(key)]
    if lost:
        raise ValueError(
            f"its tokenizer_class {GPT2} would ignore {lost[0]}: set tokenizer_class to {GENERAL!r} in "
            "tokenizer_config.json to keep it, or remove it from tokenizer.json"
        )
    level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}
    plain = {"unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    return description | {
        "added_tokens": [],
        "pre_tokenizer": level,
        "decoder": level | {"add_prefix_space": True},
        "model": model | plain,
    }


# The template, and the settings to save -----------------------------------------------------------


def _set_template(library: Any, folder: Folder, settings: dict[str, Any], special_tokens: dict[str, str]) -> None:
    """Apply add_bos_token and add_eos_token, which take effect only without a tokenizer.json."""
    if folder.complete or not {"add_bos_token", "add_eos_token"} & settings.keys():
        return
    first, last = (
        special_tokens.get(f"{name}_token") if settings.get(f"add_{name}_token") else None for name in ("bos", "eos")
    )
    used = dict.fromkeys(token for token in (first, last) if token)
    with explain("add_bos_token, add_eos_token: ", ValueError):
        library.post_processor = tokenizers().processors.TemplateProcessing(
            single=" ".join([*[f"{first}:0"][: bool(first)], "$A:0", *[f"{last}:0"][: bool(last)]]),
            pair="$A:0 $B:1",
            special_tokens=[(token, library.token_to_id(token)) for token in used],
        )


def _remaining_settings(settings: dict[str, Any], special_tokens: dict[str, str], extra: list[Any]) -> dict[str, Any]:
    """The settings to save with the complete description: special tokens as strings, no lists of added tokens."""
    in_description = (
        "added_tokens_decoder",
        "additional_special_tokens",
        "extra_special_tokens",
        "model_specific_special_tokens",
    )
    left = {key: value for key, value in settings.items() if key not in in_description} | special_tokens
    if extra:
        left["extra_special_tokens"] = [content_of(token) for token in extra]
    return left


def _check_settings(settings: dict[str, Any]) -> None:
    for key in _UNSUPPORTED:
        if settings.get(key) not in (None, False):
            raise ValueError(f"its setting {key} is not supported: remove it from tokenizer_config.json")
    for key in BOOLEAN_SETTINGS:
        if not isinstance(settings.get(key, False), bool | None):
            raise ValueError(f"its setting {key} is {str(settings[key])[:40]!r}, neither true nor false")
    other = settings.get("fast_tokenizer_files") or []
    other = [name for name in other if name != "tokenizer.json"] if isinstance(other, list) else [other]
    if other:
        raise ValueError(f"its fast_tokenizer_files names another file, {str(other[0])[:60]!r}")
    if settings.get("auto_map"):
        raise ValueError("its auto_map names Python code of its own, which tinygpt does not run")
