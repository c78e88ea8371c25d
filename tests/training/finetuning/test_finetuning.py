"""`tinygpt finetune`: rows in, a model for the task out; and every mistake in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt
from tests.cli.helpers import assert_one_sentence, copy_of
from tests.training.helpers import OPTIONS
from tinygpt import interop
from tinygpt.data.dialogue import PRESETS
from tinygpt.data.examples import AnswerExamples, TextExamples, collate
from tinygpt.data.row_batches import RowBatches
from tinygpt.data.rows import Row
from tinygpt.gpt import GPT, GPTConfig
from tinygpt.tokenizers import ByteTokenizer
from tinygpt.training import CheckpointFolder, Trainer, TrainingConfig, mean_loss, read_metrics
from tinygpt.training.finetuning.task_options import TaskOptions
from tinygpt.training.finetuning.tasks import AnswerTask, TextTask

QUICK = ["--epochs=2", "--batch-size=4", "--lr=0.01", "--log-every=2"]

pytestmark = pytest.mark.usefixtures("without_picture")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A run of bytes, with a block of 32."""
    folder = tmp_path_factory.mktemp("base") / "run"
    with pytest.raises(SystemExit) as ended:
        tinygpt.cli.main(
            ["train", *OPTIONS, "--tokenizer=byte", "--block-size=32", f"--data={text}", f"--out={folder}"]
        )
    assert not ended.value.code
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def sums(count: int = 20) -> list[dict[str, Any]]:
    return [{"prompt": f"{i} + {i} =", "completion": f" {2 * i}"} for i in range(count)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "sums.jsonl", sums())


def model(dtype: str = "float64", **shape: Any) -> GPT:
    sizes = {"block_size": 24, "n_layer": 2, "n_head": 2, "n_embd": 8, "dropout": 0.0}
    return GPT(GPTConfig(256, **(sizes | shape)), seed=3, dtype=dtype)


# The objectives -------------------------------------------------------------------------------------


def examples_of(task: Any) -> list[Any]:
    texts = ["one", "a longer one", "two", "and one of twenty two", "no", "the last"]
    return [
        task.maker.make(Row({"text": words, "prompt": words, "completion": words[::-1]}, f"row {i}"))
        for i, words in enumerate(texts)
    ]


def task_of(name: str, gpt: GPT) -> Any:
    if name == "text":
        return TextTask(TaskOptions(("text",)), gpt, ByteTokenizer())
    return AnswerTask(TaskOptions(("prompt", "completion"), "lines", name), gpt, ByteTokenizer())


@pytest.mark.parametrize("name", ["text", "answer", "all"])
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 3e-6)])
def test_any_split_of_a_step_has_the_gradient_of_the_whole(tmp_path: Path, name: str, dtype: str, rtol: float) -> None:
    """Rows of different lengths with different numbers of targets, in batches of any size, evaluation included."""
    found = {}
    for batch_size, accumulation in ((6, 1), (3, 2), (2, 3), (1, 6), (1, 8)):
        gpt = model(dtype)
        task = task_of(name, gpt)
        config = TrainingConfig(batch_size=batch_size, gradient_accumulation=accumulation, eval_batches=0, seed=5)
        examples = examples_of(task)
        objective = task.objective(examples, examples, config)
        trainer = Trainer(gpt, None, None, config, tmp_path, objective=objective)
        assert trainer.batches.steps_per_epoch == 1  # type: ignore[attr-defined]
        loss, norm = trainer.accumulation.compute()
        evaluated = objective.evaluate(gpt, objective.validation)["validation_loss"]
        found[batch_size, accumulation] = (loss, norm, evaluated, [p.grad / accumulation for p in trainer.parameters])
    loss, norm, evaluated, gradients = found.pop((6, 1))
    assert evaluated == pytest.approx(loss, rel=rtol)
    largest = max(np.abs(gradient).max() for gradient in gradients)
    for other_loss, other_norm, other_evaluated, others in found.values():
        assert other_loss == pytest.approx(loss, rel=rtol)
        assert other_norm == pytest.approx(norm, rel=rtol * 10)
        assert other_evaluated == pytest.approx(evaluated, rel=rtol)
        for mine, theirs in zip(gradients, others, strict=True):
            np.testing.assert_allclose(theirs, mine, rtol=0, atol=rtol * largest)


def test_padding_changes_nothing() -> None:
    gpt = model()
    examples = examples_of(task_of("answer", gpt))
    whole = gpt.loss(*collate(examples)).item()
    parts = [(gpt.loss(*collate([example])).item(), int(example.learned[1:].sum())) for example in examples]
    assert whole == pytest.approx(sum(loss * n for loss, n in parts) / sum(n for _, n in parts), rel=1e-12)
    inputs, targets = collate(examples)
    other = np.where(np.arange(inputs.shape[1]) < [[len(e) - 1] for e in examples], inputs, 77)
    assert gpt.loss(other, targets).item() == whole


# The command line -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_to_answer_and_to_stop(run: Any, base: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{c}{d}", "answer": "<b>"} for c in "abc" for d in "xyz"]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    folder = tmp_path / "run"
    command = ["finetune", f"--model={base}", f"--data={data}", f"--out={folder}", "--steps=150", "--lr=0.02"]
    answer = run(*command, "--batch-size=6", "--eval-every=50", "--validation-fraction=0.3")
    assert answer.code == 0, answer.err
    assert "Task:  sft" in answer.out
    template = folder / "template.toml"
    said = run("sample", f"--model={folder}", f"--template={template}", "--prompt=bx", "--greedy")
    assert said.out == "User: bx\nAssistant: <b>\n"  # without an end-of-text token the template's stop is learned
    assert interop.load(folder)[0].generation_config["stop_strings"] == ["\nUser:"]
    said = run("sample", f"--model={folder}", "--prompt=User: cy\nAssistant:", "--greedy")
    assert said.out.endswith("Assistant: <b>\n")


def test_the_folder_is_a_model_with_its_template(run: Any, base: Path, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    answer = run("finetune", f"--model={base}", f"--data={rows}", f"--out={folder}", *QUICK, "--freeze=wte,wpe")
    assert answer.code == 0, answer.err
    assert "18 rows to train on;\n       2 of 20 rows are for validation" in answer.out
    assert f"chat --model {folder}" in answer.out
    assert f"--template {folder / 'template.toml'}" in answer.out
    for name in ("config.json", "model.safetensors", "generation_config.json", "tokenizer.tinygpt.json"):
        assert (folder / name).exists()
    assert "lines" in run("finetune", "--help").out
    assert (folder / "template.toml").read_text(encoding="utf-8") == PRESETS["lines"].to_toml()
    first = next(read_metrics(folder / "metrics.jsonl"))
    loaded, tokenizer = interop.load(base)
    maker = AnswerExamples(tokenizer, 32, None, ("prompt", "completion"), PRESETS["lines"])
    keys = [json.loads(line)["prompt"] for line in rows.read_text().splitlines()]
    _, validation = tinygpt.data.splitting.split_rows(keys, 0.1, 0)
    examples = [maker.make(Row(sums()[i], "")) for i in validation]
    assert first["validation_loss"] == pytest.approx(mean_loss(loaded, [collate(examples)]), rel=1e-6)
    assert run("convert", str(folder), str(tmp_path / "converted")).code == 0
    assert (tmp_path / "converted" / "template.toml").exists()


def test_a_run_goes_on_bit_for_bit(run: Any, base: Path, rows: Path, tmp_path: Path) -> None:
    command = ["finetune", f"--model={base}", f"--data={rows}", *QUICK, "--dropout=0.2", "--gradient-accumulation=2"]
    assert run(*command, f"--out={tmp_path / 'whole'}", "--epochs=4").code == 0
    assert run(*command, f"--out={tmp_path / 'parts'}", "--epochs=2", "--decay-steps=12", "--warmup-steps=1").code == 0
    assert run("finetune", "--resume", f"--out={tmp_path / 'parts'}", "--epochs=4").code == 0
    parts, whole = (CheckpointFolder(tmp_path / name).load() for name in ("parts", "whole"))
    assert parts.step == whole.step == 12
    for name in whole.model:
        np.testing.assert_array_equal(parts.model[name], whole.model[name], err_msg=name)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_texts_of_any_table(run: Any, base: Path, tmp_path: Path, kind: str) -> None:
    texts = ["one line", "another, longer one", "and a third", "the last"]
    path = tmp_path / f"texts.{kind}"
    if kind == "jsonl":
        write_rows(path, [{"text": text} for text in texts])
    else:
        path.write_text("text\n" + "".join(f'"{text}"\n' for text in texts), encoding="utf-8")
    answer = run("finetune", f"--model={base}", f"--data={path}", f"--out={tmp_path / 'run'}", *QUICK)
    assert answer.code == 0, answer.err
    assert "Task:  text, 3 rows to train on" in answer.out
    assert not (tmp_path / "run" / "template.toml").exists()


def test_what_is_cut_repeated_and_left_out_is_said(run: Any, base: Path, tmp_path: Path) -> None:
    lines = [*map(json.dumps, [*sums(6), *sums(2), {"prompt": "long", "completion": "x" * 99}]), "{", '{"prompt": "a"}']
    lines.append(json.dumps({"prompt": "x" * 99, "completion": "y"}))
    data, valid = (
        tmp_path / "rows.jsonl",
        write_rows(tmp_path / "valid.jsonl", [*sums(1), {"prompt": "?", "completion": "!"}]),
    )
    data.write_text("\n".join(lines), encoding="utf-8")
    command = ["finetune", f"--model={base}", f"--data={data}", f"--valid={valid}", f"--out={tmp_path / 'run'}", *QUICK]
    assert_one_sentence(run(*command), r"rows\.jsonl, line 10: this is not JSON")
    assert not (tmp_path / "run").exists()
    answer = run(*command, "--skip-bad-rows")
    assert answer.code == 0, answer.err
    assert "9 rows to train on" in answer.out
    assert f"3 rows of {data} were left out, such as {data}, line 10: this is not JSON" in answer.out
    assert f"1 of 9 rows of {data} were cut to the 32 tokens of the block" in answer.out
    assert f"2 of 9 rows of {data} are repeated" in answer.out
    assert "1 validation rows have a text or prompt that also occurs in the training rows" in answer.out


MISTAKES: list[tuple[list[str], Any, str]] = [
    ([], "{", r"line 1: this is not JSON"),
    ([], '{"prompt": "a", "completion": "b"}\n{"prompt": "a"}', r"line 2: the column 'completion' is missing"),
    ([], '{"question": "a"}', "fine-tuning needs the columns messages, or prompt and completion, or"),
    ([], "", "there are no rows in"),
    ([], '{"prompt": "a", "completion": "b"}', r"1 row with fewer than two different texts or prompts.*--valid FILE"),
    ([], '{"prompt": "a", "completion": "b"}\n' * 3, "3 rows with fewer than two different texts or prompts"),
    (
        [],
        '{"prompt": "' + "a" * 40 + '", "completion": "b"}',
        "line 1: nothing is left to learn from: the prompt takes",
    ),
    ([], '{"prompt": "a", "completion": 3}', "line 1: the column 'completion' is a number, not text"),
    (["--skip-bad-rows"], '{"prompt": "a", "completion": ""}', "there is no row in .* to learn from: .*line 1"),
    (["--task=text"], None, "the task text needs the columns text; there is 'prompt', 'completion'"),
    (["--template=raw"], None, "no end-of-text token.*--template lines"),
    (["--template=absent"], None, "there is no template 'absent': use one of plain, lines, play, chatml, raw"),
    (["--epochs=2", "--steps=3"], None, "give either --epochs or --steps"),
    (["--epochs=0"], None, "epochs must be above 0 and below 1,000,000, not 0"),
    (["--block-size=64"], None, "has a block of 32 tokens.*block_size can be shorter, not 64"),
    (["--freeze=lm_head"], None, "freeze: 'lm_head' matches none"),
    (["--freeze=*"], None, "all parameters of the model are frozen"),
    (["--lr=0"], None, "lr must be above 0"),
    (["--valid=absent.jsonl"], None, r"absent\.jsonl"),
    (["--add-token=xy"], None, "of type byte has a fixed vocabulary"),
]


@pytest.mark.parametrize(("options", "content", "words"), MISTAKES)
def test_mistakes_are_one_sentence_and_touch_nothing(
    run: Any, base: Path, tmp_path: Path, options: list[str], content: str | None, words: str
) -> None:
    folder, data = copy_of(base, tmp_path / "older"), tmp_path / "rows.jsonl"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    data.write_text("\n".join(map(json.dumps, sums(4))) if content is None else content, encoding="utf-8")
    command = ["finetune", f"--model={base}", f"--data={data}", f"--out={folder}", "--batch-size=2"]
    assert_one_sentence(run(*command, *options, "--overwrite"), words)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert_one_sentence(run(*command, *options), "already holds a run")


@pytest.mark.slow
def test_an_adapter_is_trained_and_goes_on(run: Any, base: Path, rows: Path, tmp_path: Path) -> None:
    command = ["finetune", f"--model={base}", f"--data={rows}", *QUICK, "--lora-rank=2"]
    assert run(*command, f"--out={tmp_path / 'whole'}", "--epochs=4").code == 0
    assert run(*command, f"--out={tmp_path / 'parts'}", "--decay-steps=20", "--warmup-steps=2").code == 0
    assert run("finetune", "--resume", f"--out={tmp_path / 'parts'}", "--epochs=4").code == 0
    parts, whole = (CheckpointFolder(tmp_path / name).load() for name in ("parts", "whole"))
    assert all(np.array_equal(parts.model[name], whole.model[name]) for name in whole.model)
    assert all("lora" in name for name in whole.optimizer)
    assert_one_sentence(
        run(*command, "--add-token=x", f"--out={tmp_path / 'new'}"), "with --lora-rank all embeddings are frozen"
    )


def test_a_template_without_the_answer(run: Any, base: Path, rows: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.toml"
    template.write_text('turn = "Q: {user}"\nstop = ["x"]\n', encoding="utf-8")
    command = ["finetune", f"--model={base}", f"--data={rows}", f"--template={template}", f"--out={tmp_path / 'run'}"]
    assert_one_sentence(run(*command), r"turn must contain \{user\} and then \{assistant\}")
    template.write_text('turn = "Q: {user} A: {assistant}#"\n', encoding="utf-8")
    assert run(*command, *QUICK).code == 0


@pytest.mark.slow
def test_a_resumed_run_reads_the_same_rows(run: Any, base: Path, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ["finetune", f"--model={base}", f"--data={rows}", f"--out={folder}"]
    assert run(*command, *QUICK).code == 0
    again = ["finetune", "--resume", f"--out={folder}"]
    assert_one_sentence(run(*again, "--loss-on=all"), "has the loss_on None, not all: leave it out")
    assert_one_sentence(run(*again, "--epochs=3", "--steps=99"), "give either --epochs or --steps")
    assert_one_sentence(run(*again, "--freeze=wte"), "freeze is None there and 'wte' here")
    assert_one_sentence(run(*again, "--add-token=x"), "leave out --init-from and --add-token")
    assert_one_sentence(run(*again, "--epochs=1"), "is already at step 10: 1 epochs would end at step 5, so give more")
    content = rows.read_text(encoding="utf-8")
    rows.write_text(content.replace("18", "19"), encoding="utf-8")
    assert_one_sentence(run(*again, "--epochs=3"), rf"the file {rows} has changed since the run in .* began")
    rows.unlink()
    assert_one_sentence(run(*again, "--epochs=3"), rf"{rows}")
    rows.write_text(content, encoding="utf-8")
    assert run(*again, "--epochs=3", f"--data={rows}").code == 0
    (folder / "data.json").write_text("{")
    assert_one_sentence(run(*again), r"data\.json is damaged")
    (folder / "data.json").unlink()
    assert_one_sentence(run(*again), r"data\.json can't be read, so the run in .* was not made by `finetune`")
    new = ["finetune", f"--out={tmp_path / 'new'}"]
    assert_one_sentence(run(*new), "give --model MODEL and --data FILE")
    assert_one_sentence(run(*new, f"--model={base}", "--data=-"), "can't come from a pipe")


def test_rows_of_a_step_are_those_of_the_whole() -> None:
    maker = TextExamples(ByteTokenizer(), 24, None)
    examples = [maker.make(Row({"text": "x" * (2 + i)}, "")) for i in range(5)]
    assert [RowBatches(examples, 1, 8, 0, collate).batch(i)[0].shape[0] for i in range(8)] == [1, 1, 1, 1, 1, 0, 0, 0]
