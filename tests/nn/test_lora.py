"""LoRA: a new adapter changes no bit, only the updates are trained, and merged it computes the same."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.generation.helpers import make
from tinygpt import GPT, nn
from tinygpt.errors import UsageError
from tinygpt.generation import log_likelihood
from tinygpt.generation.decoder import Decoder
from tinygpt.generation.one_pass import one_pass
from tinygpt.nn.lora import LoRA, insert_lora, lora_layers, lora_of
from tinygpt.nn.packed import PackedLinear
from tinygpt.ops import packed_linear
from tinygpt.ops.packed import unpack

IDS = np.array([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]])
TARGETS = np.roll(IDS, 1, axis=1)
EVERY = ("c_attn", "c_proj", "c_fc")
each_targets = pytest.mark.parametrize("targets", [("c_attn",), ("mlp.c_proj", "h.1.attn.c_proj"), EVERY], ids=str)


def trained(model: GPT, seed: int = 3) -> GPT:
    """Updates as after some training."""
    random = np.random.default_rng(seed)
    for layer in lora_layers(model).values():
        for parameter in (layer.lora_A, layer.lora_B):
            parameter.data[...] = 0.3 * random.standard_normal(parameter.shape)
    return model


def adapted(dtype: Any = np.float64, targets: Any = EVERY, **settings: Any) -> GPT:
    model = make(dtype).eval()
    return trained(nn.add_lora(model, **{"rank": 3, "alpha": 5, **settings}, targets=targets))


# A new adapter --------------------------------------------------------------------------------------


@pytest.mark.slow
@each_targets
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_a_new_adapter_changes_no_bit(targets: Any, dtype: Any, bias: bool) -> None:
    def results(model: GPT) -> list[Any]:
        model.eval()
        found = [model(IDS).data, model.loss(IDS, TARGETS).data, log_likelihood(model, IDS[0]).log_probs]
        found += [model.generate(IDS[:, :2], 6, **how) for how in ({"seed": 1}, {"do_sample": False, "num_beams": 2})]
        decoder = Decoder(model)
        found += [decoder.prefill(list(IDS[:, :3])).copy(), decoder.step([4, 5]).copy()]
        model.train()
        model.generator.load_state_dict({"seed": 5, "stream": 100})
        return [*found, model.loss(IDS, TARGETS).data]  # with the base model's dropout

    model = make(dtype, bias=bias)
    before = results(model)
    for found, expected in zip(results(nn.add_lora(model, targets=targets)), before, strict=True):
        assert found.tobytes() == expected.tobytes()


def test_where_it_is_and_what_it_holds() -> None:
    model = nn.add_lora(make(), rank=3, targets=("attn.c_attn", "h.1.mlp.c_fc"))
    assert list(lora_layers(model)) == ["h.0.attn.c_attn", "h.1.attn.c_attn", "h.1.mlp.c_fc"]
    state = model.state_dict()
    assert state["h.0.attn.c_attn.lora_A"].shape == (3, 16)
    assert state["h.0.attn.c_attn.lora_B"].shape == (48, 3)
    assert state["h.1.mlp.c_fc.lora_B"].shape == (64, 3)
    assert state["h.0.attn.c_attn.base_layer.weight"].shape == (16, 48)
    A = state["h.0.attn.c_attn.lora_A"]
    assert 0.2 < np.abs(A).max() <= 1 / 4  # uniform in +- 1 / sqrt(16)
    assert abs(A.mean()) < 0.06
    assert not np.array_equal(A, state["h.1.attn.c_attn.lora_A"])
    again = nn.add_lora(make(), rank=3, targets=("attn.c_attn", "h.1.mlp.c_fc")).state_dict()
    other = nn.add_lora(make(), rank=3, targets=("attn.c_attn", "h.1.mlp.c_fc"), seed=1).state_dict()
    assert np.array_equal(A, again["h.0.attn.c_attn.lora_A"])
    assert not np.array_equal(A, other["h.0.attn.c_attn.lora_A"])


def test_all_linear_layers_and_a_single_name() -> None:
    assert len(lora_layers(nn.add_lora(make(), targets="all-linear"))) == 8
    assert len(lora_layers(nn.add_lora(make(), targets="c_proj"))) == 4


# What is computed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rslora", [False, True])
def test_the_formula(rslora: bool) -> None:
    random = np.random.default_rng(0)
    base = nn.Linear(5, 4, dtype=np.float64)
    layer = nn.LoRALinear(base, LoRA(rank=3, alpha=5, rslora=rslora), tg.Generator(0))
    layer.lora_B.data[...] = random.standard_normal((4, 3))
    x = random.standard_normal((2, 7, 5))
    scale = 5 / np.sqrt(3) if rslora else 5 / 3
    matrix = base.weight.data + scale * (layer.lora_B.data @ layer.lora_A.data).T
    np.testing.assert_allclose(layer(tg.tensor(x)).data, x @ matrix + base.bias.data, rtol=0, atol=1e-12)
    np.testing.assert_allclose(layer.product(tg.tensor(x)).data, x @ matrix, rtol=0, atol=1e-12)


def test_gradients() -> None:
    """Of x, A and B; those of x pass through the frozen weight, too."""
    random = np.random.default_rng(1)
    layer = nn.LoRALinear(nn.Linear(6, 4, dtype=np.float64), LoRA(rank=2, alpha=3), tg.Generator(0))
    for parameter in layer.base_layer.parameters():
        parameter.requires_grad = False

    def function(x: Any, A: Any, B: Any) -> Any:
        layer.lora_A, layer.lora_B = A, B
        return layer(x)

    tg.testing.check_gradients(function, *(random.standard_normal(shape) for shape in ((5, 6), (2, 6), (4, 2))))


def gradients(model: GPT) -> dict[str, np.ndarray | None]:
    model.zero_grad()
    model.loss(IDS, TARGETS).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_the_gradient_is_that_of_the_weights_that_it_stands_for() -> None:
    """dB = scale * dW^T A^T and dA = scale * B^T dW^T, with the dW of the merged model."""
    model = adapted()
    of_adapter = gradients(model)
    layers = lora_layers(model)
    of_weights = gradients(nn.merge_lora(model))
    assert len(layers) == 8
    for path, layer in layers.items():
        dW = of_weights[f"{path}.weight"]
        A, B, scale = layer.lora_A.data, layer.lora_B.data, layer.lora.scale
        np.testing.assert_allclose(of_adapter[f"{path}.lora_B"], scale * dW.T @ A.T, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(of_adapter[f"{path}.lora_A"], scale * B.T @ dW.T, rtol=1e-9, atol=1e-11)


def test_only_the_updates_have_a_gradient() -> None:
    for name, gradient in gradients(adapted(np.float32)).items():
        assert (gradient is not None) == ("lora_" in name), name


def test_no_product_is_computed_for_a_frozen_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each matrix product of a step is counted: y and dx of every weight, none of its dW; six for each update."""
    products: list[tuple[int, ...]] = []

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        def multiply(a: Any, b: Any, *more: Any, **options: Any) -> Any:
            products.append((a.shape[0], a.shape[1], b.shape[1]))
            return original(a, b, *more, **options)

        return multiply

    for name in ("linear", "linear_cross_entropy"):
        file = importlib.import_module(f"tinygpt.ops.{name}")
        monkeypatch.setattr(file, "matmul_arrays", counting(file.matmul_arrays))
    gradients(nn.add_lora(make(np.float32), rank=3))
    N, C, V, r = IDS.size, 16, 13, 3
    forward = 2 * [(N, C, 3 * C), (N, C, C), (N, C, 4 * C), (N, 4 * C, C), (N, C, r), (N, r, 3 * C)]
    head = [(N, C, V), (N, V, C)]
    through = 2 * [(N, 4 * C, C), (N, C, 4 * C), (N, C, C), (r, N, 3 * C), (N, 3 * C, r), (C, N, r)]
    into_the_first_block = [(N, 3 * C, C), (N, r, C)]  # of the second block only: nothing below the first is trained
    assert sorted(products) == sorted(forward + head + through + into_the_first_block)


# Merging --------------------------------------------------------------------------------------------


@each_targets
def test_merged_is_as_exact_as_unmerged(targets: Any) -> None:
    """Both in float32, beside the same model in float64."""
    exact, model = adapted(np.float64, targets), adapted(np.float32, targets)
    for parameter, source in zip(exact.parameters(), model.parameters(), strict=True):
        parameter.data[...] = source.data
    expected = exact(IDS).data
    unmerged = np.abs(model(IDS).data - expected).max()
    merged = np.abs(nn.merge_lora(model)(IDS).data - expected).max()
    assert unmerged > 0
    assert merged <= 2 * unmerged + 1e-7 * np.abs(expected).max()
    np.testing.assert_allclose(nn.merge_lora(exact)(IDS).data, expected, rtol=0, atol=1e-12)


def test_a_merged_weight_is_the_nearest_to_the_sum() -> None:
    model = adapted(np.float32)
    layers = lora_layers(model)
    nn.merge_lora(model)
    for path, layer in layers.items():
        A, B = (parameter.data.astype(np.float64) for parameter in (layer.lora_A, layer.lora_B))
        exact = layer.base_layer.weight.data + layer.lora.scale * (B @ A).T
        found = dict(model.named_parameters())[f"{path}.weight"].data
        assert found.dtype == np.float32
        assert (np.abs(found - exact) <= 0.5000001 * np.spacing(np.abs(found))).all()


def test_a_merged_model_is_a_plain_one() -> None:
    model, plain = nn.merge_lora(adapted()), make()
    assert [(n, p.shape) for n, p in model.named_parameters()] == [(n, p.shape) for n, p in plain.named_parameters()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert lora_of(model) is None
    new = nn.merge_lora(nn.add_lora(make(np.float32)))
    for parameter, original in zip(new.parameters(), make(np.float32).parameters(), strict=True):
        assert parameter.data.tobytes() == original.data.tobytes()  # B = 0


# Generation -----------------------------------------------------------------------------------------


@each_targets
def test_decoding_has_a_cache_and_one_pass(targets: Any) -> None:
    model = adapted(targets=targets)
    base = {path: layer.base_layer.weight.data.copy() for path, layer in lora_layers(model).items()}
    assert one_pass(model) is not None
    decoder = Decoder(model)
    decoder.prefill([IDS[0, :3], IDS[1, :2]])
    for step in range(3):
        logits = decoder.step([IDS[0, 3 + step], IDS[1, 2 + step]])
        for row, length in ((0, 4 + step), (1, 3 + step)):
            np.testing.assert_allclose(logits[row], model(IDS[row : row + 1, :length]).data[0, -1], rtol=0, atol=1e-10)
    for path, layer in lora_layers(model).items():
        assert np.array_equal(layer.base_layer.weight.data, base[path])
    merged = nn.merge_lora(adapted(targets=targets))
    assert np.array_equal(model.generate(IDS[:, :2], 8, seed=4), merged.generate(IDS[:, :2], 8, seed=4))


def test_an_update_that_changes_is_seen_by_the_next_text() -> None:
    model = nn.add_lora(make().eval())
    decoder = Decoder(model)
    decoder.prefill([IDS[0, :3]])
    trained(model)
    decoder.prefill([IDS[0, :3]])
    expected = model(IDS[:1, :4]).data[0, -1]
    np.testing.assert_allclose(decoder.step([IDS[0, 3]])[0], expected, rtol=0, atol=1e-10)


class Doubled(nn.Linear):
    def forward(self, x: Any) -> Any:
        return super().forward(x) * 2.0


def test_a_linear_layer_of_ones_own_is_adapted_and_called() -> None:
    model = make().eval()
    model.h[1].mlp.c_fc.__class__ = Doubled
    before = model(IDS).data
    nn.add_lora(model, targets=("c_fc",))
    assert np.array_equal(model(IDS).data, before)
    trained(model)
    assert one_pass(model) is None
    found = model.generate(IDS[:, :2], 3, do_sample=False, return_details=True)
    logits = model(found.sequences[:1, :-1]).data[0, -1]
    assert found.log_probs[0][-1] == pytest.approx(logits.max() - np.log(np.exp(logits).sum()), abs=1e-9)
    with pytest.raises(UsageError, match=r"^merge_lora: h\.1\.mlp\.c_fc is a Doubled, which may compute"):
        nn.merge_lora(model)
    assert len(lora_layers(model)) == 2


# Packed weights -------------------------------------------------------------------------------------


def unpacked_twin(model: GPT) -> GPT:
    """A model of the float32 weights that the packed ones stand for, with the same adapter."""
    twin = nn.add_lora(make(np.float32).eval(), rank=3, alpha=5, targets=EVERY)
    twin.wte.weight.data[...] = unpack(model.wte.matrix, axis=1)
    for path, layer in lora_layers(twin).items():
        layer.base_layer.weight.data[...] = unpack(lora_layers(model)[path].base_layer.matrix)
    return trained(twin)


@pytest.mark.parametrize("format", ["bfloat16", "int8"])
def test_an_adapter_on_packed_weights(format: str) -> None:
    model = make(np.float32).pack(format)
    before = model(IDS).data
    nn.add_lora(model, rank=3, alpha=5, targets=EVERY)
    assert model(IDS).data.tobytes() == before.tobytes()
    trained(model)
    twin = unpacked_twin(model)
    scale = np.abs(twin(IDS).data).max()
    np.testing.assert_allclose(model(IDS).data, twin(IDS).data, rtol=0, atol=1e-5 * scale)
    assert np.array_equal(model.generate(IDS[:, :2], 8, do_sample=False), twin.generate(IDS[:, :2], 8, do_sample=False))
    found, expected = gradients(model), gradients(twin)
    assert sum(gradient is not None for gradient in found.values()) == 16
    for name, gradient in found.items():
        if gradient is not None:
            bound = 1e-4 * np.abs(expected[name]).max()
            np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=bound, err_msg=name)
    model.train()
    assert model.h[0].attn.training


def test_packing_a_model_that_has_an_adapter() -> None:
    model = adapted(np.float32)
    expected = model(IDS).data
    model.pack("bfloat16")
    assert type(model.h[0].attn.c_attn.base_layer) is PackedLinear
    np.testing.assert_allclose(model(IDS).data, expected, rtol=0, atol=0.05 * np.abs(expected).max())
    with pytest.raises(UsageError, match=r"^a model packed into bfloat16 can't be trained"):
        model.train()
    with pytest.raises(UsageError, match=r"^merge_lora: h\.0\.attn\.c_attn is packed"):
        nn.merge_lora(model)


@pytest.mark.parametrize("kind", [packed_linear.PackedProduct, packed_linear.PackedProductTransposed])
@pytest.mark.parametrize("rows", [3, 40])
def test_the_gradient_through_a_packed_product(kind: Any, rows: int) -> None:
    """Few rows and many take different kernels. In float32: the products are exact sums of small whole numbers."""
    random = np.random.default_rng(0)
    W = random.integers(-8, 9, (16, 16)).astype(np.float32)
    matrix = tg.ops.packed.pack(W, "bfloat16")
    x = tg.tensor(random.integers(-8, 9, (2, rows, 16)).astype(np.float32), requires_grad=True)
    dy = random.integers(-8, 9, (2, rows, 16)).astype(np.float32)
    y = kind.apply(x, matrix=matrix)
    y.backward(dy)
    W = W if kind is packed_linear.PackedProduct else W.T
    assert np.array_equal(y.data, x.data @ W)
    assert np.array_equal(x.grad, dy @ W.T)


# Dropout --------------------------------------------------------------------------------------------


def test_dropout_is_on_the_input_of_the_update_and_only_in_training() -> None:
    base = nn.Linear(8, 4)
    layer = nn.LoRALinear(base, LoRA(rank=2, dropout=0.5), tg.Generator(0), tg.Generator(7))
    layer.lora_B.data[...] = 1
    x = tg.tensor(np.ones((3, 8), np.float32))
    dropped = tg.ops.dropout(x, 0.5, generator=tg.Generator(7)).data
    update = layer.lora.scale * dropped @ layer.lora_A.data.T @ layer.lora_B.data.T
    np.testing.assert_allclose(layer(x).data, base(x).data + update, rtol=0, atol=1e-5)
    full = layer.lora.scale * x.data @ layer.lora_A.data.T @ layer.lora_B.data.T
    np.testing.assert_allclose(layer.eval()(x).data, base(x).data + full, rtol=0, atol=1e-5)


# What is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rank": 0}, r"add_lora: rank must be .*at least 1, not 0"),
        ({"alpha": 0}, r"add_lora: alpha must be .*not 0"),
        ({"dropout": 1.0}, r"add_lora: dropout must be .*not 1"),
        ({"rslora": 1}, r"add_lora: rslora must be True or False, not 1"),
        ({"targets": ()}, r"add_lora: targets must be names of layers, such as \('c_attn',\), not \(\)"),
        ({"targets": [3]}, r"add_lora: targets must be names of layers"),
        (
            {"targets": ["c_attn", "q_proj"]},
            r"add_lora: there is no layer 'q_proj', but targets are linear layers of this model: c_attn, c_proj, c_fc$",
        ),
        ({"targets": ["attn"]}, r"add_lora: h\.0\.attn is a Attention, but targets are linear layers"),
        ({"targets": ["wte"]}, r"add_lora: wte is a Embedding, but targets are linear layers"),
        ({"targets": ["_attn"]}, r"add_lora: there is no layer '_attn'"),
        ({"targets": ["h.2.attn.c_attn"]}, r"add_lora: there is no layer 'h\.2\.attn\.c_attn'"),
    ],
)
def test_impossible_settings_are_one_sentence(settings: Any, sentence: str) -> None:
    model = make()
    with pytest.raises(UsageError, match=rf"^{sentence}"):
        nn.add_lora(model, **settings)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not lora_layers(model)


def test_two_adapters_and_none() -> None:
    model = nn.add_lora(make())
    with pytest.raises(UsageError, match=r"^add_lora: this model has an adapter already: merge it first"):
        nn.add_lora(model)
    with pytest.raises(UsageError, match=r"^merge_lora: this model has no adapter$"):
        nn.merge_lora(make())


def test_settings_as_a_dictionary() -> None:
    lora = LoRA(4, 8, 0.1, ("c_fc",), True)
    assert LoRA.from_dict(lora.to_dict()) == lora
    assert lora_of(insert_lora(make(), lora)) is lora
    with pytest.raises(UsageError, match=r"^add_lora: there is no setting 'r': the settings are rank, alpha"):
        LoRA.from_dict({"r": 4})
