"""OpenAI's own client drives the server, every endpoint, streaming included."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.serving.conftest import KEY, Server

openai = pytest.importorskip("openai")


@pytest.mark.slow
def test_every_endpoint(server: Server, run: Any) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        check_models(client)
        check_completions(client, server, run)
        check_chat(client, server, run)
        check_options(client)
        check_errors(client)
    asyncio.run(check_many(server))
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def check_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"


def check_completions(client: Any, server: Server, run: Any) -> None:
    ask = {"model": "tiny", "prompt": "To be", "max_tokens": 20, "temperature": 0}
    sampled = run("sample", f"--model={server.folder}", "--prompt=To be", "--greedy", "--max-new-tokens=20").out
    found = client.completions.create(**ask, logprobs=3)
    assert "To be" + found.choices[0].text + "\n" == sampled
    assert found.usage.completion_tokens == len(found.choices[0].logprobs.tokens) == 20
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**ask, stream=True)]
    assert "".join(pieces) == found.choices[0].text
    ask = {**ask, "temperature": 1, "seed": 7, "n": 3, "top_p": 0.9, "presence_penalty": 0.5, "logit_bias": {"9": -100}}
    first, second = (client.completions.create(**ask).choices for _ in range(2))
    assert [choice.text for choice in first] == [choice.text for choice in second]
    assert len({choice.text for choice in first}) == 3

    prompt = "To be, or not to be, that is the question: " * 5  # read in four pieces
    sampled = run("sample", f"--model={server.folder}", f"--prompt={prompt}", "--greedy", "--max-new-tokens=30").out
    ask = {"model": "tiny", "prompt": prompt, "max_tokens": 30, "temperature": 0}
    for _ in range(2):  # the second time its beginning is known
        assert prompt + client.completions.create(**ask).choices[0].text + "\n" == sampled


def check_chat(client: Any, server: Server, run: Any) -> None:
    messages = [{"role": "user", "content": "To be?"}]
    ask = {"model": "tiny", "messages": messages, "max_tokens": 20, "temperature": 0}
    options = ["--template=plain", "--prompt=To be?", "--greedy", "--max-new-tokens=20"]
    sampled = run("sample", f"--model={server.folder}", *options).out
    choice = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2).choices[0]
    assert sampled.removeprefix("User: To be?\nAssistant:").strip() == choice.message.content.strip()
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + 20


def check_options(client: Any) -> None:
    """n, seed, stop, logprobs, logit_bias at both endpoints: whole, and the same in a stream."""
    options = {"model": "tiny", "n": 3, "seed": 5, "stop": ["e", "~~"], "max_tokens": 25, "logit_bias": {"9": -100}}
    prompt = {"prompt": "To be", "logprobs": 2}
    chat = {"messages": [{"role": "user", "content": "To be?"}], "logprobs": True, "top_logprobs": 2}
    ask = options | prompt
    whole = client.completions.create(**ask).choices
    assert [choice.text for choice in whole] == [choice.text for choice in client.completions.create(**ask).choices]
    assert len({choice.text for choice in whole}) == 3
    assert all("e" not in choice.text and chr(32 + 8) not in choice.text for choice in whole)
    texts, reasons, tokens = ["", "", ""], [None] * 3, [0] * 3
    for chunk in client.completions.create(**ask, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        tokens[choice.index] += len(choice.logprobs.tokens) if choice.logprobs else 0
    assert texts == [choice.text for choice in whole]
    assert reasons == [choice.finish_reason for choice in whole]
    assert tokens == [len(choice.logprobs.tokens) for choice in whole]
    ask = options | chat
    whole = client.chat.completions.create(**ask).choices
    texts, tokens = ["", "", ""], [0] * 3
    for chunk in client.chat.completions.create(**ask, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        tokens[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
    assert texts == [choice.message.content for choice in whole]
    assert tokens == [len(choice.logprobs.content) for choice in whole]
    assert len(set(texts)) == 3
    assert "e" not in "".join(texts)
    assert {choice.finish_reason for choice in whole} <= {"stop", "length"}
    forced = client.chat.completions.create(**options | {"n": 1, "stop": None, "logit_bias": {"34": 100}}, **chat)
    assert forced.choices[0].message.content == "A" * 25


async def check_many(server: Server) -> None:
    """The asynchronous client, 100 requests at once: what finds no place is told so, and gets one in the end."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        ask = {"model": "tiny", "prompt": "To be", "max_tokens": 5, "temperature": 0}
        found = await asyncio.gather(*(client.completions.create(**ask) for _ in range(100)), return_exceptions=True)
        texts = {one.choices[0].text for one in found if not isinstance(one, BaseException)}
        errors = [one for one in found if isinstance(one, BaseException)]
        assert len(texts) == 1
        assert all(isinstance(error, openai.RateLimitError) for error in errors)
        assert all(int(error.response.headers["retry-after"]) >= 1 for error in errors)
        assert (await client.with_options(max_retries=3).completions.create(**ask)).choices[0].text in texts


def check_errors(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.BadRequestError, match="maximum context length") as error:
        client.completions.create(model="tiny", prompt="a", max_tokens=5000)
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a"}], tools=[{"type": "function"}]
        )
