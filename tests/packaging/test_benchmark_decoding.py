"""The benchmark of decoding: floors follow from bytes and multiply-adds, and the targets from the figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.packaging.benchmark_scripts import script

Given = Callable[..., tuple[ModuleType, dict[str, Any]]]


class Takes:
    """A contender whose bursts take these seconds, one after the other: of the prompt and of a token, of each batch."""

    def __init__(self, batches: dict[int, list[float]]) -> None:
        self.turns: dict[int, Iterator[float]] = {batch: iter(seconds) for batch, seconds in batches.items()}

    def burst(self, batch: int, prompt: int, tokens: int) -> tuple[float, float]:
        seconds = next(self.turns[batch])
        return seconds, seconds


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    def given(bandwidths: list[float], blocks: list[float], **seconds: Any) -> tuple[ModuleType, dict[str, Any]]:
        """The module, on a machine with these bytes and FLOP/s in its rounds, and contenders: 1000 s in their warm-up,
        then so many in each round, of one sequence or of each batch."""
        module = script("generate")
        monkeypatch.setattr(module.machine, "read_bandwidth", iter(bandwidths).__next__)
        monkeypatch.setattr(module.machine, "block_rate", iter([(block, block) for block in blocks]).__next__)
        batches = {name: taken if isinstance(taken, dict) else {1: taken} for name, taken in seconds.items()}
        return module, {
            name: Takes({batch: [1000.0, *times] for batch, times in taken.items()}) for name, taken in batches.items()
        }

    return given


def test_the_floor_of_a_token_is_memory_s_and_of_many_the_multiply_adds() -> None:
    module = script("generate")
    limits = module.Limits(bandwidth=50e9, block=200e9)
    assert limits.floor("tinygpt float32") == pytest.approx(4 * module.WEIGHTS / 50e9)
    assert limits.floor("tinygpt float32", 256) == pytest.approx(2 * 256 * module.WEIGHTS / 200e9)
    assert limits.floor("tinygpt int8", 8) == pytest.approx(2 * 8 * module.WEIGHTS / 200e9)
    assert limits.floor("tinygpt int8 x int8", 8) == pytest.approx(module.WEIGHTS / 50e9)
    assert module.Limits(50e9, 0.0).floor("tinygpt int8", 8) == pytest.approx(module.WEIGHTS / 50e9)


def test_each_width_is_judged_beside_llama_cpp(given: Given) -> None:
    """Reading float32 weights takes 10 ms; a token takes us 12 and llama.cpp 15; bfloat16 is 6 beside 7."""
    read = 4 * script("generate").WEIGHTS / 10e-3
    module, contenders = given([read], [0.0], **{
        "tinygpt float32": [12e-3], "tinygpt bfloat16": [6e-3], "llama.cpp f32": [15e-3], "llama.cpp f16": [7e-3]
    })  # fmt: skip
    wide, narrow = module.decode_table(contenders, 1, 48)
    assert wide == "- met: a token: tinygpt float32 1.25 times llama.cpp f32 (aim: 1.2); at the bandwidth 1.50"
    assert narrow == "- not met: a token: tinygpt bfloat16 1.17 times llama.cpp f16 (aim: 1.2); at the bandwidth 1.40"


def test_a_ratio_is_the_median_of_the_rounds_and_so_are_the_limits(
    given: Given, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine that slows down: 1.1, 1.5 and 1.22 in the rounds; the ratio of the medians would be 1.25."""
    read = 4 * script("generate").WEIGHTS / 10e-3
    module, contenders = given([read / 4, read, 1.5 * read], [0.0] * 3, **{
        "tinygpt float32": [30e-3, 10e-3, 12e-3], "llama.cpp f32": [33e-3, 15e-3, 14.64e-3]
    })  # fmt: skip
    (said,) = module.decode_table(contenders, 3, 48)
    assert said == "- met: a token: tinygpt float32 1.22 times llama.cpp f32 (aim: 1.2); at the bandwidth 1.50"
    assert f"Meanwhile all threads read {read / 1e9:.1f} GB/s from memory" in capsys.readouterr().out


def test_prefill_is_judged_at_each_width(given: Given) -> None:
    block = 2 * 256 * script("generate").WEIGHTS / 0.16
    module, contenders = given([1e15], [block], **{
        "tinygpt float32": [0.2], "tinygpt int8": [0.2], "llama.cpp f32": [0.32], "llama.cpp q8_0": [0.2]
    })  # fmt: skip
    met, missed = module.prefill_table(contenders, 1)
    assert met == "- met: prefill: tinygpt float32 1.60 times llama.cpp f32 (aim: 1.5); at its floor 2.00"
    assert missed.startswith("- not met: prefill: tinygpt int8 1.00 times llama.cpp q8_0 (aim: 1.5)")


def test_a_batch_of_eight_is_judged_beside_one_of_the_same_round(given: Given) -> None:
    block = 2 * 8 * script("generate").WEIGHTS / 4e-3
    taken = {1: [5e-3, 20e-3, 6e-3], 8: [8e-3, 30e-3, 16e-3]}
    module, contenders = given([1e15] * 3, [block] * 3, **{"tinygpt int8": taken})
    (said,) = module.batch_table(contenders, 3, 48)
    assert said == "- not met: a batch of 8: tinygpt int8 5.00 times one sequence (aim: 6); at its floor 12.00"
