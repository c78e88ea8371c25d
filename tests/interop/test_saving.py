"""A save shows the old model or the new one, whole: at every step of it, after SIGKILL, on a full disk."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.interop.helpers import CONFIG, GENERATION, INDEX, WEIGHTS, assert_same_model, make, saved, snapshot
from tests.processes import Process
from tests.training.helpers import ENVIRONMENT
from tinygpt import GPT, UsageError, nn, tokenizers
from tinygpt.errors import CheckpointError
from tinygpt.interop import saving
from tinygpt.tokenizers import CharTokenizer

# Models of different shape, so that files of one and files of the other would not fit together; saved as one file or as
# shards, with a tokenizer or without.
MODELS: dict[str, tuple[GPT, dict[str, Any]]] = {
    "one file": (make(seed=1), {}),
    "the same shape": (make(seed=2, layer_norm_epsilon=1e-3), {}),
    "shards": (make(seed=3, n_layer=1), {"max_shard_size": 2000}),
    "other shards": (make(seed=4, n_layer=3), {"max_shard_size": 1500}),
    "with a tokenizer": (make(seed=5, n_embd=8), {"tokenizer": CharTokenizer.from_text("abcdefghijk")}),
}


def loads_as(folder: Path, *names: str) -> str:
    """Which of these models the folder holds, whole."""
    found = GPT.from_pretrained(folder)
    for name in names:
        if found.config == MODELS[name][0].config:
            assert_same_model(found, MODELS[name][0])
            return name
    raise AssertionError(f"the folder holds none of {names}")


def stops_at_every_step(monkeypatch: pytest.MonkeyPatch, folder: Path, keep: Callable[[], None], work: Any) -> None:
    """Do `work`, and call `keep` before each of its calls that change the names in a folder."""

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            keep()
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((os, "rename"), (os, "replace"), (Path, "unlink"), (Path, "rmdir"), (os, "fsync")):
            patch.setattr(owner, name, watched(getattr(owner, name)))
        work()
    keep()


@pytest.mark.slow
@pytest.mark.parametrize("new", MODELS)
@pytest.mark.parametrize("old", MODELS)
def test_at_every_step_the_folder_holds_the_old_model_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    folder, kept = saved(tmp_path / "model", MODELS[old][0], **MODELS[old][1]), []

    def keep() -> None:
        kept.append(tmp_path / f"kept-{len(kept)}")
        shutil.copytree(folder, kept[-1])

    stops_at_every_step(monkeypatch, folder, keep, lambda: saved(folder, MODELS[new][0], **MODELS[new][1]))
    found = [loads_as(copy, old, new) for copy in kept]
    changes = [one for one, before in zip(found[1:], found[:-1], strict=True) if one != before]
    assert (found[0], found[-1], changes) == (old, new, [new] if old != new else [])
    expected = snapshot(saved(tmp_path / "fresh", MODELS[new][0], **MODELS[new][1]))
    if "tokenizer" in MODELS[old][1]:  # one that a save doesn't bring stays
        expected |= {name: content for name, content in snapshot(kept[0]).items() if name.startswith("tokenizer")}
    for copy, model in zip(kept, found, strict=True):
        if model == new != old:  # a save finishes what was interrupted: nothing of the old is left, nor of the save
            saving.finish_save(copy)
            assert snapshot(copy) == expected
    assert snapshot(folder) == expected
    half = [copy for copy, model in zip(kept, found, strict=True) if list(copy.glob(".saving-*")) and model == old][-1]
    saved(half, MODELS[new][0], **MODELS[new][1])  # the next save takes the rest of an interrupted one away
    assert snapshot(half) == expected


@pytest.mark.slow
def test_a_finish_that_is_interrupted_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What finishes an interrupted save may be interrupted itself, at any step."""
    folder, kept = saved(tmp_path / "model", MODELS["shards"][0], max_shard_size=2000), []
    with monkeypatch.context() as patch:
        patch.setattr(saving, "finish_save", lambda folder: None)
        saved(folder, MODELS["one file"][0], tokenizer=CharTokenizer.from_text("a"))
    order = json.loads((folder / ".saved" / "manifest.json").read_text())["files"]
    assert order[-1] == WEIGHTS  # other programs see the new weights when all else is there
    shutil.copytree(folder, tmp_path / "saved again")
    saved(tmp_path / "saved again", MODELS["the same shape"][0])
    assert loads_as(tmp_path / "saved again", "the same shape") == "the same shape"

    def keep() -> None:
        kept.append(tmp_path / f"kept-{len(kept)}")
        shutil.copytree(folder, kept[-1])

    stops_at_every_step(monkeypatch, folder, keep, lambda: saving.finish_save(folder))
    assert len(kept) > 5
    for copy in kept:
        before = snapshot(copy)
        assert loads_as(copy, "one file") == "one file"
        assert tokenizers.load(copy) == CharTokenizer.from_text("a")
        assert snapshot(copy) == before  # whoever loads it changes nothing
        saving.finish_save(copy)
        assert {path.name for path in copy.iterdir()} == {WEIGHTS, CONFIG, GENERATION, "tokenizer.tinygpt.json"}


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"files": 3}', b'{"files": ["../x"], "stale": []}', b'{"files": [], "stale": ["a/b"]}']
)
def test_an_interrupted_save_that_was_damaged_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    saved(tmp_path)
    (tmp_path / ".saved").mkdir()
    (tmp_path / ".saved" / "manifest.json").write_bytes(content)
    for work in (lambda: GPT.from_pretrained(tmp_path), lambda: saved(tmp_path)):
        with pytest.raises(CheckpointError, match=r"from an interrupted save, and its manifest\.json is damaged"):
            work()


def test_a_manifest_from_elsewhere_takes_nothing_away(tmp_path: Path) -> None:
    """A downloaded folder may bring one along: loading deletes nothing, saving nothing but a model's files."""
    saved(tmp_path, MODELS["one file"][0])
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / ".saved").mkdir()
    (tmp_path / ".saved" / "thesis.txt").write_text("not mine")
    manifest = {"files": ["thesis.txt"], "stale": ["thesis.txt", "notes.txt", CONFIG]}
    (tmp_path / "notes.txt").write_text("mine too")
    (tmp_path / ".saved" / "manifest.json").write_text(json.dumps(manifest))
    before = snapshot(tmp_path)
    with pytest.raises(UsageError):
        GPT.from_pretrained(tmp_path)  # by its manifest it has no config.json
    with pytest.raises(UsageError):
        tokenizers.load(tmp_path)
    assert snapshot(tmp_path) == before
    saving.finish_save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "notes.txt").read_text() == "mine too"


# Killed -------------------------------------------------------------------------------------------------

SAVE_AGAIN_AND_AGAIN = """
import sys
from tests.interop.test_saving import MODELS
while True:
    for name in ("one file", "shards", "the same shape", "other shards"):
        MODELS[name][0].save_pretrained(sys.argv[1], **MODELS[name][1])
        print(name, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_while_saving(tmp_path: Path) -> None:
    names = ("one file", "shards", "the same shape", "other shards")
    folder, dice, found = tmp_path / "model", random.Random(1), set()
    environment = ENVIRONMENT | {
        "PYTHONPATH": os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(Path(__file__).parents[2])])
    }
    for _ in range(8):
        command = [sys.executable, "-c", SAVE_AGAIN_AND_AGAIN, str(folder)]
        with Process(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(dice.randint(1, 8)):
                process.stdout.readline()
            time.sleep(dice.uniform(0, 0.02))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        found.add(loads_as(folder, *names))
    assert len(found) > 1
    saved(folder, MODELS["one file"][0])
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, CONFIG, GENERATION}


# Disks and folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", range(1, 7))
def test_a_full_disk_keeps_the_model_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """The disk is full when the first, the second, ... of the files is brought to it."""
    folder, real, calls = saved(tmp_path, MODELS["one file"][0]), os.fsync, [0]
    before = snapshot(folder)

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"cannot .*: No space left on device"):
        saved(folder, MODELS["other shards"][0], max_shard_size="6KB")
    monkeypatch.undo()
    assert snapshot(folder) == before


def test_a_tokenizer_that_cannot_be_written_keeps_the_model_before(tmp_path: Path) -> None:
    class Broken(CharTokenizer):
        def save(self, folder: Any) -> None:
            (Path(folder) / "tokenizer.json").write_text("half")
            raise KeyboardInterrupt

    before = snapshot(saved(tmp_path, MODELS["one file"][0]))
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, MODELS["other shards"][0], tokenizer=Broken.from_text("ab"))
    assert snapshot(tmp_path) == before


def test_places_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="cannot create the folder"):
            saved(place)


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    names = ("README.md", "notes.safetensors", "pytorch_model.bin", "model-card.txt", "tokenizer.json")
    for name in names:
        (tmp_path / name).write_text(name)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".saving-00000000.tmp").mkdir()  # of a killed process
    for name in ("one file", "shards", "one file"):
        saved(tmp_path, MODELS[name][0], **MODELS[name][1])
    assert {path.name for path in tmp_path.iterdir()} == {*names, ".git", WEIGHTS, CONFIG, GENERATION}
    assert all((tmp_path / name).read_text() == name for name in names)


def test_a_new_tokenizer_takes_the_place_of_the_old(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_text("old")
    saved(tmp_path, tokenizer=CharTokenizer.from_text("abcdefghijk"))
    assert {path.name for path in tmp_path.glob("*")} == {"tokenizer.tinygpt.json", WEIGHTS, CONFIG, GENERATION}


# Options and models -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, float64, not 'int8'"),
        ({"max_shard_size": 0}, "max_shard_size must be a number of bytes or e.g. '200MB', not 0"),
        ({"max_shard_size": "2 elephants"}, "not '2 elephants'"),
        ({"max_shard_size": True}, "not True"),
        ({"max_shard_size": 1e6}, "not 1000000.0"),
        (
            {"tokenizer": CharTokenizer.from_text("abcdefghijkl")},
            "has 12 tokens, but the model has only 11",
        ),
    ],
)
def test_bad_options_are_one_sentence_and_write_nothing(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        saved(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_weights_too_large_for_float16_write_nothing(tmp_path: Path) -> None:
    model = make()
    model.h[0].mlp.c_fc.weight.data[1, 2] = 1e5
    with pytest.raises(UsageError, match=r"transformer\.h\.0\.mlp\.c_fc\.weight holds numbers too large for float16"):
        saved(tmp_path, model, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_a_model_with_other_parameters_is_refused(tmp_path: Path) -> None:
    model = make()
    model.h[0].mlp.c_fc.scale = nn.Parameter(np.ones(3, np.float32))
    for other, words in (
        (model, r"there is a parameter h\.0\.mlp\.c_fc\.scale, which the GPT-2 format can.t represent"),
        (make().pack("int8"), "packed into int8 can't be"),
    ):
        with pytest.raises(UsageError, match=words):
            saved(tmp_path / "new", other)
    assert not (tmp_path / "new").exists()


def test_shard_sizes() -> None:
    sizes = {"1.5KB": 1500, "2 MiB": 2 << 20, "3GB": 3 * 10**9, "17": 17, 40: 40, None: None}
    for size, number in sizes.items():
        assert saving._shard_size(size) == number


def test_the_special_tokens_of_a_tokenizer_are_written(tmp_path: Path) -> None:
    class Marked(CharTokenizer):
        bos_token_id, eos_token_id = 1, 2

    model = make()
    model.generation_config = {"eos_token_id": 7, "pad_token_id": 7, "top_k": 3}
    saved(tmp_path, model, tokenizer=Marked.from_text("abc"))
    assert json.loads((tmp_path / GENERATION).read_text()) == {"bos_token_id": 1, "eos_token_id": 2, "top_k": 3}
    config = json.loads((tmp_path / CONFIG).read_text())
    assert [config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")] == [1, 2, None]


def test_a_model_is_saved_as_it_is_at_the_moment(tmp_path: Path) -> None:
    """Arrays of any layout in memory, and no change to the model."""
    model = make()
    model.wpe.weight.data = np.asfortranarray(model.wpe.weight.data)
    model.train()
    saved(tmp_path, model)
    assert model.training
    np.testing.assert_array_equal(GPT.from_pretrained(tmp_path).wpe.weight.data, model.wpe.weight.data)
    assert not (tmp_path / INDEX).exists()
