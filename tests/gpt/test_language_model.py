"""A second architecture on `LanguageModel`: what any language model can do, it can, from a file of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.generation.helpers import log_softmax
from tinygpt import nn, ops
from tinygpt.generation import log_likelihood, perplexity, stream
from tinygpt.generation.decoder import Decoder
from tinygpt.generation.stepper import Stepper, decoder_for
from tinygpt.gpt import Attention, GPTConfig
from tinygpt.language_model import LanguageModel
from tinygpt.nn.residual import ResidualStream
from tinygpt.ops.cached_attention import KeyValueCache
from tinygpt.random import Generator


@dataclass(frozen=True)
class Config:
    vocab_size: int = 13
    block_size: int = 6
    n_embd: int = 16

    to_dict = asdict

    @classmethod
    def from_dict(cls, settings: Any) -> Config:
        return cls(**settings)


class Average(LanguageModel):
    """No attention, no positions: each token sees the mean of those so far."""

    config_class = Config

    def __init__(self, config: Config, seed: int = 0, dtype: Any = np.float64) -> None:
        super().__init__(config, Generator(seed))
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, std=1.0, generator=self.generator, dtype=dtype)
        self.mix = nn.Linear(config.n_embd, config.n_embd, generator=self.generator, dtype=dtype)

    def hidden(self, idx: Any) -> tg.Tensor:
        idx = self.check_ids(idx)
        T = idx.shape[1]
        mean = np.tri(T) / np.arange(1, T + 1)[:, None]  # (T, T)
        return ops.tanh(self.mix(tg.tensor(mean.astype(self.parameters()[0].dtype)) @ self.wte(idx)))


class OneBlock(LanguageModel):
    """Attention without an MLP, with a head of its own: `hidden` goes on with a text."""

    config_class = Config

    def __init__(self, config: Config, seed: int = 0, dtype: Any = np.float64) -> None:
        super().__init__(config, Generator(seed))
        size = GPTConfig(config.vocab_size, config.block_size, 1, 2, config.n_embd)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, std=1.0, generator=self.generator, dtype=dtype)
        self.attn = Attention(size, 0, self.generator, dtype)
        self.norm, self.last_norm = (nn.LayerNorm(config.n_embd, dtype=dtype) for _ in range(2))
        self.dropout = nn.Dropout(0.1, self.generator)
        self.unembed = nn.Embedding(config.vocab_size, config.n_embd, std=1.0, generator=self.generator, dtype=dtype)

    @property
    def output_embedding(self) -> Any:
        return self.unembed

    def hidden(self, idx: Any, cache: Any = None) -> tg.Tensor:
        x = ResidualStream(self.wte(self.check_ids(idx)))
        x.add(self.attn, x.norm(self.norm), self.dropout, None if cache is None else cache[0])
        return x.norm(self.last_norm)

    def new_cache(self, B: int, capacity: int) -> list[KeyValueCache]:
        keys, values = (np.zeros((B, 2, capacity, 8), self.parameters()[0].dtype) for _ in range(2))
        return [KeyValueCache(keys, values, np.zeros(B, np.int64), last_only=True)]


MODELS = {Average: Stepper, OneBlock: Decoder}
every_model = pytest.mark.parametrize("kind", MODELS)
IDX = np.random.default_rng(0).integers(0, 13, (3, 6))


@every_model
def test_its_loss_is_that_of_its_logits_and_falls(kind: Any) -> None:
    model = kind(Config())
    with model.evaluating():
        loss = ops.cross_entropy(model(IDX[:, :-1]), IDX[:, 1:]).item()
        assert model.loss(IDX, labels=IDX).item() == pytest.approx(loss, abs=1e-12)
    optimizer = tg.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(30):
        model.loss(IDX, labels=IDX).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.eval().loss(IDX, labels=IDX).item() < loss - 0.5


@every_model
def test_it_generates_and_scores_what_it_computes(kind: Any) -> None:
    """Past the block of 6 too, as a stream too, and by beams."""
    model = kind(Config()).eval()
    assert type(decoder_for(model)) is MODELS[kind]
    for options in ({"seed": 0}, {"do_sample": False}, {"do_sample": False, "num_beams": 3}):
        found = model.generate(IDX[:2, :3], 5, return_details=True, **options)
        for row, log_probs in zip(found.sequences, found.log_probs, strict=True):
            logits = [model(row[None, max(0, end - 6) : end]).data[0, -1] for end in range(3, len(row))]
            wanted = log_softmax(np.stack(logits))[np.arange(len(logits)), row[3:]]
            np.testing.assert_allclose(log_probs, wanted, rtol=0, atol=1e-10)
    streamed = np.stack(list(stream(model, IDX[:2, :3], 5, seed=0)), axis=1)
    assert np.array_equal(streamed, model.generate(IDX[:2, :3], 5, seed=0)[:, 3:])
    text = IDX[0]
    wanted = log_softmax(model(text[None]).data[0])[np.arange(5), text[1:]]
    np.testing.assert_allclose(log_likelihood(model, text).log_probs, wanted, rtol=0, atol=1e-10)
    assert perplexity(model, text) == pytest.approx(np.exp(-wanted.mean()))


@every_model
def test_it_is_packed_and_its_state_is_loaded(kind: Any) -> None:
    model = kind(Config(), dtype=np.float32).eval()
    other = kind.from_config(model.config.to_dict(), seed=1, dtype=np.float32).eval()
    other.load_state_dict(model.state_dict())
    plain = other(IDX).data
    assert np.array_equal(plain, model(IDX).data)
    packed = model.pack("bfloat16")
    assert not [p for name, p in packed.named_parameters() if p.ndim == 2]  # the embeddings and the matrices, all
    assert np.abs(packed(IDX).data - plain).max() < 0.3
    assert packed.generate(IDX[:1, :3], 2, do_sample=False).shape == (1, 5)


@every_model
def test_what_is_gpt2s_alone_is_refused(kind: Any, tmp_path: Any) -> None:
    with pytest.raises(tg.UsageError, match=f"the class {kind.__name__} overrides forward, hidden or head"):
        kind(Config()).save_pretrained(tmp_path / "model")
    tg.GPT(GPTConfig(13, 6, 1, 2, 16)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(
        tg.UsageError, match=f"from_pretrained: model_class must be GPT or a subclass.* not {kind.__name__}"
    ):
        kind.from_pretrained(tmp_path / "gpt2")


@every_model
def test_mistakes_are_said_to_be_its_own(kind: Any) -> None:
    model, name = kind(Config(), dtype=np.float32), kind.__name__
    mistakes: dict[str, Any] = {
        rf"^{name}: idx must have the shape \(batch, time\)": lambda: model(IDX[0]),
        f"^{name}: idx must be integers": lambda: model(IDX + 0.5),
        f"^{name}: a sequence of 7 tokens is longer": lambda: model(np.zeros((1, 7), int)),
        f"^{name}: ids must be in 0 .. 12": lambda: model(IDX + 13),
        f"^{name}.loss: give either targets": lambda: model.loss(IDX),
        f"^{name}.loss: targets must have the shape of idx": lambda: model.loss(IDX, IDX[:, 1:]),
        f"^{name}.pack: format must be": lambda: model.pack("int2"),
        f"^{name}.pack: activations='int8' is": lambda: model.pack("bfloat16", activations="int8"),
    }
    for sentence, make in mistakes.items():
        with pytest.raises(tg.UsageError, match=sentence):
            make()
    with pytest.warns(UserWarning, match=f"^{name}.loss: the targets equal the input"):
        model.loss(IDX, IDX)


def test_those_of_a_gpt_of_a_users_own_too() -> None:
    class Mine(tg.GPT):
        pass

    model = Mine(GPTConfig(13, 6, 1, 2, 16))
    with pytest.raises(tg.UsageError, match=r"^Mine: idx must have the shape"):
        model(IDX[0])
    model.pack("int8")
    with pytest.raises(tg.UsageError, match=r"^Mine.pack: this model is packed already, in int8"):
        model.pack("int8")
