"""Packing while loading: the same model as packing afterwards, in the memory of the packed one and a matrix.

From one file, from shards, from the folder of a training run, in every form that the weights may have.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.interop.helpers import WEIGHTS, assert_same_model, change_json, change_weights, make, saved
from tests.training.helpers import ENVIRONMENT
from tinygpt import GPT, GPTConfig, nn
from tinygpt.errors import CheckpointError, RangeError, UsageError
from tinygpt.tokenizers import CharTokenizer
from tinygpt.training import Checkpoint, CheckpointFolder

IDX = np.random.default_rng(0).integers(0, 11, (3, 7))
HOW: list[Any] = [{"dtype": "bfloat16"}, {"quantize": "int8"}, {"quantize": "int4"}]


def one_file(folder: Path, model: GPT) -> Path:
    return saved(folder, model)


def shards(folder: Path, model: GPT) -> Path:
    return saved(folder, model, max_shard_size=model.h[0].mlp.c_fc.weight.data.nbytes)


def run(folder: Path, model: GPT) -> Path:
    """The folder of a training run, with the optimizer's state, twice the size of the weights."""
    CharTokenizer.from_text("abcdefghijk").save(folder)
    arrays = {name: parameter.data for name, parameter in model.named_parameters()}
    moments = {f"{kind}.{name}": np.ones_like(array) for kind in "mv" for name, array in arrays.items()}
    state = {"step": 1, "model_config": model.config.to_dict()}
    CheckpointFolder(folder).save(Checkpoint(arrays, moments, state), best=True)
    return folder


WAYS: list[Callable[[Path, GPT], Path]] = [one_file, shards, run]
every_way = pytest.mark.parametrize("way", WAYS)
every_format = pytest.mark.parametrize("how", HOW, ids=str)


def format_of(how: dict[str, str]) -> str:
    return how.get("quantize", how.get("dtype", ""))


def sizes(how: dict[str, str], variant: dict[str, Any]) -> dict[str, Any]:
    """The settings of a model that the format can hold: int4 packs 32 terms of a sum together."""
    if format_of(how) != "int4":
        return variant
    return variant | {"n_embd": 32} | ({"n_inner": 64} if "n_inner" in variant else {})


def assert_same_packed(found: GPT, expected: GPT) -> None:
    """Bit for bit: packed matrices, scales and what is not packed."""
    assert (found.packed, found.config) == (expected.packed, expected.config)
    pairs = zip(found.named_modules(), expected.named_modules(), strict=True)
    for (path, one), (_, other) in pairs:
        assert not path or type(one) is type(other), path
        if isinstance(one, (nn.packed.PackedLinear, nn.packed.PackedEmbedding)):
            for a, b in zip(one.matrix[:2], other.matrix[:2], strict=True):
                assert (a is None and b is None) or a.tobytes() == b.tobytes(), path
    for (name, one_parameter), (_, other_parameter) in zip(
        found.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert one_parameter.data.tobytes() == other_parameter.data.tobytes(), name
        assert not one_parameter.requires_grad


@every_way
@every_format
@pytest.mark.parametrize("variant", [{}, {"bias": False}, {"tie_word_embeddings": False, "n_inner": 20}], ids=str)
def test_packed_on_the_way_or_afterwards(
    way: Callable[[Path, GPT], Path], how: dict[str, str], variant: dict[str, Any], tmp_path: Path
) -> None:
    model = make(**sizes(how, variant))
    found = GPT.from_pretrained(way(tmp_path, model), **how)
    assert not found.training
    assert_same_packed(found, model.pack(format_of(how)))
    assert np.isfinite(found(IDX).data).all()


# In a process of its own: threads and caches that earlier tests have left in this one take memory too.
MEMORY = """
import json, sys, tracemalloc
from tinygpt import GPT
folder, how = sys.argv[1], json.loads(sys.argv[2])
GPT.from_pretrained(folder, **how)  # what is made once
tracemalloc.start()
kept = GPT.from_pretrained(folder, **how)
print(json.dumps([kept.packed, *tracemalloc.get_traced_memory()]))
"""


@pytest.mark.slow
@every_way
@every_format
def test_memory_of_the_packed_model_and_one_matrix(
    way: Callable[[Path, GPT], Path], how: dict[str, str], tmp_path: Path
) -> None:
    """The largest matrix is a fifteenth of the model, so neither the model in float32 nor half of it fits."""
    settings: dict[str, Any] = {"vocab_size": 2048, "block_size": 16, "n_layer": 8, "n_head": 4, "n_embd": 128}
    model = GPT(GPTConfig(**settings))
    largest = max(parameter.data.nbytes for parameter in model.parameters())
    whole = sum(parameter.data.nbytes for parameter in model.parameters())
    command = [sys.executable, "-c", MEMORY, str(way(tmp_path, model)), json.dumps(how)]
    packed, after, peak = json.loads(subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True).stdout)
    assert packed
    room = 400_000  # of a converted piece, of blocks while packing, of headers
    assert peak <= after + largest + room, f"{peak:,} for {after:,} and a matrix of {largest:,}"
    assert after + largest + room < whole * 0.8  # the bound means something


def test_a_run_is_loaded_without_the_optimizers_state(tmp_path: Path) -> None:
    model = GPT(GPTConfig(vocab_size=11, block_size=16, n_layer=4, n_head=4, n_embd=128))
    size = sum(parameter.data.nbytes for parameter in model.parameters())
    run(tmp_path, model)
    tracemalloc.start()
    try:
        assert_same_model(GPT.from_pretrained(tmp_path), model)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size * 1.3


@every_format
def test_the_heads_matrix_alone_or_once_more(how: dict[str, str], tmp_path: Path) -> None:
    model, wte, head = make(**sizes(how, {})), "transformer.wte.weight", "lm_head.weight"

    def alone(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {head if name == wte else name: array for name, array in arrays.items()}

    def twice(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return arrays | {head: arrays[wte].copy()}

    def another(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return arrays | {head: arrays[wte] + 1}

    for number, change in enumerate((alone, twice)):
        folder = saved(tmp_path / str(number), model)
        change_weights(folder, change)
        assert_same_model(GPT.from_pretrained(folder), model)
        assert_same_packed(GPT.from_pretrained(folder, **how), make(**sizes(how, {})).pack(format_of(how)))
    change_weights(saved(tmp_path / "2", model), another)
    untied = make(**sizes(how, {"tie_word_embeddings": False}))
    untied.load_state_dict(model.state_dict() | {head: model.wte.weight.data + 1})
    for options, expected in (({}, untied), (how, None)):
        with pytest.warns(UserWarning, match=r"lm_head\.weight that differs from the token embedding"):
            found = GPT.from_pretrained(tmp_path / "2", **options)
        if expected is not None:
            assert_same_model(found, expected)
        else:
            assert_same_packed(found, untied.pack(format_of(how)))


def test_an_untied_head_that_is_the_same_is_a_parameter_of_its_own(tmp_path: Path) -> None:
    saved(tmp_path)
    change_json(tmp_path / "config.json", tie_word_embeddings=False)
    with pytest.raises(
        CheckpointError, match=r"lack 'lm_head\.weight', which is required because config.json says tie_word"
    ):
        GPT.from_pretrained(tmp_path)
    change_weights(tmp_path, lambda arrays: arrays | {"lm_head.weight": arrays["transformer.wte.weight"].copy()})
    untied = make(tie_word_embeddings=False)
    untied.load_state_dict(make().state_dict() | {"lm_head.weight": make().wte.weight.data})
    assert_same_model(GPT.from_pretrained(tmp_path), untied)
    change_weights(tmp_path, lambda arrays: {k: v for k, v in arrays.items() if "wte" not in k})
    with pytest.raises(CheckpointError, match=r"lack 'wte\.weight'"):
        GPT.from_pretrained(tmp_path)


@every_format
@pytest.mark.parametrize("name", ["transformer.h.1.attn.c_attn.weight", "transformer.wte.weight"])
def test_what_is_not_finite_is_named(how: dict[str, str], name: str, tmp_path: Path) -> None:
    def ruined(arrays: dict[str, np.ndarray]) -> None:
        arrays[name][1, 2] = np.nan

    change_weights(saved(tmp_path, make(**sizes(how, {}))), ruined)
    with pytest.raises(RangeError, match=f"{name.removeprefix('transformer.')} hold nan or inf"):
        GPT.from_pretrained(tmp_path, **how)


class Cautious(GPT):
    """A class that works on its weights while it is made: they must have memory of their own then."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for parameter in self.parameters():
            parameter.data[...] = 0


class Wider(GPT):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.extra = nn.Parameter(np.ones(3, np.float32))


class Scaled(nn.Linear):
    def forward(self, x: Any) -> Any:
        return super().forward(x) * 2.0


class Scaling(GPT):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.h[0].mlp.c_fc.__class__ = Scaled


@every_format
def test_subclasses_are_loaded_and_packed_or_refused_by_name(how: dict[str, str], tmp_path: Path) -> None:
    model = make(**sizes(how, {}))
    saved(tmp_path, model)
    plain = model.eval()(IDX).data
    assert np.abs(Scaling.from_pretrained(tmp_path)(IDX).data - plain).max() > 0.01
    found = Cautious.from_pretrained(tmp_path, **how)
    assert type(found) is Cautious
    assert_same_packed(found, model.pack(format_of(how)))
    with pytest.raises(CheckpointError, match="lack 'extra', which a Wider of this configuration has"):
        Wider.from_pretrained(tmp_path, **how)
    with pytest.raises(UsageError, match=r"Scaling.pack: h\.0\.mlp\.c_fc is a Scaled"):
        Scaling.from_pretrained(tmp_path, **how)


def test_a_run_of_other_weights_is_one_sentence(tmp_path: Path) -> None:
    for number, (change, words) in enumerate(
        (
            (lambda arrays: arrays.pop("wpe.weight"), "lack 'wpe.weight', which a GPT of this configuration has"),
            (
                lambda arrays: arrays.update(more=np.zeros(2, "f4")),
                "have 'more', which a GPT of this configuration lacks",
            ),
            (lambda arrays: arrays.update({"ln_f.bias": np.zeros(2, "f4")}), r"'ln_f.bias' of shape \(2,\)"),
        )
    ):
        folder, model = tmp_path / str(number), make()
        folder.mkdir()
        CharTokenizer.from_text("abcdefghijk").save(folder)
        arrays = dict(model.state_dict())
        change(arrays)
        state = {"step": 1, "model_config": model.config.to_dict()}
        CheckpointFolder(folder).save(Checkpoint(arrays, {}, state), best=True)
        with pytest.raises(CheckpointError, match=f"the best checkpoint in .* is not a valid model: .*{words}"):
            GPT.from_pretrained(folder)


def test_a_run_that_a_format_cannot_hold_is_not_called_damaged(tmp_path: Path) -> None:
    run(tmp_path, make())
    with pytest.raises(
        UsageError, match=r"^GPT.pack: int4 packs 32 terms of a sum together, but h\.0\.attn\.c_attn has"
    ):
        GPT.from_pretrained(tmp_path, quantize="int4")
    with pytest.raises(UsageError, match=r"^Scaling.pack: h\.0\.mlp\.c_fc is a Scaled"):
        Scaling.from_pretrained(tmp_path, quantize="int8")


def test_names_of_newer_configurations(tmp_path: Path) -> None:
    saved(tmp_path)
    new = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 12, "max_position_embeddings": 8}
    old = dict.fromkeys(("n_layer", "n_head", "n_embd", "n_positions"), ...)
    change_json(tmp_path / "config.json", **new)  # both, of one meaning
    assert_same_model(GPT.from_pretrained(tmp_path), make())
    change_json(tmp_path / "config.json", **old)
    assert_same_model(GPT.from_pretrained(tmp_path), make())
    change_json(tmp_path / "config.json", hidden_size=...)
    with pytest.raises(CheckpointError, match="lacks n_embd"):
        GPT.from_pretrained(tmp_path)


def test_weights_are_read_where_they_shall_stay(tmp_path: Path) -> None:
    """Without packing there is no copy either."""
    model = GPT(GPTConfig(vocab_size=11, block_size=16, n_layer=4, n_head=4, n_embd=128))
    size = sum(parameter.data.nbytes for parameter in model.parameters())
    saved(tmp_path, model)
    assert (tmp_path / WEIGHTS).exists()
    tracemalloc.start()
    try:
        found = GPT.from_pretrained(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.num_parameters() == tg.GPT.num_parameters(model)
    assert peak < size * 1.3
