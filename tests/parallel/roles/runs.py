"""Whole runs of training, beside the run of one process."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

import tinygpt as tg
from tests.parallel.roles import digest, work
from tests.parallel.roles.gradients import ROWS, SHAPE, batch_of
from tests.training.helpers import TRAIN, VALIDATION
from tinygpt import backends
from tinygpt.checkpoint import CheckpointFolder
from tinygpt.parallel import Communicator, use
from tinygpt.training import read_metrics
from tinygpt.training.monitoring.layer_norms import LayerWatch
from tinygpt.training.objective import Objective
from tinygpt.training.step.late_steps import LateSteps


class Ignored:
    """Batches in which most targets of the first rows are ignored, and in each third batch all of the first half."""

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return batch_of(index, index % 3 == 0)


def require_norms_of_the_whole_gradient(records: list[dict[str, Any]]) -> None:
    """The squares of the layers' gradient norms add up to that of grad_norm, which is computed apart from them."""
    whole = {record["step"]: record["grad_norm"] for record in records if "grad_norm" in record}
    watched = {record["step"]: record["layers"] for record in records if "layers" in record}
    assert [*watched] == [step for step in whole if step % 10 == 0]
    for step, layers in watched.items():
        total = sum(row["gradient"] ** 2 for row in layers.values()) ** 0.5
        assert abs(total - whole[step]) < 1e-4 * whole[step], (step, total, whole[step])


def trained(
    team: Communicator, folder: Path, kind: str, steps: int, backend: str = "numpy", watched: bool = True
) -> tuple[list[float], dict[str, np.ndarray]]:
    """The losses of a run, and its weights. watched: with the norms of the layers, which need each step's gradients."""
    settings: dict[str, Any] = {
        "plain": {}, "accumulated": {"gradient_accumulation": 3}, "ignored": {"gradient_accumulation": 2},
        "sharded": {"shard_optimizer": True}, "adamw": {"optimizer": "adamw", "lr": 1e-3},
        "late": {"optimizer": "adamw", "lr": 1e-3, "log_every": 4},
        "frozen": {"freeze": "wte,h.0"}, "average": {"ema": 0.9, "optimizer": "adamw", "lr": 1e-3},
    }[kind]  # fmt: skip
    config = tg.TrainingConfig(**({
        "steps": steps, "batch_size": ROWS, "optimizer": "sgd", "lr": 0.1, "warmup_steps": 3, "eval_every": 50,
        "eval_batches": 5, "log_every": 1, "checkpoint_every": 100, "seed": 7,
    } | settings))  # fmt: skip
    model = tg.GPT(tg.GPTConfig(vocab_size=11, **SHAPE), seed=7).to(backend)
    objective = None
    if kind == "ignored":
        validation = [batch_of(1000 + index, index == 1) for index in range(5)]
        objective = Objective(Ignored(), validation, ROWS * 8, {"rows": "ignored"})
    texts = (None, None) if objective else (TRAIN, VALIDATION)
    stream = io.StringIO()
    trainer = tg.Trainer(model, *texts, config, folder, stream=stream, objective=objective)
    if watched:
        trainer.watch = LayerWatch(10)
    trainer.run()
    assert isinstance(trainer.steps, LateSteps) == (backend == "cupy" and kind == "late")
    assert bool(stream.getvalue()) == (team.rank == 0), "process 0 and only process 0 reports"
    records = team.share_value([*read_metrics(folder / "metrics.jsonl")] if team.rank == 0 else None)
    figures = [record for record in records if "layers" not in record]
    losses = [record.get("loss", record.get("validation_loss")) for record in figures]
    if team.rank == 0 and watched:
        require_norms_of_the_whole_gradient(records)
    return losses, {name: backends.move(array, "numpy").copy() for name, array in model.state_dict().items()}


@work
def the_run_of_one_process(team: Communicator, folder: str, kind: str, steps: str) -> None:
    """A run on all processes has the losses and weights of the run of one, up to rounding."""
    losses, weights = trained(team, Path(folder) / f"run-{team.size}", kind, int(steps))
    hashes = team.gather_values(digest(*weights.values()))
    assert len(set(hashes)) == 1, "the processes have different weights"
    if team.rank == 0:
        use(Communicator())
        expected, alone = trained(Communicator(), Path(folder) / "run-1", kind, int(steps))
        assert len(losses) == len(expected) == int(steps) + 1 + int(steps) // 50
        difference = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        apart = max(np.abs(weights[name] - alone[name]).max() for name in alone)
        assert difference > 0 or team.size == 1, "were these two runs?"
        assert losses[0] - min(losses) > 0.02, "the run learns nothing"  # thousands of times what is compared
        latest = [CheckpointFolder(Path(folder) / f"run-{n}").load("latest") for n in (team.size, 1)]
        assert [*latest[0].optimizer] == [*latest[1].optimizer]
        assert [*latest[0].state] == [*latest[1].state]
        for name, array in latest[1].optimizer.items():
            assert np.allclose(latest[0].optimizer[name], array, rtol=1e-2, atol=1e-4), name
        print(json.dumps({"hash": hashes[0], "losses": float(difference), "weights": float(apart)}))
    team.barrier()
