"""An operation has all its parts; and for each part that is forgotten there is a sentence that names it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.ops.completeness import ROOT, collect, hidden_dependencies, missing
from tinygpt.backends import get
from tinygpt.kernel import REGISTRY

PARTS = collect()


def test_no_part_is_missing() -> None:
    found = missing(PARTS)
    assert not found, "\n".join(found)


def without(name: str, names: Any) -> Any:
    return {key: value for key, value in names.items() if key != name} if hasattr(names, "items") else names - {name}


CPU, CUDA, CASES = "tinygpt/_ext/cpu", "tinygpt/_ext/cuda", "tests/ops/cases/"
ROW = PARTS.rows["layer_norm_forward"]


@pytest.mark.parametrize(
    ("forgotten", "sentence"),
    [
        (
            {"exported": without("layer_norm", PARTS.exported)},
            "tinygpt/ops/layer_norm.py defines layer_norm, which tinygpt/ops/__init__.py does not import",
        ),
        (
            {"graphs": without("layer_norm", PARTS.graphs)},
            f"no random graph has tinygpt.ops.layer_norm: give its Row in {CASES} a graph=, and torch=",
        ),
        (
            {"numerics": without("layer_norm", PARTS.numerics)},
            f"nothing holds tinygpt.ops.layer_norm to the rule for errors in float32: "
            f"give its Row in {CASES} numerics=",
        ),
        (
            {"rows": without("layer_norm_forward", PARTS.rows)},
            f'the kernel layer_norm_forward has no row: add KernelRow("layer_norm_forward", ...) to a file of {CASES}',
        ),
        (
            {"rows": {**PARTS.rows, "layer_norm_forward": replace(ROW, large=())}},
            f"layer_norm_forward is compiled ({CPU}/layer_norm.pyx): give its KernelRow in {CASES} large=: "
            "sizes of several chunks",
        ),
        (
            {"compiled": {**PARTS.compiled, "layer_forward": f"{CPU}/layer_norm.pyx"}},
            f"{CPU}/layer_norm.pyx defines layer_forward, but no @kernel of tinygpt/ops or tinygpt/optim has that name",
        ),
        (
            {"benchmarks": without("layer_norm_forward", PARTS.benchmarks)},
            f"no benchmark times layer_norm_forward ({CPU}/layer_norm.pyx): add a row to benchmarks/ops_ours.py",
        ),
        (
            {"compiled": without("layer_norm_forward", PARTS.compiled)},
            "the KernelRow of layer_norm_forward has large=, for a compiled body, but no .pyx of "
            f"{CPU} defines layer_norm_forward",
        ),
        (
            {"launched": without("layer_norm_forward", PARTS.launched)},
            "the KernelRow of layer_norm_forward has wide=, for a CUDA body, but no file of "
            f"{CUDA} launches layer_norm_forward",
        ),
        (
            {"cuda_launchers": without("layer_norm", PARTS.cuda_launchers)},
            f"{CUDA}/layer_norm.cu has no launchers: write {CUDA}/layer_norm.py",
        ),
        (
            {"cuda_sources": without("layer_norm", PARTS.cuda_sources)},
            f"{CUDA}/layer_norm.py launches kernels of {CUDA}/layer_norm.cu, which does not exist",
        ),
        (
            {
                "launched": without("dropout_apply", PARTS.launched),
                "rows": {**PARTS.rows, "dropout_apply": replace(PARTS.rows["dropout_apply"], wide=None)},
            },
            f"{CUDA}/dropout.py has no function with @launcher: no kernel of dropout.cu would run",
        ),
        (
            {"launched": {**PARTS.launched, "layer_forward": f"{CUDA}/layer_norm.py"}},
            f"{CUDA}/layer_norm.py launches layer_forward, but no @kernel of tinygpt/ops or tinygpt/optim "
            "has that name",
        ),
        (
            {"rows": {**PARTS.rows, "layer_norm_forward": replace(ROW, wide=None)}},
            f"layer_norm_forward has a CUDA body ({CUDA}/layer_norm.py): give its KernelRow in {CASES} wide=: "
            "several warps, blocks",
        ),
    ],
)
def test_a_part_that_is_forgotten_is_named(forgotten: dict[str, Any], sentence: str) -> None:
    assert [found for found in missing(replace(PARTS, **forgotten)) if found not in missing(PARTS)] == [sentence]


@pytest.mark.skipif(get("numpy").extension() is None, reason="extension not built")
def test_what_the_files_define_is_what_was_built() -> None:
    built = {name for name, kernel in REGISTRY.items() if "cython" in kernel.variants()}
    differs = sorted(built ^ set(PARTS.compiled))
    assert not differs, f"what was built is not what the files of {CPU} define: make build ({', '.join(differs)})"


def test_what_kernels_share_is_in_a_pxi() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / CPU).rglob("*.pyx")}
    assert list(hidden_dependencies(sources)) == []
    sources["bias_gelu.pyx"] += "\n    run_gelu(a, b)\n"
    assert list(hidden_dependencies(sources)) == [
        f"{CPU}/bias_gelu.pyx uses run_gelu of gelu.pyx: move it to a .pxi, which is for what kernels share"
    ]
