"""What the tests of the backend "cupy" share: one model on either backend, its data, an array on the host."""

from __future__ import annotations

from typing import Any

import numpy as np

import tinygpt as tg
from tests.cuda import standin
from tests.training.helpers import SHAPE

IDS = np.random.default_rng(1).integers(0, 11, (3, 8))
TARGETS = np.random.default_rng(2).integers(0, 11, (3, 8))


def host(array: Any) -> Any:
    return array.get() if isinstance(array, standin.ndarray) else array


def model_on(backend: str, **shape: Any) -> tg.GPT:
    return tg.GPT(tg.GPTConfig(vocab_size=11, **(SHAPE | shape)), seed=1).to(backend)
