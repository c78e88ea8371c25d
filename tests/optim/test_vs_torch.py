"""Optimizers against PyTorch's, where it is installed."""

import numpy as np
import pytest

from tinygpt import tensor
from tinygpt.optim import EMA, SGD, Adam, AdamW, Muon, clip_grad_norm, schedules

torch = pytest.importorskip("torch")

OPTIMIZERS = {
    "adamw": (
        lambda p: AdamW(p, lr=0.05, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.05, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1),
    ),
    "adam": (
        lambda p: Adam(p, lr=0.05, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1),
    ),
    "groups": (
        lambda p: AdamW([{"params": p[:1], "lr": 0.2, "betas": (0.5, 0.6)}, {"params": p[1:]}], lr=0.05),
        lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 0.2, "betas": (0.5, 0.6)}, {"params": p[1:]}], lr=0.05),
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
    for _ in range(100):
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


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_pytorchs(nesterov, monkeypatch):
    """PyTorch's iterates in bfloat16 whatever the parameters are: here in their own precision, so that it is exact."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in ((4, 3), (2, 5), (6, 6))]
    ours = [tensor(a.copy(), requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a.T.copy(), requires_grad=True) for a in arrays]  # (out, in)
    options = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1, "nesterov": nesterov}
    our_optimizer = Muon([{"params": ours, "use_muon": True}], **options)
    their_optimizer = torch.optim.Muon(theirs, **options)
    for _ in range(100):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = 100 * rng.standard_normal(p.shape)  # so large that the 1e-7 beside the norm does not count
            q.grad = torch.tensor(p.grad.T.copy())
        our_optimizer.step()
        their_optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.data, q.detach().numpy().T, rtol=1e-6, atol=1e-6)


def test_the_average_without_warm_up_is_pytorchs():
    swa = torch.optim.swa_utils
    module = torch.nn.Linear(3, 2, bias=False).double()
    theirs = swa.AveragedModel(module, multi_avg_fn=swa.get_ema_multi_avg_fn(0.9))
    theirs.update_parameters(module)  # PyTorch's average starts at the first weights that it is given
    ours = tensor(module.weight.detach().numpy().copy(), requires_grad=True)
    ema = EMA([ours], decay=0.9, warm_up=False)
    rng = np.random.default_rng(0)
    for _ in range(100):
        ours.data += rng.standard_normal((2, 3))
        module.weight.data = torch.tensor(ours.data)
        ema.update()
        theirs.update_parameters(module)
    np.testing.assert_allclose(ema.average["0"], theirs.module.weight.detach().numpy(), rtol=1e-10)


def test_the_inverse_square_root_is_that_of_a_peer():
    """transformers' get_inverse_sqrt_schedule, whose warm-up ends one step earlier and begins at 0."""
    optimization = pytest.importorskip("transformers.optimization")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    peer = optimization.get_inverse_sqrt_schedule(optimizer, num_warmup_steps=11)
    ours = schedules.make("inverse_sqrt", 0.5, 0.0, 10)
    rates = []
    for _ in range(50):
        rates.append(peer.get_last_lr()[0])
        optimizer.step()
        peer.step()
    np.testing.assert_allclose([ours(step) for step in range(49)], rates[1:], rtol=1e-12)
