"""nanoGPT's files: a checkpoint, `ckpt.pt`, and the characters of its text, `meta.pkl`. Nothing in them is executed.

    model = tinygpt.GPT.from_pretrained("out-shakespeare-char/ckpt.pt")     # or the folder, if it holds no other model
    tinygpt.interop.convert("out/ckpt.pt", folder, tokenizer="data/shakespeare_char/meta.pkl")

A checkpoint is a dictionary written by `torch.save` (torch_file.py): `model`, the weights; `model_args`, the sizes; and
the optimizer's state, the settings and the best loss of the run, which are never read.

| nanoGPT | here |
|---|---|
| the prefixes `_orig_mod.` and `module.` of torch.compile and DistributedDataParallel | removed |
| `weight` of c_attn, c_proj and c_fc: (out, in), as in nn.Linear | (in, out): read transposed |
| nn.GELU(), exact | activation_function="gelu" |
| bias=False | the same |
| lm_head.weight, the same as wte.weight | tied |
| vocab_size=50304, of which GPT-2's tokenizer uses 50257 | the same: ids without text are never generated |

nanoGPT's first versions computed GELU with tanh, which no file records: for those, convert the checkpoint and set
activation_function to gelu_new in config.json.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from .. import tokenizers
from ..errors import CheckpointError, UsageError
from ..files import user_path
from ..gpt import GPTConfig
from ..tokenizers import CharTokenizer, Tokenizer
from .config import CONFIG
from .torch_file import TorchFile, tensors_in
from .torch_pickle import LONGEST, unpickle
from .torch_tensors import Refused, Tensor
from .weights import ADAPTER_CONFIG

CHECKPOINT, META = "ckpt.pt", "meta.pkl"
SUFFIXES = (".pt", ".pth")  # of a file that is read as a nanoGPT checkpoint
_OF_OTHERS = (CONFIG, "checkpoints.json", ADAPTER_CONFIG)  # files of other kinds of models
_SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
_WRAPPERS = re.compile(r"(_orig_mod\.|module\.)+")
_LINEAR = re.compile(r".*\.(c_attn|c_proj|c_fc)\.weight")
_PADDING = 128  # a vocabulary is padded to a multiple of 64, or of 128


class NanoGPTFile(TorchFile):
    """An open checkpoint of nanoGPT: `config`, and the weights under the names and shapes of a GPT-2 directory.

    Raises CheckpointError for any other file, and for a model that nanoGPT does not have.
    """

    kind = "checkpoint of nanoGPT"
    config: GPTConfig
    text: str | None  # the text that it was trained on: the name of a folder in nanoGPT's `data`

    def _tensors(self, value: Any) -> dict[str, Tensor]:
        if type(value) is not dict or not {"model", "model_args"} <= value.keys():
            raise self._other(value)
        self.config = self._config(value["model_args"])
        settings = value.get("config")
        text = settings.get("dataset") if type(settings) is dict else None
        self.text = text if type(text) is str else None
        found: dict[str, Tensor] = {}
        for stored, tensor in tensors_in(value["model"]).items():
            name = _WRAPPERS.sub("", stored, count=1) if _WRAPPERS.match(stored) else stored
            if name in found:
                raise Refused(f"its model has {name[:60]!r} twice")
            found[name] = _transposed(tensor) if _LINEAR.fullmatch(name) and len(tensor.shape) == 2 else tensor
        return found

    def _legacy(self, size: int) -> Any:
        raise Refused("it has the format that PyTorch wrote before 1.6: load it there, and save it with torch.save")

    def _config(self, arguments: Any) -> GPTConfig:
        if type(arguments) is not dict:
            raise Refused("its model_args are not a dictionary")
        unknown = sorted(str(name)[:60] for name in arguments if name not in (*_SIZES, "bias", "dropout"))
        missing = [name for name in _SIZES if name not in arguments]
        if unknown or missing:
            what = f"have {', '.join(map(repr, unknown[:5]))}" if unknown else f"lack {', '.join(missing)}"
            raise CheckpointError(
                f"the model_args in {self.path} {what}, so it is not nanoGPT's but another program's: convert it to a "
                "GPT-2 directory there, if it is a GPT-2"
            )
        try:
            return GPTConfig.from_dict({**arguments, "activation_function": "gelu"})
        except UsageError as error:
            raise CheckpointError(f"the model_args in {self.path} are not valid: {error}") from error

    def _other(self, value: Any) -> CheckpointError:
        """The error for anything else that torch.save can write."""
        names = [str(name)[:40] for name in value] if type(value) is dict else []
        if names and all(type(tensor) is Tensor for tensor in value.values()):
            return CheckpointError(
                f"{self.path} holds weights alone, not the model_args that nanoGPT saves with them: put it as "
                f"pytorch_model.bin into a folder with the model's {CONFIG}, and give the folder"
            )
        there = f"a dictionary with {', '.join(map(repr, names[:5]))}" if names else f"a {type(value).__name__}"
        return CheckpointError(
            f"{self.path} is not a nanoGPT checkpoint, which has 'model' and 'model_args': it holds {there}"
        )


def _transposed(tensor: Tensor) -> Tensor:
    return Tensor(tensor.storage, tensor.offset, tensor.shape[::-1], tensor.strides[::-1])


def checkpoint_in(folder: Path) -> Path:
    """nanoGPT's checkpoint in `folder`, if that is the only model there; otherwise `folder` itself."""
    found = folder / CHECKPOINT
    return found if found.is_file() and not any((folder / name).exists() for name in _OF_OTHERS) else folder


# Tokenizers -------------------------------------------------------------------------------------------


def tokenizer_beside(checkpoint: Path) -> Tokenizer:
    """The tokenizer in the folder of a checkpoint, which has none itself. Raises CheckpointError if none fits."""
    if not has_tokenizer(checkpoint.parent):
        raise CheckpointError(
            f"{checkpoint} has no tokenizer, and there is none next to it: make a whole model with `tinygpt convert "
            f"{checkpoint} FOLDER --tokenizer {_whose(checkpoint)}`"
        )
    found = read_tokenizer(checkpoint.parent)
    require_fit(found, checkpoint)
    return found


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` holds the files of a tokenizer, or nanoGPT's meta.pkl."""
    return any((folder / name).exists() for name in (META, *tokenizers.FILES))


def require_fit(tokenizer: Tokenizer, checkpoint: Path) -> None:
    """Raise CheckpointError unless the vocabulary is as large as the checkpoint's, apart from padding."""
    with NanoGPTFile(checkpoint) as file:
        ids = file.config.vocab_size
    if not 0 <= ids - tokenizer.vocab_size < _PADDING:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model in {checkpoint} has {ids}: they do not "
            f"belong together; it needs {_whose(checkpoint)}"
        )


def read_tokenizer(place: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer in a folder, or nanoGPT's meta.pkl, which may be in the folder. Raises CheckpointError."""
    path = user_path(place)
    if path.is_dir():
        own = any((path / name).exists() for name in tokenizers.FILES)
        return read_meta(path / META) if not own and (path / META).exists() else tokenizers.load(path)
    if path.suffix == ".pkl":
        return read_meta(path)
    raise CheckpointError(f"there is no tokenizer in {path}: give a folder with one, or nanoGPT's {META}")


def read_meta(path: Path) -> CharTokenizer:
    """The characters of a meta.pkl, as nanoGPT's prepare.py writes it. Raises CheckpointError."""
    try:
        with open(path, "rb") as file:
            content = file.read(LONGEST + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return CharTokenizer(_characters(unpickle(content)[0]))
    except (Refused, UsageError) as error:
        raise CheckpointError(f"{path} is not nanoGPT's {META}: {error}") from error


def _characters(value: Any) -> str:
    """The characters in the order of their ids."""
    table = value.get("itos") if type(value) is dict else None
    if type(table) is not dict:
        raise Refused("it has no 'itos', the character of each id")
    found = ""
    for i in range(len(table)):
        character = table.get(i)
        if type(character) is not str or len(character) != 1:
            what = (
                repr(character)[:40] if type(character) in (str, int, type(None)) else f"a {type(character).__name__}"
            )
            raise Refused(f"the token of id {i} is {what}, not one character")
        found += character
    return found


def _whose(checkpoint: Path) -> str:
    """Where to find the tokenizer of a checkpoint."""
    with NanoGPTFile(checkpoint) as file:
        ids, text = file.config.vocab_size, file.text
    if ids in (50257, 50304):
        return "the folder of any GPT-2 model"
    return f"data/{text}/{META}" if text is not None else f"the {META} of its text"
