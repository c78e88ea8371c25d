"""Adam, Lion and Muon over 100 steps beside their published updates, written out one parameter at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tinygpt import UsageError, optim, tensor
from tinygpt.optim import SGD, Adam, AdamW, Lion, Muon
from tinygpt.optim.muon import newton_schulz

STEPS = 100
BOTH = pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-10), (np.float32, 2e-4)])


def adam(p: Any, gradients: Any, lr: float, decay: float) -> Any:
    """Algorithm 1 of the paper; the decay is a part of the gradient."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        g = g + decay * p
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        p = p - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
    return p


def adamw(p: Any, gradients: Any, lr: float, decay: float) -> Any:
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        p = p - lr * decay * p - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
    return p


def lion(p: Any, gradients: Any, lr: float, decay: float) -> Any:
    """Algorithm 2 of the paper."""
    m = np.zeros_like(p)
    for g in gradients:
        update = np.sign(0.9 * m + (1 - 0.9) * g)
        m = 0.99 * m + (1 - 0.99) * g
        p = p - lr * (update + decay * p)
    return p


def zeropower_via_newtonschulz5(G: Any, steps: int = 5) -> Any:
    """Of Keller Jordan's post, with transposes as they are there; in the precision of G instead of bfloat16."""
    a, b, c = (3.4445, -4.7750, 2.0315)
    X = G.T if G.shape[0] > G.shape[1] else G
    X = X / (np.linalg.norm(X) + 1e-7)
    for _ in range(steps):
        A = X @ X.T
        B = b * A + c * A @ A
        X = a * X + B @ X
    return X.T if G.shape[0] > G.shape[1] else X


def muon(p: Any, gradients: Any, lr: float, decay: float, nesterov: bool = True) -> Any:
    """muon_update and the step of Keller Jordan's optimizer, whose weights are (out, in)."""
    p, momentum = p.T, np.zeros_like(p.T)
    for g in gradients:
        g = g.T
        momentum = momentum + (1 - 0.95) * (g - momentum)
        update = g + 0.95 * (momentum - g) if nesterov else momentum
        update = zeropower_via_newtonschulz5(update) * max(1, g.shape[0] / g.shape[1]) ** 0.5
        p = p * (1 - lr * decay) - lr * update
    return p.T


def trained(make: Any, shapes: Any, dtype: Any, seed: int = 0, **step: Any) -> Any:
    """Parameters before and after the steps, and their gradients."""
    rng = np.random.default_rng(seed)
    parameters = [tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True) for shape in shapes]
    gradients = [[rng.standard_normal(shape).astype(dtype) for shape in shapes] for _ in range(STEPS)]
    before = [p.data.copy() for p in parameters]
    optimizer = make(parameters)
    for row in gradients:
        for parameter, gradient in zip(parameters, row, strict=True):
            parameter.grad = gradient.copy()
        optimizer.step(**step)
    assert all(p.dtype == dtype for p in parameters)
    return before, [p.data for p in parameters], gradients


def compare(make: Any, by_formula: Any, shapes: Any, dtype: Any, rtol: float, scale: float = 1.0) -> None:
    before, after, gradients = trained(make, shapes, dtype, grad_scale=scale)
    for i, (start, end) in enumerate(zip(before, after, strict=True)):
        own = [scale * row[i].astype(np.float64) for row in gradients]
        wanted = by_formula(start.astype(np.float64), own)
        np.testing.assert_allclose(end, wanted, rtol=rtol, atol=rtol * abs(wanted).max())


@BOTH
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_adam_is_the_paper_s(dtype: Any, rtol: float, scale: float) -> None:
    def make(parameters: Any) -> Any:
        return Adam(parameters, lr=0.01, betas=(0.9, 0.95), weight_decay=0.3)

    compare(make, lambda p, g: adam(p, g, 0.01, 0.3), [(5, 4), (1, 1)], dtype, rtol, scale)
    compare(make, lambda p, g: adam(p, g, 0.01, 0.0), [(7,), ()], dtype, rtol, scale)  # matrices alone decay


def test_lion_is_the_paper_s() -> None:
    def make(parameters: Any) -> Any:
        return Lion(parameters, lr=0.01, weight_decay=0.3)

    compare(make, lambda p, g: lion(p, g, 0.01, 0.3), [(5, 4), (1, 1)], np.float64, 1e-10, 0.25)
    compare(make, lambda p, g: lion(p, g, 0.01, 0.0), [(7,), ()], np.float64, 1e-10, 0.25)


def test_lion_in_float32_moves_as_in_float64() -> None:
    """With gradients of a few bits, no sign depends on the rounding."""
    ends = []
    for dtype in (np.float32, np.float64):
        p = tensor(np.ones((3, 5), dtype), requires_grad=True)
        optimizer = Lion([p], lr=0.5, betas=(0.5, 0.75), weight_decay=0.25)
        for step in range(STEPS):
            p.grad = np.sign(np.sin(np.arange(15.0) * (step + 1))).reshape(3, 5).astype(dtype)
            optimizer.step()
        assert p.dtype == dtype
        ends.append(p.data)
    np.testing.assert_allclose(*ends, rtol=1e-5, atol=1e-6)


SHAPES = [
    (6, 9),
    (9, 6),
    (9, 6),
    (8, 8),
    (6, 9),
    (1, 5),
    (140, 150),
    (20, 90),
]  # several of one shape; larger than a tile


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_keller_jordans(dtype: Any, rtol: float, nesterov: bool) -> None:
    def make(parameters: Any) -> Any:
        return Muon([{"params": parameters, "use_muon": True}], lr=0.02, nesterov=nesterov, weight_decay=0.3)

    compare(make, lambda p, g: muon(p, g, 0.02, 0.3, nesterov), SHAPES, dtype, 10 * rtol, 0.5)


def named(**shapes: Any) -> list[tuple[str, Any]]:
    rng = np.random.default_rng(0)
    return [(name.replace("__", "."), tensor(rng.standard_normal(s), requires_grad=True)) for name, s in shapes.items()]


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    pairs = named(
        wte__weight=(6, 4), h__0__fc__weight=(4, 6), h__0__fc__bias=(6,), h__1__x=(2, 2, 2), head__weight=(4, 6)
    )
    optimizer = Muon(pairs, lr=0.02, adamw_lr=0.01, betas=(0.9, 0.95), weight_decay=0.3)
    assert {slot.name for slot in optimizer.slots if "momentum" in slot.state} == {"h.0.fc.weight"}
    before, gradients = [p.data.copy() for _, p in pairs], []
    for step in range(STEPS):
        rng = np.random.default_rng(step)
        gradients.append([rng.standard_normal(p.shape) for _, p in pairs])
        for (_, p), g in zip(pairs, gradients[-1], strict=True):
            p.grad = g
        optimizer.lr = 0.02  # as a schedule does
        optimizer.step()
    for i, (name, p) in enumerate(pairs):
        formula, lr = (muon, 0.02) if name == "h.0.fc.weight" else (adamw, 0.01)
        wanted = formula(before[i], [row[i] for row in gradients], lr, 0.0 if p.ndim == 1 else 0.3)
        np.testing.assert_allclose(p.data, wanted, rtol=1e-9)


def test_a_schedule_moves_both_rates_of_muon() -> None:
    pairs = named(wte=(3, 3), h__0__w=(3, 3))
    optimizer = Muon(pairs, lr=0.02, adamw_lr=0.01)
    optimizer.lr = 0.0
    before = [p.data.copy() for _, p in pairs]
    for _, p in pairs:
        p.grad = np.ones(p.shape)
    optimizer.step()
    assert all(np.array_equal(p.data, start) for (_, p), start in zip(pairs, before, strict=True))


def test_parts_of_a_matrix_are_made_orthogonal_one_by_one() -> None:
    whole, rng = tensor(np.zeros((4, 9)), requires_grad=True), np.random.default_rng(0)
    parts = [tensor(np.zeros((4, 3)), requires_grad=True) for _ in range(3)]
    whole.grad = rng.standard_normal((4, 9))
    for part, grad in zip(parts, np.split(whole.grad, 3, axis=1), strict=True):
        part.grad = grad.copy()
    named, by_hand = (tensor(np.zeros((4, 9)), requires_grad=True) for _ in range(2))
    named.grad, by_hand.grad = whole.grad.copy(), whole.grad.copy()
    Muon([("h.0.attn.c_attn.weight", named)]).step()
    Muon([{"params": [("h.0.attn.c_attn.weight", by_hand)], "parts": 1}]).step()
    Muon([{"params": [whole], "use_muon": True, "parts": 3}]).step()
    assert np.array_equal(named.data, whole.data)  # q, k and v by default
    assert not np.allclose(by_hand.data, whole.data)
    Muon([{"params": parts, "use_muon": True}]).step()
    np.testing.assert_allclose(whole.data, np.concatenate([p.data for p in parts], axis=1), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_wide_matrices_go_by_their_gram_matrices(dtype: Any) -> None:
    """Also where rank is missing, as in a first gradient. Measured here: 8e-5 and 1.5e-13."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 40, 3)) @ rng.standard_normal((4, 3, 160)) + 1e-6 * rng.standard_normal((4, 40, 160))
    made = newton_schulz(x.astype(dtype), 5)
    for one, matrix in zip(made, x, strict=True):
        wanted = zeropower_via_newtonschulz5(matrix)
        error = np.sqrt(np.square(one - wanted).mean() / np.square(wanted).mean())
        assert error < (2e-4 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_newton_schulz_comes_close_to_the_orthogonal_matrix(dtype: Any) -> None:
    x = np.random.default_rng(0).standard_normal((3, 12, 40)).astype(dtype)
    made = newton_schulz(x, 5)
    assert made.dtype == dtype
    U, S, V = np.linalg.svd(made.astype(np.float64), full_matrices=False)
    assert S.min() > 0.6
    assert S.max() < 1.3
    wanted = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(U @ V, wanted[0] @ wanted[2], atol=1e-4)  # the same directions
    assert not newton_schulz(np.zeros((1, 2, 3), dtype), 5).any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: Muon([p]), "the matrix 0, of shape (2, 3), has no name"),
        (lambda p: Muon([{"params": [("b", tensor(np.ones(3)))], "use_muon": True}]), "'b' must be a matrix, but"),
        (
            lambda p: Muon([{"params": [("w", p)], "use_muon": True, "parts": 2}]),
            "'w' must be a matrix of 2 equal parts",
        ),
        (lambda p: Muon([("w", p)], momentum=1), "Muon: momentum must be at least 0 and below 1"),
        (lambda p: Muon([("w", p)], steps=0), "Muon: steps must be at least 1"),
        (lambda p: Muon([("w", p)], adamw_lr=math.nan), "Muon: adamw_lr must be at least 0"),
        (lambda p: Muon([{"params": [("w", p)], "eps": 0}]), "Muon: eps must be above 0"),
    ],
)
def test_bad_options_of_muon_get_a_sentence(make: Any, words: str) -> None:
    with pytest.raises(UsageError) as error:
        make(tensor(np.ones((2, 3)), requires_grad=True))
    assert words in str(error.value)


# Penalties and groups ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SGD, AdamW, Adam, Lion, lambda p, **o: Muon([{"params": p, "use_muon": True}], **o)])
def test_l1_and_l2_are_terms_of_the_loss(kind: Any) -> None:
    """The same steps as with regularization.l1 and l2 in the loss, after the factor for clipping."""
    rng = np.random.default_rng(0)
    ours, theirs = (tensor(np.round(rng.standard_normal((3, 4)), 1), requires_grad=True) for _ in range(2))
    theirs.data[...] = ours.data
    ours.data[0, 0] = theirs.data[0, 0] = 0.0  # where the subgradient is 0
    first, second = kind([ours], lr=0.01, l1=0.3, l2=0.2), kind([theirs], lr=0.01)
    for _ in range(10):
        gradient = rng.standard_normal((3, 4))
        ours.grad = gradient.copy()
        first.step(grad_scale=0.5)
        (optim.regularization.l1([theirs], 0.3) + optim.regularization.l2([theirs], 0.2)).backward()
        theirs.grad += 0.5 * gradient
        second.step()
        second.zero_grad()
        np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-12)


def test_penalties_leave_vectors_and_gradients_alone() -> None:
    vector, matrix = (tensor(np.ones(shape), requires_grad=True) for shape in ((3,), (3, 3)))
    optimizer = SGD([vector, matrix], lr=0.1, l1=1.0, l2=1.0)
    vector.grad, matrix.grad = np.zeros(3), np.zeros((3, 3))
    optimizer.step()
    assert (vector.data == 1).all()
    np.testing.assert_allclose(matrix.data, 1 - 0.1 * 2)
    assert not matrix.grad.any()


def test_groups_have_settings_of_their_own() -> None:
    rng = np.random.default_rng(0)
    p, q = (tensor(rng.standard_normal((3, 3)), requires_grad=True) for _ in range(2))
    alone = [tensor(t.data.copy(), requires_grad=True) for t in (p, q)]
    groups = [{"params": [p], "betas": (0.5, 0.6), "eps": 0.1, "lr": 0.2}, {"params": [q], "l2": 0.5}]
    together = [AdamW(groups, lr=0.1, weight_decay=0.2)]
    apart = [
        AdamW([alone[0]], lr=0.2, betas=(0.5, 0.6), eps=0.1, weight_decay=0.2),
        AdamW([alone[1]], lr=0.1, l2=0.5, weight_decay=0.2),
    ]
    for step in range(5):
        for a, b in zip((p, q), alone, strict=True):
            a.grad = rng.standard_normal((3, 3))
            b.grad = a.grad.copy()
        for optimizer in (*together, *apart):
            optimizer.lr = (0.2 if optimizer is apart[0] else 0.1) / (step + 1)  # a group's lr keeps its ratio
            optimizer.step()
    for a, b in zip((p, q), alone, strict=True):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-12)
