"""Loggers: read back with each logger's own reader, offline without a network socket, and never the end of a run."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import ENVIRONMENT, OPTIONS, assert_same_outcome, make_trainer
from tinygpt.errors import MissingExtraError, UsageError
from tinygpt.tokenizers import CharTokenizer
from tinygpt.training import read_metrics
from tinygpt.training.monitoring.following import Following, follow
from tinygpt.training.monitoring.loggers import LOGS, Log, logger_names, require_loggers, wandb_mode

TOKENIZER = CharTokenizer("abcdefghij\n")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinygpt.training.monitoring.reporting.draw_loss_curve", lambda *paths: None)


class Kept(Log):
    """A log in memory."""

    opened: ClassVar[list[Any]] = []

    def __init__(self, folder: Path, run: str, step: int, config: dict[str, Any]) -> None:
        self.of, self.step, self.lines, self.closed = (folder, run), step, list[Any](), list[bool]()
        self.config = config
        Kept.opened.append(self)

    def add(self, step: int, figures: dict[str, float], sample: str | None) -> None:
        self.lines.append((step, figures, sample))

    def close(self, finished: bool) -> None:
        self.closed.append(finished)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(Kept, "opened", [])
    monkeypatch.setitem(LOGS, "tensorboard", Kept)
    monkeypatch.setattr("tinygpt.training.monitoring.loggers._is_there", lambda module: True)
    return Kept.opened


def followed(folder: Path, log_to: str, **settings: Any) -> Any:
    trainer = make_trainer(folder, **settings)
    follow(trainer, Following(log_to=log_to, sample_every=10, sample_tokens=3), TOKENIZER)
    return trainer


def figures_in(folder: Path) -> list[tuple[int, str, float]]:
    """Every number in metrics.jsonl, as (step, name, value)."""
    return [
        (record["step"], name, value)
        for record in read_metrics(folder / "metrics.jsonl")
        for name, value in record.items()
        if name != "step" and isinstance(value, (int, float))
    ]


def samples_in(folder: Path) -> list[tuple[int, str]]:
    return [
        (record["step"], record["sample"]) for record in read_metrics(folder / "metrics.jsonl") if "sample" in record
    ]


# What is logged -------------------------------------------------------------------------------


def test_a_log_has_every_record(tmp_path: Path, kept: list[Any]) -> None:
    followed(tmp_path, "tensorboard").run()
    (log,) = kept
    assert [(s, name, v) for s, figures, _ in log.lines for name, v in figures.items()] == figures_in(tmp_path)
    assert [(step, sample) for step, _, sample in log.lines if sample is not None] == samples_in(tmp_path)
    assert log.closed == [True]
    assert log.step == 0


def test_a_log_has_the_norms_of_the_layers(tmp_path: Path, kept: list[Any]) -> None:
    trainer = make_trainer(tmp_path)
    follow(trainer, Following(log_to="tensorboard", watch_layers=10), TOKENIZER)
    trainer.run()
    (log,) = kept
    records = [record for record in read_metrics(tmp_path / "metrics.jsonl") if "layers" in record]
    found = [(step, figures) for step, figures, _ in log.lines if "ratio/h.1.mlp" in figures]
    assert [step for step, _ in found] == [record["step"] for record in records] == [10, 20]
    for (_, figures), record in zip(found, records, strict=True):
        expected = {f"{name}/{layer}": v for layer, row in record["layers"].items() for name, v in row.items()}
        assert figures == expected


def test_a_resumed_run_continues_its_log(tmp_path: Path, kept: list[Any]) -> None:
    followed(tmp_path, "tensorboard", steps=9).run()
    trainer = followed(tmp_path, "tensorboard", steps=20, decay_steps=20)
    trainer.resume()
    trainer.run()
    first, second = kept
    assert first.of == second.of
    assert (first.step, second.step) == (0, 9)
    assert min(step for step, _, _ in second.lines) > 9


@pytest.mark.slow
def test_the_log_knows_the_configuration(run: Any, text: Path, tmp_path: Path, kept: list[Any]) -> None:
    command = ("train", *OPTIONS, f"--data={text}", f"--out={tmp_path / 'run'}", "--log-to=tensorboard")
    assert run(*command).code == 0
    assert run(*command, "--overwrite").code == 0
    first, second = kept
    assert first.of[0] == second.of[0] == tmp_path / "run"
    assert first.of[1] != second.of[1]  # another run, another log
    assert first.config["lr"] == 0.01
    assert first.config["log_to"] == "tensorboard"
    assert run("train", f"--out={tmp_path / 'run'}", "--resume", "--steps=14").code == 0
    assert kept[2].of == second.of  # without being told once more


# Failures -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("where", ["__init__", "add", "close"])
@pytest.mark.parametrize("error", [ConnectionError("no\nroute"), SystemExit(1)])
def test_a_logger_that_fails_is_said_once(
    tmp_path: Path, kept: list[Any], monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(Kept, where, fail)
    trainer = followed(tmp_path / "run", "tensorboard")
    trainer.run()
    said = [line for line in trainer.stream.getvalue().splitlines() if "logger" in line]
    assert len(said) == 1
    name = type(error).__name__
    assert f"the logger tensorboard failed ({name}: {'no route' if name == 'ConnectionError' else 1})" in said[0]
    plain = make_trainer(tmp_path / "plain")
    follow(plain, Following(sample_every=10, sample_tokens=3), TOKENIZER)
    plain.run()
    assert_same_outcome(tmp_path / "run", tmp_path / "plain")


def test_ctrl_c_in_a_logger_is_ctrl_c(tmp_path: Path, kept: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Kept, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        followed(tmp_path, "tensorboard").run()
    assert kept[0].closed == [False]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("wandb,wandb", "--log-to: there are two loggers named wandb: give each once"),
        ("tensorbord", r"--log-to: there is no logger tensorbord: did you mean tensorboard\?"),
        ("neptune", "--log-to: there is no logger neptune: there are tensorboard, wandb, mlflow"),
    ],
)
def test_loggers_that_are_not_there(run: Any, text: Path, tmp_path: Path, names: str, words: str) -> None:
    command = ("train", *OPTIONS, f"--data={text}", f"--out={tmp_path / 'run'}", f"--log-to={names}")
    assert_one_sentence(run(*command), words)
    assert not (tmp_path / "run").exists()


def test_missing_packages_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboardX", "wandb", "mlflow", "sqlalchemy", "alembic", "sqlparse"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError) as caught:
        require_loggers(logger_names("tensorboard, wandb,mlflow"))
    assert str(caught.value).endswith(": pip install tensorboardX wandb mlflow-skinny sqlalchemy alembic sqlparse")
    with pytest.raises(MissingExtraError, match=r"the logger wandb needs packages that .*: pip install wandb$"):
        require_loggers(["wandb"])
    require_loggers([])


def test_a_server_is_out_of_reach_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinygpt.training.monitoring.loggers._is_there", lambda module: True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    monkeypatch.setenv("TINYGPT_OFFLINE", "1")
    with pytest.raises(UsageError, match="TINYGPT_OFFLINE is set, and MLFLOW_TRACKING_URI is http://tracking:5000"):
        require_loggers(["mlflow"])
    monkeypatch.delenv("TINYGPT_OFFLINE")
    require_loggers(["mlflow"])


def test_wandb_asks_for_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TINYGPT_OFFLINE", "WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert wandb_mode() == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert wandb_mode() == "online"
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert wandb_mode() == "online"
    monkeypatch.setenv("TINYGPT_OFFLINE", "1")
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode() == "disabled"


# Read back ------------------------------------------------------------------------------------

# A run of 9 steps and its continuation to step 20, offline, in a process that may open no socket but a local one (wandb
# talks to a process of its own).
RUN = """
import socket, sys
opened, real = [], socket.socket
class Watched(real):
    def __init__(self, family=-1, *arguments, **options):
        if family in (-1, socket.AF_INET, socket.AF_INET6):
            opened.append(f"socket {family}")
        super().__init__(family, *arguments, **options)
def look_up(*arguments, **options):
    opened.append(f"look-up {arguments}")
    raise OSError("no network here")
socket.socket, socket.getaddrinfo = Watched, look_up
sys.path.insert(0, ".")
from pathlib import Path
from tests.training.monitoring import test_loggers
folder = Path(sys.argv[2])
import tinygpt.training.monitoring.reporting as reporting
reporting.draw_loss_curve = lambda *paths: None
test_loggers.followed(folder, sys.argv[1], steps=9).run()
trainer = test_loggers.followed(folder, sys.argv[1], steps=20, decay_steps=20)
trainer.resume()
trainer.run()
said = trainer.stream.getvalue()
assert "failed" not in said, said
print("opened:", opened)
"""


def logged(name: str, tmp_path: Path) -> Path:
    """The folder of a run with this logger; nothing of the network was used."""
    folder = tmp_path / "run"
    answer = subprocess.run(
        [sys.executable, "-c", RUN, name, str(folder)], capture_output=True, encoding="utf-8", timeout=300, check=False,
        env=ENVIRONMENT | {"TINYGPT_OFFLINE": "1", "HOME": str(tmp_path)}, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "opened: []" in answer.stdout, answer.stdout
    return folder


@pytest.mark.slow
def test_tensorboard_reads_its_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = logged("tensorboard", tmp_path)
    found = accumulator.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    tags = found.Tags()
    scalars = [(event.step, tag, event.value) for tag in tags["scalars"] for event in found.Scalars(tag)]
    expected = sorted(figures_in(folder), key=lambda each: (each[1], each[0]))
    assert [each[:2] for each in sorted(scalars, key=lambda each: (each[1], each[0]))] == [e[:2] for e in expected]
    values = [value for _, _, value in sorted(scalars, key=lambda each: (each[1], each[0]))]
    assert values == pytest.approx([value for _, _, value in expected], rel=1e-6)  # float32 there
    texts = [(event.step, event.tensor_proto.string_val[0].decode()) for event in found.Tensors("sample/text_summary")]
    assert texts == samples_in(folder)


@pytest.mark.slow
def test_wandb_reads_its_log(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    folder = logged("wandb", tmp_path)
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2  # of one run, which `wandb sync` joins by its name
    assert len({path.stem for path in files}) == 1
    found = set()
    for path in files:
        for content in _records(path.read_bytes()):
            record = Record.FromString(content)
            items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            found |= {(int(items["_step"]), name, value) for name, value in items.items() if name[0] != "_"}

    expected = {(step, name, value) for step, name, value in [*figures_in(folder)]}
    expected |= {(step, "sample", text) for step, text in samples_in(folder)}
    assert {(step, name, json.loads(value)) for step, name, value in found} == expected


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format, after seven bytes that name it."""
    place, whole = 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


@pytest.mark.slow
def test_mlflow_reads_its_log(tmp_path: Path) -> None:
    for name in ("mlflow", "sqlalchemy", "alembic", "sqlparse"):
        pytest.importorskip(name)
    folder = logged("mlflow", tmp_path)
    script = (
        "import json, sys; from mlflow.tracking import MlflowClient\n"
        "c = MlflowClient(tracking_uri=f'sqlite:///{sys.argv[1]}/mlflow.db')\n"
        "(run,) = c.search_runs([c.get_experiment_by_name('tinygpt').experiment_id])\n"
        "names = run.data.metrics\n"
        "found = [(m.step, m.key, m.value) for n in names for m in c.get_metric_history(run.info.run_id, n)]\n"
        "print(json.dumps([run.info.status, run.info.run_name, found]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, encoding="utf-8", timeout=300, check=True,
        env=ENVIRONMENT | {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"},
    )  # fmt: skip

    status, name, found = json.loads(answer.stdout.splitlines()[-1])
    assert (status, name) == ("FINISHED", "run")
    assert sorted(map(tuple, found)) == sorted(figures_in(folder))
    texts = {path.name: path.read_text() for path in tmp_path.glob("mlflow-artifacts/*/artifacts/samples/*")}
    assert texts == {f"step-{step}.txt": text for step, text in samples_in(folder)}
