"""The page at `/` in a browser, against a running server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.browser import opened
from tests.serving.page.helpers import (
    serving,
)
from tinygpt.serving.engine import Engine
from tinygpt.serving.samples import Sample


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Engine]]:
    with serving() as found:
        yield found


@pytest.fixture
def page(browser: Any, server: tuple[str, Engine]) -> Iterator[Any]:
    with opened(browser, server[0]) as page:
        yield page


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """paced(count) lets the server write so many more tokens; until then it writes none."""
    allowed, choose = threading.Semaphore(0), Sample.choose

    def wait(self: Sample, logits: np.ndarray) -> Any:
        assert allowed.acquire(timeout=60)
        return choose(self, logits)

    monkeypatch.setattr(Sample, "choose", wait)
    yield lambda count: allowed.release(count) if count else None
    allowed.release(10_000)
