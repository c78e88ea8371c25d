"""One model here and in transformers, and the tables that both generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.compat import (
    generate_theirs,
    load_ours,
    make_theirs,
    pad_left,
)
from tinygpt import GPT

V, BLOCK = 31, 48
rng = np.random.default_rng(0)
ROWS = [rng.integers(0, V, length).tolist() for length in (5, 1, 9, 3)]
EQUAL = rng.integers(0, V, (4, 5))


def make_pair(folder: Path) -> tuple[GPT, Any]:
    """(ours, transformers'): one model."""
    model = make_theirs(seed=5, scale=0.25, vocab_size=V, n_positions=BLOCK)
    return load_ours(model, folder), model


SMALL_V = 12


def make_small_pair(folder: Path) -> tuple[GPT, Any]:
    """(ours, transformers'): one model of SMALL_V tokens, with scores far from equal."""
    model = make_theirs(seed=3, scale=0.3, vocab_size=SMALL_V, n_positions=64)
    return load_ours(model, folder), model


def check(pair: Any, rows: Any, padding: int = 30, **options: Any) -> np.ndarray:
    """Both generate, and the tables are equal. Rows of different length are padded on the left."""
    ids, mask = pad_left([list(row) for row in rows], padding)
    options |= {"pad_token_id": padding}
    wanted = generate_theirs(pair[1], ids, mask, **options).numpy()
    found = pair[0].generate(ids, attention_mask=mask, do_sample=False, **options)
    np.testing.assert_array_equal(found, wanted)
    return found[:, ids.shape[1] :]
