"""Read and write transformers' generation_config.json. A file written here means the same in transformers.

    config = read_config_file(folder)              # or the path of a file; None if the folder has no such file
    write_config_file(config, folder)

Settings missing from a file keep tinygpt's defaults (`GenerationConfig` says where these differ from transformers').
transformers' settings that do not affect the output are ignored. Settings that do and that tinygpt does not support
raise an error naming the setting, and so do unknown settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UsageError
from ..files import atomic_write
from .options import BEAM_OPTIONS, OPTIONS, SAMPLING_OPTIONS, GenerationConfig

FILE_NAME = "generation_config.json"

_OURS = ("seed", "overflow", "vocab_size")  # they belong to a single call, and transformers has no such settings

# Settings for how the result is computed or reported; settings for other kinds of models; metadata; and settings of
# older versions of transformers that newer ones ignore.
_IGNORED = {
    "assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind",
    "bos_token_id", "cache_config", "cache_implementation", "compile_config", "continuous_batching_config",
    "decoder_start_token_id", "disable_compile", "forced_decoder_ids", "generation_kwargs", "is_assistant",
    "low_memory", "max_cache_len",
    "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "output_attentions",
    "output_hidden_states", "output_logits", "output_scores", "prefill_chunk_size", "prompt_lookup_num_tokens",
    "remove_invalid_values", "return_dict_in_generate", "return_legacy_cache", "speculation_type", "target_lookbehind",
    "transformers_version", "use_cache", "use_mtp",
}  # fmt: skip

# Settings that tinygpt does not support, with the values that turn them off.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "constraints": (),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "max_time": (),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "renormalize_logits": (False,),
    "sequence_bias": (),
    "token_healing": (False,),
    "top_h": (),
    "watermarking_config": (),
}

_ZERO_IS_OFF = ("top_k", "min_p")


def config_from_dict(settings: Mapping[str, Any], where: str = FILE_NAME) -> GenerationConfig:
    """A GenerationConfig from transformers' settings. Raises UsageError for a setting that tinygpt does not support."""
    options: dict[str, Any] = {}
    for name, value in settings.items():
        if name in OPTIONS and name not in _OURS:
            if value is not None and not (name in _ZERO_IS_OFF and value == 0):
                options[name] = value
        elif value is None or name.startswith("_") or name in _IGNORED:
            continue
        elif name not in _UNSUPPORTED:
            raise UsageError(f"{where}: unknown setting {name!r}: remove it if it does not matter")
        elif value not in _UNSUPPORTED[name]:
            raise UsageError(f"{where}: tinygpt does not support {name!r}, which is set to {value!r}: remove it")
    # transformers' files often contain options of a mode that is off; transformers ignores them.
    if options.get("do_sample") is False:
        options = {name: value for name, value in options.items() if name not in SAMPLING_OPTIONS}
    if options.get("num_beams", 1) == 1:
        options = {name: value for name, value in options.items() if name not in BEAM_OPTIONS}
    return GenerationConfig(**options)


def config_to_dict(config: GenerationConfig) -> dict[str, Any]:
    """The equivalent transformers settings: those that differ from the defaults, plus do_sample and top_k always."""
    settings: dict[str, Any] = {}
    for name in OPTIONS:
        value = getattr(config, name)
        unused = name in _OURS or (config.greedy and name in SAMPLING_OPTIONS)
        if not unused and value != getattr(GenerationConfig, name):
            settings[name] = _plain(value)
    settings["do_sample"] = not config.greedy
    if not config.greedy:
        settings["top_k"] = config.top_k or 0  # in transformers, None means 50
    return settings


def read_config_file(path: str | os.PathLike[str]) -> GenerationConfig | None:
    """The config in a file, or in a folder's generation_config.json; None if the folder has none.

    Raises CheckpointError if the file can't be read, and UsageError if a setting in it is unknown or invalid.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
        if not path.exists():
            return None
    try:
        settings = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or cut short: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(settings).__name__}")
    return config_from_dict(settings, str(path))


def write_config_file(config: GenerationConfig, path: str | os.PathLike[str]) -> None:
    """Write transformers' generation_config.json atomically, into a folder or to the path of a file."""
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    content = json.dumps(config_to_dict(config), indent=2, sort_keys=True, ensure_ascii=False)
    try:
        with atomic_write(path, "wb") as file:
            file.write(content.encode("utf-8") + b"\n")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
