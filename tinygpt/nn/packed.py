"""Layers with weights packed into 16, 8 or 4 bits (`tinygpt.ops.packed` describes the formats).

`GPT.pack` replaces a model's Linear and Embedding layers by these. In a 4-bit model the token embedding, which is also
the output head, has 8 bits: in 4 it alone costs half a percent of perplexity, all other matrices together less than
could be measured (benchmarks/LOG.md); llama.cpp's tools keep 6 or 8 bits there as well. The matrices are not parameters
and can't be trained, but gradients pass through them to what can: the update of a LoRA adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import backends, ops
from ..errors import DtypeError, ShapeError, UsageError
from ..ops._arguments import integer_array, require_ids
from ..ops._gelu_mlp import fuses_gelu
from ..ops._gelu_mlp import gelu_mlp as fused_gelu_mlp
from ..ops.packed import (
    Matrix,
    PackingError,
    check_format,
    check_terms,
    pack,
    require_finite,
    rows_of,
)
from ..ops.packed_linear import PackedProduct, PackedProductTransposed
from ..tensor import Tensor
from .known import computes_as, computes_as_defined, described, known, unknown_modules
from .layers import Embedding, Linear
from .module import Module

Fill = Callable[[str, Module], None]
OF_EMBEDDING = {"int4": "int8"}  # the format of embeddings in models of other formats


@known("forward", "product")
class PackedLinear(Module):
    """y = x W + bias, W (in, out) packed."""

    def __init__(self, linear: Linear, format: str, group: int | None = None) -> None:
        self.matrix = pack(linear.weight.data, format, 0, group)
        self.bias = linear.bias

    def packed_size(self) -> int:
        return self.matrix.size

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        y = self.product(x)
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor) -> Tensor:
        """x (..., in) -> x W (..., out). Raises ShapeError."""
        _require_fit("PackedLinear", "x", x, self.matrix, self.matrix.weight_shape()[0])
        return PackedProduct.apply(x, matrix=self.matrix)

    def move_packed(self, backend: str) -> None:
        self.matrix = _moved(self.matrix, backend)


@known("forward", "project")
class PackedEmbedding(Module):
    """A packed (count, features) table; each id picks a row. Its transpose serves as the output head."""

    def __init__(self, embedding: Embedding, format: str, group: int | None = None) -> None:
        self.matrix = pack(embedding.weight.data, format, 1, group)

    def packed_size(self) -> int:
        return self.matrix.size

    def forward(self, ids: Any) -> Tensor:
        """ids (...) of integers in 0 .. count - 1 -> (..., features). Raises DtypeError, RangeError."""
        ids, count = integer_array("PackedEmbedding", "ids", ids), self.matrix.weight_shape(1)[0]
        require_ids("PackedEmbedding", "ids", ids, count, f"the table has {count} rows")
        ids = backends.from_host("PackedEmbedding", "ids", ids, self.matrix.data)
        rows = rows_of(self.matrix, ids.reshape(-1))
        return Tensor(rows.reshape(*ids.shape, rows.shape[1]))

    def project(self, h: Tensor) -> Tensor:
        """h (..., features) -> (..., count). Raises ShapeError."""
        _require_fit("PackedEmbedding", "h", h, self.matrix, self.matrix.weight_shape(1)[1])
        return PackedProductTransposed.apply(h, matrix=self.matrix)

    def move_packed(self, backend: str) -> None:
        self.matrix = _moved(self.matrix, backend)


def _require_fit(layer: str, name: str, x: Tensor, matrix: Matrix, features: int) -> None:
    """Raise ShapeError or UsageError unless x can be multiplied by a matrix whose sums have `features` terms."""
    if x.ndim == 0 or x.shape[-1] != features:
        raise ShapeError(f"{layer}: the last axis of {name} must have {features} elements, {name} has shape {x.shape}")
    if x.backend != backends.name_of(matrix.data):
        raise backends.different_backends(layer, x.data, matrix.data)


def product_and_bias(layer: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """layer(x) as (product, bias): the next operation adds the bias, which is None if the product includes it."""
    if hasattr(layer, "product") and computes_as_defined(layer):
        return layer.product(x), layer.bias
    return layer(x), None


def gelu_mlp(x: Tensor, first: Any, second: Any) -> Tensor | None:
    """second(gelu(first(x))) without the bias of `second`, as one operation; None unless these are two plain layers,
    x has 16 bits, and a GPU has products that include the GELU."""
    if not (computes_as(first, Linear) and computes_as(second, Linear) and fuses_gelu(x, first.bias is not None)):
        return None
    return fused_gelu_mlp(x, *ops.in_dtype_of(x, first.weight, second.weight, first.bias))


def with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    """Add the bias that `product_and_bias` returned: the inverse of that function."""
    return y if bias is None else y + ops.in_dtype_of(y, bias)


def pack_model(model: Any, format: str, group: int | None = None, fill: Fill | None = None) -> None:
    """Implements `LanguageModel.pack`.

    fill(path, layer): called for each layer right before it is packed, to load its parameters. A loader that does this
    never holds more than one unpacked matrix. Without `fill` all parameters must be loaded already, and they are
    checked before anything changes. Raises UsageError.
    """
    operation = f"{type(model).__name__}.pack"
    if model.packed:
        raise UsageError(f"{operation}: this model is packed already, in {model.packed}: reload it")
    if format not in ("bfloat16", "int8", "int4"):
        raise UsageError(f"{operation}: format must be 'bfloat16', 'int8' or 'int4', not {format!r}")
    dtype = model.parameters()[0].dtype
    if dtype != np.float32:
        raise DtypeError(f"{operation}: only a float32 model can be packed, this one is {dtype}")
    check_format(format, group)
    for path, module in unknown_modules(model):
        raise PackingError(
            f"{operation}: {path} is a {described(module)}, but packing knows only tinygpt's own layers and would keep "
            "nothing but their weights: replace it by an equivalent plain layer first"
        )
    for path, module in model.named_modules():
        for name, _ in module.named_parameters() if isinstance(module, (Linear, Embedding)) else ():
            if name not in ("weight", "bias"):
                raise PackingError(
                    f"{operation}: {path} has a parameter {name!r} besides its weights, which would be lost"
                )
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            check_terms(operation, format, module.weight.shape[0], path)
    if fill is None:
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                require_finite(parameter.data, name)
    model.packed = format
    _pack_layers(model, format, group, fill or (lambda path, layer: None))
    for parameter in model.parameters():
        parameter.requires_grad, parameter.grad = False, None


def _pack_layers(model: Any, format: str, group: int | None, fill: Fill) -> None:
    """Replace embedding, head and every Linear by packed layers, one at a time, so that memory is freed early."""
    head = [name for name, value in vars(model).items() if value is model.output_embedding and name != "wte"]
    for name in ("wte", *head):
        fill(name, getattr(model, name))
        setattr(model, name, PackedEmbedding(getattr(model, name), OF_EMBEDDING.get(format, format), group))
    owners = [(path, owner) for path, owner in model.named_modules() if not isinstance(owner, Linear)]
    for path, owner in owners:
        for name, value in vars(owner).items():
            if isinstance(value, Linear):
                fill(f"{path}.{name}" if path else name, value)
                setattr(owner, name, PackedLinear(value, format, group))


def _moved(matrix: Matrix, backend: str) -> Matrix:
    scale = None if matrix.scale is None else backends.move(matrix.scale, backend)
    return matrix._replace(data=backends.move(matrix.data, backend), scale=scale)


def check_activations(operation: str, format: str | None, activations: str | None) -> None:
    """Raise UsageError unless this format, None for a model that is not packed, supports `activations`."""
    if activations not in (None, "int8"):
        raise UsageError(f"{operation}: activations must be None or 'int8', not {activations!r}")
    if activations is not None and format not in ("int8", "int4"):
        has = "this model is not packed" if format is None else f"these are {format}"
        raise UsageError(
            f"{operation}: activations={activations!r} is for products with int8 or int4 weights, but {has}"
        )


def round_activations(model: Any, activations: str | None) -> None:
    """Let a packed model's products round their activations to 8 bits ("int8"), or no longer (None)."""
    for module in model.modules():
        if isinstance(module, (PackedLinear, PackedEmbedding)):
            module.matrix = module.matrix._replace(activations=activations)


def activations_of(model: Any) -> str | None:
    """The setting that `round_activations` last made for this model."""
    packed = (module for module in model.modules() if isinstance(module, (PackedLinear, PackedEmbedding)))
    return next((module.matrix.activations for module in packed), None)
