"""A run that trains a LoRA adapter: its command-line options, and the adapter that a resumed run continues with."""

from __future__ import annotations

import argparse
from typing import Any

from ..checkpoint import Checkpoint, made_of
from ..errors import CheckpointError, UsageError
from ..interop.packed_run import FORMATS, is_packed
from ..nn.lora import LoRA, lora_of

_OPTIONS = {"rank": "lora_rank", "alpha": "lora_alpha", "dropout": "lora_dropout", "targets": "lora_targets"}


def add_lora_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Options for training an adapter instead of the whole model. Returns their group."""
    group = parser.add_argument_group("LoRA: freeze the model and train a small adapter for its linear layers")
    words = "rank of the adapter, such as 8; the default --lr is then ten times as high"
    group.add_argument("--lora-rank", type=int, metavar="N", help=words)
    words = f"scale the update by X / rank (default: {LoRA.alpha})"
    group.add_argument("--lora-alpha", type=float, metavar="X", help=words)
    words = f"dropout on the input of the update (default: {LoRA.dropout:g})"
    group.add_argument("--lora-dropout", type=float, metavar="X", help=words)
    words = f"which layers, such as c_attn,c_proj,c_fc or all-linear (default: {','.join(LoRA.targets)})"
    group.add_argument("--lora-targets", metavar="NAMES", help=words)
    return group


def add_quantize_option(group: argparse._ArgumentGroup) -> None:
    """The option that keeps the base model packed."""
    words = (
        "keep the frozen model in 8, 4 or 16 bits while its adapter is trained (with --lora-rank), to save memory; the "
        "run's folder then holds only the adapter, so the model must stay where it is"
    )
    group.add_argument("--quantize", choices=FORMATS, help=words)


def check_quantize(options: argparse.Namespace, lora: LoRA | None) -> None:
    """Raise UsageError for a packed base without an adapter, or one that a resumed run could not find again."""
    if options.quantize is None:
        return
    if lora is None:
        raise UsageError(
            f"--quantize {options.quantize} keeps the model's weights as they are, so it needs an adapter to train: "
            "add --lora-rank, or leave it out"
        )
    if options.revision is not None:
        raise UsageError(
            "--quantize leaves a run that finds its model by name, without --revision: save that revision in a folder "
            "(tinygpt convert), and give the folder"
        )


def require_adapter(model: Any) -> None:
    """Raise UsageError for a packed model without an adapter: its matrices can't be trained."""
    if is_packed(model) and lora_of(model) is None:
        raise UsageError(
            f"Trainer: a model packed into {model.packed} can be trained through an adapter only: add one with "
            "tinygpt.nn.add_lora, or load the model without packing"
        )


def lora_of_options(options: argparse.Namespace) -> LoRA | None:
    """The adapter that the options ask for; None if they ask for none. Raises UsageError."""
    given = {name: getattr(options, option, None) for name, option in _OPTIONS.items()}
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if not values:
        return None
    if "rank" not in values:
        option = _OPTIONS[next(iter(values))].replace("_", "-")
        raise UsageError(f"--{option} is a setting of a LoRA adapter: add --lora-rank, or leave it out")
    if "targets" in values:
        values["targets"] = tuple(name.strip() for name in values["targets"].split(",") if name.strip())
    return LoRA(**values)


def lora_of_checkpoint(checkpoint: Checkpoint, where: str) -> LoRA | None:
    """The adapter in a checkpoint; None if it has none. Raises CheckpointError if the arrays contradict it."""
    if checkpoint.state.get("lora") is None:
        return None
    lora: LoRA = made_of(LoRA.from_dict, checkpoint.state, "lora", where)
    ranks = {array.shape[:1] for name, array in checkpoint.model.items() if name.endswith(".lora_A")}
    if ranks != {(lora.rank,)}:  # a forged rank would allocate any amount of memory
        raise CheckpointError(f"{where} is damaged: it holds no LoRA adapter of rank {lora.rank}")
    return lora
