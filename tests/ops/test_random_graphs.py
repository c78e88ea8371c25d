"""Random graphs of all operations: their gradients are differences of their values. See `random_graphs.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import random_graphs
from tests.ops.random_graphs import Builder, Chooser, WrongGraphError, check
from tinygpt import engine
from tinygpt.ops.concatenate import Split


def builder(data: Any) -> Builder:
    return Builder(lambda low, high: data.draw(st.integers(low, high)), data.draw(st.integers(2, 12)))


@given(data=st.data())
@settings(max_examples=40)
def test_gradients_are_differences_whatever_the_graph(data: Any) -> None:
    program = builder(data).program
    if program.roots:
        check(program)


@pytest.mark.slow
def test_long_graphs() -> None:
    """Hypothesis likes short ones."""
    assert first_wrong(120, seed=0) is None


@pytest.mark.slow
def test_as_many_fresh_graphs_as_wanted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["random_graphs.py", "--graphs", "5", "--seed", "3"])
    with pytest.raises(SystemExit) as ended:
        random_graphs.main()
    assert not ended.value.code
    assert "5 graphs of seed 3: 0 wrong" in capsys.readouterr().out
    monkeypatch.setattr(engine, "as_array", lambda value: value)
    monkeypatch.setattr("sys.argv", ["random_graphs.py", "--graphs", "60", "--seed", "3"])
    with pytest.raises(SystemExit) as ended:
        random_graphs.main()
    assert ended.value.code
    assert "in the graph\nv0 = leaf" in capsys.readouterr().out


def first_wrong(graphs: int, seed: int) -> WrongGraphError | None:
    for number in range(graphs):
        program = Builder(Chooser([seed, number]).integer, 12).program
        try:
            if program.roots:
                check(program)
        except WrongGraphError as error:
            return error
    return None


def always_alone(right: Any) -> Any:
    def add(parent: Any, output: int, grad: Any, alone: bool, pending: Any, owned: Any) -> None:
        right(parent, output, grad, True, pending, owned)

    return add


@pytest.mark.parametrize("fault", ["scalars", "shared", "pieces"])
def test_a_fault_of_the_engine_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "scalars":  # a NumPy scalar for an array that can be added to in place
        monkeypatch.setattr(engine, "as_array", lambda value: value)
    elif fault == "shared":
        monkeypatch.setattr(engine, "_add_pending", always_alone(engine._add_pending))
    else:
        monkeypatch.setattr(Split, "backward", lambda self, *dys: np.concatenate(dys[::-1], axis=self.axis))
    assert first_wrong(300, seed=1) is not None
