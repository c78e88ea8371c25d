"""The arrays of a GPT-2 directory: their names and shapes, and reading them into a model.

    with open_weights(folder) as weights:       # the first of `WHOLE` that is there, or an index and its shards
        weights.check(config)                   # exactly the expected arrays, with the right shapes
        weights.fill(model)                     # to pack it as well, matrix by matrix: fill(model, "int8")

The names are those of this model's parameters. Files saved from a model with a head have the prefix `transformer.`;
files of the bare transformer don't. Three kinds of arrays are not parameters: `attn.bias` and `attn.masked_bias`, the
causal mask that older versions of transformers stored, and `lm_head.weight` if it is tied to the token embedding. A
file may contain that tied matrix only as `lm_head.weight`, the name that `safetensors.torch.save_model` keeps. An
untied head (tie_word_embeddings=False) is a parameter like the others.

Older folders hold pytorch_model.bin, a pickle, instead of model.safetensors. It is read without executing anything
(torch_file.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..array_file import ArrayFile
from ..errors import CheckpointError
from ..gpt import GPT, GPTConfig
from ..nn.packed import pack_model
from ..ops.packed import require_finite
from ..safetensors_io import SafetensorsFile
from .config import read_json
from .torch_file import TorchFile

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# In transformers' order: safetensors first, one file before an index of several.
WHOLE: dict[str, type[ArrayFile]] = {SINGLE: SafetensorsFile, TORCH: TorchFile}
INDEXES: dict[str, type[ArrayFile]] = {INDEX: SafetensorsFile, TORCH_INDEX: TorchFile}
ORDER = (SINGLE, INDEX, TORCH, TORCH_INDEX)
# Of a LoRA adapter (`peft.py`).
ADAPTER, TORCH_ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"
PREFIX = "transformer."
RUN = "model."  # the prefix of each name in the checkpoint of a training run
HEAD, SCORE, _EMBEDDING = "lm_head.weight", "score.weight", "wte.weight"  # SCORE: the head of a classifier
_MASK = re.compile(r"h\.\d+\.attn\.(masked_)?bias")
_FILE_NAME = re.compile(r"[^/\\:\0]+\.(safetensors|bin)")


def parameter_shapes(config: GPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every array in a GPT-2 of this size, including biases, in the model's order."""
    V, T, C, inner = config.vocab_size, config.block_size, config.n_embd, config.inner
    yield from (("wte.weight", (V, C)), ("wpe.weight", (T, C)))
    for layer in range(config.n_layer):
        for part, shape in (
            ("ln_1", (C,)), ("attn.c_attn", (C, 3 * C)), ("attn.c_proj", (C, C)),
            ("ln_2", (C,)), ("mlp.c_fc", (C, inner)), ("mlp.c_proj", (inner, C)),
        ):  # fmt: skip
            yield f"h.{layer}.{part}.weight", shape
            yield f"h.{layer}.{part}.bias", shape[-1:]
    yield from (("ln_f.weight", (C,)), ("ln_f.bias", (C,)))
    if not config.tie_word_embeddings:
        yield HEAD, (V, C)


class ClassifierFoundError(CheckpointError):
    """The weights are valid, but they are a classifier's, and a language model was asked for."""


class Weights:
    """The arrays of one model, in one or several files. `place` maps each parameter to its file and stored name.

    settings: what an error message calls the source of the configuration that they must match.
    """

    def __init__(
        self, folder: Path, files: Sequence[ArrayFile], prefix: str = PREFIX, settings: str = "config.json"
    ) -> None:
        self.folder, self.settings = folder, settings
        self.place: dict[str, tuple[ArrayFile, str]] = {}
        for file in files:
            for stored in file.arrays:
                name = stored.removeprefix(prefix)
                if name in self.place:
                    raise CheckpointError(f"the weights in {folder} contain {name!r} twice")
                if not _MASK.fullmatch(name):
                    self.place[name] = (file, stored)
        self.head = self.place.pop(HEAD, None)
        self.score = self.place.pop(SCORE, None)

    @classmethod
    def of_run(cls, path: Path, file: ArrayFile) -> Weights:
        """The model's weights in a checkpoint, which contains other arrays too."""
        weights = cls(path, [])
        names = (name for name in file.arrays if name.startswith(RUN))
        weights.place = {name.removeprefix(RUN).removeprefix(PREFIX): (file, name) for name in names}
        weights.score = weights.place.pop(SCORE, None)
        return weights

    @property
    def count(self) -> int:
        """The total number of elements."""
        return sum(math.prod(file.arrays[name].shape) for file, name in self.place.values())

    def check_model(self, model: GPT) -> None:
        """Raise CheckpointError unless these are exactly the parameters of `model`, which may be a subclass of GPT."""
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        for what, names in (("lack", shapes.keys() - self.place.keys()), ("have", self.place.keys() - shapes.keys())):
            if names:
                why = f"which a {type(model).__name__} of this configuration {'has' if what == 'lack' else 'lacks'}"
                raise CheckpointError(f"the weights in {self.folder} {what} {_listed(names)}, {why}")
        for name, shape in shapes.items():
            self._check_array(name, self.place[name], shape)

    def drop_heads(self, config: GPTConfig) -> GPTConfig:
        """Leave out what a classifier or the language model has beyond `hidden`. Returns the configuration without."""
        self.score = None
        self.place.pop(HEAD, None)  # where a run's checkpoint has it
        if not config.tie_word_embeddings:
            self.head = None
        return dataclasses.replace(config, tie_word_embeddings=True)

    def check_rank(self, rank: int) -> None:
        """Raise CheckpointError unless there is a LoRA adapter of this rank: a forged one could claim any."""
        ranks = {
            file.arrays[stored].shape[:1] for name, (file, stored) in self.place.items() if name.endswith(".lora_A")
        }
        if ranks != {(rank,)}:
            raise CheckpointError(f"the weights in {self.folder} have no LoRA adapter of rank {rank}")

    def refuse_classifier(self) -> None:
        """Raise ClassifierFoundError if there is a classifier's head, which a language model would lose."""
        if self.score is not None:
            raise ClassifierFoundError(
                f"{self.folder} holds a classifier, as {SCORE!r} says, not a language model: give it to `tinygpt eval` "
                "or `predict`, or load it with GPTForSequenceClassification.from_pretrained"
            )

    def check(self, config: GPTConfig) -> None:
        """Raise CheckpointError unless these are exactly the arrays of a model of this size. Reads only headers.

        If the head is tied to the embedding, one of the two names is enough. Otherwise both must be present.
        """
        self.refuse_classifier()
        if not config.tie_word_embeddings:
            if self.head is None:
                raise CheckpointError(
                    f"the weights in {self.folder} lack {HEAD!r}, which is required because {self.settings} says "
                    "tie_word_embeddings=false"
                )
            self.place[HEAD], self.head = self.head, None
        elif _EMBEDDING not in self.place and self.head is not None:
            self.place[_EMBEDDING], self.head = self.head, None
        # Check this first: a malicious config.json could claim a billion layers.
        if config.n_layer > len(self.place):
            raise CheckpointError(
                f"the weights in {self.folder} are only {len(self.place)} arrays, too few for the {config.n_layer} "
                f"layers in {self.settings}"
            )
        shapes = {name: shape for name, shape in parameter_shapes(config) if config.bias or not name.endswith(".bias")}
        for what, names in (("lack", shapes.keys() - self.place.keys()), ("have", self.place.keys() - shapes.keys())):
            if names:
                why = f"which its {self.settings} requires" if what == "lack" else "which a GPT-2 does not have"
                raise CheckpointError(f"the weights in {self.folder} {what} {_listed(names)}, {why}")
        for name, shape in shapes.items():
            self._check_array(name, self.place[name], shape)
        if self.head is not None:
            self._check_array(HEAD, self.head, shapes["wte.weight"])

    def _check_array(self, name: str, place: tuple[ArrayFile, str], shape: tuple[int, ...]) -> None:
        info = place[0].arrays[place[1]]
        if info.shape != shape:
            raise CheckpointError(
                f"the weights in {self.folder} have {name!r} of shape {info.shape}, but {self.settings} implies {shape}"
            )
        if info.code not in ("F32", "F16", "BF16", "F64"):
            raise CheckpointError(
                f"the weights in {self.folder} have {name!r} as {info.code}, but tinygpt loads only F32, F16, BF16 and "
                "F64: use a version of the model that is not quantized"
            )

    def drop_zero_biases(self) -> bool:
        """Drop all biases if every one is zero. Returns whether it did."""
        biases = [name for name in self.place if name.endswith(".bias")]
        if any(file.read(stored).any() for file, stored in map(self.place.__getitem__, biases)):
            return False
        for name in biases:
            del self.place[name]
        return True

    def fill(self, model: GPT, format: str | None = None) -> None:
        """Read every parameter of `model`, a NumPy model that passed `check_model`. Raises CheckpointError.

        format: pack the model into this format, each matrix as soon as it is read. With
        `nn.uninitialized(without_matrices=True)` its matrices are allocated only when they are read, so no more than
        one is unpacked at a time.
        """
        if format is not None:
            pack_model(model, format, fill=self._fill_layer)
        for name, parameter in model.named_parameters():
            self._read(name, parameter)

    def _fill_layer(self, path: str, layer: Any) -> None:
        """Read the weight of the layer that is about to be packed."""
        self._read(f"{path}.weight", layer.weight)
        require_finite(layer.weight.data, f"{path}.weight")

    def _read(self, name: str, parameter: Any) -> None:
        if not parameter.data.flags.c_contiguous:  # a placeholder without memory
            parameter.data = np.empty(parameter.shape, parameter.dtype)
        file, stored = self.place[name]
        file.read_into(stored, parameter.data)

    def take_other_head(self) -> bool:
        """If there is a head that differs from the token embedding, though the configuration ties them, untie it.

        It then becomes a parameter like the others, as in transformers. Returns whether it did.
        """
        if self.head is None:
            return False
        (file, stored), (of_embedding, embedding) = self.head, self.place[_EMBEDDING]
        expected: Any = of_embedding.read(embedding).reshape(-1)
        for start, piece in file.pieces(stored, np.float64):
            if not np.array_equal(piece, expected[start : start + piece.size], equal_nan=True):
                self.place[HEAD], self.head = self.head, None
                return True
        return False


@contextlib.contextmanager
def open_weights(folder: Path) -> Iterator[Weights]:
    """The weights in `folder`: those of the first file of `ORDER` that is there."""
    found = weights_file(folder)
    if found is None:
        raise CheckpointError(_no_weights(folder))
    with contextlib.ExitStack() as stack:
        if found in WHOLE:
            files = [stack.enter_context(WHOLE[found](folder / found))]
        else:
            shards = shards_of(folder, found)
            files = [stack.enter_context(INDEXES[found](folder / name)) for name in sorted(set(shards.values()))]
            _check_index(folder, found, shards, files)
        yield Weights(folder, files)


def weights_file(folder: Path) -> str | None:
    """The file of weights, or their index, that is read in `folder`."""
    return next((name for name in ORDER if (folder / name).exists()), None)


def shards_of(folder: Path, index: str = INDEX) -> dict[str, str]:
    """The index in `folder`: name of each array -> name of the file that contains it."""
    path, ending = folder / index, ".safetensors" if index == INDEX else ".bin"
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{path} has no weight_map, the table of which file contains which array")
    for name, file in shards.items():
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file) or not file.endswith(ending):
            raise CheckpointError(f"{path}: {name!r} must be in a {ending} file of the same folder, not {file!r}")
    return shards


def _listed(names: Iterable[str]) -> str:
    """The first few names, and the number of the others."""
    found = sorted(names)
    return ", ".join(repr(name) for name in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _check_index(folder: Path, index: str, shards: dict[str, str], files: Sequence[ArrayFile]) -> None:
    """Raise CheckpointError unless each array is in the file that the index names, and nowhere else."""
    held = {(file.path.name, name) for file in files for name in file.arrays}
    named = {(file, name) for name, file in shards.items()}
    for file, name in sorted(named - held)[:1]:
        raise CheckpointError(f"{folder / index} says that {file} contains {name!r}, but it does not")
    for file, name in sorted(held - named)[:1]:
        raise CheckpointError(f"{folder / file} contains {name!r}, but {index} does not say so")


def _no_weights(folder: Path) -> str:
    """The error message for a folder without weights."""
    others = [name for name in ("tf_model.h5", "flax_model.msgpack") if (folder / name).exists()]
    found = f", only {others[0]}, which tinygpt does not read" if others else ""
    return f"there are no weights in {folder}: none of {', '.join(ORDER)}{found}"
