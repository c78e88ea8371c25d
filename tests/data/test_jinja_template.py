"""Chat templates in Jinja: followed in every command that answers, and one sentence where one can't be."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tests.data.jinja_templates import CHATML, JINJA
from tinygpt.data.dialogue import PRESETS
from tinygpt.data.jinja_template import JinjaTemplate, template_for
from tinygpt.errors import UsageError
from tinygpt.tokenizers import ByteTokenizer

TOKENIZER = ByteTokenizer(end_token=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tg.GPT(tg.GPTConfig(257, block_size=200, n_layer=1, n_head=2, n_embd=8), seed=1).save_pretrained(
        folder, tokenizer=TOKENIZER
    )
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    return folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the model reads, and what ends an answer."""
    found: list[tuple[str, Any]] = []

    def stream_text(model: Any, tokenizer: Any, ids: Any, **options: Any) -> Iterator[str]:
        found.append((tokenizer.decode(ids), options["config"].stops))
        yield "fine"

    monkeypatch.setattr("tinygpt.generation.stream_text", stream_text)
    monkeypatch.setattr("tinygpt.cli.answers.stream_text", stream_text, raising=False)
    return found


ASKED = ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", ("<|im_end|>",))


def test_every_command_that_answers_follows_it(
    run: Any, model: Path, tmp_path: Path, seen: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def chat(*options: str) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
        answer = run("chat", f"--model={model}", "--greedy", *options)
        assert (answer.code, answer.out, answer.err) == (0, "fine\n", "")

    chat()
    chat(f"--template={model / 'chat_template.jinja'}")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hi"}\n')
    answer = run("predict", f"--model={model}", f"--data={prompts}")
    assert json.loads(answer.out) == {"prompt": "hi", "prediction": "fine"}, answer.err
    assert run("sample", f"--model={model}", "--prompt=hi", "--template=own").out == ASKED[0] + "fine\n"
    assert seen == [ASKED] * 4
    chat("--template=lines")
    assert seen[4][0] == "hi\n"
    (model / "template.toml").write_text(PRESETS["plain"].to_toml())  # a template of ours comes first
    chat()
    assert seen[5][0] == "User: hi\nAssistant:"


def test_answers_are_scored_in_it(run: Any, model: Path, tmp_path: Path, seen: list[tuple[str, Any]]) -> None:
    """The loss is that of the answers' tokens in transformers' text, whatever they are divided into."""
    rows = tmp_path / "rows.jsonl"
    said = [("hi", "ho"), ("and <|endoftext|>", "so")]
    messages = [{"role": role, "content": text} for pair in said
                for role, text in zip(("user", "assistant"), pair, strict=True)]  # fmt: skip
    rows.write_text(json.dumps({"messages": messages}) + "\n")
    answer = run("eval", f"--model={model}", f"--data={rows}", f"--json={tmp_path / 'r.json'}", "--max-new-tokens=9")
    assert answer.code == 0, answer.err
    report = json.loads((tmp_path / "r.json").read_text())
    opening = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    text = "".join(opening.format(question) + f"{answer}<|im_end|>\n" for question, answer in said)
    ids = TOKENIZER.encode(text)
    targets = np.full(len(ids), -100)
    for _, answered in said:
        begin = text.index(f"{answered}<|im_end|>")
        targets[begin : begin + len(answered) + 11] = ids[begin : begin + len(answered) + 11]
    gpt = tg.GPT.from_pretrained(model)
    assert report["tokens"] == (targets != -100).sum() == 26
    assert report["loss"] == pytest.approx(gpt.loss(ids[None, :-1], targets[None, 1:]).item(), rel=1e-5)
    assert seen[-1] == (text[: text.rindex("so<|im_end|>")], ASKED[1])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('not so') }}", "line 1: the chat template .* can't be applied to this dialogue: not so"),
        (
            "{{ messages | length }}{{ messages[0].content }}",
            "line 1: .* changes the text before an answer .*",
        ),
    ],
)
def test_what_can_not_be_scored_is_one_sentence(run: Any, model: Path, tmp_path: Path, source: str, words: str) -> None:
    (model / "chat_template.jinja").write_text(source)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "hi", "completion": "ho"}\n')
    assert_one_sentence(run("eval", f"--model={model}", f"--data={rows}"), rf"rows\.jsonl, {words}")


def test_the_server_follows_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinygpt.serving.bodies import Served, read_chat
    from tinygpt.serving.errors import ApiError

    template = template_for(model, TOKENIZER, None)
    gpt = tg.GPT.from_pretrained(model)
    asked = read_chat(Served(gpt, TOKENIZER, "m", template, 0), {"messages": [{"role": "user", "content": "hi"}]})
    assert TOKENIZER.decode(asked.wanted[0].prompt) == ASKED[0]
    assert asked.wanted[0].request.config.stops == ASKED[1]
    refusing = JinjaTemplate("{{ raise_exception('not so') }}", "t", TOKENIZER)
    with pytest.raises(ApiError, match=r"^messages: the chat template t can't be applied to this dialogue: not so$"):
        read_chat(Served(gpt, TOKENIZER, "m", refusing, 0), {"messages": [{"role": "user", "content": "hi"}]})


def test_what_ends_an_answer() -> None:
    for name, stops in [
        ("plain text", ("\nUser:",)), ("instructions in brackets", ("<|endoftext|>",)),
        ("generation blocks and breaks", ("<|endoftext|>",)), ("headers, a date, JSON", ("<|im_end|>",)),
    ]:  # fmt: skip
        source = JINJA[name].replace("bos_token", "''")
        assert JinjaTemplate(source, name, TOKENIZER).stops == stops
    wants_system = "{{ raise_exception('a system text') if messages[0].role != 'system' }}{{ messages[1].content }}"
    template = JinjaTemplate(wants_system, "t", TOKENIZER)
    assert template.stops == ()
    assert TOKENIZER.decode(template.prompt(TOKENIZER, "s", [], "u")) == "u"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ messages[0].content.nothing.at.all }}", "'str object' has no attribute 'nothing'"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages + 1 }}", "can only concatenate list"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
        ("{{ raise_exception('roles must\n alternate') }}", "roles must alternate"),
        # The sandbox:
        ("{{ messages.append(1) }}", "append"),
        ("{{ ''.__class__.__mro__ }}", "__class__"),
        ("{{ dict.__globals__.os }}", "__globals__"),
        ("{{ strftime_now.__globals__.json }}", "__globals__"),
        ("{{ cycler.__init__.__globals__.os }}", "__init__|__globals__"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
    ],
)
def test_what_a_template_must_not_do_is_one_sentence(source: str, words: str) -> None:
    template = JinjaTemplate(source, "chat_template.jinja", TOKENIZER)
    sentence = f"^the chat template chat_template.jinja can't be applied to this dialogue: .*{words}"
    with pytest.raises(UsageError, match=sentence) as caught:
        template.parts("", [], "hi")
    assert "\n" not in str(caught.value)


def test_mistakes_in_a_dialogue_are_one_sentence(run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that can't be read ends the command, one that refuses a message only the message."""

    def chat(*options: str) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
        return run("chat", f"--model={model}", "--greedy", *options)

    path = model / "chat_template.jinja"
    path.write_text("{% for m in messages %}\n{% endfor")
    assert_one_sentence(chat(), r"chat_template.jinja is not valid Jinja \(line 2\): .*: give --template")
    path.write_text("{{ raise_exception('not so') }}")
    answer = chat()
    assert answer.code == 0
    assert (
        answer.err == f"[This can't be answered: the chat template {path} can't be applied to this dialogue: not so]\n"
    )
    path.write_bytes(b"\xff")
    assert_one_sentence(chat(), "chat_template.jinja is not a template: 'utf-8' codec")
    assert_one_sentence(chat(f"--template={path}"), "chat_template.jinja is not a template: 'utf-8' codec")
    assert_one_sentence(chat("--template=absent.jinja"), "absent.jinja")


def test_without_jinja2(run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("jinja2", "jinja2.ext", "jinja2.sandbox"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    words = "a chat template in Jinja needs the package 'jinja2', which is not installed: pip install jinja2"
    assert_one_sentence(run("chat", f"--model={model}"), words)
    assert run("chat", f"--model={model}", "--template=plain").code == 0


def test_an_old_jinja2_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jinja2.__version__", "3.1.5")
    with pytest.raises(UsageError, match=r"needs jinja2 3\.1\.6 or newer, and 3\.1\.5 is installed"):
        JinjaTemplate("x", "t", TOKENIZER)
