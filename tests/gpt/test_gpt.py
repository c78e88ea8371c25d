"""The model: its names, its loss, its gradients; that it is causal, deterministic, and learns."""

import json
import math

import numpy as np
import pytest

import tinygpt as tg
from tinygpt import GPT, GPTConfig, UsageError, ops
from tinygpt.optim import AdamW

SETTINGS = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 12}
rng = np.random.default_rng(0)
IDX = rng.integers(0, 11, (3, 7))
TARGETS = rng.integers(0, 11, (3, 7))
TARGETS[0, 2] = TARGETS[2, 6] = -100

BLOCK = [
    f"{part}.{kind}"
    for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    for kind in ("weight", "bias")
]


BY_HAND = {
    "gelu_new": lambda z: 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "gelu": lambda z: z * np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)))(z),
    "relu": lambda z: np.where(z > 0, z, 0),
    "silu": lambda z: z / (1 + np.exp(-z)),
}
VARIANTS = [
    *({"activation_function": name} for name in BY_HAND),
    {"n_inner": 7},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"tie_word_embeddings": False},
    {"n_inner": 30, "activation_function": "silu", "scale_attn_weights": False, "tie_word_embeddings": False,
     "scale_attn_by_inverse_layer_idx": True},
]  # fmt: skip


def make(seed=0, dtype=np.float64, **settings):
    return GPT(GPTConfig(**(SETTINGS | settings)), seed=seed, dtype=dtype)


def perturbed(**settings):
    """A model whose parameters are all far from special: biases not 0, scales not 1, weights large enough to matter."""
    model = make(**settings)
    generator = np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * generator.standard_normal(parameter.shape)
    return model


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def composed_logits(model, idx):
    """The same model as its page's drawing says it, in plain NumPy, one operation at a time."""
    w = {name: p.data for name, p in model.named_parameters()}
    config = model.config

    def norm(x, name):
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.layer_norm_epsilon)
        return y * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    def attention(x, i):
        name, (B, T, C) = f"h.{i}.attn", x.shape
        q, k, v = (
            a.reshape(B, T, config.n_head, -1).transpose(0, 2, 1, 3)
            for a in np.split(linear(x, f"{name}.c_attn"), 3, -1)
        )
        scores = q @ k.swapaxes(-1, -2)
        scores /= math.sqrt(C // config.n_head) if config.scale_attn_weights else 1
        scores /= i + 1 if config.scale_attn_by_inverse_layer_idx else 1
        scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = (weights / weights.sum(-1, keepdims=True)) @ v
        return linear(y.transpose(0, 2, 1, 3).reshape(B, T, C), f"{name}.c_proj")

    def mlp(x, name):
        z = linear(x, f"{name}.c_fc")
        return linear(BY_HAND[config.activation_function](z), f"{name}.c_proj")

    x = w["wte.weight"][idx] + w["wpe.weight"][: idx.shape[1]]
    for i in range(config.n_layer):
        x = x + attention(norm(x, f"h.{i}.ln_1"), i)
        x = x + mlp(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp")
    return norm(x, "ln_f") @ w["wte.weight" if config.tie_word_embeddings else "lm_head.weight"].T


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


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"activation_function": "tanh"}, "activation_function must be one of gelu_new, gelu, relu, silu, not 'tanh'"),
        ({"activation_function": None}, "activation_function must be one of .* not None"),
        ({"activation_function": ["relu"]}, "activation_function must be one of"),
        ({"n_inner": 0}, "n_inner must be at least 1, not 0"),
        ({"n_inner": 1.5}, "n_inner must be a whole number, not 1.5"),
        ({"scale_attn_weights": 1}, "scale_attn_weights must be True or False, not 1"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be True or False, not 'no'"),
    ],
)
def test_settings_without_sense(setting, words):
    with pytest.raises(UsageError, match=words):
        make(**setting)


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


# Dropout, determinism, learning ---------------------------------------------------------------------


def test_dropout_follows_the_generator_and_the_mode():
    model = perturbed(dropout=0.5)
    start = model.generator.state_dict()
    first, second = model.loss(IDX, TARGETS).item(), model.loss(IDX, TARGETS).item()
    assert first != second
    model.generator.load_state_dict(start)
    assert model.loss(IDX, TARGETS).item() == first
    model.eval()
    state = model.generator.state_dict()
    quiet = model.loss(IDX, TARGETS).item()
    assert model.generator.state_dict() == state  # nothing drawn
    assert quiet == perturbed(dropout=0.0).loss(IDX, TARGETS).item()


def test_every_dropout_draws_its_own_mask():
    model = perturbed(dropout=0.5)
    before = model.generator.stream
    model.loss(IDX, TARGETS)
    assert model.generator.stream - before == 1 + 3 * model.config.n_layer  # embedding; attention and two branches


def train(model, ids, steps, lr=1e-2):
    optimizer = AdamW(model.named_parameters(), lr=lr, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("bias", [True, False])
def test_it_learns_a_sequence_by_heart(bias):
    model = make(bias=bias, block_size=16, n_embd=32, dtype=np.float32)
    ids = np.random.default_rng(5).integers(0, 11, (1, 17))
    losses = train(model, ids, 150)
    assert losses[0] > 2
    assert losses[-1] < 0.02
    np.testing.assert_array_equal(model.generate(ids[:, :4], 12, temperature=0)[0], ids[0, :16])


def test_two_runs_are_the_same_to_the_last_bit():
    ids = np.random.default_rng(5).integers(0, 11, (4, 9))
    states = []
    for _ in range(2):
        model = make(dropout=0.2, dtype=np.float32)
        train(model, ids, 5)
        states.append(model.state_dict())
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name], err_msg=name)


def test_state_dict_carries_the_model():
    source, target = perturbed(), make(seed=9)
    target.load_state_dict(source.state_dict())
    np.testing.assert_array_equal(target(IDX).data, source(IDX).data)
    with pytest.raises(UsageError, match=r"unexpected 'h\.0\.ln_1\.bias'"):
        make(bias=False).load_state_dict(source.state_dict())
    with pytest.raises(UsageError, match=r"'wte.weight' has shape \(11, 12\), this model's has \(12, 12\)"):
        make(vocab_size=12).load_state_dict(source.state_dict())


def test_no_grad_makes_no_graph():
    model = make()
    with tg.no_grad():
        assert model.loss(IDX, TARGETS).is_leaf


# What it refuses ------------------------------------------------------------------------------------


def test_config_round_trip():
    config = GPTConfig(**SETTINGS, dropout=0.1, bias=False)
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    model = GPT.from_config(config.to_dict(), seed=3)
    assert model.config == config
    np.testing.assert_array_equal(model.wte.weight.data, GPT.from_config(config, seed=3).wte.weight.data)


def test_config_takes_numpy_numbers():
    config = GPTConfig(**(SETTINGS | {"n_layer": np.int64(2), "dropout": np.float32(0.5)}))
    assert type(config.n_layer) is int
    assert type(config.dropout) is float


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_layer": 0}, "n_layer must be at least 1, not 0"),
        ({"vocab_size": -5}, "vocab_size must be at least 1, not -5"),
        ({"block_size": 8.0}, "block_size must be a whole number, not 8.0"),
        ({"n_head": True}, "n_head must be a whole number, not True"),
        ({"n_embd": "12"}, "n_embd must be a whole number, not '12'"),
        ({"n_head": 5}, r"a multiple of n_head \(5\), not 12"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1"),
        ({"dropout": -0.1}, "dropout must be at least 0"),
        ({"dropout": math.nan}, "dropout must be at least 0 and below 1, not nan"),
        ({"bias": 1}, "bias must be True or False, not 1"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be above 0"),
    ],
)
def test_impossible_settings_get_a_sentence(settings, words):
    with pytest.raises(UsageError, match=words):
        GPTConfig(**(SETTINGS | settings))


def test_from_dict_names_what_is_unknown_or_missing():
    with pytest.raises(UsageError, match="no setting 'n_heads'"):
        GPTConfig.from_dict(SETTINGS | {"n_heads": 2})
    with pytest.raises(UsageError, match="lack n_embd"):
        GPTConfig.from_dict({k: v for k, v in SETTINGS.items() if k != "n_embd"})


@pytest.mark.parametrize(
    ("idx", "words"),
    [
        (np.zeros((2, 9), int), "9 tokens is longer than this model's block_size of 8"),
        (np.zeros(3, int), r"the shape \(batch, time\) with at least one token, not \(3,\)"),
        (np.zeros((2, 0), int), "at least one token"),
        ([[]], "at least one token"),
        (np.zeros((2, 3)), "idx must be integers, not float64"),
        (np.zeros((2, 3), bool), "not bool"),
        ([[0, 11]], r"ids must be in 0 .. 10 \(vocab_size is 11\), those in idx are in 0 .. 11"),
        ([[0, -1]], "those in idx are in -1 .. 0"),
        ([[0, 1], [2]], "idx must be integers, not rows that differ in length"),
    ],
)
def test_bad_ids_get_a_sentence(idx, words):
    model = make()
    with pytest.raises(UsageError, match=words):
        model(idx)
    with pytest.raises(UsageError, match=words):
        model.loss(idx, labels=[[0, 1]])


def test_bad_targets_and_types_get_a_sentence():
    model = make()
    with pytest.raises(UsageError, match=r"targets must have the shape of idx, \(3, 7\), not \(3, 6\)"):
        model.loss(IDX, TARGETS[:, 1:])
    with pytest.raises(UsageError, match="targets must be integers"):
        model.loss(IDX, TARGETS.astype(float))
    with pytest.raises(UsageError, match="targets"):
        model.loss(IDX, TARGETS + 5)
    with pytest.raises(UsageError, match="config must be a GPTConfig, not dict"):
        GPT(SETTINGS)
    with pytest.raises(UsageError, match="dtype must be float32 or float64"):
        make(dtype=np.float16)
    with pytest.raises(UsageError, match="a seed is an integer"):
        make(seed=-1)


def test_ids_may_be_lists_or_tensors_of_any_integer_type():
    model = make()
    logits = model(IDX).data
    for ids in (IDX.tolist(), tg.tensor(IDX), IDX.astype(np.uint16), IDX.astype(np.int32), IDX[::-1][::-1]):
        np.testing.assert_array_equal(model(ids).data, logits)
