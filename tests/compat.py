"""What the comparisons with PyTorch, transformers and tokenizers share.

Where one of them is missing, importing this file skips the module that imports it, with the name of the extra.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinygpt import GPT, GPTConfig

EXTRA = "needs the extra compat: pip install -e '.[compat]'"

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("HF_HUB_OFFLINE", "1")  # read when it is imported; other tests want their own value afterwards
    patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    tokenizers = pytest.importorskip("tokenizers", reason=EXTRA)
    torch = pytest.importorskip("torch", reason=EXTRA)
    transformers = pytest.importorskip("transformers", reason=EXTRA)
    from transformers import GPT2Config, GPT2LMHeadModel

torch.set_num_threads(1)  # the models are tiny, and the workers of pytest-xdist share the cores
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIZES: dict[str, int] = {"vocab_size": 31, "n_positions": 24, "n_embd": 20, "n_layer": 2, "n_head": 4}


def make_theirs(seed: int = 0, scale: float = 0.2, **settings: Any) -> Any:
    """A GPT-2 of transformers with opinions: random weights, none of them special, biases not 0, scales not 1."""
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    model = GPT2LMHeadModel(GPT2Config(**(SIZES | tokens | settings)))
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
            parameter.copy_(torch.tensor(center + scale * rng.standard_normal(parameter.shape)))
    return model.eval()


def make_ours(seed: int = 0, scale: float = 0.2, dtype: str = "float32", **settings: Any) -> GPT:
    """The same of tinygpt, under the names of `GPTConfig`."""
    sizes = {("block_size" if name == "n_positions" else name): size for name, size in SIZES.items()}
    model = GPT(GPTConfig(**(sizes | settings)), dtype=dtype).eval()
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        center = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        parameter.data[...] = center + scale * rng.standard_normal(parameter.shape)
    return model


def load_ours(theirs: Any, folder: Path, **options: Any) -> GPT:
    """What tinygpt makes of the files that transformers writes."""
    theirs.save_pretrained(folder)
    return GPT.from_pretrained(folder, dropout=0.0, **options)


def load_theirs(folder: Path, **options: Any) -> Any:
    """What transformers makes of the files in `folder`: every parameter must be there, and nothing else."""
    options.setdefault("dtype", torch.float32)
    model, found = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), found
    return model.eval()


def their_parameters(theirs: Any) -> dict[str, Any]:
    """Name -> parameter, under our names."""
    return {name.removeprefix("transformer."): parameter for name, parameter in theirs.named_parameters()}


def pad_left(rows: list[list[int]], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, T) ids and their attention mask."""
    width = max(map(len, rows))
    ids = np.array([[padding] * (width - len(row)) + row for row in rows])
    mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def generate_theirs(theirs: Any, ids: Any, mask: Any = None, **options: Any) -> Any:
    """transformers' generate on arrays; greedy or by beams unless do_sample is given."""
    ids = torch.tensor(np.asarray(ids))
    mask = torch.ones_like(ids) if mask is None else torch.tensor(np.asarray(mask))
    with torch.no_grad():
        return theirs.generate(ids, attention_mask=mask, **({"do_sample": False} | options))


def log_softmax(scores: Any) -> np.ndarray:
    return torch.log_softmax(torch.tensor(np.asarray(scores), dtype=torch.float64), dim=-1).numpy()


def chi_square_p(counts: np.ndarray, expected: np.ndarray) -> float:
    """The p-value of `counts` (n,) against `expected` counts (n,). Rare outcomes are taken together."""
    rare = expected < 5
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    statistic = ((counts - expected) ** 2 / np.maximum(expected, 1e-300)).sum()
    half = torch.tensor([(len(counts) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
