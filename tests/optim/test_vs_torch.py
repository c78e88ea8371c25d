"""Optimizers against PyTorch's, where it is installed."""

import numpy as np
import pytest

from tinygpt import tensor
from tinygpt.optim import SGD, AdamW, clip_grad_norm

torch = pytest.importorskip("torch")

OPTIMIZERS = {
    "adamw": (
        lambda p: AdamW(p, lr=0.05, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.05, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1),
    ),
    "momentum": (
        lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    ),
    "nesterov": (
        lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    ),
    "plain": (lambda p: SGD(p, lr=0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_pytorchs(name):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in ((4, 3), (2, 5))]  # matrices: PyTorch decays all alike
    ours = [tensor(a.copy(), requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    our_optimizer, their_optimizer = (make(p) for make, p in zip(OPTIMIZERS[name], (ours, theirs), strict=True))
    for _ in range(10):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = rng.standard_normal(p.shape)
            q.grad = torch.tensor(p.grad.copy())
        norm = clip_grad_norm(ours, 2.0)
        # PyTorch adds 1e-6 to the norm it divides by
        assert float(torch.nn.utils.clip_grad_norm_(theirs, 2.0)) == pytest.approx(norm, rel=1e-12)
        our_optimizer.step()
        their_optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-5, atol=1e-6)
