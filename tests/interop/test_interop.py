"""GPT-2 directories: what is saved is loaded, bit for bit; what this model can't represent is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import tinygpt as tg
from tests.interop.helpers import (
    CONFIG,
    GENERATION,
    INDEX,
    SETTINGS,
    WEIGHTS,
    assert_same_model,
    change_json,
    change_weights,
    make,
    saved,
)  # fmt: skip
from tests.training.helpers import ENVIRONMENT, make_trainer
from tinygpt import GPT, GPTConfig, UsageError
from tinygpt.errors import CheckpointError
from tinygpt.interop import convert
from tinygpt.interop.weights import parameter_shapes
from tinygpt.tokenizers import CharTokenizer
from tinygpt.training import CheckpointFolder

IDX = np.random.default_rng(0).integers(0, 11, (3, 7))


def load(folder: Path, **options: Any) -> GPT:
    return GPT.from_pretrained(folder, **options)


# There and back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("max_shard_size", [None, 1500, "1.5KB", 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path: Path, dtype: str, max_shard_size: Any, bias: bool) -> None:
    model = make(dtype=dtype, bias=bias, dropout=0.2, layer_norm_epsilon=1e-6)
    saved(tmp_path, model, dtype=dtype, max_shard_size=max_shard_size)
    assert (tmp_path / WEIGHTS).exists() == (max_shard_size is None)
    shards = len(list(tmp_path.glob("model-*")))
    assert {None: shards == 0, 1: shards == 28}.get(max_shard_size, 2 < shards < 28)  # 28 arrays, each by itself
    found = load(tmp_path, dtype=dtype)
    assert_same_model(found, model)
    assert not found.training
    with tg.no_grad():
        np.testing.assert_array_equal(found(IDX).data, model.eval()(IDX).data)


@pytest.mark.parametrize("bits", ["float16", "bfloat16"])
def test_sixteen_bits_are_rounded_once_and_then_exact(tmp_path: Path, bits: str) -> None:
    saved(tmp_path / "1", dtype=bits)
    once = load(tmp_path / "1")
    for name, array in make().state_dict().items():
        np.testing.assert_allclose(once.state_dict()[name], array, rtol=2**-11 if bits == "float16" else 2**-8)
    saved(tmp_path / "2", once, dtype=bits)
    assert_same_model(load(tmp_path / "2"), once)
    assert (tmp_path / "1" / WEIGHTS).read_bytes() == (tmp_path / "2" / WEIGHTS).read_bytes()
    assert json.loads((tmp_path / "2" / CONFIG).read_text())["torch_dtype"] == bits


def test_the_files_are_as_transformers_writes_them(tmp_path: Path) -> None:
    model = make(dropout=0.25)
    saved(tmp_path / "one", model)
    assert {path.name for path in (tmp_path / "one").iterdir()} == {WEIGHTS, CONFIG, GENERATION}
    with safe_open(tmp_path / "one" / WEIGHTS, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    arrays = load_file(tmp_path / "one" / WEIGHTS)
    assert arrays.keys() == {f"transformer.{name}" for name in model.state_dict()}
    np.testing.assert_array_equal(arrays["transformer.h.1.mlp.c_fc.weight"], model.h[1].mlp.c_fc.weight.data)
    config = json.loads((tmp_path / "one" / CONFIG).read_text())
    assert config["model_type"] == "gpt2"
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert (config["n_positions"], config["n_inner"], config["activation_function"]) == (8, None, "gelu_new")
    assert [config[name] for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")] == [0.25] * 3

    saved(tmp_path / "many", model, max_shard_size=2000)
    index = json.loads((tmp_path / "many" / INDEX).read_text())
    assert index["weight_map"].keys() == arrays.keys()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))]
    sizes = [sum(array.nbytes for array in load_file(tmp_path / "many" / name).values()) for name in files]
    assert all(size <= 2000 or len(load_file(tmp_path / "many" / n)) == 1 for size, n in zip(sizes, files, strict=True))


def test_the_names_and_shapes_are_the_models_own() -> None:
    for settings in (SETTINGS, SETTINGS | {"n_layer": 1, "vocab_size": 3, "block_size": 1}):
        model = GPT(GPTConfig(**settings))
        assert dict(parameter_shapes(model.config)) == {name: p.shape for name, p in model.named_parameters()}


def test_other_forms_of_the_same_weights(tmp_path: Path) -> None:
    model = make()
    mask = np.tril(np.ones((1, 1, 8, 8), bool))

    def without_prefix(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = {name.removeprefix("transformer."): array for name, array in arrays.items()}
        return arrays | {"h.0.attn.bias": mask, "h.1.attn.masked_bias": np.array(-1e4, "f4")}

    def with_head(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        old = {
            "transformer.h.0.attn.bias": mask.astype("u1"),
            "lm_head.weight": arrays["transformer.wte.weight"].copy(),
        }
        return arrays | old

    for number, change in enumerate((without_prefix, with_head)):
        folder = saved(tmp_path / str(number), model)
        change_weights(folder, change)
        assert_same_model(load(folder), model)


def test_what_is_loaded_lives_in_memory_of_its_own(tmp_path: Path) -> None:
    """The file may go, or be replaced by a save into the same folder, and the optimizer writes in place."""
    model = load(saved(tmp_path))
    optimizer = tg.optim.AdamW(model.parameters(), lr=0.1)
    model.loss(IDX[:, :-1], IDX[:, 1:]).backward()
    optimizer.step()
    assert_same_model(load(tmp_path), make())
    saved(tmp_path, model)
    assert_same_model(load(tmp_path), model)


def test_loading_draws_no_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    saved(tmp_path, model)
    monkeypatch.setattr(tg.Generator, "normal", None)
    assert_same_model(load(tmp_path), model)


def test_options_of_loading(tmp_path: Path) -> None:
    class Mine(GPT):
        pass

    saved(tmp_path, make(dropout=0.3))
    model = Mine.from_pretrained(str(tmp_path), dropout=0.0, seed=5, dtype=np.float64)
    assert type(model) is Mine
    assert model.config.dropout == 0
    assert model.generator.seed == 5
    assert model.wte.weight.dtype == np.float64
    for options, words in (
        ({"dtype": "float16"}, "dtype must be 'float32', 'float64' or 'bfloat16', not 'float16'"),
        ({"quantize": "int5"}, "quantize must be None, 'int8' or 'int4', not 'int5'"),
        ({"dtype": "bfloat16", "quantize": "int8"}, "contradict each other"),
        ({"dropout": 1.5}, "dropout must be at least 0 and below 1"),
        ({"seed": -1}, "a seed is an integer"),
    ):
        with pytest.raises(UsageError, match=words):
            load(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "format"), [({"dtype": "bfloat16"}, "bfloat16"), ({"quantize": "int8"}, "int8"), ({}, None)]
)
def test_packed_weights(tmp_path: Path, options: dict[str, Any], format: str | None) -> None:
    model = load(saved(tmp_path), **options)
    assert model.packed == format
    expected = make().pack(format) if format else make().eval()
    with tg.no_grad():
        np.testing.assert_array_equal(model(IDX).data, expected(IDX).data)


def test_biases_learnt_elsewhere_are_not_lost(tmp_path: Path) -> None:
    """A model without biases is written with zeros and a mark; once they are not zero any more, the mark is void."""
    saved(tmp_path, make(bias=False))
    assert not load(tmp_path).config.bias

    def learn(arrays: dict[str, np.ndarray]) -> None:
        arrays["transformer.h.1.ln_2.bias"][3] = 0.5

    change_weights(tmp_path, learn)
    model = load(tmp_path)
    assert model.config.bias
    assert model.h[1].ln_2.bias.data[3] == 0.5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a process's highest memory like this")
def test_loading_takes_the_memory_of_the_weights_and_little_more(tmp_path: Path) -> None:
    """In a process of its own: the peak grows by less than 1.2 times the weights, also where they are converted."""
    model = make(vocab_size=50_000, n_embd=256, block_size=64)
    size = sum(parameter.data.nbytes for parameter in model.parameters())
    program = """
import re, sys
from pathlib import Path
import tinygpt.interop
from tinygpt import GPT

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = peak()
model = GPT.from_pretrained(sys.argv[1])
print(peak() - before)
"""
    for dtype in ("float32", "bfloat16"):
        saved(tmp_path, model, dtype=dtype)
        command = [sys.executable, "-c", program, str(tmp_path)]
        result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=100, check=True)
        assert 0.9 * size < int(result.stdout) < 1.2 * size


# generation_config.json and special tokens ---------------------------------------------------------------


def test_settings_of_generation_are_kept(tmp_path: Path) -> None:
    settings = {"eos_token_id": [3, 4], "bos_token_id": 3, "temperature": 0.7, "do_sample": True}
    saved(tmp_path)
    change_json(tmp_path / GENERATION, transformers_version="5", _from_model_config=True, **settings)
    model = load(tmp_path)
    assert model.generation_config == settings
    saved(tmp_path, model)
    assert json.loads((tmp_path / GENERATION).read_text()) == settings
    assert json.loads((tmp_path / CONFIG).read_text())["eos_token_id"] == [3, 4]


def test_special_tokens_of_older_directories(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / GENERATION).unlink()
    change_json(tmp_path / CONFIG, eos_token_id=3, bos_token_id=50256)  # the latter beyond this vocabulary
    assert load(tmp_path).generation_config == {"eos_token_id": 3}


def test_a_generation_config_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = make()
    model.generation_config = {"x": object()}
    with pytest.raises(UsageError, match="generation_config can't be written as JSON"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


# Training runs, and from folder to folder ------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    CharTokenizer.from_text("abcdefghijk").save(folder)
    make_trainer(folder).run()
    return folder


def test_the_folder_of_a_run_is_its_best_model(run: Path) -> None:
    best = CheckpointFolder(run).load("best")
    model = load(run, dropout=0.0)
    assert not model.training
    for name, array in best.model.items():
        np.testing.assert_array_equal(model.state_dict()[name], array)
    assert (model.config.dropout, load(run).config.dropout) == (0.0, 0.1)
    assert load(run, dtype="float64").wte.weight.dtype == np.float64


def test_a_damaged_run_is_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints.json").write_bytes((run / "checkpoints.json").read_bytes())
    with pytest.raises(CheckpointError, match="is missing"):
        load(tmp_path)


def test_convert_makes_a_directory_of_a_run(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    assert convert(run, target) == target
    assert_same_model(load(target), load(run))
    assert tg.tokenizers.load(target) == tg.tokenizers.load(run)
    convert(run, tmp_path / "latest", checkpoint="latest")
    latest = CheckpointFolder(run).load("latest").model
    np.testing.assert_array_equal(load(tmp_path / "latest").wte.weight.data, latest["wte.weight"])
    with pytest.raises(UsageError, match="contains a training run: choose another"):
        convert(target, run)


def test_convert_keeps_what_comes_with_a_directory(tmp_path: Path) -> None:
    source, target = saved(tmp_path / "source"), tmp_path / "target"
    files = {"vocab.json": "{}", "merges.txt": "#", "tokenizer.json": "{1", "tokenizer_config.json": "{}"}
    for name, text in files.items():
        (source / name).write_text(text)
    change_json(source / GENERATION, top_k=5)
    convert(source, target, dtype="float16", max_shard_size="2KB")
    assert {name: (target / name).read_text() for name in files} == files
    assert (target / INDEX).exists()
    assert load(target).generation_config == {"top_k": 5}
    convert(target, target, dtype="float32")  # onto itself
    assert {name: (target / name).read_text() for name in files} == files
    saved(tmp_path / "half", dtype="float16")
    assert_same_model(load(target), load(tmp_path / "half"))


def test_convert_leaves_the_target_alone_when_it_fails(tmp_path: Path) -> None:
    source, target = saved(tmp_path / "source"), saved(tmp_path / "target", make(seed=1))
    change_json(source / CONFIG, activation_function="tanh")
    with pytest.raises(CheckpointError, match="activation_function"):
        convert(source, target)
    with pytest.raises(UsageError, match="there is no folder"):
        convert(tmp_path / "nothing", target)
    assert_same_model(load(target), make(seed=1))
