"""Tokenizer folders, drawn: the ids are those of transformers' AutoTokenizer, or a setting is refused by its name.

What is drawn: tokenizer.json or vocab.json and merges.txt; the class; settings and marks; added tokens with any flags,
in each of the places where files may have them; normalizers, pre-tokenizers and post-processors; and texts.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.compat import transformers
from tinygpt import tokenizers as ours
from tinygpt.errors import CheckpointError
from tinygpt.tokenizers import BPETokenizer
from tinygpt.tokenizers.added_tokens import SPECIAL_TOKENS
from tinygpt.tokenizers.as_transformers import _OF_GPT2
from tinygpt.tokenizers.byte_characters import bytes_of_token

CORPUS = [
    "the cat sat on the mat, it's the end of 1234 days. ",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002",
    "Caf\u00e9 na\u00efve\r\n",
] * 9
ORDINARY = ["the", "A", " cat", "end of"]  # tokens of the vocabulary, and one that reaches over a blank
CONTENTS = ["<s>", "</s>", "[PAD]", "<|endoftext|>", "<user>", "zyzzyva", "\u6563\u6b65", "<mask>", *ORDINARY]
PARTS = [
    *CONTENTS, " ", "  ", "\n", "\r\n", "\t", "\0", "\u3000", "\u00e9", "e\u0301", "\ufb01", "\U0001f642",
    "\u5929\u6c14", "'s", "12", "cat", "sat", "!", "a",
]  # fmt: skip
TEXT = st.lists(st.one_of(st.sampled_from(PARTS), st.characters(codec="utf-8")), max_size=9).map("".join)
SIZE = 290
EXAMPLES = 60
CONTENT = st.sampled_from(CONTENTS)
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
CL100K = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split(pattern: str, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def sequence(name: str, *parts: Any) -> dict[str, Any]:
    return {"type": "Sequence", name: list(parts)}


NORMALIZERS = [
    None, {"type": "NFC"}, {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Prepend", "prepend": "_"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "ae"},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""},
    {"type": "Strip", "strip_left": True, "strip_right": False},
    sequence("normalizers", {"type": "NFD"}, {"type": "StripAccents"}),
]  # fmt: skip
BARE = LEVEL | {"use_regex": False}
PRE_TOKENIZERS = [
    LEVEL, LEVEL | {"add_prefix_space": True}, BARE, sequence("pretokenizers", split(CL100K), BARE),
    sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, LEVEL),
    sequence("pretokenizers", split("a+b"), LEVEL),
]  # fmt: skip


def template(*pieces: Any) -> dict[str, Any]:
    """A post-processor: numbers stand for special tokens of that id, None for the text."""
    marks = {f"m{n}": {"id": f"m{n}", "ids": [n], "tokens": [f"m{n}"]} for n in pieces if n is not None}
    text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    single = [text if n is None else {"SpecialToken": {"id": f"m{n}", "type_id": 0}} for n in pieces]
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, second], "special_tokens": marks}


POST_PROCESSORS = [
    None, LEVEL, template(7, None), template(7, None, 8, 9), template(None), template(7), template(99999, None),
    {"type": "RobertaProcessing", "sep": ["s", 4], "cls": ["c", 5], "trim_offsets": True, "add_prefix_space": False},
    sequence("processors", LEVEL, template(3, None)),
]  # fmt: skip
SWITCH, RARELY = st.booleans(), st.integers(0, 3).map(lambda n: n == 0)
FLAGS = st.fixed_dictionaries(dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), SWITCH))
ENTRY = st.builds(lambda content, flags: {"__type": "AddedToken", "content": content} | flags, CONTENT, FLAGS)
MARK = st.one_of(CONTENT, CONTENT, st.none(), ENTRY)
CLASSES = [None, "GPT2Tokenizer", "GPT2TokenizerFast", *["PreTrainedTokenizerFast"] * 2, "Qwen2Tokenizer"]
SWITCHES = ("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens")


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The description of a small tokenizer without special tokens."""
    description: dict[str, Any] = BPETokenizer.train(CORPUS, SIZE, special_tokens=()).config()["tokenizer"]
    return description


@st.composite
def tokens(draw: st.DrawFn) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Marks that the vocabulary has, as GPT-2's has its own, and entries of added tokens without a gap in their ids."""
    inside = draw(st.lists(CONTENT, unique=True, max_size=2))
    vocabulary = {content: SIZE + n for n, content in enumerate(each for each in inside if each not in ORDINARY)}
    added = [{"content": content} | draw(FLAGS) for content in draw(st.lists(CONTENT, unique=True, max_size=4))]
    added = [entry for entry in added if entry["content"] not in ("the", "A")]  # which have ids
    fresh = [entry["content"] for entry in added if entry["content"] not in vocabulary]
    ids = vocabulary | {content: SIZE + len(vocabulary) + n for n, content in enumerate(fresh)}
    return vocabulary, [{"id": ids[entry["content"]]} | entry for entry in added]


@st.composite
def configs(draw: st.DrawFn, kind: str | None) -> dict[str, Any]:
    """A tokenizer_config.json."""
    config: dict[str, Any] = {} if kind is None else {"tokenizer_class": kind}
    config |= {key: draw(SWITCH) for key in SWITCHES if draw(SWITCH)}
    config |= {mark: draw(MARK) for mark in SPECIAL_TOKENS if draw(RARELY)}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if draw(RARELY):
            config[key] = draw(st.one_of(st.lists(CONTENT, max_size=3), st.just({"user_token": "<user>"})))
    return config | ({"user_token": draw(CONTENT)} if draw(RARELY) else {})


@st.composite
def folders(draw: st.DrawFn) -> dict[str, Any]:
    """The files of a folder by name, and the tokens to put into its vocabulary."""
    vocabulary, added = draw(tokens())
    older = draw(RARELY)
    config = draw(configs(draw(st.sampled_from(CLASSES[:3] if older else CLASSES))))
    files: dict[str, Any] = {"vocabulary": vocabulary}
    where = draw(st.sampled_from(["file", "decoder"] if older else ["json", "json", "decoder", "both"]))
    if where in ("decoder", "both"):
        config["added_tokens_decoder"] = {str(e["id"]): {k: v for k, v in e.items() if k != "id"} for e in added}
    if where == "file":
        files["added_tokens.json"] = {entry["content"]: entry["id"] for entry in added}
    if older or draw(SWITCH):
        files["config.json"] = {"model_type": "gpt2"}
    if draw(SWITCH):
        names = draw(st.dictionaries(st.sampled_from(SPECIAL_TOKENS), CONTENT, max_size=2))
        more = {"additional_special_tokens": draw(st.lists(CONTENT, max_size=2))} if draw(SWITCH) else {}
        files["special_tokens_map.json"] = names | more
    if config and not draw(RARELY):
        files["tokenizer_config.json"] = config
    if not older:
        plain = draw(SWITCH)
        files["tokenizer.json"] = {
            "added_tokens": added if where != "decoder" else [],
            "normalizer": None if plain else draw(st.sampled_from(NORMALIZERS)),
            "pre_tokenizer": LEVEL if plain else draw(st.sampled_from(PRE_TOKENIZERS)),
            "post_processor": draw(st.sampled_from(POST_PROCESSORS)),
        }
    return files


def write(folder: Path, files: dict[str, Any], plain: dict[str, Any]) -> None:
    files = copy.deepcopy(files)
    description = copy.deepcopy(plain)
    description["model"]["vocab"] |= files.pop("vocabulary")
    if "tokenizer.json" in files:
        files["tokenizer.json"] = description | files["tokenizer.json"]
    else:
        files["vocab.json"] = description["model"]["vocab"]
        pairs = [" ".join(pair) for pair in description["model"]["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def theirs_of(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def same(one: BPETokenizer, theirs: Any, texts: list[str]) -> None:
    assert len(theirs) == one.vocab_size
    vocabulary = theirs.get_vocab()
    normalizer = theirs.backend_tokenizer.normalizer
    odd = {  # see test_on_purpose_an_added_token_is_decoded_as_it_is_written
        number
        for token, number in theirs.get_added_vocab().items()
        if bytes_of_token(token) != token.encode() or (normalizer and normalizer.normalize_str(token) != token)
    }
    for text in texts:
        ids = one.encode(text, allow_special=True)
        assert ids.tolist() == theirs.encode(text), text
        bare = one.encode(text, allow_special=True, add_special_tokens=False)
        assert bare.tolist() == theirs.encode(text, add_special_tokens=False), text
        for skip in (False, True):
            if not odd & set(ids.tolist()):
                assert one.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    for name in ("bos_token", "eos_token", "pad_token"):
        mark = getattr(theirs, name)
        if theirs.__class__.__name__ == "GPT2Tokenizer" or mark is not None:
            assert getattr(one, f"{name}_id") == (None if mark is None else vocabulary[mark])


def check(files: dict[str, Any], texts: list[str], plain: dict[str, Any], folder: Path) -> str:
    """What came of a folder: same, refused, or not theirs, where transformers itself can't load it."""
    write(folder, files, plain)
    try:
        one = ours.load(folder)
    except CheckpointError as error:
        return "refused" if len(str(error).splitlines()) == 1 else f"more than a sentence: {error}"
    try:
        theirs = theirs_of(folder)
    except Exception:
        return "not theirs"
    assert isinstance(one, BPETokenizer)
    same(one, theirs, texts)
    (folder / "again").mkdir()
    one.save(folder / "again")
    loaded = BPETokenizer.load(folder / "again")
    assert loaded == one
    same(loaded, theirs, texts)
    same(one, theirs_of(folder / "again"), texts)
    return "same"


def test_drawn_folders(plain: dict[str, Any]) -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)
    @given(files=folders(), texts=st.lists(TEXT, min_size=3, max_size=3))
    def run(files: dict[str, Any], texts: list[str]) -> None:
        with tempfile.TemporaryDirectory() as name:
            seen[check(files, texts, plain, Path(name))] += 1

    run()
    assert seen["same"] > 0.3 * seen.total(), seen
    assert seen.keys() <= {"same", "refused", "not theirs"}, seen


def test_the_model_types_of_gpt2s_class() -> None:
    from transformers.models.auto.tokenization_auto import MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS as INCORRECT
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    for name in _OF_GPT2:
        assert TOKENIZER_MAPPING_NAMES[name] == "GPT2Tokenizer"
        assert name not in INCORRECT


def test_on_purpose_an_added_token_is_decoded_as_it_is_written(plain: dict[str, Any], tmp_path: Path) -> None:
    """The library reads an added token as if it were written in GPT-2's table of bytes, or gives it normalized."""
    entries = [
        {"id": SIZE + n, "content": each, "normalized": False} for n, each in enumerate(["caf\u00e9", "\u0120x"])
    ]
    entries.append({"id": SIZE + 2, "content": "[PAD]", "normalized": True})
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "special": True}
    added = [entry | flags for entry in entries]
    parts = {"added_tokens": added, "normalizer": {"type": "Lowercase"}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    write(tmp_path, {"vocabulary": {}, "tokenizer.json": parts, "tokenizer_config.json": config}, plain)
    one, theirs = BPETokenizer.load(tmp_path), theirs_of(tmp_path)
    text = "a caf\u00e9 \u0120x [PAD]"
    ids = one.encode(text, allow_special=True)
    assert ids.tolist() == theirs.encode(text)
    assert one.decode(ids) == text
    assert theirs.decode(ids) == "a caf\ufffd  x [pad]"
    assert one.decode(ids, skip_special_tokens=True).strip() == "a"
    assert theirs.decode(ids, skip_special_tokens=True) == "a   [pad]"


def test_on_purpose_without_a_decoder_tokens_are_bytes(plain: dict[str, Any], tmp_path: Path) -> None:
    """transformers then puts the tokens of the file one after the other, with blanks between them."""
    write(tmp_path, {"vocabulary": {}, "tokenizer.json": {"decoder": None}}, plain)
    one, theirs = BPETokenizer.load(tmp_path), theirs_of(tmp_path)
    ids = one.encode("the cat")
    assert ids.tolist() == theirs.encode("the cat")
    assert one.decode(ids) == "the cat"
    assert "\u0120" in theirs.decode(ids)
