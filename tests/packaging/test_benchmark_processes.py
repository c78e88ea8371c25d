"""The benchmark of several processes: its model and its report, from figures that were made up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.packaging.benchmark_scripts import script


def test_the_model_of_processes() -> None:
    """What it says in the limits, and what follows from figures that were made up."""
    module = script("processes_model")
    latency, bandwidth = module.fitted([2**8, 2**14, 2**20], [1e-4 + 4 * n / 1e9 for n in (2**8, 2**14, 2**20)])
    assert np.allclose((latency, bandwidth), (1e-4, 1e9), rtol=1e-6)
    free = module.weak_efficiency(10**8, 1000, 8, 0.0, 1e30, 1e12)
    assert np.isclose(free, 1.0)
    slow = module.weak_efficiency(10**8, 1, 8, 0.0, 1e9, 1e15)
    assert slow < 0.01
    tokens = module.tokens_for(0.95, 10**8, 8, 3e-5, 1.25e9, 1e12)
    assert module.weak_efficiency(10**8, tokens, 8, 3e-5, 1.25e9, 1e12) >= 0.95
    assert module.weak_efficiency(10**8, tokens / 2, 8, 3e-5, 1.25e9, 1e12) < 0.95
    # All that is left for the end: 4 bytes for each parameter of the embedding, 7 / 4 times through the network.
    compute, last = 6 * 10**8 * 10**5 / 1e12, 1.75 * 4 * 10**7 / 1e9
    assert np.isclose(module.weak_efficiency(10**8, 10**5, 8, 0.0, 1e9, 1e12, 10**7), compute / (compute + last))
    assert np.isclose(module.hidden_share(1.0, 1.4, 0.4), 1.0)
    assert module.hidden_share(1.4, 1.4, 0.4) == 0.0


def test_the_report_on_processes(capsys: pytest.CaptureFixture[str]) -> None:
    """A machine that becomes slower from round to round changes no ratio, and one bad round is no verdict."""
    module = script("processes")
    steps = {"1 x 1": 2.0, "1 x 2": 1.0, "2 x 1": 1.01, "2 x 1, weak": 2.1, "torch 1 x 2": 1.5, "torch 2 x 1": 1.6}
    results: dict[str, Any] = {
        name: {"seconds": {n: seconds * (1 + n) for n in range(1 if "1 x 1" in name else 5)}, "processor": [0.5],
               "parts": {"norm": [0.002, 0.003, 0.004]}}
        for name, seconds in steps.items()
    }  # fmt: skip
    results["2 x 1"]["seconds"][4] *= 3
    results["sums"] = {"times": [1e-4 + 4 * n / 1e9 for n in module.SIZES], "processor": 1e-9}
    results["afterwards"] = [{"seconds": 3.04, "parts": {"waiting for the sums": 0.04}}]
    results["facts"] = {"parameters": 10**7, "buckets": 8}
    results["memory"] = {"whole": 80_000_000, "sharded": [40_000_000, 41_000_000]}
    said = module.report("baby", 2, results)
    assert [line.startswith("- met") for line in said] == [True, True]
    assert "2 x 1 reaches 0.990 of 1 x 2 threads (the middle half of 5 rounds 0.99 to 0.99; aim: 0.97)" in said[0]
    assert "1.58 times as fast as DDP, and alone 1.50" in said[1]
    printed = capsys.readouterr().out
    assert "Strong efficiency 0.99, weak 0.95. The sums of a step take 40.0 ms alone, in 8 buckets, and 25%" in printed
    assert "send and receive 40 MB" in printed
    assert "| norm | 3.0 |" in printed
    assert "takes 80.0 MB on each process, with --shard-optimizer 40.0, 41.0." in printed
    for number in range(5):
        results["2 x 1"]["seconds"][number] *= 1.1
    assert [line.startswith("- met") for line in module.report("baby", 2, results)] == [False, False]
