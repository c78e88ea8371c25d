"""Which levels of the kernels setup.py builds."""

from __future__ import annotations

import importlib.util
import itertools
import json
import platform
import re
import shutil
import subprocess
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


def test_a_flag_is_used_where_the_compiler_takes_it(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "compiler", lambda: [sys.executable, "-c", "import sys; sys.exit('-old' in sys.argv)"])
    assert script.accepted(["-new"]) == ["-new"]
    assert script.accepted(["-old"]) == []
    monkeypatch.setattr(script, "compiler", lambda: ["no-such-compiler"])
    assert script.accepted(["-new"]) == []


@pytest.mark.skipif(not shutil.which("objdump"), reason="no objdump")
def test_no_jump_crosses_a_line_of_decoded_instructions(script: ModuleType, tmp_path: Path) -> None:
    """The assembler moves them: 60 loops of 1 to 60 bytes, a fifth of which would end badly without it."""
    if script.accepted(script.JUMP_FLAGS) != script.JUMP_FLAGS:
        pytest.skip("the assembler has no such option")
    loops = "".join("1:\n" + " nop\n" * size + " sub $1, %rdi\n jne 1b\n" for size in range(1, 61))
    (tmp_path / "loops.c").write_text("void loops(void) { __asm__(" + json.dumps(loops) + "); }\n")

    def crossing(flags: list[str]) -> int:
        """Jumps that cross or end at a multiple of 32 bytes; sub and jne are one decoded instruction if they touch."""
        command = [*script.compiler(), "-O2", *flags, "-c", str(tmp_path / "loops.c"), "-o", str(tmp_path / "loops.o")]
        subprocess.run(command, check=True)
        told = subprocess.run(
            ["objdump", "-d", tmp_path / "loops.o"], capture_output=True, text=True, check=True
        ).stdout
        found = re.findall(r"([0-9a-f]+):\t([0-9a-f ]+)\t(sub|jne) ", told)
        code = [(int(at, 16), len(octets.split()), name) for at, octets, name in found]
        spans = [
            (before if name == "sub" and before + size == at else at, at + width)
            for (before, size, name), (at, width, jump) in itertools.pairwise(code)
            if jump == "jne"
        ]
        assert len(spans) == 60
        return sum(start // 32 != end // 32 for start, end in spans)

    assert crossing([]) > 5
    assert crossing(script.JUMP_FLAGS) == 0


def test_the_kernels_in_use_were_compiled_so(script: ModuleType) -> None:
    from tinygpt.backends.numpy import level

    stamp = ROOT / "build" / f"flags-{level()}.txt"
    if not stamp.exists():
        pytest.skip("not built here")
    flags = stamp.read_text(encoding="utf-8").split()
    assert "-fsanitize=address,undefined" in flags or set(script.accepted(script.JUMP_FLAGS)) <= set(flags)


def test_without_a_compiler_that_answers_all_levels_are_tried(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYGPT_LEVELS", "here")
    monkeypatch.setenv("CC", str(ROOT / "no-such-compiler"))
    assert list(script.levels()) == ["avx512", "avx2", "baseline"]
