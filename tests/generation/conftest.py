"""Fixtures of several files here."""

from __future__ import annotations

from typing import Any

import pytest

from tinygpt import GPT


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Any]:
    """(ours, transformers'): one model."""
    from tests.generation.side_by_side import make_pair  # needs the extra compat

    return make_pair(tmp_path_factory.mktemp("model"))
