"""Adapters in PEFT's format, without PEFT: saved, loaded by themselves and onto a base, and refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.interop.helpers import change_json, make, saved, snapshot
from tinygpt import GPT, UsageError, exchange, interop, nn
from tinygpt.errors import CheckpointError
from tinygpt.nn.lora import lora_layers, lora_of
from tinygpt.tokenizers import CharTokenizer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
IDS = np.array([[1, 2, 3, 4, 5]])
A = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"


def adapted(**settings: Any) -> GPT:
    model = nn.add_lora(make().eval(), **{"rank": 3, "alpha": 6, **settings})
    random = np.random.default_rng(5)
    for layer in lora_layers(model).values():
        layer.lora_B.data[...] = random.standard_normal(layer.lora_B.shape)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter, beside its base."""
    base = saved(tmp_path / "base", tokenizer=CharTokenizer.from_text("abcdefghijk"))
    interop.save_adapter(adapted(), tmp_path / "adapter", base=base)
    return tmp_path / "adapter"


def change_arrays(folder: Path, **changes: Any) -> None:
    """Set some arrays of an adapter; `...` removes one. The metadata stays."""
    with safe_open(folder / WEIGHTS, "numpy") as file:
        metadata = file.metadata()
    arrays = load_file(folder / WEIGHTS) | changes
    save_file({name: array for name, array in arrays.items() if array is not ...}, folder / WEIGHTS, metadata)


# There and back -------------------------------------------------------------------------------------


def test_the_files(folder: Path) -> None:
    assert sorted(os.listdir(folder)) == [CONFIG, WEIGHTS]
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    assert content == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(folder.parent / "base"), "r": 3,
        "lora_alpha": 6, "lora_dropout": 0.0, "use_rslora": False, "target_modules": ["c_attn"],
        "fan_in_fan_out": True, "bias": "none", "inference_mode": True, "modules_to_save": None,
        "init_lora_weights": True,
    }  # fmt: skip
    arrays = load_file(folder / WEIGHTS)
    shapes = {"lora_A": (3, 12), "lora_B": (36, 3)}
    assert {name: array.shape for name, array in arrays.items()} == {
        f"base_model.model.transformer.h.{i}.attn.c_attn.{part}.weight": shape
        for i in (0, 1)
        for part, shape in shapes.items()
    }
    assert np.array_equal(arrays[A], adapted().h[0].attn.c_attn.lora_A.data)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rslora": True, "dropout": 0.25},
        {"targets": ("mlp.c_proj", "h.1.attn.c_attn"), "rank": 1},
        {"targets": "all-linear", "alpha": 0.5},
    ],
    ids=str,
)
def test_an_adapter_is_loaded_as_it_was_saved(settings: Any, tmp_path: Path) -> None:
    model = adapted(**settings)
    interop.save_adapter(model, tmp_path / "adapter", base=saved(tmp_path / "base"))
    for found in (
        GPT.from_pretrained(tmp_path / "adapter"),
        interop.load_adapter(GPT.from_pretrained(tmp_path / "base"), tmp_path / "adapter"),
    ):
        assert found(IDS).data.tobytes() == model(IDS).data.tobytes()
        assert list(lora_layers(found)) == list(lora_layers(model))
        lora, expected = lora_of(found), lora_of(model)
        assert (lora.rank, lora.dropout, lora.scale) == (expected.rank, expected.dropout, expected.scale)
        assert not found.training
        assert [n for n, p in found.named_parameters() if p.requires_grad] == [
            n for n, _ in model.named_parameters() if "lora_" in n
        ]


@pytest.mark.parametrize(
    ("options", "packed"),
    [({"dtype": "bfloat16"}, "bfloat16"), ({"quantize": "int8"}, "int8"), ({"dtype": "float64"}, None)],
)
def test_onto_a_base_in_another_format(options: Any, packed: str | None, folder: Path) -> None:
    found = GPT.from_pretrained(folder, **options)
    assert found.packed == packed
    expected = adapted()(IDS).data
    np.testing.assert_allclose(found(IDS).data, expected, rtol=0, atol=0.05 * np.abs(expected).max())
    assert len(found.generate(IDS[:, :2], 4)[0]) == 6


def test_the_tokenizer_of_the_base_or_its_own(folder: Path) -> None:
    model, tokenizer = interop.load(folder)
    assert tokenizer.encode("abc").tolist() == [0, 1, 2]
    assert lora_of(model) is not None
    interop.save_adapter(model, folder, tokenizer=CharTokenizer.from_text("kjihgfedcba"))
    assert interop.load(folder)[1].vocab_size == 11
    assert (folder / "tokenizer.tinygpt.json").exists()


def test_the_base_is_found_from_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = adapted()(IDS).data
    monkeypatch.chdir(folder.parent)
    model = nn.add_lora(GPT.from_pretrained("base"), rank=3)
    assert model.source == "base"
    interop.save_adapter(model, "other")
    monkeypatch.chdir("/")
    assert len(lora_layers(GPT.from_pretrained(folder.parent / "other"))) == 2
    change_json(folder / CONFIG, base_model_name_or_path="../base")
    assert np.array_equal(GPT.from_pretrained(folder)(IDS).data, expected)


def test_an_adapter_from_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The base and the adapter both by their names."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TINYGPT_OFFLINE", "1")
    change_json(folder / CONFIG, base_model_name_or_path="me/base", revision="main")
    for name in ("base", "adapter"):
        place = tmp_path / "cache" / f"models--me--{name}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("a" * 40, encoding="ascii")
        shutil.copytree(folder.parent / name, place / "snapshots" / ("a" * 40))
    model = GPT.from_pretrained("me/adapter")
    assert np.array_equal(model(IDS).data, adapted()(IDS).data)
    assert model.source == "me/base"
    assert interop.load("me/adapter")[0].source == "me/base"


def test_a_save_that_fails_leaves_the_old_adapter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(folder)

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exchange, "commit", fail)
    with pytest.raises(UsageError, match=r"cannot save the adapter to .*No space left"):
        interop.save_adapter(adapted(rank=2), folder)
    assert snapshot(folder) == before


def test_an_adapter_in_another_dtype(folder: Path) -> None:
    interop.save_adapter(adapted(), folder, base=folder.parent / "base", dtype="bfloat16")
    expected = adapted()(IDS).data
    found = GPT.from_pretrained(folder)
    assert found.h[0].attn.c_attn.lora_A.dtype == np.float32
    np.testing.assert_allclose(found(IDS).data, expected, rtol=0, atol=0.05 * np.abs(expected).max())


# convert --------------------------------------------------------------------------------------------


def test_convert_merges_or_writes_the_adapter(folder: Path, tmp_path: Path) -> None:
    expected = nn.merge_lora(adapted())(IDS).data
    interop.convert(folder, tmp_path / "merged", merge_lora=True)
    merged = GPT.from_pretrained(tmp_path / "merged")
    assert lora_of(merged) is None
    assert np.array_equal(merged(IDS).data, expected)
    assert interop.load(tmp_path / "merged")[1].vocab_size == 11
    interop.convert(folder, tmp_path / "copy")
    assert np.array_equal(GPT.from_pretrained(tmp_path / "copy")(IDS).data, adapted()(IDS).data)
    assert (tmp_path / "copy" / "tokenizer.tinygpt.json").exists()
    with pytest.raises(UsageError, match=r"^merge_lora: this model has no adapter$"):
        interop.convert(folder.parent / "base", tmp_path / "more", merge_lora=True)
    with pytest.raises(UsageError, match=r"^convert: an adapter is written as one file"):
        interop.convert(folder, tmp_path / "more", max_shard_size="1MB")
    assert not (tmp_path / "more").exists()


# What is refused ------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[Any, str]] = {
    "peft_type": ("LOHA", "peft_type is 'LOHA', but tinygpt supports only 'LORA'"),
    "task_type": ("SEQ_2_SEQ_LM", "task_type is 'SEQ_2_SEQ_LM', but tinygpt supports only 'CAUSAL_LM' or"),
    "bias": ("lora_only", "bias is 'lora_only', but tinygpt supports only 'none'"),
    "init_lora_weights": ("pissa", "init_lora_weights is 'pissa', but tinygpt supports only True or"),
    "use_dora": (True, "use_dora is True, which tinygpt does not support"),
    "modules_to_save": (["wte"], r"modules_to_save is \['wte'\], which tinygpt does not support"),
    "rank_pattern": ({"c_attn": 4}, r"rank_pattern is {'c_attn': 4}, which tinygpt does not support"),
    "alpha_pattern": ({"c_attn": 4}, "alpha_pattern is .* not support"),
    "layer_replication": ([[0, 2]], "layer_replication is .* not support"),
    "lora_bias": (True, "lora_bias is True"),
    "trainable_token_indices": ([1], r"trainable_token_indices is \[1\]"),
    "of_a_later_version": (0.5, "of_a_later_version is 0.5, which tinygpt does not support"),
    "r": (0, "r must be .*at least 1"),
    "lora_alpha": ("16", "lora_alpha must be"),
    "lora_dropout": (1, "lora_dropout must be"),
    "use_rslora": ("yes", "use_rslora must be true or false, not 'yes'"),
    "target_modules": (None, "target_modules must be names of layers, not None"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_is_not_supported_is_named(name: str, folder: Path) -> None:
    value, words = SETTINGS[name]
    change_json(folder / CONFIG, **{name: value})
    model = make()
    with pytest.raises(CheckpointError if "must be" not in words else UsageError, match=rf"{CONFIG}.*{words}"):
        interop.load_adapter(model, folder)
    assert lora_of(model) is None


@pytest.mark.parametrize("name", ["peft_type", "r", "target_modules"])
def test_a_setting_that_is_missing(name: str, folder: Path) -> None:
    change_json(folder / CONFIG, **{name: ...})
    with pytest.raises(CheckpointError, match=rf"{CONFIG} lacks {name}$"):
        interop.load_adapter(make(), folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eva_config", {"rho": 2.0}), ("fan_in_fan_out", False), ("of_a_later_version", None),
        ("target_modules", ".*c_attn"), ("target_modules", "all-linear"),
        ("layers_to_transform", [0, 1]), ("init_lora_weights", "gaussian"),
        ("target_modules", ["transformer.h.0.attn.c_attn", "h.1.attn.c_attn"]),
    ],
)  # fmt: skip
def test_a_setting_that_does_not_matter(name: str, value: Any, folder: Path) -> None:
    change_json(folder / CONFIG, **{name: value})
    assert np.array_equal(interop.load_adapter(make().eval(), folder)(IDS).data, adapted()(IDS).data)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({A: np.zeros((3, 16), "f4")}, r"another model: .*lora_A.weight' has shape \(3, 16\), .*needs \(3, 12\)"),
        ({A: np.zeros((4, 12), "f4")}, r"has shape \(4, 12\), and a rank of 3 for this model's .*needs \(3, 12\)"),
        ({A: ...}, r"lacks h\.0\.attn\.c_attn\.lora_A"),
        (
            {A: ..., A.replace("lora_A", "lora_B"): ...},
            r"damaged or for another model: it holds no update of h\.0\.attn\.c_attn, against the target_modules",
        ),
        ({A.replace("h.0", "h.2"): np.zeros((3, 12), "f4")}, r"another model: it adapts h\.2\.attn\.c_attn, and this"),
        ({A.replace("attn.c_attn", "self_attn.q_proj"): np.zeros((3, 12), "f4")}, r"it adapts h\.0\.self_attn\.q_proj"),
        ({A.replace("transformer.", ""): np.zeros((3, 12), "f4")}, r"contains h\.0\.attn\.c_attn\.lora_A twice"),
        (
            {"base_model.model.transformer.wte.weight": np.zeros((12, 12), "f4")},
            r"holds 'base_model\.model\.transformer\.wte\.weight', which is not part of an update of a linear layer",
        ),
    ],
    ids=str,
)
def test_an_adapter_for_another_model(changes: Any, words: str, folder: Path) -> None:
    change_arrays(folder, **changes)
    model = make()
    with pytest.raises(CheckpointError, match=words):
        interop.load_adapter(model, folder)
    assert lora_of(model) is None
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_empty_adapter(folder: Path) -> None:
    save_file({}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"is empty: it adapts no layer$"):
        interop.load_adapter(make(), folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vocab_size": 12}, "vocab_size is 11 there and 12 here"),
        ({"n_layer": 3}, "n_layer is 2 there and 3 here"),
        ({"n_head": 3}, "n_head is 2 there and 3 here"),
        ({"activation_function": "relu"}, "activation_function is 'gelu_new' there and 'relu' here"),
    ],
)
def test_a_base_of_other_sizes(settings: Any, words: str, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"^the adapter .* was made for another model: {words}$"):
        interop.load_adapter(make(**settings), folder)


@pytest.mark.parametrize("metadata", ["[1]", "{", "3", "null"])
def test_damaged_metadata(metadata: str, folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {"tinygpt_base": metadata})
    with pytest.raises(CheckpointError, match=r"is damaged: its entry tinygpt_base is not a JSON object$"):
        interop.load_adapter(make(), folder)


def test_a_base_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TINYGPT_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    change_json(folder / CONFIG, base_model_name_or_path="me/unknown")
    with pytest.raises(CheckpointError, match=r"^the adapter in .* is for the model 'me/unknown', but there is no"):
        GPT.from_pretrained(folder)
    for name in (None, "", 3, ...):
        change_json(folder / CONFIG, base_model_name_or_path=name)
        with pytest.raises(CheckpointError, match=r"does not say which model it is for: load the base yourself"):
            GPT.from_pretrained(folder)
    change_json(folder / CONFIG, base_model_name_or_path=str(folder))
    with pytest.raises(CheckpointError, match=r"names its own folder as its base model: load"):
        GPT.from_pretrained(folder)


def test_a_model_and_an_adapter_in_one_folder(folder: Path) -> None:
    base = folder.parent / "base"
    with pytest.raises(UsageError, match=r"^save_pretrained: .* contains an adapter: choose another folder$"):
        make().save_pretrained(folder)
    with pytest.raises(UsageError, match=r"^save_adapter: .* contains a model \(model\.safetensors\): choose another"):
        interop.save_adapter(adapted(), base)
    for name in (CONFIG, WEIGHTS):
        shutil.copy(folder / name, base / name)
    with pytest.raises(CheckpointError, match=r"holds both an adapter .* and a whole model"):
        GPT.from_pretrained(base)


def test_other_mistakes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^save_adapter: this model has no adapter: add one"):
        interop.save_adapter(make(), tmp_path / "new")
    with pytest.raises(UsageError, match=r"^save_adapter: dtype must be one of float32, .* not 'int8'"):
        interop.save_adapter(adapted(), tmp_path / "new", dtype="int8")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match=r"^load_adapter: this model has an adapter already"):
        interop.load_adapter(adapted(), folder)
    with pytest.raises(UsageError, match=r"LoRALinear \(merge_lora makes it a plain layer, and tinygpt"):
        adapted().save_pretrained(tmp_path / "new")
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=rf"there is no file .*{WEIGHTS}"):
        interop.load_adapter(make(), folder)
