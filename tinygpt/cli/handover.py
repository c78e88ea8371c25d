"""What process 0 of a run on several processes hands over to the others just before the run begins.

    hand_over(trainer, tokens, checkpoint)      # on process 0; does nothing if it is alone
    start = taken_over(team, place)             # on all others, at the same time

Settings and the description of the model travel as JSON, weights and tokens as the bytes of arrays. An object is never
sent: each process builds its model from the description (`described`, `built`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import backends, nn
from ..checkpoint import Checkpoint, fingerprint
from ..data import open_tokens
from ..errors import UsageError
from ..gpt import GPT, GPTConfig
from ..nn.lora import LoRA, insert_lora, lora_of
from ..nn.packed import PackedEmbedding, PackedLinear, activations_of, pack_model, round_activations
from ..ops.packed import Matrix
from ..parallel import Communicator, current
from ..training import Trainer, TrainingConfig

_CHUNK = 1 << 26  # bytes of a token file that are sent at a time

Arrays = dict[str, np.ndarray]


@dataclass
class Start:
    """What a process needs to run with process 0."""

    config: TrainingConfig
    model: GPT
    tokens: np.ndarray
    checkpoint: Checkpoint | None
    watch_layers: int | None  # steps between the norms of layers, which all processes compute together


def hand_over(trainer: Trainer, tokens: Path, checkpoint: Checkpoint | None) -> None:
    """Give the others what they need, just before process 0 begins the run. Does nothing on a single process.

    tokens: the file of the run's tokens. checkpoint: of a resumed run.
    """
    team = current()
    if team.size == 1:
        return
    description, arrays = described(trainer.model)
    team.share_value({
        "config": dataclasses.asdict(trainer.config), "model": description, "tokens": str(tokens),
        "fingerprint": fingerprint(open_tokens(tokens)), "backend": trainer.parameters[0].backend,
        "state": None if checkpoint is None else checkpoint.state, "watch_layers": trainer.watch.layers_every,
    })  # fmt: skip
    team.share_arrays(arrays)
    if checkpoint is not None:
        team.share_arrays(checkpoint.model)
        team.share_arrays(checkpoint.optimizer)
    _send_tokens(team, tokens, needed=False)


def taken_over(team: Communicator, place: Path) -> Start:
    """What process 0 hands over. place: a folder for a copy of the tokens, if this process can't see the file."""
    facts = team.share_value(None)
    backends.use_backend(facts["backend"])
    model = built(facts["model"], team.share_arrays(None))
    model.to(facts["backend"])
    checkpoint = None
    if facts["state"] is not None:
        checkpoint = Checkpoint(team.share_arrays(None), team.share_arrays(None), facts["state"])
    tokens = _tokens_of(team, Path(facts["tokens"]), facts["fingerprint"], place)
    return Start(TrainingConfig(**facts["config"]), model, tokens, checkpoint, facts["watch_layers"])


# The model ------------------------------------------------------------------------------------------


def described(model: Any) -> tuple[dict[str, Any], Arrays]:
    """A GPT as plain values and arrays, from which `built` makes an equal one: packed or not, with its adapter, its
    random state, and which of its parameters are trained."""
    lora = lora_of(model)
    description = {
        "config": model.config.to_dict(), "dtype": model.parameters()[0].dtype.name, "packed": model.packed,
        "lora": None if lora is None else lora.to_dict(), "source": model.source,
        "generator": model.generator.state_dict(), "activations": activations_of(model),
        "trained": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "training": [path for path, module in model.named_modules() if module.training],
        "matrices": {path: [layer.matrix.group, layer.matrix.outputs] for path, layer in _packed_layers(model)},
    }  # fmt: skip
    arrays = {f"parameter {name}": parameter.data for name, parameter in model.named_parameters()}
    for path, layer in _packed_layers(model):
        arrays |= {f"{kind} {path}": getattr(layer.matrix, kind) for kind in ("data", "scale")}
    return description, {name: backends.move(array, "numpy") for name, array in arrays.items() if array is not None}


def built(description: dict[str, Any], arrays: Arrays) -> GPT:
    """The model that was given to `described`, on NumPy."""
    packed, lora = description["packed"], description["lora"]
    with backends.use_backend("numpy"):
        with nn.uninitialized(without_matrices=packed is not None):
            model = GPT(GPTConfig.from_dict(description["config"]), dtype=description["dtype"])
        if packed is not None:
            pack_model(model, packed, fill=_zeros)
        if lora is not None:
            insert_lora(model, LoRA.from_dict(lora))
        for path, layer in _packed_layers(model):
            layer.matrix = Matrix(arrays[f"data {path}"], arrays.get(f"scale {path}"), *description["matrices"][path])
        round_activations(model, description["activations"])
        trained, training = set(description["trained"]), set(description["training"])
        for name, parameter in model.named_parameters():
            parameter.data, parameter.requires_grad = arrays[f"parameter {name}"], name in trained
        for path, module in model.named_modules():
            module.training = path in training
    model.generator.load_state_dict(description["generator"])
    model.source = description["source"]
    return model


def _packed_layers(model: Any) -> Iterator[tuple[str, Any]]:
    return ((path, m) for path, m in model.named_modules() if isinstance(m, (PackedLinear, PackedEmbedding)))


def _zeros(path: str, layer: Any) -> None:
    """A placeholder for a layer to pack, until the packed matrix takes its place."""
    layer.weight.data = np.zeros(layer.weight.shape, layer.weight.dtype)


# The tokens -----------------------------------------------------------------------------------------


def _tokens_of(team: Communicator, path: Path, expected: str, place: Path) -> np.ndarray:
    """The tokens of process 0: its own file if this process sees it, otherwise a copy."""
    try:
        tokens = open_tokens(path)
        seen = fingerprint(tokens) == expected
    except (UsageError, OSError):
        seen = False
    copy = place / "tokens.npy"
    _send_tokens(team, copy, needed=not seen)
    if seen:
        return tokens
    tokens = open_tokens(copy)
    with contextlib.suppress(OSError):  # Windows keeps a file that is open
        copy.unlink()  # now, because launchers end a run by killing its processes, which then remove nothing
    return tokens


def _send_tokens(team: Communicator, path: Path, needed: bool) -> None:
    """Send the token file of process 0 to the others, if any of them needs it. path: of it, or of the copy."""
    if not any(team.gather_values(needed)):
        return
    size = team.share_value(path.stat().st_size if team.rank == 0 else None)
    with open(path, "rb") if team.rank == 0 else open(path if needed else os.devnull, "wb") as file:
        for begin in range(0, size, _CHUNK):
            chunk = np.empty(min(_CHUNK, size - begin), np.uint8)
            if team.rank == 0:
                chunk[:] = np.frombuffer(file.read(len(chunk)), np.uint8)
            team.broadcast(chunk)
            if team.rank > 0:
                file.write(chunk.data)
