"""The options for the formats in which a model's weights are stored and multiplied."""

from __future__ import annotations

import argparse
from typing import Any


def add_format_options(group: Any) -> None:
    group.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of the weights (default: float32)"
    )
    words = "store the weights in 8 or 4 bits: less memory, faster; 4 bits cost some quality"
    group.add_argument("--quantize", choices=("int8", "int4"), help=words)
    words = (
        "int8: with --quantize, round activations too, for speed (default: int8 with --quantize int4 on a CPU, where "
        "no loss of quality was measured, else float32)"
    )
    group.add_argument("--activations", choices=("int8", "float32"), help=words)


def formats_of(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `interop.load` that the options ask for."""
    activations = options.activations
    if activations is None and options.quantize == "int4" and options.backend == "numpy":
        activations = "int8"
    activations = None if activations == "float32" else activations
    return {"dtype": options.dtype, "quantize": options.quantize, "activations": activations}
