"""`tinygpt chat`: what the model reads of a dialogue, what is shown, commands, Ctrl-C, and a block that is full."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tests.processes import Process
from tests.training.helpers import ENVIRONMENT
from tinygpt.cli import chat
from tinygpt.data.dialogue import PRESETS, Dialogue, Template, encode, read_template
from tinygpt.errors import UsageError
from tinygpt.tokenizers import ByteTokenizer

BLOCK = 120


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 directory of bytes that has learnt one exchange by heart: whatever is said, it answers "bb"."""
    folder = tmp_path_factory.mktemp("talker")
    tokenizer = ByteTokenizer()
    gpt = tg.GPT(tg.GPTConfig(256, BLOCK, n_layer=1, n_head=2, n_embd=32), seed=0)
    optimizer = tg.optim.AdamW(gpt.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    for _ in range(80):
        turns = rng.choice(["User: a\nAssistant: bb\n", "User: c\nAssistant: bb\n"], 6)
        ids = tokenizer.encode("".join(turns))[None, :BLOCK]
        loss = gpt.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    gpt.save_pretrained(folder, tokenizer=tokenizer)
    return folder


@pytest.fixture
def say(run: Any, talker: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """say("text of the pipe", *options) -> Answer."""

    def call(text: str | bytes, *options: str) -> Any:
        data = text if isinstance(text, bytes) else text.encode("utf-8")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
        return run("chat", f"--model={talker}", "--seed=1", "--greedy", *options)

    return call


# In a pipe --------------------------------------------------------------------------------------


def test_each_line_gets_its_answer(say: Any) -> None:
    answer = say("a\n\nc\r\na", "--max-new-tokens=10")
    assert (answer.code, answer.out, answer.err) == (0, "bb\nbb\nbb\n", "")


def test_what_the_model_reads(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def stream_text(model: Any, tokenizer: Any, ids: Any, **options: Any) -> Iterator[str]:
        seen.append(tokenizer.decode(ids))
        assert options["config"].stops == ("!", "\nUser:")
        yield from (" fi", "ne ")

    monkeypatch.setattr("tinygpt.generation.stream_text", stream_text)
    assert say("a\nc\n/reset\ne", "--system=Be brief.", "--stop=!").out == "fine \nfine \nfine \n"
    assert seen == [
        "Be brief.\n\nUser: a\nAssistant:",
        "Be brief.\n\nUser: a\nAssistant: fine\nUser: c\nAssistant:",
        "Be brief.\n\nUser: e\nAssistant:",
    ]


def test_commands(say: Any) -> None:
    answer = say("/help\n/dance\na\n/reset\n/quit\na")
    assert answer.out == "bb\n"
    assert answer.err.splitlines() == [
        f"[{chat.HELP}]", f"[Unknown command /dance. {chat.HELP}]", "[The dialogue is cleared.]",
    ]  # fmt: skip


def test_a_full_block_forgets_the_oldest_and_says_so(say: Any) -> None:
    answer = say("a\nc\n" * 6, "--max-new-tokens=10")
    assert answer.out == "bb\n" * 12
    assert set(answer.err.splitlines()) == {"[The context is full: dropped the oldest turn.]"}
    assert len(answer.err.splitlines()) == 12 - 5  # 110 bytes hold four turns of 22 and a beginning of 18
    answer = say("a\n" + "x" * 200 + "\nc\n", "--max-new-tokens=10")
    assert answer.out == "bb\nbb\n"
    assert "[This can't be answered: the message is too long: 217 tokens" in answer.err


def test_stats(say: Any) -> None:
    assert say("a\n", "--stats").err.endswith("tokens/s\n")


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("a", ["--template=absent"], "there is no template 'absent': use one of plain, lines, play, chatml"),
        ("a", ["--temperature=-1"], "temperature must be at least 0|applies only to sampling"),
        (b"\xff\n", [], "the standard input is not UTF-8"),
    ],
)
def test_mistakes_are_one_sentence(say: Any, text: Any, options: list[str], words: str) -> None:
    assert_one_sentence(say(text, *options), words)


def test_a_character_that_the_model_does_not_know(
    run: Any, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A model of characters goes on with the dialogue."""
    (tmp_path / "t.toml").write_text('turn = "{user}\\n{assistant}\\n"\n', encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("#\nto\n"))
    answer = run("chat", f"--model={model}", f"--template={tmp_path / 't.toml'}", "--max-new-tokens=3", "--greedy")
    assert answer.code == 0
    assert "[This can't be answered: the character '#' (U+0023) at position 0" in answer.err
    assert answer.out.count("\n") >= 1


# In a terminal ----------------------------------------------------------------------------------


def test_ctrl_c_stops_the_answer_alone(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def stream_text(model: Any, tokenizer: Any, ids: Any, **options: Any) -> Iterator[str]:
        calls.append(tokenizer.decode(ids))
        yield "half an"
        raise KeyboardInterrupt

    monkeypatch.setattr("tinygpt.generation.stream_text", stream_text)
    answer = say("a\nc\n")
    assert (answer.code, answer.out) == (0, "half an\nhalf an\n")
    assert "Assistant: half an\nUser: c" in calls[1]


def test_a_typed_dialogue(run: Any, talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["a", KeyboardInterrupt(), "c", EOFError()])

    def typing(prompt: str) -> str:
        assert prompt == "> "
        word = next(typed)
        if isinstance(word, BaseException):
            raise word
        return word

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", typing)
    answer = run("chat", f"--model={talker}", "--greedy")
    assert answer.out == "bb\n\nbb\n\n"
    assert answer.err.splitlines() == [f"[{chat.HELP}]", "[Ctrl-D or /quit quits.]"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_in_a_pseudo_terminal(talker: Path) -> None:
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-m", "tinygpt", "chat", f"--model={talker}", "--greedy"]
    with Process(command, stdin=slave, stdout=slave, stderr=slave, env=ENVIRONMENT | {"TERM": "dumb"}) as process:
        os.close(slave)
        read_until(master, b"> ")
        os.write(master, b"a\n")
        assert b"bb" in read_until(master, b"> ")
        os.write(master, b"\x04")
        assert process.wait(timeout=60) == 0
    os.close(master)


def read_until(terminal: int, mark: bytes) -> bytes:
    seen = b""
    while not seen.endswith(mark):
        assert select.select([terminal], [], [], 60)[0], seen
        seen += os.read(terminal, 1024)
    return seen


# Templates --------------------------------------------------------------------------------------


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
