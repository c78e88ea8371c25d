"""Scripts that are not part of a package (benchmarks, documentation), as modules."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType


def module_in(folder: Path, name: str) -> ModuleType:
    """The module `name` of `folder`, with its neighbours importable while it is imported."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
