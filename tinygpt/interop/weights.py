"""The arrays of a GPT-2 directory: their names and shapes, and the way from the file into a model.

    with open_weights(folder) as weights:       # model.safetensors, or model.safetensors.index.json and its shards
        weights.check(config)                   # all there, nothing else, of the right shapes
        weights.fill(model)                     # and pack it, matrix by matrix: fill(model, "int8")

Names are those of this model's parameters, with the prefix `transformer.` where the file is of a model with a head
and without it where it is of the model alone. Three kinds of arrays are no parameters: `attn.bias` and
`attn.masked_bias`, which older versions of transformers kept and which are the causal mask, and `lm_head.weight` where
it is the token embedding once more. Of the two names of that one matrix the file may have the head's alone: it is what
`safetensors.torch.save_model` keeps. A head of its own (tie_word_embeddings=False) is a parameter like the others.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..gpt import GPT, GPTConfig
from ..nn.packed import pack_model
from ..ops.packed import require_finite
from ..safetensors_io import SafetensorsFile
from .config import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PREFIX = "transformer."
HOW_TO_CONVERT = (
    'where transformers and PyTorch are installed, convert it with: python -c "from transformers import '
    "AutoModelForCausalLM as M; M.from_pretrained('{}').save_pretrained('NEW_FOLDER')\""
)
RUN = "model."  # before each name in a checkpoint of a training run
HEAD, _EMBEDDING = "lm_head.weight", "wte.weight"
_MASK = re.compile(r"h\.\d+\.attn\.(masked_)?bias")
_FILE_NAME = re.compile(r"[^/\\:\0]+\.safetensors")


def parameter_shapes(config: GPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every array of a GPT-2 of this size, biases included, in the model's order."""
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


class Weights:
    """The arrays of one model, in one file or several: `place` says where each parameter is."""

    def __init__(self, folder: Path, files: list[SafetensorsFile], prefix: str = PREFIX) -> None:
        self.folder = folder
        self.place: dict[str, tuple[SafetensorsFile, str]] = {}
        for file in files:
            for stored in file.arrays:
                name = stored.removeprefix(prefix)
                if name in self.place:
                    raise CheckpointError(f"the weights in {folder} hold {name!r} twice")
                if not _MASK.fullmatch(name):
                    self.place[name] = (file, stored)
        self.head = self.place.pop(HEAD, None)

    @classmethod
    def of_run(cls, path: Path, file: SafetensorsFile) -> Weights:
        """Those of the model in a checkpoint, which holds more."""
        weights = cls(path, [])
        weights.place = {name.removeprefix(RUN): (file, name) for name in file.arrays if name.startswith(RUN)}
        return weights

    @property
    def count(self) -> int:
        """How many numbers they are."""
        return sum(math.prod(file.arrays[name].shape) for file, name in self.place.values())

    def check_model(self, model: GPT) -> None:
        """Raise CheckpointError unless these are the parameters of `model`, which may be of a subclass."""
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        for what, names in (("lack", shapes.keys() - self.place.keys()), ("have", self.place.keys() - shapes.keys())):
            if names:
                why = f"which a {type(model).__name__} of this configuration {'has' if what == 'lack' else 'has not'}"
                raise CheckpointError(f"the weights in {self.folder} {what} {_listed(names)}, {why}")
        for name, shape in shapes.items():
            self._check_array(name, self.place[name], shape)

    def check(self, config: GPTConfig) -> None:
        """Raise CheckpointError unless these are the arrays of a model of this size. Reads none of them.

        Where the head's matrix is the embedding's, either name will do for both. Otherwise both must be there.
        """
        if not config.tie_word_embeddings:
            if self.head is None:
                raise CheckpointError(
                    f"the weights in {self.folder} lack {HEAD!r}, and config.json says tie_word_embeddings=false: "
                    "without it the model has no head"
                )
            self.place[HEAD], self.head = self.head, None
        elif _EMBEDDING not in self.place and self.head is not None:
            self.place[_EMBEDDING], self.head = self.head, None
        # First of all, before names are made for a billion layers that somebody claims.
        if config.n_layer > len(self.place):
            raise CheckpointError(
                f"the weights in {self.folder} are {len(self.place)} arrays, too few for the {config.n_layer} layers "
                "of its config.json"
            )
        shapes = dict(parameter_shapes(config))
        for what, names in (("lack", shapes.keys() - self.place.keys()), ("have", self.place.keys() - shapes.keys())):
            if names:
                why = "that this model's config.json asks for" if what == "lack" else "which is no part of a GPT-2"
                raise CheckpointError(f"the weights in {self.folder} {what} {_listed(names)}, {why}")
        for name, shape in shapes.items():
            self._check_array(name, self.place[name], shape)
        if self.head is not None:
            self._check_array(HEAD, self.head, shapes["wte.weight"])

    def _check_array(self, name: str, place: tuple[SafetensorsFile, str], shape: tuple[int, ...]) -> None:
        info = place[0].arrays[place[1]]
        if info.shape != shape:
            raise CheckpointError(
                f"the weights in {self.folder} have {name!r} of shape {info.shape}; config.json says {shape}"
            )
        if info.code not in ("F32", "F16", "BF16", "F64"):
            raise CheckpointError(
                f"the weights in {self.folder} have {name!r} as {info.code}; tinygpt loads F32, F16, BF16 and F64: "
                "take the model's version that is not quantized"
            )

    def drop_zero_biases(self) -> bool:
        """Leave all biases out, if every one is zero; whether it was so."""
        biases = [name for name in self.place if name.endswith(".bias")]
        if any(file.read(stored).any() for file, stored in map(self.place.__getitem__, biases)):
            return False
        for name in biases:
            del self.place[name]
        return True

    def fill(self, model: GPT, format: str | None = None) -> None:
        """Read every parameter of `model`, which lives on NumPy; `check_model` has passed. Raises CheckpointError.

        format: pack the model into it, each matrix as soon as it is read. Those that are packed need no memory before
        (`nn.uninitialized(without_matrices=True)`), so there is never more than one of them unpacked.
        """
        if format is not None:
            pack_model(model, format, fill=self._fill_layer)
        for name, parameter in model.named_parameters():
            self._read(name, parameter)

    def _fill_layer(self, path: str, layer: Any) -> None:
        """Read the weight of a layer that is packed next."""
        self._read(f"{path}.weight", layer.weight)
        require_finite(layer.weight.data, f"{path}.weight")

    def _read(self, name: str, parameter: Any) -> None:
        if not parameter.data.flags.c_contiguous:  # made without memory of its own
            parameter.data = np.empty(parameter.shape, parameter.dtype)
        file, stored = self.place[name]
        file.read_into(stored, parameter.data)

    def take_other_head(self) -> bool:
        """Whether there is a head that differs from the token embedding, though the configuration ties them.

        It then is a parameter like the others, as transformers has it.
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
    """The weights in `folder`; where both are there, model.safetensors comes before the index, as in transformers."""
    with contextlib.ExitStack() as stack:
        if (folder / SINGLE).exists():
            files = [stack.enter_context(SafetensorsFile(folder / SINGLE))]
        elif (folder / INDEX).exists():
            shards = shards_of(folder)
            files = [stack.enter_context(SafetensorsFile(folder / name)) for name in sorted(set(shards.values()))]
            _check_index(folder, shards, files)
        else:
            raise CheckpointError(_no_weights(folder))
        yield Weights(folder, files)


def shards_of(folder: Path) -> dict[str, str]:
    """Name of an array -> name of the file that holds it, of the index in `folder`."""
    path = folder / INDEX
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{path} has no weight_map that says which file holds which array")
    for name, file in shards.items():
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
            raise CheckpointError(f"{path}: {name!r} must be in a .safetensors file of the same folder, not {file!r}")
    return shards


def _listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    found = sorted(names)
    return ", ".join(repr(name) for name in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _check_index(folder: Path, shards: dict[str, str], files: list[SafetensorsFile]) -> None:
    """Each array must be in the file that the index gives, and nowhere else."""
    held = {(file.path.name, name) for file in files for name in file.arrays}
    named = {(file, name) for name, file in shards.items()}
    for file, name in sorted(named - held)[:1]:
        raise CheckpointError(f"{folder / INDEX} says that {file} holds {name!r}, which it does not")
    for file, name in sorted(held - named)[:1]:
        raise CheckpointError(f"{folder / file} holds {name!r}, which {INDEX} does not say")


def _no_weights(folder: Path) -> str:
    """What to say where there are none in our format."""
    if any(folder.glob("pytorch_model*.bin")):
        return (
            f"{folder} has its weights as pytorch_model.bin only, a pickle, which can run any code when it is read and "
            "is not loaded here: " + HOW_TO_CONVERT.format(folder)
        )
    others = [name for name in ("tf_model.h5", "flax_model.msgpack") if (folder / name).exists()]
    found = f", only {others[0]}, which tinygpt does not read" if others else ""
    return f"there are no weights in {folder}: neither {SINGLE} nor {INDEX}{found}"
