"""tinygpt: a GPT engine that can be read to the bottom.

    import tinygpt as tg

    x = tg.tensor(array, requires_grad=True)
    y = tg.ops.layer_norm(x @ w, weight, bias).gelu().sum()
    y.backward()
    x.grad  # a plain array

`import tinygpt` loads only tensors and operations and takes little longer than `import numpy`; everything else is
imported on first use. It touches neither the GPU nor the network.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import console, ops, torch_names  # noqa: F401  console first: Ctrl-C works while the rest is being imported
from .backends import use_backend
from .function import Function
from .graph import detect_anomaly, no_grad
from .ops import concatenate as cat
from .ops import stack
from .seams import implemented_in
from .tensor import Tensor, tensor

__version__ = "0.1.0"

# What is imported on first use, and from which module. A name of __all__ that is neither here nor above is a module.
_HOME = {
    "use_kernels": "kernel",
    "set_num_threads": "backends.numpy",
    "get_num_threads": "backends.numpy",
    "arange": "creation",
    "ones": "creation",
    "randn": "creation",
    "zeros": "creation",
    "Generator": "random",
    "manual_seed": "random",
    "UsageError": "errors",
    "GPT": "gpt",
    "GPTConfig": "gpt",
    "GPTForSequenceClassification": "classifier",
    "draw": "interpret",
    "Trainer": "training",
    "TrainingConfig": "training",
}

if TYPE_CHECKING:  # type checkers see only names that are written out, here and in __all__
    from . import (
        data,
        errors,
        generation,
        interop,
        interpret,
        metrics,
        nn,
        optim,
        parallel,
        random,
        testing,
        tokenizers,
        training,
    )
    from .backends.numpy import get_num_threads, set_num_threads
    from .classifier import GPTForSequenceClassification
    from .creation import arange, ones, randn, zeros
    from .errors import UsageError
    from .gpt import GPT, GPTConfig
    from .interpret import draw
    from .kernel import use_kernels
    from .random import Generator, manual_seed
    from .training import Trainer, TrainingConfig

__all__ = [
    "GPT", "Function", "GPTConfig", "GPTForSequenceClassification", "Generator", "Tensor", "Trainer", "TrainingConfig",
    "UsageError", "__version__", "arange", "cat", "data", "detect_anomaly", "draw", "errors", "generation",
    "get_num_threads", "interop", "interpret", "manual_seed", "metrics", "nn", "no_grad", "ones", "ops", "optim",
    "parallel", "randn", "random", "set_num_threads", "stack", "tensor", "testing", "tokenizers", "training",
    "use_backend", "use_kernels", "zeros",
]  # fmt: skip

implemented_in(  # what models and tokenizers call from the layers above them
    {
        "uniform_body": "tinygpt.backends.numpy",
        "generate": "tinygpt.generation",
        "from_pretrained": "tinygpt.interop",
        "save_pretrained": "tinygpt.interop",
        "load_classifier": "tinygpt.interop.classifier",
        "save_with_tokenizer": "tinygpt.interop.classifier",
        "tokenizer_named": "tinygpt.interop.loading",
    }
)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'tinygpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
