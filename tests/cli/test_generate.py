"""`tinygpt sample`, `eval --stride` and `convert`, from runs and from GPT-2 directories."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import VERSE
from tinygpt import cli


@pytest.fixture(scope="module")
def directory(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as a GPT-2 directory."""
    folder = tmp_path_factory.mktemp("converted") / "gpt2"
    with pytest.raises(SystemExit) as ended:
        cli.main(["convert", str(model), str(folder)])
    assert not ended.value.code
    return folder


SHORT = ("--prompt=To be", "--max-new-tokens=20", "--seed=1")


# Sample -----------------------------------------------------------------------------------------


def test_a_run_and_its_directory_write_the_same(run: Any, model: Path, directory: Path) -> None:
    first, second = run("sample", f"--model={model}", *SHORT), run("sample", f"--model={directory}", *SHORT)
    assert first.code == 0
    assert first.out.startswith("To be")
    assert len(first.out) == len("To be") + 20 + 1
    assert first.out == second.out


def test_what_is_printed_is_what_the_library_generates(run: Any, model: Path) -> None:
    gpt, tokenizer = tg.GPT.from_pretrained(model), tg.tokenizers.load(model)
    answer = run("sample", f"--model={model}", *SHORT, "--top-k=5", "--repetition-penalty=1.3", "--min-p=0.01")
    ids = tokenizer.encode("To be")[None]
    options: dict[str, Any] = {"temperature": 0.8, "top_k": 5, "repetition_penalty": 1.3, "min_p": 0.01, "seed": 1}
    assert answer.out == tokenizer.decode(gpt.generate(ids, 20, **options)[0]) + "\n"
    greedy = run("sample", f"--model={model}", *SHORT, "--greedy", "--no-repeat-ngram-size=3")
    assert greedy.out == tokenizer.decode(gpt.generate(ids, 20, do_sample=False, no_repeat_ngram_size=3)[0]) + "\n"
    assert greedy.out == run("sample", f"--model={model}", *SHORT, "--temperature=0", "--no-repeat-ngram-size=3").out


def test_several_texts(run: Any, model: Path) -> None:
    answer = run("sample", f"--model={model}", *SHORT, "--num-return-sequences=3")
    texts = re.split(r"^--- \d of 3 ---\n", answer.out, flags=re.M)[1:]
    assert len(texts) == 3
    assert all(text.startswith("To be") and len(text) == len("To be") + 20 + 1 for text in texts)
    assert len(set(texts)) > 1


def test_beams(run: Any, model: Path) -> None:
    answer = run("sample", f"--model={model}", *SHORT, "--num-beams=3", "--length-penalty=0.5")
    gpt, tokenizer = tg.GPT.from_pretrained(model), tg.tokenizers.load(model)
    ids = tokenizer.encode("To be")[None]
    options: dict[str, Any] = {"num_beams": 3, "length_penalty": 0.5, "do_sample": False}
    assert answer.out == tokenizer.decode(gpt.generate(ids, 20, pad_token_id=0, **options)[0]) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("several", [(), ("--num-return-sequences=2",)])
def test_stop_strings_end_a_text(run: Any, model: Path, several: tuple[str, ...]) -> None:
    command = ("sample", f"--model={model}", "--prompt=To be", "--max-new-tokens=200", "--seed=3", *several)
    whole = run(*command).out
    assert "e" in whole.replace("To be", "")
    stopped = run(*command, "--stop=e", "--stop=#").out
    for text in re.split(r"^--- \d of 2 ---\n", stopped, flags=re.M):
        assert "e" not in text.removeprefix("To be")
        assert whole.find(text.rstrip("\n")) >= 0


@pytest.mark.slow
def test_bad_words_and_suppressed_tokens(run: Any, model: Path) -> None:
    tokenizer = tg.tokenizers.load(model)
    command = ("sample", f"--model={model}", "--prompt=To be", "--max-new-tokens=100", "--seed=3")
    assert "rh" in run(*command).out
    assert "rh" not in run(*command, "--bad-words=rh", "--bad-words=hr").out
    space = int(tokenizer.encode(" ")[0])
    assert " " not in run(*command, f"--suppress-tokens={space}").out.removeprefix("To be")


def test_prompts_from_a_file_and_from_a_pipe(
    run: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt.txt").write_text("To be", encoding="utf-8")
    command = ("sample", f"--model={model}", "--max-new-tokens=9", "--seed=1")
    expected = run(*command, "--prompt=To be").out
    assert run(*command, f"--prompt-file={tmp_path / 'prompt.txt'}").out == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"To be"), encoding="ascii"))
    assert run(*command, "--prompt-file=-").out == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="ascii"))
    assert_one_sentence(run(*command, "--prompt-file=-"), "the standard input is not UTF-8")
    assert_one_sentence(run(*command, f"--prompt-file={tmp_path / 'absent'}"), "No such file")
    assert_one_sentence(run(*command, "--prompt=a", "--prompt-file=-"), "not allowed with argument")


@pytest.mark.parametrize("several", [(), ("--num-return-sequences=2",), ("--num-beams=2", "--num-return-sequences=2")])
def test_stats(run: Any, model: Path, several: tuple[str, ...]) -> None:
    answer = run("sample", f"--model={model}", *SHORT, "--stats", *several)
    texts = re.split(r"^--- \d of 2 ---\n", answer.out, flags=re.M)[-2 if several else 0 :]
    count = sum(len(text.removeprefix("To be")) - 1 for text in texts)  # without the line break
    assert re.fullmatch(rf"{count} tokens in \d+\.\d\d s: \d+\.\d tokens/s\n", answer.err)
    assert "tokens/s" not in answer.out


def test_the_end_of_text_ends_the_text(run: Any, directory: Path, tmp_path: Path) -> None:
    """generation_config.json of the directory counts, and the options count more."""
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tokenizer = tg.tokenizers.load(directory)
    space = int(tokenizer.encode(" ")[0])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": space}), encoding="utf-8")
    command = ("sample", f"--model={tmp_path}", "--prompt=To be", "--seed=3", "--max-new-tokens=100")
    assert " " not in run(*command).out.removeprefix("To be")
    assert " " in run(*command, f"--eos-token-id={int(tokenizer.encode(VERSE[0])[0])}").out.removeprefix("To be")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--top-p=2"], "top_p must be"),
        (["--num-beams=0"], "num_beams must be at least 1"),
        (["--greedy", "--top-k=3"], "top_k=3 applies only to sampling"),
        (["--greedy", "--num-return-sequences=2"], "greedy decoding is deterministic"),
        (["--stop="], "must not contain an empty string"),
        (["--suppress-tokens=a"], "invalid list of token ids value: 'a'"),
        (["--suppress-tokens=99"], "suppress_tokens contains 99"),
        (["--bad-words=#"], "the character '#' at position 0 of --bad-words"),
        (["--overflow=wrap"], "invalid choice: 'wrap'"),
        (["--seed=-1"], "a seed is an integer from 0"),
        (["--dtype=bfloat16", "--quantize=int8"], "contradict each other"),
        (["--quantize=int4"], r"packs 32 terms of a sum together, but h\.0\.attn\.c_attn has sums of 8: choose int8"),
        (["--model=no such name"], "there is no folder"),
    ],
)
def test_mistakes_are_one_sentence(run: Any, model: Path, options: list[str], words: str) -> None:
    assert_one_sentence(run("sample", f"--model={model}", "--prompt=To be", *options), words)


def test_a_checkpoint_is_a_run_s(run: Any, directory: Path, tmp_path: Path) -> None:
    answer = run("sample", f"--model={directory}", "--checkpoint=latest")
    assert_one_sentence(answer, "--checkpoint applies to training runs, but .* holds one model: leave it out")
    assert_one_sentence(run("sample", f"--model={tmp_path}"), "there is no model in .* neither the checkpoints.json")


# Eval -------------------------------------------------------------------------------------------


def test_eval_with_a_stride(run: Any, model: Path, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(VERSE, encoding="utf-8")
    command = ("eval", f"--data={tmp_path / 'text.txt'}")
    plain = run(*command, f"--model={model}").out
    assert plain == run(*command, f"--model={directory}").out == run(*command, f"--model={model}", "--stride=8").out
    gpt, tokenizer = tg.GPT.from_pretrained(model), tg.tokenizers.load(model)
    loss = tg.generation.score(gpt, tokenizer.encode(VERSE), stride=2).loss
    bits = loss / np.log(2) * (len(VERSE) - 1) / len(VERSE[1:].encode())
    answer = run(*command, f"--model={model}", "--stride=2").out
    assert answer == (
        f"loss {loss:.4f} nats per token over {len(VERSE) - 1} tokens (perplexity {np.exp(loss):.2f}); "
        f"{bits:.3f} bits per byte\n"
    )
    assert answer != plain
    assert run("eval", f"--model={model}", "--stride=3").code == 0


def test_mistakes_in_eval(run: Any, model: Path, directory: Path) -> None:
    assert_one_sentence(run("eval", f"--model={model}", "--stride=9"), "stride must be at most window=8, not 9")
    assert_one_sentence(run("eval", f"--model={directory}"), "not a training run.* --data FILE")


# Convert ----------------------------------------------------------------------------------------


def test_convert(run: Any, model: Path, directory: Path, tmp_path: Path) -> None:
    answer = run("convert", directory, tmp_path / "half", "--dtype=float16", "--max-shard-size=2000")
    assert answer.code == 0
    assert "holds the model in float16" in answer.out
    names = {path.name for path in (tmp_path / "half").iterdir()}
    assert {"config.json", "model.safetensors.index.json", "tokenizer.tinygpt.json"} <= names
    assert all(name in answer.out for name in names)
    first, second = tg.GPT.from_pretrained(model), tg.GPT.from_pretrained(tmp_path / "half")
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-3, atol=1e-4, err_msg=name)


def test_convert_for_llama_cpp(run: Any, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the extra gguf: pip install -e '.[gguf]'")
    path = tmp_path / "new" / "model.gguf"
    for options, dtype in ((), "f32"), (["--dtype=f16"], "f16"):
        answer = run("convert", model, path, "--to=gguf", *options)
        assert (answer.code, answer.err) == (0, "")
        assert answer.out == f"{path} holds the model in {dtype}: {path.stat().st_size:,} bytes\n"
        assert path.read_bytes()[:4] == b"GGUF"
    before = path.read_bytes()
    for arguments, words in (
        (["--dtype=q8_0"], "q8_0 packs 32 numbers of a row together, but n_embd is 8: choose f16 or bf16"),
        (["--dtype=float16"], "dtype must be one of f32, f16, bf16, q8_0, q4_0, not 'float16'"),
        (["--max-shard-size=1MB"], "a GGUF file is not split"),
        (["--merge-lora"], "this model has no adapter"),
    ):
        assert_one_sentence(run("convert", model, path, "--to=gguf", *arguments), words)
    assert_one_sentence(run("convert", model, path.parent, "--to=gguf"), "new is a folder: name the file to write")
    assert [(entry.name, entry.read_bytes()) for entry in path.parent.iterdir()] == [("model.gguf", before)]
    assert_one_sentence(run("convert", model, tmp_path / "out", "--dtype=f16"), "dtype must be one of float32, .*'f16'")


def test_mistakes_in_convert(run: Any, model: Path, tmp_path: Path) -> None:
    assert_one_sentence(run("convert", tmp_path / "absent", tmp_path / "out"), "there is no folder")
    assert_one_sentence(run("convert", model, tmp_path / "out", "--max-shard-size=big"), "max_shard_size")
    assert_one_sentence(run("convert", model), "the following arguments are required: TARGET")
    assert not (tmp_path / "out").exists()


def test_help_of_the_program_imports_little() -> None:
    """Nothing of training, generation or a progress bar, which take longer than all the rest."""
    code = "import sys; sys.argv = ['tinygpt', '--help']\nfrom tinygpt.cli import main\ntry: main()\n" + (
        "except SystemExit: print([m for m in sys.modules if m in ('tqdm', 'tinygpt.training', 'tinygpt.generation')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("[]\n")
