"""nanoGPT's checkpoints as PyTorch writes them: their logits here are those of the module that was saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import load_theirs, torch
from tinygpt import GPT, interop

nn, F = torch.nn, torch.nn.functional
ARGUMENTS: dict[str, Any] = {
    "n_layer": 2, "n_head": 3, "n_embd": 12, "block_size": 10, "bias": True, "vocab_size": 320, "dropout": 0.0
}  # fmt: skip
IDS = np.random.default_rng(1).integers(0, 320, (3, 10))


class Norm(nn.Module):
    """A LayerNorm that may lack its bias."""

    def __init__(self, C: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(C))
        self.bias = nn.Parameter(torch.zeros(C)) if bias else None

    def forward(self, x: Any) -> Any:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Block(nn.Module):
    def __init__(self, n_head: int, n_embd: int, block_size: int, bias: bool, **_: Any) -> None:
        super().__init__()
        C = n_embd
        self.n_head = n_head
        self.ln_1, self.ln_2 = Norm(C, bias), Norm(C, bias)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(C, 3 * C, bias), "c_proj": nn.Linear(C, C, bias)})
        self.attn.register_buffer("bias", torch.ones(block_size, block_size).tril()[None, None])
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C, bias), "c_proj": nn.Linear(4 * C, C, bias)})

    def forward(self, x: Any) -> Any:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.attn["c_attn"](self.ln_1(x)).split(C, 2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        x = x + self.attn["c_proj"](y)
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Model(nn.Module):
    """A GPT with the names and the shapes of nanoGPT's."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        V, T, C, bias = (sizes[name] for name in ("vocab_size", "block_size", "n_embd", "bias"))
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(V, C), "wpe": nn.Embedding(T, C), "drop": nn.Dropout(sizes["dropout"]),
                "h": nn.ModuleList([Block(**sizes) for _ in range(sizes["n_layer"])]), "ln_f": Norm(C, bias),
            }
        )  # fmt: skip
        self.lm_head = nn.Linear(C, V, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))

    def forward(self, ids: Any) -> Any:
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def trained(path: Path, compiled: bool = False, dtype: Any = torch.float32, **changes: Any) -> Model:
    """A model after two steps of AdamW, saved with all that nanoGPT's train.py puts into its checkpoint."""
    arguments = ARGUMENTS | changes
    model = Model(**arguments)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    for _ in range(2):
        loss = F.cross_entropy(model(torch.tensor(IDS[:, :-1])).flatten(0, 1), torch.tensor(IDS[:, 1:]).flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    model.to(dtype)
    state = (nn.ModuleDict({"_orig_mod": model}) if compiled else model).state_dict()  # as torch.compile wraps it
    torch.save(
        {
            "model": state, "optimizer": optimizer.state_dict(), "model_args": arguments, "iter_num": 2,
            "best_val_loss": loss.detach(), "config": {"dataset": "poems", "wandb_log": False, "seed": None},
        },
        path,
    )  # fmt: skip
    return model.eval()


def logits(theirs: Model) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(theirs.float()(torch.tensor(IDS)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_logits(tmp_path: Path, bias: bool, compiled: bool) -> None:
    theirs = trained(tmp_path / "ckpt.pt", compiled, bias=bias)
    ours = GPT.from_pretrained(tmp_path / "ckpt.pt")
    assert ours.config.bias == bias
    expected = logits(theirs)
    np.testing.assert_allclose(ours(IDS).data, expected, rtol=1e-5, atol=2e-5)
    # By way of a GPT-2 directory it is a model of transformers, too.
    interop.convert(tmp_path, tmp_path / "model")
    with torch.no_grad():
        found = load_theirs(tmp_path / "model")(torch.tensor(IDS)).logits
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=2e-5)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["activation_function"] == "gelu"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_of_16_bits(tmp_path: Path, dtype: Any) -> None:
    theirs = trained(tmp_path / "ckpt.pt", dtype=dtype)
    np.testing.assert_allclose(GPT.from_pretrained(tmp_path)(IDS).data, logits(theirs), rtol=1e-5, atol=2e-5)


def test_every_parameter_is_theirs(tmp_path: Path) -> None:
    state = trained(tmp_path / "ckpt.pt").state_dict()
    for name, array in GPT.from_pretrained(tmp_path).state_dict().items():
        expected = state[f"transformer.{name}"].numpy()
        linear = name.split(".")[-2] in ("c_attn", "c_proj", "c_fc") and expected.ndim == 2
        np.testing.assert_array_equal(array, expected.T if linear else expected, err_msg=name)
