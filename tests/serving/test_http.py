"""The HTTP interface without a network: answers in OpenAI's form, equal to `generate`'s."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.generation.helpers import make
from tests.serving.clients import MODEL, TOKENIZER, client_of, events_of, refused, written
from tinygpt.generation.processors import Rows
from tinygpt.serving.engine import Engine
from tinygpt.serving.penalties import Penalties
from tinygpt.tokenizers import ByteTokenizer

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


def test_what_could_have_become_a_stop_string_comes_in_the_end(engine: Engine) -> None:
    """A text that ends with the beginning of a stop string, at its limit: a stream must not lose it."""
    text, client = written("To be", temperature=0, max_new_tokens=12), client_of(engine)
    for count in (1, 3, 12):
        ask = {"prompt": "To be", "max_tokens": 12, "temperature": 0, "stop": text[-count:] + "~~~"}
        assert client.post("/v1/completions", json=ask).json()["choices"][0]["text"] == text
        events = events_of(client.post("/v1/completions", json=ask | {"stream": True}))
        assert "".join(event["choices"][0]["text"] for event in events) == text
        assert events[-1]["choices"][0]["finish_reason"] == "length"
        ask |= {"stop": text[-count:]}  # and one that does become one is never shown, not in part
        events = events_of(client.post("/v1/completions", json=ask | {"stream": True}))
        shown = "".join(event["choices"][0]["text"] for event in events)
        assert shown == text[: text.index(text[-count:])]
