"""The API reference: a page for each room of the package, with all names that it exports."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType

ROOMS = {
    "tinygpt": "Tensors and the rest of the top level",
    "tinygpt.ops": "Operations",
    "tinygpt.nn": "Modules and layers",
    "tinygpt.optim": "Optimizers",
    "tinygpt.generation": "Generating",
    "tinygpt.tokenizers": "Tokenizers",
    "tinygpt.data": "Data",
    "tinygpt.training": "Training",
    "tinygpt.metrics": "Metrics",
    "tinygpt.interpret": "Seeing inside",
    "tinygpt.interop": "Models of other programs",
    "tinygpt.testing": "Checking gradients",
    "tinygpt.errors": "Errors",
}


def page(room: str) -> str:
    module = importlib.import_module(room)
    parts = [f"# {room}\n", f"{ROOMS[room]}.\n", "```{eval-rst}", f".. currentmodule:: {room}\n"]
    for name in exported(module):
        value = getattr(module, name)
        if inspect.isclass(value):
            parts.append(f".. autoclass:: {name}\n   :members:\n   :show-inheritance:\n")
        elif callable(value):
            parts.append(f".. autofunction:: {name}\n")
    return "\n".join([*parts, "```\n"])


def exported(module: ModuleType) -> list[str]:
    """The names that a room exports or, where it does not say, defines."""
    names = getattr(module, "__all__", None)
    if names is not None:
        rooms = tuple(f"{room}." for room in ROOMS if room != "tinygpt")  # whose own pages have them
        of_room = module.__name__ == "tinygpt"
        values = {name: getattr(module, name) for name in names}
        return [
            name
            for name, value in values.items()
            if not inspect.ismodule(value) and not (of_room and getattr(value, "__module__", "").startswith(rooms))
        ]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def contents() -> str:
    listed = "\n".join(f"{title} <{room}>" for room, title in ROOMS.items())
    tree = f"```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n"
    return f"# API reference\n\nEvery name that a room of the package exports.\n\n{tree}"


def write(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in {"index": contents(), **{room: page(room) for room in ROOMS}}.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
