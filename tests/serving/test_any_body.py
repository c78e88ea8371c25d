"""Random bodies of requests: none makes the HTTP interface fail."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["prompt", "messages", "n", "max_tokens", "temperature", "top_p", "stop", "seed", "logprobs", "top_logprobs",
          "stream", "stream_options", "logit_bias", "presence_penalty", "frequency_penalty", "top_k", "min_p", "model",
          "repetition_penalty", "return_token_ids", "answer_token_ids", "max_completion_tokens", "tools", "user",
          "echo", "suffix"]  # fmt: skip
LIKELY = {
    "prompt": st.text("ab \n", max_size=70) | st.lists(st.integers(-1, 100), max_size=70)
    | st.lists(st.text(max_size=5), max_size=3),
    "messages": st.lists(st.fixed_dictionaries({
         "role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": st.text("ab", max_size=9) | ANY,
    }), max_size=4),
    "n": st.integers(0, 4), "max_tokens": st.integers(-1, 70), "temperature": st.floats(0, 2), "top_p": st.floats(0, 1),
    "stop": st.lists(st.text(max_size=3), max_size=5), "seed": st.integers(-(2**64), 2**64),
    "logit_bias": st.dictionaries(st.integers(-1, 300).map(str), st.floats(-101, 101), max_size=3),
    "stream": st.booleans(), "logprobs": st.booleans() | st.integers(-1, 6),
}  # fmt: skip


@st.composite
def bodies(draw: Any) -> bytes:
    names = draw(st.lists(st.sampled_from(FIELDS) | st.text(max_size=4), max_size=6, unique=True))
    names = [*names, draw(st.sampled_from(["prompt", "messages"]))]
    body = {name: draw(LIKELY.get(name, ANY) | ANY if draw(st.integers(0, 4)) else ANY) for name in names}
    return json.dumps(body).encode("utf-8", "replace")


@pytest.mark.slow
@settings(max_examples=1000)
@given(path=st.sampled_from(["/v1/completions", "/v1/chat/completions"]), body=bodies() | st.binary(max_size=20))
def test_no_body_is_a_failure(client: TestClient, path: str, body: bytes) -> None:
    """A thousand bodies: 200 or an error of the client's, in OpenAI's form; a failure of ours would be raised here."""
    response = client.post(path, content=body)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
