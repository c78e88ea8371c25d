"""Training in 16 bits, on the code paths of the GPU, without one: on the stand-in for CuPy (`standin.py`).

Shown here: products sum in float32; weights, their gradients, the optimizer's state, statistics and losses are in
float32 and everything between in 16 bits; the CUDA kernels take the arrays that training gives them.
`test_mixed_precision_runs.py` has what is learnt and runs that are resumed and moved, `test_loss_scale.py` float16's
scale of the loss, `test_mixed_precision_refused.py` the command line, and what is refused.

Not shown: anything about cuBLAS (its stand-in is `cublas_standin.py`), about speed, and how CuPy itself converts.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import emulator, standin
from tests.cuda.cases import ROWS as CUDA_ROWS
from tests.cuda.precision import DTYPES, EPS, EPS32, IDS, TARGETS, gpu, host, in_both, model, watched
from tests.ops.drawing import some_examples
from tests.ops.kernel_rule import is_array
from tinygpt import ops
from tinygpt._ext import cuda
from tinygpt.kernel import REGISTRY
from tinygpt.ops._matmul import add_matmul, matmul_arrays
from tinygpt.tensor import Tensor

pytestmark = pytest.mark.usefixtures("on_the_stand_in")


# Cast -----------------------------------------------------------------------------------------------


@in_both
def test_cast_rounds_to_nearest_and_passes_gradients_on(name: str) -> None:
    values = np.random.default_rng(0).standard_normal((5, 7)) * 100
    x = Tensor(gpu(values), requires_grad=True)
    y = ops.cast(x, name)
    assert (y.dtype, y.shape) == (DTYPES[name], x.shape)
    assert (np.abs(host(y.data) - host(x.data)) <= EPS[name] * np.abs(host(x.data))).all()
    dy = gpu(np.random.default_rng(1).standard_normal((5, 7)), name)
    y.backward(dy)
    assert x.grad.dtype == np.float32
    assert np.array_equal(host(x.grad), host(dy))  # the gradient of the identity, every digit of it
    assert ops.cast(x, "float32") is x
    assert ops.cast(y, "float32").dtype == np.float32


@in_both
def test_only_16_bit_activations_change_parameters(name: str) -> None:
    weight, x = Tensor(gpu(np.ones(3)), requires_grad=True), Tensor(gpu(np.ones(3)))
    assert ops.in_dtype_of(x, weight) is weight
    assert ops.in_dtype_of(x, weight, None) == [weight, None]
    assert [p if p is None else p.dtype for p in ops.in_dtype_of(ops.cast(x, name), weight, None)] == [
        DTYPES[name],
        None,
    ]


@in_both
@pytest.mark.parametrize("order", ["pee", "epe", "eep"])
def test_gradients_of_two_dtypes_add_up_in_the_wider_one(name: str, order: str) -> None:
    """A matrix is used in a product, whose gradient for it is in float32, and twice element by element, in 16 bits."""
    rng = np.random.default_rng(0)
    x, other = (Tensor(gpu(rng.standard_normal(shape), name)) for shape in ((5, 3), (3, 4)))
    master = Tensor(gpu(rng.standard_normal((3, 4))), requires_grad=True)
    weight = ops.cast(master, name)
    uses = {"p": lambda: ops.linear(x, weight).sum(), "e": lambda: (weight * other).sum()}
    first, second, third = (uses[use]() for use in order)
    (first + second + third).backward()
    exact = host(x.data).sum(axis=0)[:, None] + 2 * host(other.data)
    assert np.abs(host(master.grad) - exact).max() <= 8 * EPS32 * np.abs(exact).max()


# Products -------------------------------------------------------------------------------------------

LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rows": lambda x: x,
    "columns": np.asfortranarray,
    "part of wider rows": lambda x: np.hstack([x, x])[:, : x.shape[1]],
    "part of longer columns": lambda x: np.asfortranarray(np.vstack([x, x]))[: x.shape[0]],
    "every other": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "backwards": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "one row": lambda x: np.broadcast_to(x[:1], x.shape),
}


def factors(M: int, K: int, N: int, name: str, layouts: tuple[str, str] = ("rows", "rows")) -> tuple[Any, Any]:
    """a (M, K), b (K, N) in 16 bits."""
    rng = np.random.default_rng([M, K, N])
    arrays = [rng.standard_normal(shape).astype(DTYPES[name]) for shape in ((M, K), (K, N))]
    a, b = (LAYOUTS[layout](x) if x.size else x for layout, x in zip(layouts, arrays, strict=True))
    return standin.on_gpu(a), standin.on_gpu(b)


def assert_product(found: Any, a: Any, b: Any, name: str, before: Any = 0.0) -> None:
    """Within the roundings of K float32 sums, and one to the result's type."""
    truth, room = host(a) @ host(b) + before, np.abs(host(a)) @ np.abs(host(b)) + np.abs(before)
    allowed = (a.shape[1] + 1) * EPS32 * room
    if found.dtype == DTYPES[name]:
        allowed = allowed + EPS[name] * (np.abs(truth) + allowed) + 2.0**-25
    assert found.shape == truth.shape
    assert (np.abs(host(found) - truth) <= allowed).all()


@pytest.mark.slow
@in_both
@pytest.mark.parametrize("shape", [(5, 3, 4), (1, 3, 4), (5, 1, 4), (5, 3, 1), (1, 1, 1), (1, 300, 1), (3, 513, 2)])
@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
def test_products_of_two_matrices(name: str, shape: tuple[int, int, int], left: str, right: str) -> None:
    (M, _, N), (a, b) = shape, factors(*shape, name, (left, right))
    before = np.random.default_rng(0).standard_normal((M, N))
    for wide in (False, True):
        found = matmul_arrays(a, b, float32_result=wide)
        assert found.dtype == (np.float32 if wide else DTYPES[name])
        assert_product(found, a, b, name)
    for out in (gpu(before), gpu(before, name), gpu(np.hstack([before, before]))[:, :N]):
        assert matmul_arrays(a, b, out=out) is out
        assert_product(out, a, b, name)
    out = gpu(before)
    add_matmul(a, b, out)
    assert_product(out, a, b, name, gpu(before).get())


@in_both
def test_products_write_nothing_beside_their_result(name: str) -> None:
    a, b = factors(3, 4, 2, name)
    out = gpu(np.full((3, 5), 7.0))
    matmul_arrays(a, b, out=out[:, 1:3])
    assert (host(out)[:, [0, 3, 4]] == 7.0).all()
    assert_product(out[:, 1:3], a, b, name)


@in_both
def test_products_of_nothing(name: str) -> None:
    for M, K, N in ((0, 3, 2), (3, 0, 2), (3, 2, 0)):
        a, b = factors(M, K, N, name)
        assert np.array_equal(host(matmul_arrays(a, b)), np.zeros((M, N)))
        out = gpu(np.ones((M, N)))
        add_matmul(a, b, out)
        assert np.array_equal(host(out), np.ones((M, N)))
        matmul_arrays(a, b, out=out)
        assert np.array_equal(host(out), np.zeros((M, N)))


@in_both
def test_products_of_batches_are_summed_in_float32(name: str) -> None:
    rng = np.random.default_rng(0)
    a, b = gpu(rng.standard_normal((2, 3, 4, 300)), name), gpu(rng.standard_normal((3, 300, 5)), name)
    found = matmul_arrays(a, b)
    assert (found.dtype, found.shape) == (DTYPES[name], (2, 3, 4, 5))
    for i, j in np.ndindex(2, 3):
        assert_product(found[i, j], a[i, j], b[j], name)


# Kernels ----------------------------------------------------------------------------------------------


class Idle(emulator.Device):
    """Launchers make their arrays, and nothing runs."""

    def launch(self, *arguments: Any) -> None:
        self.launched.append(arguments[:2])

    def empty(self, shape: Any, dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)


def dtypes_of(returned: Any) -> list[Any]:
    results = returned if isinstance(returned, tuple) else (returned,)
    return [getattr(value, "dtype", type(value)) for value in results]


@pytest.mark.slow
@in_both
@pytest.mark.parametrize("row", [row for row in CUDA_ROWS if row.kernel is None], ids=lambda row: row.name)
def test_reference_and_launcher_agree_on_dtypes(row: Any, name: str) -> None:
    """So that a fallback in the midst of a step is unnoticed; and the reference rounds but once, at the end."""
    kernel, body, compared = REGISTRY[row.name], cuda.body(Idle(), row.name), 0
    assert body is not None
    for example in some_examples(row.examples, 12):
        drawn = [np.ascontiguousarray(a) if is_array(a) else a for a in example.make(np.float32)]
        arrays = [a for a in drawn if is_array(a)]
        if not all(a.size and a.ndim for a in arrays):
            continue
        if row.name == "rounded":  # which takes float32, and rounds to the type that it is given
            narrow = [arrays[0], DTYPES[name]]
        else:
            with np.errstate(all="ignore"):
                narrow = [a.astype(DTYPES[name]) if is_array(a) and a.dtype.kind == "f" else a for a in drawn]
        upcast = [a.astype(np.float32) if is_array(a) and a.dtype.kind in "fV" else a for a in narrow]
        launched = body(*[a.copy() if is_array(a) else a for a in narrow])
        with np.errstate(all="ignore"):
            returned, expected = kernel(*narrow), kernel.reference(*upcast)
        if launched is not NotImplemented:
            compared += 1
            assert dtypes_of(returned) == dtypes_of(launched)
        pairs = list(zip(*(r if isinstance(r, tuple) else (r,) for r in (returned, expected)), strict=True))
        pairs += [(narrow[i], upcast[i]) for i in row.writes]
        for found, exact in pairs:
            if isinstance(found, np.ndarray):
                with np.errstate(all="ignore"):
                    exact = exact.astype(found.dtype)
                assert np.array_equal(found.astype(np.float64), exact.astype(np.float64), True)
    assert compared


# What passes through a model ------------------------------------------------------------------------


def one_step(name: str, **shape: Any) -> tg.GPT:
    made = model(**shape)
    with made.compute_in(name):
        loss = made.loss(IDS, TARGETS)
    assert loss.dtype == np.float32
    loss.backward(2.0**10)
    return made


@in_both
@pytest.mark.parametrize("bias", [True, False])
def test_all_is_in_16_bits_but_for_weights_statistics_and_losses(name: str, bias: bool) -> None:
    """Two layers: of each operation so many results, in this dtype. A cast too many, or too few, changes the counts."""
    with watched() as seen:
        made = one_step(name, bias=bias)
    assert {p.dtype.name for p in made.parameters()} | {p.grad.dtype.name for p in made.parameters()} == {"float32"}
    casts = (12 if bias else 6) * 2 + (2 if bias else 1) + 1  # of the layers, of ln_f, of the head's weight
    assert {key: count for key, count in seen.items() if key[0] == "Cast"} == {
        ("Cast", "y", name): casts + 1,  # and of what the embeddings give
        ("Cast", "dx", "float32"): casts + 1,
    }
    assert {key[0] for key in seen if key[1:] == ("y", "float32")} == {"Embedding", "Add", "LinearCrossEntropy"}
    in_float32 = {
        ("Cast", casts + 1),
        ("Embedding", 2),
        ("Add", 2),
        ("Linear", 10 if bias else 8),
        ("LinearCrossEntropy", 1),
        ("ResidualLayerNorm", 12 if bias else 4),
        ("LayerNorm", 2 if bias else 1),
        *([("BiasGelu", 2)] if bias else []),
    }  # fmt: skip  below the first cast all; then the gradients of weights, biases and scales
    assert {(key[0], count) for key, count in seen.items() if key[1:] == ("dx", "float32")} == in_float32
    assert {key[2] for key in seen} == {name, "float32"}
    assert seen["Linear", "y", name] == 8
    assert seen["ResidualLayerNorm", "y", name] == 8


@in_both
@pytest.mark.parametrize("is_classifier", [False, True])
def test_parameters_are_cast_together_from_the_second_pass_on(
    name: str, is_classifier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same numbers; and what a pass casts are the weights that it finds, not those of the pass before."""
    rounded = REGISTRY["rounded"]
    usual, seen = rounded.each, []
    monkeypatch.setattr(rounded, "each", lambda calls: seen.append(len(calls)) or usual(calls), raising=False)
    made: Any = model(dropout=0.0)
    labels, table = TARGETS, made.wte.weight
    if is_classifier:
        made, labels = tg.GPTForSequenceClassification(made, num_labels=2), np.array([0, 1, 0])
    losses, gradients = [], []
    for step in range(3):
        with made.compute_in(name):
            loss = made.loss(IDS, labels)
        loss.backward(2.0**10)
        losses.append(loss.item())
        gradients.append([p.grad.get() for p in made.parameters()])
        made.zero_grad()
        if step == 1:
            for parameter in made.parameters():
                parameter.data[...] = 0.0
    assert seen == [12 * 2 + 2 + (0 if is_classifier else 1)] * 2
    assert table.data.get().any() == 0
    assert losses[0] == losses[1]
    assert all(np.array_equal(a, b) for a, b in zip(*gradients[:2], strict=True))
    assert losses[2] == pytest.approx(np.log(2 if is_classifier else 11), rel=1e-6)


@in_both
def test_the_optimizer_is_in_float32(name: str) -> None:
    made = one_step(name)
    optimizer = tg.optim.AdamW(made.named_parameters(), lr=1e-2)
    optimizer.step()
    arrays = [array for slot in optimizer.slots for array in (slot.parameter.data, *slot.state.values())]
    assert {array.dtype.name for array in arrays} == {"float32"}
    # Steps smaller than 16 bits can show do add up.
    before = host(made.wpe.weight.data)
    optimizer.lr = 1e-6
    optimizer.step()
    assert (host(made.wpe.weight.data) != before).mean() > 0.9


TAKEN = {
    "embedding_forward", "embedding_backward", "dropout_apply", "layer_norm_forward", "layer_norm_backward", "add_bias",
    "column_sum", "attention_forward", "attention_backward", "residual_layer_norm_forward",
    "residual_layer_norm_backward", "bias_gelu_forward", "bias_gelu_backward", "gelu_forward", "gelu_backward",
    "cross_entropy_inplace", "cross_entropy_forward", "sum_of_squares_each", "adamw_update_each", "rounded_each",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(emulator.COMPILER is None, reason="needs a C++ compiler")
@in_both
def test_no_cuda_kernel_declines_what_training_gives_it(name: str) -> None:
    """Steps with and without biases, and an evaluation: each kernel that has a CUDA body runs it, in 16 bits.

    The bodies are the .cu files, on the CPU. Losses and norms are those of the reference bodies within one rounding.
    """
    device = emulator.Device()
    ran: Counter[tuple[str, bool]] = Counter()

    def emulated(kernel: str) -> Any:
        launcher = cuda.body(device, kernel)

        def body(*args: Any) -> Any:
            result = launcher(*standin.bare(args)) if launcher is not None else NotImplemented
            ran[kernel, result is not NotImplemented] += 1
            return result if result is NotImplemented else standin.wrapped(result)

        return None if launcher is None and kernel.endswith("_each") else body

    def losses() -> list[float]:
        found = []
        for bias in (True, False):
            made = model(bias=bias, dropout=0.1)
            optimizer = tg.optim.AdamW(made.named_parameters(), lr=1e-2)
            for _ in range(2):
                with made.compute_in(name):
                    loss = made.loss(IDS, TARGETS)
                loss.backward(2.0**8)
                found += [loss.item(), tg.optim.grad_norm(made.parameters()) / 2**8]
                optimizer.step(grad_scale=2.0**-8)
                optimizer.zero_grad()
            with made.eval().compute_in(name), tg.no_grad():
                found.append(made.loss(IDS, TARGETS).item())
        return found

    expected = losses()
    with standin.installed(bodies=emulated), tg.use_backend("cupy"), tg.use_kernels("auto"):
        found = losses()
    assert [kernel for kernel, taken in ran if not taken] == []
    assert {kernel for kernel, _ in ran} == TAKEN
    sixteen = [kernel for _, kernel in device.launched if name in kernel]
    assert len({kernel.partition("<")[0] for kernel in sixteen}) >= 14
    assert not [kernel for _, kernel in device.launched if "double" in kernel.partition("<")[2].split(",")[0]]
    assert found == pytest.approx(expected, rel=EPS[name])


@in_both
@pytest.mark.parametrize("V", [1, 63, 64, 65])
def test_rows_of_logits_are_padded_for_the_tensor_cores_and_nothing_else_changes(
    name: str, V: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every product of the head has rows of a multiple of 64; loss and gradients are those of V logits."""
    module = importlib.import_module("tinygpt.ops.linear_cross_entropy")
    N, C, rng = 5, 16, np.random.default_rng(V)
    x, weight, targets = rng.standard_normal((N, C)) - 1, rng.standard_normal((V, C)) + 1, rng.integers(0, V, N)
    widths = []

    def watched_matmul(a: Any, b: Any, out: Any = None, float32_result: bool = False) -> Any:
        widths.append({a.shape[1], b.shape[1]})
        return matmul_arrays(a, b, out, float32_result)

    monkeypatch.setattr(module, "matmul_arrays", watched_matmul)
    hidden, head = (tg.Tensor(gpu(a, name), requires_grad=True) for a in (x, weight))
    loss = tg.ops.linear_cross_entropy(hidden, head, targets)
    loss.backward(2.0**10)
    assert len(widths) == 3
    assert all(width % 64 == 0 or width in (C, N) for both in widths for width in both)
    double = [tg.tensor(host(t.data), requires_grad=True, backend="numpy") for t in (hidden, head)]
    truth = tg.ops.linear_cross_entropy(*double, targets)
    truth.backward(2.0**10)
    logits = double[0].data @ double[1].data.T
    off = 4 * EPS[name] * (1 + np.abs(logits).max())  # of a probability: each logit is rounded
    assert abs(loss.item() - truth.item()) <= off
    most = 2.0**10 * max(np.abs(d.data).max() for d in double)
    for found, expected in zip((hidden, head), double, strict=True):
        assert found.grad.shape == expected.shape
        assert np.abs(host(found.grad) - expected.grad).max() <= off * most
