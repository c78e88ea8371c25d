"""A run that starts from a model, and the model that it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt
from tests.cli.helpers import assert_one_sentence, copy_of
from tests.training.helpers import OPTIONS, QUICK, TRAIN, VALIDATION, assert_same_outcome, make_trainer
from tinygpt import interop
from tinygpt.data import open_tokens, split
from tinygpt.errors import UsageError
from tinygpt.gpt import GPT, GPTConfig
from tinygpt.interop.loading import is_run
from tinygpt.tokenizers import CharTokenizer
from tinygpt.training import Trainer, TrainingConfig, evaluate, read_metrics, start_from

MORE = ["--steps=8", "--batch-size=3", "--warmup-steps=2", "--eval-every=4", "--eval-batches=0", "--log-every=2",
        "--validation-fraction=0.5"]  # fmt: skip
MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors"}

pytestmark = pytest.mark.usefixtures("without_picture")


# The model ------------------------------------------------------------------------------------------


def test_a_start_is_the_model_with_its_tokenizer(model: Path) -> None:
    start = start_from(str(model))
    loaded, tokenizer = interop.load(model)
    assert start.tokenizer == tokenizer
    assert start.model.training
    ids = tokenizer.encode("To be")[None]
    np.testing.assert_array_equal(start.model.eval()(ids).data, loaded(ids).data)


def test_a_shorter_block_keeps_the_first_positions(model: Path) -> None:
    start, (loaded, tokenizer) = start_from(str(model), block_size=4), interop.load(model)
    assert start.model.config.block_size == 4
    ids = tokenizer.encode("To b")[None]
    np.testing.assert_array_equal(start.model.eval()(ids).data, loaded(ids).data)
    with pytest.raises(UsageError, match=r"has a block of 8 tokens.*block_size can be shorter, not 9"):
        start_from(str(model), block_size=9)


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_are_at_the_mean_of_the_old(model: Path, tmp_path: Path, tied: bool) -> None:
    loaded, tokenizer = interop.load(model)
    if not tied:
        config = GPTConfig.from_dict(loaded.config.to_dict() | {"tie_word_embeddings": False})
        loaded = GPT(config, seed=1).eval()
    loaded.save_pretrained(tmp_path, tokenizer=tokenizer)
    start, old = start_from(str(tmp_path), add_tokens=["é", "ü"]), tokenizer.vocab_size
    assert start.tokenizer.encode("éü").tolist() == [old, old + 1]
    assert start.model.config.vocab_size == old + 2
    for table, before in ((start.model.wte, loaded.wte), (start.model.output_embedding, loaded.output_embedding)):
        np.testing.assert_array_equal(table.weight.data[:old], before.weight.data)
        for row in (old, old + 1):
            np.testing.assert_allclose(table.weight.data[row], before.weight.data.mean(axis=0), rtol=1e-6, atol=1e-9)
    ids = tokenizer.encode("To be")[None]
    np.testing.assert_allclose(start.model.eval()(ids).data[..., :old], loaded(ids).data, rtol=1e-5, atol=1e-6)


def test_spare_rows_of_a_padded_vocabulary_are_used_first(model: Path, tmp_path: Path) -> None:
    loaded, tokenizer = interop.load(model)
    old = tokenizer.vocab_size
    padded = GPT(GPTConfig.from_dict(loaded.config.to_dict() | {"vocab_size": old + 3}), seed=2)
    padded.save_pretrained(tmp_path, tokenizer=tokenizer)
    start = start_from(str(tmp_path), add_tokens=["é"])
    assert start.model.config.vocab_size == old + 3
    rows, before = start.model.wte.weight.data, padded.wte.weight.data
    np.testing.assert_allclose(rows[old], before[:old].mean(axis=0), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(rows[old + 1 :], before[old + 1 :])
    assert start_from(str(tmp_path), add_tokens=list("éüöä")).model.config.vocab_size == old + 4


def test_tokens_that_can_t_be_added(model: Path, tmp_path: Path) -> None:
    for tokens, words in ((["o"], "'o' is in the vocabulary already"), (["no"], "single characters, so 'no'")):
        with pytest.raises(UsageError, match=words):
            start_from(str(model), add_tokens=tokens)
    tokenizer = tinygpt.tokenizers.ByteTokenizer()
    with pytest.raises(UsageError, match="of type byte has a fixed vocabulary, so 'no' can't be added"):
        tokenizer.with_tokens(["no"])


def test_tokens_added_to_bpe_are_one_id_each(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    old = tinygpt.tokenizers.BPETokenizer.train("the end of the beginning " * 20, 270)
    new = old.with_tokens(["<gene>", "of the"])
    text = "end of the <gene>the"
    ids = new.encode(text)
    assert {old.vocab_size, old.vocab_size + 1} <= set(ids.tolist())
    assert new.decode(ids) == text
    assert new.decode(ids, skip_special_tokens=True) == text
    np.testing.assert_array_equal(new.encode("beginning"), old.encode("beginning"))
    new.save(tmp_path)
    assert tinygpt.tokenizers.load(tmp_path) == new
    for token, words in (("the", "is in the vocabulary already"), ("<gene>", "already"), ("", "is empty")):
        with pytest.raises(UsageError, match=words):
            new.with_tokens([token])


# The command line -----------------------------------------------------------------------------------


def test_the_first_evaluation_is_that_of_the_model(run: Any, model: Path, more: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    answer = run("train", f"--init-from={model}", *MORE, f"--data={more}", f"--out={folder}")
    assert answer.code == 0, answer.err
    assert f"From:  the model {model}" in answer.out
    first = next(read_metrics(folder / "metrics.jsonl"))
    validation = split(open_tokens(folder / "tokens.npy"), 0.5)[1]
    loaded, _ = interop.load(model)
    assert first == {"step": 0, "validation_loss": evaluate(loaded, validation, 3)}
    # `tinygpt eval` of the same text says the same
    (tmp_path / "validation.txt").write_text(interop.load(model)[1].decode(validation), encoding="utf-8")
    said = run("eval", f"--model={model}", f"--data={tmp_path / 'validation.txt'}", "--batch-size=3").out
    assert said.startswith(f"loss {first['validation_loss']:.4f} nats per token over {len(validation) - 1} tokens")
    lr = [record["lr"] for record in read_metrics(folder / "metrics.jsonl") if "lr" in record]
    assert max(lr) <= 1e-4  # a tenth of the preset's


@pytest.mark.slow
def test_such_a_run_goes_on_bit_for_bit(run: Any, model: Path, more: Path, tmp_path: Path) -> None:
    command = [
        "train",
        f"--init-from={model}",
        *MORE,
        "--dropout=0.2",
        "--freeze=wpe",
        "--add-token=é",
        f"--data={more}",
    ]
    assert run(*command, f"--out={tmp_path / 'whole'}").code == 0
    assert run(*command, f"--out={tmp_path / 'parts'}", "--steps=4", "--decay-steps=8").code == 0
    assert run("train", "--resume", f"--out={tmp_path / 'parts'}", "--steps=8").code == 0
    parts, whole = (tinygpt.training.CheckpointFolder(tmp_path / name).load() for name in ("parts", "whole"))
    for name in whole.model:
        np.testing.assert_array_equal(parts.model[name], whole.model[name], err_msg=name)
    assert not any("wpe" in name for name in whole.optimizer)
    for name in MODEL_FILES:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--n-layer=3"], "with --init-from the model is that of .*: leave out --n-layer"),
        (["--no-bias"], "leave out --bias"),
        (["--tokenizer=byte"], "leave out --tokenizer"),
        (["--vocab-size=300"], "leave out --vocab-size"),
        (["--block-size=9"], "has a block of 8 tokens"),
        (["--add-token=o"], "'o' is in the vocabulary already"),
        (["--freeze=wte,h.1"], r"freeze: 'h\.1' matches none.*such as wte, wpe, h\.0-0, ln_f"),
        (["--resume"], "leave out --init-from and --add-token"),
    ],
)
def test_mistakes_are_one_sentence_and_touch_nothing(
    run: Any, model: Path, more: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    folder = copy_of(model, tmp_path / "older")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    command = ["train", f"--init-from={model}", *MORE, f"--data={more}", f"--out={folder}"]
    answer = run(*command, *options, *([] if "--resume" in options else ["--overwrite"]))
    assert_one_sentence(answer, words)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_text_with_unknown_characters(run: Any, model: Path, more: Path, tmp_path: Path) -> None:
    more.write_text(more.read_text(encoding="utf-8") + "é", encoding="utf-8")
    command = ["train", f"--init-from={model}", *MORE, f"--data={more}", f"--out={tmp_path / 'run'}"]
    assert_one_sentence(run(*command), "the character 'é' at position 1170 .*is not in the vocabulary.*--add-token é")
    assert run(*command, "--add-token=é").code == 0
    assert_one_sentence(run("train", *MORE, "--add-token=é", f"--data={more}"), "--init-from: give both, or neither")
    assert_one_sentence(run("train", "--init-from=no/such/thing", *MORE, f"--data={more}"), "no/such/thing")


# What a run leaves ----------------------------------------------------------------------------------


def exporting_trainer(folder: Path, **settings: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    made = GPT(GPTConfig(12, block_size=8, n_layer=1, n_head=2, n_embd=8), seed=7)
    config = TrainingConfig(**(QUICK | settings))
    return Trainer(made, TRAIN, VALIDATION, config, folder, tokenizer=CharTokenizer("abcdefghijk"))


def test_a_trainer_with_a_tokenizer_leaves_a_model(tmp_path: Path, run: Any) -> None:
    trainer = exporting_trainer(tmp_path)
    trainer.run()
    assert {path.name for path in tmp_path.iterdir()} >= MODEL_FILES | {"tokenizer.tinygpt.json"}
    trainer.load_best()
    assert is_run(tmp_path)
    loaded, tokenizer = interop.load(tmp_path)  # the vocabulary may be larger than the tokenizer's
    ids = tokenizer.encode("abc")[None]
    np.testing.assert_array_equal(loaded(ids).data, trainer.model.eval()(ids).data)
    assert run("sample", f"--model={tmp_path}", "--prompt=abc", "--max-new-tokens=4").code == 0
    assert run("convert", str(tmp_path), str(tmp_path / "converted")).code == 0
    for folder in (tmp_path / "converted", exported(tmp_path, tmp_path / "exported")):
        assert not is_run(folder)
        plain, again = interop.load(folder)
        assert again == tokenizer
        np.testing.assert_array_equal(plain(ids).data, loaded(ids).data)


def exported(folder: Path, to: Path) -> Path:
    """Only what other programs read."""
    to.mkdir()
    for name in MODEL_FILES | {"tokenizer.tinygpt.json"}:
        (to / name).write_bytes((folder / name).read_bytes())
    return to


def test_it_is_a_model_from_the_first_checkpoint_on(tmp_path: Path) -> None:
    trainer = exporting_trainer(tmp_path)
    seen = []
    trainer.callbacks.append(lambda record: seen.append(interop.load(tmp_path)[1].vocab_size))
    trainer.run()
    assert set(seen) == {11}


@pytest.mark.slow
def test_a_resumed_run_replaces_the_model_that_it_left(tmp_path: Path) -> None:
    exporting_trainer(tmp_path / "whole").run()
    exporting_trainer(tmp_path / "parts", steps=10, decay_steps=20).run()
    before = (tmp_path / "parts" / "model.safetensors").read_bytes()
    again = exporting_trainer(tmp_path / "parts")
    again.resume()
    again.run()
    after = (tmp_path / "parts" / "model.safetensors").read_bytes()
    assert after == (tmp_path / "whole" / "model.safetensors").read_bytes() != before


def test_a_foreign_model_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"files that no run has written.*model\.safetensors"):
        exporting_trainer(tmp_path).run()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    make_trainer(tmp_path).run()  # without a tokenizer it writes no such file


def test_a_vocabulary_that_is_too_small(tmp_path: Path) -> None:
    made = GPT(GPTConfig(11, block_size=8, n_layer=1, n_head=2, n_embd=8))
    with pytest.raises(UsageError, match="has 12 tokens, but the model has only 11: they do not belong together"):
        Trainer(made, TRAIN, VALIDATION, TrainingConfig(), tmp_path, tokenizer=CharTokenizer("abcdefghijkl"))


def test_a_model_that_others_can_t_load_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Scaled(tinygpt.nn.Embedding):
        def forward(self, ids: Any) -> Any:
            return super().forward(ids) * 2.0

    trainer = exporting_trainer(tmp_path)
    trainer.model.wte.__class__ = Scaled
    trainer.run()
    assert "only tinygpt can load the model of this run" in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.slow
def test_overwriting_such_a_run_removes_its_model(run: Any, model: Path, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run("train", f"--init-from={model}", *MORE, f"--data={text}", f"--out={folder}").code == 0
    assert {path.name for path in folder.iterdir()} >= MODEL_FILES
    assert run("train", *OPTIONS, f"--data={text}", f"--out={folder}", "--overwrite").code == 0
    assert not {path.name for path in folder.iterdir()} & MODEL_FILES
    assert "model.safetensors" not in json.loads((folder / "tinygpt-run.json").read_text())["files"]
    assert_same_outcome(folder, folder)
