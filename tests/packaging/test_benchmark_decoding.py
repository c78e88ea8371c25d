"""The benchmark of decoding: floors follow from bytes and multiply-adds, and the targets from the figures."""

from __future__ import annotations

from typing import Any

import pytest

from tests.packaging.benchmark_scripts import script


def of(monkeypatch: pytest.MonkeyPatch, *turns: dict[str, tuple[float, float]]) -> Any:
    """The module; its contenders take so many seconds (for a prompt, for a token) in each of these rounds of turns."""
    module, seen = script("generate"), iter(turns)
    monkeypatch.setattr(module, "take_turns", lambda *arguments: next(seen))
    return module


def test_the_floor_of_a_token_is_memory_s_and_of_many_the_multiply_adds() -> None:
    module = script("generate")
    limits = module.Limits(bandwidth=50e9, block=200e9)
    assert limits.floor("tinygpt float32") == pytest.approx(4 * module.WEIGHTS / 50e9)
    assert limits.floor("tinygpt float32", 256) == pytest.approx(2 * 256 * module.WEIGHTS / 200e9)
    assert limits.floor("tinygpt int8", 8) == pytest.approx(2 * 8 * module.WEIGHTS / 200e9)
    assert limits.floor("tinygpt int8 x int8", 8) == pytest.approx(module.WEIGHTS / 50e9)
    assert module.Limits(50e9, 0.0).floor("tinygpt int8", 8) == pytest.approx(module.WEIGHTS / 50e9)


def test_each_width_is_judged_beside_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading float32 weights takes 10 ms; a token takes us 12 and llama.cpp 15; bfloat16 is 6 beside 7."""
    token = {"tinygpt float32": (0, 12e-3), "tinygpt bfloat16": (0, 6e-3), "llama.cpp f32": (0, 15e-3),
             "llama.cpp f16": (0, 7e-3)}  # fmt: skip
    module = of(monkeypatch, token)
    limits = module.Limits(4 * module.WEIGHTS / 10e-3, 0.0)
    wide, narrow = module.decode_table({}, 1, 48, limits)
    assert wide == "- met: a token: tinygpt float32 1.25 times llama.cpp f32 (aim: 1.2); at the bandwidth 1.50"
    assert narrow == "- not met: a token: tinygpt bfloat16 1.17 times llama.cpp f16 (aim: 1.2); at the bandwidth 1.40"


def test_prefill_is_judged_at_each_width(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = {
        "tinygpt float32": (0.2, 0),
        "tinygpt int8": (0.2, 0),
        "llama.cpp f32": (0.32, 0),
        "llama.cpp q8_0": (0.2, 0),
    }
    module = of(monkeypatch, prompt)
    limits = module.Limits(1e15, 2 * 256 * module.WEIGHTS / 0.16)
    met, missed = module.prefill_table({}, 1, limits)
    assert met == "- met: prefill: tinygpt float32 1.60 times llama.cpp f32 (aim: 1.5); at its floor 2.00"
    assert missed.startswith("- not met: prefill: tinygpt int8 1.00 times llama.cpp q8_0 (aim: 1.5)")


def test_a_batch_of_eight_is_judged_beside_one(monkeypatch: pytest.MonkeyPatch) -> None:
    module = of(monkeypatch, {"tinygpt int8": (0, 5e-3)}, {"tinygpt int8": (0, 8e-3)})
    limits = module.Limits(1e15, 2 * 8 * module.WEIGHTS / 4e-3)
    (said,) = module.batch_table({"tinygpt int8": None}, 1, 48, limits)
    assert said == "- not met: a batch of 8: tinygpt int8 5.00 times one sequence (aim: 6); at its floor 10.00"
