"""PEFT's adapter_config.json: which settings this package supports, ignores, or refuses.

| adapter_config.json | `tinygpt.nn.lora.LoRA` |
|---|---|
| r, lora_alpha, lora_dropout, use_rslora | rank, alpha, dropout, rslora |
| target_modules | targets; a regular expression, or "all-linear": see `peft.py` |

All other settings must have their default value, or must not matter for a trained adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checks import number, whole_number
from ..errors import CheckpointError
from ..nn.lora import ALL_LINEAR, LoRA
from .config import brief, is_any_of

_OURS = {"r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules"}
# How the adapter was made or where it is, and details of settings that are refused below.
_NO_MATTER = {
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "fan_in_fan_out",
    "layers_to_transform", "layers_pattern", "exclude_modules", "megatron_core", "qalora_group_size", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "runtime_config", "ensure_weight_tying",
}  # fmt: skip
# Settings with several values that this package can represent.
_VALUES: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", "FEATURE_EXTRACTION", None),
    "bias": ("none",),
    # Others also change the weights of the base model.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
_UNSET: tuple[Any, ...] = (None, False, {}, [], "")


def settings_of(path: Path, content: Mapping[str, Any]) -> LoRA:
    """The settings in the adapter_config.json at `path`. Raises CheckpointError for one that is not supported."""
    for name, value in content.items():
        if name in _VALUES:
            if not is_any_of(value, _VALUES[name]):
                wanted = " or ".join(repr(one) for one in _VALUES[name])
                raise CheckpointError(f"{path}: {name} is {brief(value)}, but tinygpt supports only {wanted}")
        elif name not in _OURS | _NO_MATTER and not is_any_of(value, _UNSET):
            raise CheckpointError(f"{path}: {name} is {brief(value)}, which tinygpt does not support")
    for name in ("peft_type", "r", "target_modules"):
        if name not in content:
            raise CheckpointError(f"{path} lacks {name}")
    rslora = content.get("use_rslora", False)
    if not isinstance(rslora, bool):
        raise CheckpointError(f"{path}: use_rslora must be true or false, not {brief(rslora)}")
    return LoRA(
        whole_number(str(path), "r", content["r"]),
        number(str(path), "lora_alpha", content.get("lora_alpha", 8), above=0),  # 8 is PEFT's default
        number(str(path), "lora_dropout", content.get("lora_dropout", 0.0), at_least=0, below=1),
        _targets(path, content["target_modules"]),
        rslora,
    )


def _targets(path: Path, value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise CheckpointError(f"{path}: target_modules must be names of layers, not {brief(value)}")
    return tuple(names)


def config_json(lora: LoRA, base: str | None) -> dict[str, Any]:
    """The content of adapter_config.json. base: the folder or the name of the base model."""
    targets = ("c_attn", "c_proj", "c_fc") if ALL_LINEAR in lora.targets else lora.targets
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": lora.rank,
        "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "use_rslora": lora.rslora,
        "target_modules": list(targets), "fan_in_fan_out": True, "bias": "none", "inference_mode": True,
        "modules_to_save": None, "init_lora_weights": True,
    }  # fmt: skip
