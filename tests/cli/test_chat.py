"""`tinygpt chat` in a pipe: what the model reads of a dialogue, commands, and a block that is full."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import assert_one_sentence
from tinygpt.cli import chat

BLOCK = 120


# In a pipe --------------------------------------------------------------------------------------


def test_each_line_gets_its_answer(say: Any) -> None:
    answer = say("a\n\nc\r\na", "--max-new-tokens=10")
    assert (answer.code, answer.out, answer.err) == (0, "bb\nbb\nbb\n", "")


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
    # 118 bytes hold four turns of 22 and a beginning of 18; half of that, one turn.
    assert answer.err.splitlines() == ["[The context is full: dropped the oldest 4 turns.]"] * 2


def test_a_full_block_is_read_once_in_a_while(say: Any) -> None:
    """Of 40 turns those that drop others read half a block, the rest what is new."""
    answer = say("a\nc\n" * 20, "--max-new-tokens=10", "--stats")
    reads = [int(line.partition(" ")[0]) for line in answer.err.splitlines() if "tokens read" in line]
    assert len(reads) == 40
    assert sum(read > 25 for read in reads) <= 40 // 4 + 1
    assert max(reads) <= 118 // 2
    assert sum(reads) < 2 * 22 * 40


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
