"""`python -m tinygpt.kernel`: which body is live for each kernel.

A program, like those in `cli/`: it stands above the operations, which fill the registry as they are imported.
"""

from __future__ import annotations

import importlib
import pkgutil

from .. import ops, optim
from . import REGISTRY, Kernel, describe, forced_kind


def every_kernel() -> dict[str, Kernel]:
    """The registry, with the kernels of every operation and optimizer in it."""
    for package in (ops, optim):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    return REGISTRY


def report() -> str:
    """A table: each kernel's name and the bodies it has here, the live one first."""
    lines = [describe("numpy"), ""]
    for name, kernel in sorted(every_kernel().items()):
        kinds = list(kernel.variants())
        live = "reference" if forced_kind() == "reference" else kinds[-1]
        lines.append(f"{name:<36} {live:<10} (has: {', '.join(kinds)})")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
