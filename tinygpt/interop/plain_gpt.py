"""Whether a model is the GPT-2 that its configuration says, and nothing else.

The files of a GPT-2 directory hold weights and sizes and no code, so whoever writes them asks here first. What the
answer names is something that a user has changed, and that the files would lose without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..gpt import GPT, MLP, Attention, Block, GPTConfig, attention_scale
from ..nn import Dropout, Embedding, LayerNorm, Linear
from ..nn.known import described, is_known, keeps
from ..nn.packed import PackedEmbedding, PackedLinear

_LINEAR, _EMBEDDING = (Linear, PackedLinear), (Embedding, PackedEmbedding)
_Place = tuple[str, tuple[type, ...], tuple[int, ...]]  # path, the classes that may stand there, the weight's shape


def difference_from_gpt2(model: Any) -> str | None:
    """What in `model` is not as in a GPT-2 of its configuration, as the end of a sentence; None where nothing is."""
    if not isinstance(model, GPT) or not keeps(model, GPT):
        return f"the class {type(model).__name__} has a forward, hidden or head of its own"
    if len(model.h) != model.config.n_layer:
        return f"there are {len(model.h)} blocks, and n_layer is {model.config.n_layer}"
    for path, kinds, shape in _places(model.config):
        module = _at(model, path)
        if not is_known(module, *kinds):
            return f"{path} is a {described(module)}"
        difference = _difference(model, module, shape)
        if difference:
            return f"{path} has {difference}"
    for i, block in enumerate(model.h):
        if block.attn.scale != attention_scale(model.config, i):
            return f"h.{i}.attn has the scale {block.attn.scale}, which the configuration does not say"
    return None


def _places(config: GPTConfig) -> Iterator[_Place]:
    """All modules of a model of this size, from the outside inwards."""
    C = config.n_embd
    yield from (("wte", _EMBEDDING, (config.vocab_size, C)), ("wpe", (Embedding,), (config.block_size, C)))
    yield from (("dropout", (Dropout,), ()), ("ln_f", (LayerNorm,), (C,)))
    if not config.tie_word_embeddings:
        yield "lm_head", _EMBEDDING, (config.vocab_size, C)
    for i in range(config.n_layer):
        yield from ((f"h.{i}", (Block,), ()), (f"h.{i}.attn", (Attention,), ()), (f"h.{i}.mlp", (MLP,), ()))
        yield f"h.{i}.dropout", (Dropout,), ()
        yield from ((f"h.{i}.ln_1", (LayerNorm,), (C,)), (f"h.{i}.ln_2", (LayerNorm,), (C,)))
        for name, shape in (
            ("attn.c_attn", (C, 3 * C)), ("attn.c_proj", (C, C)),
            ("mlp.c_fc", (C, config.inner)), ("mlp.c_proj", (config.inner, C)),
        ):  # fmt: skip
            yield f"h.{i}.{name}", _LINEAR, shape


def _at(model: GPT, path: str) -> Any:
    module: Any = model
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part, None)
    return module


def _difference(model: GPT, module: Any, shape: tuple[int, ...]) -> str | None:
    """What a known module has that is not as the configuration says."""
    config = model.config
    if isinstance(module, Attention) and module.n_head != config.n_head:
        return f"{module.n_head} heads, and n_head is {config.n_head}"
    if isinstance(module, MLP) and module.activation != config.activation_function:
        return f"the activation {module.activation}, and activation_function is {config.activation_function}"
    if isinstance(module, LayerNorm) and module.eps != config.layer_norm_epsilon:
        return f"the eps {module.eps}, and layer_norm_epsilon is {config.layer_norm_epsilon}"
    if not shape:
        return None
    weight = module.matrix.data if isinstance(module, (*_LINEAR, *_EMBEDDING)) else module.weight.data
    if weight.shape != shape:
        return f"a weight of the shape {weight.shape}, and the configuration makes it {shape}"
    packed = isinstance(module, (PackedLinear, PackedEmbedding))
    if not packed and weight.dtype != model.wpe.weight.dtype:
        return f"a weight in {weight.dtype}, and wpe's is in {model.wpe.weight.dtype}"
    return None
