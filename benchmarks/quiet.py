"""Bursts from moments when nobody else used the processor, so that a shared machine can be measured like an idle one.

    BENCH_QUIET=30 python benchmarks/train_step.py
    make bench BENCH="--quiet 30"

A neighbour on the other hardware thread of a core halves the rate of a matrix product, and nothing that the system
reports shows it. The inner block of our product does, which takes its operands from the caches: it runs at its best
rate only if all cores that it runs on are ours alone. So with BENCH_QUIET, `quietly` waits until the block reaches 90%
of the best rate that it ever had on this processor at this level and with so many threads, takes the burst, and keeps
it if the block still reaches that afterwards; otherwise it takes the burst again. What a burst took has no say in that.
After BENCH_QUIET minutes bursts are taken as they come; the script's last line says how many those were.

The best rates are kept under `build/peak/`, since a busy hour may have no quiet moment to learn one from. In a fresh
clone the first minutes may therefore count bursts as quiet that later ones show not to have been.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import machine

import tinygpt as tg
from tinygpt.files import atomic_write

T = TypeVar("T")
SHARE = 0.9
PROBE, PAUSE = 0.06, 0.25  # seconds of a look at the block's rate, and between two of them
BEST = Path(__file__).parents[1] / "build" / "peak" / "best.json"


class Watch:
    """Waits for quiet moments, at most `minutes` in all. `kept` and `loud` count the bursts that it took."""

    def __init__(self, minutes: float, best: Path = BEST) -> None:
        self.patience = 60 * minutes
        self.best = best
        self.kept = self.loud = 0

    def quiet(self) -> bool:
        """Whether the block reaches its best rate just now. Without a block every moment is."""
        measured = machine.block_rate(PROBE)
        if measured is None:
            return True
        rate, who = measured[0], f"{machine.processor()}, {machine.level()}, {tg.get_num_threads()} threads"
        rates = json.loads(self.best.read_text(encoding="utf-8")) if self.best.exists() else {}
        if rate > rates.get(who, 0.0):
            self.best.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.best, "w") as file:
                json.dump(rates | {who: rate}, file, indent=1)
        return bool(rate >= SHARE * rates.get(who, 0.0))

    def quietly(self, burst: Callable[[], T]) -> T:
        """The result of a burst that nobody disturbed; of one that somebody may have, once patience is at an end."""
        while self.patience > 0:
            start = time.monotonic()
            quiet = self.quiet()
            if quiet:
                result = burst()
                time.sleep(PROBE)  # the threads of whoever took it may still be awake
                if self.quiet():
                    self.kept += 1
                    return result
            time.sleep(PAUSE)
            self.patience -= time.monotonic() - start
            if self.patience <= 0:
                print("--- no patience left: from here on bursts are taken as they come", file=sys.stderr)
        self.loud += 1
        return burst()

    def told(self) -> str:
        """A line for the output, empty without any burst."""
        taken = self.kept + self.loud
        if not taken:
            return ""
        return f"Of {taken} bursts {self.kept} were taken while the block ran at {SHARE:.0%} of its best rate or more."


MINUTES = float(os.environ.get("BENCH_QUIET", "0"))
WATCH = Watch(MINUTES)
if MINUTES:
    atexit.register(lambda: print(WATCH.told()))


def quietly(burst: Callable[[], T]) -> T:
    """The result of a burst, with BENCH_QUIET of one that nobody disturbed."""
    return WATCH.quietly(burst) if MINUTES else burst()
