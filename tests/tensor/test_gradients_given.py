"""Arrays that are no floats of the right shape: a `.grad` that somebody has set, and the arguments of kernels."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tinygpt import ops, optim
from tinygpt.errors import UsageError
from tinygpt.kernel import REGISTRY, Kernel, use_kernels
from tinygpt.kernel import _ready_for_gpu as prepare_for_gpu
from tinygpt.tensor import Tensor


def leaf(*shape: int) -> Tensor:
    return Tensor(np.asarray(np.random.default_rng(0).standard_normal(shape)).astype(np.float32), requires_grad=True)


# Gradients that somebody has set ------------------------------------------------------------------


def uses_of_a_gradient(p: Tensor) -> dict[str, Any]:
    return {
        "accumulation": lambda: (p * 1.0).sum().backward(),
        "embedding": lambda: ops.embedding(p, [0, 1]).sum().backward(),
        "grad_norm": lambda: optim.grad_norm([p]),
        "clip_grad_norm": lambda: optim.clip_grad_norm([p], 1e-3),
        "AdamW": lambda: optim.AdamW([p]).step(),
        "SGD": lambda: optim.SGD([p], lr=0.1).step(),
    }


@pytest.mark.parametrize("use", list(uses_of_a_gradient(leaf(1))))
@pytest.mark.parametrize(
    ("grad", "words"),
    [
        (np.ones((2, 3), np.int64), "must be floating-point, not int64"),
        (np.ones((2, 3), bool), "must be floating-point, not bool"),
        (np.ones((2, 1), np.float32), r"of shape \(2, 3\) must have that shape, not \(2, 1\)"),
        (np.ones(3, np.float32), r"must have that shape, not \(3,\)"),
        (np.float32(1), r"must have that shape, not \(\)"),
        (tg.tensor(np.ones((2, 3), np.float32)), r"must be a plain array, not Tensor: set x\.grad = y\.data"),
        ([[1.0] * 3] * 2, "must be a plain array, not list"),
    ],
    ids=["int64", "bool", "one column", "one axis", "a number", "a tensor", "a list"],
)
def test_what_is_no_gradient_gets_a_sentence_wherever_it_is_read(use: str, grad: Any, words: str) -> None:
    p = leaf(2, 3)
    before = p.data.copy()
    p.grad = grad
    with pytest.raises(UsageError, match=words):
        uses_of_a_gradient(p)[use]()
    assert np.array_equal(p.data, before)


def test_gradients_that_can_be_added_to_are() -> None:
    p = leaf(2, 3)
    for grad in (
        np.ones((2, 3)),
        np.asfortranarray(np.ones((2, 3), np.float32)),
        np.broadcast_to(np.float32(1), (2, 3)),
    ):
        p.grad = grad
        before = grad.copy()
        ops.embedding(p, [1, 1]).sum().backward()
        (p * 1.0).sum().backward()
        assert np.array_equal(p.grad, [[2, 2, 2], [4, 4, 4]])
        assert grad.flags.writeable or np.array_equal(grad, before)
    number = leaf()
    number.grad = np.float32(2)
    (number * 3.0).backward()
    assert number.grad == 5


def test_integers_have_no_gradient_even_when_asked_for_one() -> None:
    x = tg.tensor([1, 2])
    x.requires_grad = True
    with pytest.raises(UsageError, match="a leaf of int64 can't hold a gradient"):
        (x * 0.5).sum().backward()


def test_a_gradient_that_can_not_be_written_to_is_clipped_as_a_copy() -> None:
    p = leaf(2, 3)
    p.grad = np.broadcast_to(np.float32(3), (2, 3))
    norm = optim.clip_grad_norm([p], 1.0)
    assert np.isclose(norm, np.sqrt(54))
    assert np.allclose(p.grad, 1 / np.sqrt(6))


@pytest.mark.parametrize("make", [optim.AdamW, lambda p: optim.SGD(p, lr=0.1)])
def test_a_parameter_that_became_read_only_is_not_written_to(make: Any) -> None:
    p = leaf(4)
    optimizer = make([p])
    held = bytes(16)
    p.data, p.grad = np.frombuffer(held, np.float32), np.ones(4, np.float32)
    with pytest.raises(UsageError, match="the array of parameter '0' is read-only"):
        optimizer.step()
    assert held == bytes(16)


def test_a_gradient_of_another_shape_does_not_end_the_process() -> None:
    code = """
        import numpy as np, tinygpt as tg
        w = tg.tensor(np.ones((1000, 512), np.float32), requires_grad=True)
        for shape in ((1000, 1), (1000,), (1, 512), ()):
            w.grad = np.zeros(shape, np.float32)
            try:
                (tg.ops.embedding(w, np.arange(1000)) * 2.0).sum().backward()
            except tg.UsageError:
                continue
            raise SystemExit("accepted")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# Kernels ------------------------------------------------------------------------------------------


def test_integers_and_booleans_go_to_the_reference_where_floats_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel, each of its places in turn: a compiled body is never given such an array."""
    given: list[Any] = []
    monkeypatch.setattr(Kernel, "fast_body", lambda self, args, suffix="": lambda *args: given.append(args))
    for kernel in REGISTRY.values():
        count = len(kernel.reference.__code__.co_varnames[: kernel.reference.__code__.co_argcount])
        monkeypatch.setattr(kernel, "reference", lambda *args: "reference")
        for place in range(count):
            for dtype in (np.int64, np.int32, np.uint8, bool, np.float16, complex):
                args = [np.ones((2, 2), np.float32) for _ in range(count)]
                args[place] = np.ones((2, 2), dtype)
                given.clear()
                result = kernel(*args)
                if place in kernel.integers and np.dtype(dtype).kind in "iu":
                    assert given[0][place].dtype == np.int64
                elif dtype is not np.float16:  # which the reference is given upcast
                    assert (result, given) == ("reference", []), (kernel.__name__, place, dtype)


def test_the_same_rule_holds_on_a_gpu() -> None:
    floats = np.ones(2, np.float32)
    for dtype in (np.int64, np.int32, bool):
        assert prepare_for_gpu([floats, np.ones(2, dtype)], False, False, ()) is None
    for dtype in (np.int64, np.int32):
        prepared = prepare_for_gpu([floats, np.ones(2, dtype)], False, False, (1,))
        assert prepared is not None
        assert prepared[1].dtype == np.int64
    assert prepare_for_gpu([floats, np.ones(2, bool)], False, False, (1,)) is None


def test_the_kinds_of_kernels_are_one_threads() -> None:
    seen: list[str] = []

    def other() -> None:
        seen.append(tg.backends.get("numpy").describe() and tg.kernel.describe("numpy"))

    with use_kernels("reference"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        seen.append(tg.kernel.describe("numpy"))
    assert "TINYGPT_KERNELS=reference" not in seen[0]
    assert "TINYGPT_KERNELS=reference" in seen[1]
