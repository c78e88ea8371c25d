"""What the HTTP interface refuses, and how: bodies, paths, hosts, keys."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from tests.serving.clients import KEY, URL, client_of, refused
from tinygpt.serving import app as http
from tinygpt.serving.engine import Engine
from tinygpt.serving.errors import ApiError
from tinygpt.tokenizers import CharTokenizer

BAD: list[tuple[Any, int, str, str | None, str | None]] = [
    (b"{", 400, "the body is not JSON", None, None),
    (b"\xff", 400, "not UTF-8", None, None),
    (b"[1]", 400, "must be a JSON object, not an array", None, None),
    (b'{"prompt": "a", "temperature": NaN}', 400, "NaN is not a number of JSON", None, None),
    (b"[" * 100_000, 400, "nested too deeply", None, None),
    (b'{"prompt": "\\ud800"}', 400, "half of a surrogate pair", "prompt", None),
    ({}, 400, "must provide a prompt", "prompt", None),
    ({"prompt": 3}, 400, "a string, an array of token ids", "prompt", None),
    ({"prompt": [1, True]}, 400, "an array of token ids", "prompt", None),
    ({"prompt": [96]}, 400, "token ids must be 0 to 95", "prompt", None),
    ({"prompt": [-1]}, 400, "token ids must be 0 to 95", "prompt", None),
    ({"prompt": ""}, 400, "the prompt is empty", "prompt", None),
    ({"prompt": "a", "max_tokens": 64}, 400, "context length is 64 tokens", "prompt", "context_length_exceeded"),
    ({"prompt": "a" * 64}, 400, "you requested 64 tokens", "prompt", "context_length_exceeded"),
    ({"prompt": "a", "max_tokens": -1}, 400, "max_tokens must be between 0", "max_tokens", None),
    ({"prompt": "a", "max_tokens": "9"}, 400, "must be a whole number, not a string", "max_tokens", None),
    ({"prompt": "a", "temperature": 3}, 400, "between 0 and 2, not 3", "temperature", None),
    ({"prompt": "a", "temperature": True}, 400, "must be a number, not a boolean", "temperature", None),
    ({"prompt": "a", "n": 7}, 400, "at most 6 texts", "n", None),
    ({"prompt": ["a"] * 7}, 400, "at most 6 texts", "prompt", None),
    ({"prompt": "a", "stop": list("abcde")}, 400, "at most 4 strings", "stop", None),
    ({"prompt": "a", "stop": ""}, 400, "empty string", "stop", None),
    ({"prompt": "a", "stream": 1}, 400, "true or false", "stream", None),
    ({"prompt": "a", "logit_bias": {"96": 1}}, 400, "ids are 0 to 95", "logit_bias", None),
    ({"prompt": "a", "logit_bias": {"1": 101}}, 400, "between -100 and 100", "logit_bias", None),
    ({"prompt": "a", "stream_options": {}}, 400, "needs stream: true", "stream_options", None),
    ({"prompt": "a", "suffix": "b"}, 400, "suffix is not supported", "suffix", "unsupported_value"),
    ({"prompt": "a", "echo": True}, 400, "echo is not supported", "echo", "unsupported_value"),
    ({"prompt": "a", "frobnicate": 1}, 400, "Unrecognized request argument supplied: frobnicate", "frobnicate", None),
    ({"prompt": "a", "model": "gpt-4"}, 404, "does not exist", "model", "model_not_found"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "words", "param", "code"), BAD, ids=lambda value: str(value)[:40])
def test_bad_completions(
    client: TestClient, body: Any, status: int, words: str, param: str | None, code: str | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body)
    refused(client.post("/v1/completions", content=content), status, words, param, code)


WRONG = {
    "max_tokens": ["9", 1.5, [], {}, True], "temperature": ["1", [], {}, True], "top_p": ["1", [], {}, 1.1, -0.1],
    "n": ["1", 0, 1.5, [], {}, True, 129], "stream": ["true", 1, [], {}], "stop": [3, {}, [3], [["a"]], True],
    "seed": ["1", 1.5, [], {}, True, 2**63], "logprobs": ["1", -1, 6, 1.5, [], {}, True],
    "frequency_penalty": ["1", 2.1, [], {}], "presence_penalty": ["1", -2.1, [], {}], "min_p": ["1", 1.5, [], {}],
    "logit_bias": ["1", 1, [], [1], {"a": 1}, {"1": "a"}, {"-1": 1}, {"1": True}], "top_k": ["1", 1.5, [], {}, -2],
    "repetition_penalty": ["1", 0, [], {}], "model": [1, [], {}, True], "stream_options": ["a", 1, []],
    "prompt": [3, 1.5, {}, True, [1, "a"], ["a", 1], [[1], "a", 3], [None], [[["a"]]]],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_types(client: TestClient, name: str) -> None:
    """Each is named in the answer, and nothing is guessed from them."""
    for value in WRONG[name]:
        body = {"prompt": "a", "stream": name == "stream_options", name: value}
        response = client.post("/v1/completions", json=body)
        assert response.status_code == 400, value
        assert response.json()["error"]["param"] == name, value
        assert name in response.json()["error"]["message"], value


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "at least one message"),
        ({"messages": ["a"]}, "messages[0] must be an object"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role must be"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content must be a string"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts of type text only"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "user and assistant in turn"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tools is not supported"),
        ({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, "needs logprobs: true"),
        ({"messages": [{"role": "user", "content": "a" * 99}]}, "maximum context length is 64"),
        ({"messages": [{"role": "user", "content": "a"}], "answer_token_ids": [96]}, "ids must be 0 to 95"),
        ({"messages": [{"role": "user", "content": "a"}], "answer_token_ids": "b"}, "must be an array of token ids"),
    ],
)  # fmt: skip
def test_bad_chats(client: TestClient, body: Any, words: str) -> None:
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]["message"]


def test_a_character_that_the_model_does_not_know(engine: Engine) -> None:
    known = CharTokenizer("".join(map(chr, range(97, 123))))
    refused(client_of(engine, known).post("/v1/completions", json={"prompt": "A"}), 400, "'A'", "prompt")


def test_paths_and_methods(client: TestClient) -> None:
    refused(client.get("/v2"), 404, "no such path")
    refused(client.get("/v1/completions"), 405, "not allowed")


def test_large_bodies(engine: Engine) -> None:
    client = client_of(engine, most_bytes=1000)
    refused(client.post("/v1/completions", content=b"a" * 1001), 413, "more than 1000 bytes")
    refused(client.post("/v1/completions", content=iter([b"a" * 600] * 2)), 413, "more than 1000 bytes")
    assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_slow_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read() -> None:
        await http.whole_body(Request({"type": "http", "headers": []}, asyncio.Event().wait), 10)  # type: ignore[arg-type]

    monkeypatch.setattr(http, "MOST_SECONDS", 0.01)
    with pytest.raises(ApiError, match="did not arrive within") as error:
        asyncio.run(read())
    assert error.value.status == 408


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421), ({"Host": ""}, 421), ({"Host": "127.0.0.1.evil.example:8000"}, 421),
        ({"Host": "localhost:8000"}, 200), ({"Host": "[::1]:8000"}, 200), ({"Host": "192.168.1.7"}, 200),
        ({"Host": "ours.example"}, 200), ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
        ({"Origin": URL}, 200), ({"Origin": "http://127.0.0.1:9000"}, 403),
    ],
)  # fmt: skip
def test_hosts_and_origins(engine: Engine, headers: dict[str, str], status: int) -> None:
    client = client_of(engine, hosts=["ours.example"])
    assert client.get("/v1/models", headers=headers).status_code == status


SITE = "http://localhost:3000"


def test_a_site_that_is_allowed(engine: Engine) -> None:
    """Its pages may send what OpenAI's client for browsers does, and read the answers, errors too; others still not."""
    client = client_of(engine, key=KEY, origins=[SITE + "/", "app://obsidian.md"])
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Private-Network": "true",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang"}  # fmt: skip
    before = client.options("/v1/chat/completions", headers={"Origin": SITE, **asks})
    assert (before.status_code, before.content) == (204, b"")
    assert before.headers["access-control-allow-origin"] == SITE
    assert before.headers["access-control-allow-headers"] == asks["Access-Control-Request-Headers"]
    assert "POST" in before.headers["access-control-allow-methods"]
    assert before.headers["access-control-allow-private-network"] == "true"
    key = {"Authorization": f"Bearer {KEY}"}
    body = {"prompt": "a", "max_tokens": 2}
    for site in (SITE, "app://obsidian.md"):
        answer = client.post("/v1/completions", json=body, headers={"Origin": site, **key})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, site)
        assert (answer.headers["vary"], answer.headers.get("access-control-allow-credentials")) == ("Origin", None)
    for headers, status in (({}, 401), (key, 404)):
        answer = client.get("/v1/nowhere" if headers else "/v1/models", headers={"Origin": SITE, **headers})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, SITE)
    for other in ("http://localhost:3001", "https://localhost:3000", "http://evil.example", "null", ""):
        for answer in (
            client.options("/v1/completions", headers={"Origin": other, **asks}),
            client.post("/v1/completions", json=body, headers={"Origin": other, **key}),
        ):
            assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (403, None)
    rebound = client.options("/v1/completions", headers={"Origin": SITE, "Host": "evil.example", **asks})
    assert rebound.status_code == 421
    plain = client.get("/v1/models", headers=key)
    assert "access-control-allow-origin" not in plain.headers


def test_an_ordinary_options_request_needs_the_key(engine: Engine) -> None:
    client = client_of(engine, key=KEY, origins=[SITE])
    assert client.options("/v1/completions", headers={"Origin": SITE}).status_code == 401


# What clients are reported to send, which servers of others refused or failed at.
NULLS = {"stop": None, "max_tokens": None, "logprobs": None, "n": None, "seed": None, "logit_bias": {}, "user": "",
         "temperature": None, "stream": None, "stream_options": None, "tools": None, "response_format": None,
         "metadata": {}, "store": False, "parallel_tool_calls": False}  # fmt: skip


def test_what_clients_are_known_to_send(engine: Engine) -> None:
    client = client_of(engine)
    said = [
        {"role": "system", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "b"},
    ]
    chat = client.post("/v1/chat/completions", json={"messages": said, **NULLS})
    assert chat.status_code == 200, chat.text
    plain = {name: value for name, value in NULLS.items() if name not in ("tools", "response_format")}
    text = client.post("/v1/completions", json={"prompt": "a", **plain, "suffix": None, "echo": None, "best_of": None})
    assert text.status_code == 200, text.text
    body = json.dumps({"prompt": "a", "max_tokens": 1})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8"):
        answer = client.post("/v1/completions", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 200
    zero = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3, "logprobs": 0}).json()
    assert len(zero["choices"][0]["logprobs"]["tokens"]) == 3


def test_the_key(engine: Engine, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    client = client_of(engine, key=KEY)
    refused(client.get("/v1/models"), 401, "didn't provide an API key", None, "invalid_api_key")
    for wrong in ("Bearer no", f"Basic {KEY}", "Bearer", f"Bearer {KEY}x"):
        refused(client.get("/v1/models", headers={"Authorization": wrong}), 401, "Incorrect", None, "invalid_api_key")
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    assert client.get("/health").json() == {"status": "ok"}
    other = client_of(engine, key="ключ")  # a header's bytes are compared
    assert other.get("/v1/models", headers=[(b"Authorization", "Bearer ключ".encode())]).status_code == 200
    said = capsys.readouterr()
    assert KEY not in caplog.text + said.out + said.err
