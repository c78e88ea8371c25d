"""Fixtures of several files here."""

from __future__ import annotations

from pathlib import Path

import pytest

import tinygpt as tg
from tinygpt.tokenizers import ByteTokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model of bytes."""
    folder = tmp_path_factory.mktemp("base")
    config = tg.GPTConfig(256, block_size=16, n_layer=1, n_head=2, n_embd=16)
    tg.GPT(config, seed=1).save_pretrained(folder, tokenizer=ByteTokenizer())
    return folder


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """Another text, of the same characters."""
    path = tmp_path / "more.txt"
    path.write_text("the noble mind, or not, to suffer that\n" * 30, encoding="utf-8")
    return path
