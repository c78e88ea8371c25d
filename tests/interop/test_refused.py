"""Directories that are damaged, cut short, contradictory, or of a model that this one can't represent: one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.interop.helpers import (
    CONFIG,
    GENERATION,
    INDEX,
    WEIGHTS,
    assert_same_model,
    change_json,
    change_weights,
    make,
    saved,
)  # fmt: skip
from tinygpt import GPT, UsageError
from tinygpt.errors import CheckpointError


def load(folder: Path, **options: Any) -> GPT:
    return GPT.from_pretrained(folder, **options)


# config.json ----------------------------------------------------------------------------------------

REFUSED: dict[str, Any] = {
    "model_type": ("llama", "model_type is 'llama', but tinygpt loads only 'gpt2'"),
    "n_inner": (100, r"'h.0.mlp.c_fc.weight' of shape \(12, 48\), but config.json implies \(12, 100\)"),
    "activation_function": (
        "quick_gelu",
        "activation_function is 'quick_gelu', but tinygpt supports only 'gelu_new' or 'gelu_p",
    ),
    "scale_attn_weights": ("no", "scale_attn_weights is 'no', but tinygpt supports only True or False"),
    "scale_attn_by_inverse_layer_idx": (
        1,
        "scale_attn_by_inverse_layer_idx is 1, but tinygpt supports only False or True",
    ),
    "add_cross_attention": (True, "add_cross_attention is True"),
    "tie_word_embeddings": (False, "lack 'lm_head.weight', which is required because config.json says tie_word"),
    "num_hidden_layers": (3, "n_layer is 2 and num_hidden_layers is 3, but both name the same setting"),
    "hidden_size": ("12", "n_embd is 12 and hidden_size is '12', but both name the same setting"),
    "quantization_config": ({"bits": 8}, "quantization_config is"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_this_model_cannot_represent_is_refused_by_name(tmp_path: Path, name: str) -> None:
    value, words = REFUSED[name]
    saved(tmp_path)
    change_json(tmp_path / CONFIG, **{name: value})
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "n_inner": 48,
            "activation_function": "gelu_pytorch_tanh",
            "reorder_and_upcast_attn": True,
            "use_cache": False,
        },
        {"n_inner": ..., "activation_function": ..., "scale_attn_weights": ..., "tie_word_embeddings": ...},
        {"activation_function": "gelu_fast", "n_ctx": 5, "pruned_heads": {}},
        {"do_sample": True, "temperature": 0.3, "num_beams": 4, "task_specific_params": {"x": {"max_length": 50}}},
        {"layer_norm_epsilon": ..., "architectures": ["GPT2Model"], "torch_dtype": "float16", "summary_type": "x"},
    ],
)
def test_what_changes_nothing_is_passed_over(tmp_path: Path, changes: dict[str, Any]) -> None:
    saved(tmp_path)
    change_json(tmp_path / CONFIG, **changes)
    assert_same_model(load(tmp_path), make())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_embd": ...}, "lacks n_embd"),
        ({"n_layer": ..., "vocab_size": ...}, "lacks vocab_size, n_layer"),
        ({"model_type": ...}, "has no model_type"),
        ({"n_embd": "12"}, "n_embd must be a whole number, not '12'"),
        ({"n_head": 2.0}, "n_head must be a whole number, not 2.0"),
        ({"n_layer": True}, "n_layer must be a whole number, not True"),
        ({"vocab_size": -3}, "vocab_size must be at least 1, not -3"),
        ({"n_positions": None}, "n_positions must be a whole number, not None"),
        ({"n_head": 5}, "n_embd must be a multiple of n_head"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon must be a number"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be above 0"),
        ({"attn_pdrop": 1}, "attn_pdrop must be at least 0 and below 1"),
        ({"resid_pdrop": [0]}, r"resid_pdrop must be a number, not \[0\]"),
        ({"scale_attn_weights": 1}, "scale_attn_weights is 1"),
        ({"n_inner": 48.0}, "n_inner must be a whole number, not 48.0"),
        ({"n_inner": 0}, "n_inner must be at least 1, not 0"),
        ({"activation_function": ["relu"]}, r"activation_function is \['relu'\]"),
        ({"n_layer": 10**9}, "28 arrays, too few for the 1000000000 layers"),
        ({"n_layer": 3}, "lack 'h.2.attn.c_attn.bias', 'h.2.attn.c_attn.weight', .* and 9 more"),
        ({"n_layer": 1}, "have 'h.1.attn.c_attn.bias', .* and 9 more, which a GPT-2 does not have"),
        ({"vocab_size": 10**15}, r"'wte.weight' of shape \(11, 12\), but config.json implies \(1000000000000000, 12\)"),
        ({"n_positions": 9}, r"'wpe.weight' of shape \(8, 12\), but config.json implies \(9, 12\)"),
        ({"eos_token_id": "end"}, "eos_token_id must be a whole number, not 'end'"),
        ({"bos_token_id": [1, 2]}, r"bos_token_id must be a whole number, not \[1, 2\]"),
    ],
)
def test_a_config_without_sense_is_one_sentence(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    saved(tmp_path)
    change_json(tmp_path / CONFIG, **changes)
    with pytest.raises(UsageError, match=words):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"n_embd": NaN}', b'{"a": 1, "a": 2}'])
@pytest.mark.parametrize("name", [CONFIG, GENERATION, INDEX])
def test_a_damaged_json_file_is_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    saved(tmp_path, max_shard_size=1000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load(tmp_path)


def test_dropouts_that_differ_are_told_and_may_be_chosen(tmp_path: Path) -> None:
    saved(tmp_path, make(dropout=0.3))
    change_json(tmp_path / CONFIG, attn_pdrop=0.1)
    with pytest.warns(UserWarning, match="attn_pdrop 0.1, but tinygpt has a single dropout and uses 0.3") as told:
        assert load(tmp_path).config.dropout == 0.3
    assert told[0].filename == __file__  # the caller's line
    assert load(tmp_path, dropout=0.2).config.dropout == 0.2


# Weights that are missing, damaged or of something else -----------------------------------------------------


def replaced(name: str, array: np.ndarray) -> Any:
    return lambda arrays: arrays | {name: array}


def renamed(old: str, new: str) -> Any:
    return lambda arrays: {new if name == old else name: array for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays: {k: v for k, v in arrays.items() if "wpe" not in k}, "lack 'wpe.weight', which its config"),
        (replaced("score.weight", np.zeros((2, 12), "f4")), "holds a classifier, as 'score.weight' says, not a l"),
        (
            replaced("transformer.ln_f.bias", np.zeros(13, "f4")),
            r"'ln_f.bias' of shape \(13,\), but config.json implies \(12,",
        ),
        (replaced("transformer.ln_f.bias", np.zeros(12, "i1")), "'ln_f.bias' as I8, but tinygpt loads only F32"),
        (replaced("ln_f.bias", np.zeros(12, "f4")), "contain 'ln_f.bias' twice"),
        (renamed("transformer.wte.weight", "transformer.we"), "lack 'wte.weight'"),
        (renamed("transformer.wpe.weight", "transformer.position_ids"), "lack 'wpe.weight'"),
        (replaced("transformer.position_ids", np.arange(8)), "have 'position_ids', which a GPT-2 does not have"),
        (
            replaced("transformer.h.0.crossattention.c_attn.weight", np.zeros((12, 24), "f4")),
            "have 'h.0.crossattention.c_attn.weight'",
        ),
        (replaced("lm_head.weight", np.zeros((11, 13), "f4")), r"'lm_head.weight' of shape \(11, 13\)"),
        (replaced("transformer.ln_f.bias", np.full(12, 1e300)), "beyond the range of float32"),
    ],
)
def test_weights_of_something_else_are_refused_by_name(tmp_path: Path, change: Any, words: str) -> None:
    saved(tmp_path)
    change_weights(tmp_path, change)
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path)


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_weights_cut_short_are_one_sentence(tmp_path: Path, cut: int) -> None:
    saved(tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:cut])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a valid safetensors file"):
        load(tmp_path)


def shards(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


def test_shards_that_contradict_their_index(tmp_path: Path) -> None:
    def refused(words: str, **changes: Any) -> None:
        change_json(folder / INDEX, **changes)
        with pytest.raises(CheckpointError, match=words):
            load(folder)
        change_json(folder / INDEX, weight_map=places)

    folder = saved(tmp_path / "model", max_shard_size=2000)
    places = shards(folder)
    first, second = sorted(set(places.values()))[:2]
    name = next(name for name, file in places.items() if file == first)
    saved(tmp_path / "outside")
    for file in ("../outside/model.safetensors", "/etc/passwd", 3, None, "a\0.safetensors", "pytorch_model.bin"):
        refused("must be in a .safetensors file of the same folder", weight_map=places | {name: file})
    refused(f"says that {second} contains '{name}', but it does not", weight_map=places | {name: second})
    refused("but it does not", weight_map=places | {"transformer.more": first})
    refused(f"contains '{name}', but", weight_map={n: f for n, f in places.items() if n != name})
    refused("has no weight_map", weight_map=[])
    refused("has no weight_map", weight_map={})
    refused("there is no file .*model-7.safetensors", weight_map=places | {name: "model-7.safetensors"})
    save_file(load_file(folder / first) | load_file(folder / second), folder / first)
    refused("contains 'transformer[^ ]*, but")
    (folder / second).unlink()
    refused(f"there is no file .*{second}")


def test_a_single_file_comes_before_shards(tmp_path: Path) -> None:
    saved(tmp_path, max_shard_size=2000)
    weights = make(seed=1)
    saved(tmp_path / "single", weights)
    (tmp_path / "single" / WEIGHTS).rename(tmp_path / WEIGHTS)
    assert_same_model(load(tmp_path), weights)


def test_a_folder_without_weights_says_what_to_do(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"there are no weights in .*: none of model.safetensors, .*.json$"):
        load(tmp_path)
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(CheckpointError, match=r"only tf_model.h5, which tinygpt does not read"):
        load(tmp_path)


def test_places_that_hold_no_model(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, words in (
        (tmp_path, "there is no file .*config.json"),
        (tmp_path / "file", "is a file: give the folder"),
        (tmp_path / "nothing", "there is no folder .*nothing"),
        ("", "by its folder or its name"),
        ("a\0b", "there is no folder"),
    ):
        with pytest.raises(UsageError, match=words):
            GPT.from_pretrained(place)


@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2"])
def test_weights_in_eight_bit_floats_are_called_so(tmp_path: Path, code: str) -> None:
    """As quantized models of hubs have them: sound files, of a kind that is not read here."""
    saved(tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    entry = header["transformer.ln_f.bias"]  # the last one: the others stay where they are
    begin, end = entry["data_offsets"]
    assert end == len(data)
    entry |= {"dtype": code, "data_offsets": [begin, begin + 12]}
    text = json.dumps(header).encode()
    (tmp_path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[: begin + 12])
    with pytest.raises(CheckpointError, match=f"'ln_f.bias' as {code}, .* use a version of the model"):
        load(tmp_path)
