"""The tests as a suite: the map of the folders in CONTRIBUTING.md, their size, and the marker `slow`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import slow

TESTS = Path(__file__).parent
ROOT = TESTS.parent
FOLDERS = sorted(path.parent.relative_to(TESTS).as_posix() + "/" for path in TESTS.glob("**/__init__.py"))
OF_OTHER_THINGS = {
    "./", "cuda/", "docs/", "docs/exercises/", "gpu/", "packaging/", "gpt/", "tensor/", "ops/cases/",
    "parallel/roles/", "serving/page/",
}  # fmt: skip


def test_the_map_is_of_the_folders_that_there_are() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```text\ntests/\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    named = re.findall(r"^[├└]── (\S+)", block, re.MULTILINE)
    helpers = {path.name for path in TESTS.glob("*.py") if not path.name.startswith(("test_", "__init__"))}
    assert sorted(named) == sorted({*FOLDERS, *helpers} - {"./"})


def test_the_folders_are_the_packages() -> None:
    """One that is of no folder of tinygpt's is in the list above, and so is told in the map what it holds."""
    package = ROOT / "tinygpt"
    packages = {path.parent.relative_to(package).as_posix() + "/" for path in package.glob("**/__init__.py")}
    assert set(FOLDERS) - OF_OTHER_THINGS <= packages


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_can_be_overlooked(folder: str) -> None:
    files = [path for path in (TESTS / folder).iterdir() if path.is_file()]
    assert len(files) <= 40
    misplaced = [path.name for path in files if path.suffix not in (".py", ".h")]
    assert not misplaced


BUSY = """
import time
import pytest

def work(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass

def test_long():
    work(0.3)

@pytest.mark.slow
def test_long_and_marked():
    work(0.3)

def test_waits():
    time.sleep(0.3)

def test_long_in_a_process_of_its_own():
    import subprocess, sys
    subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass"], check=True)
"""
PLUGIN = """
from tests import slow
slow.FAST_LIMIT = slow.LIMIT = 0.2

def pytest_configure(config):
    config.pluginmanager.register(slow.SlowTests(fail={fail}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("fail", "workers"), [(False, 0), (True, 0), (True, 1)])
def test_a_slow_test_without_the_marker_is_named(fail: bool, workers: int, tmp_path: Path) -> None:
    (tmp_path / "test_busy.py").write_text(BUSY, encoding="utf-8")
    (tmp_path / "conftest.py").write_text(PLUGIN.format(fail=fail), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: as here\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-n", str(workers), "-p", "no:cacheprovider", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    told = re.findall(r"s of processor time: test_busy.py::(\w+)", done.stdout)
    assert sorted(told) == ["test_long", "test_long_in_a_process_of_its_own"], done.stdout + done.stderr
    assert done.returncode == (pytest.ExitCode.TESTS_FAILED if fail else pytest.ExitCode.OK)


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        ("pytestmark = pytest.mark.slow\n", True),
        ("pytestmark = [\n    pytest.mark.skipif(True, reason='no compiler'),\n    pytest.mark.gpu,\n]\n", True),
        ("pytestmark = pytest.mark.usefixtures('slow')\n", False),
        ("@pytest.mark.slow\ndef test_one() -> None: ...\n", False),
    ],
)
def test_a_file_whose_tests_are_all_left_out_is_not_imported(text: str, left_out: bool, tmp_path: Path) -> None:
    path = tmp_path / "test_some.py"
    path.write_text(f"import pytest\n\n{text}", encoding="utf-8")
    assert slow.is_left_out_whole(path) == left_out


def test_the_limit_is_above_what_the_marker_says() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"slow: takes more than a fifth of a second' in text
    assert slow.LIMIT > slow.FAST_LIMIT > 0.2
