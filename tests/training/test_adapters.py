"""A run that trains a LoRA adapter: it resumes bit for bit, and leaves an adapter and a whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import QUICK, SHAPE, TRAIN, VALIDATION, assert_same_arrays, assert_same_outcome
from tinygpt import interop, nn
from tinygpt.checkpoint import Checkpoint
from tinygpt.errors import CheckpointError
from tinygpt.gpt import GPT, GPTConfig
from tinygpt.memory import packed_bytes, parameter_count, require_memory
from tinygpt.nn.lora import lora_layers, lora_of
from tinygpt.tokenizers import CharTokenizer
from tinygpt.training import CheckpointFolder, Trainer, TrainingConfig, evaluate, read_metrics

MORE = ["--steps=8", "--batch-size=3", "--warmup-steps=2", "--eval-every=4", "--eval-batches=0", "--log-every=2",
        "--validation-fraction=0.5", "--lr=0.01"]  # fmt: skip
LORA = ["--lora-rank=2", "--lora-targets=c_attn, mlp.c_fc", "--lora-dropout=0.25", "--lora-alpha=4"]
MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors"}

pytestmark = pytest.mark.usefixtures("without_picture")


def adapted(**settings: Any) -> GPT:
    model = GPT(GPTConfig(vocab_size=11, **SHAPE), seed=7)
    return nn.add_lora(model, **{"rank": 2, "alpha": 8, "dropout": 0.5} | settings)


def folder_of(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def trainer_of(folder: Path, model: GPT, **settings: Any) -> Trainer:
    tokenizer = CharTokenizer("abcdefghijk")
    return Trainer(
        model, TRAIN, VALIDATION, TrainingConfig(**(QUICK | settings)), folder_of(folder), tokenizer=tokenizer
    )


# The trainer ----------------------------------------------------------------------------------------


def test_only_the_adapter_is_trained_and_has_an_optimizers_state(tmp_path: Path) -> None:
    model = adapted()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    trainer_of(tmp_path, model).run()
    checkpoint = CheckpointFolder(tmp_path).load()
    for name, array in before.items():
        assert np.array_equal(array, checkpoint.model[name]) == ("lora_" not in name), name
    trained = [name for name in before if "lora_" in name]
    assert len(trained) == 4
    kinds = ("exp_avg", "exp_avg_sq")
    assert len(checkpoint.optimizer) == len(kinds) * len(trained)
    assert all(name.endswith(("lora_A", "lora_B")) for name in checkpoint.optimizer)
    assert checkpoint.state["lora"] == lora_of(model).to_dict()


@pytest.mark.parametrize("stop", [7, 10])
def test_a_run_goes_on_bit_for_bit(tmp_path: Path, stop: int) -> None:
    trainer_of(tmp_path / "whole", adapted()).run()
    trainer_of(tmp_path / "parts", adapted(), steps=stop, decay_steps=QUICK["steps"]).run()
    again = trainer_of(tmp_path / "parts", adapted(seed=5), decay_steps=QUICK["steps"])
    again.resume()
    again.run()
    whole, parts = (CheckpointFolder(tmp_path / name).load() for name in ("whole", "parts"))
    assert_same_arrays(parts, whole)
    assert whole.state["generator"] == parts.state["generator"]


@pytest.mark.slow
def test_a_run_leaves_its_adapter_and_the_merged_model(tmp_path: Path) -> None:
    """The best weights, not the last: those are spoilt on the way."""
    model = adapted(dropout=0.0, targets="all-linear")
    tokens = np.tile(np.arange(11, dtype=np.uint16), 40)  # what an untrained model can learn through its adapter

    def spoil(record: dict[str, Any]) -> None:
        if record["step"] == 10:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = 50 * parameter.data

    trainer = Trainer(
        model, tokens, tokens, TrainingConfig(**(QUICK | {"lr": 0.02})), folder_of(tmp_path / "run"),
        tokenizer=CharTokenizer("abcdefghijk"), callbacks=[spoil],
    )  # fmt: skip
    trainer.run()
    assert 0 < trainer.load_best() < QUICK["steps"]
    ids = VALIDATION[None, :8].astype(np.int64)
    expected = model.eval()(ids).data
    found, tokenizer = interop.load(tmp_path / "run")
    assert lora_of(found) == lora_of(model)
    assert found(ids).data.tobytes() == expected.tobytes()
    assert tokenizer.vocab_size == 11
    assert found.source is None  # the base had no name
    for name in MODEL_FILES:
        (folder_of(tmp_path / "left") / name).write_bytes((tmp_path / "run" / name).read_bytes())
    merged = GPT.from_pretrained(tmp_path / "left")
    assert lora_of(merged) is None
    assert merged(ids).data.tobytes() == nn.merge_lora(model)(ids).data.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"dtype": "bfloat16"}, {"quantize": "int8"}, {"dtype": "float64"}], ids=str)
def test_a_run_is_loaded_in_other_formats(how: dict[str, str], tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, adapted())
    trainer.run()
    trainer.load_best()
    expected = trainer.model.eval()(TRAIN[None, :8].astype(np.int64)).data
    found = GPT.from_pretrained(tmp_path, **how)
    assert len(lora_layers(found)) == 2
    bound = 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(found(TRAIN[None, :8].astype(np.int64)).data, expected, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: adapted(rank=3), "rank is 2 there and 3 here"),
        (lambda: adapted(targets=("c_fc",)), r"targets is \['c_attn'\] there and \['c_fc'\] here"),
        (lambda: nn.merge_lora(adapted()), "rank is 2 there and None here"),
    ],
)
def test_another_adapter_does_not_go_on(model: Any, words: str, tmp_path: Path) -> None:
    trainer_of(tmp_path, adapted(), steps=4).run()
    with pytest.raises(CheckpointError, match=rf"with its LoRA adapter, has a different configuration: .*{words}"):
        trainer_of(tmp_path, model()).resume()


def forge(folder: Path, **changes: Any) -> None:
    checkpoint = CheckpointFolder(folder).load()
    checkpoint.state["lora"] |= changes
    CheckpointFolder(folder).save(Checkpoint(checkpoint.model, checkpoint.optimizer, checkpoint.state), best=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 10**12}, "no LoRA adapter of rank 1000000000000"),
        ({"rank": "2"}, "no valid lora: .*rank must be"),
        ({"targets": ["c_fc"]}, "weights in .* (lack|have)"),
        ({"more": 1}, "there is no setting 'more'"),
    ],
)
def test_a_forged_adapter(changes: Any, words: str, tmp_path: Path, run: Any) -> None:
    trainer_of(tmp_path, adapted(), steps=4).run()
    forge(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=words):
        GPT.from_pretrained(tmp_path)


def test_memory_for_frozen_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gradients and no moments: a quarter for the weights."""
    config = GPTConfig(vocab_size=50257, block_size=8, n_layer=12, n_head=12, n_embd=768)
    monkeypatch.setattr("tinygpt.memory.memory_limit", lambda backend: 10**9)
    require_memory(config, 1, frozen=True)
    with pytest.raises(Exception, match="with their gradients and AdamW's moments"):
        require_memory(config, 1)


@pytest.mark.parametrize(("format", "share"), [("int8", 0.25), ("bfloat16", 0.5), ("int4", 0.164)])
def test_memory_for_packed_weights(format: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GPTConfig(vocab_size=50257, block_size=8, n_layer=12, n_head=12, n_embd=768)
    whole = 4 * parameter_count(config)
    assert packed_bytes(config, format) == pytest.approx(share * whole, rel=0.01)
    small = GPTConfig(vocab_size=300, block_size=8, n_layer=2, n_head=2, n_embd=64)
    model = GPT(small, seed=0).pack(format)
    there = sum(p.data.nbytes for p in model.parameters()) + sum(
        m.matrix.data.nbytes for m in model.modules() if hasattr(m, "matrix") and m.packed_size()
    )
    assert packed_bytes(small, format) == there
    monkeypatch.setattr("tinygpt.memory.memory_limit", lambda backend: whole * 2 // 3)
    require_memory(config, 1, frozen=True, packed=format)
    with pytest.raises(Exception, match="parameters, which take"):
        require_memory(config, 1, frozen=True)


# The command line -----------------------------------------------------------------------------------


def test_train_sample_eval_and_convert(run: Any, model: Path, more: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    answer = run("train", f"--init-from={model}", *MORE, *LORA, f"--data={more}", f"--out={folder}")
    assert answer.code == 0, answer.err
    assert "LoRA:  rank 2, alpha 4, dropout 0.25, on c_attn, mlp.c_fc: 144 parameters are trained" in answer.out
    losses = [record["validation_loss"] for record in read_metrics(folder / "metrics.jsonl") if "lr" not in record]
    assert losses[-1] < losses[0]
    found, _ = interop.load(folder)
    assert len(lora_layers(found)) == 2
    assert run("sample", f"--model={folder}", "--prompt=the", "--max-new-tokens=5", "--greedy").code == 0
    said = [run("eval", f"--model={folder}", f"--data={more}").out]

    answer = run("convert", folder, tmp_path / "merged", "--merge-lora")
    assert answer.code == 0, answer.err
    assert "holds the model in float32" in answer.out
    answer = run("convert", folder, tmp_path / "adapter")
    assert answer.code == 0, answer.err
    assert "holds the LoRA adapter in float32" in answer.out
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == str(model)
    said += [run("eval", f"--model={tmp_path / name}", f"--data={more}").out for name in ("merged", "adapter")]
    assert len(set(said)) == 1, said
    assert_one_sentence(run("convert", model, tmp_path / "no", "--merge-lora"), "merge_lora: this model has no adapter")


@pytest.mark.slow
def test_the_command_goes_on_bit_for_bit(run: Any, model: Path, more: Path, tmp_path: Path) -> None:
    command = ["train", f"--init-from={model}", *MORE, *LORA, f"--data={more}"]
    assert run(*command, f"--out={tmp_path / 'whole'}").code == 0
    assert run(*command, f"--out={tmp_path / 'parts'}", "--steps=4", "--decay-steps=8").code == 0
    answer = run("train", "--resume", f"--out={tmp_path / 'parts'}", "--steps=8")
    assert answer.code == 0, answer.err
    whole, parts = (CheckpointFolder(tmp_path / name).load() for name in ("whole", "parts"))
    for name, array in {**whole.model, **whole.optimizer}.items():
        assert {**parts.model, **parts.optimizer}[name].tobytes() == array.tobytes(), name
    assert parts.state["base_model"] == whole.state["base_model"] == str(model)
    for name in MODEL_FILES:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lora-alpha=3"], "--lora-alpha is a setting of a LoRA adapter: add --lora-rank"),
        (["--lora-targets=c_fc"], "--lora-targets is a setting of a LoRA adapter"),
        (["--lora-rank=0"], "add_lora: rank must be"),
        (["--lora-rank=2", "--lora-targets=wte"], "add_lora: wte is a Embedding, but targets are linear layers"),
        (["--lora-rank=2", "--lora-targets=,"], "add_lora: targets must be names of layers"),
        (["--lora-rank=2", "--lora-dropout=1"], "add_lora: dropout must be"),
        (["--lora-rank=2", "--add-token=é"], "with --lora-rank all embeddings are frozen"),
    ],
)
def test_mistakes_are_one_sentence(
    run: Any, model: Path, more: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    command = ["train", f"--init-from={model}", *MORE, f"--data={more}", f"--out={tmp_path / 'run'}"]
    assert_one_sentence(run(*command, *options), words)
    assert not (tmp_path / "run").exists()


def test_where_an_adapter_is_out_of_place(run: Any, model: Path, more: Path, tmp_path: Path) -> None:
    assert_one_sentence(
        run("train", *MORE, "--lora-rank=2", f"--data={more}", f"--out={tmp_path / 'run'}"),
        "--lora-rank trains an adapter of the model in --init-from: give both, or neither",
    )
    assert_one_sentence(run("train", "--resume", f"--out={model}", "--lora-rank=2"), "leave out --lora-rank")


@pytest.mark.slow
def test_the_learning_rate_is_the_presets(run: Any, model: Path, more: Path, tmp_path: Path) -> None:
    rates = []
    for options in ([], ["--lora-rank=2"]):
        folder = tmp_path / f"run{len(rates)}"
        assert run("train", f"--init-from={model}", *MORE[:-1], *options, f"--data={more}", f"--out={folder}").code == 0
        rates.append(CheckpointFolder(folder).load().state["training_config"]["lr"])
    assert rates[1] == pytest.approx(10 * rates[0])


def test_evaluating_the_run_is_evaluating_its_best_weights(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, adapted())
    trainer.run()
    trainer.load_best()
    assert evaluate(GPT.from_pretrained(tmp_path), VALIDATION, 3) == evaluate(trainer.model, VALIDATION, 3)


@pytest.mark.slow
def test_two_runs_of_one_seed_are_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        trainer_of(tmp_path / name, adapted()).run()
    assert_same_outcome(tmp_path / "a", tmp_path / "b")
