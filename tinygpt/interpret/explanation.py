"""The contents of the page of `tinygpt explain`, as arrays: `explain(model, tokenizer, text)`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..graph import no_grad
from ..language_model import LanguageModel
from ..tokenizers import Tokenizer
from .attention_maps import attention_maps
from .hooks import Around, wrapped
from .logit_lens import lenses
from .saliency import METHODS, saliency
from .text import body_of, one_text

MOST_TOKENS = 256
ALTERNATIVES = 5  # how many of the most likely next tokens are listed for each position
RUNS = 3  # timed passes


@dataclass(frozen=True)
class Part:
    """All parts of a model of one kind: their weights, and the time they take in a forward pass."""

    name: str
    weights: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Explanation:
    """T tokens, L blocks, H heads. Row 0 of the lens reads the embeddings."""

    tokens: list[str]
    surprise: np.ndarray  # (T,) bits: -log2 of each token's probability given those before; NaN for the first
    maps: np.ndarray  # (L, H, T, T)
    lens_ids: np.ndarray  # (L + 1, T): the most likely next token
    lens_probabilities: np.ndarray  # (L + 1, T): its probability
    lens_tokens: dict[int, str]  # the text of these ids
    alternatives: list[list[tuple[str, float]]]  # for each position, the most likely next tokens
    target: str
    target_probability: float
    saliency: dict[str, np.ndarray]  # method -> (T,)
    parts: list[Part]
    facts: list[tuple[str, str]]  # of the model

    def settled(self, position: int) -> int:
        """The first depth from which the lens stays at the final answer: 0: the embeddings, L: the last block."""
        ids = self.lens_ids[:, position]
        others = np.flatnonzero(ids != ids[-1])
        return int(others[-1]) + 1 if len(others) else 0


def explain(
    model: LanguageModel, tokenizer: Tokenizer, text: str, target: str | None = None, *, steps: int = 64
) -> Explanation:
    """Run the model on `text`, and compute everything that the page shows.

    target: the next token to explain, as text that is one token; None: the most likely one. steps: of integrated
    gradients. Raises UsageError for an empty text or one of more than 256 tokens, and for a target of several tokens.
    """
    ids = np.array([*tokenizer.start_ids, *tokenizer.encode(text)], np.int64)
    most = min(MOST_TOKENS, model.config.block_size)
    if len(ids) < 2 or len(ids) > most:
        raise UsageError(
            f"explain: the text must have 2 to {most} tokens, this one has {len(ids)}: give another --text"
        )
    depths = [(part.argmax(-1), np.exp(part.max(-1)), part) for part in lenses(model, ids)]
    last = depths[-1][2]  # (T, V)
    lens_ids = np.stack([ids for ids, _, _ in depths])
    chosen = int(lens_ids[-1, -1]) if target is None else _one_token(tokenizer, target)
    near = np.argsort(-last, axis=-1)[:, :ALTERNATIVES]  # (T, 5)
    surprise = np.full(len(ids), np.nan)
    surprise[1:] = -last[np.arange(len(ids) - 1), ids[1:]] / math.log(2)
    return Explanation(
        tokens=_tokens(tokenizer, ids),
        surprise=surprise,
        maps=attention_maps(model, ids),
        lens_ids=lens_ids,
        lens_probabilities=np.stack([probabilities for _, probabilities, _ in depths]),
        lens_tokens={int(i): tokenizer.decode([int(i)]) for i in np.unique(lens_ids)},
        alternatives=[
            [(tokenizer.decode([int(i)]), float(np.exp(row[i]))) for i in best]
            for row, best in zip(last, near, strict=True)
        ],
        target=tokenizer.decode([chosen]),
        target_probability=float(np.exp(last[-1, chosen])),
        saliency={method: saliency(model, ids, chosen, method, steps=steps) for method in METHODS},
        parts=parts_of(model, ids),
        facts=facts_of_model(model),
    )


def _one_token(tokenizer: Tokenizer, target: str) -> int:
    ids = tokenizer.encode(target)
    if len(ids) != 1:
        pieces = ", ".join(repr(tokenizer.decode([int(i)])) for i in ids[:8])
        raise UsageError(f"explain: the target {target!r} must be one token, but is {len(ids)} ({pieces}): choose one")
    return int(ids[0])


def _tokens(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """Each token as the text that it adds; bytes that are not a whole character as U+FFFD."""
    before = [None, *(int(i) for i in ids)]
    return [tokenizer.bytes_after(b, [int(i)]).decode("utf-8", "replace") for b, i in zip(before, ids, strict=False)]


# The model's card -----------------------------------------------------------------------------------


def facts_of_model(model: Any) -> list[tuple[str, str]]:
    """(name, value) for each fact about the model and its size."""
    config, like = model.config, model.parameters()[0]
    facts = [
        ("class", type(model).__name__),
        ("source", _source(model)),
        ("weights", f"{model.num_parameters():,}"),
        ("dtype", f"packed in {model.packed}" if model.packed else like.dtype.name),
        (
            "blocks, heads, channels",
            " x ".join(f"{getattr(config, name, '?')}" for name in ("n_layer", "n_head", "n_embd")),
        ),
        ("vocabulary", f"{config.vocab_size:,} tokens"),
        ("block size", f"{config.block_size:,} tokens"),
    ]
    if hasattr(config, "n_embd"):
        cache = 2 * len(model.h) * config.n_embd * like.dtype.itemsize
        facts.append(("keys and values", f"{cache:,} bytes per token, {cache * config.block_size:,} for a full block"))
    if hasattr(model, "flops_per_token"):
        facts.append(("computation", f"{model.flops_per_token() / 3:.3g} operations per token, over a full block"))
    return facts


def _source(model: Any) -> str:
    """The name by which the model was loaded; for a folder its last part, since pages are shared."""
    source = str(model.source or "in memory")
    return Path(source).resolve().name if Path(source).exists() else source


def _kind(path: str) -> str:
    """What kind of part a path belongs to."""
    name = path.split(".")[0]
    if name in ("wte", "wpe"):
        return "embeddings"
    if ".attn" in path:
        return "attention"
    if ".mlp" in path:
        return "MLP"
    return "norms" if "ln_" in path else "head" if name == "lm_head" else "other"


def parts_of(model: Any, ids: Any) -> list[Part]:
    """Weights and time by kind of part. A tied head has no weights of its own."""
    idx = one_text("explain", model, ids)
    weights: dict[str, list[int]] = {}
    for path, count, size in _weights(model):
        both = weights.setdefault(_kind(path), [0, 0])
        both[0], both[1] = both[0] + count, both[1] + size
    seconds = _seconds(model, idx)
    found = []
    for name in ("embeddings", "attention", "MLP", "norms", "head", "other"):
        count, size = weights.get(name, (0, 0))
        if count or name in seconds:
            found.append(Part(name, count, size, seconds.get(name, 0.0)))
    return found


def _weights(model: Any) -> Iterator[tuple[str, int, int]]:
    """Path, size and bytes of each parameter and each packed matrix."""
    for name, parameter in model.named_parameters():
        yield name, parameter.size, parameter.data.nbytes
    for path, module in model.named_modules():
        if module.packed_size():
            yield path, module.packed_size(), module.matrix.nbytes


def _seconds(model: Any, idx: Any) -> dict[str, float]:
    """The time that each kind of part takes in a forward pass over the text: the median of several passes."""
    body, _ = body_of("explain", model)
    runs: list[dict[str, float]] = []
    paths = [
        "wte",
        "wpe",
        *(f"h.{i}.{name}" for i in range(len(body.h)) for name in ("attn", "mlp", "ln_1", "ln_2")),
        "ln_f",
    ]
    modules = dict(model.named_modules())
    for _ in range(RUNS):
        run: dict[str, float] = {}
        around = {path: _timed(run, _kind(path)) for path in paths if path in modules}
        with no_grad(), model.evaluating(), wrapped(model, around):
            h = model.hidden(idx)
            _timed(run, "head")(lambda h: model.head(h).numpy(), h)
        runs.append(run)
    return {name: float(np.median([run.get(name, 0.0) for run in runs])) for name in runs[0]}


def _timed(run: dict[str, float], kind: str) -> Around:
    def around(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        y = forward(*args, **kwargs)
        run[kind] = run.get(kind, 0.0) + time.perf_counter() - start
        return y

    return around
