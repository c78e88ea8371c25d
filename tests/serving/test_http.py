"""The HTTP interface without a network: answers in OpenAI's form, equal to `generate`'s; what is refused, and how."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.testclient import TestClient

from tests.generation.helpers import make
from tinygpt.data.dialogue import PRESETS
from tinygpt.generation.processors import Rows
from tinygpt.serving import app as http
from tinygpt.serving.app import application
from tinygpt.serving.bodies import Served
from tinygpt.serving.engine import Engine
from tinygpt.serving.errors import ApiError
from tinygpt.serving.penalties import Penalties
from tinygpt.tokenizers import ByteTokenizer, CharTokenizer

KEY = "sk-secret"
URL = "http://127.0.0.1:8000"
MODEL = make(np.float32, vocab_size=100, block_size=64, n_layer=1, n_head=2, n_embd=16).eval()
TOKENIZER = CharTokenizer("\n" + "".join(map(chr, range(32, 127))))  # 96 characters: fewer than the model has ids


def client_of(engine: Engine, tokenizer: Any = TOKENIZER, **options: Any) -> TestClient:
    served = Served(engine.model, tokenizer, "tiny", PRESETS["plain"], 1, engine.most_waiting)
    return TestClient(application(served, engine, **options), base_url=URL)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(MODEL, places=3, waiting=6)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[TestClient]:
    with client_of(engine) as client:
        yield client


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


# Answers ------------------------------------------------------------------------------------------


def test_models(client: TestClient) -> None:
    model = {"id": "tiny", "object": "model", "created": 1, "owned_by": "tinygpt", "max_model_len": 64}
    assert client.get("/v1/models").json() == {"object": "list", "data": [model]}
    assert client.get("/v1/models/tiny").json() == model
    refused(client.get("/v1/models/a/b"), 404, "does not exist", "model", "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 5}, {"seed": 1, "temperature": 0.5, "top_p": 0.9}])
def test_completions(client: TestClient, options: Any, stream: bool) -> None:
    body = {"model": "tiny", "prompt": "To be", "max_tokens": 12, "stream": stream, **options}
    response = client.post("/v1/completions", json=body)
    if stream:
        chunks = events_of(response)
        assert all(chunk["object"] == "text_completion" for chunk in chunks)
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert reasons[-1] == "length"
        assert set(reasons[:-1]) <= {None}
    else:
        found = response.json()
        assert found["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}
        assert (found["object"], found["model"]) == ("text_completion", "tiny")
        text = found["choices"][0]["text"]
    assert text == written("To be", max_new_tokens=12, **options)


def test_several_prompts_and_samples(client: TestClient) -> None:
    body = {"prompt": ["To be", [60, 61]], "n": 2, "seed": 3, "max_tokens": 5}
    choices = client.post("/v1/completions", json=body).json()["choices"]
    expected = [MODEL.generate(ids, 5, tokenizer=TOKENIZER, seed=3, num_return_sequences=2)[:, len(ids[0]) :]
                for ids in ([TOKENIZER.encode("To be")], [[60, 61]])]  # fmt: skip
    assert [choice["text"] for choice in choices] == [TOKENIZER.decode(row) for rows in expected for row in rows]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]


@pytest.mark.parametrize("stream", [False, True])
def test_chat(client: TestClient, stream: bool) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}]},
    ]
    body = {"messages": messages, "temperature": 0, "max_tokens": 8, "stream": stream,
            "stream_options": {"include_usage": True} if stream else None}  # fmt: skip
    prompt = "S\n\nUser: a\nAssistant: b\nUser: c\nAssistant:"
    response = client.post("/v1/chat/completions", json=body)
    expected = written(prompt, max_new_tokens=8, temperature=0).lstrip()
    usage = {"prompt_tokens": len(prompt), "completion_tokens": 8, "total_tokens": len(prompt) + 8}
    if not stream:
        found = response.json()
        assert found["choices"][0]["message"] == {"role": "assistant", "content": expected, "refusal": None}
        assert (found["object"], found["usage"]) == ("chat.completion", usage)
        return
    first, *chunks, last = events_of(response)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == expected
    assert (last["choices"], last["usage"]) == ([], usage)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_stop(client: TestClient) -> None:
    text = written("To be", max_new_tokens=12, temperature=0)
    stop = text[4:6]
    body = {"prompt": "To be", "max_tokens": 12, "temperature": 0, "stop": ["never", stop]}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")
    chunks = events_of(client.post("/v1/completions", json={**body, "stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text[: text.index(stop)]


def test_logprobs(client: TestClient) -> None:
    body = {"prompt": "To be", "max_tokens": 6, "temperature": 0, "logprobs": 2}
    found = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    expected = MODEL.generate([TOKENIZER.encode("To be")], 6, tokenizer=TOKENIZER, temperature=0, return_details=True)
    np.testing.assert_allclose(found["token_logprobs"], expected.log_probs[0], atol=1e-5)
    assert [len(top) for top in found["top_logprobs"]] == [2] * 6
    assert [max(top.values()) for top in found["top_logprobs"]] == found["token_logprobs"]
    assert found["text_offset"] == list(range(6))
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "logprobs": True, "top_logprobs": 4}
    content = client.post("/v1/chat/completions", json=chat).json()["choices"][0]["logprobs"]["content"]
    assert [set(one) for one in content] == [{"token", "logprob", "bytes", "top_logprobs"}] * 3
    assert [len(one["top_logprobs"]) for one in content] == [4] * 3
    chunks = events_of(client.post("/v1/chat/completions", json={**chat, "stream": True, "temperature": 0}))
    assert sum(len(c["choices"][0]["logprobs"]["content"]) for c in chunks if c["choices"][0]["logprobs"]) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_going_on_from_any_token(client: TestClient, stream: bool) -> None:
    """Ids and bytes are told, so that a text can be continued from any of its tokens, and from any alternative."""
    ask = {"prompt": "To be", "max_tokens": 6, "temperature": 0, "logprobs": 2, "return_token_ids": True}
    response = client.post("/v1/completions", json={**ask, "stream": stream})
    choices = [chunk["choices"][0] for chunk in (events_of(response) if stream else [response.json()])]
    ids, text = TOKENIZER.encode("To be").tolist(), written("To be", max_new_tokens=6, temperature=0)
    assert [choice["prompt_token_ids"] for choice in choices if "prompt_token_ids" in choice] == [ids]
    content = [one for choice in choices if choice["logprobs"] for one in choice["logprobs"]["content"]]
    assert [one["id"] for one in content] == TOKENIZER.encode(text).tolist()
    assert bytes(byte for one in content for byte in one["bytes"]).decode() == text
    other = content[2]["top_logprobs"][1]
    assert other["id"] != content[2]["id"]
    on = {**ask, "prompt": [*ids, *(one["id"] for one in content[:2]), other["id"]], "return_token_ids": False}
    (choice,) = client.post("/v1/completions", json=on).json()["choices"]
    assert choice["text"] == written("To be" + text[:2] + other["token"], max_new_tokens=6, temperature=0)
    assert "content" not in choice["logprobs"]
    assert "prompt_token_ids" not in choice


def test_tokens_of_a_prompt(client: TestClient) -> None:
    body = {"prompt": "To", "max_tokens": 0, "return_token_ids": True}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    assert (choice["prompt_token_ids"], choice["text"]) == (TOKENIZER.encode("To").tolist(), "")


def test_bytes_that_are_part_of_a_character() -> None:
    engine = Engine(make(np.float32, vocab_size=256, block_size=16, n_layer=1, n_head=2, n_embd=16).eval())
    client = client_of(engine, ByteTokenizer())
    body = {"prompt": "\u4e2d", "max_tokens": 3, "logit_bias": {"228": 100}, "logprobs": 1, "return_token_ids": True}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    assert choice["prompt_token_ids"] == [0xE4, 0xB8, 0xAD]
    assert [(one["id"], one["bytes"], one["token"]) for one in choice["logprobs"]["content"]] == [
        (228, [228], "\ufffd")
    ] * 3
    engine.close()


@pytest.mark.parametrize("stream", [False, True])
def test_going_on_within_an_answer(client: TestClient, stream: bool) -> None:
    """The blank that the answer goes on with is part of it; only the one before an answer is not."""
    begun = TOKENIZER.encode("Yes")
    bias = {str(TOKENIZER.encode(" ")[0]): 100}
    ask = {"messages": [{"role": "user", "content": "a"}], "temperature": 0, "max_tokens": 4, "stream": stream}
    response = client.post("/v1/chat/completions", json={**ask, "answer_token_ids": begun.tolist()})
    expected = written("User: a\nAssistant:Yes", max_new_tokens=4, temperature=0, stop_strings=["\nUser:"])
    assert answer_of(response, stream) == expected
    for kept, blanks in (([], ""), (begun.tolist(), " " * 4)):
        body = {**ask, "answer_token_ids": kept, "logit_bias": bias}
        assert answer_of(client.post("/v1/chat/completions", json=body), stream) == blanks


def answer_of(response: Any, stream: bool) -> str:
    if not stream:
        return str(response.json()["choices"][0]["message"]["content"])
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events_of(response))


def test_bias_and_penalties(client: TestClient) -> None:
    """By the formula: what is generated counts, the prompt does not."""
    found = Penalties({1: 5.0, 0: -1.0}, 0.5, 2.0)(Rows([[1, 2, 2, 3]], new_tokens=3), np.zeros((1, 5)))
    assert found.tolist() == [[-1, 5, -0.5 * 2 - 2, -0.5 - 2, 0]]
    assert Penalties({}, 0.5, 2.0)(Rows([[1, 2]]), np.zeros((1, 3))).tolist() == [[0, 0, 0]]
    ask = {"prompt": "To be", "max_tokens": 30, "temperature": 0}
    for bias, frequency, presence in (({}, 0, 1.5), ({}, 2, 0), ({34: 100, 35: 100}, 2, -1)):
        body = {**ask, "logit_bias": bias, "frequency_penalty": frequency, "presence_penalty": presence}
        text = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        processors = [Penalties(bias, frequency, presence)]
        assert text == written("To be", max_new_tokens=30, temperature=0, logits_processor=processors)
    assert set(text) == {"A", "B"}


# What is refused ----------------------------------------------------------------------------------

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


# Busy, gone, broken -------------------------------------------------------------------------------


def test_busy_and_shutting_down(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(MODEL, places=1, waiting=1)
    client, step, gate = client_of(engine), engine._decoder.step, threading.Event()
    monkeypatch.setattr(engine._decoder, "step", lambda ids: gate.wait(30) and step(ids))
    answers = []
    ask = {"prompt": "a", "max_tokens": 4, "temperature": 0}
    threads = [threading.Thread(target=lambda: answers.append(client.post("/v1/completions", json=ask)))
               for _ in range(2)]  # fmt: skip
    for number, thread in enumerate(threads):
        thread.start()
        while (engine.running, engine.waiting) != (1, number):
            pass
    busy = client.post("/v1/completions", json=ask)
    refused(busy, 429, "try again in", None, "rate_limit_exceeded")
    assert int(busy.headers["Retry-After"]) >= 1
    gate.set()
    for thread in threads:
        thread.join()
    texts = [answer.json()["choices"][0]["text"] for answer in answers]
    assert texts == [written("a", max_new_tokens=4, temperature=0)] * 2
    engine.close()
    refused(client.post("/v1/completions", json=ask), 503, "shutting down")
    assert client.get("/health").status_code == 503


def test_an_error_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = make(np.float32, vocab_size=100, block_size=64, n_layer=1, n_head=2, n_embd=16).eval()
    broken.ln_f.weight.data[:] = np.nan
    engine = Engine(broken, places=1)
    client = client_of(engine)
    refused(client.post("/v1/completions", json={"prompt": "a"}), 500, "not finite")
    response = client.post("/v1/completions", json={"prompt": "a", "stream": True})
    assert "not finite" in json.loads(response.text.removeprefix("data: "))["error"]["message"]
    engine.close()


def test_metrics(client: TestClient) -> None:
    client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3})
    client.get("/nowhere")
    page = client.get("/metrics")
    lines = dict(line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#"))
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert int(lines['tinygpt_requests_total{path="/v1/completions",status="200"}']) >= 1
    assert int(lines['tinygpt_requests_total{path="other",status="404"}']) >= 1
    assert int(lines["tinygpt_generated_tokens_total"]) >= 3
    assert lines['tinygpt_text_seconds_bucket{le="+Inf"}'] == lines["tinygpt_text_seconds_count"]
    assert lines["tinygpt_texts_running"] == "0"


# Anything -----------------------------------------------------------------------------------------

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
