"""The energy that a run uses: read from hardware counters where possible, otherwise estimated and labelled as such.

| part | counter | without it |
|---|---|---|
| processor | RAPL, /sys/class/powercap: packages and memory, other processes included | processor time x `watts` |
| GPU | NVML: the whole board | not counted |

RAPL's files belong to root on most machines (chmod a+r makes them readable). A counter wraps around at
max_energy_range_uj, after minutes to hours under load; it is read more often than that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"
WATTS = 10.0  # of one busy core and its share of the memory: 2 to 4 in servers, 10 to 20 in desktop computers
_JOULES_PER_WH = 3600.0


class Counter:
    """Joules since this object was created, from a function that returns a running total.

    wrap: the value at which the total wraps around; 0: never.
    """

    def __init__(self, total: Callable[[], float], wrap: float = 0.0) -> None:
        self._total, self._wrap = total, wrap
        self._last, self._sum = total(), 0.0

    def joules(self) -> float:
        """Joules so far. If the counter can no longer be read, this stays as it is."""
        with contextlib.suppress(OSError, ValueError):
            now = self._total()
            step = now - self._last
            self._sum += step + self._wrap if step < 0 else step
            self._last = now
        return self._sum


class EnergyMeter:
    """Measures from its creation on. watts: of one busy core, for the estimate. before: Wh of earlier sessions."""

    def __init__(self, backend: str, watts: float = WATTS, before: float = 0.0) -> None:
        self.before = before
        rapl, gpu = rapl_counters(), nvml_counters() if backend == "cupy" else []
        self.is_estimate = not rapl
        self._counters = [*(rapl or [Counter(lambda: time.process_time() * watts)]), *gpu]
        what = "RAPL's counters" if rapl else f"an estimate: processor time x {watts:g} W a core"
        if backend == "cupy":
            what += ", and the GPU's counter" if gpu else ", without the GPU, whose counter can't be read"
        self.source = what

    @property
    def name(self) -> str:
        """Its key in the metrics file."""
        return "energy_wh_estimate" if self.is_estimate else "energy_wh"

    def watt_hours(self) -> float:
        return self.before + sum(counter.joules() for counter in self._counters) / _JOULES_PER_WH


def rapl_counters() -> list[Counter]:
    """A counter for each package, and for its memory where that is counted separately; empty if unreadable."""
    found = []
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):  # AMD's processors have them under the same name
        with contextlib.suppress(OSError, ValueError):
            if (zone / "name").read_text().strip().partition("-")[0] in ("package", "dram"):
                wrap = int((zone / "max_energy_range_uj").read_text()) / 1e6
                found.append(Counter(lambda path=zone / "energy_uj": int(path.read_text()) / 1e6, wrap))  # type: ignore[misc]
    return found


def nvml_counters() -> list[Counter]:
    """The counter of the GPU in use, the first in CUDA_VISIBLE_DEVICES; empty without NVIDIA's driver."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    try:
        library, device = ctypes.CDLL(NVML), ctypes.c_void_p()
        by_index = library.nvmlDeviceGetHandleByIndex_v2
        if library.nvmlInit_v2() or by_index(int(first) if first.isdecimal() else 0, ctypes.byref(device)):
            return []

        def total() -> float:
            millijoules = ctypes.c_ulonglong()
            if library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
                raise OSError("NVML has no energy counter for this GPU")
            return millijoules.value / 1e3

        return [Counter(total)]
    except (OSError, AttributeError):  # no driver, or one that is older than the counter
        return []
