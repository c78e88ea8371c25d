"""A lower bound of the memory a run needs, to refuse impossible settings before anything is built or written.

The bound follows from the shapes alone. A run that needs more than the machine's whole memory can't work; starting it
would end in minutes of swapping or a killed process instead of an error message.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from . import backends
from .errors import UsageError
from .gpt import GPTConfig

_FLOAT = 4
_PACKED = {"bfloat16": (2, 2), "int8": (1, 1), "int4": (0.5, 1)}  # bytes of a weight of a layer, of an embedding
_COPIES = 4  # per parameter: its value, its gradient, AdamW's two moments
_RECOMPUTED = 2  # the same with `recompute`, which adds what one layer stores, once
_ACTIVATIONS = 8  # floats per token that each block stores for backward, in multiples of n_embd; in fact it stores more
_LAYER = 6 << 10  # bytes of a block's Python objects
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def parameter_count(config: GPTConfig) -> int:
    """How many parameters a GPT of this configuration has."""
    C, inner, bias = config.n_embd, config.inner, config.bias
    block = 4 * C * C + 2 * C * inner + 2 * C + (7 * C + inner if bias else 0)
    tables = config.block_size + config.vocab_size * (1 if config.tie_word_embeddings else 2)
    return tables * C + config.n_layer * block + C + (C if bias else 0)


def packed_bytes(config: GPTConfig, format: str) -> int:
    """The bytes of a GPT whose matrices are packed, without the scales; the other parameters are in float32."""
    C, V = config.n_embd, config.vocab_size
    layers = config.n_layer * (4 * C * C + 2 * C * config.inner)
    embeddings = V * C * (1 if config.tie_word_embeddings else 2)
    of_layers, of_embeddings = _PACKED[format]
    rest = parameter_count(config) - layers - embeddings
    return _FLOAT * rest + int(of_layers * layers) + of_embeddings * embeddings


def require_memory(
    config: GPTConfig,
    batch_size: int,
    backend: str = "numpy",
    training: bool = True,
    frozen: bool = False,
    packed: str | None = None,
    recompute: bool = False,
) -> None:
    """Raise UsageError if a model, or a batch for it, takes more memory than there is.

    training: include gradients, the optimizer's moments and the activations for the backward pass. frozen: nearly all
    parameters are, so they have no gradients and no moments. packed: the format of the matrices, for a frozen model or
    without training. recompute: the layers run again in the backward pass.
    """
    limit, count = memory_limit(backend), parameter_count(config)
    copies = _COPIES if training and not frozen else 1
    weights = _FLOAT * count * copies if packed is None else packed_bytes(config, packed)
    model = weights + config.n_layer * _LAYER
    if model > limit:
        words = " with their gradients and AdamW's moments" if training and not frozen else ""
        vocabulary = f"vocab_size {config.vocab_size}, " if config.vocab_size > 1 else ""  # 1: not known yet
        raise UsageError(
            f"a model of {vocabulary}block_size {config.block_size}, n_layer {config.n_layer} and "
            f"n_embd {config.n_embd} has {number_of(count)} parameters, which take {_size(model)}{words}, but there "
            f"is only {_size(limit)} of memory: use a smaller model"
        )
    tokens = batch_size * config.block_size
    stored = config.n_layer * (_RECOMPUTED if recompute else _ACTIVATIONS) if training else 0
    channels = config.n_embd * (2 + stored)
    floats = 2 if backend == "cupy" else _FLOAT  # on a GPU activations may have 16 bits
    batch = tokens * (16 + floats * channels)  # 16: the ids of input and target, in int64
    if model + batch > limit:
        raise UsageError(
            f"a batch of batch_size {batch_size} and block_size {config.block_size} takes at least {_size(batch)}, "
            f"but there is only {_size(limit)} of memory: use a smaller batch or a smaller model"
        )


def memory_limit(backend: str = "numpy") -> int:
    """The most bytes that a process can have: the machine's memory and swap, or a lower limit set for the process."""
    if backend == "cupy":
        return int(backends.get("cupy").memory().total)
    limits = [1 << 62]
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limits.append(physical + (physical if sys.platform == "darwin" else _swap()))  # macOS grows its swap as needed
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        limits.append(1 << 44)
    try:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        if soft != resource.RLIM_INFINITY:
            limits.append(soft)
    except ImportError:
        pass
    for name in _CGROUPS:
        try:
            limits.append(int(Path(name).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(limit for limit in limits if limit > 0)


def _swap() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("SwapTotal:"))


def _size(count: int) -> str:
    for unit, name in ((10**15, "PB"), (10**12, "TB"), (10**9, "GB"), (10**6, "MB")):
        if count >= 10 * unit or unit == 10**6:
            return f"{number_of(-(-count // unit))} {name}"
    raise AssertionError


def number_of(count: int) -> str:
    """`count` for an error message, short even if the settings multiply to an absurdly large number."""
    return f"{count:,}" if count < 10**18 else "more than 10^18"
