"""chat_template.jinja: written beside template.toml, kept where there is no other, and named where
nothing is learned in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tinygpt.data.chat_template import chat_template_in, to_jinja
from tinygpt.data.dialogue import PRESETS, Template
from tinygpt.tokenizers import ByteTokenizer, CharTokenizer

QUICK = ["--steps=2", "--batch-size=4"]
THEIRS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}\n"

pytestmark = pytest.mark.usefixtures("without_picture")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model with a template of another program."""
    folder = tmp_path / "base"
    config = tg.GPTConfig(256, block_size=32, n_layer=1, n_head=2, n_embd=16)
    tg.GPT(config, seed=1).save_pretrained(folder, tokenizer=ByteTokenizer())
    (folder / "chat_template.jinja").write_bytes(THEIRS.encode())
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", [{"question": f"{i}?", "answer": "yes"} for i in range(12)])


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write(tmp_path / "texts.jsonl", [{"text": f"a text {i}"} for i in range(12)])


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def test_texts_are_quoted() -> None:
    template = Template('A"\\\n{user}\x07 {assistant}好;', "{system}}}")
    found = to_jinja(template, CharTokenizer("ab", end_token=True), 2)
    for quoted in (r'"A\"\\\n"', r'"\u0007"', '"好;"', '"好;<|endoftext|>"', '"}}"', '" "'):
        assert quoted in found
    for name in ("START", "ABOVE", "BELOW", "BEFORE", "BETWEEN", "GAP", "AFTER", "ENDING"):
        assert name not in found


@pytest.mark.slow
def test_a_run_writes_its_own(run: Any, base: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["finetune", f"--model={base}", f"--data={rows}", *QUICK, "--template=lines"]
    answer = run(*command, f"--out={out}")
    assert answer.code == 0, answer.err
    assert "chat template is in Jinja" not in answer.out
    expected = to_jinja(PRESETS["lines"], ByteTokenizer(), None)
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == expected
    (out / "chat_template.jinja").unlink()  # as in a run of before it was written
    assert run("convert", out, tmp_path / "model").code == 0
    assert (tmp_path / "model" / "chat_template.jinja").read_text(encoding="utf-8") == expected
    # Trained further, a model stays in its own template; a run in its place that has none leaves none.
    answer = run(*command[:-1], f"--model={tmp_path / 'model'}", f"--out={tmp_path / 'on'}")
    assert answer.code == 0, answer.err
    assert "the answers are learned in the model's own template, its template.toml" in answer.out
    assert (tmp_path / "on" / "template.toml").read_text() == PRESETS["lines"].to_toml()
    assert run("finetune", "--resume", f"--out={tmp_path / 'on'}", "--steps=3").code == 0
    plain = tmp_path / "plain"
    tg.GPT.from_pretrained(base).save_pretrained(plain, tokenizer=ByteTokenizer())
    labels = write(tmp_path / "labels.jsonl", [{"text": f"t{i}", "label": i % 2} for i in range(12)])
    answer = run("finetune", f"--model={plain}", f"--data={labels}", f"--valid={labels}", f"--out={out}", *QUICK,
                 "--overwrite")  # fmt: skip
    assert answer.code == 0, answer.err
    assert not (out / "chat_template.jinja").exists()
    assert not (out / "template.toml").exists()


def test_that_of_another_program_is_kept_without_a_template(run: Any, base: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    answer = run("finetune", f"--model={base}", f"--data={texts}", f"--out={out}", *QUICK)
    assert answer.code == 0, answer.err
    assert (out / "chat_template.jinja").read_bytes() == THEIRS.encode()
    assert run("finetune", "--resume", f"--out={out}", "--steps=3").code == 0
    text = tmp_path / "text.txt"
    text.write_text("some words\n" * 60)
    answer = run("train", f"--init-from={base}", f"--data={text}", f"--out={tmp_path / 'more'}", "--steps=2",
                 "--batch-size=2", "--block-size=8", "--eval-batches=1")  # fmt: skip
    assert answer.code == 0, answer.err
    assert (tmp_path / "more" / "chat_template.jinja").read_bytes() == THEIRS.encode()
    assert run("convert", tmp_path / "more", tmp_path / "model").code == 0
    assert (tmp_path / "model" / "chat_template.jinja").read_bytes() == THEIRS.encode()


def test_a_template_in_which_nothing_is_learned_is_named(run: Any, base: Path, rows: Path, tmp_path: Path) -> None:
    words = "the model's own chat template is in Jinja, in which answers are not learned: give --template "
    command = ["finetune", f"--model={base}", f"--data={rows}", f"--out={tmp_path / 'run'}", *QUICK]
    answer = run(*command)
    assert answer.code == 0, answer.err
    assert f"{words}chatml, most likely" in answer.out
    path = base / "chat_template.jinja"
    sentence = "chat_template.jinja is in Jinja, in which .* scored, but not learned: write it as a TOML file"
    assert_one_sentence(run(*command, "--overwrite", f"--template={path}"), sentence)
    path.unlink()
    (base / "tokenizer_config.json").write_text(json.dumps({"chat_template": [
        {"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ messages }}"}]}))  # fmt: skip
    answer = run(*command, "--overwrite")
    assert f"{words}a preset or a TOML file" in answer.out


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\xff\xfe", "'utf-8' codec"), (b"x" * ((1 << 20) + 1), "more than 1048576")],
)
def test_a_file_that_is_no_template(
    run: Any, base: Path, rows: Path, tmp_path: Path, content: bytes, words: str
) -> None:
    (base / "chat_template.jinja").write_bytes(content)
    answer = run("finetune", f"--model={base}", f"--data={rows}", f"--out={tmp_path / 'run'}", *QUICK)
    assert_one_sentence(answer, f"chat_template.jinja is not a template: .*{words}")
    assert not (tmp_path / "run").exists()


def test_where_a_template_is_found(tmp_path: Path) -> None:
    assert chat_template_in(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "old"}')
    assert chat_template_in(tmp_path) == "old"
    (tmp_path / "chat_template.jinja").write_text("new\n")
    assert chat_template_in(tmp_path) == "new\n"
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [3, {"name": "other", "template": "x"}]}')
    assert chat_template_in(tmp_path) is None
