"""`tinygpt doctor`: it says what is there and what to install, and never fails."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import standin
from tests.training.helpers import ENVIRONMENT
from tinygpt.backends import cupy as cupy_backend
from tinygpt.backends import cupy_setup
from tinygpt.backends import numpy as numpy_backend
from tinygpt.cli import doctor

ROOT = Path(__file__).parents[2]


def facts(report: str) -> dict[str, str]:
    """Label -> what was found; labels that come twice keep both, joined."""
    found: dict[str, str] = {}
    for line in report.splitlines():
        if line.startswith("  "):
            label, _, words = line.strip().partition(":")
            found[label] = f"{found.get(label, '')}{words.strip()}"
    return found


@pytest.fixture(autouse=True)
def no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without CuPy and without a driver, until a test says otherwise."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(cupy_backend, "xp", None)
    monkeypatch.setattr(doctor, "CUPY", ())
    monkeypatch.setattr(cupy_setup, "driver_cuda", lambda: None)


def test_versions_and_places(run: Any) -> None:
    answer = run("doctor")
    assert (answer.code, answer.err) == (0, "")
    found = facts(answer.out)
    assert found["tinygpt"].startswith(tg.__version__)
    assert found["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert found["NumPy"].startswith(f"{np.__version__}, BLAS ")
    assert "could not be determined" not in answer.out


def test_compiled_kernels_and_threads() -> None:
    found = facts(doctor.report())
    module = numpy_backend.extension()
    if module is None:
        assert "the slow reference bodies run" in found["Compiled kernels"]
        assert "0 of " in found["Kernels"]
    else:
        assert module.__name__.rpartition(".")[2] in found["Compiled kernels"]
        assert found["Threads"].startswith(module.threads_report())
        assert "reference only: binary_cross_entropy_backward" in found["Kernels"]
    without = found["Kernels"].rpartition("have a CUDA body; reference only: ")[2].split(", ")
    assert "matmul_into" in without  # on a GPU cuBLAS multiplies
    assert "layer_norm_forward" not in without


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_backend, "extension", lambda: None)
    monkeypatch.setattr(numpy_backend, "_bodies", {})
    found = facts(doctor.report())
    assert "TINYGPT_EXT=require pip install" in found["Compiled kernels"]
    assert "NumPy's own threads" in found["Threads"]
    assert found["Kernels"].startswith("0 of ")


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TINYGPT_")]:
        monkeypatch.delenv(name)
    assert facts(doctor.report())["Environment"] == "no TINYGPT_... variable is set"
    monkeypatch.setenv("TINYGPT_TF32", "0")
    monkeypatch.setenv("TINYGPT_NUM_THREADS", "1")
    assert facts(doctor.report())["Environment"] == "TINYGPT_NUM_THREADS=1, TINYGPT_TF32=0"


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "available" in facts(doctor.report())["Memory"] or not Path("/proc/meminfo").exists()
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert facts(doctor.report())["Memory"].startswith("unknown on ")


@pytest.mark.parametrize(("has", "words"), [(True, "is faster than in float32"), (False, "is slower than in float32")])
def test_bfloat16_products(has: bool, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_backend, "has_bfloat16_products", lambda: has)
    assert facts(doctor.report())["bfloat16 products"].endswith(f"training with --dtype bfloat16 {words}")


# GPU ----------------------------------------------------------------------------------------------


def test_no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts(doctor.report())
    assert found["NVIDIA driver"] == "none found"
    assert found["CuPy"].startswith("not installed; with an NVIDIA GPU and its driver: pip install 'cupy-cuda12x[ctk]'")
    assert "GPU" not in found
    monkeypatch.setattr(cupy_setup, "driver_cuda", lambda: (13, 1))
    found = facts(doctor.report())
    assert found["NVIDIA driver"] == "for CUDA up to 13.1"
    assert found["CuPy"].startswith("not installed: pip install 'cupy-cuda13x[ctk]' ml_dtypes")


def test_a_gpu() -> None:
    with standin.installed():
        found = facts(doctor.report())
    assert found["GPU"].startswith("CuPy stand-in on stand-in (compute capability 9.0, 17.2 GB); CUDA 13.0")
    assert found["GPU memory"] == "17.2 GB, 8.59 GB free"
    assert found["16 bits"] == "--dtype bfloat16; --dtype float16"


def test_a_gpu_without_bfloat16() -> None:
    module = standin.make()
    module.cuda = standin.make_cuda("75")
    with standin.installed(module):
        found = facts(doctor.report())
    assert found["16 bits"].startswith("not in bfloat16: the GPU has no bfloat16: its compute capability is 7.5")
    assert found["16 bits"].endswith("; --dtype float16")


def test_a_cupy_without_a_gpu() -> None:
    module = standin.make()
    module.cuda.runtime.getDeviceCount = lambda: 0
    with standin.installed(module):
        found = facts(doctor.report())
    assert found["CuPy"] == "installed"
    assert found["GPU"].startswith("can't be used: the backend 'cupy' finds no GPU on this machine")
    assert "GPU memory" not in found
    assert "16 bits" not in found


# Extras -------------------------------------------------------------------------------------------


def test_extras_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    found = facts(doctor.report())
    assert found["bpe"].startswith("missing tokenizers: pip install tokenizers (")
    version = importlib.metadata.version("matplotlib")
    assert f"matplotlib {version}" in found["examples"]


def test_the_extras_are_those_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for name, (_, modules) in doctor.EXTRAS.items():
        brought = {requirement.partition(">")[0].partition("[")[0] for requirement in extras.pop(name)}
        assert set(modules) == brought
    of_newer_pythons = {"zstd"}  # a module of Python's own since 3.14
    of_developers = {"test", "dev", "docs", "compat", "llama", "browser"}
    assert set(extras) - of_developers - of_newer_pythons == {"cuda12", "cuda13"}


def test_nothing_invites_to_install_a_strangers_package() -> None:
    """No index has a tinygpt of ours: what is told to be installed is the clone (-e .), or a dependency by its name."""
    files = [path for end in ("py", "md", "pyx", "toml") for path in ROOT.glob(f"*.{end}")]
    for folder in ("tinygpt", "tests", "examples", "benchmarks", "docs", ".ci"):
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".pyx", ".ci", "")]
    texts = {path: path.read_text(encoding="utf-8") for path in files if path.is_file()}
    assert len(texts) > 150
    for path, text in texts.items():
        joined = re.sub(r'"\s*f?"', "", text)  # a sentence that goes on in the next line
        assert not re.search(r"pip install (?:-[-\w]+ )*'?tiny" "gpt", joined), path


# It never fails -------------------------------------------------------------------------------------


def test_what_can_not_be_found_out_says_so(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each single fact may break, and all others are still told."""
    count = sum(map(len, doctor.SECTIONS.values()))

    def broken() -> str:
        raise RuntimeError("of no\nuse")

    everything = {title: dict.fromkeys(found, broken) for title, found in doctor.SECTIONS.items()}
    monkeypatch.setattr(doctor, "SECTIONS", everything)
    answer = run("doctor")
    assert answer.code == 0
    assert answer.out.count("could not be determined: RuntimeError: use") == count


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"TINYGPT_KERNELS": "nonsense"}, {"TINYGPT_LEVEL": "nonsense"}, {"TINYGPT_NUM_THREADS": "nonsense"}],
    ids=str,
)
def test_wrong_settings(settings: dict[str, str]) -> None:
    """In a process of its own, as they are read at import. Its sockets are broken: it asks no network."""
    code = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise SystemExit('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from tinygpt.cli import main\n"
        "main(['doctor'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "=".join(next(iter(settings.items()))) in done.stdout


@pytest.mark.slow
def test_an_unknown_kind_of_kernels_is_one_sentence(tmp_path: Path) -> None:
    """Everywhere else a wrong setting ends with 2."""
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 50, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tinygpt", "train", f"--data={tmp_path / 'text.txt'}", f"--out={tmp_path / 'run'}"],
        env=ENVIRONMENT | {"TINYGPT_KERNELS": "nonsense"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "TINYGPT_KERNELS is 'nonsense': set it to one of auto, reference" in done.stderr.splitlines()[-1]
