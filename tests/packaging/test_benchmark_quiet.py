"""With BENCH_QUIET a benchmark keeps bursts that were taken while the block of a product ran at its best rate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.packaging.benchmark_scripts import run, script

Given = Callable[..., tuple[ModuleType, Any]]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Given:
    """The module, and a Watch of so many minutes to whom the block's rates are these, each a second after the other."""

    def given(rates: list[float], minutes: float = 10.0) -> tuple[ModuleType, Any]:
        module, clock, rate = script("quiet"), iter(range(10**6)), iter(rates)
        monkeypatch.setattr(module.machine, "block_rate", lambda seconds: (next(rate), 0.0))
        monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
        monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
        return module, module.Watch(minutes, tmp_path / "best.json")

    return given


def test_a_burst_counts_if_the_block_is_at_its_best_before_and_after(given: Given) -> None:
    """The first is kept; a neighbour comes in the second, stays for two looks more, and spoils none after that."""
    _, watch = given([200, 199, 198, 120, 110, 130, 195, 197])
    bursts = iter(["kept", "spoilt", "kept too"])
    assert watch.quietly(bursts.__next__) == "kept"
    assert watch.quietly(bursts.__next__) == "kept too"
    assert (watch.kept, watch.loud) == (2, 0)
    assert watch.told() == "Of 2 bursts 2 were taken while the block ran at 90% of its best rate or more."


def test_a_burst_is_not_chosen_by_what_it_took(given: Given) -> None:
    _, watch = given([200] * 6)
    slow_and_fast = iter([9.0, 1.0, 9.0])
    assert [watch.quietly(slow_and_fast.__next__) for _ in range(3)] == [9.0, 1.0, 9.0]


def test_the_best_rate_is_remembered_for_a_processor_a_level_and_threads(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = given([200, 200])
    first.quietly(lambda: None)
    module, second = given([150, 150, 185, 185, 90, 90])
    bursts = iter(["at 185"])
    assert second.quietly(bursts.__next__) == "at 185"  # two looks at 150 did not count
    monkeypatch.setattr(module.tg, "get_num_threads", lambda: 99)
    assert second.quietly(lambda: "with other threads 90 is the best so far") is not None
    assert second.kept == 2


def test_at_the_end_of_its_patience_it_takes_what_comes(given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    _, watch = given([200, 200, *[100] * 1000], minutes=0.5)
    assert [watch.quietly(lambda: "burst") for _ in range(3)] == ["burst"] * 3
    assert watch.told().startswith("Of 3 bursts 1 were taken")
    assert capsys.readouterr().err.count("no patience left") == 1


def test_without_a_block_of_ours_every_moment_is_quiet(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    module, watch = given([])
    monkeypatch.setattr(module.machine, "block_rate", lambda seconds: None)
    assert watch.quietly(lambda: 3) == 3
    assert not watch.best.exists()


def test_without_bench_quiet_no_look_is_taken(given: Given) -> None:
    module, _ = given([])
    assert module.quietly(lambda: 3) == 3
    assert module.WATCH.told() == ""


@pytest.mark.slow
def test_a_script_tells_how_many_bursts_were_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_QUIET", "0.05")
    printed = run("train_step", "--presets=tiny", "--rounds=1", "--no-reference")
    assert printed.splitlines()[-1].startswith("Of ")
