"""Command-line options derived from dataclasses, so that no setting is declared twice.

    add_field_options(parser, TrainingConfig, "training")      # --lr, --batch-size, --no-detect-anomaly, ...
    given_options(parser.parse_args(), TrainingConfig)         # {"lr": 0.001}: only what the user gave

A field's type gives the option's type; its `metadata` has the help text ("help"), the choices ("choices") and the
value of the option when it is given without one ("without_value"). An option that was not given is absent from the
result: its value comes from the preset, the dataclass or, in a resumed run, the checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Collection, Mapping
from typing import Any


def add_field_options(
    parser: argparse.ArgumentParser,
    config_class: type,
    title: str,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    help: Mapping[str, str] | None = None,
    skip: Collection[str] = (),
) -> None:
    """Add an option for each field of the dataclass, except those in `skip`.

    presets: the values of each preset, by name; the help text shows them where they differ. help: texts for fields
    without one in their metadata.
    """
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(config_class)
    for setting in dataclasses.fields(config_class):
        if setting.name in skip:
            continue
        kind = next(t for t in (typing.get_args(hints[setting.name]) or (hints[setting.name],)) if t is not type(None))
        words = setting.metadata.get("help") or (help or {}).get(setting.name, "")
        text = f"{words}{_defaults(setting, presets or {})}".replace("%", "%%")
        settings: dict[str, Any] = {"dest": setting.name, "default": argparse.SUPPRESS, "help": text}
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings |= {"type": kind, "choices": setting.metadata.get("choices")}
            if settings["choices"] is None:
                settings["metavar"] = "N" if kind is int else "X"
            if "without_value" in setting.metadata:
                settings |= {"nargs": "?", "const": setting.metadata["without_value"]}
        group.add_argument("--" + setting.name.replace("_", "-"), **settings)


def _defaults(setting: dataclasses.Field[Any], presets: Mapping[str, Mapping[str, Any]]) -> str:
    values = {name: preset.get(setting.name, setting.default) for name, preset in presets.items()}
    if len(set(map(repr, values.values()))) > 1:
        names: dict[Any, list[str]] = {}
        for name, value in values.items():
            names.setdefault(value, []).append(name)
        usual = None if None in names else max(names, key=lambda value: len(names[value]))
        fewer = [f"{value} for {' and '.join(names[value])}" for value in names if value not in (None, usual)]
        return f" (default: {', '.join(fewer)}{'' if usual is None else f', otherwise {usual}'})"
    default = next(iter(values.values()), setting.default)
    return "" if default is None else f" (default: {default})"  # None: the help text explains the default


def given_options(options: argparse.Namespace, config_class: type) -> dict[str, Any]:
    """The fields of the dataclass that were given on the command line."""
    names = {setting.name for setting in dataclasses.fields(config_class)}
    return {name: value for name, value in vars(options).items() if name in names}
