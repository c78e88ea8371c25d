"""Benchmarks of a training step: what bounds it, beside PyTorch, in bfloat16, of LoRA, and operation by operation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import tinygpt as tg
from tests.packaging.benchmark_scripts import needs_extension, run, script


def measured(*figures: tuple[str, float, float]) -> list[Any]:
    """Contenders of these names that took a step in so many seconds and megabytes, without a process of their own."""
    kind, found = script("train_step").Contender, []
    for name, seconds, memory in figures:
        found.append(kind.__new__(kind))
        found[-1].name, found[-1].times, found[-1].memory = name, [seconds], memory
    return found


def test_what_a_target_misses_is_bounded() -> None:
    """A step of 2 s against PyTorch's 1.5 s, whose products take 1 s at half the peak."""
    module = script("train_step")
    flops = module.step_flops("tiny")
    contenders = measured(("tinygpt", 2, 10), ("torch", 3, 20), ("torch-fused", 1.5, 30))
    bound = {"ours": 1.0, "torch": 0.5, "flops": 0.5 * flops, "block": 0.75 * flops}
    ratio, memory = module.verdicts("tiny", contenders, flops, bound)
    assert ratio.startswith(f"- not met: tiny at {sys.modules['machine'].level()}: 0.75 times torch-fused")
    assert "take 50% of the step" in ratio
    assert "(75% of the peak); were all else free, 1.50 times" in ratio
    assert "with PyTorch's products 3.00, were all operations at the block's rate 1.12" in ratio
    assert memory.startswith(f"- not met: tiny at {sys.modules['machine'].level()}: 0.50 of PyTorch's memory")


def test_a_ratio_is_of_bursts_of_the_same_round() -> None:
    """The machine was twice as slow in the last rounds, and a neighbour disturbed one burst of PyTorch's before."""
    module = script("train_step")
    ours, theirs = measured(("tinygpt", 1, 10), ("torch", 1, 10))
    ours.times, theirs.times = [1.0, 1.0, 1.0, 2.0, 2.0], [1.5, 1.5, 3.0, 3.0, 3.0]
    assert theirs.over(ours) == 1.5
    assert "| 1.50 |" in module.report("tiny", [ours, theirs], None)[1]


def test_a_lora_step_is_judged_beside_a_full_one() -> None:
    module = script("lora_step")
    contenders = measured(("full,8,c_attn", 2, 100), ("lora,8,c_attn", 1.6, 40), ("peft,8,c_attn", 2.4, 80))
    lines, said = module.report("tiny", contenders)
    assert lines[1] == "| tiny | lora | 1600 | 40 | 0.80 | 0.40 |"
    assert said[0].startswith("- not met: tiny: 0.80 of a full step's time (aim: 0.75)")
    assert said[1].startswith("- met: tiny: 0.40 of its memory (aim: 0.5)")
    assert said[2].startswith("- met: tiny: 0.67 of PEFT's time, 0.50 of its memory")


def test_a_step_in_bfloat16_is_judged_beside_float32_and_pytorch() -> None:
    module = script("bfloat16_step")
    contenders = measured(("bfloat16", 1, 50), ("float32", 1.6, 80), ("torch", 1.3, 90), ("torch-compile", 1.1, 70))
    lines, said = module.report("baby", contenders)
    assert lines[1] == "| baby | float32 | 1600.0 | 80 | 1.60 | 1.60 |"
    assert said[0].startswith("- met: baby in bfloat16: 1.60 times float32 (aim: 1.5)")
    assert said[1].startswith("- not met: baby in bfloat16: 1.10 times torch-compile (aim: 1.2)")
    assert len(module.report("tiny", contenders)[1]) == 1


@pytest.mark.slow
def test_steps_in_bfloat16_and_float32_begin_with_the_same_loss() -> None:
    """`measure` ends with a message otherwise."""
    assert all(one.times[0] > 0 for one in script("bfloat16_step").measure("tiny", ["bfloat16", "float32"], 1))


@pytest.mark.slow
def test_a_lora_step_s_contenders_begin_with_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """`measure` ends with a message otherwise."""
    module = script("lora_step")
    found = module.measure("tiny", ["full", "lora"], 1, "2,c_attn")
    assert all(one.times[0] > 0 for one in found)


@pytest.mark.slow
@needs_extension
def test_a_step_of_a_model_of_one_s_own_is_profiled(tmp_path: Path) -> None:
    config = tg.GPTConfig(vocab_size=300, block_size=32, n_layer=1, n_head=2, n_embd=16)
    tg.GPT(config, seed=0).save_pretrained(tmp_path)
    printed = run("profile_step", "--model", str(tmp_path), "--steps", "2", "--batch", "2", "--length", "9")
    assert "B = 2, T = 9" in printed
    for operation in ("QKVAttention backward", "Linear forward", "AdamW", "between the operations"):
        assert f"| {operation} |" in printed


def test_a_target_that_is_met_tells_its_floor_too() -> None:
    assert script("machine").verdict(True, "tiny", "1.4", "at most 2") == "- met: tiny (aim: 1.4); at most 2"


@pytest.mark.parametrize("loss", [4.2, float("nan")])
def test_a_wrong_first_loss_ends_a_comparison_unless_it_is_torch_compile_s(
    loss: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, stopped = script("train_step"), []
    monkeypatch.setattr(module.Contender, "stop", lambda one: stopped.append(one.name))
    contenders = measured(("tinygpt", 1, 1), ("torch", 1, 1), ("torch-compile", 1, 1))
    for one, first in zip(contenders, (4.17, 4.17, loss), strict=True):
        one.first_loss = first
    assert module.those_that_agree("tiny", contenders) == contenders[:2]
    assert stopped == ["torch-compile"]
    assert "torch-compile, whose first loss is wrong" in capsys.readouterr().out
    contenders[1].first_loss = loss
    with pytest.raises(SystemExit, match="the comparison would mean nothing"):
        module.those_that_agree("tiny", contenders)


def test_a_torch_compile_that_dies_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    module = script("train_step")

    def started(name: str, preset: str, weights: str, *script: str) -> Any:
        if name == dying:
            raise SystemExit(f"the process of {name} exited early")
        return name

    monkeypatch.setattr(module, "Contender", started)
    dying = "torch-compile"
    assert module.those_that_start("tiny", ["tinygpt", "torch", dying], "") == ["tinygpt", "torch"]
    assert "Left out of tiny: the process of torch-compile exited early." in capsys.readouterr().out
    dying = "torch"
    with pytest.raises(SystemExit, match="the process of torch exited early"):
        module.those_that_start("tiny", ["tinygpt", "torch"], "")
