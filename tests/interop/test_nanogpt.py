"""nanoGPT's ckpt.pt and meta.pkl: read without PyTorch and without executing anything, or refused with a sentence."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from tests.cli.helpers import assert_one_sentence
from tests.interop import torch_writer as writer
from tests.interop.helpers import assert_same_model, make, saved
from tests.interop.test_fuzz import edited, edits
from tests.interop.torch_writer import STORAGE, dictionary, pickled, storage, tensor, text, zipped
from tinygpt import GPT, GPTForSequenceClassification, UsageError, interop
from tinygpt.errors import CheckpointError
from tinygpt.tokenizers import ByteTokenizer, CharTokenizer

LINEAR = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
CHARACTERS = "\n abcdefgh好"  # 11 of them, as many as the model of the helpers has ids
ARGUMENTS = {"n_layer": 2, "n_head": 2, "n_embd": 12, "block_size": 8, "bias": True, "vocab_size": 11, "dropout": 0.1}


def value(found: Any) -> bytes:
    """The pickle of plain values and dictionaries of them, as bytes to put into another."""
    if isinstance(found, dict):
        return b"}(" + b"".join(value(key) + value(item) for key, item in found.items()) + b"u"
    if isinstance(found, bytes):  # already one
        return found
    if isinstance(found, bool):
        return b"\x88" if found else b"\x89"
    if isinstance(found, float):
        return b"G" + struct.pack(">d", found)
    return {type(None): lambda _: b"N", int: writer.number, str: text}[type(found)](found)


def numbers(array: np.ndarray, key: int) -> bytes:
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return tensor(storage(str(key), STORAGE[array.dtype.str[1:]], array.size), 0, array.shape, strides)


def checkpoint(gpt: GPT, prefix: str = "", **changes: Any) -> bytes:
    """What nanoGPT's train.py saves of this model. changes: of the dictionary; `...` leaves an entry out."""
    arrays = {
        f"transformer.{name}": np.ascontiguousarray(array.T) if name.endswith(LINEAR) else array
        for name, array in gpt.state_dict().items()
    }
    for layer in range(gpt.config.n_layer):  # the mask that it keeps where PyTorch has no flash attention
        arrays[f"transformer.h.{layer}.attn.bias"] = np.tril(np.ones((8, 8), "f4"))[None, None]
    names = list(arrays)
    weights = {prefix + name: numbers(array, i) for i, (name, array) in enumerate(arrays.items())}
    weights[f"{prefix}lm_head.weight"] = numbers(arrays[names[0]], 0)  # the same storage
    moments = {"exp_avg": numbers(np.zeros(3, "f4"), 900), "step": numbers(np.array(7.0, "f4"), 901)}
    found = {
        "model": dictionary(weights),
        "optimizer": {"state": {0: moments}, "param_groups": {"lr": 1e-3, "foreach": None}},
        "model_args": ARGUMENTS | {"bias": gpt.config.bias}, "iter_num": 250,
        "best_val_loss": numbers(np.array(1.5, "f4"), 902),
        "config": {"out_dir": "out", "dataset": "poems", "learning_rate": 1e-3, "compile": True},
    } | changes  # fmt: skip
    stored = {str(i): array.tobytes() for i, array in enumerate(arrays.values())}
    stored |= {"900": bytes(12), "901": bytes(4), "902": bytes(4)}
    return zipped(pickled(value({key: item for key, item in found.items() if item is not ...})), stored)


def wanted(bias: bool = True) -> GPT:
    return make(activation_function="gelu", bias=bias, dropout=0.1)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """nanoGPT's out_dir, with the characters of the text beside the checkpoint."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "ckpt.pt").write_bytes(checkpoint(wanted()))
    return folder


def write_meta(path: Path, table: Mapping[Any, Any] | None = None, protocol: int = 4) -> Path:
    table = dict(enumerate(CHARACTERS)) if table is None else table
    meta = {"vocab_size": len(table), "itos": table, "stoi": {c: i for i, c in table.items()}}
    path.write_bytes(pickle.dumps(meta, protocol))
    return path


# Models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_a_checkpoint_is_a_model(tmp_path: Path, prefix: str, bias: bool) -> None:
    (tmp_path / "ckpt.pt").write_bytes(checkpoint(wanted(bias), prefix))
    for place in (tmp_path / "ckpt.pt", tmp_path):  # the file, or the folder in which it is alone
        assert_same_model(GPT.from_pretrained(place), wanted(bias))
    assert GPT.from_pretrained(tmp_path, dropout=0.0).config.dropout == 0
    assert GPT.from_pretrained(tmp_path, quantize="int8").packed == "int8"


def test_oldest_checkpoints_do_not_say_whether_they_have_biases(tmp_path: Path) -> None:
    arguments = {name: item for name, item in ARGUMENTS.items() if name not in ("bias", "dropout")}
    (tmp_path / "model.pt").write_bytes(checkpoint(wanted(), model_args=arguments))
    assert GPT.from_pretrained(tmp_path / "model.pt").config.bias
    (tmp_path / "model.pt").write_bytes(checkpoint(wanted(bias=False), model_args=arguments))
    with pytest.raises(CheckpointError, match=r"lack 'h.0.attn.c_attn.bias'.*which its model_args requires"):
        GPT.from_pretrained(tmp_path / "model.pt")


def test_a_head_of_its_own_is_kept(tmp_path: Path) -> None:
    """nanoGPT ties it; a model that was changed not to is loaded as it is."""
    head = np.random.default_rng(3).standard_normal((11, 12)).astype("f4")
    arrays = {f"transformer.{n}": a.T.copy() if n.endswith(LINEAR) else a for n, a in wanted().state_dict().items()}
    arrays["lm_head.weight"] = head
    weights = dictionary({name: numbers(array, i) for i, (name, array) in enumerate(arrays.items())})
    stored = {str(i): array.tobytes() for i, array in enumerate(arrays.values())}
    (tmp_path / "a.pt").write_bytes(zipped(pickled(value({"model": weights, "model_args": ARGUMENTS})), stored))
    model = GPT.from_pretrained(tmp_path / "a.pt")
    assert not model.config.tie_word_embeddings
    np.testing.assert_array_equal(model.state_dict()["lm_head.weight"], head)


def test_a_folder_with_another_model_is_that_model(out: Path) -> None:
    saved(out, make(seed=2))
    assert_same_model(GPT.from_pretrained(out), make(seed=2))
    assert_same_model(GPT.from_pretrained(out / "ckpt.pt"), wanted())


def test_a_classifier_on_a_checkpoint(out: Path) -> None:
    clf = GPTForSequenceClassification.from_pretrained(out / "ckpt.pt", num_labels=2)
    ids = np.array([[1, 2, 3]])
    expected = wanted().eval().hidden(ids).data[:, -1] @ clf.score.weight.data.T
    np.testing.assert_allclose(clf(ids).data, expected, rtol=1e-5, atol=1e-5)


# Tokenizers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_the_characters_of_meta_pkl(out: Path, protocol: int) -> None:
    write_meta(out / "meta.pkl", protocol=protocol)
    model, tokenizer = interop.load(out / "ckpt.pt")
    assert tokenizer == CharTokenizer(CHARACTERS)
    assert_same_model(model, wanted())
    assert not model.generation_config


def test_any_tokenizer_beside_it(tmp_path: Path) -> None:
    model = make(activation_function="gelu", vocab_size=304)
    (tmp_path / "ckpt.pt").write_bytes(checkpoint(model, model_args=ARGUMENTS | {"vocab_size": 304}))
    ByteTokenizer().save(tmp_path)
    model, tokenizer = interop.load(tmp_path)
    ids = model.generate([[1]], max_new_tokens=40, tokenizer=tokenizer, seed=1, temperature=5.0)
    assert ids.max() < 256 < model.config.vocab_size  # what pads the vocabulary is never generated
    tokenizer.decode(ids[0])


def test_convert_then_use(run: Any, out: Path, tmp_path: Path) -> None:
    meta, folder = write_meta(tmp_path / "meta.pkl"), tmp_path / "model"
    answer = run("convert", out / "ckpt.pt", folder, "--tokenizer", meta)
    assert answer.code == 0, answer.err
    assert "tokenizer.tinygpt.json" in answer.out
    config = json.loads((folder / "config.json").read_text())
    assert (config["activation_function"], config["resid_pdrop"], config["n_positions"]) == ("gelu", 0.1, 8)
    assert_same_model(GPT.from_pretrained(folder), wanted())
    sample = ("--prompt=abc", "--max-new-tokens=4", "--seed=3")
    answer = run("sample", "--model", folder, *sample)
    assert answer.code == 0, answer.err
    write_meta(out / "meta.pkl")
    assert run("sample", "--model", out / "ckpt.pt", *sample).out == answer.out
    assert run("convert", out, tmp_path / "too").code == 0  # with the tokenizer beside the checkpoint
    assert (tmp_path / "too" / "tokenizer.tinygpt.json").read_bytes() == (
        folder / "tokenizer.tinygpt.json").read_bytes()  # fmt: skip


def test_evaluate_and_fine_tune_a_checkpoint(run: Any, out: Path, tmp_path: Path, without_picture: None) -> None:
    write_meta(out / "meta.pkl")
    data = tmp_path / "text.txt"
    data.write_text("abc abd\nbad cab\n" * 20, encoding="utf-8")
    answer = run("eval", "--model", out / "ckpt.pt", "--data", data)
    assert answer.code == 0, answer.err
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": t}) + "\n" for t in ("ab", "cab", "bad", "dab")), encoding="utf-8")
    answer = run("finetune", "--model", out / "ckpt.pt", "--data", rows, "--out", tmp_path / "run", "--steps=2",
                 "--lora-rank=2")  # fmt: skip
    assert answer.code == 0, answer.err
    assert interop.load(tmp_path / "run")[1] == CharTokenizer(CHARACTERS)


def test_without_a_tokenizer_it_says_where_to_take_one_from(run: Any, out: Path, tmp_path: Path) -> None:
    words = r"ckpt.pt has no tokenizer.*`tinygpt convert .*ckpt.pt FOLDER --tokenizer data/poems/meta.pkl`"
    assert_one_sentence(run("sample", "--model", out / "ckpt.pt"), words)
    model = make(activation_function="gelu", vocab_size=50304, n_embd=2, n_head=1, n_layer=1)
    sizes = ARGUMENTS | {"vocab_size": 50304, "n_embd": 2, "n_head": 1, "n_layer": 1}
    (out / "ckpt.pt").write_bytes(checkpoint(model, model_args=sizes))
    assert_one_sentence(run("sample", "--model", out / "ckpt.pt"), "--tokenizer the folder of any GPT-2 model")
    answer = run("convert", out / "ckpt.pt", tmp_path / "model")
    assert answer.code == 0, answer.err
    assert "It has no tokenizer" in answer.out


def test_a_tokenizer_of_another_model(run: Any, out: Path, tmp_path: Path) -> None:
    meta = write_meta(tmp_path / "meta.pkl", dict(enumerate(CHARACTERS + "!")))
    words = r"the tokenizer has 12 tokens, but the model in .*ckpt.pt has 11: .* it needs data/poems/meta.pkl"
    assert_one_sentence(run("convert", out / "ckpt.pt", tmp_path / "model", "--tokenizer", meta), words)
    words = "there is no tokenizer in .*nothing: give a folder with one, or nanoGPT's meta.pkl"
    assert_one_sentence(run("convert", out, tmp_path / "model", "--tokenizer", tmp_path / "nothing"), words)
    assert not (tmp_path / "model").exists()
    saved(tmp_path / "gpt2")
    write_meta(tmp_path / "meta.pkl")
    assert run("convert", tmp_path / "gpt2", tmp_path / "model", "--tokenizer", tmp_path / "meta.pkl").code == 0
    assert interop.load(tmp_path / "model")[1] == CharTokenizer(CHARACTERS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({"vocab_size": 2}), "it has no 'itos'"),
        (pickle.dumps({"itos": {0: "a", 2: "b"}}), "the token of id 1 is None, not one character"),
        (pickle.dumps({"itos": {0: "the", 1: "b"}}), "the token of id 0 is 'the', not one character"),
        (pickle.dumps({"itos": {0: "a", 1: "a"}}), "distinct characters"),
        (pickle.dumps({"itos": {}}), "at least one character"),
        (pickle.dumps({"itos": {0: ["a"]}}), "the token of id 0 is a list, not one character"),
        (pickle.dumps({"itos": dict.fromkeys([0], os.system)}), r"names posix\.system, and only"),
        (pickle.dumps(["a", "b"]), "it has no 'itos'"),
        (b"}q\x00" + text("itos") + b"h\x00s.", "the token of id 0 is None"),
        (b"", "damaged or cut short"),
    ],
)  # fmt: skip
def test_what_is_no_meta_pkl(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"meta.pkl is not nanoGPT's meta.pkl: .*{words}"):
        interop.nanogpt.read_tokenizer(tmp_path)


# What is refused --------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch it-ran",)


STATE = writer.state_dict({"transformer.wte.weight": np.zeros((2, 2), "f4")})
REFUSED: dict[str, tuple[bytes, str]] = {
    "weights alone": (zipped(STATE, {"0": bytes(16)}), "put it as pytorch_model.bin into a folder with the model's"),
    "another program's": (
        zipped(pickled(value({"state_dict": {}, "epoch": 3})), {}),
        "which has 'model' and 'model_args': it holds a dictionary with 'state_dict', 'epoch'",
    ),
    "a list": (zipped(pickled(b"]"), {}), "it holds a list"),
    "a dictionary that is its own model": (
        zipped(pickled(b"}q\x00(" + text("model") + b"h\x00" + text("model_args") + value(ARGUMENTS) + b"u"), {}),
        "it holds 'model', which is a dictionary, not a tensor",
    ),
    "llama2.c": (checkpoint(wanted(), model_args={"dim": 288, "n_layers": 6}), "have 'dim', 'n_layers', so"),
    "a rotary model": (checkpoint(wanted(), model_args=ARGUMENTS | {"rope": True}), "model_args in .* have 'rope'"),
    "no sizes": (checkpoint(wanted(), model_args={"n_layer": 2}), "model_args in .* lack n_head, n_embd, block_size"),
    "sizes of the wrong kind": (
        checkpoint(wanted(), model_args=ARGUMENTS | {"n_layer": "2"}), "model_args in .* are not valid: .*n_layer"
    ),
    "impossible sizes": (checkpoint(wanted(), model_args=ARGUMENTS | {"n_head": 5}), "must be a multiple of n_head"),
    "a number for arguments": (checkpoint(wanted(), model_args=7), "its model_args are not a dictionary"),
    "a number of 5000 digits": (
        checkpoint(wanted(), model_args=ARGUMENTS | {"n_layer": pickle.dumps(10**5000, 2)[2:-1]}),
        "its pickle has a number of 16610 bits, which no file of a model needs",
    ),
    "a billion layers": (
        checkpoint(wanted(), model_args=ARGUMENTS | {"n_layer": 10**9}),
        r"are only 28 arrays, too few for the 1000000000 layers in model_args",
    ),
    "a large vocabulary": (
        checkpoint(wanted(), model_args=ARGUMENTS | {"vocab_size": 10**12}),
        r"'wte.weight' of shape \(11, 12\), but model_args implies \(1000000000000, 12\)",
    ),
    "a name twice": (
        checkpoint(wanted(), model=dictionary({p + "lm_head.weight": numbers(np.zeros((2, 2), "f4"), 0)
                                               for p in ("", "_orig_mod.")})),
        "its model has 'lm_head.weight' twice",
    ),
    "a class": (
        checkpoint(wanted(), config=writer.name("__main__", "Config") + b")R"),
        r"names __main__\.Config, and only tensors, dictionaries and plain values are admitted",
    ),
    "os.system": (checkpoint(wanted(), config=pickle.dumps(Evil(), 2)[2:-1]), r"names posix\.system"),
    "the old format": (writer.legacy(STATE, {"0": (4, bytes(16))}), "the format that PyTorch wrote before 1.6"),
    "nothing": (b"", "begins with b''"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_and_nothing_is_run(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, words = REFUSED[case]
    (tmp_path / "ckpt.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as raised:
        GPT.from_pretrained("ckpt.pt")
    assert "ckpt.pt" in str(raised.value)
    assert not (tmp_path / "it-ran").exists()


def test_other_files_are_still_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="is a file: give the folder that contains"):
        GPT.from_pretrained(tmp_path / "model.safetensors")


def test_a_checkpoint_cut_off_anywhere(tmp_path: Path) -> None:
    content = checkpoint(wanted())
    for end in range(0, len(content), 997):
        (tmp_path / "ckpt.pt").write_bytes(content[:end])
        with pytest.raises(CheckpointError):
            GPT.from_pretrained(tmp_path)


WHOLE = checkpoint(wanted())


@settings(max_examples=150)
@given(changes=edits)
def test_a_changed_checkpoint_is_a_model_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, changes: list[Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.pt"
    path.write_bytes(edited(WHOLE, changes, WHOLE.index(b"archive/byteorder")))  # in the pickle
    try:
        GPT.from_pretrained(path)
    except UsageError as error:
        message = str(error)
    else:
        return
    assert "\n" not in message
