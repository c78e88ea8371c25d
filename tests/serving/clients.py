"""The HTTP interface without a network: an application around a small model, and what its answers hold."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from tests.generation.helpers import make
from tinygpt.data.dialogue import PRESETS
from tinygpt.serving.app import application
from tinygpt.serving.bodies import Served
from tinygpt.serving.engine import Engine
from tinygpt.tokenizers import CharTokenizer

KEY = "sk-secret"
URL = "http://127.0.0.1:8000"
MODEL = make(np.float32, vocab_size=100, block_size=64, n_layer=1, n_head=2, n_embd=16).eval()
TOKENIZER = CharTokenizer("\n" + "".join(map(chr, range(32, 127))))  # 96 characters: fewer than the model has ids


def client_of(engine: Engine, tokenizer: Any = TOKENIZER, **options: Any) -> TestClient:
    served = Served(engine.model, tokenizer, "tiny", PRESETS["plain"], 1, engine.most_waiting)
    return TestClient(application(served, engine, **options), base_url=URL)


def written(prompt: str, **options: Any) -> str:
    """The text of `generate`."""
    ids = TOKENIZER.encode(prompt)
    found = MODEL.generate(ids[None], overflow="stop", tokenizer=TOKENIZER, **options)[0, len(ids) :]
    return TOKENIZER.decode(found)


def events_of(response: Any) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def refused(response: Any, status: int, words: str, param: str | None = None, code: str | None = None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]
    assert (error["param"], error["code"]) == (param, code)
