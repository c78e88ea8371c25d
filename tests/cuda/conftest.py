"""Fixtures of several files here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import tinygpt as tg
from tests.cuda import standin
from tests.cuda.graph_runs import kernel_body


@pytest.fixture
def on_the_stand_in() -> Iterator[None]:
    """The backend "cupy" is current, on the stand-in for CuPy, with the reference bodies."""
    with standin.installed(), tg.use_backend("cupy"), tg.use_kernels("reference"):
        yield


@pytest.fixture
def stand_in() -> Iterator[Any]:
    """The reference bodies on both sides, and the stand-in for CuPy."""
    with standin.installed() as module, tg.use_kernels("reference"):
        yield module


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, whose streams can be captured, with the CUDA kernels run on the CPU."""
    with standin.recording(monkeypatch, kernel_body) as library:
        yield library
