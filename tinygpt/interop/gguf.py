"""Write a model and its tokenizer as a GGUF file, which llama.cpp loads.

One file holds everything: the sizes, the tokenizer (gguf_vocabulary.py), and the weights under llama.cpp's names. Its
matrices are (out, in), the transpose of ours, and in the file's `dtype`. Vectors and position embeddings stay in f32,
as in llama.cpp's own converter. A model without biases gets zeros, which llama.cpp needs. If the head is the token
embedding, the file has it once, which llama.cpp has supported since March 2025.

| dtype | how a matrix element is stored | bits |
|---|---|---|
| f32 | as it is | 32 |
| f16, bf16 | rounded to nearest | 16 |
| q8_0 | 32 neighbours in a row share a scale, the largest of them / 127; each is a whole number of scales | 8.5 |
| q4_0 | the same with whole numbers from -8 to 7, and the scale of least squared error (gguf_blocks.py) | 4.5 |

In a q4_0 file the token embedding and the head are in q8_0, as in our own 4-bit models (nn/packed.py).

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, written by ggml's library `gguf` (the extra `gguf`).
"""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import backends
from ..errors import UsageError, missing_extra
from ..files import atomic_write_with, explain_os_errors, folder_made, user_path
from ..gpt import GPT, GPTConfig
from ..nn.lora import lora_of
from ..tokenizers import Tokenizer
from .gguf_blocks import q4_0
from .gguf_vocabulary import Vocabulary, vocabulary_of
from .plain_gpt import difference_from_gpt2
from .saving import arrays_of, generation_of
from .weights import HEAD, PREFIX

# The largest numbers that survive rounding; q8_0 and q4_0 have their scales in float16. That of least squared error
# can be 1.5 times a seventh of the largest weight, where many others are rounded down from 1.5 to 1.
LARGEST = {"f32": 3.4028234e38, "f16": 65504.0, "bf16": 3.3895313e38, "q8_0": 127 * 65504.0, "q4_0": 7 / 1.5 * 65000}
BLOCKS = ("q8_0", "q4_0")
BLOCK = 32  # neighbours that share a scale in these
UNREACHABLE = -1000.0  # the logit of a token that is never predicted, far below all others

_OUTER = {"wte.weight": "token_embd.weight", "wpe.weight": "position_embd.weight"}
_OUTER |= {"ln_f.weight": "output_norm.weight", "ln_f.bias": "output_norm.bias", HEAD: "output.weight"}
_INNER = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output"}
_INNER |= {"ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}


class Stored(NamedTuple):
    """An array of the file, which is converted as it is written."""

    name: str  # llama.cpp's
    array: Any  # of either backend, of the model's shape
    dtype: str

    @property
    def transposed(self) -> bool:
        return self.name.startswith("blk.") and self.array.ndim == 2

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape[::-1] if self.transposed else self.array.shape

    def values(self) -> np.ndarray:
        """The numbers in float32. Raises UsageError for those that `dtype` can't hold."""
        array = backends.move(self.array, "numpy")
        if not np.abs(array).max() <= LARGEST[self.dtype]:  # true for NaN as well
            raise UsageError(
                f"save_gguf: {self.name} holds numbers that are not finite or too large for {self.dtype}: choose f32, "
                "or look for what went wrong in training"
            )
        return np.ascontiguousarray(array.T if self.transposed else array, np.float32)


def save_gguf(model: GPT, tokenizer: Tokenizer, path: str | os.PathLike[str], *, dtype: str = "f32") -> None:
    """Write `model` and `tokenizer` to the file `path`, which llama.cpp loads. An existing GGUF file is replaced.

    dtype: of the matrices, "f32", "f16", "bf16", "q8_0" or "q4_0". The file is written completely or not at all.
    llama.cpp does not slide the window as tinygpt does: a prompt and its continuation must fit into block_size tokens,
    beyond which it ends with an error.
    Raises UsageError for a model or a tokenizer that llama.cpp can't represent exactly, MissingExtraError without the
    library `gguf`.
    """
    target = user_path(path)
    check_dtype(dtype)
    refuse_target(target)
    _refuse_model(model, dtype)
    ends = generation_of(model).get("eos_token_id")
    ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
    vocabulary = vocabulary_of(tokenizer, model.config.vocab_size, ends)
    require_gguf()
    arrays = {_their_name(name): array for name, array in arrays_of(model).items()}
    if vocabulary.spare_end:
        add_spare_end(arrays)
    tensors = [Stored(name, array, _dtype(name, array, dtype, vocabulary)) for name, array in arrays.items()]
    folder_made(target.parent)
    with explain_os_errors("write", target):
        atomic_write_with(target, partial(_write, model.config, dtype, vocabulary, tensors))


def require_gguf() -> Any:
    """Import the library. Raises MissingExtraError if it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise missing_extra("gguf", "writing a GGUF file") from error
    return gguf


def check_dtype(dtype: str) -> None:
    """Raise UsageError for a dtype that the matrices of a GGUF file can't have here."""
    if dtype not in LARGEST:
        raise UsageError(f"save_gguf: dtype must be one of {', '.join(LARGEST)}, not {dtype!r}")


def refuse_target(path: Path) -> None:
    """Raise UsageError for a folder or a file of another kind, which the user is unlikely to want replaced."""
    if path.is_dir():
        raise UsageError(f"save_gguf: {path} is a folder: name the file to write, such as {path / 'model.gguf'}")
    with explain_os_errors("read", path):
        if not path.exists():
            return
        with open(path, "rb") as file:
            begin = file.read(4)
    if begin not in (b"GGUF", b""):
        raise UsageError(f"save_gguf: {path} already exists and is not a GGUF file: choose another name")


def _refuse_model(model: GPT, dtype: str) -> None:
    """Raise UsageError for what llama.cpp's GPT-2 can't represent."""
    config = getattr(model, "config", None)
    problem = None
    if lora_of(model) is not None:
        problem = "the model has a LoRA adapter: merge it into the weights first (--merge-lora, tinygpt.nn.merge_lora)"
    elif getattr(model, "packed", None) is not None:
        problem = f"the weights are packed in {model.packed}: load the model without packing, and choose a dtype here"
    elif (difference := difference_from_gpt2(model)) is not None:
        problem = f"{difference}, which llama.cpp's GPT-2 can't represent: use plain layers instead"
    elif isinstance(config, GPTConfig):
        problem = _difference(config, dtype)
    if problem is not None:
        raise UsageError(f"save_gguf: {problem}")


def _difference(config: GPTConfig, dtype: str) -> str | None:
    """What in this configuration llama.cpp's GPT-2 or the format can't represent."""
    if config.activation_function != "gelu_new":
        return f"activation_function is {config.activation_function}, but llama.cpp's GPT-2 has only gelu_new"
    if not config.scale_attn_weights:
        return "scale_attn_weights is False, but llama.cpp's GPT-2 always scales its attention scores"
    if config.scale_attn_by_inverse_layer_idx:
        return "scale_attn_by_inverse_layer_idx is True, but llama.cpp's GPT-2 scales all layers' scores alike"
    for name, size in (("n_embd", config.n_embd), ("n_inner", config.inner)):
        if dtype in BLOCKS and size % BLOCK:
            return f"{dtype} packs {BLOCK} numbers of a row together, but {name} is {size}: choose f16 or bf16"
    return None


def _their_name(name: str) -> str:
    """llama.cpp's name for the array `name` of a GPT-2 directory."""
    name = name.removeprefix(PREFIX)
    if name in _OUTER:
        return _OUTER[name]
    _, layer, inner = name.split(".", 2)
    module, kind = inner.rsplit(".", 1)
    return f"blk.{layer}.{_INNER[module]}.{kind}"


# The end token that some vocabularies lack -----------------------------------------------------------


def add_spare_end(arrays: dict[str, Any]) -> None:
    """Give the model one more token, with the constant logit UNREACHABLE, and leave all other logits as they are.

    ln_f gives h = g n + b, where the elements of n sum to 0. So d = 1 / g is orthogonal to g n, and a row of the head
    may be moved along d: that changes its logit by d . b only. Add d to b: if each row w is moved to
    w - (w . d) / (d . (b + d)) d, its logit stays what it was, and a row s d has the constant logit s d . (b + d).
    d is scaled to length 1 and takes the sign for which d . b and d . d do not cancel.
    """
    names = ("token_embd.weight", "output_norm.weight", "output_norm.bias")
    embedding, g, b = (backends.move(arrays[name], "numpy").astype(np.float64) for name in names)
    head = backends.move(arrays.get("output.weight", embedding), "numpy").astype(np.float64)  # (V, C)
    d = np.float64(g == 0) if (g == 0).any() else 1 / (g / np.abs(g).max())  # (C,), where g is 0, so is g n
    d /= np.linalg.norm(d)
    d = -d if d @ b < 0 else d
    moved = head - np.outer(head @ d, d) / (d @ (b + d))
    spare = UNREACHABLE / (d @ (b + d)) * d
    arrays["output_norm.bias"] = b + d
    arrays["output.weight"] = np.concatenate([moved, spare[None]])  # (V + 1, C)
    arrays["token_embd.weight"] = np.concatenate([embedding, np.zeros_like(embedding[:1])])


# Writing ----------------------------------------------------------------------------------------------


def _dtype(name: str, array: Any, dtype: str, vocabulary: Vocabulary) -> str:
    """The dtype of an array in a file of `dtype`. A head with a spare end is not rounded: its logits must not move."""
    exact = array.ndim < 2 or name == "position_embd.weight" or (vocabulary.spare_end and name == "output.weight")
    outer = name in ("token_embd.weight", "output.weight")
    return "f32" if exact else "q8_0" if dtype == "q4_0" and outer else dtype


def _write(config: GPTConfig, dtype: str, vocabulary: Vocabulary, tensors: list[Stored], path: str) -> None:
    library = require_gguf()
    kinds = {name: library.GGMLQuantizationType[name.upper()] for name in LARGEST}
    writer = library.GGUFWriter(path, "gpt2")
    try:
        _add_settings(writer, config, dtype)
        _add_vocabulary(writer, vocabulary)
        for tensor in tensors:
            kind = kinds[tensor.dtype]
            shape = library.quant_shape_to_byte_shape(tensor.shape, kind)  # of bytes, which the u1 below says
            writer.add_tensor_info(tensor.name, shape, np.dtype("u1"), math.prod(shape), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            values = tensor.values()
            writer.write_tensor_data(
                q4_0(values) if tensor.dtype == "q4_0" else library.quantize(values, kinds[tensor.dtype])
            )
    finally:
        writer.close()


def _add_settings(writer: Any, config: GPTConfig, dtype: str) -> None:
    types = require_gguf().LlamaFileType
    writer.add_type("model")
    writer.add_file_type(types["ALL_F32" if dtype == "f32" else f"MOSTLY_{dtype.upper()}"])
    writer.add_quantization_version(require_gguf().GGML_QUANT_VERSION)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.inner)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_bos_token_id(vocabulary.eos if vocabulary.bos is None else vocabulary.bos)  # else it would be 11, too
    if vocabulary.eot is not None:
        writer.add_eot_token_id(vocabulary.eot)
    if vocabulary.pad is not None:
        writer.add_pad_token_id(vocabulary.pad)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
