"""nanoGPT's architecture in PyTorch, to compare with tinygpt: same weights, same batch, PyTorch's fastest parts.

Attention is `scaled_dot_product_attention`, gradients are set to None, and the optimizer is AdamW with its defaults or
AdamW(fused=True), which is faster on a CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        C, bias = config.n_embd, config.bias
        self.n_head, self.p = config.n_head, config.dropout
        self.ln_1, self.ln_2 = nn.LayerNorm(C, bias=bias), nn.LayerNorm(C, bias=bias)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(C, 3 * C, bias), "c_proj": nn.Linear(C, C, bias)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C, bias), "c_proj": nn.Linear(4 * C, C, bias)})
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = self.attn.c_attn(self.ln_1(x)).split(C, dim=2)
        q, k, v = (z.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for z in (q, k, v))
        p = self.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        x = x + self.dropout(self.attn.c_proj(y.transpose(1, 2).contiguous().view(B, T, C)))
        return x + self.dropout(self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh")))


class TorchGPT(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)

    def forward(self, idx: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.wte(idx) + self.wpe(torch.arange(idx.shape[1])))
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    def take_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Copy tinygpt's weights. Linear layers are stored (in, out) in tinygpt and (out, in) in PyTorch."""
        own = self.state_dict()
        if set(own) != set(weights):
            raise SystemExit(f"the two models differ in their parameters: {sorted(set(own) ^ set(weights))}")
        for name, value in own.items():
            array = torch.from_numpy(np.array(weights[name]))
            linear = ".attn." in name or ".mlp." in name
            value.copy_(array.T if linear and array.ndim == 2 else array)


def make_step(
    config: Any, weights: dict[str, np.ndarray], lr: float, fused: bool, compiled: bool, bfloat16: bool = False
) -> Any:
    """A function (idx, targets) -> loss that takes one training step. bfloat16: under torch.autocast."""
    model = TorchGPT(config)
    with torch.no_grad():
        model.take_weights(weights)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=fused or None)
    parameters = list(model.parameters())
    forward = torch.compile(model) if compiled else model

    def step(idx: np.ndarray, targets: np.ndarray) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = forward(torch.from_numpy(idx), torch.from_numpy(targets))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step
