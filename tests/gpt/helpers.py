"""Small GPTs, and the same model in plain NumPy."""

import math

import numpy as np

from tinygpt import GPT, GPTConfig

SETTINGS = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 12}
rng = np.random.default_rng(0)
IDX = rng.integers(0, 11, (3, 7))
TARGETS = rng.integers(0, 11, (3, 7))
TARGETS[0, 2] = TARGETS[2, 6] = -100


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
