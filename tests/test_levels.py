"""Every compiled level that this processor can run, by the rule in `kernel_rule.py`, each in a process of its own.

The other tests run on the best level only, which is the one that users' processors of another make do not have.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinygpt._ext import LEVELS, load

TESTS = Path(__file__).parent
CHECK = """
import sys
import numpy as np
from drawing import some_examples
from kernel_rule import assert_within, float32_budget, float64_budget, results
from op_cases import KERNEL_ROWS
import tinygpt.ops, tinygpt.optim
from tinygpt.backends import get

assert get("numpy").extension().__name__.endswith("." + sys.argv[1])
for row in KERNEL_ROWS:
    for example in some_examples(row.examples, 8):
        for dtype, budget in ((np.float32, float32_budget), (np.float64, float64_budget)):
            try:
                assert_within(results(row, "cython", example.make(dtype)), *budget(row, example))
            except AssertionError as error:
                raise SystemExit(f"{row.name} in {dtype.__name__}: {error}")
print(len(KERNEL_ROWS), "kernels are right")
"""


@pytest.mark.parametrize("level", [level for level in LEVELS if level != "native"])
def test_the_kernels_of_each_level(level: str) -> None:
    if load() is None:
        pytest.skip("extension not built")
    from tinygpt._ext import cpu

    if level not in cpu.supported():
        pytest.skip(f"this processor lacks {level}")
    if importlib.util.find_spec(f"tinygpt._ext.{level}") is None:
        pytest.skip(f"the level {level} was not built: TINYGPT_MARCH asks for one level only")
    environment = {**os.environ, "TINYGPT_LEVEL": level, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [sys.executable, "-c", CHECK, level]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernels are right" in done.stdout
