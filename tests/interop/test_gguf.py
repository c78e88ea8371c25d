"""GGUF files, as far as they can be judged without the library: vocabularies, the spare end token, what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.interop.helpers import GENERATION, change_json, make, saved, snapshot
from tinygpt import GPT, GPTForSequenceClassification, UsageError, interop, nn
from tinygpt.errors import CheckpointError, MissingExtraError
from tinygpt.interop.gguf import UNREACHABLE, add_spare_end
from tinygpt.interop.gguf_vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED, vocabulary_of
from tinygpt.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, WordTokenizer
from tinygpt.tokenizers.byte_characters import bytes_of_token

CHARACTERS = "\0\n !0aé€你好世😀\U0010ffff"


# The vocabulary -------------------------------------------------------------------------------------


def merged(text: str, merges: list[str]) -> list[str]:
    """What BPE makes of one text that nothing splits: always the first of the merges that applies."""
    letters = {
        bytes_of_token(chr(code))[0]: chr(code) for code in range(33, 0x144) if len(bytes_of_token(chr(code))) == 1
    }
    tokens, pairs = [letters[byte] for byte in text.encode("utf-8")], [tuple(merge.split(" ")) for merge in merges]
    while found := [pairs.index(pair) for pair in pairwise(tokens) if pair in pairs]:
        left, right = pairs[min(found)]
        at = next(i for i, pair in enumerate(pairwise(tokens)) if pair == (left, right))
        tokens[at : at + 2] = [left + right]
    return tokens


def test_characters_are_merged_from_their_bytes() -> None:
    found = vocabulary_of(CharTokenizer(CHARACTERS, end_token=True), len(CHARACTERS) + 1)
    assert [bytes_of_token(token).decode("utf-8") for token in found.tokens[:-1]] == list(CHARACTERS)
    assert found.tokens[-1] == "<|endoftext|>"
    assert found.kinds == [NORMAL] * len(CHARACTERS) + [CONTROL]
    assert (found.eos, found.spare_end, found.add_bos) == (len(CHARACTERS), False, False)
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = "".join(rng.choice(list(CHARACTERS), 9))
        assert [found.tokens.index(token) for token in merged(text, found.merges)] == [
            CHARACTERS.index(character) for character in text
        ]


def test_characters_without_an_end_get_a_spare_one() -> None:
    found = vocabulary_of(CharTokenizer("ab"), 3)
    assert found.tokens == ["a", "b", "[PAD2]", "<|endoftext|>"]
    assert found.kinds == [NORMAL, NORMAL, UNUSED, CONTROL]
    assert (found.eos, found.spare_end) == (3, True)
    assert found.merges == ["ÿ ÿ"]  # none at all is more than llama.cpp takes
    found = vocabulary_of(CharTokenizer("ab"), 2, ends=[1])  # the model's configuration names one
    assert (found.tokens, found.eos, found.spare_end) == (["a", "b"], 1, False)


@pytest.mark.parametrize("end_token", [False, True])
def test_bytes(end_token: bool) -> None:
    found = vocabulary_of(ByteTokenizer(end_token), 256 + end_token)
    assert [bytes_of_token(token) for token in found.tokens[:256]] == [bytes([byte]) for byte in range(256)]
    assert found.eos == 256 if end_token else found.eos == 0xFF  # which no text contains
    assert len(found.tokens) == len(found.kinds) == 256 + end_token


def bpe(**options: Any) -> BPETokenizer:
    pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    return BPETokenizer.train("the end of the beginning, the end\n天气很好\n" * 9, 270, **options)


def test_bpe_is_written_as_it_is(tmp_path: Path) -> None:
    tokenizer = bpe(special_tokens=("<|endoftext|>", "<|pad|>")).with_tokens(["<name>"])
    tokenizer.save(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    merges = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    size = tokenizer.vocab_size
    found = vocabulary_of(tokenizer, size + 2, ends=[tokenizer.eos_token_id, 5])
    assert {token: found.tokens.index(token) for token in vocab} == vocab
    assert found.merges == merges
    assert found.tokens[-5:] == ["<|endoftext|>", "<|pad|>", "<name>", f"[PAD{size}]", f"[PAD{size + 1}]"]
    assert found.kinds[-6:] == [NORMAL, CONTROL, CONTROL, USER_DEFINED, UNUSED, UNUSED]
    assert (found.bos, found.eos, found.eot) == (size - 3, size - 3, 5)
    cut = vocabulary_of(bpe(special_tokens=("<|a|>", "<|b|>")), 269)  # a model without a row for the last one
    assert cut.tokens[-1] == "<|a|>"
    plain = vocabulary_of(bpe(special_tokens=()), 270)
    assert bytes_of_token(plain.tokens[plain.eos]) == b"\xff"


def changed(tokenizer: BPETokenizer, change: Callable[[dict[str, Any]], None]) -> BPETokenizer:
    description = json.loads(json.dumps(tokenizer.config()["tokenizer"]))
    change(description)
    return BPETokenizer(description, {"tokenizer_class": "PreTrainedTokenizerFast"})  # which takes all of it


OTHER_BPE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "space": (lambda d: d["pre_tokenizer"].update(add_prefix_space=True), "adds a space before every text"),
    "split": (lambda d: d["pre_tokenizer"].update(use_regex=False), "splits texts by its own rule"),
    "normalizer": (lambda d: d.update(normalizer={"type": "Lowercase"}), "changes texts by a normalizer"),
    "merges": (lambda d: d["model"].update(ignore_merges=True), r"takes a word .*\(ignore_merges\)"),
    "token": (lambda d: d["model"]["vocab"].update({"天": 270}), "has the token '天', which stands for no bytes"),
    "strip": (
        lambda d: d["added_tokens"].append(
            {"id": 270, "content": "<x>", "special": False, "lstrip": True, "rstrip": False, "single_word": False,
             "normalized": False}
        ),
        "takes the spaces or letters around the token '<x>' into account",
    ),
    "template": (
        lambda d: d.update(
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "e", "type_id": 0}}],
                "pair": [], "special_tokens": {"e": {"id": "e", "ids": [269], "tokens": ["<|endoftext|>"]}},
            }
        ),
        r"puts the tokens \[269\] around every text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_BPE)
def test_other_bpe_is_refused(name: str) -> None:
    change, words = OTHER_BPE[name]
    with pytest.raises(UsageError, match=f"save_gguf: the tokenizer {words}.*, which llama.cpp's"):
        vocabulary_of(changed(bpe(), change), 271)


def test_other_tokenizers_are_refused() -> None:
    with pytest.raises(UsageError, match="a tokenizer of type word can't be expressed as byte-level BPE"):
        vocabulary_of(WordTokenizer.train(["to be or not to be"], 5), 99)
    with pytest.raises(UsageError, match="the tokenizer has 256 tokens, but the model has only 11"):
        vocabulary_of(ByteTokenizer(), 11)
    with pytest.raises(UsageError, match=r"any of 3 tokens ends a text of this model \(eos_token_id \[1, 2, 3\]\)"):
        vocabulary_of(ByteTokenizer(), 256, ends=[1, 2, 3])


# The spare end token --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["tied", "untied", "no biases", "a scale of zero", "cancelling"])
def test_the_spare_end_changes_no_logit(case: str) -> None:
    rng = np.random.default_rng(3)
    V, C = 40, 16
    g, b = rng.standard_normal(C), rng.standard_normal(C) * (case != "no biases")
    g[:2] *= case != "a scale of zero"
    if case == "cancelling":
        d = 1 / g / np.linalg.norm(1 / g)
        b -= (b @ d + 1) * d  # then d . b is -1, and d . d is 1
    embedding = rng.standard_normal((V, C))
    arrays = {"token_embd.weight": embedding, "output_norm.weight": g, "output_norm.bias": b}
    if case == "untied":
        arrays["output.weight"] = rng.standard_normal((V, C))
    head = arrays.get("output.weight", embedding)
    n = rng.standard_normal((100, C))
    n -= n.mean(-1, keepdims=True)
    expected = (n * g + b) @ head.T  # (100, V)
    add_spare_end(arrays)
    found = (n * g + arrays["output_norm.bias"]) @ arrays["output.weight"].T  # (100, V + 1)
    np.testing.assert_allclose(found[:, :V], expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(found[:, V], UNREACHABLE, rtol=1e-11)
    assert np.array_equal(arrays["token_embd.weight"][:V], embedding)
    assert np.abs(arrays["output.weight"]).max() < 3e4  # float32 is enough for it


# What is refused, before anything is written --------------------------------------------------------

TOKENIZER = CharTokenizer("abcdefghijk")
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gelu": ({"activation_function": "gelu"}, "activation_function is gelu, but llama.cpp's GPT-2 has only gelu_new"),
    "relu": ({"activation_function": "relu"}, "activation_function is relu"),
    "silu": ({"activation_function": "silu"}, "activation_function is silu"),
    "scores": ({"scale_attn_weights": False}, "scale_attn_weights is False"),
    "layers": ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_cannot_represent_is_refused_by_name(tmp_path: Path, name: str) -> None:
    settings, words = REFUSED[name]
    with pytest.raises(UsageError, match=rf"save_gguf: {words}"):
        interop.save_gguf(make(**settings), TOKENIZER, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_sizes_that_blocks_of_32_cannot_have(tmp_path: Path, dtype: str) -> None:
    for settings, words in (({}, "n_embd is 12"), ({"n_embd": 32, "n_inner": 48}, "n_inner is 48")):
        with pytest.raises(UsageError, match=f"{dtype} packs 32 numbers of a row together, but {words}: choose f16 or"):
            interop.save_gguf(make(**settings), TOKENIZER, tmp_path / "model.gguf", dtype=dtype)
    with pytest.raises(UsageError, match=r"dtype must be one of f32, f16, bf16, q8_0, q4_0, not 'q5_0'"):
        interop.save_gguf(make(), TOKENIZER, tmp_path / "model.gguf", dtype="q5_0")
    assert not list(tmp_path.iterdir())


def test_models_that_are_no_plain_gpt2(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with pytest.raises(UsageError, match=r"the model has a LoRA adapter: .*--merge-lora"):
        interop.save_gguf(nn.add_lora(make(), rank=2), TOKENIZER, path)
    with pytest.raises(UsageError, match="the weights are packed in int8: load the model without packing"):
        interop.save_gguf(make().eval().pack("int8"), TOKENIZER, path)
    model = make()
    model.h[1].attn.scale = 0.1
    with pytest.raises(UsageError, match=r"h\.1\.attn has the scale 0\.1, .* which llama.cpp's GPT-2 can't represent"):
        interop.save_gguf(model, TOKENIZER, path)
    with pytest.raises(UsageError, match=r"which llama.cpp's GPT-2 can't represent"):
        interop.save_gguf(GPTForSequenceClassification(make().config, num_labels=2), TOKENIZER, path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("GGU, not GGUF")
    before = snapshot(tmp_path)
    for path, words in ((tmp_path, "is a folder: name the file"), (tmp_path / "notes.txt", "is not a GGUF file")):
        with pytest.raises(UsageError, match=words):
            interop.save_gguf(make(), TOKENIZER, path)
        with pytest.raises(UsageError, match=words):
            interop.convert(tmp_path / "no model", path, to="gguf")
    assert snapshot(tmp_path) == before


def test_convert_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    source, path = saved(tmp_path / "source", tokenizer=TOKENIZER), tmp_path / "model.gguf"
    for options, words in (
        ({"dtype": "float16"}, "dtype must be one of f32, f16, bf16, q8_0, q4_0, not 'float16'"),
        ({"max_shard_size": "1MB"}, "a GGUF file is not split: leave out max_shard_size"),
        ({"to": "onnx"}, "to must be 'huggingface' or 'gguf', not 'onnx'"),
    ):
        with pytest.raises(UsageError, match=words):
            interop.convert(source, path, **({"to": "gguf"} | options))
    with pytest.raises(UsageError, match=r"dtype must be one of float32, .*, not 'f16'"):
        interop.convert(source, tmp_path / "target", dtype="f16")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source"]


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "source", tokenizer=TOKENIZER)
    monkeypatch.setitem(sys.modules, "gguf", None)
    for write in (
        lambda path: interop.save_gguf(make(), TOKENIZER, path),
        lambda path: interop.convert(source, path, to="gguf"),
    ):
        with pytest.raises(MissingExtraError, match=r"writing a GGUF file needs the package 'gguf'.*pip install gguf"):
            write(tmp_path / "new" / "model.gguf")
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_is_needed(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the extra gguf: pip install -e '.[gguf]'")
    source = saved(tmp_path / "source")
    with pytest.raises(CheckpointError, match="cannot read the tokenizer"):
        interop.convert(source, tmp_path / "model.gguf", to="gguf")
    TOKENIZER.save(source)
    change_json(source / GENERATION, eos_token_id=[1, 2, 3])
    with pytest.raises(UsageError, match="any of 3 tokens ends a text"):
        interop.convert(source, tmp_path / "model.gguf", to="gguf")
    assert not (tmp_path / "model.gguf").exists()
    assert isinstance(interop.load(source)[0], GPT)
