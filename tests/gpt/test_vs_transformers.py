"""Models against transformers' GPT-2 on PyTorch: files both ways, logits, gradients, training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygpt as tg
from tests.compat import (
    GPT2Config,
    GPT2LMHeadModel,
    generate_theirs,
    load_ours,
    load_theirs,
    make_ours,
    make_theirs,
    their_parameters,
    torch,
    transformers,
)
from tinygpt import GPT, UsageError

# Odd in every respect: one of everything, odd vocabularies and heads, a block of 1, a head of 1 or 64 numbers.
SHAPES: list[dict[str, Any]] = [
    {"vocab_size": 1, "n_positions": 1, "n_embd": 1, "n_layer": 1, "n_head": 1},
    {"vocab_size": 7, "n_positions": 1, "n_embd": 5, "n_layer": 1, "n_head": 1},
    {"vocab_size": 101, "n_positions": 33, "n_embd": 15, "n_layer": 2, "n_head": 3},
    {"vocab_size": 257, "n_positions": 17, "n_embd": 35, "n_layer": 3, "n_head": 5},
    {"vocab_size": 53, "n_positions": 20, "n_embd": 64, "n_layer": 1, "n_head": 1},
    {"vocab_size": 1003, "n_positions": 5, "n_embd": 25, "n_layer": 1, "n_head": 25},
    {"vocab_size": 65, "n_positions": 70, "n_embd": 40, "n_layer": 4, "n_head": 8},
]
# What else config.json may say of a model that is ours.
VARIANTS: list[dict[str, Any]] = [
    {"layer_norm_epsilon": 1e-3},
    *(
        {"activation_function": name}
        for name in (
            "gelu_pytorch_tanh",
            "gelu_fast",
            "gelu_accurate",
            "gelu",
            "gelu_python",
            "relu",
            "silu",
            "swish",
        )
    ),
    {"n_inner": 80},
    {"n_inner": 30},
    {"n_inner": 1, "activation_function": "silu"},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    {"reorder_and_upcast_attn": True},
    # Stanford's "mistral" models, which were the reason for both settings.
    {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    {"tie_word_embeddings": False},
    {"tie_word_embeddings": False, "activation_function": "relu", "n_inner": 33, "scale_attn_weights": False},
    {"use_cache": False, "summary_type": "mean"},
    {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
]


def ids_for(config: Any, seed: int, batch: int = 3) -> np.ndarray:
    """(B, T) ids of a whole block, first and last id among them."""
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (batch, config.block_size))
    ids[0, 0], ids[-1, -1] = 0, config.vocab_size - 1
    return ids


def their_logits(theirs: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return theirs(torch.tensor(ids)).logits.numpy()


def assert_same_logits(ours: GPT, theirs: Any, tolerance: float = 1e-4) -> None:
    ids = ids_for(ours.config, seed=1)
    for T in {1, (ids.shape[1] + 1) // 2, ids.shape[1]}:
        with tg.no_grad():
            found = ours(ids[:, :T]).numpy()
        np.testing.assert_allclose(found, their_logits(theirs, ids[:, :T]), rtol=0, atol=tolerance)


@pytest.mark.parametrize("settings", SHAPES + VARIANTS, ids=str)
def test_logits_of_their_files(settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = make_theirs(**settings)
    assert_same_logits(load_ours(theirs, tmp_path), theirs)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_variants_both_ways(settings: dict[str, Any], tmp_path: Path) -> None:
    """Loss, all gradients, greedy texts past the half of the block, and the file that we write of it, read by them."""
    theirs = make_theirs(**settings, attn_implementation="eager")  # the only one that has reorder_and_upcast_attn
    ours = load_ours(theirs, tmp_path / "theirs")
    ids = ids_for(ours.config, seed=2)
    expected = theirs(torch.tensor(ids), labels=torch.tensor(ids)).loss
    loss = ours.loss(ids, labels=ids)
    assert loss.item() == pytest.approx(expected.item(), abs=5e-6)
    expected.backward()
    loss.backward()
    wanted = {name: parameter.grad.numpy() for name, parameter in their_parameters(theirs).items()}
    for name, parameter in ours.named_parameters():
        np.testing.assert_allclose(parameter.grad, wanted.pop(name), rtol=0, atol=3e-5, err_msg=name)
    assert not wanted
    assert ours.num_parameters() == sum(parameter.numel() for parameter in theirs.parameters())
    prompts, mask = ids[:, :5], np.ones_like(ids[:, :5])
    texts = generate_theirs(theirs, prompts, mask, max_new_tokens=12, pad_token_id=0).numpy()
    assert np.array_equal(ours.generate(prompts, 12, do_sample=False), texts)
    ours.save_pretrained(tmp_path / "ours")
    again = load_theirs(tmp_path / "ours")
    assert_same_logits(ours, again)
    assert_same_logits(GPT.from_pretrained(tmp_path / "ours"), theirs)


@pytest.mark.parametrize("how", [{"dtype": "bfloat16"}, {"quantize": "int8"}], ids=str)
def test_variants_packed(how: dict[str, str], tmp_path: Path) -> None:
    """Far from theirs by the rounding of the weights, and as far as the same model packed after it was loaded."""
    theirs = make_theirs(scale=0.1, tie_word_embeddings=False, activation_function="gelu", n_inner=33)
    plain, packed = load_ours(theirs, tmp_path), GPT.from_pretrained(tmp_path, dropout=0.0, **how)
    ids = ids_for(plain.config, seed=2)
    found = packed(ids).numpy()
    assert np.abs(found - their_logits(theirs, ids)).max() < 0.05
    format = how.get("quantize", how.get("dtype", ""))
    assert packed.num_parameters() == plain.num_parameters()
    assert np.array_equal(plain.pack(format)(ids).numpy(), found)


@pytest.mark.parametrize("ties", [True, False])
def test_a_head_of_its_own_is_what_the_file_says(ties: bool, tmp_path: Path) -> None:
    """Where the configuration ties a head that the file has otherwise, transformers 5 warns and keeps it: so do we."""
    theirs = make_theirs(tie_word_embeddings=False)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": ties}))
    if ties:
        with pytest.warns(UserWarning, match=r"lm_head\.weight that differs from the token embedding"):
            ours = GPT.from_pretrained(tmp_path)
    else:
        ours = GPT.from_pretrained(tmp_path)
    assert not ours.config.tie_word_embeddings
    assert_same_logits(ours, load_theirs(tmp_path))
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("ignored", [0.0, 0.4])
def test_the_loss_of_labels(ignored: float, tmp_path: Path) -> None:
    """Shifted inside, -100 left out of the mean: a text's ids are their own labels."""
    theirs = make_theirs()
    ours = load_ours(theirs, tmp_path)
    ids = ids_for(ours.config, seed=2)
    labels = np.where(np.random.default_rng(3).random(ids.shape) < ignored, -100, ids)
    expected = theirs(torch.tensor(ids), labels=torch.tensor(labels)).loss
    loss = ours.loss(ids, labels=labels)
    assert loss.item() == pytest.approx(expected.item(), abs=2e-6)
    expected.backward()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in their_parameters(theirs).items()}
    for name, parameter in ours.named_parameters():
        np.testing.assert_allclose(parameter.grad, gradients[name].numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_logits_of_our_files(settings: dict[str, Any], bias: bool, tmp_path: Path) -> None:
    sizes = {("block_size" if name == "n_positions" else name): size for name, size in settings.items()}
    ours = make_ours(bias=bias, layer_norm_epsilon=1e-4, **sizes)
    ours.save_pretrained(tmp_path)
    assert_same_logits(ours, load_theirs(tmp_path))


@settings(max_examples=20)
@given(st.data())
def test_random_shapes_in_both_directions(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    heads = data.draw(st.integers(1, 6), label="heads")
    theirs = make_theirs(
        seed=data.draw(st.integers(0, 99), label="seed"), n_head=heads,
        n_embd=heads * data.draw(st.integers(1, 13), label="head size"),
        n_layer=data.draw(st.integers(1, 3), label="layers"), n_positions=data.draw(st.integers(1, 40), label="block"),
        vocab_size=data.draw(st.integers(1, 300), label="vocabulary"),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    ours = load_ours(theirs, folder / "theirs")
    assert_same_logits(ours, theirs)
    ours.save_pretrained(folder / "ours")
    again = their_parameters(load_theirs(folder / "ours"))
    for name, parameter in their_parameters(theirs).items():
        assert torch.equal(again.pop(name), parameter), name
    assert not again


def test_the_tied_matrix_under_the_heads_name_alone(tmp_path: Path) -> None:
    """`save_model` of safetensors keeps one of the two names; transformers reads that, and so do we."""
    from safetensors.torch import save_model

    theirs = make_theirs()
    theirs.save_pretrained(tmp_path)
    save_model(theirs, str(tmp_path / "model.safetensors"), {"format": "pt"})
    assert_same_logits(GPT.from_pretrained(tmp_path), theirs)
    assert_same_logits(GPT.from_pretrained(tmp_path), load_theirs(tmp_path))


def test_other_names_of_sizes(tmp_path: Path) -> None:
    names = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 24}
    theirs = make_theirs()
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("n_embd", "n_layer", "n_head", "n_positions"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config | names))
    assert_same_logits(GPT.from_pretrained(tmp_path), load_theirs(tmp_path))


def test_an_untied_head_that_is_the_same(tmp_path: Path) -> None:
    """Two parameters all the same: they are trained apart from now on."""
    theirs = make_theirs(tie_word_embeddings=False)
    with torch.no_grad():
        theirs.lm_head.weight.copy_(theirs.transformer.wte.weight)
    ours = load_ours(theirs, tmp_path)
    assert_same_logits(ours, theirs)
    assert ours.lm_head is not ours.wte


# Files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_every_dtype_is_the_same_number_on_both_sides(name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    theirs = make_theirs().to(dtype)
    ours = load_ours(theirs, tmp_path / "theirs", dtype="float64")
    wanted = {key: value.detach().double().numpy() for key, value in their_parameters(theirs).items()}
    for key, array in ours.state_dict().items():
        np.testing.assert_array_equal(array, wanted.pop(key), err_msg=key)
    assert not wanted
    # Out again, from float32 for the smaller ones, which are then rounded: as PyTorch rounds.
    full = make_ours(dtype="float64" if name == "float64" else "float32")
    full.save_pretrained(tmp_path / "ours", dtype=name)
    found = their_parameters(load_theirs(tmp_path / "ours", dtype="auto"))
    for key, array in full.state_dict().items():
        assert found[key].dtype == dtype, key
        assert torch.equal(found[key], torch.tensor(array).to(dtype)), key


def test_shards_in_both_directions(tmp_path: Path) -> None:
    theirs = make_theirs()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2
    ours = GPT.from_pretrained(tmp_path / "theirs")
    assert_same_logits(ours, theirs)
    ours.save_pretrained(tmp_path / "ours", max_shard_size="10KB")
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    again = their_parameters(load_theirs(tmp_path / "ours"))
    assert all(torch.equal(again[name], value) for name, value in their_parameters(theirs).items())


def test_files_of_the_model_without_its_head(tmp_path: Path) -> None:
    theirs = make_theirs()
    theirs.transformer.save_pretrained(tmp_path)
    assert_same_logits(GPT.from_pretrained(tmp_path), theirs)


def test_other_classes_of_theirs_read_our_files(tmp_path: Path) -> None:
    ours = make_ours()
    ours.save_pretrained(tmp_path)
    assert isinstance(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), GPT2LMHeadModel)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.n_positions, config.n_inner, config.tie_word_embeddings) == (24, None, True)
    body = transformers.AutoModel.from_pretrained(tmp_path).eval()
    ids = ids_for(ours.config, 0)
    with torch.no_grad():
        hidden = body(torch.tensor(ids)).last_hidden_state.numpy()
    with tg.no_grad():
        np.testing.assert_allclose(ours.hidden(ids).numpy(), hidden, rtol=0, atol=1e-4)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"activation_function": "quick_gelu"}, "activation_function is 'quick_gelu'"),
    ({"activation_function": "gelu_10"}, "activation_function is 'gelu_10'"),
    ({"activation_function": "tanh"}, "activation_function is 'tanh'"),
    ({"add_cross_attention": True}, "add_cross_attention"),
]


@pytest.mark.parametrize(("settings", "name"), REFUSED, ids=str)
def test_what_is_no_model_of_ours_is_refused_by_name(settings: dict[str, Any], name: str, tmp_path: Path) -> None:
    make_theirs(**settings).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=name):
        GPT.from_pretrained(tmp_path)


def test_on_purpose_one_dropout_for_their_three(tmp_path: Path) -> None:
    make_theirs(resid_pdrop=0.1, embd_pdrop=0.2, attn_pdrop=0.3).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="dropout"):
        ours = GPT.from_pretrained(tmp_path)
    assert ours.config.dropout == 0.1
    ours.save_pretrained(tmp_path)
    config = GPT2Config.from_pretrained(tmp_path)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.1)


def test_on_purpose_biases_of_zero_are_written_and_taken_away_again(tmp_path: Path) -> None:
    """GPT-2 has biases always. Ours without them comes back without; trained by them it comes back with them."""
    make_ours(bias=False).save_pretrained(tmp_path)
    theirs = load_theirs(tmp_path)
    assert not any(p.any() for name, p in theirs.named_parameters() if name.endswith(".bias"))
    theirs.save_pretrained(tmp_path / "untouched")
    assert not GPT.from_pretrained(tmp_path / "untouched").config.bias
    with torch.no_grad():
        theirs.transformer.h[1].mlp.c_fc.bias[3] = 1.0
    theirs.save_pretrained(tmp_path / "trained")
    ours = GPT.from_pretrained(tmp_path / "trained")
    assert ours.config.bias
    assert_same_logits(ours, theirs)


# Gradients --------------------------------------------------------------------------------------------


def their_loss(theirs: Any, ids: np.ndarray, targets: np.ndarray) -> Any:
    logits = theirs(torch.tensor(ids)).logits
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), torch.tensor(targets).reshape(-1))


@pytest.mark.parametrize(("name", "tolerance"), [("float32", 1e-4), ("float64", 1e-12)])
@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_gradients_of_all_parameters(settings: dict[str, Any], name: str, tolerance: float, tmp_path: Path) -> None:
    theirs = make_theirs(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **settings).to(getattr(torch, name))
    ours = load_ours(theirs, tmp_path, dtype=name).train()
    theirs.train()
    ids, targets = ids_for(ours.config, 2), ids_for(ours.config, 3)
    targets.flat[1::3] = -100
    loss = ours.loss(ids, targets)
    loss.backward()
    wanted = their_loss(theirs, ids, targets)
    wanted.backward()
    assert loss.item() == pytest.approx(float(wanted.detach()), abs=tolerance)
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for key, parameter in their_parameters(theirs).items():
        np.testing.assert_allclose(gradients.pop(key), parameter.grad.numpy(), rtol=0, atol=tolerance, err_msg=key)
    assert not gradients


# Training ---------------------------------------------------------------------------------------------


def test_fifty_steps_of_training_stay_beside_pytorchs(tmp_path: Path) -> None:
    """AdamW, decay for matrices alone, clipping at 1, a falling learning rate: the same weights, the same batches."""
    rng, V, T = np.random.default_rng(0), 67, 32
    text = np.cumsum(rng.integers(0, 3, 4000)) % V  # there is something to learn: the next token is one of three
    theirs = make_theirs(
        scale=0.05, vocab_size=V, n_positions=T, n_embd=48, n_head=3, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ).train()
    ours = load_ours(theirs, tmp_path).train()
    settings: dict[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-8}
    optimizer = tg.optim.AdamW(ours.named_parameters(), weight_decay=0.1, **settings)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    their_optimizer = torch.optim.AdamW(groups, **settings)
    losses = []
    for step in range(50):
        starts = rng.integers(0, len(text) - T, 8)
        ids, targets = (text[starts[:, None] + np.arange(T) + shift] for shift in (0, 1))
        optimizer.lr = 3e-3 * (1 - step / 60)
        for group in their_optimizer.param_groups:
            group["lr"] = optimizer.lr
        loss, their = ours.loss(ids, targets), their_loss(theirs, ids, targets)
        for one in (loss, their):
            one.backward()
        norm = tg.optim.clip_grad_norm(ours.parameters(), 1.0)
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)), rel=1e-2)
        for one in (optimizer, their_optimizer):
            one.step()
            one.zero_grad()
        losses.append((loss.item(), float(their.detach())))
    found, wanted = np.array(losses).T
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)
    assert found[-1] < found[0] - 1.5  # it has learnt: the steps were large enough to matter
    for name, parameter in their_parameters(theirs).items():
        np.testing.assert_allclose(ours.state_dict()[name], parameter.detach().numpy(), rtol=0, atol=1e-2, err_msg=name)


def test_the_config_says_what_theirs_says(tmp_path: Path) -> None:
    """Of the settings that both write, none differs: what transformers saves, loaded and saved again by tinygpt."""
    make_theirs(resid_pdrop=0.25, embd_pdrop=0.25, attn_pdrop=0.25).save_pretrained(tmp_path / "theirs")
    GPT.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    theirs, ours = (json.loads((tmp_path / who / "config.json").read_text()) for who in ("theirs", "ours"))
    common = theirs.keys() & ours.keys()
    assert {"vocab_size", "n_positions", "resid_pdrop", "layer_norm_epsilon", "activation_function"} <= common
    assert {name: ours[name] for name in common} == {name: theirs[name] for name in common}
