"""What `transformers.AutoTokenizer` makes of a folder: which of its files and settings count, and in which order.

The ids of a text depend on more than tokenizer.json. tokenizer_config.json can add tokens, name the mark that begins a
text, put a space before it; and which of that counts depends on the class that it names and on which files are there.
Here the library `tokenizers` does the same steps, so that the ids are those of transformers 5, and the result is one
complete tokenizer.json. `tests/compat/test_compat_tokenizer_folders.py` draws folders and compares.

1. The class. GPT2Tokenizer builds its tokenizer from vocabulary and merges: a pre-tokenizer of its own, with
   add_prefix_space from the settings. The general class takes tokenizer.json as it is. Others have rules of their own.
2. The tokens: those of added_tokens_decoder; without it, those of special_tokens_map.json, added_tokens.json and
   tokenizer.json; then every mark that is named (pad_token and its like) and not there yet gets the next id.
3. What is put around a text: the post_processor of tokenizer.json; without one, add_bos_token and add_eos_token.

What can't be done as there, or would be passed over in silence there, is refused by its name: a ValueError here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .hf_tokenizers import explain, tokenizers

GPT2, GENERAL = "GPT2Tokenizer", "PreTrainedTokenizerFast"
_GENERAL = {GENERAL, "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend", "BloomTokenizer"}
_OF_GPT2 = {"gpt2", "gpt_neo", "gptj", "codegen", "opt", "phi", "starcoder2"}  # model types whose class it is
MARKS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
END_OF_TEXT = "<|endoftext|>"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Settings that would replace what the files say, or text, in ways that only transformers itself can follow.
_REFUSED = (
    "vocab", "merges", "init_inputs", "tokenizer_object", "tokenizer_file", "gguf_file", "post_processor",
    "tokenizer_padding", "tokenizer_truncation", "_json_padding", "fix_mistral_regex",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
)  # fmt: skip
_SWITCHES = ("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens")


@dataclass
class Folder:
    """What the files of a folder say. `complete`: the description is that of a tokenizer.json."""

    description: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    complete: bool = True
    names: dict[str, Any] = field(default_factory=dict)  # special_tokens_map.json
    added: dict[str, Any] = field(default_factory=dict)  # added_tokens.json
    model: dict[str, Any] = field(default_factory=dict)  # config.json


@dataclass
class Assembled:
    """The library's tokenizer, and the settings that are left to say: everything else is in its description."""

    tokenizer: Any
    settings: dict[str, Any]
    marks: dict[str, str]  # bos_token -> "<|endoftext|>" and so on


def assemble(folder: Folder) -> Assembled:
    """The tokenizer of a folder whose description has been looked through. Raises ValueError."""
    _check_settings(folder.settings)
    name = _class_name(folder)
    settings = _settings(folder)
    tokens = _tokens_to_add(folder, settings)
    if "additional_special_tokens" in settings and "extra_special_tokens" not in settings:
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    library = _library(name, folder, settings)
    if name == GPT2 or (_says_nothing(folder) and _is_special(library, END_OF_TEXT)):
        settings = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT) | settings
    if name != GPT2 and isinstance(padding := folder.description.get("padding"), dict):
        settings.setdefault("pad_token", padding.get("pad_token"))
    known = {token.content: token for _, token in tokens}
    marks = {key: known.get(_content(value), value) for key, value in _named(settings).items()}
    extra = _listed(settings)
    adding: list[Any] = [token for _, token in tokens]
    there = {entry.content for entry in library.get_added_tokens_decoder().values()} | known.keys()
    for value in [*marks.values(), *extra]:
        if _content(value) not in there and value not in adding:
            adding.append(value)
    names = {_content(value) for value in marks.values()}
    library.add_tokens([_token(value, special=isinstance(value, str) or _content(value) in names) for value in adding])
    for number, token in tokens:
        found = library.token_to_id(token.content)
        if found != number:
            ordinary = token.content in folder.description["model"]["vocab"]
            but = f"the vocabulary {found}" if ordinary else f"no token has the id {found}, the next one"
            raise ValueError(f"the files give {token.content!r} the id {number}, but {but}")
    found_marks = {key: _content(value) for key, value in marks.items()}
    _put_around(library, folder, settings, found_marks)
    return Assembled(library, _left_to_say(folder.settings, found_marks, extra), found_marks)


# The class ----------------------------------------------------------------------------------------


def _class_name(folder: Folder) -> str:
    """GPT2 or GENERAL. Raises ValueError for a class that has rules of its own."""
    named = folder.settings.get("tokenizer_class") or folder.model.get("tokenizer_class")
    model = folder.model.get("model_type") or ""
    if named is None and isinstance(model, str):
        if not folder.complete or model in _OF_GPT2:
            return GPT2
        named = GENERAL if not model else f"that of {model}"
    if not isinstance(named, str) or not isinstance(model, str):
        raise ValueError(f"its tokenizer_class is {named!r:.60} and its model_type {model!r:.60}: both must be texts")
    if named.removesuffix("Fast") == GPT2 and (not model or model in _OF_GPT2):
        return GPT2
    if named in _GENERAL | {each + "Fast" for each in _GENERAL} or named.removesuffix("Fast") == "LlamaTokenizer":
        if not folder.complete:
            raise ValueError(f"its tokenizer_class {named} needs a tokenizer.json")
        return GENERAL
    raise ValueError(
        f"its tokenizer_class is {named}, whose rules are not known here: tokenizer_class {GENERAL!r} in "
        "tokenizer_config.json takes tokenizer.json as it stands"
    )


def _says_nothing(folder: Folder) -> bool:
    """Whether the files name neither class nor model: then it may well be GPT-2's, the first files of which did not."""
    return not any((folder.settings.get("tokenizer_class"), *map(folder.model.get, ("tokenizer_class", "model_type"))))


def _is_special(library: Any, content: str) -> bool:
    return any(each.special and each.content == content for each in library.get_added_tokens_decoder().values())


def _library(name: str, folder: Folder, settings: dict[str, Any]) -> Any:
    """The library's tokenizer before settings add anything to it."""
    description = folder.description
    if name == GPT2:
        description = _of_gpt2(description, bool(settings.get("add_prefix_space")))
    if isinstance(description.get("model"), dict):
        description = description | {"model": description["model"] | {"dropout": None}}
    with explain("", ValueError):
        library = tokenizers().Tokenizer.from_str(json.dumps(description | {"truncation": None, "padding": None}))
    return library


def _of_gpt2(description: dict[str, Any], prefix: bool) -> dict[str, Any]:
    """The description that GPT2Tokenizer makes of another. Raises ValueError for what it would leave out."""
    model = description["model"]
    cutter = description.get("pre_tokenizer") or {}
    lost = [f"its normalizer {description['normalizer'].get('type')}"] if description.get("normalizer") else []
    if cutter.get("type") != "ByteLevel" or not cutter.get("use_regex", True):
        lost.append("its pre_tokenizer, which is not plain ByteLevel")
    lost += [f"its {key}" for key in ("ignore_merges", "byte_fallback", "fuse_unk") if model.get(key)]
    if lost:
        raise ValueError(
            f"its tokenizer_class {GPT2} would leave out {lost[0]}: tokenizer_class {GENERAL!r} in "
            "tokenizer_config.json keeps it, or take it out of tokenizer.json"
        )
    level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}
    plain = {"unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    return description | {
        "added_tokens": [],
        "pre_tokenizer": level,
        "decoder": level | {"add_prefix_space": True},
        "model": model | plain,
    }


# The tokens ---------------------------------------------------------------------------------------


def _settings(folder: Folder) -> dict[str, Any]:
    """tokenizer_config.json as transformers reads it, special_tokens_map.json included where that counts."""
    settings = {key: value for key, value in folder.settings.items() if key != "tokenizer_class"}
    if folder.complete:  # then tokenizer.json says what is put around a text
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
                    [*before, *(each for each in value if each not in before)] if isinstance(before, list) else value
                )
            settings[key] = value
        _name_extra(settings)
    return settings


def _name_extra(settings: dict[str, Any]) -> None:
    """Extra special tokens that have names become marks like the others."""
    if isinstance(settings.get("extra_special_tokens"), dict):
        named = settings.get("model_specific_special_tokens") or {}
        settings["model_specific_special_tokens"] = named | settings.pop("extra_special_tokens")


def _named(settings: dict[str, Any]) -> dict[str, Any]:
    """The marks by name, as texts or AddedToken: the usual ones, then others that the settings name."""
    own = {
        key: value
        for key, value in settings.items()
        if key.endswith("_token") and key not in MARKS and key not in _SWITCHES and isinstance(value, str)
    }
    named = settings.get("model_specific_special_tokens") or {}
    if not isinstance(named, dict):
        raise ValueError(f"its model_specific_special_tokens are {named!r:.60}, no table of names and tokens")
    own |= named
    found = {}
    for key, value in ({key: settings.get(key) for key in MARKS} | own).items():
        if value is None:
            continue
        if not _content(value):
            raise ValueError(f"the {key} is {value!r}, not a text")
        found[key] = value if isinstance(value, str) else _token(value, special=True)
    return found


def _listed(settings: dict[str, Any]) -> list[Any]:
    """The extra special tokens that have no name."""
    extra = settings.get("extra_special_tokens")
    if extra is None:
        return []
    if not isinstance(extra, list) or not all(_content(each) for each in extra):
        raise ValueError(f"its extra_special_tokens are {extra!r:.60}, not a list of texts")
    return [each if isinstance(each, str) else _token(each) for each in extra]


def _tokens_to_add(folder: Folder, settings: dict[str, Any]) -> list[tuple[int, Any]]:
    """Ids and AddedToken in the order in which they are added."""
    found: dict[int, Any] = {}
    if (decoder := settings.get("added_tokens_decoder")) is not None:
        if not isinstance(decoder, dict) or not all(isinstance(entry, dict) for entry in decoder.values()):
            raise ValueError("its added_tokens_decoder is no table of ids and tokens")
        for number, entry in decoder.items():
            if not number.isascii() or not number.isdecimal() or len(number) > 9:
                raise ValueError(f"its added_tokens_decoder has the id {number[:40]!r}, which is no whole number")
            found[int(number)] = _token(entry)
        return sorted(found.items(), key=lambda item: item[0])
    marks = {_content(settings[key]) for key in MARKS if settings.get(key)}
    extra = settings.get("extra_special_tokens") or []
    marks |= {_content(each) for each in extra}
    for content, number in folder.added.items():
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"the id of the token {content!r} is {number!r}, not an integer")
        flags = {"normalized": content not in marks, "special": content in marks}
        found[number] = _token({"content": content} | flags)
    for entry in (folder.description.get("added_tokens") or []) if folder.complete else ():
        found[entry["id"]] = _token({key: value for key, value in entry.items() if key != "id"})
    return sorted(found.items(), key=lambda item: item[0])


def _content(token: Any) -> str:
    """The text of a token in whichever form: a text, an entry with flags, an AddedToken; "" for anything else."""
    if isinstance(token, dict):
        token = token.get("content")
    content = getattr(token, "content", token)
    return content if isinstance(content, str) else ""


def _token(entry: Any, special: bool | None = None) -> Any:
    """An AddedToken of a text, of an entry with flags, or of another one; `special` where that is decided elsewhere."""
    make = tokenizers().AddedToken
    if isinstance(entry, str):
        return make(entry, special=bool(special), normalized=not special)
    if not isinstance(entry, dict):
        if special and not entry.special:
            entry.special = True
        return entry
    flags = {key: entry[key] for key in FLAGS if key in entry}
    unknown = sorted(entry.keys() - {"content", "__type", *FLAGS})
    if not _content(entry) or unknown or not all(isinstance(flag, bool) for flag in flags.values()):
        raise ValueError(f"the token {str(entry)[:120]} is not a text with the flags {', '.join(FLAGS)}")
    return make(entry["content"], **(flags | ({"special": True} if special else {})))


# Around a text, and what is left to say -----------------------------------------------------------


def _put_around(library: Any, folder: Folder, settings: dict[str, Any], marks: dict[str, str]) -> None:
    """add_bos_token and add_eos_token, which count where there is no tokenizer.json."""
    if folder.complete or not {"add_bos_token", "add_eos_token"} & settings.keys():
        return
    around = [marks.get(f"{name}_token") if settings.get(f"add_{name}_token") else None for name in ("bos", "eos")]
    first, last = around
    kept = [mark for mark in around if mark]
    with explain("add_bos_token, add_eos_token: ", ValueError):
        library.post_processor = tokenizers().processors.TemplateProcessing(
            single=" ".join([*[f"{first}:0"][: bool(first)], "$A:0", *[f"{last}:0"][: bool(last)]]),
            pair="$A:0 $B:1",
            special_tokens=[(mark, library.token_to_id(mark)) for mark in dict.fromkeys(kept)],
        )


def _left_to_say(settings: dict[str, Any], marks: dict[str, str], extra: list[Any]) -> dict[str, Any]:
    """The settings to save beside the complete description: the marks as texts, no list of tokens that it has."""
    gone = (
        "added_tokens_decoder",
        "additional_special_tokens",
        "extra_special_tokens",
        "model_specific_special_tokens",
    )
    left = {key: value for key, value in settings.items() if key not in gone} | marks
    if extra:
        left["extra_special_tokens"] = [_content(each) for each in extra]
    return left


def _check_settings(settings: dict[str, Any]) -> None:
    for key in _REFUSED:
        if settings.get(key) not in (None, False):
            raise ValueError(f"its setting {key} can't be heeded here: take it out of tokenizer_config.json")
    for key in _SWITCHES:
        if not isinstance(settings.get(key, False), bool | None):
            raise ValueError(f"its setting {key} is {str(settings[key])[:40]!r}, neither true nor false")
    other = settings.get("fast_tokenizer_files") or []
    other = [name for name in other if name != "tokenizer.json"] if isinstance(other, list) else [other]
    if other:
        raise ValueError(f"its fast_tokenizer_files name another file, {str(other[0])[:60]!r}")
    ways = settings.get("auto_map")
    if ways:
        raise ValueError("its auto_map names program code of its own, which is not run")
