"""GenerationConfig: each option, what two of them say together, and generation_config.json."""

import json
import math

import pytest

from tests.generation.helpers import PROMPTS, make
from tinygpt import UsageError
from tinygpt.errors import CheckpointError
from tinygpt.generation import (
    GenerationConfig,
    config_from_dict,
    config_to_dict,
    generate,
    read_config_file,
    write_config_file,
)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, not -1"),
        ({"max_new_tokens": 1.0}, "max_new_tokens must be a whole number"),
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"min_new_tokens": True}, "min_new_tokens must be a whole number"),
        ({"min_length": -1}, "min_length must be at least 0"),
        ({"do_sample": 1}, "do_sample must be True or False, not 1"),
        ({"do_sample": None}, "do_sample must be True or False, not None"),
        ({"temperature": -1}, "temperature must be at least 0, not -1"),
        ({"temperature": math.nan}, "temperature must be at least 0, not nan"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"top_k": 0}, r"top_k must be at least 1, not 0 \(None samples from all tokens\)"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"top_p": -0.1}, "top_p must be at least 0 and at most 1, not -0.1"),
        ({"top_p": 1.1}, "top_p must be at least 0 and at most 1"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty must be at least 1e-30 and at most 1e"),
        ({"repetition_penalty": 1e300}, "repetition_penalty must be at least 1e-30 and at most 1e"),
        ({"min_p": 1.1}, "min_p must be at least 0 and at most 1"),
        ({"typical_p": 0}, "typical_p must be above 0 and at most 1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be at least 1e-30"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be at least 0"),
        ({"bad_words_ids": [3]}, "each entry of bad_words_ids must be a list of token ids, not 3"),
        ({"bad_words_ids": [[1], []]}, "bad_words_ids must not contain an empty list"),
        ({"bad_words_ids": "no"}, "bad_words_ids must be a list of lists of token ids"),
        ({"suppress_tokens": 3}, "suppress_tokens must be a list of token ids, not 3"),
        ({"suppress_tokens": [1.5]}, "every id of suppress_tokens must be a whole number"),
        ({"begin_suppress_tokens": [-1]}, "every id of begin_suppress_tokens must be at least 0"),
        ({"eos_token_id": -1}, "eos_token_id must be at least 0"),
        ({"eos_token_id": "end"}, "eos_token_id must be a whole number"),
        ({"pad_token_id": -1}, "pad_token_id must be at least 0"),
        ({"stop_strings": ["a", ""]}, "stop_strings must not contain an empty string"),
        ({"stop_strings": [1]}, "stop_strings must be a string or a list of strings"),
        ({"num_return_sequences": 0}, "num_return_sequences must be at least 1"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"num_beams": 2, "length_penalty": math.inf}, "length_penalty must be at least -50 and at most 50, not inf"),
        ({"num_beams": 2, "early_stopping": 1}, "early_stopping must be one of True, False, 'never', not 1"),
        ({"seed": -1}, "a seed is an integer"),
        ({"seed": [1, "2"]}, "a seed is an integer"),
        ({"overflow": "crash"}, "overflow must be one of 'slide', 'stop', not 'crash'"),
        ({"vocab_size": 0}, "vocab_size must be at least 1"),
    ],
)
def test_each_option_is_checked(options, words):
    with pytest.raises(UsageError, match=words):
        GenerationConfig(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"do_sample": False, "top_k": 5}, "top_k=5 applies only to sampling"),
        ({"do_sample": False, "temperature": 0.7}, "temperature=0.7 applies only to sampling"),
        ({"temperature": 0, "min_p": 0.1}, "min_p=0.1 applies only to sampling"),
        ({"length_penalty": 2}, "length_penalty=2.0 applies only to beam search"),
        ({"early_stopping": True}, "early_stopping=True applies only to beam search"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences must be at most num_beams=2, not 3"),
        ({"do_sample": False, "num_return_sequences": 2}, "greedy decoding is deterministic"),
        ({"min_new_tokens": 3, "max_new_tokens": 2}, "min_new_tokens=3 is more than max_new_tokens=2"),
        ({"min_length": 3, "max_length": 2}, "min_length=3 is more than max_length=2"),
    ],
)
def test_contradictions_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        GenerationConfig(**options)


def test_what_is_given_becomes_plain_values():
    config = GenerationConfig(eos_token_id=[3, 4], stop_strings=["a"], bad_words_ids=[[1, 2]], suppress_tokens=[])
    assert (config.eos_ids, config.stops, config.bad_words_ids) == ((3, 4), ("a",), ((1, 2),))
    assert GenerationConfig(eos_token_id=3).eos_ids == (3,)
    assert GenerationConfig(eos_token_id=[]).eos_ids == GenerationConfig(stop_strings=[]).stops == ()
    assert [GenerationConfig(eos_token_id=[3, 4], pad_token_id=pad).padding for pad in (None, 0)] == [3, 0]
    assert GenerationConfig(**config.to_dict()) == config
    assert hash(config) == hash(GenerationConfig(**config.to_dict()))


def test_options_of_a_call_change_the_config():
    config = GenerationConfig(temperature=0.7, top_k=5, max_length=9, num_beams=3, early_stopping=True)
    assert config.with_options({"top_k": 6}).top_k == 6
    assert config.with_options({"top_k": None}).top_k is None
    # What a change leaves without a meaning goes, but the change itself must not be contradictory.
    for greedy in ({"do_sample": False}, {"temperature": 0}):
        changed = config.with_options(greedy)
        assert changed.greedy
        assert changed.top_k is None
        with pytest.raises(UsageError, match="top_k=2 applies only to sampling"):
            config.with_options({**greedy, "top_k": 2})
    assert config.with_options({"max_new_tokens": 4}).max_length is None
    assert config.with_options({"num_beams": 1}).early_stopping is False
    assert not GenerationConfig(do_sample=False).with_options({"temperature": 0.8}).greedy
    with pytest.raises(UsageError, match="there is no option 'topk': did you mean 'top_k'"):
        config.with_options({"topk": 3})
    with pytest.raises(UsageError, match="there is no option 'x': the options are max_new_tokens, max_length"):
        generate(make(), PROMPTS, x=3)


def test_ids_beyond_the_vocabulary_are_refused():
    for options in (
        {"eos_token_id": 13},
        {"eos_token_id": [1, 13]},
        {"suppress_tokens": [13]},
        {"bad_words_ids": [[1, 13]]},
        {"begin_suppress_tokens": [13]},
    ):
        with pytest.raises(UsageError, match=r"contains 13, but valid ids are 0 \.\. 12"):
            generate(make(), PROMPTS, 2, **options)
    with pytest.raises(UsageError, match=r"eos_token_id contains 8, but valid ids are 0 \.\. 7"):
        generate(make(), PROMPTS, 2, eos_token_id=8, vocab_size=8)
    generate(make(), PROMPTS, 2, pad_token_id=99, seed=0)  # never fed to the model


# generation_config.json -----------------------------------------------------------------------------


def test_transformers_settings_are_read():
    settings = {
        "_from_model_config": True, "bos_token_id": 5, "eos_token_id": 5, "transformers_version": "4.40.0",
        "use_cache": True, "temperature": 0.6, "top_k": 0, "top_p": None, "do_sample": True, "diversity_penalty": 0.0,
    }  # fmt: skip
    assert config_from_dict(settings) == GenerationConfig(eos_token_id=5, temperature=0.6)
    # left over from other modes: of no influence there
    assert config_from_dict({"do_sample": False, "top_k": 50, "temperature": 0.7, "length_penalty": 2.0}) == (
        GenerationConfig(do_sample=False)
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"guidance_scale": 1.5}, "does not support 'guidance_scale', which is set to 1.5"),
        ({"sequence_bias": [[[1], 2.0]]}, "does not support 'sequence_bias'"),
        ({"forced_bos_token_id": 8}, "does not support 'forced_bos_token_id', which is set to 8: remove it"),
        ({"forced_eos_token_id": [8]}, "does not support 'forced_eos_token_id'"),
        ({"num_beam_groups": 2}, "does not support 'num_beam_groups'"),
        ({"temprature": 0.5}, "unknown setting 'temprature'"),
        ({"seed": 3}, "unknown setting 'seed'"),
        ({"top_p": 3}, "top_p must be at least 0 and at most 1"),
    ],
)
def test_settings_that_would_change_the_outcome_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        config_from_dict(settings)


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig(),
        GenerationConfig(temperature=0.7, top_k=40, top_p=0.9, min_p=0.1, typical_p=0.5, eos_token_id=[1, 2]),
        GenerationConfig(do_sample=False, num_beams=3, early_stopping="never", bad_words_ids=[[1], [2, 3]]),
        GenerationConfig(max_length=9, min_length=2, stop_strings=["é"], pad_token_id=0),
    ],
)
def test_a_file_is_written_and_read(tmp_path, config):
    write_config_file(config, tmp_path)
    assert read_config_file(tmp_path) == read_config_file(tmp_path / "generation_config.json") == config
    settings = json.loads((tmp_path / "generation_config.json").read_text("utf-8"))
    assert settings["do_sample"] is config.do_sample  # what transformers defaults otherwise is always written
    assert ("top_k" in settings) == config.do_sample
    assert settings == config_to_dict(config)


def test_files_that_are_not_there_or_damaged(tmp_path):
    assert read_config_file(tmp_path) is None
    for content in (b"{", b"\xff", b"[1]"):
        (tmp_path / "generation_config.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"generation_config\.json"):
            read_config_file(tmp_path)
    with pytest.raises(CheckpointError, match="cannot read"):
        read_config_file(tmp_path / "none.json")
    with pytest.raises(UsageError, match="cannot write"):
        write_config_file(GenerationConfig(), tmp_path / "none" / "x.json")


def test_the_models_own_config_is_where_a_call_starts():
    model = make()
    greedy = model.generate(PROMPTS, 3, do_sample=False)
    model.generation_config = {"do_sample": False, "max_new_tokens": 3, "bos_token_id": 2}
    assert (model.generate(PROMPTS) == greedy).all()
    assert model.generate(PROMPTS, config=GenerationConfig(max_new_tokens=5)).shape == (5, 9)
    with pytest.raises(UsageError, match="config must be a GenerationConfig, not int"):
        model.generate(PROMPTS, config=3)
