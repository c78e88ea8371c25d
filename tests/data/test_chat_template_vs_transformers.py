"""chat_template.jinja makes transformers' apply_chat_template give the text that tinygpt makes of a dialogue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import transformers
from tests.training.helpers import OPTIONS
from tinygpt.data.chat_template import to_jinja
from tinygpt.data.dialogue import PRESETS, Dialogue, Template
from tinygpt.data.examples import AnswerExamples
from tinygpt.data.rows import Row
from tinygpt.errors import UsageError
from tinygpt.tokenizers import BPETokenizer, Tokenizer

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
TEMPLATES = PRESETS | {
    "quotes and braces": Template("'{user}' \"\\\n{assistant}}}%}\t|", "{system} #}}\n", ("|",)),
    "Chinese": Template("用户「{user}」\n助手「{assistant}」\n", "【{system}】\n"),
    "beyond the basic plane": Template("😀{user}🤖   {assistant}\u2028\x00.", "{system}"),
    "Jinja's own": Template("%} {user} #} {assistant}}};%}", "%}{system}}}"),
    "the names of the file": Template("START BEFORE {user} GAP {assistant} ENDING AFTER", "ABOVE {system} BELOW"),
}
DIALOGUES: list[tuple[str, list[tuple[str, str]]]] = [
    ("", [("hello", "hi")]),
    ("be kind", [("hello", "hi")]),
    ("请用中文回答。", [("你好", "你好。有什么可以帮你的吗"), ("再见", "再见 😀")]),
    ("", [(" two  blanks ", " and \n lines\n"), ("{{ x }} {% y %} {# z #}", "\\n \"quoted\" 'text'"), ("c", "d")]),
    ("a system {user} {assistant}", [("START", "ENDING"), ("{system}", "{user}")]),
]


@pytest.fixture(scope="module", params=["no end", "an end", "a start, too"])
def tokenizer(request: Any) -> BPETokenizer:
    made = BPETokenizer.train("user assistant system hello 你好 " * 9, 320, special_tokens=MARKS)
    ids = {mark: int(made.encode_special(mark)[0]) for mark in MARKS}
    description, settings = made.config()["tokenizer"], made.config()["settings"]
    settings = settings | dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"))
    if request.param != "no end":
        settings["eos_token"] = "<|endoftext|>"
    if request.param == "a start, too":
        special = {"<s>": {"id": "<s>", "ids": [ids["<s>"]], "tokens": ["<s>"]}}
        pieces = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        pair = [*pieces, {"Sequence": {"id": "B", "type_id": 1}}]
        post = {"type": "TemplateProcessing", "single": pieces, "pair": pair, "special_tokens": special}
        description = description | {"post_processor": post}
        settings |= {"bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    found = BPETokenizer(description, settings)
    assert (found.eos_token_id is None, found.start_ids) == (
        request.param == "no end", [ids["<s>"]] if request.param == "a start, too" else [])  # fmt: skip
    return found


@pytest.fixture
def theirs(tokenizer: BPETokenizer, tmp_path: Path) -> Any:
    tokenizer.save(tmp_path)
    return transformers.AutoTokenizer.from_pretrained(tmp_path)


def messages(system: str, turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    said = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return ([{"role": "system", "content": system}] if system else []) + said


def learned(tokenizer: Tokenizer, template: Template, found: list[dict[str, str]]) -> np.ndarray:
    maker = AnswerExamples(tokenizer, 9999, tokenizer.eos_token_id, ("messages",), template)
    return maker.make(Row({"messages": found}, "")).ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_dialogues(name: str, tokenizer: BPETokenizer, theirs: Any) -> None:
    template, end = TEMPLATES[name], tokenizer.eos_token_id
    if end is None and not template.ending.strip(" "):
        with pytest.raises(UsageError, match="no end-of-text token"):
            learned(tokenizer, template, messages(*DIALOGUES[0]))
        return
    theirs.chat_template = to_jinja(template, tokenizer, end)
    for system, turns in DIALOGUES:
        whole = messages(system, turns)
        text = theirs.apply_chat_template(whole, tokenize=False)
        assert text == tokenizer.decode(learned(tokenizer, template, whole)), (system, turns)
        prompt = theirs.apply_chat_template(whole[:-1], tokenize=False, add_generation_prompt=True)
        ids, _ = Dialogue(template, system, turns[:-1]).prompt(tokenizer, turns[-1][0], 9999)
        assert prompt == tokenizer.decode(ids), (system, turns)
        assert text.startswith(prompt)
        begun = theirs.apply_chat_template(whole[:-1], tokenize=False)
        assert prompt.startswith(begun)
        assert begun.endswith(turns[-1][0])


@pytest.mark.parametrize("name", ["plain", "chatml", "Chinese"])
def test_the_same_ids(name: str, tokenizer: BPETokenizer, theirs: Any) -> None:
    template = TEMPLATES[name]
    theirs.chat_template = to_jinja(template, tokenizer, tokenizer.eos_token_id)
    for system, turns in DIALOGUES[:3]:
        whole = messages(system, turns)
        found = theirs.apply_chat_template(whole[:-1], add_generation_prompt=True, return_dict=False)
        ids, _ = Dialogue(template, system, turns[:-1]).prompt(tokenizer, turns[-1][0], 9999)
        assert found == ids.tolist()
        found = theirs.apply_chat_template(whole, return_dict=False)
        assert found == learned(tokenizer, template, whole).tolist()


def test_what_tinygpt_refuses_is_refused_there(theirs: Any, tokenizer: BPETokenizer) -> None:
    theirs.chat_template = to_jinja(PRESETS["plain"], tokenizer, tokenizer.eos_token_id)
    said = messages("", [("a", "b")])
    for wrong in (said[1:], said[:1] * 2, said + messages("s", []), [{"role": "tool", "content": "x"}]):
        with pytest.raises(Exception, match="user and assistant must speak in turn"):
            theirs.apply_chat_template(wrong, tokenize=False)
    empty = theirs.apply_chat_template([{"role": "system", "content": ""}, *said], tokenize=False)
    assert empty == theirs.apply_chat_template(said, tokenize=False)  # no system text at all, as here


def test_a_run_leaves_it(run: Any, text: Path, tmp_path: Path, without_picture: None) -> None:
    """The base's own, in tokenizer_config.json, is replaced: programs that read one or the other find the same."""
    base, data, folder = tmp_path / "base", tmp_path / "rows.jsonl", tmp_path / "run"
    options = [*OPTIONS, "--tokenizer=bpe", "--vocab-size=270", "--block-size=24", f"--data={text}"]
    assert run("train", *options, f"--out={base}").code == 0
    model = tmp_path / "model"
    assert run("convert", base, model).code == 0
    their = transformers.AutoTokenizer.from_pretrained(model)
    their.chat_template = "{{ messages[0]['content'] }}"
    their.save_pretrained(model, save_jinja_files=False)
    assert "chat_template" in json.loads((model / "tokenizer_config.json").read_text())
    rows = [{"question": f"say {word}", "answer": "be"} for word in ("to", "be", "or", "not", "that", "is")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    answer = run("finetune", f"--model={model}", f"--data={data}", f"--out={folder}", "--steps=2", "--template=lines")
    assert answer.code == 0, answer.err
    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())
    found = transformers.AutoTokenizer.from_pretrained(folder)
    whole = messages("", [("say to", "be")])
    assert found.apply_chat_template(whole, tokenize=False) == "say to\nbe<|endoftext|>"
    assert run("convert", folder, tmp_path / "again").code == 0
    found = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert found.apply_chat_template(whole[:1], tokenize=False, add_generation_prompt=True) == "say to\n"
