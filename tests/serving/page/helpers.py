"""A server for the page, and what a reader does on it."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.generation.helpers import make
from tinygpt.data.dialogue import PRESETS
from tinygpt.serving.app import application
from tinygpt.serving.bodies import Served
from tinygpt.serving.engine import Engine
from tinygpt.serving.server import address_of, listening
from tinygpt.tokenizers import CharTokenizer

MODEL = make(np.float32, vocab_size=96, block_size=512, n_layer=1, n_head=2, n_embd=16).eval()
TOKENIZER = CharTokenizer("\n" + "".join(map(chr, range(32, 127))))
HOSTILE = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\">"
KEY = "sk-kept-in-memory"


@contextlib.contextmanager
def serving(key: str | None = None) -> Iterator[tuple[str, Engine]]:
    """The address of a server, and its engine."""
    import uvicorn

    engine, listener = Engine(MODEL, places=4), listening("127.0.0.1", 0)
    served = Served(MODEL, TOKENIZER, "tiny", PRESETS["plain"], 1, engine.most_waiting)
    config = uvicorn.Config(application(served, engine, key), http="h11", ws="none", lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield address_of(listener), engine
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        engine.close()


def written(prompt: str, count: int, **options: Any) -> str:
    """The text of `generate`, greedy."""
    ids = TOKENIZER.encode(prompt)
    found = MODEL.generate(ids[None], count, tokenizer=TOKENIZER, temperature=0, overflow="stop", **options)
    return TOKENIZER.decode(found[0, len(ids) :])


def shown(page: Any, which: int = 0) -> str:
    """The text in a result, without the pictures of line breaks."""
    return str(page.locator(".written").nth(which).text_content()).replace("⏎\n", "\n")


def choose(page: Any, name: str, value: Any) -> None:
    """A setting."""
    page.evaluate(
        """([name, value]) => {
          const input = document.getElementById("options").elements[name];
          input.value = value;
          input.dispatchEvent(new Event("input", { bubbles: true }));
        }""",
        [name, str(value)],
    )


def write(page: Any, prompt: str, tokens: int = 12) -> None:
    """Write so many tokens after a prompt, the likeliest ones, and wait for the end."""
    choose(page, "temperature", 0)
    choose(page, "max_tokens", tokens)
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Write").click()
    done(page)


def done(page: Any) -> None:
    page.get_by_role("status").filter(has_text=re.compile("tokens in .* seed")).wait_for()


def answer(page: Any, path: str, chunks: list[Any], end: str = "data: [DONE]\n\n") -> None:
    """Let a path answer with these events, instead of the server."""
    events = "".join(f"data: {json.dumps({'choices': [chunk]})}\n\n" for chunk in chunks)
    page.route(f"**/{path}", lambda route: route.fulfill(content_type="text/event-stream", body=events + end)
               if json.loads(route.request.post_data).get("stream") else route.continue_())  # fmt: skip


def token(text: bytes, number: int, *others: Any, probability: float = 0.5) -> Any:
    """A token in `logprobs`, the first of its alternatives."""
    found = {"id": number, "bytes": list(text), "token": text.decode("utf-8", "replace")}
    return found | {"logprob": float(np.log(probability)), "top_logprobs": [{**found, "logprob": -1.0}, *others]}


def chunk(text: str, tokens: list[Any], reason: str | None = None) -> Any:
    return {"index": 0, "text": text, "logprobs": {"content": tokens} if tokens else None, "finish_reason": reason}
