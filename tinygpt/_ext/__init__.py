"""The compiled kernels, and the choice of the build that suits this processor.

The same Cython sources are compiled once for each level of vector instructions (see `setup.py`) into
modules `tinygpt._ext.<level>`. `load()` takes the best that the processor can run.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from ..errors import UsageError

LEVELS = ("native", "avx512", "avx2", "baseline")  # best first


def load() -> ModuleType | None:
    """The kernels compiled for the best level this processor has, or None when nothing was built.

    `TINYGPT_LEVEL` names a level to use instead, for tests and comparisons.
    """
    wanted = os.environ.get("TINYGPT_LEVEL")
    if wanted:
        if wanted not in LEVELS:
            raise UsageError(f"TINYGPT_LEVEL is {wanted!r}: set it to one of {', '.join(LEVELS)}")
        return importlib.import_module(f"{__name__}.{wanted}")
    try:
        cpu = importlib.import_module(f"{__name__}.cpu")
    except ImportError:
        return None
    for level in LEVELS:
        if level in cpu.supported():
            try:
                return importlib.import_module(f"{__name__}.{level}")
            except ModuleNotFoundError:
                continue  # this level was not built
    return None
