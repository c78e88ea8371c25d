"""Which levels of the kernels setup.py builds."""

from __future__ import annotations

import importlib.util
import platform
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tinygpt._ext import LEVELS, built

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="levels of x86-64")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py, run in a clone where nothing is built, with no TINYGPT_... set."""
    pytest.importorskip("setuptools")
    for name in ("TINYGPT_LEVELS", "TINYGPT_MARCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("tinygpt_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def test_a_wheel_has_all_levels_and_an_editable_install_the_best_of_this_processor(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not built("levels"):
        pytest.skip("extension not built")
    from tinygpt._ext import levels

    monkeypatch.setattr(sys, "argv", ["setup.py", "bdist_wheel"])
    assert list(script.levels()) == ["avx512", "avx2", "baseline"]
    monkeypatch.setattr(sys, "argv", ["setup.py", "editable_wheel"])
    best = next(level for level in LEVELS if level != "native" and level in levels.supported())
    assert list(script.levels()) == [best]


def test_the_levels_can_be_named(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["setup.py", "editable_wheel"])
    monkeypatch.setenv("TINYGPT_LEVELS", "all")
    assert list(script.levels()) == ["avx512", "avx2", "baseline"]
    monkeypatch.setenv("TINYGPT_LEVELS", "baseline,avx2")
    assert list(script.levels()) == ["avx2", "baseline"]
    monkeypatch.setenv("TINYGPT_LEVELS", "avx9")
    with pytest.raises(SystemExit, match=r"TINYGPT_LEVELS has 'avx9': set it to here, all, or some of avx512,avx2,"):
        script.levels()


def test_without_a_compiler_that_answers_all_levels_are_tried(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYGPT_LEVELS", "here")
    monkeypatch.setenv("CC", str(ROOT / "no-such-compiler"))
    assert list(script.levels()) == ["avx512", "avx2", "baseline"]
