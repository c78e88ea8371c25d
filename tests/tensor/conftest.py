"""The numbers of a test here are its own."""

from __future__ import annotations

import pytest

from tests.tensor.helpers import START, rng


@pytest.fixture(autouse=True)
def the_same_numbers_in_any_order() -> None:
    """A test's numbers do not depend on the tests before it, which are others in each worker process."""
    rng.bit_generator.state = START
