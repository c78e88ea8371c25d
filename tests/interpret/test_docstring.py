"""The example at the top of `tinygpt.interpret` runs as it stands."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from tinygpt import interpret


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert interpret.__doc__ is not None
    block = "".join(
        line for line in interpret.__doc__.splitlines(True)[1:] if line.startswith("    ") or not line.strip()
    )
    names: dict[str, Any] = {}
    exec(textwrap.dedent(block), names)
    assert names["maps"].shape == (2, 4, 5, 5)
    assert names["lens"].shape == (3, 5, 65)
    assert names["parts"].shape == (5,)
    assert {name: array.shape for name, array in names["found"].items()} == {"h.0.attn": (5, 32), "h.1": (5, 32)}
    assert list(names["layers"]) == ["h.0.input", "h.0", "h.1"]
    assert "h.0.attn.c_attn.weight" in names["picture"].svg
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_everything_public_is_documented() -> None:
    assert all(getattr(interpret, name).__doc__ for name in interpret.__all__)
