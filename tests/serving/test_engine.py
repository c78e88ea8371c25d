"""The engine: texts that join and leave a running batch say what they say alone; its queue, its errors, its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.generation.helpers import make, next_log_probs
from tests.ops.cases.packed import compiled
from tinygpt import GPT
from tinygpt.errors import UsageError
from tinygpt.generation import generate
from tinygpt.generation.joint_prompts import JointPrompts
from tinygpt.generation.options import GenerationConfig
from tinygpt.generation.request import prepare
from tinygpt.serving.engine import Engine, filling_holes
from tinygpt.serving.samples import Token, Wanted
from tinygpt.serving.tickets import BusyError, ClosedError
from tinygpt.tokenizers import CharTokenizer

SHAPE = {"vocab_size": 31, "block_size": 24, "n_layer": 2, "n_head": 2, "n_embd": 16}
PATIENCE = 30  # seconds, for what should take milliseconds


@pytest.fixture(scope="module")
def model() -> GPT:
    return make(np.float32, **SHAPE).eval()  # the engine and the test's thread both use it


@pytest.fixture
def engine(model: GPT) -> Iterator[Engine]:
    engine = Engine(model, places=4, waiting=8)
    yield engine
    engine.close()


def wanted(model: GPT, prompt: Any, samples: int = 1, top: int | None = None, **options: Any) -> Wanted:
    options = {"overflow": "stop", "max_new_tokens": 10, **options}
    config, processors = GenerationConfig(), options.pop("logits_processor", [])
    tokenizer = options.pop("tokenizer", None)
    return Wanted(prepare(model, [prompt], None, config, processors, tokenizer, options), samples, top)


class Client:
    """Collects what the engine tells, and waits for the ends of its texts."""

    def __init__(self, texts: int = 1, then: Callable[[int, Token], None] | None = None) -> None:
        self.tokens: list[list[Token]] = [[] for _ in range(texts)]
        self.errors: list[Exception] = []
        self.left, self.done, self.then = texts, threading.Event(), then

    def __call__(self, sample: int, what: Token | Exception) -> None:
        if isinstance(what, Exception):
            self.errors.append(what)
        else:
            self.tokens[sample].append(what)
            if self.then is not None:
                self.then(sample, what)
        if isinstance(what, Exception) or what.reason is not None:
            self.left -= 1
            if not self.left:
                self.done.set()

    def wait(self) -> Client:
        assert self.done.wait(PATIENCE)
        return self

    def ids(self, sample: int = 0) -> list[int]:
        return [token.id for token in self.tokens[sample] if token.id is not None]


def prompt_of(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SHAPE["vocab_size"], length)


def alone(model: GPT, prompt: np.ndarray, **options: Any) -> list[list[int]]:
    found = generate(model, [prompt], config=GenerationConfig(), return_details=True, overflow="stop", **options)
    return [row[len(prompt) :][:n].tolist() for row, n in zip(found.sequences, found.lengths, strict=True)]


# A text depends on its own request alone ------------------------------------------------------------

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0, "max_new_tokens": 15},
    {"seed": 1, "max_new_tokens": 3},
    {"seed": 2, "top_k": 5, "temperature": 0.7, "max_new_tokens": 9, "eos_token_id": [3, 8]},
    {"seed": 3, "top_p": 0.8, "repetition_penalty": 1.3, "max_new_tokens": 12},
    {"seed": 1, "max_new_tokens": 6, "suppress_tokens": [1, 2, 5]},
    {"seed": 4, "min_p": 0.1, "max_new_tokens": 1},
    {"seed": 5, "no_repeat_ngram_size": 1, "max_new_tokens": 14},
]


def check_neighbours(model: GPT) -> None:
    """Texts of all kinds come and go: each time one has written its third token, three more are submitted."""
    engine = Engine(model, places=4, waiting=1000)
    started = list[tuple[np.ndarray, dict[str, Any], Client]]()
    everything = threading.Event()

    def start(number: int) -> None:
        prompt, options = prompt_of(number, 1 + number * 5 % 9), SETTINGS[number % len(SETTINGS)]

        def more(_: int, token: Token) -> None:
            if len(client.tokens[0]) == min(3, options["max_new_tokens"]) and len(started) < 40:
                for _ in range(3):
                    start(len(started))
            if token.reason is not None and all(other.left == (other is client) for *_, other in started):
                everything.set()

        client = Client(then=more)
        started.append((prompt, options, client))
        engine.submit([wanted(model, prompt, **options)], client)

    start(0)
    assert everything.wait(PATIENCE)
    engine.close()
    assert len(started) >= 40
    assert engine.statistics.steps < sum(len(client.tokens[0]) for *_, client in started) / 2  # they shared steps
    for prompt, options, client in started:
        assert [client.ids()] == alone(model, prompt, **options), options


@pytest.mark.slow
def test_neighbours(model: GPT) -> None:
    check_neighbours(model)


@pytest.mark.slow
def test_neighbours_in_a_model_with_a_layer_of_a_users_own() -> None:
    """Without a cache: see `Stepper`."""
    model = make(np.float32, **SHAPE).eval()

    class Own(type(model.h[0].mlp)):  # type: ignore[misc]
        positionwise = False

        def forward(self, h: Any) -> Any:
            return super().forward(h) * 1.0

    model.h[0].mlp.__class__ = Own
    check_neighbours(model)


@compiled
@pytest.mark.parametrize("form", [None, ("bfloat16",), ("int8",)])
def test_log_probabilities_to_the_last_bit(form: Any) -> None:
    """Texts beside others of any length have the very same probabilities as alone."""
    model = make(np.float32, **SHAPE).eval()
    model = model if form is None else model.pack(*form)
    engine = Engine(model, places=5, waiting=50)
    clients = []
    for number in range(14):
        client = Client()
        clients.append((prompt_of(number, 1 + number % 7), {"seed": number, "max_new_tokens": 4 + number % 9}, client))
        engine.submit([wanted(model, clients[-1][0], top=2, **clients[-1][1])], client)
    for prompt, options, client in clients:
        expected = generate(model, [prompt], return_details=True, **options)
        assert client.wait().ids() == expected.sequences[0, len(prompt) :].tolist()
        assert [token.log_prob for token in client.tokens[0]] == expected.log_probs[0].tolist()
    engine.close()


def test_samples_of_one_prompt(model: GPT, engine: Engine) -> None:
    """More of them than places: sample i is row i of `generate`; the prompts are submitted together."""
    prompts, client = [prompt_of(0, 5), prompt_of(1, 2)], Client(8)
    engine.submit([wanted(model, prompt, samples=4, seed=9) for prompt in prompts], client)
    found = [client.wait().ids(sample) for sample in range(8)]
    expected = [alone(model, prompt, num_return_sequences=4, seed=9, max_new_tokens=10) for prompt in prompts]
    assert found == expected[0] + expected[1]
    assert len({tuple(ids) for ids in found}) == 8


def test_the_likeliest_tokens(model: GPT, engine: Engine) -> None:
    """Of the model, before temperature and processors, and only those that can be chosen."""
    client, prompt = Client(), prompt_of(2, 4)
    engine.submit([wanted(model, prompt, top=3, temperature=0, suppress_tokens=[0], vocab_size=20)], client)
    ids = list(prompt)
    for token in client.wait().tokens[0]:
        log_probs = next_log_probs(model, ids)
        best = np.argsort(-log_probs[:20])[:3]
        assert token.top is not None
        assert [i for i, _ in token.top] == best.tolist()
        np.testing.assert_allclose([p for _, p in token.top], log_probs[best], atol=1e-5)
        assert token.log_prob == pytest.approx(log_probs[token.id], abs=1e-5)
        ids.append(token.id)


def test_how_texts_end(model: GPT, engine: Engine) -> None:
    tokenizer = CharTokenizer("".join(map(chr, range(97, 128))))
    prompt = prompt_of(3, 4)
    fixed = {"temperature": 0, "no_repeat_ngram_size": 1}  # no token comes twice
    (usual,) = alone(model, prompt, max_new_tokens=10, **fixed)
    stop = tokenizer.decode(usual[2:4])

    def forbid(rows: Any, logits: np.ndarray) -> np.ndarray:
        return logits if rows.new_tokens < 2 else np.full_like(logits, -np.inf)

    cases: list[tuple[str, dict[str, Any], int]] = [
        ("length", {}, 10),
        ("eos", {"eos_token_id": usual[1]}, 2),
        ("stop_string", {"stop_strings": stop, "tokenizer": tokenizer}, 4),
        ("block", {"max_new_tokens": 100}, 20),
        ("dead_end", {"logits_processor": [forbid]}, 2),
        ("length", {"max_new_tokens": 0}, 0),
    ]
    for reason, options, count in cases:
        client = Client()
        engine.submit([wanted(model, prompt, **fixed, **options)], client)
        assert (client.wait().tokens[0][-1].reason, len(client.ids())) == (reason, count), options


# The queue ------------------------------------------------------------------------------------------


class Gate:
    """Stops the engine in the callback of a first text, so that the queue fills behind it."""

    def __init__(self, engine: Engine, model: GPT) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.client = Client(then=self._stop)
        self.ticket = engine.submit([wanted(model, prompt_of(7, 3), temperature=0)], self.client)
        assert self.reached.wait(PATIENCE)

    def _stop(self, *_: Any) -> None:
        self.reached.set()
        assert self.open.wait(PATIENCE)


def test_the_queue_is_bounded(model: GPT, engine: Engine) -> None:
    gate, clients = Gate(engine, model), [Client() for _ in range(8)]
    tickets = [engine.submit([wanted(model, prompt_of(8, 2))], client) for client in clients]
    assert (engine.running, engine.waiting) == (1, 8)
    with pytest.raises(BusyError, match=r"its queue is full: try again in \d+ s") as busy:
        engine.submit([wanted(model, prompt_of(8, 2))], Client())
    assert 1 <= busy.value.seconds <= 60
    tickets[3].cancel()  # frees its place in the queue at once
    late = Client()
    engine.submit([wanted(model, prompt_of(8, 2))], late)
    gate.open.set()
    for client in [*clients[:3], *clients[4:], late]:
        assert len(client.wait().ids()) == 10
    assert not clients[3].tokens[0]


def test_all_or_none(model: GPT, engine: Engine) -> None:
    gate = Gate(engine, model)
    engine.submit([wanted(model, prompt_of(8, 2), samples=5)], Client(5))
    with pytest.raises(BusyError):
        engine.submit([wanted(model, prompt_of(8, 2), samples=2)] * 2, Client(4))
    assert engine.waiting == 5
    with pytest.raises(UsageError, match="at most 8 texts, not 9"):
        engine.submit([wanted(model, prompt_of(8, 2), samples=9)], Client(9))
    gate.open.set()


def test_a_cancelled_text_frees_its_place(model: GPT, engine: Engine) -> None:
    """Four texts of a client that goes away, in all places; the one that waits gets one."""
    gate = threading.Event()
    leaving = Client(4, then=lambda *_: gate.wait(PATIENCE))
    ticket = engine.submit([wanted(model, prompt_of(0, 2), samples=4, max_new_tokens=20)], leaving)
    client = Client()
    engine.submit([wanted(model, prompt_of(1, 3), temperature=0, max_new_tokens=5)], client)
    ticket.cancel()
    ticket.cancel()
    gate.set()
    assert [client.wait().ids()] == alone(model, prompt_of(1, 3), temperature=0, max_new_tokens=5)
    assert all(len(tokens) <= 1 for tokens in leaving.tokens)


def test_a_client_that_fails_is_cancelled(model: GPT, engine: Engine) -> None:
    def fails(sample: int, what: Any) -> None:
        calls.append(what)
        raise RuntimeError("the loop is closed")

    calls, client = list[Any](), Client()
    engine.submit([wanted(model, prompt_of(0, 2), samples=3)], fails)
    engine.submit([wanted(model, prompt_of(0, 2))], client)
    assert len(client.wait().ids()) == 10
    assert len(calls) == 1


# Errors, and the end --------------------------------------------------------------------------------


def test_an_error_of_the_model_ends_what_runs_and_no_more(
    model: GPT, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate, waits = Gate(engine, model), Client()
    step = type(engine._decoder).step

    def fails_once(decoder: Any, ids: Any) -> Any:
        monkeypatch.setattr(type(engine._decoder), "step", step)
        raise MemoryError("no memory")

    monkeypatch.setattr(type(engine._decoder), "step", fails_once)
    gate.open.set()
    assert isinstance(gate.client.wait().errors[0], MemoryError)
    engine.submit([wanted(model, prompt_of(1, 3), temperature=0)], waits)
    assert [waits.wait().ids()] == alone(model, prompt_of(1, 3), temperature=0, max_new_tokens=10)
    assert "the engine failed in a step" in caplog.text


def test_an_error_in_a_prompt_leaves_the_others(
    model: GPT, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate, bad = Gate(engine, model), Client(2)

    def fails(*_: Any) -> Any:
        raise MemoryError("no memory")

    engine.submit([wanted(model, prompt_of(1, 3), samples=2)], bad)
    with monkeypatch.context() as patched:
        patched.setattr(JointPrompts, "__call__", fails)
        gate.open.set()
        assert len(bad.wait().errors) == 2
    assert [gate.client.wait().ids()] == alone(model, prompt_of(7, 3), temperature=0, max_new_tokens=10)


def test_a_model_that_has_diverged(engine: Engine) -> None:
    broken = make(np.float32, **SHAPE)
    broken.ln_f.weight.data[:] = np.nan
    own, client = Engine(broken, places=2), Client()
    own.submit([wanted(broken, prompt_of(1, 3))], client)
    assert "not finite" in str(client.wait().errors[0])
    own.close()


def test_closing_finishes_what_was_accepted(model: GPT) -> None:
    engine = Engine(model, places=2)
    gate, clients = Gate(engine, model), [Client() for _ in range(5)]
    for client in clients:
        engine.submit([wanted(model, prompt_of(1, 3))], client)
    closing = threading.Thread(target=engine.close)
    closing.start()
    while engine.alive:
        time.sleep(0.001)
    with pytest.raises(ClosedError, match="shutting down"):
        engine.submit([wanted(model, prompt_of(1, 3))], Client())
    gate.open.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert all(client.done.is_set() and len(client.ids()) == 10 for client in clients)


def test_what_does_not_fit_is_refused(model: GPT) -> None:
    with pytest.raises(UsageError, match="a prompt of 20 tokens and 10 new ones don't fit"):
        wanted(model, prompt_of(1, 20), overflow="slide")
    with pytest.raises(UsageError, match="num_return_sequences=1"):
        wanted(model, prompt_of(1, 2), num_return_sequences=2)


@pytest.mark.parametrize(
    ("kept", "order"),
    [([True, False, True, True], [0, 3, 2]), ([False, False], []), ([False, True, True, False, True], [4, 1, 2]),
     ([True, True, False], [0, 1])],
)  # fmt: skip
def test_few_rows_move(kept: list[bool], order: list[int]) -> None:
    assert filling_holes(kept) == order
