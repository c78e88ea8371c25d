"""The compiled kernels, and the choice of the build that suits this processor.

`cpu/` has the kernels in Cython and C, `cuda/` those in CUDA, `threads/` the thread pool. The sources of `cpu/` are
compiled once for each level of vector instructions (see `setup.py`) into modules `tinygpt._ext.<level>`. `load()` takes
the best that the processor can run.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

from ..errors import UsageError

LEVELS = ("native", "avx512", "avx2", "baseline")  # best first


def load() -> ModuleType | None:
    """The kernels compiled for the best level this processor has, or None when nothing was built.

    `TINYGPT_LEVEL` names a level to use instead, for tests and comparisons. Raises UsageError for one that does not
    exist, was not built, or that this processor lacks: its first instruction would end the process without a word.
    """
    wanted, possible = os.environ.get("TINYGPT_LEVEL"), available()
    if wanted and wanted not in possible:
        raise UsageError(_refusal(wanted, possible))
    level = wanted or next(iter(possible), None)
    return importlib.import_module(f"{__name__}.{level}") if level else None


def available() -> list[str]:
    """The levels that were built and that this processor can run, best first."""
    if not built("levels"):
        return []
    supported = importlib.import_module(f"{__name__}.levels").supported()
    return [level for level in LEVELS if level in supported and built(level)]


def built(name: str) -> bool:
    """Whether there is such a module, without importing it."""
    return importlib.util.find_spec(f"{__name__}.{name}") is not None


def _refusal(wanted: str, possible: list[str]) -> str:
    """Why TINYGPT_LEVEL can't be as it is, and what it can be."""
    if not possible:
        to_do = "none was: in a clone of tinygpt, TINYGPT_EXT=require pip install -e . builds them, or says why not"
    else:
        to_do = f"set it to one of {', '.join(possible)}, or unset it for the best of them"
    if wanted not in LEVELS:
        return f"TINYGPT_LEVEL is {wanted!r}, which is no level of the compiled kernels: {to_do}"
    if not built(wanted):
        return f"TINYGPT_LEVEL is {wanted!r}, a level that was not built: {to_do}"
    return f"TINYGPT_LEVEL is {wanted!r}, whose instructions this processor lacks: {to_do}"
