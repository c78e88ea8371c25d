"""How long a new run takes to its first line about its progress, from when its text is ready, in fresh processes.

    python benchmarks/startup.py [--starts 5] [--preset tiny]

In between: the model, the optimizer, the summary, an evaluation of the initial weights, the first checkpoint. Both ways
to start a run are measured, `tinygpt train` and `examples/train_shakespeare.py`, on 1 MB of generated text.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

AIM = 1.0  # seconds
WAYS = {  # -> a script, or nothing
    "tinygpt train": "",
    "examples/train_shakespeare.py": str(Path(__file__).parents[1] / "examples" / "train_shakespeare.py"),
}
OPTIONAL = ("matplotlib", "pandas", "tokenizers", "torch", "transformers", "jinja2", "ml_dtypes", "IPython")


def write_text(path: Path, size: int = 1_000_000) -> None:
    letters = np.frombuffer(b" eetaoinshrdlu\n", np.uint8)
    path.write_bytes(letters[np.random.default_rng(0).integers(0, len(letters), size)].tobytes())


def until_first_line(script: str, options: list[str]) -> dict[str, Any]:
    """Start a run in this process and end it at its first line. Returns what was done until then.

    seconds; evaluation: those of the evaluation; evaluated, drawn: batches for evaluation and training; optional:
    optional libraries that were imported; peak_measured: whether the processor's peak was, which takes 0.2 s.
    """
    from tinygpt import cli, training
    from tinygpt.data import RandomBatches
    from tinygpt.training.evaluation import FixedBatches
    from tinygpt.training.monitoring.estimate import measured_peak
    from tinygpt.training.monitoring.progress import Progress

    found: dict[str, Any] = {"evaluated": 0, "drawn": 0, "evaluation": 0.0}
    prepare, draw, evaluated = training.prepare_text, RandomBatches.batch, FixedBatches.__iter__
    before, ready = set(sys.modules), []

    def prepared(*args: Any, **options: Any) -> Any:
        text = prepare(*args, **options)
        ready.append(time.perf_counter())
        return text

    def drawn(self: Any, step: int) -> Any:
        found["drawn"] += 1
        return draw(self, step)

    def evaluating(self: Any) -> Any:
        begin = time.perf_counter()
        for batch in evaluated(self):
            found["drawn"] -= 1
            found["evaluated"] += 1
            yield batch
            found["evaluation"] = time.perf_counter() - begin

    def line(self: Any, step: int, text: str) -> None:
        if "loss" not in text and "evaluation" not in text:
            return
        found["seconds"] = time.perf_counter() - ready[0]
        found["peak_measured"] = measured_peak.cache_info().currsize > 0
        found["optional"] = [name for name in OPTIONAL if name in sys.modules and name not in before]
        raise SystemExit

    training.prepare_text, Progress.line = prepared, line  # type: ignore[assignment, method-assign]
    RandomBatches.batch, FixedBatches.__iter__ = drawn, evaluating  # type: ignore[method-assign]
    sys.argv = [script or "tinygpt", *([] if script else ["train"]), *options]
    with contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__") if script else cli.main()
    return found


def fresh(way: str, preset: str) -> dict[str, Any]:
    """`until_first_line` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder, "text.txt"))
        options = ["--data", f"{folder}/text.txt", "--preset", preset, "--out", f"{folder}/run"]
        command = [sys.executable, __file__, "--work", WAYS[way], *options]
        environment = {**os.environ, "XDG_CACHE_HOME": folder}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        print(json.dumps(until_first_line(sys.argv[2], sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5, help="fresh processes of each way (default: 5)")
    parser.add_argument("--preset", default="tiny", help="of the run (default: tiny)")
    options = parser.parse_args()
    import machine
    from quiet import quietly

    print(machine.headline())
    print("\n| way | seconds, median | at most | batches evaluated until then | seconds of that, least |")
    print("|---|---|---|---|---|")
    worst, evaluation = 0.0, float("inf")
    for way in WAYS:
        found = [quietly(partial(fresh, way, options.preset)) for _ in range(options.starts)]
        seconds = [one["seconds"] for one in found]
        worst = max(worst, *seconds)
        floor, batches = min(one["evaluation"] for one in found), found[0]["evaluated"]
        evaluation = min(evaluation, floor)
        print(f"| {way} | {statistics.median(seconds):.2f} | {max(seconds):.2f} | {batches} | {floor:.2f} |")
    words = f"the first line of a run {worst:.2f} s after the text is ready"
    print(machine.verdict(worst < AIM, words, f"{AIM:g}", f"at least {evaluation:.2f}, which the evaluation takes"))


if __name__ == "__main__":
    main()
