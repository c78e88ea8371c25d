"""How much memory a run takes at the least: settings without sense are refused before anything is built or written.

A lower bound, from the shapes alone: what exceeds all the memory that the machine has can't be run, and asking for it
would end in minutes of swapping or in a killed process rather than in a sentence.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from . import backends
from .errors import UsageError
from .gpt import GPTConfig

_FLOAT = 4
_COPIES = 4  # of each parameter: its value, its gradient, AdamW's two moments
_ACTIVATIONS = 8  # channels that each block keeps for its backward pass, as multiples of n_embd; it keeps more
_LAYER = 6 << 10  # bytes of a block's Python objects
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def parameter_count(config: GPTConfig) -> int:
    """How many parameters a GPT of this configuration has."""
    C, inner, bias = config.n_embd, config.inner, config.bias
    block = 4 * C * C + 2 * C * inner + 2 * C + (7 * C + inner if bias else 0)
    tables = config.block_size + config.vocab_size * (1 if config.tie_word_embeddings else 2)
    return tables * C + config.n_layer * block + C + (C if bias else 0)


def require_memory(config: GPTConfig, batch_size: int, backend: str = "numpy", training: bool = True) -> None:
    """Raise UsageError where a model, or a batch for it, takes more memory than there is.

    training: with gradients, the optimizer's moments and what the backward pass needs.
    """
    limit, count = memory_limit(backend), parameter_count(config)
    copies = _COPIES if training else 1
    model = _FLOAT * count * copies + config.n_layer * _LAYER
    if model > limit:
        words = " with their gradients and AdamW's moments" if training else ""
        vocabulary = f"vocab_size {config.vocab_size}, " if config.vocab_size > 1 else ""  # else not known yet
        raise UsageError(
            f"a model of {vocabulary}block_size {config.block_size}, n_layer {config.n_layer} and "
            f"n_embd {config.n_embd} has {number_of(count)} parameters, which take {_size(model)}{words}, and there "
            f"are {_size(limit)} of memory: take a smaller model"
        )
    tokens = batch_size * config.block_size
    channels = config.n_embd * (2 + (config.n_layer * _ACTIVATIONS if training else 0))
    floats = 2 if backend == "cupy" else _FLOAT  # they may have 16 bits there
    batch = tokens * (16 + floats * channels)  # 16: input and target
    if model + batch > limit:
        raise UsageError(
            f"a batch of batch_size {batch_size} and block_size {config.block_size} takes {_size(batch)} at the least, "
            f"and there are {_size(limit)} of memory: take a smaller batch or a smaller model"
        )


def memory_limit(backend: str = "numpy") -> int:
    """Bytes that a process can have at most: the machine's, or what it is allowed of it."""
    if backend == "cupy":
        return int(backends.get("cupy").memory().total)
    limits = [1 << 62]
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limits.append(physical + (physical if sys.platform == "darwin" else _swap()))  # macOS takes swap as it needs
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
    """`count` in words, however long it is: it comes from a product of settings."""
    return f"{count:,}" if count < 10**18 else "more than 10^18"
