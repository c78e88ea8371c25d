"""Settings, ids and targets that a model does not take, and those that it does."""

import json
import math

import numpy as np
import pytest

import tinygpt as tg
from tests.gpt.helpers import IDX, SETTINGS, TARGETS, make
from tinygpt import GPT, GPTConfig, UsageError


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"activation_function": "tanh"}, "activation_function must be one of gelu_new, gelu, relu, silu, not 'tanh'"),
        ({"activation_function": None}, "activation_function must be one of .* not None"),
        ({"activation_function": ["relu"]}, "activation_function must be one of"),
        ({"n_inner": 0}, "n_inner must be at least 1, not 0"),
        ({"n_inner": 1.5}, "n_inner must be a whole number, not 1.5"),
        ({"scale_attn_weights": 1}, "scale_attn_weights must be True or False, not 1"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be True or False, not 'no'"),
    ],
)
def test_settings_without_sense(setting, words):
    with pytest.raises(UsageError, match=words):
        make(**setting)


def test_config_round_trip():
    config = GPTConfig(**SETTINGS, dropout=0.1, bias=False)
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    model = GPT.from_config(config.to_dict(), seed=3)
    assert model.config == config
    np.testing.assert_array_equal(model.wte.weight.data, GPT.from_config(config, seed=3).wte.weight.data)


def test_config_takes_numpy_numbers():
    config = GPTConfig(**(SETTINGS | {"n_layer": np.int64(2), "dropout": np.float32(0.5)}))
    assert type(config.n_layer) is int
    assert type(config.dropout) is float


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_layer": 0}, "n_layer must be at least 1, not 0"),
        ({"vocab_size": -5}, "vocab_size must be at least 1, not -5"),
        ({"block_size": 8.0}, "block_size must be a whole number, not 8.0"),
        ({"n_head": True}, "n_head must be a whole number, not True"),
        ({"n_embd": "12"}, "n_embd must be a whole number, not '12'"),
        ({"n_head": 5}, r"a multiple of n_head \(5\), not 12"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1"),
        ({"dropout": -0.1}, "dropout must be at least 0"),
        ({"dropout": math.nan}, "dropout must be at least 0 and below 1, not nan"),
        ({"bias": 1}, "bias must be True or False, not 1"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be above 0"),
    ],
)
def test_impossible_settings_get_a_sentence(settings, words):
    with pytest.raises(UsageError, match=words):
        GPTConfig(**(SETTINGS | settings))


def test_from_dict_names_what_is_unknown_or_missing():
    with pytest.raises(UsageError, match="no setting 'n_heads'"):
        GPTConfig.from_dict(SETTINGS | {"n_heads": 2})
    with pytest.raises(UsageError, match="lack n_embd"):
        GPTConfig.from_dict({k: v for k, v in SETTINGS.items() if k != "n_embd"})


@pytest.mark.parametrize(
    ("idx", "words"),
    [
        (np.zeros((2, 9), int), "9 tokens is longer than this model's block_size of 8"),
        (np.zeros(3, int), r"the shape \(batch, time\) with at least one token, not \(3,\)"),
        (np.zeros((2, 0), int), "at least one token"),
        ([[]], "at least one token"),
        (np.zeros((2, 3)), "idx must be integers, not float64"),
        (np.zeros((2, 3), bool), "not bool"),
        ([[0, 11]], r"ids must be in 0 .. 10 \(vocab_size is 11\), those in idx are in 0 .. 11"),
        ([[0, -1]], "those in idx are in -1 .. 0"),
        ([[0, 1], [2]], "idx must be integers, not rows that differ in length"),
    ],
)
def test_bad_ids_get_a_sentence(idx, words):
    model = make()
    with pytest.raises(UsageError, match=words):
        model(idx)
    with pytest.raises(UsageError, match=words):
        model.loss(idx, labels=[[0, 1]])


def test_bad_targets_and_types_get_a_sentence():
    model = make()
    with pytest.raises(UsageError, match=r"targets must have the shape of idx, \(3, 7\), not \(3, 6\)"):
        model.loss(IDX, TARGETS[:, 1:])
    with pytest.raises(UsageError, match="targets must be integers"):
        model.loss(IDX, TARGETS.astype(float))
    with pytest.raises(UsageError, match="targets"):
        model.loss(IDX, TARGETS + 5)
    with pytest.raises(UsageError, match="config must be a GPTConfig, not dict"):
        GPT(SETTINGS)
    with pytest.raises(UsageError, match="dtype must be float32 or float64"):
        make(dtype=np.float16)
    with pytest.raises(UsageError, match="a seed is an integer"):
        make(seed=-1)


def test_ids_may_be_lists_or_tensors_of_any_integer_type():
    model = make()
    logits = model(IDX).data
    for ids in (IDX.tolist(), tg.tensor(IDX), IDX.astype(np.uint16), IDX.astype(np.int32), IDX[::-1][::-1]):
        np.testing.assert_array_equal(model(ids).data, logits)
