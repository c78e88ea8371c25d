"""The compiled kernels, and the choice of the build that suits this processor.

`cpu/` has the kernels in Cython and C, `cuda/` those in CUDA, `text/` the fast part of the tokenizers, `threads/` the
thread pool. All but those in CUDA are compiled once per level of vector instructions (see `setup.py`) into modules
`tinygpt._ext.<level>`. `load()` imports the best one that the processor can run.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

from ..errors import UsageError

LEVELS = ("native", "avx512", "avx2", "baseline")  # best first


def load() -> ModuleType | None:
    """The kernels compiled for the best level that this processor supports, or None if nothing was built.

    The environment variable `TINYGPT_LEVEL` selects another level, for tests and comparisons. Raises UsageError if that
    level does not exist, was not built, or is not supported by this processor, which would otherwise crash the process,
    and if the kernels were built for a processor with more instructions.
    """
    wanted, possible = os.environ.get("TINYGPT_LEVEL"), available()
    there = [level for level in LEVELS if built(level)]
    if there and not possible and built("levels"):
        raise UsageError(
            f"the compiled kernels were built for a processor with other instructions ({', '.join(there)}) than this "
            "one: pip install -e . in a clone of tinygpt builds them for this one, and TINYGPT_LEVELS=all before it "
            "for every processor"
        )
    if wanted and wanted not in possible:
        raise UsageError(_refusal(wanted, possible))
    level = wanted or next(iter(possible), None)
    return importlib.import_module(f"{__name__}.{level}") if level else None


def available() -> list[str]:
    """The levels that were built and that this processor supports, best first."""
    if not built("levels"):
        return []
    supported = importlib.import_module(f"{__name__}.levels").supported()
    return [level for level in LEVELS if level in supported and built(level)]


def built(name: str) -> bool:
    """Whether the module exists, without importing it."""
    return importlib.util.find_spec(f"{__name__}.{name}") is not None


def _refusal(wanted: str, possible: list[str]) -> str:
    """The error message for an unusable TINYGPT_LEVEL."""
    if not possible:
        to_do = "none was: in a clone of tinygpt, TINYGPT_EXT=require pip install -e . builds them, or says why not"
    else:
        to_do = f"set it to one of {', '.join(possible)}, or unset it for the best of them"
    if wanted not in LEVELS:
        return f"TINYGPT_LEVEL is {wanted!r}, which is not a level of the compiled kernels: {to_do}"
    if not built(wanted):
        return (
            f"TINYGPT_LEVEL is {wanted!r}, a level that was not built: {to_do}; "
            "TINYGPT_LEVELS=all pip install -e . builds all levels"
        )
    return f"TINYGPT_LEVEL is {wanted!r}, whose instructions this processor lacks: {to_do}"
