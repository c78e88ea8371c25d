"""GGUF files read back by GGUFReader of ggml's own library: sizes, tokens, and every number of every array."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import EXTRA
from tests.interop.helpers import make, saved, snapshot
from tinygpt import GPT, UsageError, interop, nn
from tinygpt.interop.gguf import LARGEST, save_gguf
from tinygpt.ops.packed import pack, unpack
from tinygpt.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer

gguf = pytest.importorskip("gguf", reason=EXTRA)

SIZES: dict[str, Any] = {"n_embd": 64, "n_head": 4, "n_inner": 96, "vocab_size": 256, "block_size": 20}
NAMES = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 2)  # from Hugging Face's names to llama.cpp's


def read(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, np.ndarray]]]:
    """What the file says, and name -> (dtype, numbers) of its arrays."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    arrays = {t.name: (t.tensor_type.name, gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    assert all(
        array.shape == tuple(t.shape[::-1]) for t, (_, array) in zip(reader.tensors, arrays.values(), strict=True)
    )
    return fields, arrays


def expected(model: GPT) -> dict[str, np.ndarray]:
    """The arrays of a model with biases under llama.cpp's names; matrices as (out, in)."""
    arrays = {}
    for name, array in model.state_dict().items():
        stem, kind = name.rsplit(".", 1)
        their = NAMES.get_name(stem if stem == "lm_head" else f"transformer.{stem}")
        arrays[f"{their}.{kind}"] = array.T if stem.startswith("h.") else array
    return arrays


def rounding(array: np.ndarray, dtype: str) -> Any:
    """How far a number may be from its stored form."""
    if dtype == "Q8_0":  # half a step, and 127 steps of a scale that float16 rounds
        largest = np.abs(array.reshape(*array.shape[:-1], -1, 32)).max(-1, keepdims=True)
        return (largest / 127 * (0.5 + 127 / 2**11) * np.ones(32)).reshape(array.shape) + 1e-9
    if dtype == "Q4_0":  # 1.5 steps, where the largest is 8.5 of them and the next, of the other sign, becomes 7
        largest = np.abs(array.reshape(*array.shape[:-1], -1, 32)).max(-1, keepdims=True)
        return (largest / 8.5 * 1.6 * np.ones(32)).reshape(array.shape)
    return {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}[dtype] * np.abs(array) + (dtype == "F16") * 2.0**-25


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_number(tmp_path: Path, dtype: str, tied: bool) -> None:
    model = make(**SIZES, tie_word_embeddings=tied)
    save_gguf(model, ByteTokenizer(), tmp_path / "model.gguf", dtype=dtype)
    fields, found = read(tmp_path / "model.gguf")
    wanted = expected(model)
    assert found.keys() == wanted.keys()
    assert ("output.weight" in found) is not tied
    for name, array in wanted.items():
        stored, numbers = found[name]
        outer = dtype == "q4_0" and name in ("token_embd.weight", "output.weight")
        matrix = "Q8_0" if outer else dtype.upper()
        assert stored == ("F32" if array.ndim == 1 or name == "position_embd.weight" else matrix), name
        assert np.all(np.abs(numbers - array) <= rounding(array, stored)), name
        assert np.array_equal(numbers, array) or stored != "F32", name
    assert fields["general.file_type"] == {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}[dtype]
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_four_bits_are_those_of_a_packed_model(tmp_path: Path) -> None:
    model = make(**SIZES)
    save_gguf(model, ByteTokenizer(), tmp_path / "model.gguf", dtype="q4_0")
    _, found = read(tmp_path / "model.gguf")
    matrices = [name for name, array in expected(model).items() if array.ndim == 2 and name.startswith("blk.")]
    assert len(matrices) == 8
    for name in matrices:
        assert found[name][0] == "Q4_0"
        weights = unpack(pack(expected(model)[name], "int4", axis=1), axis=1)
        assert np.array_equal(found[name][1], weights), name


def test_sizes_and_tokens(tmp_path: Path) -> None:
    model = make(**SIZES | {"vocab_size": 300}, layer_norm_epsilon=3e-5)
    tokenizer = BPETokenizer.train("the end of the beginning\n" * 9, 265)
    model.generation_config = {"eos_token_id": tokenizer.eos_token_id}
    save_gguf(model, tokenizer, tmp_path / "new" / "model.gguf")
    fields, _ = read(tmp_path / "new" / "model.gguf")
    description = tokenizer.config()["tokenizer"]
    sizes = {
        "context_length": 20, "embedding_length": 64, "feed_forward_length": 96, "block_count": 2,
        "attention.head_count": 4, "attention.layer_norm_epsilon": np.float32(3e-5), "vocab_size": 300,
    }  # fmt: skip
    assert {name.removeprefix("gpt2."): value for name, value in fields.items() if name.startswith("gpt2.")} == sizes
    found = {name.removeprefix("tokenizer.ggml."): value for name, value in fields.items() if "tokenizer." in name}
    tokens = found.pop("tokens")
    assert {token: i for i, token in enumerate(tokens[:265])} == description["model"]["vocab"]
    assert tokens[265:] == [f"[PAD{i}]" for i in range(265, 300)]
    assert found.pop("token_type") == [1] * 264 + [3] + [5] * 35
    assert found.pop("merges") == [" ".join(pair) for pair in description["model"]["merges"]]
    assert found == {
        "model": "gpt2", "pre": "gpt-2", "eos_token_id": 264, "bos_token_id": 264, "add_bos_token": False,
        "add_eos_token": False,
    }  # fmt: skip


def test_a_model_without_biases_or_an_end(tmp_path: Path) -> None:
    model = make(bias=False)
    save_gguf(model, CharTokenizer("abcdefghij你"), tmp_path / "model.gguf", dtype="f16")
    fields, found = read(tmp_path / "model.gguf")
    assert fields["tokenizer.ggml.eos_token_id"] == fields["tokenizer.ggml.bos_token_id"] == 11
    assert fields["gpt2.vocab_size"] == len(fields["tokenizer.ggml.tokens"]) == 12
    assert found["token_embd.weight"][0] == "F16"
    assert np.array_equal(found["token_embd.weight"][1][:11], model.wte.weight.data.astype("f2"))
    assert (found["output.weight"][0], found["output.weight"][1].shape) == ("F32", (12, 12))
    biases = [array for name, (_, array) in found.items() if name.endswith("bias") and name != "output_norm.bias"]
    assert len(biases) == 12
    assert not any(array.any() for array in biases)


def test_convert_a_folder_and_an_adapter(tmp_path: Path) -> None:
    model, tokenizer = make(), CharTokenizer("abcdefghij", end_token=True)
    folder = saved(tmp_path / "folder", model, tokenizer=tokenizer)
    before = snapshot(folder)
    assert interop.convert(folder, tmp_path / "model.gguf", to="gguf") == tmp_path / "model.gguf"
    save_gguf(model, tokenizer, tmp_path / "same.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == (tmp_path / "same.gguf").read_bytes()
    base, _ = interop.load(folder)
    nn.add_lora(base, rank=2, seed=1)
    for name, parameter in base.named_parameters():
        if "lora" in name:
            parameter.data[...] = np.random.default_rng(0).standard_normal(parameter.shape)
    interop.save_adapter(base, tmp_path / "adapter")
    with pytest.raises(UsageError, match="the model has a LoRA adapter: merge it"):
        interop.convert(tmp_path / "adapter", tmp_path / "other.gguf", to="gguf")
    assert not (tmp_path / "other.gguf").exists()
    interop.convert(tmp_path / "adapter", tmp_path / "model.gguf", to="gguf", merge_lora=True)  # replaces the file
    _, found = read(tmp_path / "model.gguf")
    for name, array in expected(nn.merge_lora(base)).items():
        assert np.array_equal(found[name][1], array), name
    assert snapshot(folder) == before


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3.4e38])
def test_numbers_that_do_not_fit_leave_the_old_file(tmp_path: Path, dtype: str, value: float) -> None:
    model, path = make(**SIZES), tmp_path / "model.gguf"
    save_gguf(model, ByteTokenizer(), path, dtype=dtype)
    before = snapshot(tmp_path)
    model.h[1].mlp.c_proj.weight.data[3, 5] = value
    if dtype == "f32" and np.isfinite(value):
        return save_gguf(model, ByteTokenizer(), path, dtype=dtype)
    words = re.escape(f"blk.1.ffn_down.weight holds numbers that are not finite or too large for {dtype}")
    with pytest.raises(UsageError, match=words):
        save_gguf(model, ByteTokenizer(), path, dtype=dtype)
    assert snapshot(tmp_path) == before
    return None


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_the_largest_numbers_that_fit_are_finite(tmp_path: Path, dtype: str) -> None:
    """Also in a group whose scale of least squared error is far above a seventh of the largest weight."""
    model, path = make(**SIZES), tmp_path / "model.gguf"
    weight = model.h[1].mlp.c_proj.weight.data
    weight[:32] = LARGEST[dtype] * 0.194
    weight[0] = LARGEST[dtype]
    save_gguf(model, ByteTokenizer(), path, dtype=dtype)
    _, found = read(path)
    np.testing.assert_allclose(found["blk.1.ffn_down.weight"][1][:, 0], weight[0], rtol=0.3)
