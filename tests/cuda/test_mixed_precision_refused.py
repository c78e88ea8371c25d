"""Mixed precision on the command line, and the sentences for where it can not be: float16 on the CPU, an old GPU, no
ml_dtypes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import standin
from tests.cuda.precision import DTYPES, IDS, in_both, model
from tests.training.helpers import OPTIONS, make_trainer
from tinygpt import ops
from tinygpt.errors import DtypeError, MissingExtraError, UsageError

pytestmark = pytest.mark.usefixtures("on_the_stand_in")


def test_on_the_cpu_the_command_line_says_why_and_what_to_do(run: Any, text: Path, tmp_path: Path) -> None:
    answer = run("train", *OPTIONS, f"--data={text}", f"--out={tmp_path / 'run'}", "--dtype=float16")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.partition(": ")[2] == (  # before it stands the program that was started
        "float16 is not supported on the CPU, which has no products of it: use --dtype bfloat16, or a GPU with "
        "--backend cupy; a run can be resumed on a GPU with --resume --backend cupy --dtype float16\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_line_on_a_gpu(run: Any, text: Path, tmp_path: Path) -> None:
    """A run in 16 bits; what it ends with is in float32, as `eval` finds it; then it goes on, on the CPU, in either."""
    where = f"--out={tmp_path / 'run'}"
    trained = run("train", *OPTIONS, f"--data={text}", where, "--backend=cupy", "--dtype=bfloat16")
    assert trained.code == 0, trained.err
    assert "activations in bfloat16" in trained.out
    loss = next(line for line in trained.out.splitlines() if line.startswith("Loss over")).split()[6]
    evaluated = run("eval", f"--model={tmp_path / 'run'}", "--batch-size=3")
    assert f"loss {loss} " in evaluated.out
    for steps, dtype in ((14, "bfloat16"), (16, "float32")):
        moved = run("train", "--resume", where, f"--steps={steps}", "--backend=numpy", f"--dtype={dtype}")
        assert moved.code == 0, moved.err


def on_cpu() -> tg.GPT:
    return model().to("numpy")


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a model on the CPU": (lambda: on_cpu().compute_in("float16").__enter__(), UsageError, "not supported on the CPU"),
    "a tensor on the CPU": (
        lambda: ops.cast(tg.tensor([1.0], backend="numpy"), "float16"), UsageError, "not supported on the CPU"
    ),
    "an unknown name": (lambda: model().compute_in("half").__enter__(), UsageError, "bfloat16, float16, not in 'half'"),
    "an unknown dtype": (lambda: ops.cast(tg.tensor([1.0]), np.int8), DtypeError, "cast: dtype must be float32,"),
    "integers": (lambda: ops.cast(tg.tensor([1]), "float16"), DtypeError, "cast: x must be float32 or float64, not"),
    "a packed model": (lambda: model().pack("int8").compute_in("float16").__enter__(), UsageError, "packed into int8"),
    "a model in float64": (
        lambda: tg.GPT(model().config, dtype="float64").compute_in("bfloat16").__enter__(), DtypeError,
        "bfloat16 needs a float32 model, this one is float64",
    ),
    "activations and parameters of two dtypes": (
        lambda: ops.linear(ops.cast(tg.tensor(np.ones((2, 2), np.float32)), "float16"), tg.tensor(np.ones((2, 2)))),
        DtypeError, "linear: its inputs must be of one floating-point dtype, such as float32, not x float16, weight fl",
    ),
    "a new tensor": (
        lambda: tg.tensor(np.ones(2), dtype="float16"), DtypeError, "a tensor holds float32, float64, integers or bool"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("what", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(what: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        what()
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_trainer_refuses_before_anything_is_written(tmp_path: Path) -> None:
    with tg.use_backend("numpy"), pytest.raises(UsageError, match="float16 is not supported on the CPU"):
        make_trainer(tmp_path / "run", dtype="float16")
    assert list((tmp_path / "run").iterdir()) == []


def test_what_bfloat16_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of compute capability 8.0, CuPy 14 and ml_dtypes; float16 needs none of them."""
    module = standin.make()
    with standin.installed(module), tg.use_backend("cupy"):
        made = model()
        module.cuda = standin.make_cuda("75")
        with pytest.raises(UsageError, match=r"no bfloat16: its compute capability is 7\.5, and bfloat16 needs 8\.0"):
            made.compute_in("bfloat16").__enter__()
        with made.compute_in("float16"):
            assert made(IDS).dtype == np.float16
        module.cuda = standin.make_cuda("80")
        module.__version__ = "13.6.0"
        with pytest.raises(UsageError, match=r"bfloat16 needs CuPy 14 or newer, and 13\.6\.0 is installed"):
            made.compute_in("bfloat16").__enter__()
        module.__version__ = "14.0.1"
        with made.compute_in("bfloat16"):
            assert made(IDS).dtype == DTYPES["bfloat16"]
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
        with pytest.raises(MissingExtraError, match=r"bfloat16 needs the package 'ml_dtypes'.*pip install"):
            made.compute_in("bfloat16").__enter__()


@in_both
def test_a_block_that_is_left_by_an_error_computes_in_float32_again(name: str) -> None:
    made = model()
    with contextlib.suppress(ZeroDivisionError), made.compute_in(name):
        with made.compute_in("float32"):
            assert made(IDS).dtype == np.float32
        assert made(IDS).dtype == DTYPES[name]
        raise ZeroDivisionError
    assert made(IDS).dtype == np.float32
