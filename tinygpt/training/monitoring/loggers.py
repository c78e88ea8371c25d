"""Loggers: send the records of a run to TensorBoard, Weights & Biases and MLflow, in addition to metrics.jsonl.

    tinygpt train --log-to tensorboard,mlflow

| name | library | where |
|---|---|---|
| tensorboard | tensorboardX | FOLDER/tensorboard |
| wandb | wandb | FOLDER/wandb; online only where an API key is configured and TINYGPT_OFFLINE is not set |
| mlflow | mlflow-skinny, and what its SQLite store needs | MLFLOW_TRACKING_URI, or mlflow.db next to FOLDER |

A logger opens its log at the first record that is reported, when the run has its folder. If one fails, a line says so
once and it is dropped: metrics.jsonl has everything, and no logger ends a run. A resumed run continues the same log,
which it finds by the run's mark (`storage/folder.py`); what a killed session logged after its last checkpoint is
logged again.

Both wandb and MLflow contact their vendors' hosts to report errors and usage, even offline; this is turned off.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import json
import logging
import netrc
import os
import socket
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ...checkpoint import MARK
from ...console import Lenient
from ...data.downloads import is_offline
from ...errors import MissingExtraError, UsageError, require_together
from ..storage.folder import CONFIGURATION

if TYPE_CHECKING:
    from ..loop import Trainer

PROJECT = "tinygpt"  # of wandb; MLflow's experiment


class Log:
    """An open log. In a record, `step` is the step, `sample` a text, and every other number a metric."""

    def __init__(self, folder: Path, run: str, step: int, config: dict[str, Any]) -> None:
        """Open the log of a run in `folder`, or continue it after `step`. run: what identifies it."""
        raise NotImplementedError

    def add(self, step: int, figures: dict[str, float], sample: str | None) -> None:
        raise NotImplementedError

    def close(self, finished: bool) -> None:
        raise NotImplementedError


class TensorBoardLog(Log):
    """tensorboardX's event files. Events after `step` of an earlier session are marked as replaced."""

    def __init__(self, folder: Path, run: str, step: int, config: dict[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        place, first = str(folder / "tensorboard"), step + 1 if step else 0
        # Files are named by the second: with the step in the name, a run resumed within that second overwrites nothing.
        self.writer = SummaryWriter(place, purge_step=first, filename_suffix=f".{step}")
        if not step:
            self.writer.add_text("config", "\n\n".join(f"{name} = {value}" for name, value in config.items()), 0)

    def add(self, step: int, figures: dict[str, float], sample: str | None) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        if sample is not None:
            self.writer.add_text("sample", sample, step)
        self.writer.flush()

    def close(self, finished: bool) -> None:
        self.writer.close()


class WandbLog(Log):
    """Weights & Biases. Without machine statistics, packages and source code: a run's records, and no more."""

    def __init__(self, folder: Path, run: str, step: int, config: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        with _without_probe():
            import wandb

            settings = wandb.Settings(
                silent=True, console="off", disable_git=True, save_code=False,
                x_disable_stats=True, x_disable_meta=True, x_save_requirements=False,
            )  # fmt: skip
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT), id=run, name=folder.name, resume="allow",
                dir=str(folder), mode=wandb_mode(), config=config, settings=settings,
            )  # fmt: skip

    def add(self, step: int, figures: dict[str, float], sample: str | None) -> None:
        self.run.log(figures if sample is None else {**figures, "sample": sample}, step=step)

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MlflowLog(Log):
    """MLflow, through its client only: no active run, no autologging, no thread."""

    def __init__(self, folder: Path, run: str, step: int, config: dict[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        with _without_probe():
            from mlflow.entities import Metric, Param
            from mlflow.tracking import MlflowClient
        for name in ("alembic", "mlflow.store.db.utils"):  # a line for each table of a new database
            logging.getLogger(name).setLevel(logging.WARNING)
        place = folder.resolve().parent
        self.metric, self.client = Metric, MlflowClient(mlflow_uri() or f"sqlite:///{place / 'mlflow.db'}")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        where = None if mlflow_uri() else (place / "mlflow-artifacts").as_uri()
        experiment = found.experiment_id if found else self.client.create_experiment(name, artifact_location=where)
        runs = self.client.search_runs([experiment], f"tags.`tinygpt.run` = '{run}'")
        if runs:
            self.id = runs[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
            return
        self.id = self.client.create_run(experiment, tags={"tinygpt.run": run}, run_name=folder.name).info.run_id
        self.client.log_batch(self.id, params=[Param(name, str(value)[:500]) for name, value in config.items()])

    def add(self, step: int, figures: dict[str, float], sample: str | None) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.id, [self.metric(name, value, now, step) for name, value in figures.items()])
        if sample is not None:
            self.client.log_text(self.id, sample, f"samples/step-{step}.txt")

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


LOGS: dict[str, type[Log]] = {"tensorboard": TensorBoardLog, "wandb": WandbLog, "mlflow": MlflowLog}
# What each imports, and what pip calls it.
PACKAGES = {
    "tensorboard": {"tensorboardX": "tensorboardX"},
    "wandb": {"wandb": "wandb"},
    "mlflow": {
        "mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic", "sqlparse": "sqlparse",
    },
}  # fmt: skip


def logger_names(text: str | None) -> list[str]:
    """The loggers in a list such as "tensorboard,wandb". Raises UsageError for an unknown or repeated one."""
    names = [part.strip() for part in (text or "").split(",") if part.strip()]
    for name in names:
        if name not in LOGS:
            near = difflib.get_close_matches(name.lower(), LOGS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(LOGS)}"
            raise UsageError(f"--log-to: there is no logger {name}: {hint}")
        if names.count(name) > 1:
            raise UsageError(f"--log-to: there are two loggers named {name}: give each once")
    return names


def require_loggers(names: list[str]) -> None:
    """Raise MissingExtraError for all packages that are missing, UsageError for a log that can't be reached offline."""

    def check(name: str) -> None:
        missing = [pip for module, pip in PACKAGES[name].items() if not _is_there(module)]
        if missing:
            raise MissingExtraError(
                f"the logger {name} needs packages that are not installed: pip install {' '.join(missing)}",
                {f"the logger {name}": missing},
            )

    require_together(*[lambda name=name: check(name) for name in names])
    uri = mlflow_uri()
    if "mlflow" in names and is_offline() and uri and uri.partition(":")[0] not in ("sqlite", "file"):
        raise UsageError(
            f"--log-to mlflow: TINYGPT_OFFLINE is set, and MLFLOW_TRACKING_URI is {uri}: unset one of them"
        )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # None in sys.modules blocks the import
        return False


def mlflow_uri() -> str | None:
    """Where MLflow should keep its runs, if this is set."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def wandb_mode() -> Any:
    """Online only with a key: wandb would ask for one on the terminal, and an unattended run would hang."""
    if is_offline():
        return "disabled" if os.environ.get("WANDB_MODE") == "disabled" else "offline"
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc().authenticators("api.wandb.ai"):
            return "online"
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


@contextlib.contextmanager
def _without_probe() -> Iterator[None]:
    """Offline, keep urllib3, which both libraries import, from opening a socket to see whether there is IPv6."""
    before = socket.has_ipv6
    socket.has_ipv6 = before and not is_offline()
    try:
        yield
    finally:
        socket.has_ipv6 = before


class Logger:
    """A callback of a trainer that keeps a log, until the log fails. Close it at the end of the run."""

    def __init__(self, name: str, trainer: Trainer) -> None:
        self.name, self.trainer = name, trainer
        self.log: Log | None = None
        self.failed = False
        self.begin = 0  # where this session begins

    def __call__(self, record: dict[str, Any]) -> None:
        if self.failed:
            return
        try:
            numbers = _numbers(record)
            sample = record.get("sample")
            if not numbers and sample is None:  # such as settings that have changed
                return
            if self.log is None:
                folder = Path(self.trainer.run_folder.path)
                self.log = LOGS[self.name](folder, _run_of(folder), self.begin, _configuration(folder))
            self.log.add(record["step"], numbers, sample)
        except (Exception, SystemExit) as error:
            self._fail(error)

    def close(self) -> None:
        log, self.log = self.log, None
        if log is None or self.failed:
            return
        try:
            log.close(self.trainer.state.step >= self.trainer.config.steps)
        except (Exception, SystemExit) as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.failed = True
        stream = self.trainer.stream if self.trainer.stream is not None else sys.stderr
        what = " ".join(str(error).split())[:300]
        tqdm.write(
            f"step {self.trainer.state.step}: the logger {self.name} failed ({type(error).__name__}: {what}) and is "
            "no longer used; the run continues, and metrics.jsonl has everything",
            file=Lenient(stream),
        )


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    """The metrics in a record, by name; those of layers as ratio/h.0.attn, so that a log shows all ratios together."""
    found = {name: value for name, value in record.items() if name != "step"}
    for layer, norms in found.pop("layers", {}).items():
        found |= {f"{name}/{layer}": value for name, value in norms.items()}
    return {name: value for name, value in found.items() if type(value) in (int, float)}


def _run_of(folder: Path) -> str:
    """What identifies the run in this folder: a random number in its mark."""
    mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    return str(mark["run"])


def _configuration(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):  # a run of the library has none
        return tomllib.loads((folder / CONFIGURATION).read_text(encoding="utf-8"))
    return {}
