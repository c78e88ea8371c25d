"""Benchmarks of kernels and products: both contenders do the same work, and the verdicts follow from the figures."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tests.packaging.benchmark_scripts import needs_extension, script

COMPARED = (
    "layer_norm_forward", "layer_norm_backward", "residual_layer_norm_backward", "gelu_backward", "gelu_erf_forward",
    "bias_gelu_backward", "softmax_backward", "log_softmax_forward", "cross_entropy_backward", "attention_forward",
    "column_sum", "product MLP, up: dweight",
)  # fmt: skip


@pytest.mark.slow
def test_every_row_of_ours_has_pytorch_s_body() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    ours, theirs = script("ops_ours"), script("ops_torch")
    for row in ours.ROWS:
        assert row in theirs.OWN_ROWS or row in ours.TORCH, f"{row}: give it PyTorch's body in TORCH of ops_ours.py"


@pytest.mark.slow
def test_every_row_runs_at_a_small_size() -> None:
    sizes = script("ops_sizes").Sizes(2, 8, 32, 2, 70, 1000)
    for name, make in script("ops_ours").ROWS.items():
        made = make(sizes)
        made.ours()
        made.reference()
        assert made.bytes > 0, name


@pytest.mark.compat
def test_both_contenders_compute_the_same() -> None:
    """A row whose two bodies did different work would compare nothing."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    sizes = script("ops_sizes").Sizes(2, 8, 32, 2, 70, 1000)
    for name in (*COMPARED, *script("ops_ours").TORCH):
        made = script("ops_ours").ROWS[name](sizes)
        ours = made.ours()
        ours = made.arguments[-1] if ours is None else ours  # it may write into its last argument
        theirs = script("ops_torch").ROWS[name](sizes)()
        first, other = (result[0] if isinstance(result, tuple) else result for result in (ours, theirs))
        assert np.allclose(first, torch.as_tensor(other).numpy(), rtol=1e-4, atol=1e-5), name


def test_a_kernel_that_is_slower_is_named() -> None:
    ops = script("ops")
    ratios = {("tiny", "softmax_forward"): 1.2, ("tiny", "column_sum"): 0.5, ("baby", "product head"): 0.99}
    kernels, products, attention = ops.verdicts(ratios, {("baby", "attention_forward"): 0.49})
    assert kernels.startswith("- not met")
    assert "1 of 2" in kernels
    assert "tiny column_sum 0.50" in kernels
    assert products.startswith("- met")  # a hundredth is level
    assert attention.startswith("- not met")


def test_products_are_judged_beside_the_block_and_the_libraries() -> None:
    module = script("products")
    taken = {
        name: np.array([seconds]) for name, seconds in (("ours", 2.0), ("OpenBLAS", 2.1), ("MKL", 1.9), ("block", 1.8))
    }
    (said,) = module.verdicts("baby", taken, [0.90, 0.95])
    assert said.startswith("- met: ")
    assert "2 of 2 reach 90% of the block's rate, the least 90%, together 90%" in said
    (said,) = module.verdicts("baby", taken, [0.89, 0.95])
    assert said.startswith("- not met: ")
    assert "1 of 2 reach 90%" in said
    (said,) = module.verdicts("tiny", taken, [0.8])
    assert said.startswith("- not met: ")
    assert "1.05 times as fast as OpenBLAS, 0.95 times as fast as MKL" in said


def test_a_neighbour_on_the_core_changes_no_share_of_a_product() -> None:
    """All is twice as slow in two of three rounds, and the block alone was lucky once."""
    module = script("products")
    taken = {
        "ours": np.array([1.0, 2.0, 2.0]),
        "OpenBLAS": np.array([1.1, 2.2, 2.2]),
        "block": np.array([0.9, 1.8, 0.6]),
    }
    assert module.of_the_block(taken["ours"], taken["block"]) == pytest.approx(0.9)
    assert module.line_of("x", 10e9, taken) == "| x | 10.0 | 90.0% | 9.1 | - |"
    (said,) = module.verdicts("tiny", taken, [0.9])
    assert said.startswith("- met: ")
    assert "1.10 times as fast as OpenBLAS" in said
    assert module.of_the_block(taken["ours"], np.full(3, np.nan)) == 0


@pytest.mark.slow
@needs_extension
def test_a_product_is_measured_beside_the_libraries() -> None:
    module = script("products")
    a, b = module.operands(((33, 40), (40, 70), "left"))
    taken = module.measure(module.contenders(a, b), 2.0 * 33 * 40 * 70, rounds=2, least=1e-4)
    assert set(taken) >= {"ours", "OpenBLAS", "block"}
    assert (taken["block"] > 0).all() == (sys.modules["machine"].block_rate() is not None)
    assert all((seconds > 0).all() for name, seconds in taken.items() if name != "block")


@pytest.mark.slow
@needs_extension
def test_the_machine_s_limits_are_ordered() -> None:
    machine = script("machine")
    rates = machine.block_rate()
    if rates is None:
        pytest.skip("matrix products are the BLAS library's here")
    assert 0 < rates[0] < 1.2 * machine.fma_peak()  # a neighbour on the machine may slow either
