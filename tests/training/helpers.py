"""A run so small that a step takes a millisecond, and what two equal runs must share."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

import tinygpt
from tinygpt.backends import get
from tinygpt.checkpoint import Checkpoint
from tinygpt.gpt import GPT, GPTConfig
from tinygpt.training import MEASURED, CheckpointFolder, Trainer, TrainingConfig, read_metrics

SHAPE = {"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 8, "dropout": 0.1, "bias": True}
TOKENS = np.random.default_rng(5).integers(0, 11, size=600).astype(np.uint16)
TRAIN, VALIDATION = TOKENS[:500], TOKENS[500:]
QUICK: dict[str, Any] = {
    "steps": 20, "batch_size": 3, "lr": 1e-2, "warmup_steps": 3, "eval_every": 5, "eval_batches": 2, "log_every": 3,
    "checkpoint_every": 4, "seed": 7,
}  # fmt: skip

# For processes of their own: they find the tinygpt that is being tested, installed or not.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(tinygpt.__file__).parents[1])}

VERSE = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n"
# The same as options, for a command line.
OPTIONS = [
    "--block-size=8", "--n-layer=1", "--n-head=2", "--n-embd=8", "--dropout=0.1", "--steps=12", "--batch-size=3",
    "--lr=0.01", "--warmup-steps=3", "--eval-every=5", "--eval-batches=2", "--log-every=3", "--checkpoint-every=4",
]  # fmt: skip


def make_trainer(folder: Path, train: np.ndarray = TRAIN, model: GPT | None = None, **settings: Any) -> Trainer:
    """A trainer of a fresh model; its progress goes nowhere."""
    config = TrainingConfig(**(QUICK | settings))
    model = model if model is not None else GPT(GPTConfig(vocab_size=11, **SHAPE), seed=config.seed)
    folder.mkdir(exist_ok=True)
    return Trainer(model, train, VALIDATION, config, folder, stream=io.StringIO())


def failing_at(step: int, key: str, error: BaseException) -> Any:
    def upload(record: dict[str, Any]) -> None:
        if record["step"] == step and key in record:
            raise error

    return upload


def write_text(path: Path, lines: int = 40) -> Path:
    path.write_text(VERSE * (lines // 2), encoding="utf-8")
    return path


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves behind, but for times and the like: the bytes of arrays, states and metrics."""
    result: dict[str, Any] = {}
    for which in ("latest", "best"):
        checkpoint = CheckpointFolder(folder).load(which)
        for part in ("model", "optimizer"):
            for name, array in getattr(checkpoint, part).items():
                result[f"{which} {part} {name}"] = (array.dtype.str, array.shape, array.tobytes())
        checkpoint.state["progression"].pop("seconds")
        result[f"{which} state"] = json.dumps(checkpoint.state, sort_keys=True)
    records = read_metrics(folder / "metrics.jsonl")
    result["metrics"] = [{k: v for k, v in r.items() if k not in MEASURED} for r in records]
    return result


def outcome_without(folder: Path, key: str) -> dict[str, Any]:
    """`outcome` without the records that have this key, and without the number of lines in the metrics file."""
    found = outcome(folder)
    found["metrics"] = [record for record in found["metrics"] if key not in record]
    for which in ("latest", "best"):
        state = json.loads(found[f"{which} state"])
        state["progression"].pop("metrics_lines")
        found[f"{which} state"] = state
    return found


def assert_same_outcome(folder: Path, other: Path) -> None:
    found, expected = outcome(folder), outcome(other)
    assert found.keys() == expected.keys()
    names = [name for name in expected if found[name] != expected[name]]
    differing = [f"{name} ({difference(found[name], expected[name])})" for name in names]
    assert not differing, f"{folder} and {other} differ in {'; '.join(differing)}; {get('numpy').describe()}"


def assert_same_arrays(found: Checkpoint, expected: Checkpoint) -> None:
    """Two checkpoints hold the same weights and the same state of the optimizer, bit for bit."""
    for part in ("model", "optimizer"):
        for name, array in getattr(expected, part).items():
            assert getattr(found, part)[name].tobytes() == array.tobytes(), name


def difference(found: Any, expected: Any) -> str:
    """What can be said of two parts of an outcome that should be equal: such a failure may not come again."""
    if isinstance(found, tuple) and found[:2] == expected[:2]:
        a, b = (np.frombuffer(part[2], part[0]).astype(np.float64) for part in (found, expected))
        places = np.flatnonzero(a != b)
        return f"{len(places)} of {len(a)} elements, from {places[:1]} on, by up to {np.abs(a - b).max(initial=0)}"
    if isinstance(found, list):
        pairs = [(a, b) for a, b in zip(found, expected, strict=False) if a != b]
        return f"{len(found)} records and {len(expected)}, the first that differ: {pairs[:1]}"
    return f"{found} and {expected}"
