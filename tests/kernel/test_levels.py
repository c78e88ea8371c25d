"""Every compiled level that this processor can run, each in a process of its own, by the rule in
`tests/ops/kernel_rule.py`.

The other tests run on the best level only, which is the one that users' processors of another make do not have. Also
the refusal of a level that can't be run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.kernel.at_level import NAMED, output_at
from tinygpt._ext import LEVELS, load
from tinygpt.errors import UsageError

ROOT = Path(__file__).parents[2]
CHECK = """
import sys
import numpy as np
from tests.ops.drawing import some_examples
from tests.ops.kernel_rule import assert_within, float32_budget, float64_budget, results
from tests.ops.cases import KERNEL_ROWS
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


@pytest.mark.slow
@pytest.mark.parametrize("level", NAMED)
def test_the_kernels_of_each_level(level: str) -> None:
    assert "kernels are right" in output_at(level, CHECK)


# A processor that has only what every processor has, a build without one of the levels, or without any.
REFUSED = """
import sys
import numpy as np
import tinygpt as tg
from tinygpt import _ext
lacking = sys.argv[1]
if lacking == "instructions":
    from tinygpt._ext import levels
    levels.supported = lambda: ["native", "baseline"]
    _ext.built = lambda name: True
elif lacking != "nothing":
    _ext.built = lambda name: lacking == "one level" and name != "avx512"
try:
    tg.tensor(np.ones((2, 3), np.float32)).gelu()
except tg.UsageError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "lacking", "words"),
    [
        ("avx512", "instructions", "whose instructions this processor lacks: set it to one of "),
        ("avx2", "instructions", "whose instructions this processor lacks: set it to one of "),
        ("avx512", "one level", "a level that was not built: set it to one of "),
        ("avx512", "everything", "a level that was not built: none was: in a clone of tinygpt, TINYGPT_EXT="),
        ("avx3", "nothing", "which is not a level of the compiled kernels: "),
    ],
)
def test_a_level_that_can_not_be_is_refused_with_a_sentence(level: str, lacking: str, words: str) -> None:
    """In a process of its own, since a level is chosen once, and it could die of an illegal instruction."""
    if load() is None:
        pytest.skip("extension not built")
    environment = {**os.environ, "TINYGPT_LEVEL": level, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", REFUSED, lacking]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.startswith(f"TINYGPT_LEVEL is '{level}', {words}"), done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("there", ["native", "avx512"])
@pytest.mark.parametrize("wanted", [None, "native", "avx2"])
def test_a_build_for_a_greater_processor_is_refused_with_a_sentence(
    wanted: str | None, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if load() is None:
        pytest.skip("extension not built")
    from tinygpt._ext import levels

    monkeypatch.setattr(levels, "supported", lambda: ["baseline", "avx2"])
    monkeypatch.setattr("tinygpt._ext.built", lambda name: name in (there, "levels"))
    if wanted is None:
        monkeypatch.delenv("TINYGPT_LEVEL", raising=False)
    else:
        monkeypatch.setenv("TINYGPT_LEVEL", wanted)
    with pytest.raises(UsageError, match=rf"built for a processor with other instructions \({there}\) than this one: "):
        load()


@pytest.mark.parametrize("supported", [["native", "baseline"], ["native", "baseline", "avx2"]])
def test_the_best_level_of_those_that_are_possible_is_taken(
    supported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if load() is None:
        pytest.skip("extension not built")
    from tinygpt._ext import levels

    monkeypatch.delenv("TINYGPT_LEVEL", raising=False)
    monkeypatch.setattr(levels, "supported", lambda: supported)
    monkeypatch.setattr("tinygpt._ext.built", lambda name: True)
    found = {"tinygpt._ext.levels": levels}
    monkeypatch.setattr("importlib.import_module", lambda name: found.get(name) or ModuleType(name))
    best = next(level for level in LEVELS if level in supported)
    assert load().__name__ == f"tinygpt._ext.{best}"  # type: ignore[union-attr]
