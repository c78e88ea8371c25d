"""Random graphs beside PyTorch: values, gradients, and which leaves have none. See `random_graphs.py`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import compat
from tests.ops.random_graph_torch import TABLE, check_with_torch
from tests.ops.random_graphs import BY_NAME, Builder, Chooser

assert compat.torch  # skips this module where PyTorch is missing


@pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout contract")
@given(data=st.data())
@settings(max_examples=30)
def test_graphs_are_pytorchs(data: Any) -> None:
    program = Builder(lambda low, high: data.draw(st.integers(low, high)), data.draw(st.integers(2, 12))).program
    if program.roots:
        check_with_torch(program)


@pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout contract")
def test_long_graphs_are_pytorchs() -> None:
    for number in range(60):
        program = Builder(Chooser([9, number]).integer, 14).program
        if program.roots:
            check_with_torch(program)


def test_every_operation_has_its_twin() -> None:
    assert set(TABLE) == set(BY_NAME)
