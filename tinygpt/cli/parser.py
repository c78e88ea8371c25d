"""A parser that reports a mistake in one line, and imports a command only when it is called."""

from __future__ import annotations

import argparse
import importlib
from typing import Any, NoReturn


class OptionParser(argparse.ArgumentParser):
    """argparse.ArgumentParser that reports a mistake in one line instead of forty lines of usage.

    source: the module whose `add_options(parser)` adds the options. It is imported when they are needed, because its
    own imports (such as the training settings) take longer than everything else.
    """

    def __init__(self, *arguments: Any, source: str | None = None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._source = source
        self._is_command = source is not None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._source is not None:
            module, self._source = importlib.import_module(self._source), None
            self.description = module.ABOUT
            module.add_options(self)
        found, rest = super().parse_known_args(args, namespace)
        if getattr(found, "config", None) is not None:  # parse again, with the file's settings as defaults
            self.set_defaults(**importlib.import_module("tinygpt.training.settings.config_file").defaults_from(found))
            found, rest = super().parse_known_args(args, namespace)
        if rest and self._is_command:  # else the top-level parser would refer to its own help, which lists no options
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")
