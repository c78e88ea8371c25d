"""Where a text starts: at the end-of-text token, at what the tokenizer's files put before it, at tokens of a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tests.tokenizers.texts import ENGLISH
from tinygpt.data.dialogue import PRESETS, Dialogue, encode
from tinygpt.tokenizers import BPETokenizer, CharTokenizer

pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")

SHORT = ("--max-new-tokens=12", "--greedy")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A GPT-2 directory whose tokenizer has the end-of-text mark."""
    tokenizer = BPETokenizer.train(ENGLISH * 3, 290)
    model = tg.GPT(tg.GPTConfig(tokenizer.vocab_size, 32, n_layer=1, n_head=2, n_embd=16), seed=3)
    model.wte.weight.data *= 40  # so that the first token matters
    model.save_pretrained(tmp_path, tokenizer=tokenizer)
    return tmp_path


def expected(folder: Path, ids: list[int], shown: str) -> str:
    model, tokenizer = tg.GPT.from_pretrained(folder), tg.tokenizers.load(folder)
    new = model.generate([ids], max_new_tokens=12, do_sample=False, pad_token_id=0)[0, len(ids) :]
    return shown + tokenizer.decode(new, skip_special_tokens=True) + "\n"


def test_an_empty_prompt_starts_at_the_end_of_text(run: Any, folder: Path) -> None:
    mark = tg.tokenizers.load(folder).eos_token_id
    assert mark is not None
    answer = run("sample", f"--model={folder}", "--prompt=", *SHORT)
    assert answer.code == 0, answer.err
    assert answer.out == expected(folder, [mark], "")
    assert answer.out != run("sample", f"--model={folder}", *SHORT).out  # which starts at a line break
    (folder / "empty.txt").write_text("")
    assert run("sample", f"--model={folder}", f"--prompt-file={folder / 'empty.txt'}", *SHORT).out == answer.out
    several = run("sample", f"--model={folder}", "--prompt=", "--num-beams=2", *SHORT)
    assert several.code == 0, several.err


def test_special_tokens_in_the_prompt_are_asked_for(run: Any, folder: Path) -> None:
    tokenizer = tg.tokenizers.load(folder)
    prompt, end = "<|endoftext|>the end", tokenizer.encode("the end").tolist()
    asked = run("sample", f"--model={folder}", f"--prompt={prompt}", "--allow-special", *SHORT)
    assert asked.out == expected(folder, [tokenizer.eos_token_id, *end], prompt)
    plain = run("sample", f"--model={folder}", f"--prompt={prompt}", *SHORT)
    assert plain.out == expected(folder, tokenizer.encode(prompt).tolist(), prompt)


def test_a_tokenizer_without_marks(run: Any, folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()
    CharTokenizer("".join(map(chr, range(32, 122)))).save(folder)
    answer = run("sample", f"--model={folder}", "--prompt=", *SHORT)
    assert_one_sentence(answer, "the prompt is empty, and this model's tokenizer has no token that begins a text")
    answer = run("sample", f"--model={folder}", "--prompt=a", "--allow-special", *SHORT)
    assert_one_sentence(answer, "--allow-special: a tokenizer of type character has no special tokens")


def older(folder: Path, **settings: Any) -> None:
    """The folder's tokenizer as vocab.json and merges.txt, with these settings."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"} | settings))


def test_what_the_files_put_before_a_text_is_there_once(run: Any, folder: Path) -> None:
    older(folder, add_bos_token=True)
    tokenizer = tg.tokenizers.load(folder)
    mark, end = tokenizer.bos_token_id, tokenizer.encode("the end").tolist()
    assert tokenizer.start_ids == [mark]
    answer = run("sample", f"--model={folder}", "--prompt=the end", *SHORT)
    assert answer.out == expected(folder, [mark, *end], "the end")
    prompt = "<|endoftext|>the end"
    answer = run("sample", f"--model={folder}", f"--prompt={prompt}", "--allow-special", *SHORT)
    assert answer.out == expected(folder, [mark, *end], prompt)
    assert Dialogue(PRESETS["plain"]).prompt(tokenizer, "the end", 99)[0].tolist().count(mark) == 1


def test_a_padding_token_beyond_the_model_is_no_obstacle(run: Any, folder: Path) -> None:
    """GPT-2's folder with a pad_token that the vocabulary lacks: only padding needs it, which a text has not."""
    before = run("sample", f"--model={folder}", "--prompt=the end", *SHORT)
    older(folder, pad_token="[PAD]")
    tokenizer = tg.tokenizers.load(folder)
    assert tokenizer.pad_token_id == tg.GPT.from_pretrained(folder).config.vocab_size
    after = run("sample", f"--model={folder}", "--prompt=the end", *SHORT)
    assert (after.code, after.out) == (0, before.out), after.err


def test_marks_of_a_template_swallow_blanks_as_the_files_say(folder: Path) -> None:
    flags = {"lstrip": False, "normalized": False, "rstrip": True, "single_word": False, "special": True}
    older(folder, added_tokens_decoder={"290": {"content": "<|im_end|>"} | flags})
    tokenizer = BPETokenizer.load(folder)
    parts = [("a<|im_end|>\n", True), ("b", False)]
    assert encode(tokenizer, parts).tolist() == [*tokenizer.encode("a"), 290, *tokenizer.encode("b")]
    # Where a user writes the mark, it is text, also when a template's text completes it.
    for other in ([("x <|im_end|> ", False)], [("<|im_", True), ("end|>", False)], [("<|im_", False), ("end|>", True)]):
        whole = "".join(text for text, _ in other)
        np.testing.assert_array_equal(encode(tokenizer, other), tokenizer.encode(whole))
