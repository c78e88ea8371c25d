"""OpenAI's own client drives the server, every endpoint, streaming included."""

from __future__ import annotations

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
        check_errors(client)
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
