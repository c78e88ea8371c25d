"""`python -m tinygpt.kernel`: which body runs for each kernel.

This is a program, like those in `cli/`: it imports the operations, which register their kernels on import.
"""

from __future__ import annotations

import importlib
import pkgutil

from .. import ops, optim
from . import REGISTRY, Kernel, describe, forced_kind


def every_kernel() -> dict[str, Kernel]:
    """The registry, once every operation and optimizer has registered its kernels."""
    for package in (ops, optim):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    return REGISTRY


def report() -> str:
    """A table: for each kernel, the body that runs and all bodies that this machine has."""
    lines = [describe("numpy"), ""]
    for name, kernel in sorted(every_kernel().items()):
        kinds = list(kernel.variants())
        live = "reference" if forced_kind() == "reference" else kinds[-1]
        lines.append(f"{name:<36} {live:<10} (has: {', '.join(kinds)})")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
