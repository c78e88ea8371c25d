"""Optimizers against the formulas in double precision, penalties, one sweep over all parameters."""

import math

import numpy as np
import pytest

from tinygpt import UsageError, optim, tensor
from tinygpt.kernel import REGISTRY
from tinygpt.optim import (
    SGD,
    Adam,
    AdamW,
    Lion,
    Muon,
    clip_grad_norm,
    grad_norm,
    regularization,
    schedules,
)
from tinygpt.testing import check_gradients

SHAPES = [(3, 4), (7,), (2, 3, 5), (1, 1), ()]


def parameters_and_gradients(dtype=np.float64, steps=6, seed=0):
    rng = np.random.default_rng(seed)
    parameters = [tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True) for shape in SHAPES]
    gradients = [[rng.standard_normal(shape).astype(dtype) for shape in SHAPES] for _ in range(steps)]
    return parameters, gradients


def run(optimizer, parameters, gradients, **options):
    for grads in gradients:
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.copy()
        optimizer.step(**options)


def adamw_by_formula(p, gradients, lr, beta1, beta2, eps, weight_decay):
    """Algorithm 2 of the paper, one parameter, written without regard to speed."""
    p = p.astype(np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        g = g.astype(np.float64)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p = p - lr * weight_decay * p - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return p


@pytest.mark.parametrize("variant", list(REGISTRY["adamw_update"].variants()))
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_adamw_is_the_formula(variant, scale, dtype, rtol, monkeypatch):
    monkeypatch.setattr("tinygpt.kernel._choice.kind", variant)
    parameters, gradients = parameters_and_gradients(dtype)
    before = [p.data.copy() for p in parameters]
    optimizer = AdamW(parameters, lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
    run(optimizer, parameters, gradients, grad_scale=scale)
    for i, (p, start) in enumerate(zip(parameters, before, strict=True)):
        decay = 0.3 if start.ndim >= 2 else 0.0  # matrices only
        wanted = adamw_by_formula(start, [scale * g[i] for g in gradients], 0.1, 0.8, 0.95, 1e-6, decay)
        assert p.dtype == dtype
        np.testing.assert_allclose(p.data, wanted, rtol=rtol, atol=rtol)


def test_adamw_first_step_is_lr_in_the_direction_of_the_sign():
    p = tensor(np.zeros(3), requires_grad=True)
    p.grad = np.array([1e-3, -5.0, 1e4])
    AdamW([p], lr=0.01, weight_decay=0).step()
    np.testing.assert_allclose(p.data, [-0.01, 0.01, -0.01], rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: AdamW(p, lr=0.1, weight_decay=0.2),
        lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.2),
        lambda p: Adam(p, lr=0.1, weight_decay=0.2),
        lambda p: Lion(p, lr=0.1, weight_decay=0.2),
        lambda p: Muon([{"params": p, "use_muon": True}], lr=0.1, weight_decay=0.2),
    ],
)
def test_updates_reach_an_array_that_is_not_contiguous(make):
    base = np.random.default_rng(0).standard_normal((6, 4))
    strided = tensor(base.T[:, ::2], requires_grad=True)
    plain = tensor(np.ascontiguousarray(base.T[:, ::2]), requires_grad=True)
    for p in (strided, plain):
        p.grad = np.random.default_rng(1).standard_normal((4, 3))
        make([p]).step()
    np.testing.assert_allclose(strided.data, plain.data, rtol=1e-12)  # one by the reference, one by a fast body
    np.testing.assert_array_equal(base.T[:, ::2], strided.data)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_formula(nesterov):
    parameters, gradients = parameters_and_gradients()
    before = [p.data.copy() for p in parameters]
    run(
        SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.2, nesterov=nesterov),
        parameters,
        gradients,
        grad_scale=0.5,
    )
    for i, (p, wanted) in enumerate(zip(parameters, before, strict=True)):
        velocity = np.zeros_like(wanted)
        for g in gradients:
            grad = 0.5 * g[i] + (0.2 if wanted.ndim >= 2 else 0.0) * wanted
            velocity = 0.9 * velocity + grad
            wanted = wanted - 0.1 * (grad + 0.9 * velocity if nesterov else velocity)
        np.testing.assert_allclose(p.data, wanted, rtol=1e-12)


def test_plain_sgd_keeps_no_state():
    parameters, gradients = parameters_and_gradients(steps=1)
    before = [p.data.copy() for p in parameters]
    optimizer = SGD(parameters, lr=0.5)
    run(optimizer, parameters, gradients)
    assert set(optimizer.state_dict()) == {"step"}
    for p, start, grad in zip(parameters, before, gradients[0], strict=True):
        np.testing.assert_allclose(p.data, start - 0.5 * grad)


def test_a_parameter_without_gradient_is_passed_over():
    moved, left = (tensor(np.ones((2, 2)), requires_grad=True) for _ in range(2))
    optimizer = AdamW([("moved", moved), ("left", left)], lr=0.1, weight_decay=1.0)
    moved.grad = np.ones((2, 2))
    optimizer.step()
    assert (left.data == 1).all()
    assert not (moved.data == 1).any()
    assert optimizer.state_dict()["step"] == {"moved": 1, "left": 0}
    optimizer.zero_grad()
    assert moved.grad is None


@pytest.mark.parametrize("kind", [AdamW, SGD, Lion])
def test_groups_scale_the_rate_and_state_their_decay(kind):
    p, q, b = (tensor(np.ones(shape), requires_grad=True) for shape in ((2, 2), (2, 2), (2,)))
    groups = [{"params": [p], "lr_scale": 10.0}, {"params": [q, b], "weight_decay": 2.0}]
    optimizer = kind(groups, lr=0.01, weight_decay=1.0)
    for parameter in (p, q, b):
        parameter.grad = np.zeros(parameter.shape)
    optimizer.step()
    np.testing.assert_allclose(p.data, 1 - 0.01 * 10 * 1.0)
    np.testing.assert_allclose(q.data, 1 - 0.01 * 2.0)
    np.testing.assert_allclose(b.data, 1 - 0.01 * 2.0)  # a vector too, as the group says so


def with_muon(parameters, **options):
    groups = [{"params": [p], "use_muon": p.ndim == 2} for p in parameters]
    return Muon(groups, **options)


def every_other_with_momentum(parameters, **options):
    groups = [{"params": [p], "momentum": 0.9 * (i % 2)} for i, p in enumerate(parameters)]
    return SGD(groups, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [AdamW, SGD, Adam, Lion, with_muon, every_other_with_momentum])
def test_state_dict_continues_bit_for_bit(kind, dtype):
    options = {"lr": 0.1, "weight_decay": 0.1} | ({"momentum": 0.9} if kind is SGD else {})
    parameters, gradients = parameters_and_gradients(dtype)
    copies = [tensor(p.data.copy(), requires_grad=True) for p in parameters]
    whole = kind(parameters, **options)
    run(whole, parameters, gradients)
    first = kind(copies, **options)
    run(first, copies, gradients[:3])
    saved = {
        k: {n: a.copy() if isinstance(a, np.ndarray) else a for n, a in entries.items()}
        for k, entries in first.state_dict().items()
    }
    second = kind(copies, **options)
    second.load_state_dict(saved)
    run(second, copies, gradients[3:])
    for p, q in zip(parameters, copies, strict=True):
        np.testing.assert_array_equal(p.data, q.data)


def test_load_state_dict_refuses_what_does_not_fit_and_changes_nothing():
    p = tensor(np.ones((2, 3)), requires_grad=True)
    optimizer = AdamW([("w", p)])
    good = {"step": {"w": 4}, "m": {"w": np.full((2, 3), 5.0)}, "v": {"w": np.full((2, 3), 6.0)}}
    for bad, words in [
        ({"step": {"w": 4}, "m": good["m"]}, "expected the entries"),
        (good | {"v": {"u": np.ones((2, 3))}}, r"missing: \['w'\]; unexpected: \['u'\]"),
        (good | {"v": {"w": np.ones((3, 2))}}, r"'v' of 'w' has shape \(3, 2\)"),
        (good | {"step": {"w": -1}}, "step of 'w' must be at least 0"),
        (good | {"step": {"w": 1.5}}, "whole number"),
    ]:
        with pytest.raises(UsageError, match=words):
            optimizer.load_state_dict(bad)
        assert optimizer.state_dict()["step"] == {"w": 0}
        assert not optimizer.state_dict()["m"]["w"].any()
    optimizer.load_state_dict(good)
    assert optimizer.state_dict()["step"] == {"w": 4}
    assert (optimizer.state_dict()["v"]["w"] == 6).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: AdamW([p], lr=math.nan), "AdamW: lr must be at least 0, not nan"),
        (lambda p: AdamW([p], lr=-1), "lr must be at least 0"),
        (lambda p: AdamW([p], lr="1e-3"), "lr must be a number, not '1e-3'"),
        (lambda p: AdamW([p], lr=10**400), "lr must be at least 0, not 1000"),
        (lambda p: AdamW([p], lr=True), "lr must be a number"),
        (lambda p: AdamW([p], betas=(0.9, 1.0)), "beta2 must be at least 0 and below 1, not 1"),
        (lambda p: AdamW([p], betas=0.9), "betas must be a pair"),
        (lambda p: AdamW([p], eps=0), "eps must be above 0"),
        (lambda p: AdamW([p], weight_decay=math.inf), "weight_decay must be at least 0, not inf"),
        (lambda p: SGD([p], lr=0.1, momentum=1), "momentum must be at least 0 and below 1"),
        (lambda p: SGD([p], lr=0.1, nesterov=True), "nesterov=True needs a momentum"),
        (lambda p: AdamW([]), "no parameters"),
        (lambda p: AdamW(p), "a list of tensors"),
        (lambda p: AdamW([p, p]), "the same tensor is given twice"),
        (lambda p: AdamW([("a", p), ("a", tensor(np.ones(1)))]), "the same name"),
        (lambda p: AdamW([np.ones(3)]), "not ndarray"),
        (lambda p: AdamW([tensor(np.arange(3))]), "must be float32 or float64, not int64"),
        (lambda p: AdamW([tensor(np.broadcast_to(1.0, (3,)))]), "read-only"),
        (lambda p: AdamW([{"params": [p], "learning_rate": 1}]), "a group is a dictionary"),
        (lambda p: AdamW([{"params": [p], "momentum": 0.9}]), "optionally, lr_scale, lr, .* betas, eps, not"),
        (lambda p: AdamW([{"params": [p], "betas": (0.9, 2)}]), "AdamW: beta2 must be at least 0 and below 1, not 2"),
        (lambda p: AdamW([{"params": [p], "lr": 1.0, "lr_scale": 1.0}]), "states both lr and lr_scale"),
        (lambda p: AdamW([{"params": [p], "lr": 1.0}], lr=0), "optimizer's lr is 0: give the group lr_scale"),
        (lambda p: AdamW([{"params": [p], "lr": -1.0}]), "lr of a group must be at least 0"),
        (lambda p: AdamW([p], l1=-1), "AdamW: l1 must be at least 0, not -1"),
        (lambda p: Adam([p], l2=math.nan), "Adam: l2 must be at least 0, not nan"),
        (lambda p: Lion([p], betas=0.9), "Lion: betas must be a pair"),
        (lambda p: SGD([{"params": [p], "nesterov": True}], lr=0.1), "nesterov=True needs a momentum"),
        (lambda p: SGD([{"params": [p], "momentum": 1}], lr=0.1), "SGD: momentum must be at least 0 and below 1"),
        (lambda p: AdamW([p]).step(grad_scale=math.nan), "grad_scale must be at least 0, not nan"),
        (lambda p: clip_grad_norm([p], 0), "max_norm must be above 0"),
        (lambda p: regularization.l1([p], -1), "strength must be at least 0"),
        (lambda p: regularization.l2([], 1), "no parameters"),
        (lambda p: schedules.Cosine(lr=1.0, min_lr=2.0, total_steps=9), "min_lr must be at most lr"),
        (lambda p: schedules.Cosine(lr=1.0, warmup_steps=-1), "warmup_steps must be at least 0"),
        (lambda p: schedules.Linear(lr=math.nan), "lr must be at least 0, not nan"),
        (lambda p: schedules.Linear(lr=1.0, total_steps=9)(-1), "step must be at least 0"),
        (lambda p: schedules.make("square", 1.0), "no schedule 'square'"),
        (lambda p: schedules.Cosine(1e-3), "Cosine: total_steps, the step at which min_lr is reached, is missing"),
        (lambda p: schedules.make("linear", 1.0), "Linear: total_steps"),
    ],
)  # fmt: skip
def test_bad_options_get_a_sentence(make, words):
    with pytest.raises(UsageError, match=words):
        make(tensor(np.ones(2), requires_grad=True))


def test_a_wrong_gradient_shape_gets_a_sentence():
    p = tensor(np.ones((2, 3)), requires_grad=True)
    p.grad = np.ones(7)
    with pytest.raises(UsageError, match=r"parameter '0': the \.grad of a tensor of shape \(2, 3\).*not \(7,\)"):
        AdamW([p]).step()


@pytest.mark.parametrize("make", [AdamW, lambda p: SGD(p, lr=0.1, momentum=0.9)])
def test_a_parameter_that_changed_its_shape_gets_a_sentence(make):
    """Its state has the old shape, and a compiled body would write beyond its end."""
    parameter = tensor(np.ones(4, np.float32), requires_grad=True)
    optimizer = make([parameter])
    parameter.data = np.ones(1000, np.float32)
    parameter.grad = np.ones(1000, np.float32)
    with pytest.raises(UsageError, match=r"'0' has shape \(1000,\) now.*make a new optimizer"):
        optimizer.step()
    assert np.array_equal(parameter.data, np.ones(1000))


def test_lr_can_be_set_and_is_checked():
    optimizer = AdamW([tensor(np.ones(2), requires_grad=True)])
    optimizer.lr = 0.5
    assert optimizer.lr == 0.5
    with pytest.raises(UsageError, match="lr must be"):
        optimizer.lr = math.nan


# Penalties ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("penalty", "formula"),
    [
        (regularization.l1, lambda a: 0.3 * np.abs(a).sum()),
        (regularization.l2, lambda a: 0.15 * (a**2).sum()),
    ],
)
def test_penalties_are_their_formulas_and_their_gradients(penalty, formula):
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(0.2, 2, shape) * rng.choice([-1, 1], shape) for shape in ((3, 4), (5,))]
    value = penalty([tensor(a) for a in arrays], 0.3)
    assert value.shape == ()
    np.testing.assert_allclose(value.item(), sum(formula(a) for a in arrays), rtol=1e-12)
    check_gradients(lambda *tensors: penalty(tensors, 0.3), *arrays)


def test_l1_has_gradient_zero_at_zero():
    p = tensor(np.array([0.0, 2.0, -2.0]), requires_grad=True)
    regularization.l1([p], 0.5).backward()
    np.testing.assert_array_equal(p.grad, [0, 0.5, -0.5])


def test_optim_exports():
    for name in ("EMA", "SGD", "Adam", "AdamW", "Lion", "Muon", "clip_grad_norm", "grad_norm", "schedules"):
        assert hasattr(optim, name)


# All parameters in one sweep -------------------------------------------------------------------------


def parameters_of_all_kinds():
    """Several sizes and types; one whose memory no compiled body can write in order, one empty."""
    rng = np.random.default_rng(4)
    arrays = [
        rng.standard_normal((3, 5)).astype(np.float32),
        rng.standard_normal(9000),
        np.asfortranarray(rng.standard_normal((4, 6)).astype(np.float32)),
        np.zeros((0, 3), np.float32),
        rng.standard_normal(1).astype(np.float32),
    ]
    made = [tensor(array, requires_grad=True) for array in arrays]
    for parameter in made:
        parameter.grad = rng.standard_normal(parameter.shape).astype(parameter.dtype)
    return made


@pytest.mark.parametrize("count", [5, 2, 1])
def test_a_sweep_over_all_parameters_is_the_step_of_each(count):
    together, alone = parameters_of_all_kinds()[:count], parameters_of_all_kinds()[:count]
    optimizer = AdamW(together, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.step(grad_scale=0.5)
    for parameter in alone:
        one = AdamW([parameter], lr=0.1, weight_decay=0.1)
        for _ in range(3):
            one.step(grad_scale=0.5)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-6)
    expected = np.sqrt(sum((p.grad.astype(np.float64) ** 2).sum() for p in together))
    assert grad_norm(together) == pytest.approx(expected, rel=1e-6)


def test_a_read_only_parameter_stops_a_sweep():
    parameters = parameters_of_all_kinds()[:2]
    optimizer = AdamW(parameters)
    parameters[1].data.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        optimizer.step()


def test_no_gradients_at_all():
    parameter = tensor(np.ones(3), requires_grad=True)
    assert grad_norm([parameter]) == 0.0
    AdamW([parameter]).step()
    assert parameter.data.tolist() == [1.0] * 3
