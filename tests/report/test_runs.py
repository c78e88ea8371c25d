"""What a folder tells, whatever state its run is in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.report.helpers import layers, usual, write_run
from tinygpt.errors import UsageError
from tinygpt.lock import Lock
from tinygpt.report import find_runs
from tinygpt.report.runs import read_records


def test_the_records(tmp_path: Path) -> None:
    records = [*usual(), {"step": 40, "sample": "abc"}, layers(40, 1e-3), {"step": 40, "changed": {"lr": [1.0, 2.0]}}]
    (run,) = find_runs([write_run(tmp_path / "a", records)])
    assert run.records.of("loss") == [(step, 3.0 + 10 / step) for step in (10, 20, 30, 40)]
    assert run.records.of("validation_loss") == [(0, 4.0), (20, 3.4), (40, 3.2)]
    assert run.best == (40, 3.2)
    assert run.total("tokens") == 3840
    assert run.records.samples == {40: "abc"}
    assert run.records.layers[40]["h.0.attn"]["ratio"] == 1e-2
    assert run.records.changes == {40: {"lr": [1.0, 2.0]}}
    assert run.records.last == 40
    assert run.name == "a"


def test_steps_that_were_made_again_replace_those_before(tmp_path: Path) -> None:
    """A killed run went on after its last checkpoint, of step 20; the resumed one has other numbers and ends sooner."""
    first = [*usual(60), {"step": 50, "sample": "old"}, layers(60, 1e-3)]
    again = [{"step": 30, "loss": 1.0}, {"step": 40, "loss": 0.5}, {"step": 40, "validation_loss": 0.25}]
    (run,) = find_runs([write_run(tmp_path, [*first, *again])])
    assert run.records.of("loss") == [(10, 4.0), (20, 3.5), (30, 1.0), (40, 0.5)]
    assert run.records.of("validation_loss") == [(0, 4.0), (20, 3.4), (40, 0.25)]
    assert run.records.samples == {}
    assert run.records.layers == {}
    assert run.records.last == 40


def test_a_record_that_comes_twice_counts_once(tmp_path: Path) -> None:
    path = write_run(tmp_path, [*usual(), {"step": 40, "loss": 9.0}]) / "metrics.jsonl"
    assert read_records(path).of("loss")[-2:] == [(30, 3.0 + 10 / 30), (40, 9.0)]


@pytest.mark.parametrize("end", ['{"step": 50, "lo', '{"step": 50, "loss": 1.0}', '{"step": 50, "sample": "\udcff'])
def test_a_line_that_is_being_written_is_left_out(tmp_path: Path, end: str) -> None:
    path = write_run(tmp_path, usual()) / "metrics.jsonl"
    with open(path, "ab") as file:
        file.write(end.encode("utf-8", "surrogateescape"))
    found = read_records(path)
    assert found.last == 40
    assert found.damaged == 0


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    write_run(tmp_path, usual())
    path = tmp_path / "metrics.jsonl"
    bad = [b"\xff", b"[1]", b'{"step": "x"}', b'{"step": -1}', b'{"loss": 1}', b"[" * 100_000, b""]
    lines = [line + b"\n" for line in bad]
    path.write_bytes(lines[0] + path.read_bytes() + b"".join(lines[1:]))
    found = read_records(path)
    assert found.damaged == len(lines)
    assert len(found.of("loss")) == 4


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    line = '{"step": 10, "loss": NaN, "lr": Infinity, "grad_norm": null, "x": true, "layers": {"a": {"ratio": null}}}\n'
    found = read_records(write_run(tmp_path, [], end=line) / "metrics.jsonl")
    assert found.figures == {}
    assert found.layers == {10: {"a": {}}}


def test_settings_are_of_the_configuration_and_the_checkpoint(run: object, model: Path) -> None:
    (found,) = find_runs([model])
    assert found.settings["n_embd"] == 8
    assert found.settings["lr"] == 0.01
    assert found.settings["min_lr"] == 0.001  # derived, so in the checkpoint only
    assert found.settings["tokenizer"] == "character"
    assert next(iter(found.settings)) == "files"
    assert found.steps == 12
    assert found.progress == "finished, 12 steps"


def test_how_far_a_run_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", usual(), "steps = 100\n")
    (run,) = find_runs([folder])
    assert run.progress == "ended at step 40 of 100"
    lock = Lock(folder / ".tinygpt-lock")
    assert lock.take()
    try:
        (run,) = find_runs([folder])
        assert run.progress.startswith("running, at step 40 of 100 (process ")
    finally:
        lock.give_back()
    (folder / ".tinygpt-lock").write_text("process 1 on here\n")  # left behind by a run that was killed
    (run,) = find_runs([folder])
    assert run.progress == "ended at step 40 of 100"
    assert (folder / ".tinygpt-lock").read_text() == "process 1 on here\n"
    run.settings["patience"], run.state = 3, {"progression": {"without_improvement": 3}}
    assert run.progress == "stopped early at step 40 of 100"
    assert find_runs([write_run(tmp_path / "old", usual())])[0].progress == "ended at step 40"


def test_a_damaged_checkpoint_is_no_obstacle(tmp_path: Path, model: Path) -> None:
    for path in model.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    for path in tmp_path.glob("checkpoint-*"):
        path.write_bytes(b"nonsense")
    (run,) = find_runs([tmp_path])
    assert run.settings["lr"] == 0.01
    assert "min_lr" not in run.settings
    (tmp_path / "checkpoints.json").write_text("[")
    (tmp_path / "config.toml").write_text("= [")
    (run,) = find_runs([tmp_path])
    assert run.settings == {}
    assert run.best is not None


# Which folders ------------------------------------------------------------------------------------------


def test_a_folder_of_runs_stands_for_them(tmp_path: Path) -> None:
    for name in ("fold-2", "fold-10", "fold-1"):
        write_run(tmp_path / "folds" / name, usual())
    write_run(tmp_path / "folds" / ".tinygpt-new-01234567.tmp", usual())
    (tmp_path / "folds" / "folds.json").write_text("{}")
    write_run(tmp_path / "folds" / "empty", [])
    runs = find_runs([tmp_path / "folds"])
    assert [run.name for run in runs] == ["fold-1", "fold-2", "fold-10"]


def test_each_run_once_by_its_shortest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/run", "b/run"):
        write_run(tmp_path / name, usual())
    monkeypatch.chdir(tmp_path / "a")
    names = [run.name for run in find_runs(["run", "../a/run", tmp_path / "b" / "run"])]
    assert names == [str(Path("a/run")), str(Path("b/run"))]
    assert [run.name for run in find_runs(["run/."])] == ["run"]


def test_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({}))
    for name, words in (
        ("nowhere", "there is no folder .*nowhere: give the folder of a run"),
        ("file", "file is a file: give the folder of a run"),
        ("model", "model is not the folder of a run: it has no metrics.jsonl, nor has a folder in it"),
        (write_run(tmp_path / "begun", []), "begun.metrics.jsonl has no records: a run writes them"),
    ):
        with pytest.raises(UsageError, match=words):
            find_runs([tmp_path / name])
