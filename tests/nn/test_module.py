"""Module: names, modes, loading; and the layers."""

import numpy as np
import pytest

from tinygpt import GPT, GPTConfig, UsageError, nn, ops, tensor
from tinygpt.random import Generator


class Head(nn.Module):
    def __init__(self, generator=None):
        self.out = nn.Linear(3, 2, generator=generator)


class Model(nn.Module):
    """Every way of holding parts: a parameter, a module, a list, a tuple; and things that are not parts."""

    def __init__(self, generator=None):
        self.embed = nn.Embedding(5, 3, generator=generator)
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.heads = [Head(generator), Head(generator)]
        self.norms = (nn.LayerNorm(3), nn.LayerNorm(3, bias=False))
        self.tied = self.embed.weight
        self.size, self.notes, self.not_a_parameter = 3, ["text"], tensor(np.ones(2))


NAMES = [
    "embed.weight", "scale",
    "heads.0.out.weight", "heads.0.out.bias", "heads.1.out.weight", "heads.1.out.bias",
    "norms.0.weight", "norms.0.bias", "norms.1.weight",
]  # fmt: skip


def test_parameters_are_found_in_order_and_once():
    model = Model()
    assert [name for name, _ in model.named_parameters()] == NAMES
    assert len(model.parameters()) == len(NAMES)
    assert model.num_parameters() == 15 + 3 + 2 * (6 + 2) + 6 + 3
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


def test_a_model_without_parts():
    assert nn.Module().parameters() == []
    assert nn.Module().state_dict() == {}
    with pytest.raises(NotImplementedError, match="Module defines no forward"):
        nn.Module()(1)


def test_train_and_eval_reach_every_module():
    model = Model()
    modules = list(model.modules())
    assert len(modules) == 8
    assert all(m.training for m in modules)
    assert model.eval() is model
    assert not any(m.training for m in modules)
    model.train()
    assert all(m.training for m in modules)


def test_zero_grad():
    model = Model()
    model.scale.grad = np.ones(3, np.float32)
    model.zero_grad()
    assert model.scale.grad is None


def test_to_keeps_the_parameters_and_refuses_an_unknown_backend():
    model = Model()
    before = model.parameters()
    assert model.to("numpy") is model
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(UsageError, match="no backend 'abacus'"):
        model.to("abacus")


def test_initial_weights_follow_the_seed_alone():
    first, again, other = Model(Generator(1)), Model(Generator(1)), Model(Generator(2))
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)
        if name.endswith("weight") and "norm" not in name:
            assert (a.data != c.data).all()
    weight = nn.Linear(400, 300, generator=Generator(0)).weight.data
    assert weight.dtype == np.float32
    assert np.std(weight) == pytest.approx(1 / 20, rel=0.02)
    assert nn.Linear(4, 3, std=0.5, dtype=np.float64).weight.dtype == np.float64
    # each parameter has a stream of its own: equal shapes get different values
    assert (first.heads[0].out.weight.data != first.heads[1].out.weight.data).all()


def test_state_dict_round_trip_copies_in_place():
    source, target = Model(Generator(1)), Model(Generator(2))
    arrays = {name: p.data for name, p in target.named_parameters()}
    target.load_state_dict(source.state_dict())
    for name, p in target.named_parameters():
        assert p.data is arrays[name]
        np.testing.assert_array_equal(p.data, source.state_dict()[name])
    target.scale.data[...] = 7
    assert (source.scale.data == 1).all()


def test_load_state_dict_keeps_the_parameters_dtype():
    model = nn.Linear(2, 3)
    model.load_state_dict({"weight": np.full((2, 3), 0.1), "bias": tensor(np.ones(3, np.float64))})
    assert model.weight.dtype == np.float32
    assert model.weight.data[0, 0] == np.float32(0.1)
    assert (model.bias.data == 1).all()


def test_load_state_dict_names_what_does_not_fit_and_changes_nothing():
    model = Model(Generator(1))
    good = Model(Generator(2)).state_dict()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    without = {name: array for name, array in good.items() if name != "scale"}
    for bad, words in [
        (without, "missing 'scale'"),
        (good | {"extra": np.ones(1)}, "unexpected 'extra'"),
        (without | {"extra": np.ones(1)}, "missing 'scale'; unexpected 'extra'"),
        ({}, "missing 'embed.weight', .* and 4 more"),
        (good | {"norms.1.weight": np.ones(4)}, r"'norms.1.weight' has shape \(4,\), this model's has \(3,\)"),
        (good | {"norms.1.weight": np.arange(3)}, "floating-point numbers, not an array of int64"),
        (good | {"norms.1.weight": [1.0, 2.0, 3.0]}, "not list"),
    ]:
        with pytest.raises(UsageError, match=words):
            model.load_state_dict(bad)
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(array, before[name])


def test_load_state_dict_not_strict():
    model = Model(Generator(1))
    embed = model.embed.weight.data.copy()
    model.load_state_dict({"scale": np.zeros(3), "extra": np.ones(1)}, strict=False)
    assert (model.scale.data == 0).all()
    np.testing.assert_array_equal(model.embed.weight.data, embed)
    with pytest.raises(UsageError, match="has shape"):
        model.load_state_dict({"scale": np.zeros(4)}, strict=False)


def test_parameter_is_contiguous_and_floating():
    array = np.ones((4, 6)).T
    assert nn.Parameter(array).data.flags.c_contiguous
    assert nn.Parameter(np.ones(())).shape == ()
    for bad, words in [
        (np.arange(3), "not an array of int64"),
        ([1.0], "not list"),
        (np.ones(2, np.float16), "float16"),
    ]:
        with pytest.raises(UsageError, match=words):
            nn.Parameter(bad)


def test_layers_are_their_operations():
    rng = np.random.default_rng(0)
    x = tensor(rng.standard_normal((2, 4, 3)).astype(np.float32))
    linear, norm = nn.Linear(3, 5), nn.LayerNorm(3, eps=0.1)
    linear.bias.data[...] = rng.standard_normal(5)
    np.testing.assert_allclose(linear(x).data, x.data @ linear.weight.data + linear.bias.data, rtol=1e-5, atol=1e-6)
    bare = nn.Linear(3, 5, bias=False)
    assert bare.bias is None
    np.testing.assert_allclose(bare(x).data, x.data @ bare.weight.data, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(norm(x).data, ops.layer_norm(x, norm.weight, norm.bias, 0.1).data)
    root_mean_square = nn.RMSNorm(3, eps=0.1)
    root_mean_square.weight.data[...] = rng.standard_normal(3)
    expected = ops.rms_norm(x, root_mean_square.weight, 0.1)
    np.testing.assert_array_equal(root_mean_square(x).data, expected.data)
    assert [name for name, _ in root_mean_square.named_parameters()] == ["weight"]
    embedding = nn.Embedding(7, 3)
    ids = np.array([[0, 6], [6, 2]])
    np.testing.assert_array_equal(embedding(ids).data, embedding.weight.data[ids])


def test_dropout_acts_in_training_only():
    x = tensor(np.ones((50, 40), np.float32))
    layer = nn.Dropout(0.25, Generator(3))
    y, z = layer(x).data, layer(x).data
    assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    assert (y != z).any()  # each call draws anew
    assert 0.2 < (y == 0).mean() < 0.3
    np.testing.assert_array_equal(nn.Dropout(0.25, Generator(3))(x).data, y)
    np.testing.assert_array_equal(layer.eval()(x).data, x.data)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Linear(0, 3), "in_features must be at least 1, not 0"),
        (lambda: nn.Linear(2, 3.0), "out_features must be a whole number, not 3.0"),
        (lambda: nn.Linear(2, 3, std=-1), "std must be at least 0"),
        (lambda: nn.Embedding(True, 3), "count must be a whole number, not True"),
        (lambda: nn.LayerNorm(3, eps=0), "eps must be above 0"),
        (lambda: nn.RMSNorm(3, eps=0), "eps must be above 0"),
        (lambda: nn.RMSNorm(0), "features must be at least 1, not 0"),
        (lambda: nn.Dropout(1.0), "p must be at least 0 and below 1, not 1"),
        (lambda: nn.Linear(2, 3, dtype=np.float16), "float32 or float64"),
    ],
)
def test_bad_options_get_a_sentence(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_uninitialized_draws_nothing_and_leaves_the_generator_as_drawing_does():
    drawn, undrawn = Generator(3), Generator(3)
    undrawn.normal = None  # would fail if called
    with nn.uninitialized():
        layer = nn.Linear(4, 5, generator=undrawn)
        table = nn.Embedding(7, 3, generator=undrawn)
    nn.Linear(4, 5, generator=drawn), nn.Embedding(7, 3, generator=drawn)
    assert (layer.weight.shape, table.weight.shape) == ((4, 5), (7, 3))
    assert undrawn.state_dict() == drawn.state_dict()
    assert nn.Linear(4, 5, generator=drawn).weight.data.any()  # afterwards, weights are drawn again


def test_what_a_model_looks_like():
    model = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=3, n_head=2, n_embd=4, dropout=0.1, bias=False))
    assert repr(model) == (
        "GPT: 680 parameters\n"
        "  wte: Embedding(weight (11, 4))\n"
        "  wpe: Embedding(weight (8, 4))\n"
        "  h.0 ... h.2: Block\n"
        "    ln_1: LayerNorm(eps=1e-05, weight (4,))\n"
        "    attn: Attention(n_head=2, dropout=0.1)\n"
        "      c_attn: Linear(weight (4, 12))\n"
        "      c_proj: Linear(weight (4, 4))\n"
        "    ln_2: LayerNorm(eps=1e-05, weight (4,))\n"
        "    mlp: MLP(inner=16, activation='gelu_new')\n"
        "      c_fc: Linear(weight (4, 16))\n"
        "      c_proj: Linear(weight (16, 4))\n"
        "    dropout: Dropout(p=0.1)\n"
        "  ln_f: LayerNorm(eps=1e-05, weight (4,))\n"
        "  dropout: Dropout(p=0.1)"
    )
    model.h[1].mlp.c_fc.weight.requires_grad = False
    assert "  h.0: Block\n" in repr(model)
    assert "  h.1: Block\n" in repr(model)
    assert "Linear(weight (4, 16) frozen)" in repr(model)
    assert repr(nn.Linear(2, 3)) == "Linear(weight (2, 3), bias (3,))"
    model.pack("int8")
    assert "PackedLinear(64 packed weights)" in repr(model)


def test_equal_parts_with_names_of_their_own_are_all_shown():
    class Two(nn.Module):
        def __init__(self):
            self.first, self.second = nn.Dropout(0.5), nn.Dropout(0.5)
            self.many, self.more = [nn.Dropout(0.5)], [nn.Dropout(0.5)]

    dropout = "Dropout(p=0.5)"
    expected = ["Two: 0 parameters", *(f"  {name}: {dropout}" for name in ("first", "second", "many.0", "more.0"))]
    assert repr(Two()) == "\n".join(expected)
