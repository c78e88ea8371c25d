"""Functions that a lower layer calls and a higher layer implements.

A model has methods such as `generate` whose code is in layers above it, and imports go only downwards. So the method
asks for its implementation by name, and `tinygpt/__init__.py`, which is above all layers, says which module has it:

    implemented_in({"generate": "tinygpt.generation"})       # in tinygpt/__init__.py
    implementation("generate")(model, prompt)                # in language_model.py, which knows nothing of generation

The module is imported when it is called, so `import tinygpt` stays quick.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

_modules: dict[str, str] = {}  # name of a function -> the module that has it


def implemented_in(modules: Mapping[str, str]) -> None:
    """Say which module implements each of these functions."""
    _modules.update(modules)


def implementation(name: str) -> Any:
    """The function of this name."""
    return getattr(importlib.import_module(_modules[name]), name)
