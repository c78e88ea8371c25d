"""The settings of a command as a TOML file: read by --config, and written with every run as config.toml.

    tinygpt train --config run.toml --lr 3e-4          # options override the file
    tinygpt train --config out/run/config.toml         # the same run again, bit for bit, in another folder

A key is the name of an option with _ instead of -; tables may group keys under any heading, and have no meaning. Values
are checked like the options. The file of a run holds all settings, defaults included, so that a later version with
other defaults repeats it. It has no --out, --overwrite, --resume or --no-cache: they don't define the run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ... import __version__
from ...errors import RangeError, UsageError
from ...files import atomic_write, explain_os_errors, shown, user_path
from ...gpt import GPTConfig
from ..storage.folder import CONFIGURATION
from .choose import VOCAB_SIZES, Settings

_NOT_KEYS = frozenset({"help", "config", "resume"})
_NOT_WRITTEN = frozenset({"out", "overwrite", "no_cache"})
_PATHS = frozenset({"files", "data", "valid", "init_from", "model", "template", "tokenizer", "word_vectors"})
_EITHER = ({"files", "data"}, {"steps", "epochs"})  # an option also overrides the key of the other
# What other programs call a setting, nanoGPT first.
_ELSEWHERE = {
    "learning_rate": "lr", "max_iters": "steps", "max_steps": "steps", "out_dir": "out", "output_dir": "out",
    "eval_interval": "eval_every", "eval_iters": "eval_batches", "log_interval": "log_every", "device": "backend",
    "warmup_iters": "warmup_steps", "lr_decay_iters": "decay_steps", "num_train_epochs": "epochs",
    "gradient_accumulation_steps": "gradient_accumulation", "max_grad_norm": "grad_clip",
}  # fmt: skip


def add_config_option(parser: argparse.ArgumentParser, group: Any = None) -> None:
    """Add --config. Call it when the parser has all its options: they are the keys. The parser is an `OptionParser`."""
    words = "a TOML file with any of these options, written as block_size = 64; the command line overrides it"
    (group or parser).add_argument("--config", metavar="FILE.toml", help=words)
    parser.set_defaults(keys=[(group.title or "", _keys_of(group)) for group in parser._action_groups])


def _keys_of(group: Any) -> dict[str, argparse.Action]:
    """The options of a group that a file may set, by their keys."""
    found = {}
    for action in group._group_actions:
        names = [name[2:].replace("-", "_") for name in action.option_strings if name.startswith("--")]
        name = names[0] if names else action.dest
        if name not in _NOT_KEYS:
            found[name] = action
    return found


# Reading ----------------------------------------------------------------------------------------------


def defaults_from(given: argparse.Namespace) -> dict[str, Any]:
    """The settings of the --config file, by destination, without those that the command line overrides.

    given: the options parsed from the command line alone. Raises UsageError, with the file and the line.
    """
    path = user_path(given.config)
    keys = keys_of(given)
    with explain_os_errors("read the configuration", path):
        content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{shown(path)} is not a TOML file: {error}") from error
    found: dict[str, Any] = {}
    for key, value in _flat(values):
        where = f"{shown(path)}{_line(text, key)}"
        name = known_key(key, keys, where)
        action = keys[name]
        if action.dest in found:
            raise UsageError(f"{where}: {key} is set twice in this file")
        found[action.dest] = _value(action, name, value, where)
    overridden = {name for name in found if _is_given(given, name) and isinstance(found[name], list)}
    for pair in _EITHER:
        if any(_is_given(given, name) for name in pair):
            overridden |= pair
    return {name: value for name, value in found.items() if name not in overridden}


def _is_given(given: argparse.Namespace, name: str) -> bool:
    return bool(getattr(given, name, None))


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield key, value


def _line(text: str, key: str) -> str:
    """The line that sets a key, found without parsing."""
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return f", line {number}"
    return ""


def keys_of(options: argparse.Namespace) -> dict[str, argparse.Action]:
    """The options that a file may set, by their keys, of a command that has --config."""
    return {name: action for _, group in options.keys for name, action in group.items()}


def known_key(key: str, keys: Mapping[str, argparse.Action], where: str) -> str:
    """The key as spelled in `keys`. Raises UsageError, with the nearest one, if it is not there."""
    name = key.replace("-", "_")
    if name not in keys:
        raise UsageError(f"{where}: {_unknown(key, keys)}")
    return name


def _unknown(key: str, keys: Mapping[str, Any]) -> str:
    name = key.lower().replace("-", "_")
    if name in _NOT_KEYS:
        return f"{key} can be given on the command line only"
    near = [_ELSEWHERE[name]] if _ELSEWHERE.get(name) in keys else difflib.get_close_matches(name, keys, 1, 0.6)
    advice = f"did you mean {near[0]}?" if near else "the command's --help lists all settings"
    return f"there is no setting {key}: {advice}"


def _value(action: argparse.Action, name: str, value: Any, where: str) -> Any:
    """A value of the file as the option would have it. Raises UsageError."""
    many = action.nargs == "*" or isinstance(action, argparse._AppendAction)
    if many and not (isinstance(value, list) and all(isinstance(part, str) for part in value)):
        value = [_value_of(str, name, value, where)]
    if many:
        return value
    if action.nargs == 0:  # a switch, --overwrite, or one with a --no- form
        return _value_of(bool, name, value, where)
    value = _value_of(action.type or str, name, value, where)
    if action.choices is not None and value not in action.choices:
        raise RangeError(f"{where}: {name} must be one of {', '.join(action.choices)}, not {value!r}")
    return value


def _value_of(kind: Any, name: str, value: Any, where: str) -> Any:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text in quotes"}[kind]
    kinds = (int, float) if kind is float else (kind,)
    if type(value) not in kinds:
        plain = isinstance(value, (str, int, float))
        said = json.dumps(value, ensure_ascii=False) if plain else f"a {type(value).__name__}"
        raise UsageError(f"{where}: {name} must be {words}, not {said}")
    return kind(value)


def value_of_text(action: argparse.Action, name: str, text: str, where: str) -> Any:
    """A value as it is written on a command line: 1e-4, true, adamw. Raises UsageError."""
    value: Any = text
    if action.nargs == 0:
        value = {"true": True, "false": False}.get(text.lower(), text)
    elif action.type in (int, float):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                value = kind(text)
                break
    return _value(action, name, value, where)


def given_settings(options: argparse.Namespace, fresh: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, by key. fresh: the options of the command when none is given."""
    values, default = vars(options), vars(fresh)
    dests = {name: action.dest for name, action in keys_of(options).items()}
    return {
        name: values[dest]
        for name, dest in dests.items()
        if values.get(dest) is not None and values[dest] != default.get(dest)
    }


# Writing ----------------------------------------------------------------------------------------------


def write_configuration(options: argparse.Namespace, settings: Settings, place: Path) -> None:
    """Write the whole configuration of a new run into the folder `place`, if the command has --config."""
    groups = getattr(options, "keys", None)
    if groups is None:
        return
    values = _values(options, settings)
    lines = [
        f"# The configuration of a run of tinygpt {__version__}; the option --config with this file repeats the run.",
        "# What --resume changed later is not here but in metrics.jsonl.",
    ]
    for title, keys in groups:
        there = {name: values.get(action.dest) for name, action in keys.items() if name not in _NOT_WRITTEN}
        there = {name: located(name, value) for name, value in there.items() if value is not None}
        if there:
            lines += ["", f"# {title}", *(f"{name} = {to_toml(value)}" for name, value in there.items())]
    with explain_os_errors("write", place / CONFIGURATION), atomic_write(place / CONFIGURATION, "w") as file:
        file.write("\n".join(lines) + "\n")


def _values(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """All settings by destination, including those not given; None for those that are not set.

    A setting derived from another one (min_lr from lr) is left out, so that it is derived again if that one changes.
    """
    values = {name: None if value is False or value == [] else value for name, value in vars(options).items()}
    training = dataclasses.asdict(settings.training)
    values |= {name: None if name in settings.training.followed else value for name, value in training.items()}
    if settings.start is None:
        values |= {name: value for name, value in settings.model.items() if name in GPTConfig.__dataclass_fields__}
        kind = settings.tokenizer or "character"
        values |= {"tokenizer": kind, "tokenizer_size": settings.vocab_size or VOCAB_SIZES.get(kind)}
    values["backend"] = settings.backend
    if values.get("data") is not None and "files" in values:
        values |= {"files": [values["data"]], "data": None}
    if values.get("epochs") is not None:
        values["steps"] = None
    return values


def located(name: str, value: Any) -> Any:
    """The value of the key `name`; the name of a file or folder is made absolute, so that it is found from anywhere."""
    if name not in _PATHS:
        return value
    if isinstance(value, list):
        return [located(name, part) for part in value]
    path = os.path.expanduser(value)
    pattern = name in ("files", "data", "valid") and value != "-"
    return os.path.abspath(path) if pattern or os.path.exists(path) else value


def to_toml(value: Any) -> str:
    """A string, a number, a boolean or a list of these, in TOML."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(shown(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
