"""transformers' generation_config.json: read, and written so that transformers reads the same meaning.

    config = read_config_file(folder)              # or a path, or None where the folder has no such file
    write_config_file(config, folder)

What a file does not mention keeps tinygpt's default (`GenerationConfig` says where these differ from transformers').
Keys of theirs without influence on the outcome are passed over; keys that would change it and that tinygpt lacks are
refused by name, and so are keys that nobody knows.
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

_OURS = ("seed", "overflow", "vocab_size")  # they belong to a call, and transformers does not know them

# How the result is computed or reported, not what it is; what other kinds of model read; notes; and what older versions
# of transformers had and the newer ones pass over.
_WITHOUT_INFLUENCE = {
    "assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind",
    "bos_token_id", "cache_config", "cache_implementation", "compile_config", "continuous_batching_config",
    "decoder_start_token_id", "disable_compile", "forced_decoder_ids", "generation_kwargs", "is_assistant",
    "low_memory", "max_cache_len",
    "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "output_attentions",
    "output_hidden_states", "output_logits", "output_scores", "prefill_chunk_size", "prompt_lookup_num_tokens",
    "remove_invalid_values", "return_dict_in_generate", "return_legacy_cache", "speculation_type", "target_lookbehind",
    "transformers_version", "use_cache", "use_mtp",
}  # fmt: skip

# What tinygpt lacks, with the values that switch it off.
_LACKING: dict[str, tuple[Any, ...]] = {
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
    """A GenerationConfig from transformers' settings. Raises UsageError for what tinygpt can't do."""
    options: dict[str, Any] = {}
    for name, value in settings.items():
        if name in OPTIONS and name not in _OURS:
            if value is not None and not (name in _ZERO_IS_OFF and value == 0):
                options[name] = value
        elif value is None or name.startswith("_") or name in _WITHOUT_INFLUENCE:
            continue
        elif name not in _LACKING:
            raise UsageError(f"{where}: tinygpt does not know the setting {name!r}: remove it if it is of no weight")
        elif value not in _LACKING[name]:
            raise UsageError(f"{where}: tinygpt's generation has no {name!r}, which is set to {value!r}: remove it")
    # Left over from other modes, as transformers' files often have it: without influence there.
    if options.get("do_sample") is False:
        options = {name: value for name, value in options.items() if name not in SAMPLING_OPTIONS}
    if options.get("num_beams", 1) == 1:
        options = {name: value for name, value in options.items() if name not in BEAM_OPTIONS}
    return GenerationConfig(**options)


def config_to_dict(config: GenerationConfig) -> dict[str, Any]:
    """transformers' settings of the same meaning: what differs from its defaults, and do_sample and top_k always."""
    settings: dict[str, Any] = {}
    for name in OPTIONS:
        value = getattr(config, name)
        unused = name in _OURS or (config.greedy and name in SAMPLING_OPTIONS)
        if not unused and value != getattr(GenerationConfig, name):
            settings[name] = _plain(value)
    settings["do_sample"] = not config.greedy
    if not config.greedy:
        settings["top_k"] = config.top_k or 0  # to transformers None means 50
    return settings


def read_config_file(path: str | os.PathLike[str]) -> GenerationConfig | None:
    """The config in a file, or in a folder's generation_config.json: None where a folder has none.

    Raises CheckpointError for a file that can't be read, UsageError for what is in it.
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
    """Write transformers' generation_config.json into a folder, or to a path: whole or not at all."""
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
