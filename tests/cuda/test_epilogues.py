"""Products that include a bias, a GELU or a gradient of these: what cuBLASLt is asked for, and what is made of it.

On the stand-in for CuPy, with a library (`cublaslt_standin.py`) that does what its descriptors say. So sizes, leading
dimensions, transpositions, types, alignments and epilogues are those of the header. Not shown: which algorithms a real
cuBLASLt has, how fast they are, how they round.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import emulator, standin
from tests.cuda.cublaslt_standin import CublasLt
from tests.cuda.graph_runs import Run, assert_same, kernel_body
from tests.cuda.precision import DTYPES, EPS, IDS, TARGETS, gpu, host, in_both, model
from tinygpt import ops
from tinygpt.backends import cupy_cublaslt, cupy_epilogues
from tinygpt.backends.cupy_epilogues import Epilogues, epilogues
from tinygpt.errors import UsageError
from tinygpt.graph import keep_outputs
from tinygpt.ops._gelu_mlp import GeluMLP
from tinygpt.tensor import Tensor


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[CublasLt]:
    """The stand-in has this library."""
    made = CublasLt()
    monkeypatch.delenv("TINYGPT_EPILOGUES", raising=False)
    monkeypatch.setattr(cupy_epilogues, "load", lambda cupy: made)
    with standin.installed(), tg.use_backend("cupy"), tg.use_kernels("reference"):
        yield made


def fused() -> Epilogues:
    found = epilogues(tg.backends.get("cupy").xp)
    assert found is not None
    return found


def gelu(z: np.ndarray) -> np.ndarray:
    return z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def slope(z: np.ndarray) -> np.ndarray:
    h = 1e-5
    return (gelu(z + h) - gelu(z - h)) / (2 * h)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b without BLAS, whose threads a fork does not have."""
    return np.einsum("mk,kn->mn", a, b)


def close(found: Any, truth: np.ndarray, eps: float) -> bool:
    """Within a few roundings of the largest numbers."""
    return found.shape == truth.shape and bool(np.abs(host(found) - truth).max() <= 4 * eps * np.abs(truth).max())


def all_five(
    fused: Any, name: str, N: int = 6, C: int = 16, D: int = 24, kept: list[Any] | None = None
) -> list[bool | None]:
    """Whether each result is right; None for one that there is not. x and dy are parts of wider arrays."""
    rng = np.random.default_rng(0)
    shapes = {"x": (N, C + 8), "weight": (C, D), "bias": (D,), "dy": (N, D + 8), "z": (N, C)}
    x, weight, bias, dy, z = (gpu(rng.standard_normal(shape), name) for shape in shapes.values())
    x, dy = x[:, :C], dy[:, :D]
    there = product(host(x), host(weight)) + host(bias)
    made = (
        (fused.linear(x, weight, bias), [there]),
        (fused.linear_gelu(x, weight, bias), [gelu(there), there]),
        (fused.linear_gelu(x, weight, None), [gelu(there - host(bias)), there - host(bias)]),
        (fused.gelu_gradient(dy, weight, z), [slope(host(z)) * product(host(dy), host(weight).T)]),
        (fused.gradients(x, dy), [product(host(x).T, host(dy)), host(dy).sum(axis=0)]),
    )
    if kept is not None:
        kept += [x, weight, bias, dy, z, made]
    right: list[bool | None] = []
    for found, truths in made:
        results = found if isinstance(found, tuple) else (found,)
        right += [None if r is None else close(r, t, EPS[name]) for r, t in zip(results, truths, strict=False)]
    return right


def aligned(array: Any) -> int:
    """What NumPy promises, where CuPy's arrays begin at multiples of 512 bytes."""
    return 0 if array is None else 16


@in_both
@pytest.mark.parametrize("sizes", [(6, 16, 24), (1, 8, 16), (24, 40, 8)])
def test_they_compute_what_they_say(name: str, sizes: tuple[int, int, int], library: CublasLt) -> None:
    assert all_five(fused(), name, *sizes) == [True] * 8
    assert library.calls == [
        e for e in ("BIAS", "GELU_AUX_BIAS", "GELU_AUX", "DGELU", "BGRADA") for _ in range(2)
    ]  # one: a check
    dweight, dbias = fused().gradients(*(gpu(np.ones((3, n)), name) for n in (16, 24)))
    assert (dweight.dtype, dbias.dtype) == (np.float32, np.float32)


def test_an_algorithm_is_looked_for_once(library: CublasLt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_epilogues, "alignment", aligned)
    all_five(fused(), "float16")
    asked = library.asked
    assert asked == 10  # a small product for each of them first
    all_five(fused(), "float16")
    assert library.asked == asked
    all_five(fused(), "float16", N=7)
    assert library.asked == asked + 5


def test_plans_are_destroyed_when_there_are_many(library: CublasLt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_cublaslt, "MAX_PLANS", 3)
    for N in range(1, 20):
        assert all_five(fused(), "float16", N=N) == [True] * 8
    assert len(library.objects) == 1 + 4 * 3  # the handle; a description and three layouts each


@pytest.mark.parametrize("sizes", [(0, 16, 24), (3, 0, 24)])
def test_of_nothing_there_is_no_product(sizes: tuple[int, int, int], library: CublasLt) -> None:
    assert fused().linear(*(gpu(np.ones(s), "float16") for s in (sizes[:2], sizes[1:], sizes[2:]))) is None


def test_rows_of_the_auxiliary_matrix_are_a_multiple_of_8(library: CublasLt) -> None:
    x, weight, bias = (gpu(np.ones(shape), "float16") for shape in ((4, 8), (8, 12), (12,)))
    assert fused().linear_gelu(x, weight, bias) is None
    assert fused().linear(x, weight, bias) is not None


# Where it can't be used ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BIAS", "GELU_AUX", "GELU_AUX_BIAS", "DGELU", "BGRADA"])
def test_without_an_algorithm_it_is_left_to_kernels(
    name: str, library: CublasLt, capsys: pytest.CaptureFixture[str]
) -> None:
    library.lacks = (name,)
    found = all_five(fused(), "float16")
    assert found.count(None) == 1
    assert set(found) == {True, None}
    assert fused().refused == [f"{name} has no algorithm for a small product in float16"]
    assert capsys.readouterr().out == ""


def test_an_epilogue_that_computes_something_else_is_not_used(
    library: CublasLt, capsys: pytest.CaptureFixture[str]
) -> None:
    library.wrong = True
    assert all_five(fused(), "bfloat16") == [None] * 5
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[0] == (
        "cuBLASLt's epilogue BIAS is not used, because a small product in bfloat16 was wrong by 1: "
        "a separate kernel takes its place"
    )
    assert all_five(fused(), "bfloat16") == [None] * 5
    assert capsys.readouterr().out == ""


def test_a_call_that_fails_is_the_last_one(library: CublasLt, capsys: pytest.CaptureFixture[str]) -> None:
    assert all_five(fused(), "float16") == [True] * 8
    library.fails = True
    assert all_five(fused(), "float16") == [None] * 5
    assert capsys.readouterr().out.count("because cublasLtMatmul returned status 13") == 5
    library.fails = False
    assert all_five(fused(), "float16") == [None] * 5


def test_gelu_is_for_new_gpus_unless_asked_for(library: CublasLt, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = tg.backends.get("cupy").xp
    cupy.cuda.Device = lambda *_: types.SimpleNamespace(id=0, compute_capability="89")
    assert all_five(fused(), "float16") == [True, None, None, None, True, True]
    assert not fused().has_gelu(DTYPES["float16"], True)
    assert cupy_epilogues.describe(cupy).startswith("used: BIAS, BGRADA; GELU_AUX")
    monkeypatch.setenv("TINYGPT_EPILOGUES", "1")
    fused().usable.clear()
    assert all_five(fused(), "float16") == [True] * 8


def test_it_can_be_turned_off(library: CublasLt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYGPT_EPILOGUES", "0")
    cupy = tg.backends.get("cupy").xp
    assert epilogues(cupy) is None
    assert cupy_epilogues.describe(cupy) == "not used: TINYGPT_EPILOGUES is 0"
    monkeypatch.setenv("TINYGPT_EPILOGUES", "yes")
    with pytest.raises(UsageError, match="TINYGPT_EPILOGUES is 'yes': set it to 0 or 1"):
        cupy_epilogues.setting()


def test_without_the_library_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYGPT_EPILOGUES", raising=False)
    with standin.installed():
        cupy = tg.backends.get("cupy").xp
        assert tg.backends.epilogues(gpu(np.ones((2, 2)), "float16")) is None
        assert cupy_epilogues.describe(cupy).startswith("not used: they need cuBLASLt, and it ")


# Operations and models -----------------------------------------------------------------------------------


@in_both
def test_a_linear_layer_adds_its_bias_in_the_product(name: str, library: CublasLt) -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = (Tensor(gpu(rng.standard_normal(s), name), requires_grad=True) for s in ((2, 3, 16), (16, 8), 8))
    dy = rng.standard_normal((2, 3, 8))
    y = ops.linear(x, weight, bias)
    y.backward(gpu(dy, name))
    assert library.calls == ["BIAS", "BIAS", "BGRADA", "BGRADA"]  # the first of each is the check
    rows = host(x.data).reshape(6, 16), host(gpu(dy, name)).reshape(6, 8)
    assert close(y.data, host(x.data) @ host(weight.data) + host(bias.data), EPS[name])
    assert close(weight.grad, rows[0].T @ rows[1], EPS[name])
    assert close(bias.grad, rows[1].sum(axis=0), EPS[name])
    calls = len(library.calls)
    frozen = Tensor(bias.data)  # whose gradient nobody wants: a plain product
    ops.linear(x, weight, frozen).backward(gpu(dy, name))
    assert library.calls[calls:] == ["BIAS"]


def gradients(name: str, keep: bool = False, **shape: Any) -> tuple[float, list[np.ndarray]]:
    made = model(**shape)
    with made.compute_in(name), keep_outputs(keep):
        loss = made.loss(IDS, TARGETS)
    loss.backward(2.0**8)
    return loss.item(), [p.grad.get() for p in made.parameters()]


@in_both
@pytest.mark.parametrize("keep", [False, True])
def test_a_model_learns_the_same(name: str, keep: bool, library: CublasLt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss and gradients are as near to float32's as without epilogues."""
    loss, found = gradients(name, keep)
    layers = model().config.n_layer
    assert library.calls.count("GELU_AUX_BIAS") - 1 == library.calls.count("DGELU") - 1 == layers  # one is the check
    assert library.calls.count("BIAS") - 1 == layers
    assert library.calls.count("BGRADA") - 1 == 2 * layers
    monkeypatch.setattr(cupy_epilogues, "epilogues", lambda cupy: None)
    plain_loss, plain = gradients(name, keep)
    exact_loss, exact = gradients("float32")
    assert abs(loss - exact_loss) <= 2 * abs(plain_loss - exact_loss) + EPS[name]
    for f, p, e in zip(found, plain, exact, strict=True):
        assert np.abs(f - e).max() <= 2 * np.abs(p - e).max() + 4 * EPS[name] * np.abs(e).max()


def test_a_model_without_biases_has_a_gelu_all_the_same(library: CublasLt, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, found = gradients("float16", bias=False)
    layers = model().config.n_layer
    assert library.calls.count("GELU_AUX") - 1 == library.calls.count("DGELU") - 1 == layers
    assert set(library.calls) == {"GELU_AUX", "DGELU"}
    exact_loss, exact = gradients("float32", bias=False)
    assert abs(loss - exact_loss) <= 4 * EPS["float16"] * exact_loss
    for f, e in zip(found, exact, strict=True):
        assert np.abs(f - e).max() <= 16 * EPS["float16"] * np.abs(e).max()


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
def test_another_activation_is_not_taken_for_the_tanh_form(activation: str, library: CublasLt) -> None:
    gradients("float16", activation_function=activation)
    assert "GELU_AUX_BIAS" not in library.calls
    assert "BIAS" in library.calls


def test_a_layer_with_an_adapter_is_called(library: CublasLt) -> None:
    made = model()
    tg.nn.add_lora(made, rank=2, targets=("mlp.c_fc",))
    with made.compute_in("float16"):
        made.loss(IDS, TARGETS).backward()
    assert "DGELU" not in library.calls


@pytest.mark.parametrize("lacks", [("GELU_AUX_BIAS",), ("DGELU",)])
def test_a_gelu_without_its_derivative_is_not_used(lacks: tuple[str, ...], library: CublasLt) -> None:
    library.lacks = lacks
    gradients("float16")
    assert "GELU_AUX_BIAS" not in library.calls[3:]


def test_shapes_without_an_algorithm_are_computed_with_kernels(
    library: CublasLt, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fused().has_gelu(DTYPES["float16"], True)
    expected = gradients("float16")
    library.lacks = ("BIAS", "GELU_AUX_BIAS", "DGELU", "BGRADA")  # from now on, for other shapes than these
    fused().cublaslt.plans.clear()
    calls = len(library.calls)
    found = gradients("float16")
    assert library.calls[calls:] == []
    assert found[0] == pytest.approx(expected[0], rel=2 * EPS["float16"])
    for f, e in zip(found[1], expected[1], strict=True):
        assert np.abs(f - e).max() <= 16 * EPS["float16"] * np.abs(e).max()


@pytest.mark.slow
@pytest.mark.skipif(emulator.COMPILER is None, reason="no C++ compiler (g++, c++ or clang++)")
def test_a_graph_with_them_has_the_bits_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is replayed: what they take from the host is in the plans, which are made before the capture."""
    library = CublasLt()
    monkeypatch.setattr(cupy_epilogues, "load", lambda cupy: library)
    with standin.recording(monkeypatch, kernel_body):
        on, off = Run("on", "float16"), Run("off", "float16")
        for step in range(5):
            assert_same(on.step(step), off.step(step))
        assert on.graphed_step.replays == 3
        captured = len(library.calls)
        on.step(5)
        assert len(library.calls) == captured  # a replay calls nothing


def test_gradients_of_some_inputs_alone(library: CublasLt) -> None:
    rng = np.random.default_rng(0)
    shapes = ((3, 8), (8, 16), (16, 8), (16,))
    arrays = [gpu(rng.standard_normal(shape), "float16") for shape in shapes]
    dy = gpu(rng.standard_normal((3, 8)), "float16")
    every = [Tensor(array, requires_grad=True) for array in arrays]
    GeluMLP.apply(*every).backward(dy)
    for i in range(4):
        some = [Tensor(array, requires_grad=i == j) for j, array in enumerate(arrays)]
        GeluMLP.apply(*some).backward(dy)
        assert np.array_equal(host(some[i].grad), host(every[i].grad))


def test_the_one_structure_is_that_of_the_header() -> None:
    """Its fields are a uint64_t[8], a size_t, an int, a float and an int[4]."""
    result = cupy_cublaslt.HeuristicResult
    fields = (result.algo, result.workspace_size, result.state, result.waves_count, result.reserved)
    assert [field.offset for field in fields] == [0, 64, 72, 76, 80]
    assert ctypes.sizeof(result) == 96
