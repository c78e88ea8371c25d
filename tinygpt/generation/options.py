"""Generation options: `GenerationConfig`, a frozen dataclass with transformers' option names and checked values.

    config = GenerationConfig(max_new_tokens=100, temperature=0.8, top_k=50, eos_token_id=50256)
    generate(model, idx, config=config, seed=0)      # options passed to the call override the config's

Every field is checked when the config is created, and so are combinations of fields. If both are given,
`max_new_tokens` takes precedence over `max_length` and `min_new_tokens` over `min_length`, as in transformers.

Differences from transformers' defaults: do_sample is True (there False), and top_k is None (there 50). With neither
max_new_tokens nor max_length, DEFAULT_NEW_TOKENS tokens are generated (also in transformers, but there never past the
block). temperature=0 means greedy. `config_file` reads and writes transformers' generation_config.json. Few use
typical_p, begin_suppress_tokens and do_sample with several beams: they are here because such a file may set them, and a
setting that changes the text must be followed or refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from ..checks import number, whole_number
from ..errors import DtypeError, RangeError, UsageError
from ..random import Generator

WHERE = "generate"
DEFAULT_NEW_TOKENS = 20

# Options that apply only when sampling, and only with more than one beam.
SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
BEAM_OPTIONS = ("length_penalty", "early_stopping")

TokenIds = int | Sequence[int]


@dataclass(frozen=True)
class GenerationConfig:
    """Generation options. Sequences become tuples. Raises UsageError or DtypeError for an invalid value."""

    # Length. The *_length options include the prompt, without its padding.
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None  # no eos token before this many
    min_length: int | None = None

    # How the next token is chosen.
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None

    # When a row ends, and what fills it after its end.
    eos_token_id: TokenIds | None = None
    pad_token_id: int | None = None  # None: the first eos token
    stop_strings: str | Sequence[str] | None = None

    # Number of rows, and beam search.
    num_return_sequences: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False  # or "never"

    # tinygpt's own.
    seed: int | Sequence[int] | None = None  # one for all prompts, or one per prompt
    overflow: str = "slide"  # past block_size tokens: "slide" reads only the last block_size of them, "stop" ends
    vocab_size: int | None = None  # ids from here on are never chosen

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None or name in _NEVER_NONE:
                object.__setattr__(self, name, check(name, value))
        _check_together(self)

    @property
    def greedy(self) -> bool:
        """Whether the highest-scoring token is always chosen, instead of sampling."""
        return not self.do_sample or self.temperature == 0

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return as_tuple(self.eos_token_id)

    @property
    def stops(self) -> tuple[str, ...]:
        return as_tuple(self.stop_strings)

    @property
    def padding(self) -> int | None:
        """The padding token after the end of a row: pad_token_id, or else the first eos token."""
        if self.pad_token_id is not None:
            return self.pad_token_id
        return self.eos_ids[0] if self.eos_ids else None

    def with_options(self, options: Mapping[str, Any]) -> GenerationConfig:
        """A copy of this config with the options of a call applied.

        Options of this config that no longer apply are reset: greedy resets the sampling options, num_beams=1 the beam
        options, and max_new_tokens resets max_length. The options of the call must not contradict each other.
        """
        check_names(options)
        changes = dict(options)
        if options.get("do_sample") is False or ("do_sample" not in options and _is_zero(options.get("temperature"))):
            _drop(changes, *SAMPLING_OPTIONS)
        elif "do_sample" not in options and any(options.get(name) is not None for name in SAMPLING_OPTIONS):
            changes["do_sample"] = True  # passing a temperature means sampling, even if the model's config is greedy
        if options.get("num_beams") == 1:
            _drop(changes, *BEAM_OPTIONS)
        for new, total in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
            if options.get(new) is not None or options.get(total) is not None:
                _drop(changes, new, total)
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The options as a dict `d` of plain values; `GenerationConfig(**d)` equals this config."""
        return asdict(self)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """None, a single value or a tuple, as a tuple."""
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


def check_names(options: Mapping[str, Any]) -> None:
    """Raise UsageError for an unknown option, suggesting the closest name."""
    for name in options:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(OPTIONS)}"
            raise UsageError(f"{WHERE}: there is no option {name!r}: {hint}")


def check_vocabulary(config: GenerationConfig, vocab_size: int) -> None:
    """Raise RangeError for an id outside the vocabulary. The model never sees pad_token_id, so it may be any id."""
    for name in _TOKEN_OPTIONS:
        value = getattr(config, name)
        ids = [i for word in value or () for i in word] if name == "bad_words_ids" else as_tuple(value)
        for token in ids:
            if token >= vocab_size:
                raise RangeError(f"{WHERE}: {name} contains {token}, but valid ids are 0 .. {vocab_size - 1}")


def _drop(changes: dict[str, Any], *names: str) -> None:
    """Reset the named options to their defaults, except those that the changes set themselves."""
    for name in names:
        changes.setdefault(name, getattr(GenerationConfig, name))


# Combinations of options --------------------------------------------------------------------------


def _check_together(config: GenerationConfig) -> None:
    if config.greedy:
        for name in SAMPLING_OPTIONS:
            if getattr(config, name) not in (None, 0, 1):  # these values have no effect
                raise UsageError(
                    f"{WHERE}: {name}={getattr(config, name)} applies only to sampling: "
                    f"remove it, or use do_sample=True and a temperature above 0"
                )
    if config.num_beams == 1:
        for name in BEAM_OPTIONS:
            if getattr(config, name) != getattr(GenerationConfig, name):
                raise UsageError(
                    f"{WHERE}: {name}={getattr(config, name)!r} applies only to beam search: "
                    f"remove it, or use num_beams above 1"
                )
        if config.greedy and config.num_return_sequences > 1:
            raise UsageError(
                f"{WHERE}: greedy decoding is deterministic, so num_return_sequences={config.num_return_sequences} "
                f"would repeat the same row: use do_sample=True with a temperature above 0, or num_beams above 1"
            )
    elif config.num_return_sequences > config.num_beams:
        raise UsageError(
            f"{WHERE}: num_return_sequences must be at most num_beams={config.num_beams}, "
            f"not {config.num_return_sequences}"
        )
    for low, high in (("min_new_tokens", "max_new_tokens"), ("min_length", "max_length")):
        least, most = getattr(config, low), getattr(config, high)
        if least is not None and most is not None and least > most:
            raise UsageError(f"{WHERE}: {low}={least} is more than {high}={most}")


# Checks of single options -------------------------------------------------------------------------


def _whole(at_least: int, hint: str = "") -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        try:
            return whole_number(WHERE, name, value, at_least)
        except UsageError as error:
            raise type(error)(f"{error}{hint}") from None

    return check


def _number(**bounds: float) -> Callable[[str, Any], float]:
    return lambda name, value: number(WHERE, name, value, **bounds)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise DtypeError(f"{WHERE}: {name} must be True or False, not {value!r}")
    return bool(value)


def _one_of(*choices: Any) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
            raise UsageError(f"{WHERE}: {name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
        return value

    return check


def _ids(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise DtypeError(f"{WHERE}: {name} must be a list of token ids, not {value!r}")
    return tuple(whole_number(WHERE, f"every id of {name}", token, 0) for token in value)


def _id_or_ids(name: str, value: Any) -> int | tuple[int, ...] | None:
    if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str):
        return _ids(name, value) or None
    return whole_number(WHERE, name, value, 0)


def _words(name: str, value: Any) -> tuple[tuple[int, ...], ...] | None:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise DtypeError(f"{WHERE}: {name} must be a list of lists of token ids, not {value!r}")
    words = tuple(_ids(f"each entry of {name}", word) for word in value)
    if not all(words):
        raise UsageError(f"{WHERE}: {name} must not contain an empty list, which forbids no token")
    return words or None


def _strings(name: str, value: Any) -> str | tuple[str, ...] | None:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, Sequence) or not all(isinstance(text, str) for text in strings):
        raise DtypeError(f"{WHERE}: {name} must be a string or a list of strings, not {value!r}")
    if not all(strings):
        raise UsageError(f"{WHERE}: {name} must not contain an empty string, which would end every row at once")
    return value if isinstance(value, str) else tuple(strings) or None


def _seeds(name: str, value: Any) -> int | tuple[int, ...]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(Generator(seed).seed for seed in value)
    return Generator(value).seed


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "max_new_tokens": _whole(0),
    "max_length": _whole(1),
    "min_new_tokens": _whole(0),
    "min_length": _whole(0),
    "do_sample": _flag,
    "temperature": _number(at_least=0),
    "top_k": _whole(1, " (None samples from all tokens)"),
    "top_p": _number(at_least=0, at_most=1),  # 0 keeps only the most probable token, as in transformers
    "min_p": _number(at_least=0, at_most=1),
    "typical_p": _number(above=0, at_most=1),
    "repetition_penalty": _number(at_least=1e-30, at_most=1e30),  # outside these bounds, scores would overflow
    "no_repeat_ngram_size": _whole(0),
    "bad_words_ids": _words,
    "suppress_tokens": _ids,
    "begin_suppress_tokens": _ids,
    "eos_token_id": _id_or_ids,
    "pad_token_id": _whole(0),
    "stop_strings": _strings,
    "num_return_sequences": _whole(1),
    "num_beams": _whole(1),
    "length_penalty": _number(at_least=-50, at_most=50),  # length**50 fits in a float for any length
    "early_stopping": _one_of(True, False, "never"),
    "seed": _seeds,
    "overflow": _one_of("slide", "stop"),
    "vocab_size": _whole(1),
}
_TOKEN_OPTIONS = ("eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
OPTIONS = tuple(field.name for field in fields(GenerationConfig))
_NEVER_NONE = {field.name for field in fields(GenerationConfig) if field.default is not None}
