"""What `torch.save` writes, in each of its forms, is read as `torch.load` reads it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import make_theirs, torch
from tinygpt import GPT
from tinygpt.errors import CheckpointError
from tinygpt.interop.torch_file import TorchFile

pytestmark = pytest.mark.compat

BIN = "pytorch_model.bin"
FORMS: list[dict[str, Any]] = [
    {},
    {"_use_new_zipfile_serialization": False},
    {"pickle_protocol": 3},
    {"pickle_protocol": 4},
    {"pickle_protocol": 5, "_use_new_zipfile_serialization": False},
]


def tensors() -> dict[str, Any]:
    """Every dtype that is read, and every way in which a tensor may lie in its storage."""
    base = torch.arange(24.0).reshape(2, 3, 4)
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, 3.3e38])
    found = {
        "base": base, "permuted": base.permute(2, 0, 1), "slice": base[1, :, 1:3], "step": base[:, ::2],
        "scalar": base[1, 2, 3], "empty": torch.empty(0, 3), "parameter": torch.nn.Parameter(base.transpose(0, 1)),
        "special": special, "bfloat16": special.to(torch.bfloat16), "float16": (base / 7).half(),
        "double": base.double() / 3, "long": torch.arange(-5, 5), "int": torch.arange(5, dtype=torch.int32),
        "short": torch.arange(5, dtype=torch.int16),
        "char": torch.arange(-5, 5, dtype=torch.int8), "byte": torch.arange(5, dtype=torch.uint8),
        "bool": torch.ones(4, 4, dtype=torch.bool).tril(),
        "bfloat16 transposed": base.to(torch.bfloat16).transpose(0, 2),
        "overlapping": base.flatten().unfold(0, 6, 6)[:, :3], "one axis of one": base[:, :1].transpose(0, 1),
    }  # fmt: skip
    found["shared"] = found["base"]
    return found


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_tensor_is_read_as_torch_reads_it(form: dict[str, Any], tmp_path: Path) -> None:
    torch.save(OrderedDict(tensors()), tmp_path / BIN, **form)
    theirs = torch.load(tmp_path / BIN, weights_only="pickle_protocol" not in form)  # their safe reader knows one
    with TorchFile(tmp_path / BIN) as file:
        assert file.arrays.keys() == theirs.keys()
        for name, tensor in theirs.items():
            expected = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
            found = file.read(name)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
            assert found.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("form", FORMS[:2], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_state_dict_of_theirs_is_a_model_of_ours(form: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    theirs = make_theirs().to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path)
    expected = GPT.from_pretrained(tmp_path, dropout=0.0)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / BIN, **form)  # with the attribute _metadata, and a tied head
    found = GPT.from_pretrained(tmp_path, dropout=0.0)
    for name, array in expected.state_dict().items():
        assert found.state_dict()[name].tobytes() == array.tobytes(), name


def test_matrices_that_were_saved_as_views(tmp_path: Path) -> None:
    theirs = make_theirs()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    views = {
        name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor
        for name, tensor in theirs.state_dict().items()
    }
    torch.save(views, tmp_path / BIN)
    ours = GPT.from_pretrained(tmp_path, dropout=0.0)
    np.testing.assert_array_equal(
        ours.state_dict()["h.0.attn.c_attn.weight"],
        theirs.state_dict()["transformer.h.0.attn.c_attn.weight"].numpy(),
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": torch.zeros(3, dtype=torch.complex64)}, "ComplexFloatStorage"),
        ({"a": torch.zeros(3).to_sparse()}, "_rebuild_sparse_tensor"),
        ({"a": torch.zeros(1).expand(100)}, "repeats its 1 stored numbers"),
        ({"a": torch.nn.Linear(2, 2)}, "names torch.nn.modules.linear.Linear"),
        ({"a": torch.zeros(2), "epoch": 3}, "holds 'epoch', which is of type int"),
        (torch.zeros(3), "holds a Tensor, not a dictionary"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_state_dict_is_refused_by_name(value: Any, words: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / BIN)
    with pytest.raises(CheckpointError, match=words):
        TorchFile(tmp_path / BIN)
