"""One row for each operation and for each kernel: how to draw inputs for it. All checks run over the rows.

Each file of this folder has rows in `ROWS` and `KERNEL_ROWS`; here they are put together. A new operation has a file of
its own, or a row in one that is there. `test_operations.py` runs its checks over ROWS, `test_checker.py` breaks each
row's backward pass, `tests/kernel/` compares the bodies of each kernel over KERNEL_ROWS, `tests/cuda/` those for a GPU.
`tests/ops/test_completeness.py` names what is missing. A file may also list, in `EQUIVALENT`, changes of its CUDA
source that make no difference, each list under the reason: `tests/cuda/test_mutants.py` wants all others noticed.

Draw the values away from kinks (relu at 0, ties in max) and poles (log at 0): the check compares with differences.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.ops.drawing import KernelRow, Row

ROWS: list[Row] = []
KERNEL_ROWS: list[KernelRow] = []
EQUIVALENT: dict[str, list[str]] = {}
for _path in sorted(Path(__file__).parent.glob("[!_]*.py")):
    _module = importlib.import_module(f"{__name__}.{_path.stem}")
    if isinstance(getattr(_module, "KERNEL_ROWS", None), list):
        ROWS += _module.ROWS
        KERNEL_ROWS += _module.KERNEL_ROWS
        for _reason, _changes in getattr(_module, "EQUIVALENT", {}).items():
            EQUIVALENT[_reason] = [*EQUIVALENT.get(_reason, []), *_changes]

# Those that have a compiled body for the CPU.
COMPILED_ROWS = [row for row in KERNEL_ROWS if row.large]
