"""The example of an LSTM beside a GPT: its gradients are right, and it runs."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tinygpt as tg
from tests.training.helpers import ENVIRONMENT, write_text

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("lstm_against_gpt")


def in_double(layer: tg.nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.data = parameter.data.astype(np.float64)


def test_gradients_of_a_layer(example: ModuleType) -> None:
    rng = np.random.default_rng(0)
    layer = example.LSTMLayer(3, rng)
    in_double(layer)

    def run(x: tg.Tensor, *weights: tg.Tensor) -> tg.Tensor:
        layer.input, layer.hidden, layer.bias = weights
        return layer(x)

    weights = [parameter.data for parameter in layer.parameters()]
    tg.testing.check_gradients(run, rng.standard_normal((4, 2, 3)), *weights)


def test_the_contenders_have_the_same_number_of_parameters(example: ModuleType) -> None:
    sizes = [sum(parameter.data.size for parameter in make(65, 0).parameters()) for make in example.CONTENDERS.values()]
    assert max(sizes) / min(sizes) < 1.002


def test_a_later_token_changes_no_earlier_result(example: ModuleType) -> None:
    for make in example.CONTENDERS.values():
        model = make(11, 0).eval()
        ids = np.arange(8)[None] % 11
        changed = ids.copy()
        changed[0, 5] = 10
        same = np.isclose(model(ids).data, model(changed).data).all(axis=-1)[0]
        assert same.tolist() == [True] * 5 + [False] * 3


def test_a_run_that_diverged_is_never_the_best(example: ModuleType) -> None:
    nothing = np.full(example.TIME, 3.0)
    runs = [example.Run(name, 0, lr, loss, nothing, 1.0, 10)
            for name in example.CONTENDERS for lr, loss in ((0.1, np.nan), (0.2, 3.0), (0.3, 4.0))]  # fmt: skip
    assert [line.split(" | ")[2] for line in example.table(runs)[2:4]] == ["0.2", "0.2"]


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    write_text(tmp_path / "my.txt", 60)
    command = [sys.executable, str(EXAMPLES / "lstm_against_gpt.py"), "--data", str(tmp_path / "my.txt")]
    done = subprocess.run(
        [*command, "--steps=2", "--rates", "0.01", "--seeds", "0"],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\| (?:GPT|LSTM) \|", done.stdout, re.M)) == 4
    (tmp_path / "my.txt").write_text("short", encoding="utf-8")
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "give a text of at least 650" in done.stderr
