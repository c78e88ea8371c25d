"""Chinese GPT-2 models as hubs have them, vocab.txt and pytorch_model.bin, under each command that takes a model."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cli.helpers import Answer, assert_one_sentence
from tests.interop import torch_writer
from tests.interop.helpers import CONFIG, GENERATION, WEIGHTS, change_json, make, saved
from tests.tokenizers.test_wordpiece import VOCABULARY, folder_of
from tinygpt import interop
from tinygpt.generation import generate, stream_text

Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its config.json names GPT-2's end of text, which these models don't have."""
    folder = saved(tmp_path_factory.mktemp("bert"), make(vocab_size=len(VOCABULARY), block_size=32))
    torch_writer.write(folder / "pytorch_model.bin", load_file(folder / WEIGHTS))
    (folder / WEIGHTS).unlink()
    (folder / GENERATION).unlink()
    change_json(folder / CONFIG, eos_token_id=50256, bos_token_id=50256)
    return str(folder_of(folder))


def test_a_sample_begins_with_the_prompt_alone(run: Run, model: str) -> None:
    answer = run("sample", "--model", model, "--prompt", "我爱北京", "--max-new-tokens", "12", "--seed", "1")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("我爱北京")
    assert "[CLS]" not in answer.out
    assert "[SEP]" not in answer.out


def test_an_empty_prompt_begins_with_cls(run: Run, model: str) -> None:
    answer = run("sample", "--model", model, "--prompt", "", "--max-new-tokens", "5", "--seed", "1")
    assert answer.code == 0, answer.err


def test_the_text_ends_at_sep(model: str) -> None:
    found, tokenizer = interop.load(model)
    assert found.generation_config["eos_token_id"] == 3
    prompt = tokenizer.encode("我爱北京")
    others = [token for token in range(len(VOCABULARY)) if token != 3]
    ended = generate(found, prompt[None], 30, do_sample=False, suppress_tokens=others)
    assert ended[0, len(prompt) :].tolist() == [3]


def test_streaming_and_stop_strings_see_the_joined_text(model: str) -> None:
    found, tokenizer = interop.load(model)
    prompt = tokenizer.encode("我爱 a")
    ids = generate(found, prompt[None], 20, seed=3)[0]
    options = {"seed": 3, "max_new_tokens": 20}
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(prompt) + "".join(stream_text(found, tokenizer, prompt, **options)) == whole
    new = whole.removeprefix(tokenizer.decode(prompt))
    stop = new[2:5]
    shown = "".join(stream_text(found, tokenizer, prompt, stop_strings=[stop], **options))
    assert shown == new[: new.index(stop)]


def test_special_tokens_of_a_trusted_prompt(run: Run, model: str) -> None:
    command = ("sample", "--model", model, "--prompt", "[CLS]我", "--max-new-tokens", "1", "--seed", "1")
    assert run(*command, "--allow-special").code == 0
    _, tokenizer = interop.load(model)
    assert tokenizer.encode("[CLS]我").tolist()[0] == 1


def test_chat_and_eval(run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("我爱北京\n".encode())))
    answer = run("chat", "--model", model, "--max-new-tokens", "5", "--seed", "1")
    assert answer.code == 0, answer.err
    text = tmp_path / "text.txt"
    text.write_text("我爱北京市长江水。" * 20, encoding="utf-8")
    answer = run("eval", "--model", model, "--data", str(text))
    assert answer.code == 0, answer.err
    assert "perplexity" in answer.out.lower()


@pytest.mark.slow
def test_training_goes_on_from_it_and_keeps_its_vocabulary(run: Run, model: str, tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("我爱北京市长江水。<User>\n" * 100, encoding="utf-8")
    options = ("--data", str(text), "--steps", "2", "--eval-every", "2", "--batch-size", "2", "--out", str(out))
    answer = run("train", "--init-from", model, "--add-token", "<User>", *options)
    assert answer.code == 0, answer.err
    found, tokenizer = interop.load(out)
    assert tokenizer.vocab_size == found.config.vocab_size == len(VOCABULARY) + 1
    assert tokenizer.decode(tokenizer.encode("我爱<User>")) == "我爱<User>"
    assert (found.generation_config["eos_token_id"], found.generation_config["bos_token_id"]) == (3, 2)
    answer = run("sample", "--model", str(out), "--prompt", "我爱", "--max-new-tokens", "3", "--seed", "1")
    assert answer.out.startswith("我爱")
    answer = run("train", "--resume", "--out", str(out), "--steps", "3")
    assert answer.code == 0, answer.err


def test_converting_keeps_the_vocabulary(run: Run, model: str, tmp_path: Path) -> None:
    answer = run("convert", model, str(tmp_path / "new"))
    assert answer.code == 0, answer.err
    found, tokenizer = interop.load(tmp_path / "new")
    np.testing.assert_array_equal(found.wte.weight.data, interop.load(model)[0].wte.weight.data)
    assert tokenizer.encode("我爱").tolist() == interop.load(model)[1].encode("我爱").tolist()


def test_a_vocabulary_larger_than_the_model(run: Run, model: str, tmp_path: Path) -> None:
    for path in Path(model).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    folder_of(tmp_path, [*VOCABULARY, "x1", "x2"])
    assert_one_sentence(run("sample", "--model", str(tmp_path)), "the tokenizer in .* has .* tokens, but the model has")
