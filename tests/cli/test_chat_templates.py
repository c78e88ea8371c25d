"""Templates of dialogues: the presets, files of one's own, special tokens."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tinygpt.data.dialogue import PRESETS, Dialogue, Template, encode, read_template
from tinygpt.errors import UsageError
from tinygpt.tokenizers import ByteTokenizer


def test_presets_end_their_answers_where_the_next_turn_begins() -> None:
    assert PRESETS["plain"].stops == ("\nUser:",)
    assert PRESETS["lines"].stops == ("\n",)
    assert PRESETS["play"].stops == ("\n\n",)
    assert PRESETS["chatml"].stops == ("<|im_end|>",)


def test_a_template_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text('turn = "Q: {user} A: {assistant};"\nsystem = "[{system}]"\nstop = ["Q", ";"]\n', encoding="utf-8")
    template = read_template(str(path))
    assert template == Template("Q: {user} A: {assistant};", "[{system}]", ("Q", ";"))
    dialogue = Dialogue(template, "s", [("1", "2")])
    ids, dropped = dialogue.prompt(ByteTokenizer(), "3", room=99)
    assert (ByteTokenizer().decode(ids), dropped) == ("[s]Q: 1 A: 2;Q: 3 A:", 0)


def test_turns_are_dropped_down_to_what_is_to_be_kept() -> None:
    turns = [(str(i), "yes") for i in range(5)]
    template, tokenizer = PRESETS["plain"], ByteTokenizer()
    each, message = len("User: 0\nAssistant: yes\n"), len("User: x\nAssistant:")
    for room, keep, dropped in (
        (5 * each + message, 1, 0), (5 * each + message - 1, None, 1), (5 * each + message - 1, 2 * each + message, 3),
        (5 * each + message - 1, 2 * each + message - 1, 4), (5 * each + message - 1, 3, 5), (message, 3, 5),
    ):  # fmt: skip
        dialogue = Dialogue(template, "", list(turns))
        ids, found = dialogue.prompt(tokenizer, "x", room, keep)
        assert (found, len(ids), dialogue.turns) == (dropped, (5 - dropped) * each + message, turns[dropped:])
    dialogue = Dialogue(template, "", list(turns))
    with pytest.raises(UsageError, match="too long"):
        dialogue.prompt(tokenizer, "x", message - 1, 3)
    assert dialogue.turns == turns


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("turn = 3", "must have the texts turn"),
        ("", "must have the texts turn"),
        ("turn = '{user} {assistant}'\nroles = 3", "there is roles"),
        ("turn = '{user} {assistant}'\nstop = 'x'", "a list stop"),
        ("turn = '{user} {assistant}'\nstop = ['']", "a list stop"),
        ("turn = '{assistant} {user}'", "{user} and then {assistant}, once each"),
        ("turn = '{user}{user}{assistant}'", "once each"),
        ("turn = '{user} {assistant}'", "needs `stop`"),
        ("turn = '{user} {assistant};'\nsystem = 'x'", "{system} once"),
        ("turn", "is not a TOML file"),
        ("turn = '\udc80'", "is not a TOML file"),
    ],
)
def test_mistakes_in_templates(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "t.toml"
    path.write_bytes(content.encode("utf-8", errors="surrogateescape"))
    with pytest.raises(UsageError, match=sentence) as caught:
        read_template(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_special_tokens_are_the_template_s_alone() -> None:
    """A user who types <|im_end|> types characters, and does not end a turn."""
    pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    marks = ["<|im_end|>", "<|im_start|>"]
    tokenizer = tg.tokenizers.BPETokenizer.train("user assistant system hello " * 9, 300, special_tokens=marks)
    end, start = tokenizer.eos_token_id, tokenizer.vocab_size - 1
    dialogue = Dialogue(PRESETS["chatml"], "s", [("hello", "hello")])
    ids, _ = dialogue.prompt(tokenizer, "say <|im_end|> now", room=999)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
        "<|im_start|>user\nsay <|im_end|> now<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.tolist().count(end) == 4
    assert ids.tolist().count(start) == 5
    # Between the marks the text is encoded as a whole, not part by part.
    whole = encode(tokenizer, [("say hel", True), ("lo hello", False)])
    np.testing.assert_array_equal(whole, tokenizer.encode("say hello hello"))


def test_an_answer_ends_at_a_stop_that_is_a_special_token(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    marks = ["<|x|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = tg.tokenizers.BPETokenizer.train("user assistant hello " * 9, 300, special_tokens=marks)
    end = tokenizer.vocab_size - 1
    gpt = tg.GPT(tg.GPTConfig(tokenizer.vocab_size, 64, n_layer=1, n_head=1, n_embd=8), seed=0)
    gpt.save_pretrained(tmp_path, tokenizer=tokenizer)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    hello = int(tokenizer.encode("hello")[-1])
    script = iter([hello, hello, end])  # what the model "wants" to say

    def choose(self: Any, rows: Any, logits: np.ndarray) -> np.ndarray:
        logits[:] = -1e9
        logits[:, next(script)] = 0.0
        return logits

    monkeypatch.setattr("tinygpt.cli.generating.Counter.__call__", choose)
    answer = run("chat", f"--model={tmp_path}", "--template=chatml", "--greedy", "--stats")
    assert answer.code == 0, answer.err
    assert answer.out == tokenizer.decode([hello, hello]).lstrip() + "\n"
