"""Rows as examples: what is learned of them, how they are padded, batched and split, and rows that can't be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.data.columns import dialogue_of, find_columns
from tinygpt.data.dialogue import PRESETS, Dialogue, Template, read_template
from tinygpt.data.examples import AnswerExamples, Example, TextExamples, collate, make_examples
from tinygpt.data.row_batches import AllRows, RowBatches
from tinygpt.data.rows import BadRows, Row
from tinygpt.errors import UsageError
from tinygpt.tokenizers import ByteTokenizer, CharTokenizer

TOKENIZER, END = ByteTokenizer(), 0
MESSAGES = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"}, {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "ciao"},
]  # fmt: skip


def row(**values: Any) -> Row:
    return Row(values, "rows.jsonl, line 3")


def shown(example: Example) -> str:
    """What is learned, in brackets; the end as $."""
    text, inside = "", False
    for token, learned in zip(example.ids.tolist(), example.learned, strict=True):
        if learned != inside:
            text, inside = text + ("[" if learned else "]"), bool(learned)
        text += "$" if token == END else chr(token)
    return text + "]" * inside


def answers(values: dict[str, Any], template: str | Template = "plain", end: int | None = END, **options: Any) -> str:
    _, columns = find_columns(values, "sft", "here")
    template = PRESETS[template] if isinstance(template, str) else template
    return shown(AnswerExamples(TOKENIZER, 200, end, columns, template, **options).make(row(**values)))


# What is learned ------------------------------------------------------------------------------------


def test_a_text_is_learned_with_its_end() -> None:
    assert shown(TextExamples(TOKENIZER, 200, END).make(row(text="abc"))) == "[abc$]"
    assert shown(TextExamples(TOKENIZER, 200, None).make(row(text="abc"))) == "[abc]"


def test_of_a_prompt_the_completion_is_learned() -> None:
    pair = {"prompt": "2 + 2 =", "completion": " 4"}
    assert answers(pair, "raw") == "2 + 2 =[ 4$]"
    assert answers(pair, "raw", loss_on="all") == "[2 + 2 = 4$]"
    assert answers({"question": "2 + 2?", "answer": "4"}) == "User: 2 + 2?\nAssistant:[ 4$]"
    asked = {"instruction": "Add.", "input": "2, 2", "output": "4"}
    assert answers(asked) == "User: Add.\n\n2, 2\nAssistant:[ 4$]"
    for nothing in ("", None, " "):
        assert answers(asked | {"input": nothing}) == "User: Add.\nAssistant:[ 4$]"


@pytest.mark.parametrize(
    ("template", "end", "expected"),
    [
        ("plain", END, "Be brief.\n\nUser: hi\nAssistant:[ hello\nUser:] bye\nAssistant:[ ciao$]"),
        ("plain", None, "Be brief.\n\nUser: hi\nAssistant:[ hello\nUser:] bye\nAssistant:[ ciao\nUser:]"),
        ("lines", None, "Be brief.\n\nhi\n[hello\n]bye\n[ciao\n]"),
        ("play", END, "Be brief.\n\nFIRST:\nhi\n\nSECOND:\n[hello\n\n]FIRST:\nbye\n\nSECOND:\n[ciao$]"),
        (Template("Q {user} A {assistant}.", stop=("!",)), None, "Be brief.\n\nQ hi A[ hello.]Q bye A[ ciao.!]"),
    ],
)
def test_every_answer_is_learned_with_what_ends_it(template: Any, end: int | None, expected: str) -> None:
    assert answers({"messages": MESSAGES}, template, end) == expected


def test_of_a_conversation_the_completion_is_learned() -> None:
    """TRL's conversational prompt and completion: the answers in the prompt are context."""
    talk = {"prompt": MESSAGES[:4], "completion": MESSAGES[4:]}
    assert answers(talk) == "Be brief.\n\nUser: hi\nAssistant: hello\nUser: bye\nAssistant:[ ciao$]"
    assert answers(talk, loss_on="all") == f"[{answers(talk).translate({91: None, 93: None})}]"
    both = {"prompt": MESSAGES[:2], "completion": MESSAGES[2:]}
    assert answers(both) == answers({"messages": MESSAGES})


def test_the_marks_of_chatml_are_learned() -> None:
    found = answers({"messages": MESSAGES}, "chatml")
    assert found.endswith("<|im_start|>assistant\n[ciao<|im_end|>$]")
    assert "<|im_start|>assistant\n[hello<|im_end|>]\n<|im_start|>user\nbye<|im_end|>" in found


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("end", [END, None])
def test_training_reads_what_a_chat_reads(name: str, end: int | None) -> None:
    """The prompts of a dialogue in `chat` are what stands before each answer in training."""
    if name == "raw" and end is None:
        return
    template = PRESETS[name]
    maker = AnswerExamples(TOKENIZER, 500, end, ("messages",), template)
    example = maker.make(row(messages=MESSAGES))
    text = bytes(example.ids.tolist()).decode()
    dialogue = Dialogue(template, "Be brief.")
    for said, answered in (("hi", "hello"), ("bye", "ciao")):
        prompt = TOKENIZER.decode(dialogue.prompt(TOKENIZER, said, 1000)[0])
        assert text.startswith(prompt + template.gap + answered)
        assert not example.learned[len(prompt) - 1]
        assert example.learned[len(prompt) : len(prompt + template.gap + answered)].all()
        dialogue.turns.append((said, answered))


def test_an_answer_ends_where_generation_stops() -> None:
    for template in PRESETS.values():
        if template.stops:
            assert template.ending.endswith(template.stops[0])


def test_a_template_is_what_its_file_says(tmp_path: Path) -> None:
    for template in [*PRESETS.values(), Template('say "\\{user}\t=> {assistant}\x01', stop=("é",))]:
        (tmp_path / "template.toml").write_text(template.to_toml(), encoding="utf-8")
        assert read_template(str(tmp_path / "template.toml")) == template


def test_an_answer_that_nothing_could_end() -> None:
    with pytest.raises(UsageError, match=r"no end-of-text token.*such as --template lines"):
        AnswerExamples(TOKENIZER, 20, None, ("prompt", "completion"), PRESETS["raw"])


# Columns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "task", "expected"),
    [
        (["text"], None, "text"),
        (["label", "text"], None, "classify"),
        (["label", "text"], "text", "text"),
        (["prompt", "completion", "text"], None, "sft"),
        (["id", "question", "answer"], None, "sft"),
        (["instruction", "output"], None, "sft"),
        (["messages", "text"], None, "sft"),
        (["messages", "text"], "text", "text"),
    ],
)
def test_the_task_is_read_off_the_columns(columns: list[str], task: str | None, expected: str) -> None:
    assert find_columns(columns, task, "here")[0] == expected


def test_columns_that_will_not_do() -> None:
    with pytest.raises(
        UsageError, match=r"here: fine-tuning needs the columns messages, or prompt and completion, or "
    ):
        find_columns(["prompt", "answer"], None, "here")
    with pytest.raises(UsageError, match=r"there is 'review', 'sentiment': name them so, in CSV and TSV in the first"):
        find_columns(["review", "sentiment"], None, "here")
    with pytest.raises(UsageError, match=r"there is 'text;label': its fields seem to be separated by ';'"):
        find_columns(["text;label"], None, "here")
    with pytest.raises(UsageError, match=r"the task classify needs the columns text and label; there is 'text'"):
        find_columns(["text"], "classify", "here")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"text": ""}, "the column 'text' is empty: every row needs a text"),
        ({"text": None}, "the column 'text' is missing or null, not text"),
        ({"text": 3}, "the column 'text' is a number, not text"),
        ({"text": "a"}, "the text is a single token"),
        ({"prompt": "a", "completion": " \n"}, "the column 'completion' is empty"),
        ({"instruction": "a", "input": 3, "output": "b"}, "the column 'input' is a number, not text"),
        ({"messages": []}, "the column 'messages' must be a list of messages"),
        ({"messages": "hi"}, "the column 'messages' must be a list of messages"),
        ({"messages": MESSAGES[:2]}, "must end with an answer of the assistant"),
        ({"messages": MESSAGES[:1]}, "must end with an answer of the assistant"),
        ({"messages": MESSAGES[2:]}, "message 1 is of the role 'assistant', but system or user is next"),
        ({"messages": [MESSAGES[1], MESSAGES[1]]}, "message 2 is of the role 'user', but assistant is next"),
        ({"messages": [{"role": "user"}]}, "message 1 must be an object with the texts role and content"),
        ({"messages": [MESSAGES[1], {"role": "assistant", "content": ""}]}, "message 2, an answer, is empty"),
        ({"prompt": MESSAGES[1:2], "completion": "hello"}, "the column 'completion' must be a list of messages"),
        ({"prompt": [], "completion": MESSAGES[2:3]}, "the column 'prompt' must be a list of messages"),
        ({"prompt": MESSAGES[1:3], "completion": MESSAGES[2:3]}, "message 3 is of the role 'assistant', but user is"),
        ({"prompt": MESSAGES[1:2], "completion": MESSAGES[3:4]}, "message 2 is of the role 'user', but assistant is"),
        ({"prompt": ["hi"], "completion": MESSAGES[2:3]}, "message 1 must be an object with the texts role and"),
        ({"prompt": "hi", "completion": MESSAGES[2:3]}, "the column 'completion' is an array, not text"),
        ({"prompt": "p" * 40, "completion": "c"}, "the prompt takes 40 tokens, and the block has 20"),
    ],
)
def test_rows_that_can_t_be_used_are_named_or_counted(values: dict[str, Any], words: str) -> None:
    task, columns = find_columns(values, None, "here")
    end = None if values.get("text") == "a" else END
    maker: Any = TextExamples(TOKENIZER, 20, end)
    if task == "sft":
        maker = AnswerExamples(TOKENIZER, 20, END, columns, PRESETS["raw"])
    with pytest.raises(UsageError, match=rf"^rows\.jsonl, line 3: .*{words}"):
        maker.make(row(**values))
    bad = BadRows()
    assert make_examples(maker, [row(**values)], bad) == []
    assert bad.count == 1


def test_a_character_outside_the_vocabulary() -> None:
    maker = TextExamples(CharTokenizer("abc"), 20, None)
    with pytest.raises(UsageError, match=r"line 3: the character 'é' is not in the model's.*--add-token é"):
        maker.make(row(text="abé"))


def test_a_long_row_is_cut() -> None:
    example = TextExamples(TOKENIZER, 4, END).make(row(text="abcdefg"))
    assert (shown(example), example.truncated) == ("[abcde]", True)
    example = TextExamples(TOKENIZER, 4, END).make(row(text="abcd"))
    assert (shown(example), example.truncated) == ("[abcd$]", False)


def test_dialogue_of_a_row_keeps_its_texts() -> None:
    assert dialogue_of(row(messages=MESSAGES), ("messages",)) == ("Be brief.", [("hi", "hello"), ("bye", "ciao")], 0)


# Batches --------------------------------------------------------------------------------------------


def examples_of(lengths: list[int]) -> list[Example]:
    """Examples with these lengths; the first token of each is its number."""
    return [Example(np.full(n, i, np.int32), np.arange(n) > n // 2, str(i), False) for i, n in enumerate(lengths)]


def test_rows_are_padded_on_the_right() -> None:
    inputs, targets = collate(
        [Example(np.array([5, 6, 7]), np.array([False, True, True]), "", False),
         Example(np.array([1, 2, 3, 4, 5]), np.array([True, False, False, True, True]), "", False)]
    )  # fmt: skip
    assert inputs.tolist() == [[5, 6, 0, 0], [1, 2, 3, 4]]
    assert targets.tolist() == [[6, 7, -100, -100], [-100, -100, 4, 5]]
    assert inputs.dtype == targets.dtype == np.int64


@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=60), batch_size=st.integers(1, 7), seed=st.integers(0, 9)
)
def test_an_epoch_has_each_row_once_whatever_the_batches(lengths: list[int], batch_size: int, seed: int) -> None:
    examples = examples_of(lengths)
    whole = RowBatches(examples, 2 * batch_size, 1, seed, collate)
    parts = RowBatches(examples, batch_size, 2, seed, collate)
    assert whole.steps_per_epoch == parts.steps_per_epoch
    for epoch in (0, 1):
        seen = []
        for step in range(epoch * whole.steps_per_epoch, (epoch + 1) * whole.steps_per_epoch):
            rows = whole.batch(step)[0][:, 0].tolist()
            assert sorted(rows) == sorted(
                parts.batch(2 * step)[0][:, 0].tolist() + parts.batch(2 * step + 1)[0][:, 0].tolist()
            )
            assert len(rows) <= 2 * batch_size
            seen += rows
        assert sorted(seen) == list(range(len(lengths)))


def test_batches_follow_from_their_index_and_rows_of_like_length_share_one() -> None:
    examples = examples_of(np.random.default_rng(0).integers(2, 100, 400).tolist())
    batches = RowBatches(examples, 8, 1, 3, collate)
    last = batches.batch(120)
    first = batches.batch(0)
    again = RowBatches(examples, 8, 1, 3, collate)
    np.testing.assert_array_equal(again.batch(0)[0], first[0])
    np.testing.assert_array_equal(again.batch(120)[0], last[0])
    assert not np.array_equal(np.sort(batches.batch(50)[0][:, 0]), np.sort(first[0][:, 0]))  # another epoch
    tokens = sum(len(example) - 1 for example in examples)
    padded = sum(batches.batch(i)[0].size for i in range(50))
    assert padded < 1.2 * tokens  # without the sorting 1.8 times
    assert len({batches.batch(i)[0].shape[1] // 10 for i in range(10)}) > 2  # and short rows do not come first


def test_all_rows_once() -> None:
    examples = examples_of([5, 3, 9, 4, 7])
    batches = AllRows(examples, 2, collate)
    assert [inputs[:, 0].tolist() for inputs, _ in batches] == [[1, 3], [0, 4], [2]]
    assert len(batches) == len(list(batches)) == 3
    some = AllRows(examples, 2, collate, count=1)
    assert len(list(some)) == len(some) == 1
    with pytest.raises(UsageError, match="batch_size must be at least 1, not 0"):
        AllRows(examples, 0, collate)
    for make in (lambda: AllRows([], 2, collate), lambda: RowBatches([], 2, 1, 0, collate)):
        with pytest.raises(UsageError, match="there are no rows"):
            make()
