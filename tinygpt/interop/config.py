"""Read and write the config.json and generation_config.json of a GPT-2 directory.

| config.json | GPTConfig |
|---|---|
| vocab_size, n_layer, n_head, n_embd, layer_norm_epsilon | the same |
| n_positions | block_size |
| num_hidden_layers, num_attention_heads, hidden_size, max_position_embeddings | n_layer, n_head, n_embd, block_size |
| resid_pdrop, embd_pdrop, attn_pdrop | dropout: one value for all three |
| activation_function | the same; synonyms of one function become one name |
| n_inner, scale_attn_weights, scale_attn_by_inverse_layer_idx, tie_word_embeddings | the same |
| (none) | bias: GPT-2 always has biases. A model without them is saved with zeros and "tinygpt_bias": false |

A setting that this model can't represent raises an error that names it. Settings that do not affect the mathematics
(reorder_and_upcast_attn, use_cache, summary_*, ...) are ignored, and so are generation settings, which older versions
of transformers stored here and newer ones no longer read.

generation_config.json becomes the model's `generation_config`, unchanged: the defaults of `generate`, which
`save_pretrained` writes back.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..checks import number, whole_number
from ..errors import CheckpointError, UsageError
from ..gpt import GPTConfig
from ..safetensors_io import unique_names

CONFIG, GENERATION = "config.json", "generation_config.json"
SIZES = {
    "vocab_size": "vocab_size", "n_positions": "block_size", "n_layer": "n_layer", "n_head": "n_head",
    "n_embd": "n_embd",
}  # fmt: skip
# transformers' GPT-2 accepts these names too, and newer files may use them.
OTHER_NAMES = {
    "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
}  # fmt: skip
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
NO_BIAS = "tinygpt_bias"
# transformers' names for the activations of this model. gelu_fast is gelu_new with sqrt(2 / pi) rounded to ten digits.
ACTIVATION_NAMES = {
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate", "gelu_fast"), "gelu_new"),
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"), "relu": "relu", **dict.fromkeys(("silu", "swish"), "silu"),
}  # fmt: skip
SWITCHES = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "tie_word_embeddings": True}
# Settings that affect the mathematics, and the values that this model can represent. The first one is the default.
_REPRESENTED: dict[str, tuple[Any, ...]] = {
    "activation_function": tuple(ACTIVATION_NAMES),
    **{name: (default, not default) for name, default in SWITCHES.items()},
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}
_LONGEST = 10_000_000  # bytes in a JSON file; the index of the largest GPT-2 has 60,000


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError if it is missing, too long, damaged or not a JSON object."""
    try:
        with open(path, "rb") as file:
            # In pieces, because read(n) allocates n bytes, however short the file is.
            content = bytearray()
            while len(content) <= _LONGEST and (piece := file.read(1 << 16)):
                content += piece
        if len(content) > _LONGEST:
            raise CheckpointError(f"{path} has more than {_LONGEST} bytes, which no file of a model needs")
        found = json.loads(content.decode("utf-8"), object_pairs_hook=unique_names, parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a duplicate name
        raise CheckpointError(f"{path} is damaged or cut short: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(found).__name__}")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


class ConfigFile(NamedTuple):
    """The content of a config.json. without_bias: whether it has "tinygpt_bias": false."""

    config: GPTConfig
    without_bias: bool


def read_config(folder: Path, dropout: float | None = None) -> ConfigFile:
    """Read the config.json in `folder`. `dropout`, if given, overrides the file's.

    Raises CheckpointError or another UsageError for a damaged file, wrong types, impossible sizes or an unsupported
    model. Warns if the three dropout probabilities in the file differ.
    """
    path = folder / CONFIG
    settings = _with_our_names(path, read_json(path))
    _refuse_other_models(path, settings)
    missing = [name for name in SIZES if name not in settings]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    sizes: dict[str, Any] = {ours: whole_number(str(path), name, settings[name]) for name, ours in SIZES.items()}
    epsilon = number(str(path), "layer_norm_epsilon", settings.get("layer_norm_epsilon", 1e-5), above=0)
    dropout = _dropout(path, settings) if dropout is None else dropout
    try:
        config = GPTConfig(
            **sizes, dropout=dropout, layer_norm_epsilon=epsilon, n_inner=_n_inner(path, settings, sizes["n_embd"]),
            activation_function=ACTIVATION_NAMES[settings.get("activation_function", "gelu_new")],
            **{name: settings.get(name, default) for name, default in SWITCHES.items()},
        )  # fmt: skip
    except UsageError as error:
        raise CheckpointError(f"{path} is not a valid configuration: {error}") from error
    return ConfigFile(config, settings.get(NO_BIAS) is False)


def _n_inner(path: Path, settings: Mapping[str, Any], n_embd: int) -> int | None:
    """None if it is GPT-2's default, 4 n_embd, which some files write out."""
    value = settings.get("n_inner")
    inner = None if value is None else whole_number(str(path), "n_inner", value)
    return None if inner == 4 * n_embd else inner


def _with_our_names(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under the names in SIZES. Raises CheckpointError if two names of one setting have two values."""
    found = dict(settings)
    for name, other in OTHER_NAMES.items():
        if other in found:
            value = found.pop(other)
            if found.setdefault(name, value) != value:
                raise CheckpointError(
                    f"{path}: {name} is {brief(found[name])} and {other} is {brief(value)}, "
                    "but both name the same setting: remove one"
                )
    return found


def _refuse_other_models(path: Path, settings: Mapping[str, Any]) -> None:
    kind = settings.get("model_type")
    if kind != "gpt2":
        raise CheckpointError(
            f"{path}: model_type is {brief(kind)}, but tinygpt loads only 'gpt2'"
            if kind is not None
            else f"{path} has no model_type: tinygpt loads only models of type 'gpt2'"
        )
    for name, values in _REPRESENTED.items():
        value = settings.get(name, values[0])
        if not is_any_of(value, values):
            wanted = " or ".join(repr(value) for value in values)
            raise CheckpointError(f"{path}: {name} is {brief(value)}, but tinygpt supports only {wanted}")


def is_any_of(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether `values` contains `value`, of the same type: 1 is not True."""
    return any(type(value) is type(other) and value == other for other in values)


def brief(value: Any) -> str:
    """A value of the file for an error message, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _dropout(path: Path, settings: Mapping[str, Any]) -> float:
    dropouts = [number(str(path), name, settings.get(name, 0.1), at_least=0, below=1) for name in DROPOUTS]
    if len(set(dropouts)) > 1:
        listed = ", ".join(f"{name} {p:g}" for name, p in zip(DROPOUTS, dropouts, strict=True))
        warnings.warn(
            f"{path} has {listed}, but tinygpt has a single dropout and uses {dropouts[0]:g} "
            "(this matters only in training): set it with from_pretrained(..., dropout=...)",
            stacklevel=8,
        )
    return dropouts[0]


def config_json(config: GPTConfig, dtype: str, generation: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json for this model with weights of `dtype`; the special tokens come from `generation`."""
    sizes = {name: getattr(config, ours) for name, ours in SIZES.items()}
    no_bias = {} if config.bias else {NO_BIAS: False}
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **sizes, "n_inner": config.n_inner,
        "activation_function": config.activation_function, **dict.fromkeys(DROPOUTS, config.dropout),
        "layer_norm_epsilon": config.layer_norm_epsilon, "initializer_range": 0.02,
        **{name: getattr(config, name) for name in SWITCHES}, **{name: generation.get(name) for name in TOKEN_IDS},
        "torch_dtype": dtype, **no_bias,
    }  # fmt: skip


def read_generation(folder: Path, vocab_size: int) -> dict[str, Any]:
    """The settings in generation_config.json, with the special-token ids from that file or else from config.json.

    Older directories have the ids only in config.json. Ids outside the vocabulary, which the configurations of small
    models often inherit from GPT-2, are dropped.
    """
    settings = read_json(folder / GENERATION) if (folder / GENERATION).exists() else {}
    found = {name: value for name, value in settings.items() if name[:1] != "_" and name != "transformers_version"}
    model_settings = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    for name in TOKEN_IDS:
        value = found.pop(name, None)
        ids = _token_ids(folder, name, model_settings.get(name) if value is None else value, vocab_size)
        if ids:
            found[name] = ids if len(ids) > 1 else ids[0]
    return found


def _token_ids(folder: Path, name: str, value: Any, vocab_size: int) -> list[int]:
    """A list of at most one id; for eos_token_id there may be several."""
    ids = value if isinstance(value, list) and name == "eos_token_id" else [] if value is None else [value]
    if not all(type(token) is int for token in ids):
        raise CheckpointError(f"{folder}: {name} must be a whole number, not {brief(value)}")
    return [token for token in ids if 0 <= token < vocab_size]
