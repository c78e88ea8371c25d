"""The presets: their shapes, and that the settings of each are accepted."""

from __future__ import annotations

import pytest

from tinygpt.gpt import GPTConfig
from tinygpt.memory import parameter_count
from tinygpt.training import PRESETS, TrainingConfig


@pytest.mark.parametrize(
    ("name", "parameters"),  # those of the checkpoints of these names, counted by transformers
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_the_sizes_of_gpt2(name: str, parameters: int) -> None:
    shape = PRESETS[name].model | {"block_size": 1024}
    assert parameter_count(GPTConfig(vocab_size=50257, **shape)) == parameters


@pytest.mark.parametrize("name", ["gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_their_steps_have_as_many_tokens(name: str) -> None:
    config = TrainingConfig(**PRESETS[name].training)
    assert config.batch_size * config.gradient_accumulation * PRESETS[name].model["block_size"] == 131_072
