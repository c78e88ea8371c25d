"""The layer of examples/lstm_against_gpt.py is PyTorch's LSTM."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import tinygpt as tg
from tests.compat import torch
from tests.packaging.test_example_lstm import EXAMPLES


def test_a_layer_is_that_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("lstm_against_gpt")
    rng, C = np.random.default_rng(0), 5
    layer = example.LSTMLayer(C, rng)
    theirs = torch.nn.LSTM(C, C)
    order = [0, 1, 3, 2]  # PyTorch's gates are input, forget, candidate, output

    def turned(weight: tg.Tensor) -> object:
        return torch.tensor(np.concatenate([np.split(weight.data, 4, axis=-1)[i] for i in order], axis=-1).T.copy())

    with torch.no_grad():
        theirs.weight_ih_l0.copy_(turned(layer.input))
        theirs.weight_hh_l0.copy_(turned(layer.hidden))
        theirs.bias_ih_l0.copy_(turned(layer.bias))
        theirs.bias_hh_l0.zero_()
    x = rng.standard_normal((7, 2, C)).astype(np.float32)
    assert np.allclose(layer(tg.tensor(x)).data, theirs(torch.tensor(x))[0].detach().numpy(), atol=1e-6)
