"""A model as plain values and arrays, for the other processes of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tinygpt.cli.handover import _tokens_of, built, described
from tinygpt.data import open_tokens
from tinygpt.parallel import Communicator
from tinygpt.parallel.values import decoded, encoded

SHAPE: dict[str, Any] = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.2}


def model_of(kind: str) -> tg.GPT:
    shape = SHAPE | {"n_embd": 32} if kind == "int4" else SHAPE
    model = tg.GPT(tg.GPTConfig(**shape, tie_word_embeddings=kind != "untied"), seed=3)
    if kind in ("int8", "int4", "bfloat16"):
        model.pack(kind)
    if kind == "groups":
        model.pack("int8", group=8)
    if kind in ("int8", "int4", "bfloat16", "groups", "lora"):
        tg.nn.add_lora(model, rank=2, dropout=0.1, targets=("c_attn", "c_fc"))
    if kind == "frozen":
        model.h[0].requires_grad_(False)
        model.train()
        model.h[0].eval()
    model.source = "a folder"
    return model


@pytest.mark.parametrize("kind", ["plain", "untied", "frozen", "lora", "int8", "int4", "bfloat16", "groups"])
def test_a_model_arrives_as_it_is(kind: str) -> None:
    """The same losses and gradients with dropout, hence the same weights, modes, masks and trained parameters."""
    model = model_of(kind)
    description, arrays = described(model)
    made = built(decoded(encoded(description)), {name: array.copy() for name, array in arrays.items()})
    assert repr(made) == repr(model)
    assert (made.source, made.packed, made.generator.stream) == (model.source, model.packed, model.generator.stream)
    assert [m.training for m in made.modules()] == [m.training for m in model.modules()]
    ids = np.arange(24).reshape(3, 8) % 11
    for one in (model, made):
        for name, parameter in one.named_parameters():
            if "lora_B" in name:
                parameter.data[...] += 0.1
    losses = [one.loss(ids, (3 * ids + 1) % 11) for one in (model, made)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == losses[1].item()
    for (name, here), (other, there) in zip(model.named_parameters(), made.named_parameters(), strict=True):
        assert name == other
        assert here.requires_grad == there.requires_grad
        assert (here.grad is None) == (there.grad is None)
        assert here.grad is None or np.array_equal(here.grad, there.grad), name
    with tg.no_grad():
        made.eval(), model.eval()
        assert np.array_equal(made(ids).data, model(ids).data)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps a file that is open")
def test_a_copy_of_the_tokens_is_not_left_behind(tmp_path: Path) -> None:
    """A launcher ends processes by SIGKILL: what they have not removed by then stays."""
    np.save(tmp_path / "first.npy", np.arange(100))
    content = (tmp_path / "first.npy").read_bytes()

    class Second(Communicator):
        """A process that does not see the file of process 0."""

        rank, size = 1, 2

        def gather_values(self, value: Any) -> list[Any]:
            return [False, value]

        def share_value(self, value: Any) -> Any:
            return len(content)

        def broadcast(self, array: np.ndarray, root: int = 0) -> None:
            array[...] = np.frombuffer(content, np.uint8)

    place = tmp_path / "second"
    place.mkdir()
    tokens = _tokens_of(Second(), tmp_path / "missing.npy", "", place)
    assert np.array_equal(tokens, open_tokens(tmp_path / "first.npy"))
    assert not [*place.iterdir()]
