"""A model that chats."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tinygpt.tokenizers import ByteTokenizer

BLOCK = 120


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 directory of bytes that has learnt one exchange by heart: whatever is said, it answers "bb"."""
    folder = tmp_path_factory.mktemp("talker")
    tokenizer = ByteTokenizer()
    gpt = tg.GPT(tg.GPTConfig(256, BLOCK, n_layer=1, n_head=2, n_embd=32), seed=0)
    optimizer = tg.optim.AdamW(gpt.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    for _ in range(80):
        turns = rng.choice(["User: a\nAssistant: bb\n", "User: c\nAssistant: bb\n"], 6)
        ids = tokenizer.encode("".join(turns))[None, :BLOCK]
        loss = gpt.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    gpt.save_pretrained(folder, tokenizer=tokenizer)
    return folder


@pytest.fixture
def say(run: Any, talker: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """say("text of the pipe", *options) -> Answer."""

    def call(text: str | bytes, *options: str) -> Any:
        data = text if isinstance(text, bytes) else text.encode("utf-8")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
        return run("chat", f"--model={talker}", "--seed=1", "--greedy", *options)

    return call


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a model that answers "fine" reads."""
    found: list[str] = []

    def stream_text(model: Any, tokenizer: Any, ids: Any, **options: Any) -> Iterator[str]:
        found.append(tokenizer.decode(ids))
        yield from (" fi", "ne ")

    monkeypatch.setattr("tinygpt.generation.stream_text", stream_text)
    return found
