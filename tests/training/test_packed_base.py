"""A run that trains an adapter on packed weights: its losses, its checkpoints, how it resumes, what it refuses."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import QUICK, SHAPE, TRAIN, VALIDATION, assert_same_arrays
from tinygpt import GPTForSequenceClassification, interop, nn
from tinygpt.errors import CheckpointError, UsageError
from tinygpt.gpt import GPT, GPTConfig
from tinygpt.nn.lora import lora_layers, lora_of
from tinygpt.ops.packed import unpack
from tinygpt.tokenizers import ByteTokenizer, CharTokenizer
from tinygpt.training import CheckpointFolder, Trainer, TrainingConfig, read_metrics

FORMATS = ("int8", "int4", "bfloat16")
RUN = ["--steps=6", "--batch-size=4", "--lr=0.02", "--warmup-steps=1", "--eval-every=3", "--checkpoint-every=3",
       "--log-every=1", "--lora-rank=2", "--lora-targets=c_attn,c_fc", "--lora-dropout=0.1"]  # fmt: skip

pytestmark = pytest.mark.usefixtures("without_picture")


def shape(format: str) -> dict[str, Any]:
    """int4 packs 32 terms of a sum together."""
    return SHAPE | {"n_embd": 32 if format == "int4" else SHAPE["n_embd"]}


def packed(format: str, **lora: Any) -> GPT:
    model = GPT(GPTConfig(vocab_size=11, **shape(format)), seed=7).pack(format)
    return nn.add_lora(model, **{"rank": 2, "alpha": 8, "targets": ("c_attn", "c_proj")} | lora)


def twin_of(model: GPT) -> GPT:
    """A model of the float32 weights that the packed ones stand for, with the same adapter."""
    twin = nn.add_lora(GPT(GPTConfig(vocab_size=11, **shape(model.packed)), seed=7), **lora_of(model).to_dict())
    packed_layers, plain = dict(model.named_modules()), dict(twin.named_modules())
    for path, layer in packed_layers.items():
        if hasattr(layer, "matrix") and layer.packed_size():
            plain[path].weight.data[...] = unpack(layer.matrix, axis=1 if path == "wte" else 0)
    return twin


def trainer_of(folder: Path, model: GPT, **settings: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    config = TrainingConfig(**(QUICK | {"log_every": 1} | settings))
    return Trainer(model, TRAIN, VALIDATION, config, folder, tokenizer=CharTokenizer("abcdefghijk"))


def losses(folder: Path, name: str) -> np.ndarray:
    return np.array([record[name] for record in read_metrics(folder / "metrics.jsonl") if name in record])


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_the_losses_are_those_of_the_unpacked_weights(format: str, tmp_path: Path) -> None:
    """With SGD: Adam gives a gradient near zero a whole step, in the direction of its rounding error."""
    model = packed(format)
    twin = twin_of(model)
    trainer_of(tmp_path / "packed", model, lr=1.0, optimizer="sgd").run()
    trainer_of(tmp_path / "twin", twin, lr=1.0, optimizer="sgd").run()
    for name in ("loss", "validation_loss"):
        found, expected = (losses(tmp_path / folder, name) for folder in ("packed", "twin"))
        np.testing.assert_allclose(found, expected, rtol=2e-5)
        assert np.ptp(expected) > 1e-3  # it learns: an update that is lost would be seen
    for path, layer in lora_layers(model).items():
        assert np.abs(layer.lora_B.data).max() > 0.01, path


def test_a_checkpoint_holds_the_adapter_alone(tmp_path: Path) -> None:
    model = packed("int8")
    trainer_of(tmp_path, model).run()
    checkpoint = CheckpointFolder(tmp_path).load()
    assert len(checkpoint.model) == 2 * len(lora_layers(model))
    assert all(name.endswith(("lora_A", "lora_B")) for name in checkpoint.model)
    assert not (tmp_path / "model.safetensors").exists()
    assert checkpoint.state["packed_base"]["format"] == "int8"


@pytest.mark.parametrize("stop", [7, 10])
def test_a_run_goes_on_bit_for_bit(tmp_path: Path, stop: int) -> None:
    trainer_of(tmp_path / "whole", packed("int8", dropout=0.5)).run()
    trainer_of(tmp_path / "parts", packed("int8", dropout=0.5), steps=stop, decay_steps=QUICK["steps"]).run()
    again = trainer_of(tmp_path / "parts", packed("int8", dropout=0.5, seed=5), decay_steps=QUICK["steps"])
    again.resume()
    again.run()
    assert_same_arrays(*(CheckpointFolder(tmp_path / name).load() for name in ("parts", "whole")))
    step = again.load_best()
    assert step == CheckpointFolder(tmp_path / "parts").entry("best")["step"]


def test_another_base_does_not_go_on(tmp_path: Path) -> None:
    trainer_of(tmp_path, packed("int8"), steps=4).run()
    other = packed("int8")
    other.h[0].mlp.c_fc.matrix.data[0, 0] ^= 1
    with pytest.raises(CheckpointError, match="was trained on other weights than its base has now"):
        trainer_of(tmp_path, other).resume()
    with pytest.raises(CheckpointError, match="'int8' there and 'bfloat16' here"):
        trainer_of(tmp_path, packed("bfloat16")).resume()
    with pytest.raises(CheckpointError, match="'int8' there and None here"):
        trainer_of(tmp_path, twin_of(packed("int8"))).resume()


def test_a_packed_model_without_an_adapter_is_not_trained(tmp_path: Path) -> None:
    model = GPT(GPTConfig(vocab_size=11, **SHAPE)).pack("int8")
    with pytest.raises(UsageError, match=r"^Trainer: a model packed into int8 can be trained through an adapter only"):
        trainer_of(tmp_path, model)


def test_a_base_without_a_name_is_said(tmp_path: Path) -> None:
    trainer_of(tmp_path, packed("int8"), steps=4).run()
    with pytest.raises(CheckpointError, match="holds an adapter without its base"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("facts", [{"format": "int5", "sha256": ""}, {"format": "int8"}, ["int8"], {}])
def test_a_forged_base(facts: Any, tmp_path: Path) -> None:
    trainer_of(tmp_path, packed("int8"), steps=4).run()
    checkpoint = CheckpointFolder(tmp_path).load()
    checkpoint.state["packed_base"] = facts
    CheckpointFolder(tmp_path).save(checkpoint, best=True)
    with pytest.raises(CheckpointError, match="is damaged: its packed_base names no format"):
        GPT.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is damaged: its packed_base names no format"):
        trainer_of(tmp_path, packed("int8")).resume()


@pytest.mark.slow
def test_it_takes_less_memory(tmp_path: Path) -> None:
    """What loading and training allocate at most, base included, on a model whose matrices count."""
    config = GPTConfig(vocab_size=300, block_size=8, n_layer=2, n_head=2, n_embd=256)
    GPT(config).save_pretrained(tmp_path / "base")
    peaks = {}
    for options in ({}, {"quantize": "int8"}):
        tracemalloc.start()
        model = nn.add_lora(GPT.from_pretrained(tmp_path / "base", **options))
        trainer = trainer_of(tmp_path / f"run{len(peaks)}", model, steps=2, batch_size=1)
        trainer.run()
        peaks[bool(options)] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        del model, trainer
    assert peaks[True] < 0.6 * peaks[False], peaks


# The command line -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    config = GPTConfig(256, block_size=24, n_layer=2, n_head=2, n_embd=16, dropout=0.0, tie_word_embeddings=False)
    GPT(config, seed=1).save_pretrained(folder, tokenizer=ByteTokenizer())
    return folder


def data_of(kind: str, path: Path) -> Path:
    rows = [{"prompt": f"{i} + {i} =", "completion": f" {2 * i}"} for i in range(20)]
    if kind == "classify":
        rows = [{"text": f"{'good' if i % 2 else 'bad'} {i}", "label": "pos" if i % 2 else "neg"} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "classify"])
def test_finetune_resume_and_use(
    kind: str, run: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(kind, tmp_path / "rows.jsonl")
    monkeypatch.chdir(base.parent)  # the base is given by a relative path, and used from elsewhere
    command = ["finetune", f"--model={base.name}", f"--data={data}", *RUN, "--quantize=int8", "--block-size=20"]
    answer = run(*command, f"--out={tmp_path / 'whole'}")
    assert answer.code == 0, answer.err
    assert run(*command, f"--out={tmp_path / 'parts'}", "--steps=3", "--decay-steps=6").code == 0
    monkeypatch.chdir(tmp_path)
    answer = run("finetune", "--resume", f"--out={tmp_path / 'parts'}", "--steps=6")
    assert answer.code == 0, answer.err
    whole, parts = (CheckpointFolder(tmp_path / name).load() for name in ("whole", "parts"))
    for name, array in {**whole.model, **whole.optimizer}.items():
        assert {**parts.model, **parts.optimizer}[name].tobytes() == array.tobytes(), name
    said = run("eval", f"--model={tmp_path / 'whole'}", f"--data={data}")
    assert said.code == 0, said.err
    found = interop.load(tmp_path / "whole")[0] if kind == "sft" else GPTForSequenceClassification.from_pretrained(
        tmp_path / "whole")  # fmt: skip
    assert found.packed == "int8"
    assert found.config.block_size == 20


def test_activations_are_rounded_in_the_format_of_the_base(run: Any, base: Path, tmp_path: Path) -> None:
    data, folder, ids = data_of("sft", tmp_path / "rows.jsonl"), tmp_path / "run", np.arange(12)[None]
    command = ["finetune", f"--model={base}", f"--data={data}", *RUN, "--steps=1", "--quantize=int8"]
    assert run(*command, f"--out={folder}").code == 0
    found, expected, other = (
        GPT.from_pretrained(folder, **how)(ids).data.tobytes()
        for how in ({"activations": "int8"}, {"quantize": "int8", "activations": "int8"}, {})
    )
    assert found == expected
    assert found != other
    trainer_of(tmp_path / "plain", GPT(GPTConfig(vocab_size=11, **SHAPE)), steps=1).run()
    with pytest.raises(UsageError, match=r"^from_pretrained: activations='int8' is .* but this model is not packed$"):
        GPT.from_pretrained(tmp_path / "plain", activations="int8")


def test_the_adapter_goes_elsewhere(run: Any, base: Path, tmp_path: Path) -> None:
    """Converted, merged into the base's own weights, and read with other weights than it was trained on."""
    data, folder = data_of("sft", tmp_path / "rows.jsonl"), tmp_path / "run"
    assert run("finetune", f"--model={base}", f"--data={data}", *RUN, "--quantize=int8", f"--out={folder}").code == 0
    ids = np.arange(12)[None]
    expected = GPT.from_pretrained(folder, dtype="float64")(ids).data
    assert run("convert", folder, tmp_path / "merged", "--merge-lora").code == 0
    merged = GPT.from_pretrained(tmp_path / "merged")
    assert lora_of(merged) is None
    np.testing.assert_allclose(merged(ids).data, expected, atol=1e-5)
    assert run("convert", folder, tmp_path / "adapter").code == 0
    adapter = GPT.from_pretrained(tmp_path / "adapter", quantize="int8")
    assert adapter(ids).data.tobytes() == GPT.from_pretrained(folder)(ids).data.tobytes()


def test_a_base_that_changed_or_is_gone(run: Any, base: Path, tmp_path: Path) -> None:
    data, folder, own = data_of("sft", tmp_path / "rows.jsonl"), tmp_path / "run", tmp_path / "own"
    GPT.from_pretrained(base).save_pretrained(own, tokenizer=ByteTokenizer())
    assert run("finetune", f"--model={own}", f"--data={data}", *RUN, "--quantize=int8", f"--out={folder}").code == 0
    GPT(GPT.from_pretrained(base).config, seed=2).save_pretrained(own, tokenizer=ByteTokenizer())
    with pytest.raises(
        CheckpointError, match=r"^the best checkpoint in [^ ]* was trained on other weights than its base"
    ):
        GPT.from_pretrained(folder)
    command = ["finetune", "--resume", f"--out={folder}", "--steps=8"]
    assert_one_sentence(run(*command), "was trained on other weights than its base has now")
    GPT(GPTConfig(256, 24, 1, 2, 16), seed=2).save_pretrained(own, tokenizer=ByteTokenizer())
    with pytest.raises(CheckpointError, match="n_layer is 2 there and 1 here"):
        GPT.from_pretrained(folder)
    own.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"^the best checkpoint in [^ ]* needs its base, the model .*own"):
        GPT.from_pretrained(folder)
    assert_one_sentence(run(*command), "needs its base, the model .*own")


def test_mistakes_are_one_sentence(run: Any, base: Path, tmp_path: Path) -> None:
    data = data_of("sft", tmp_path / "rows.jsonl")
    command = ["finetune", f"--model={base}", f"--data={data}", "--quantize=int8", f"--out={tmp_path / 'run'}"]
    assert_one_sentence(run(*command), "--quantize int8 keeps the model's weights as they are, so it needs an adapter")
    assert_one_sentence(run(*command, "--lora-rank=2", "--revision=old"), "finds its model by name, without --revision")
    assert not (tmp_path / "run").exists()
