"""The model: its names, its loss, its gradients; that it is causal."""

import math

import numpy as np
import pytest

import tinygpt as tg
from tests.gpt.helpers import IDX, TARGETS, VARIANTS, composed_logits, gradients, make, perturbed
from tinygpt import GPTConfig, UsageError, ops

BLOCK = [
    f"{part}.{kind}"
    for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    for kind in ("weight", "bias")
]


# What it is made of -------------------------------------------------------------------------------


def test_parameters_are_gpt2s():
    model = make()
    names = [name for name, _ in model.named_parameters()]
    assert names == [
        "wte.weight",
        "wpe.weight",
        *(f"h.{i}.{n}" for i in (0, 1) for n in BLOCK),
        "ln_f.weight",
        "ln_f.bias",
    ]
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert shapes["wte.weight"] == (11, 12)
    assert shapes["wpe.weight"] == (8, 12)
    assert shapes["h.0.attn.c_attn.weight"] == (12, 36)
    assert shapes["h.1.attn.c_proj.weight"] == (12, 12)
    assert shapes["h.0.mlp.c_fc.weight"] == (12, 48)
    assert shapes["h.0.mlp.c_proj.weight"] == (48, 12)
    without = [name for name, _ in make(bias=False).named_parameters()]
    assert without == [name for name in names if not name.endswith("bias")]


def test_initial_weights():
    model = make(n_embd=96, n_layer=3, dtype=np.float32)
    w = model.state_dict()
    residual = 0.02 / math.sqrt(6)
    for name, array in w.items():
        assert array.dtype == np.float32
        if name.endswith("bias"):
            assert not array.any()
        elif ".ln_" in name or name.startswith("ln_f"):
            assert (array == 1).all()
        else:
            std = residual if name.endswith("c_proj.weight") else 0.02
            assert array.std() == pytest.approx(std, rel=0.06)
            assert abs(array.mean()) < 4 * std / math.sqrt(array.size)
    same, other = make(n_embd=96, n_layer=3, dtype=np.float32), make(seed=1, n_embd=96, n_layer=3, dtype=np.float32)
    np.testing.assert_array_equal(same.h[2].mlp.c_fc.weight.data, model.h[2].mlp.c_fc.weight.data)
    assert (other.h[2].mlp.c_fc.weight.data != model.h[2].mlp.c_fc.weight.data).all()
    assert (model.h[0].mlp.c_fc.weight.data != model.h[1].mlp.c_fc.weight.data).all()


def test_first_loss_is_that_of_a_guess():
    model = make(vocab_size=65, block_size=32, n_embd=64, dtype=np.float32)
    ids = np.random.default_rng(0).integers(0, 65, (8, 33))
    assert model.loss(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(math.log(65), abs=0.05)


def test_flops_are_the_formula():
    model = make()
    N = model.num_parameters() - 8 * 12
    assert model.flops_per_token() == 6 * N + 12 * 2 * 12 * 8
    assert model.flops_per_token(4) == 6 * N + 12 * 2 * 12 * 4


def test_flops_count_what_is_multiplied_with():
    """A head of its own is multiplied with and the embedding beside it looked up: as many operations as before."""
    tied, untied, narrow = make(), make(tie_word_embeddings=False), make(n_inner=7)
    assert untied.num_parameters() == tied.num_parameters() + 11 * 12
    assert untied.flops_per_token() == tied.flops_per_token()
    assert tied.flops_per_token() - narrow.flops_per_token() == 6 * 2 * (2 * 12 + 1) * (48 - 7)


def test_a_head_of_its_own():
    model = make(tie_word_embeddings=False)
    assert [name for name, _ in model.named_parameters()][-1] == "lm_head.weight"
    assert model.lm_head.weight.data.std() == pytest.approx(0.02, rel=0.2)
    found = gradients(model, model.loss(IDX, TARGETS))
    unused = sorted(set(range(11)) - set(IDX.reshape(-1)))
    assert not found["wte.weight"][unused].any()  # the embedding's gradient is that of its own use alone
    assert np.abs(found["lm_head.weight"]).min() > 0


def test_settings_of_before_are_the_same_model():
    """Of runs and files that know nothing of the newer fields."""
    old = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd", "dropout", "bias", "layer_norm_epsilon"}
    config = make(bias=False).config
    assert GPTConfig.from_dict({name: value for name, value in config.to_dict().items() if name in old}) == config


# What it computes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_logits_are_the_drawing_of_the_page(variant, bias):
    model = perturbed(bias=bias, **variant)
    logits = model(IDX)
    assert logits.shape == (3, 7, 11)
    np.testing.assert_allclose(logits.data, composed_logits(model, IDX), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(model.next_logits(IDX).data, logits.data[:, -1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
def test_loss_is_the_cross_entropy_of_the_logits(bias):
    model = perturbed(bias=bias)
    fused = gradients(model, model.loss(IDX, TARGETS))
    plain = gradients(model, ops.cross_entropy(model(IDX), TARGETS))
    assert model.loss(IDX, TARGETS).item() == pytest.approx(ops.cross_entropy(model(IDX), TARGETS).item(), rel=1e-12)
    assert set(fused) == {name for name, _ in model.named_parameters()}
    for name, gradient in fused.items():
        np.testing.assert_allclose(gradient, plain[name], rtol=1e-8, atol=1e-11, err_msg=name)


@pytest.mark.parametrize(
    "settings",
    [{"bias": bias, "dropout": dropout} for bias in (True, False) for dropout in (0.0, 0.3)] + VARIANTS[1:],
    ids=str,
)
def test_gradient_of_the_whole_model(settings):
    """Differences of the loss along random directions in the space of all parameters, four-point stencil."""
    model = perturbed(**settings)
    state = model.generator.state_dict()

    def loss():
        model.generator.load_state_dict(state)  # the same masks each time
        return model.loss(IDX, TARGETS)

    gradient = gradients(model, loss())
    directions = np.random.default_rng(2)
    for name, parameter in model.named_parameters():
        direction = directions.standard_normal(parameter.shape)
        start, difference, h = parameter.data.copy(), 0.0, 1e-5
        for steps, factor in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            parameter.data[...] = start + steps * h * direction
            difference += factor * loss().item()
        parameter.data[...] = start
        expected = difference / (12 * h)
        assert np.vdot(gradient[name], direction) == pytest.approx(expected, rel=1e-6, abs=1e-8), name


def test_the_tied_matrix_gets_the_gradients_of_both_uses():
    model = perturbed()
    total = gradients(model, model.loss(IDX, TARGETS))["wte.weight"]
    h = model.hidden(IDX)
    cut = tg.tensor(h.data, requires_grad=True)  # the head alone
    weight = tg.tensor(model.wte.weight.data, requires_grad=True)
    ops.linear_cross_entropy(cut, weight, TARGETS).backward()
    model.zero_grad()
    h.backward(cut.grad)  # the embedding alone
    np.testing.assert_allclose(total, weight.grad + model.wte.weight.grad, rtol=1e-10, atol=1e-13)
    assert np.abs(weight.grad).max() > 1e-3
    assert np.abs(model.wte.weight.grad).max() > 1e-3


def test_a_later_token_leaves_earlier_logits_alone():
    model = perturbed()
    before = model(IDX).data
    for t in range(1, 7):
        changed = IDX.copy()
        changed[:, t] = (changed[:, t] + 1) % 11
        after = model(changed).data
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t] != before[:, t]).any()


def test_ignored_targets_count_nothing():
    model = perturbed()
    targets = TARGETS.copy()
    targets[:, 3:] = -100
    np.testing.assert_allclose(
        model.loss(IDX, targets).item(), model.loss(IDX[:, :3], targets[:, :3]).item(), rtol=1e-12
    )
    with pytest.raises(UsageError):
        model.loss(IDX, np.full_like(TARGETS, -100))
