"""Adapters against PEFT: what either writes, the other loads, and the logits, gradients and merged weights agree."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import EXTRA, load_ours, load_theirs, make_theirs, torch, transformers
from tinygpt import GPT, GPTForSequenceClassification, interop, nn
from tinygpt.errors import CheckpointError
from tinygpt.nn.lora import lora_layers, lora_of

peft = pytest.importorskip("peft", reason=EXTRA)

IDS = np.random.default_rng(0).integers(0, 31, (2, 9))
SETTINGS: list[dict[str, Any]] = [
    {"target_modules": ["c_attn"]},
    {"target_modules": ["c_attn", "c_proj", "c_fc"], "r": 3, "lora_alpha": 5},
    {"target_modules": ["mlp.c_proj"], "use_rslora": True, "r": 4},
    {"target_modules": r".*\.h\.1\..*c_(attn|fc)"},
    {"target_modules": "all-linear"},
    {"target_modules": ["c_attn"], "layers_to_transform": [1]},
    {"target_modules": ["c_proj"], "exclude_modules": ["attn.c_proj"]},
    {"target_modules": ["c_attn"], "init_lora_weights": "gaussian"},
]


def with_adapter(base: Any, seed: int = 0, **settings: Any) -> Any:
    """A PEFT model with updates as after some training."""
    given = {"r": 2, "lora_alpha": 4, "fan_in_fan_out": True, "task_type": "CAUSAL_LM"} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, peft.LoraConfig(**given))
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.tensor(0.3 * rng.standard_normal(parameter.shape)))
    return model.eval()


def their_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def base_folder(tmp_path: Path) -> Path:
    make_theirs().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_we_load_theirs(settings: Any, tmp_path: Path) -> None:
    theirs = with_adapter(load_theirs(base_folder(tmp_path)), **settings)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = GPT.from_pretrained(tmp_path / "adapter", dropout=0.0)
    count = sum("lora_A" in name for name, _ in theirs.named_parameters())
    assert len(lora_layers(ours)) == count > 0
    expected = their_logits(theirs)
    assert np.abs(expected - their_logits(load_theirs(tmp_path / "base"))).max() > 0.1  # the adapter does something
    np.testing.assert_allclose(ours(IDS).data, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(nn.merge_lora(ours)(IDS).data, expected, rtol=0, atol=2e-5)


def test_we_load_theirs_from_a_pytorch_file(tmp_path: Path) -> None:
    theirs = with_adapter(load_theirs(base_folder(tmp_path)), target_modules=["c_attn"])
    theirs.save_pretrained(tmp_path / "adapter", safe_serialization=False)
    assert (tmp_path / "adapter" / "adapter_model.bin").exists()
    ours = GPT.from_pretrained(tmp_path / "adapter", dropout=0.0)
    np.testing.assert_allclose(ours(IDS).data, their_logits(theirs), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rank": 3, "alpha": 5.5, "targets": ("c_attn", "c_proj", "c_fc")},
        {"targets": ("h.1.mlp.c_fc", "h.0.attn.c_proj"), "rslora": True, "dropout": 0.1},
        {"targets": "all-linear"},
    ],
    ids=str,
)
def test_they_load_ours(settings: Any, tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    ours = nn.add_lora(GPT.from_pretrained(base, dropout=0.0), **settings)
    rng = np.random.default_rng(1)
    for layer in lora_layers(ours).values():
        layer.lora_B.data[...] = 0.3 * rng.standard_normal(layer.lora_B.shape)
    interop.save_adapter(ours, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of names that it misses or does not know
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about PEFT
        theirs = peft.PeftModel.from_pretrained(load_theirs(base), tmp_path / "adapter").eval()
    assert theirs.peft_config["default"].base_model_name_or_path == str(base)
    np.testing.assert_allclose(their_logits(theirs), ours(IDS).data, rtol=0, atol=2e-5)
    merged = theirs.merge_and_unload()
    for name, parameter in nn.merge_lora(ours).named_parameters():
        found = dict(merged.transformer.named_parameters())[name].detach().numpy()
        np.testing.assert_allclose(found, parameter.data, rtol=0, atol=1e-6, err_msg=name)


def test_a_base_of_theirs_by_transformers_alone(tmp_path: Path) -> None:
    """transformers finds the base of an adapter's folder by itself, as we do."""
    from transformers import AutoModelForCausalLM

    ours = nn.add_lora(GPT.from_pretrained(base_folder(tmp_path), dropout=0.0))
    for layer in lora_layers(ours).values():
        layer.lora_B.data[...] = 0.5
    interop.save_adapter(ours, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    np.testing.assert_allclose(their_logits(theirs), ours(IDS).data, rtol=0, atol=2e-5)


@pytest.mark.parametrize("settings", SETTINGS[:3], ids=str)
def test_gradients_and_what_has_none(settings: Any, tmp_path: Path) -> None:
    theirs = with_adapter(load_theirs(base_folder(tmp_path)), **settings)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = GPT.from_pretrained(tmp_path / "adapter", dropout=0.0)
    for parameter in lora_parameters(theirs).values():
        parameter.requires_grad_(True)
    ours.loss(IDS, labels=IDS).backward()
    theirs(torch.tensor(IDS), labels=torch.tensor(IDS)).loss.backward()
    expected = lora_parameters(theirs)
    assert {name for name, parameter in ours.named_parameters() if parameter.grad is not None} == expected.keys()
    for name, parameter in ours.named_parameters():
        if parameter.grad is not None:
            grad = expected[name].grad.numpy()
            np.testing.assert_allclose(
                parameter.grad, grad, rtol=0, atol=1e-5 * np.abs(grad).max() + 1e-7, err_msg=name
            )


def lora_parameters(theirs: Any) -> dict[str, Any]:
    """Their updates under our names."""
    prefix = "base_model.model.transformer."
    return {
        name.removeprefix(prefix).replace(".default.weight", ""): parameter
        for name, parameter in theirs.named_parameters()
        if "lora_" in name
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"modules_to_save": ["ln_f"]}, r"modules_to_save is \['ln_f'\]"),
        ({"rank_pattern": {"c_attn": 4}}, "rank_pattern is"),
        ({"target_modules": ["wte"]}, "lora_embedding_A"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices is \[3\]"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    ],
)
def test_what_they_have_and_we_have_not_is_refused_by_name(settings: Any, words: str, tmp_path: Path) -> None:
    theirs = with_adapter(load_theirs(base_folder(tmp_path)), **({"target_modules": ["c_attn"]} | settings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=words):
        GPT.from_pretrained(tmp_path / "adapter", dropout=0.0)


def test_a_resized_vocabulary_is_refused(tmp_path: Path) -> None:
    """They save the grown embedding with the adapter: a base without it would be another model."""
    base = load_theirs(base_folder(tmp_path))
    base.resize_token_embeddings(33, mean_resizing=False)
    theirs = with_adapter(base, target_modules=["c_attn"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    with pytest.raises(CheckpointError, match=r"holds 'base_model\.model\..*', which is not part of an update"):
        GPT.from_pretrained(tmp_path / "adapter", dropout=0.0)


def test_another_base_of_theirs(tmp_path: Path) -> None:
    theirs = with_adapter(load_theirs(base_folder(tmp_path)), target_modules=["c_attn"])
    theirs.save_pretrained(tmp_path / "adapter")
    other = load_ours(make_theirs(n_embd=24), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"is for another model: .* needs \(2, 24\)"):
        interop.load_adapter(other, tmp_path / "adapter")
    assert lora_of(other) is None


# Classifiers ----------------------------------------------------------------------------------------


def their_classifier(base: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the head is new
        model = transformers.GPT2ForSequenceClassification.from_pretrained(base, num_labels=3, dtype=torch.float32)
    model.config.pad_token_id = 0
    return model.eval()


def test_a_classifier_of_theirs(tmp_path: Path) -> None:
    """PEFT saves the head beside the adapter, and its names of what it saves are the same for all models."""
    base = base_folder(tmp_path)
    theirs = with_adapter(their_classifier(base), task_type="SEQ_CLS", target_modules=["c_attn"])
    theirs.save_pretrained(tmp_path / "adapter")
    ours = GPTForSequenceClassification.from_pretrained(tmp_path / "adapter", dropout=0.0)
    ids = IDS % 30 + 1  # none of them padding
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(ours(ids).data, expected, rtol=0, atol=2e-5)


def test_a_classifier_of_ours(tmp_path: Path) -> None:
    base, rng = base_folder(tmp_path), np.random.default_rng(1)
    body = nn.add_lora(GPT.from_pretrained(base, dropout=0.0))
    for layer in lora_layers(body).values():
        layer.lora_B.data[...] = 0.3 * rng.standard_normal(layer.lora_B.shape)
    ours = GPTForSequenceClassification(body, 3, "single_label_classification").eval()
    ours.score.weight.data[...] = rng.standard_normal(ours.score.weight.shape)
    interop.save_adapter(ours, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)
        theirs = peft.PeftModel.from_pretrained(their_classifier(base), tmp_path / "adapter").eval()
    ids = IDS % 30 + 1
    with torch.no_grad():
        found = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(found, ours(ids).data, rtol=0, atol=2e-5)
