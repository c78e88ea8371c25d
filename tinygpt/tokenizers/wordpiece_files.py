"""Read and write the files of a BERT tokenizer in the Hugging Face format.

| file | content |
|---|---|
| `vocab.txt` | a token per line; its id is its line, from 0 |
| `tokenizer.json` | the complete tokenizer, in newer folders; it takes precedence, as in transformers |
| `tokenizer_config.json` | do_lower_case, strip_accents, tokenize_chinese_chars; special tokens |
| `special_tokens_map.json` | special tokens, in older folders |
| `config.json`, `generation_config.json` | the model's: eos_token_id and bos_token_id, if the vocabulary has them |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UsageError
from . import bpe_files
from .bpe_files import ADDED, CONFIG, MODEL, SPECIAL, TOKENIZER, added_token, json_text, read_json, write_files

VOCAB = "vocab.txt"
FILES = (VOCAB, CONFIG, SPECIAL)
_GENERATION = "generation_config.json"
_NAMES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "cls_token": "[CLS]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}
_INSTEAD = {"bos_token": "cls_token", "eos_token": "sep_token"}  # unless another token is named
_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "PreTrainedTokenizer", "TokenizersBackend")
_LONGEST = 100_000_000  # bytes of a vocab.txt; BERT's largest has 1,000,000


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary and settings of a tokenizer.

    special: unk_token and so on -> the token; extra: other special tokens; added: texts that are a single token
    wherever they occur.
    """

    tokens: list[str]
    lowercase: bool = True
    strip_accents: bool | None = None
    chinese: bool = True
    special: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = set(self.tokens)
        if "unk_token" not in self.special:
            raise UsageError("it has no token for unknown words: [UNK] must be in the vocabulary")
        for token in (*self.special.values(), *self.extra, *self.added):
            if token not in known or not token:
                raise UsageError(f"its token {token[:40]!r} is not in the vocabulary")

    @property
    def removes_accents(self) -> bool:
        """As in BERT, an uncased model loses accents too, unless strip_accents says otherwise."""
        return self.lowercase if self.strip_accents is None else self.strip_accents


# Reading ----------------------------------------------------------------------------------------------


def is_wordpiece(folder: Path) -> bool:
    """Whether the tokenizer in this folder is a BERT tokenizer."""
    if (folder / TOKENIZER).exists():
        model = read_json(folder / TOKENIZER).get("model")
        return isinstance(model, dict) and model.get("type") == "WordPiece"
    return (folder / VOCAB).exists() and not (folder / bpe_files.VOCAB).exists()


def read_folder(folder: Path) -> Vocabulary:
    """The vocabulary in a folder. Raises CheckpointError."""
    settings = _settings(folder)
    try:
        _check_class(settings)
        if (folder / TOKENIZER).exists():
            tokens, settings = _read_tokenizer(read_json(folder / TOKENIZER), settings)
        else:
            tokens = _read_vocab(folder / VOCAB)
        return _vocabulary(folder, tokens, settings)
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"the tokenizer in {folder} is not a valid BERT tokenizer: {error}") from error


def _settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (SPECIAL, CONFIG):
        if (folder / name).exists():
            found |= read_json(folder / name)
    return found


def _check_class(settings: Mapping[str, Any]) -> None:
    kind = settings.get("tokenizer_class")
    if kind is not None and (not isinstance(kind, str) or kind.removesuffix("Fast") not in _CLASSES):
        raise ValueError(
            f"its tokenizer_class is {str(kind)[:40]!r}, not one of BERT's: tinygpt knows {', '.join(_CLASSES)}"
        )


def _read_vocab(path: Path) -> list[str]:
    """The tokens in the order of their ids. Lines end with a line feed alone: U+2028 is a token of Chinese BERT."""
    try:
        if path.stat().st_size > _LONGEST:
            raise ValueError(f"{VOCAB} has more than {_LONGEST} bytes")
        lines = path.read_bytes().decode("utf-8").split("\n")
    except OSError as error:
        raise CheckpointError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{VOCAB} is not UTF-8 ({error})") from error
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _read_tokenizer(content: Mapping[str, Any], settings: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The tokens and settings in a tokenizer.json, which override those of tokenizer_config.json."""
    model, normalizer = content["model"], content.get("normalizer") or {}
    expected = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    for name, value in expected.items():
        if model.get(name, value) != value:
            raise ValueError(f"its {name} is {model[name]!r}, but tinygpt supports only {value!r}")
    if normalizer.get("type") != "BertNormalizer" or normalizer.get("clean_text") is not True:
        raise ValueError("its normalizer is not BertNormalizer with clean_text")
    if (content.get("pre_tokenizer") or {}).get("type") != "BertPreTokenizer":
        raise ValueError("its pre_tokenizer is not BertPreTokenizer")
    entries = content.get("added_tokens", [])
    added = {entry["content"]: entry["id"] for entry in entries}
    ids = {**model["vocab"], **added}
    tokens = [token for token, _ in sorted(ids.items(), key=lambda item: item[1])]
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError("its ids are not 0, 1, 2 and so on")
    return tokens, settings | {
        "do_lower_case": normalizer.get("lowercase", True), "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True), "unk_token": model.get("unk_token"),
        "extra_special_tokens": [entry["content"] for entry in entries if entry.get("special")],
        "added_tokens_decoder": {entry["id"]: entry for entry in entries},
    }  # fmt: skip


def _vocabulary(folder: Path, tokens: list[str], settings: Mapping[str, Any]) -> Vocabulary:
    tokens = tokens + _beyond(folder, settings, len(tokens))
    known = set(tokens)
    special = {}
    for name, default in _NAMES.items():
        token = _content(settings.get(name) or default)
        if token in known:
            special[name] = token
    for name in ("bos_token", "eos_token"):
        number = _of_model(folder, f"{name}_id", len(tokens))
        token = tokens[number] if number is not None else _content(settings.get(name) or "")
        if token in known and token and token != special.get(_INSTEAD[name]):
            special[name] = token
    others = [_content(token) for token in _listed(settings)]
    flags = {name: settings.get(name) for name in ("do_lower_case", "tokenize_chinese_chars", "strip_accents")}
    for name, value in flags.items():
        if value not in (True, False, None):
            raise ValueError(f"its setting {name} is {str(value)[:40]!r}, neither true nor false")
    extra = sorted({token for token in others if token in known} - set(special.values()))
    lowercase, chinese = (flags[name] is not False for name in ("do_lower_case", "tokenize_chinese_chars"))
    added = sorted(_added(folder, settings).keys() - set(special.values()) - set(extra))
    return Vocabulary(tokens, lowercase, flags["strip_accents"], chinese, special, extra, added)


def _listed(settings: Mapping[str, Any]) -> list[Any]:
    return [
        token for name in ("additional_special_tokens", "extra_special_tokens") for token in settings.get(name) or []
    ]


def _content(token: Any) -> str:
    """A special token is text, or an object with its text and how it is matched."""
    found = token.get("content") if isinstance(token, dict) else token
    if not isinstance(found, str):
        raise ValueError(f"its special token {str(token)[:40]!r} is not text")
    return found


def _added(folder: Path, settings: Mapping[str, Any]) -> dict[str, int]:
    """Texts that are one token each, with their ids."""
    found = read_json(folder / ADDED) if (folder / ADDED).exists() else {}
    decoder = settings.get("added_tokens_decoder") or {}
    return found | {_content(token): int(number) for number, token in decoder.items()}


def _beyond(folder: Path, settings: Mapping[str, Any], size: int) -> list[str]:
    """Tokens that are not in vocab.txt, in the order of their ids."""
    beyond = sorted((number, token) for token, number in _added(folder, settings).items() if number >= size)
    if [number for number, _ in beyond] != list(range(size, size + len(beyond))):
        raise ValueError(f"its added tokens leave a gap after the {size} tokens of the vocabulary")
    return [token for _, token in beyond]


def _of_model(folder: Path, name: str, size: int) -> int | None:
    """The model's own id of that name, if the vocabulary has it: small models often inherit GPT-2's 50256."""
    for file in (_GENERATION, MODEL):
        if (folder / file).exists():
            value = read_json(folder / file).get(name)
            value = value[0] if isinstance(value, list) and value else value
            if type(value) is int and 0 <= value < size:
                return value
    return None


# Writing ----------------------------------------------------------------------------------------------


def write_folder(folder: Path, vocabulary: Vocabulary) -> None:
    """Write the files, each atomically, and remove those of other tokenizers. Raises UsageError."""
    settings: dict[str, Any] = {
        "tokenizer_class": "BertTokenizer", "do_lower_case": vocabulary.lowercase,
        "strip_accents": vocabulary.strip_accents, "tokenize_chinese_chars": vocabulary.chinese,
        **vocabulary.special,
    }  # fmt: skip
    if vocabulary.extra:
        settings["extra_special_tokens"] = vocabulary.extra
    if vocabulary.added:
        numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
        plain = {"special": False, "normalized": False}  # matched in the text as it was written
        settings["added_tokens_decoder"] = {
            str(numbers[token]): added_token(token, numbers[token]) | plain for token in vocabulary.added
        }
    contents = {
        VOCAB: "".join(f"{token}\n" for token in vocabulary.tokens), CONFIG: json_text(settings),
        SPECIAL: json_text(vocabulary.special),
    }  # fmt: skip
    write_files(folder, sorted({*bpe_files.FILES, *FILES}), contents)
