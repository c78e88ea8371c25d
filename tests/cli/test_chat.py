"""`tinygpt chat`: what the model reads of a dialogue, what is shown, commands, Ctrl-C, and a block that is full."""

from __future__ import annotations

import io
import os
import re
import select
import sys
import time
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


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a model that answers "fine" reads."""
    found: list[str] = []

    def stream_text(model: Any, tokenizer: Any, ids: Any, **options: Any) -> Iterator[str]:
        found.append(tokenizer.decode(ids))
        yield from (" fi", "ne ")

    monkeypatch.setattr("tinygpt.generation.stream_text", stream_text)
    return found


def test_what_the_model_reads(say: Any, seen: list[str]) -> None:
    assert say("a\nc\n/reset\ne", "--system=Be brief.").out == "fine \nfine \nfine \n"
    assert seen == [
        "Be brief.\n\nUser: a\nAssistant:",
        "Be brief.\n\nUser: a\nAssistant: fine\nUser: c\nAssistant:",
        "Be brief.\n\nUser: e\nAssistant:",
    ]


def test_where_an_answer_ends(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream_text(*arguments: Any, **options: Any) -> Iterator[str]:
        assert options["config"].stops == ("!", "\nUser:")
        yield "fine"

    monkeypatch.setattr("tinygpt.generation.stream_text", stream_text)
    assert say("a", "--stop=!").out == "fine\n"


def test_commands(say: Any) -> None:
    answer = say("/help\n/dance now\na\n/reset\n/?\n /undo \n/bye\na")
    assert answer.out == "bb\n"
    assert answer.err.splitlines() == [
        f"[{chat.HELP}]", f"[Unknown command /dance. {chat.HELP}]", "[The dialogue is cleared.]", f"[{chat.HELP}]",
        "[There is nothing to take back.]",
    ]  # fmt: skip


def test_what_the_model_reads_after_commands(say: Any, seen: list[str]) -> None:
    lines = ["a", "c", "/undo", "e", "/system Be brief.", "f", "/clear", "g", '/system ""', "h", "/system", "/quit"]
    answer = say("\n".join(lines), "--system=Old.", "--max-new-tokens=10")
    assert seen == [
        "Old.\n\nUser: a\nAssistant:",
        "Old.\n\nUser: a\nAssistant: fine\nUser: c\nAssistant:",
        "Old.\n\nUser: a\nAssistant: fine\nUser: e\nAssistant:",
        "Be brief.\n\nUser: a\nAssistant: fine\nUser: e\nAssistant: fine\nUser: f\nAssistant:",
        "Be brief.\n\nUser: g\nAssistant:",
        "User: g\nAssistant: fine\nUser: h\nAssistant:",
    ]
    assert answer.err.splitlines() == [
        "[Taken back: c]", "[The system text is set.]", "[The dialogue is cleared.]", "[The system text is removed.]",
        '[There is no system text. /system TEXT sets it, /system "" removes it.]',
    ]  # fmt: skip


def test_a_full_block_forgets_the_oldest_and_says_so(say: Any) -> None:
    answer = say("a\nc\n" * 6, "--max-new-tokens=10")
    assert answer.out == "bb\n" * 12
    assert set(answer.err.splitlines()) == {"[The context is full: dropped the oldest turn.]"}
    assert len(answer.err.splitlines()) == 12 - 5  # 110 bytes hold four turns of 22 and a beginning of 18


def test_a_message_that_is_too_long_leaves_the_dialogue(say: Any, seen: list[str]) -> None:
    answer = say("a\n" + "x" * 200 + "\nc\n", "--max-new-tokens=10")
    assert answer.out == "fine \nfine \n"
    assert "[This can't be answered: the message is too long: 217 tokens" in answer.err
    assert seen[1] == "User: a\nAssistant: fine\nUser: c\nAssistant:"


# Memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["--greedy"], ["--temperature=1.5"]])
def test_what_was_read_is_not_read_again(run: Any, talker: Path, monkeypatch: pytest.MonkeyPatch, options: Any) -> None:
    """The same answers as without the memory, in a dialogue with commands and a full block."""
    lines = "a\nc\n/undo\nc\na\nc\n/system s\na\na\nc\na\n/reset\na\nc\n"
    command = ["chat", f"--model={talker}", "--seed=1", "--max-new-tokens=10", "--stats", *options]

    def say() -> tuple[str, list[tuple[int, int]]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        answer = run(*command)
        assert answer.code == 0
        found = re.findall(r"^(\d+) tokens read, (\d+) known", answer.err, re.MULTILINE)
        return answer.out, [(int(read), int(known)) for read, known in found]

    out, counts = say()
    with monkeypatch.context() as patched:
        patched.setattr("tinygpt.generation.prompt_cache.common_length", lambda a, b: 0)
        without, all_read = say()
    assert out == without
    assert [read + known for read, known in counts] == [read for read, known in all_read]
    assert all(known == 0 for _, known in all_read)
    if options == ["--greedy"]:
        # An exchange has 22 tokens, and 8 of the next are known: the answer ended with "\nUser:", whose : was not read.
        assert counts[:5] == [(18, 0), (14, 26), (1, 39), (14, 48), (14, 70)]
        assert counts[5][1] == 0  # another system text
        assert counts[-2] == (1, 20)  # after /reset it begins as before


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
    command = ["chat", f"--model={model}", "--max-new-tokens=3", "--greedy"]
    answer = run(*command, f"--template={tmp_path / 't.toml'}")
    assert answer.code == 0
    words = "is not in the text that the model was trained on"
    assert answer.err == f"[This can't be answered: the character '#' (U+0023) {words}]\n"
    assert answer.out.count("\n") >= 1
    monkeypatch.setattr(sys, "stdin", io.StringIO("to\n"))
    words = f"the character 'U' (U+0055) of the template or the system text {words}: give another --template"
    assert run(*command).err == f"[This can't be answered: {words}]\n"


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


def test_ctrl_c_before_the_answer_takes_the_message_back(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def stream_text(model: Any, tokenizer: Any, ids: Any, **options: Any) -> Iterator[str]:
        calls.append(tokenizer.decode(ids))
        if len(calls) == 1:
            raise KeyboardInterrupt
        yield "fine"

    monkeypatch.setattr("tinygpt.generation.stream_text", stream_text)
    answer = say("a\nc\n")
    assert answer.err == "[Stopped before the answer began: the message is not part of the dialogue.]\n"
    assert calls == ["User: a\nAssistant:", "User: c\nAssistant:"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def type_in(run: Any, talker: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """type_in([line or exception, ...]) -> (Answer, the prompts of the terminal)."""

    def call(lines: list[Any]) -> Any:
        typed, prompts = iter(lines), list[str]()

        def typing(prompt: str) -> str:
            prompts.append(prompt)
            line = next(typed)
            if isinstance(line, BaseException):
                raise line
            return str(line)

        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr("builtins.input", typing)
        return run("chat", f"--model={talker}", "--greedy", "--max-new-tokens=10"), prompts

    return call


def test_a_typed_dialogue(type_in: Any) -> None:
    answer, prompts = type_in(["a", KeyboardInterrupt(), "c", EOFError()])
    assert answer.code == 0
    assert answer.out == "bb\n\nbb\n\n"
    assert answer.err.splitlines() == [f"[{chat.HELP}]", "[Ctrl-D or /quit quits.]"]
    assert prompts == ["> "] * 4


def test_several_typed_lines(type_in: Any, seen: list[str]) -> None:
    lines = ["a \\", "b", '"""', "c", "", '  d"""', "/x\ny", "dropped \\", KeyboardInterrupt(), "e", '"""', "f"]
    answer, prompts = type_in([*lines, EOFError()])
    assert prompts == ["> ", "... ", "> ", "... ", "... ", "... ", "> ", "> ", "... ", "> ", "> ", "... ", "... "]
    said = [text.rpartition("User: ")[2].partition("\nAssistant:")[0] for text in seen]
    assert said == ["a \nb", "c\n\n  d", "/x\ny", "e"]  # what was pasted is one line to input(); the end drops "f"
    assert answer.err.splitlines() == [f"[{chat.HELP}]", "[The message is dropped.]"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_in_a_pseudo_terminal(talker: Path) -> None:
    """Messages, several lines, Ctrl-C in an answer that would not end, Ctrl-D."""
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-m", "tinygpt", "chat", f"--model={talker}", "--seed=1"]
    command += ["--temperature=9", "--max-new-tokens=9999999"]
    with Process(
        command, stdin=slave, stdout=slave, stderr=slave, env=ENVIRONMENT | {"TERM": "dumb"}, preexec_fn=take_terminal
    ) as process:
        os.close(slave)
        read_until(master, b"> ")
        os.write(master, b"a\n")
        wait_for_output(master, 200)
        os.write(master, b"\x03")
        read_until(master, b"\n> ")
        os.write(master, b"/undo\n")
        assert b"Taken back: a" in read_until(master, b"> ")
        os.write(master, b'"""\n')
        read_until(master, b"... ")
        assert b"The message is dropped" in interrupted(master, b"> ")
        os.write(master, b"\x04")
        assert process.wait(timeout=60) == 0
    os.close(master)


def take_terminal() -> None:
    """Make the terminal that of the new process, so that Ctrl-C in it is a signal."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def wait_for_output(terminal: int, count: int) -> None:
    while count > 0:
        assert select.select([terminal], [], [], 60)[0]
        count -= len(os.read(terminal, 1024))


def interrupted(terminal: int, mark: bytes) -> bytes:
    """Press Ctrl-C until the mark comes. Just before Python waits for a line, a signal waits for the next key."""
    seen, deadline = b"", time.monotonic() + 60
    while not seen.endswith(mark):
        assert time.monotonic() < deadline, seen
        os.write(terminal, b"\x03")
        while not seen.endswith(mark) and select.select([terminal], [], [], 10)[0]:
            seen += os.read(terminal, 1024)
    return seen


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
