"""A run's files that are damaged, or forged with a sound SHA-256: each command works, or ends in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import assert_one_sentence, copy_of
from tests.training.helpers import OPTIONS
from tinygpt import GPT
from tinygpt.errors import CheckpointError
from tinygpt.safetensors_io import SafetensorsFile, write_safetensors
from tinygpt.training import read_metrics


def forge(folder: Path, change: Callable[[Any, dict[str, Any]], Any]) -> None:
    """Change the state or the arrays of both checkpoints, and give checkpoints.json the hashes that they then have."""
    index = json.loads((folder / "checkpoints.json").read_text())
    for name in {entry["file"] for entry in index.values()}:
        with SafetensorsFile(folder / name) as file:
            metadata, arrays = dict(file.metadata), {key: file.read(key) for key in file.arrays}
        metadata["state"] = json.dumps(change(json.loads(metadata["state"]), arrays))
        with open(folder / name, "wb") as file:
            digest = write_safetensors(file, arrays, metadata)
        for entry in index.values():
            if entry["file"] == name:
                entry["sha256"] = digest
    (folder / "checkpoints.json").write_text(json.dumps(index))


def entry(*path_and_value: Any) -> Callable[[Any, dict[str, Any]], Any]:
    *path, last, value = path_and_value

    def change(state: Any, arrays: dict[str, Any]) -> Any:
        place = state
        for key in path:
            place = place[key]
        place[last] = value
        return state

    return change


def without(*path: str) -> Callable[[Any, dict[str, Any]], Any]:
    def change(state: Any, arrays: dict[str, Any]) -> Any:
        place = state
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        return state

    return change


def all_of(value: Any) -> Callable[[Any, dict[str, Any]], Any]:
    return lambda state, arrays: value


def no_arrays(state: Any, arrays: dict[str, Any]) -> Any:
    arrays.clear()
    return state


def other_shape(state: Any, arrays: dict[str, Any]) -> Any:
    arrays["model.wte.weight"] = arrays["model.wte.weight"][:-1]
    return state


def integers(state: Any, arrays: dict[str, Any]) -> Any:
    arrays["model.wte.weight"] = arrays["model.wte.weight"].astype("i8")
    return state


LARGE = 10**30
FORGERIES = {
    "empty": all_of({}), "a list": all_of([]), "null": all_of(None), "a number": all_of(3), "a text": all_of("state"),
    "no step": without("step"), "step true": entry("step", True), "step negative": entry("step", -5),
    "no model_config": without("model_config"), "no training_config": without("training_config"),
    "no text": without("text"), "no optimizer_steps": without("optimizer_steps"), "no generator": without("generator"),
    "no progression": without("progression"), "no backend": without("backend"),
    "no stream": without("generator", "stream"), "no position": without("progression", "step"),
    "no block_size": without("model_config", "block_size"),
    "position a text": entry("progression", "step", "x"), "position negative": entry("progression", "step", -5),
    "position beyond": entry("progression", "step", LARGE), "position another": entry("progression", "step", 5),
    "seconds a text": entry("progression", "seconds", "x"), "seconds infinite": entry("progression", "seconds", 1e999),
    "losses of texts": entry("progression", "losses", ["x"]), "losses a number": entry("progression", "losses", 1),
    "metrics_lines a text": entry("progression", "metrics_lines", "x"),
    "metrics_lines beyond": entry("progression", "metrics_lines", LARGE),
    "best_loss a text": entry("progression", "best_loss", "x"),
    "without_improvement a text": entry("progression", "without_improvement", "x"),
    "progression a list": entry("progression", []), "progression with more": entry("progression", "colour", 1),
    "model_config a list": entry("model_config", []), "training_config a list": entry("training_config", []),
    "model_config with more": entry("model_config", "colour", 1),
    "a large model": entry("model_config", "n_layer", 10**8),
    "a larger model": entry("model_config", "n_embd", 10**40), "steps negative": entry("training_config", "steps", -1),
    "fraction a text": entry("training_config", "validation_fraction", "x"),
    "seed beyond": entry("training_config", "seed", LARGE),
    "batch beyond": entry("training_config", "batch_size", LARGE),
    "backend unknown": entry("backend", "tpu"), "backend a number": entry("backend", 7),
    "backend a list": entry("backend", []),
    "optimizer_steps a text": entry("optimizer_steps", "x"),
    "an optimizer step a text": entry("optimizer_steps", "wte.weight", "x"),
    "generator a text": entry("generator", "x"), "seed a text": entry("generator", "seed", "x"),
    "stream beyond": entry("generator", "stream", LARGE), "loss_scale a text": entry("loss_scale", "x"),
    "text a number": entry("text", 1), "text of another": entry("text", "train", "x"),
    "no arrays": no_arrays, "another shape": other_shape, "integers": integers,
}  # fmt: skip
COMMANDS = {
    "resume": ("train", "--resume", "--steps=13", "--out"),
    "sample": ("sample", "--max-new-tokens=2", "--model"),
    "eval": ("eval", "--model"),
}


def works_or_says_why(run: Any, folder: Path) -> set[str]:
    """Which of the commands were refused."""
    refused = set()
    for name, words in COMMANDS.items():
        answer = run(*words, folder)
        if answer.code != 0:
            assert_one_sentence(answer, ".")
            refused.add(name)
    return refused


@pytest.mark.slow
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_state_works_or_is_one_sentence(run: Any, model: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(model, tmp_path / "copy")
    forge(folder, FORGERIES[name])
    refused = works_or_says_why(run, folder)
    assert refused >= {"resume"} - ({"resume"} if name == "no backend" else set())  # older checkpoints have none


@pytest.mark.parametrize(
    "change",
    [
        ("description", None), ("description", ["x"]), ("tokenizer", 3), ("tokenizer", "words"), ("sha256", 7),
    ],
    ids=str,
)  # fmt: skip
def test_forged_facts_of_the_text(run: Any, model: Path, tmp_path: Path, change: tuple[str, Any]) -> None:
    folder = copy_of(model, tmp_path / "copy")
    facts = json.loads((folder / "text.json").read_text())
    (folder / "text.json").write_text(json.dumps(facts | dict([change])))
    assert works_or_says_why(run, folder) == {"resume"}
    assert "text.json is damaged" in run("train", "--resume", "--out", folder).err


@pytest.mark.parametrize("content", [b"\xff\n", b"{\n", b"[]\n", b"null\n", b'{"step": "x"}\n', b"[" * 9999 + b"\n"])
def test_damaged_metrics_do_not_stop_a_run(run: Any, model: Path, tmp_path: Path, content: bytes) -> None:
    folder = copy_of(model, tmp_path / "copy")
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join([lines[0], content, *lines[2:]]))
    answer = run("train", "--resume", "--steps=14", f"--out={folder}")
    assert answer.code == 0
    assert "Traceback" not in answer.err
    assert (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)[1] == content
    with pytest.raises(CheckpointError, match=r"line 2 of .* is damaged"):
        list(read_metrics(folder / "metrics.jsonl"))
    pytest.importorskip("matplotlib", reason="needs the extra examples: pip install -e '.[examples]'")
    assert "no picture of the loss curve was drawn: line 2 of" in answer.out


@pytest.mark.parametrize(
    "content",
    ["{}", '{"latest": {"file": "text.json", "step": 1, "sha256": ""}}',
     '{"latest": {"file": 3, "step": 1, "sha256": ""}}',
     '{"latest": {"file": "checkpoint-00000012.safetensors", "step": "x", "sha256": ""}}', "[" * 9999],
)  # fmt: skip
def test_a_forged_index(run: Any, model: Path, tmp_path: Path, content: str) -> None:
    folder = copy_of(model, tmp_path / "copy")
    (folder / "checkpoints.json").write_text(content)
    assert works_or_says_why(run, folder) == set(COMMANDS)


@pytest.mark.parametrize("name", ["checkpoints.json", "text.json", "tinygpt-run.json", "metrics.jsonl"])
def test_a_folder_where_a_file_should_be(run: Any, model: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(model, tmp_path / "copy")
    (folder / name).unlink()
    (folder / name).mkdir()
    works_or_says_why(run, folder)
    assert_one_sentence(run("train", *OPTIONS, f"--out={folder}", "--overwrite", f"--data={__file__}"), name)
    assert (folder / name).is_dir()


def test_a_model_of_a_forged_run(model: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path / "copy")
    forge(folder, entry("model_config", "n_layer", 10**8))
    with pytest.raises(CheckpointError, match=r"holds \d+ numbers for a model of [\d,]+ parameters"):
        GPT.from_pretrained(folder)
