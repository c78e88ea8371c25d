"""generation_config.json, written here and read by transformers, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import (
    generate_theirs,
    load_ours,
    load_theirs,
    torch,
    transformers,
)
from tests.generation.side_by_side import EQUAL
from tinygpt.generation import GenerationConfig, config_from_dict, read_config_file, write_config_file

SETTINGS: list[dict[str, Any]] = [
    {"do_sample": False, "max_new_tokens": 7},
    {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.9,
     "max_length": 30},
    {"do_sample": True, "top_k": 0, "max_new_tokens": 9, "eos_token_id": [3, 12], "pad_token_id": 12},
    {"do_sample": False, "num_beams": 4, "length_penalty": 0.5, "early_stopping": True, "num_return_sequences": 3,
     "eos_token_id": 3, "max_new_tokens": 8},
    {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[1], [2, 3]],
     "suppress_tokens": [4], "begin_suppress_tokens": [5], "max_new_tokens": 8},
    {"do_sample": False, "min_new_tokens": 4, "max_new_tokens": 12, "eos_token_id": 3, "stop_strings": ["a", "b"]},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_generation_config_in_both_directions(settings: dict[str, Any], tmp_path: Path) -> None:
    transformers.GenerationConfig(**settings).save_pretrained(tmp_path)
    found = read_config_file(tmp_path)
    assert found == config_from_dict(settings)
    expected = {name: value for name, value in settings.items() if (name, value) != ("top_k", 0)}
    assert found == GenerationConfig(**expected)
    write_config_file(found, tmp_path)
    again = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in settings} == settings
    # Nothing else has come in: what both leave unsaid they mean alike.
    untouched = transformers.GenerationConfig.from_dict(settings)
    others = {name for name in json.loads((tmp_path / "generation_config.json").read_text()) if name not in settings}
    assert {name: getattr(again, name) for name in others} == {name: getattr(untouched, name) for name in others} or (
        others <= {"top_k"} and again.top_k == 0
    )


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[3], SETTINGS[4]], ids=str)
def test_the_settings_of_a_folder_are_where_generate_starts(
    settings: dict[str, Any], pair: Any, tmp_path: Path
) -> None:
    theirs = pair[1]
    before = theirs.generation_config
    try:
        theirs.generation_config = transformers.GenerationConfig(**({"pad_token_id": 30} | settings))
        wanted = theirs.generate(torch.tensor(EQUAL), attention_mask=torch.ones(EQUAL.shape, dtype=torch.int64)).numpy()
        ours = load_ours(theirs, tmp_path / "theirs")
    finally:
        theirs.generation_config = before
    np.testing.assert_array_equal(ours.generate(EQUAL), wanted)
    ours.save_pretrained(tmp_path / "ours")
    again = load_theirs(tmp_path / "ours")
    mask = torch.ones(EQUAL.shape, dtype=torch.int64)
    np.testing.assert_array_equal(again.generate(torch.tensor(EQUAL), attention_mask=mask).numpy(), wanted)


def test_on_purpose_a_folder_that_says_nothing_of_sampling_samples(pair: Any, tmp_path: Path) -> None:
    ours = load_ours(pair[1], tmp_path)
    different = [ours.generate(EQUAL, max_new_tokens=15, seed=seed, pad_token_id=30) for seed in (0, 1)]
    assert (different[0] != different[1]).any()
    wanted = generate_theirs(pair[1], EQUAL, max_new_tokens=15).numpy()
    np.testing.assert_array_equal(ours.generate(EQUAL, max_new_tokens=15, do_sample=False, pad_token_id=30), wanted)
