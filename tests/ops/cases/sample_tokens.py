"""The rows of sample_tokens: of the kernel alone, since there is no gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

import tinygpt.ops.sample_tokens  # noqa: F401  registers the kernel
from tests.ops.drawing import Example, Input, KernelRow, leading, seeds


def quarters(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Many equal ones among them, exact in 16 bits; both zeros."""
    return np.asarray(rng.integers(-12, 13, shape) / 4 * rng.choice([-1.0, 1.0], shape))


def numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(rng.integers(0, 2**53, shape))


@st.composite
def examples(draw: Any, sizes: Any) -> Example:
    """Rows of V logits, all of which or all but the last are candidates."""
    R, V = draw(leading), draw(sizes)
    size = max(1, V - draw(st.sampled_from([0, 0, 3])))
    temperature, top_k = draw(st.sampled_from([1.0, 0.7, 0.0, 2.0])), draw(st.sampled_from([0, 1, 5, 40]))
    options = (size, temperature, top_k, draw(st.sampled_from([1.0, 0.9, 0.5, 0.05])))
    return Example((Input((R, V), "C", draw(seeds), quarters), Input((R,), "C", draw(seeds), numbers), *options))


ROWS: list[Any] = []
KERNEL_ROWS = [
    KernelRow(
        "sample_tokens",
        examples(st.sampled_from([1, 2, 7, 33, 70])),
        declines=lambda dtype: dtype == np.float64,
        wide=examples(st.sampled_from([40, 100, 130])),  # several chunks: `tokens_of_odd_rows` of tests/cuda/checks.py
    ),
]

# Changes of the CUDA source that no test can notice.
EQUIVALENT = {
    "blocks run one after the other here, and each writes its weights before it reads them": [
        "sample_tokens.cu: double *w = weights + (long long)blockIdx.x * V;"
        "  ->  double *w = weights + (long long)blockIdx.x;",
    ],
    "of two equal indices it makes no difference which is taken": [
        "sample_tokens.cu: if (other > place || (other == place && at < index)) {"
        "  ->  if (other > place || (other == place && at <= index)) {",
    ],
    "a p of 1 then drops what has no probability": [
        "sample_tokens.cu: if (top_p < 1) {  ->  if (top_p <= 1) {",
    ],
    "equal numbers: it makes no difference which of them it is": [
        "sample_tokens.cu: lowest = border < best ? border : best;  ->  lowest = border <= best ? border : best;",
        "sample_tokens.cu: const int begin = (int)threadIdx.x * chunk, "
        "end = begin + chunk < size ? begin + chunk : size;"
        "  ->  const int begin = (int)threadIdx.x * chunk, end = begin + chunk <= size ? begin + chunk : size;",
    ],
    "where the border is there stands a token, which has some probability": [
        "sample_tokens.cu: dropped_there = border > best ? size : each > 0 ? (long long)((rest - below) / each) : 0;"
        "  ->  dropped_there = border > best ? size : each >= 0 ? (long long)((rest - below) / each) : 0;",
    ],
    "chunks may be longer than they must": [
        "sample_tokens.cu: const int chunk = (size + (int)blockDim.x - 1) / (int)blockDim.x;"
        "  ->  const int chunk = (size + (int)blockDim.x + 1) / (int)blockDim.x;",
    ],
    "then none is dropped, by the same way": [
        "sample_tokens.cu: if (dropped_there > 0) {  ->  if (dropped_there >= 0) {",
    ],
    "the token is found before the end of the chunk": [
        "sample_tokens.cu: for (int i = begin; i < end; i++)  ->  for (int i = begin; i <= end; i++)  #3",
    ],
}
