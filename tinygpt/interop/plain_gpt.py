"""Check that a model is exactly the GPT-2 that its configuration describes.

A GPT-2 directory stores weights and sizes, but no code. So this runs before saving: it finds what a user has changed in
a model and what would be lost silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..gpt import GPT, MLP, Attention, Block, GPTConfig, attention_scale
from ..nn import Dropout, Embedding, LayerNorm, Linear
from ..nn.known import described, is_known, keeps
from ..nn.lora import LoRALinear
from ..nn.packed import PackedEmbedding, PackedLinear

_LINEAR, _EMBEDDING = (Linear, PackedLinear), (Embedding, PackedEmbedding)
_TO_DO = {LoRALinear: " (merge_lora makes it a plain layer, and tinygpt.interop.save_adapter saves the adapter alone)"}
_Expected = tuple[str, tuple[type, ...], tuple[int, ...]]  # path of a module, its allowed classes, its weight's shape


def difference_from_gpt2(model: Any) -> str | None:
    """The first difference from a GPT-2 of this configuration, as a clause for an error message; None if none."""
    if not isinstance(model, GPT) or not keeps(model, GPT):
        return f"the class {type(model).__name__} overrides forward, hidden or head"
    if len(model.h) != model.config.n_layer:
        return f"there are {len(model.h)} blocks, but n_layer is {model.config.n_layer}"
    for path, kinds, shape in _expected_modules(model.config):
        module = _at(model, path)
        if not is_known(module, *kinds):
            return f"{path} is a {described(module)}{_TO_DO.get(type(module), '')}"
        difference = _difference(model, module, shape)
        if difference:
            return f"{path} has {difference}"
    for i, block in enumerate(model.h):
        if block.attn.scale != attention_scale(model.config, i):
            return f"h.{i}.attn has the scale {block.attn.scale}, which differs from the configuration's"
    return None


def _expected_modules(config: GPTConfig) -> Iterator[_Expected]:
    """All modules of a model with this configuration, outer ones before inner ones."""
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
    """How a module of a known class differs from the configuration; None if it does not."""
    config = model.config
    if isinstance(module, Attention) and module.n_head != config.n_head:
        return f"{module.n_head} heads, but n_head is {config.n_head}"
    if isinstance(module, MLP) and module.activation != config.activation_function:
        return f"the activation {module.activation}, but activation_function is {config.activation_function}"
    if isinstance(module, LayerNorm) and module.eps != config.layer_norm_epsilon:
        return f"the eps {module.eps}, but layer_norm_epsilon is {config.layer_norm_epsilon}"
    if not shape:
        return None
    if isinstance(module, (PackedLinear, PackedEmbedding)):
        found, dtype = module.matrix.weight_shape(int(isinstance(module, PackedEmbedding))), None
    else:
        found, dtype = module.weight.data.shape, module.weight.dtype
    if found != shape:
        return f"a weight of shape {found}, but the configuration needs {shape}"
    if dtype is not None and dtype != model.wpe.weight.dtype:
        return f"a weight in {dtype}, but that of wpe is in {model.wpe.weight.dtype}"
    return None
