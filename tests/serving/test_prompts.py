"""Prompts of the engine: long ones in pieces, so that others keep their pace; beginnings that are shared, to the last
bit; and texts beside random neighbours that come and go.
"""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest

from tests.generation.helpers import make
from tests.ops.cases.packed import compiled
from tests.serving.test_engine import PATIENCE, Client, wanted
from tinygpt.generation.decoder import Decoder
from tinygpt.generation.prompt_reader import PromptReader
from tinygpt.serving.engine import Engine
from tinygpt.serving.prefixes import Prefixes

SHAPE = {"vocab_size": 31, "block_size": 128, "n_layer": 2, "n_head": 2, "n_embd": 16}
PIECE = 8
MODEL = make(np.float32, **SHAPE).eval()
SPAN = 4 * PIECE * 2 * SHAPE["n_layer"] * SHAPE["n_embd"]  # bytes of a piece


def prompt_of(seed: int, length: int, shared: int = 0) -> np.ndarray:
    """Ids that are those of seed 0 up to `shared`."""
    prompt = np.random.default_rng(seed).integers(0, 31, length)
    prompt[:shared] = np.random.default_rng(0).integers(0, 31, 128)[: min(shared, length)]
    return prompt


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the engine's thread does: ("read", tokens) of a prompt, ("step", rows)."""
    events, read, step = list[tuple[str, int]](), PromptReader.read, Decoder.step

    def reads(reader: PromptReader, count: int) -> None:
        if count:
            events.append(("read", count))
        read(reader, count)

    def steps(decoder: Decoder, ids: Any) -> Any:
        events.append(("step", len(ids)))
        return step(decoder, ids)

    monkeypatch.setattr(PromptReader, "read", reads)
    monkeypatch.setattr(Decoder, "step", steps)
    return events


# Long prompts ---------------------------------------------------------------------------------------


def test_others_keep_their_pace(events: list[tuple[str, int]]) -> None:
    """While a prompt of 100 tokens and six short ones are read, no two steps are further apart than a piece."""
    engine = Engine(MODEL, places=9, waiting=20, piece=PIECE)
    long, short = Client(), [Client() for _ in range(6)]

    def join(_: int, token: Any) -> None:
        if len(first.tokens[0]) == 3:
            engine.submit([wanted(MODEL, prompt_of(1, 100))], long)
            for number, client in enumerate(short):
                engine.submit([wanted(MODEL, prompt_of(number, 3))], client)

    first = Client(then=join)
    engine.submit([wanted(MODEL, prompt_of(2, 5), max_new_tokens=60)], first)
    for client in [first, long, *short]:
        client.wait()
    engine.close()
    between, reads = [0], list[int]()
    for kind, size in events:
        if kind == "step":
            between.append(0)
        else:
            between[-1] += size
            reads.append(size)
    assert max(between) <= PIECE
    assert reads == [5, *[8] * 12, 4, *[3] * 6]
    assert between[2:19] == [*[8] * 12, 4 + 3, 3 + 3, 3 + 3, 3, 0]
    assert len(first.ids()) == 60


def test_a_client_that_leaves_while_its_prompt_is_read(events: list[tuple[str, int]]) -> None:
    engine = Engine(MODEL, places=1, piece=PIECE)
    client, other = Client(), Client()
    reached, left = threading.Event(), threading.Event()
    read = PromptReader.read

    def leaves(reader: PromptReader, count: int) -> None:
        if reader.length == 24:
            reached.set()
            assert left.wait(PATIENCE)
        read(reader, count)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PromptReader, "read", leaves)
        ticket = engine.submit([wanted(MODEL, prompt_of(1, 100))], client)
        engine.submit([wanted(MODEL, prompt_of(2, 5), max_new_tokens=3)], other)
        assert reached.wait(PATIENCE)
        assert (engine.running, engine.waiting) == (1, 1)
        ticket.cancel()
        left.set()
        assert len(other.wait().ids()) == 3
    engine.close()
    assert not client.tokens[0]
    assert [size for kind, size in events if kind == "read"] == [8, 8, 8, 8, 5]


def test_an_error_while_a_prompt_is_read(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It ends the texts of that prompt alone, and frees their places."""
    read = PromptReader.read

    def fails(reader: PromptReader, count: int) -> None:
        if reader.size == 50 and reader.length == 16:
            raise MemoryError("no memory")
        read(reader, count)

    monkeypatch.setattr(PromptReader, "read", fails)
    engine = Engine(MODEL, places=3, piece=PIECE)
    bad, good = Client(2), Client()
    engine.submit([wanted(MODEL, prompt_of(1, 50), samples=2)], bad)
    engine.submit([wanted(MODEL, prompt_of(2, 30), samples=1)], good)
    assert [type(error) for error in bad.wait().errors] == [MemoryError] * 2
    assert len(good.wait().ids()) == 10
    assert (engine.running, engine.waiting) == (0, 0)
    engine.close()
    assert "the engine failed to read a prompt" in caplog.text


# Beginnings that are shared -------------------------------------------------------------------------


def answers(engine: Engine, prompts: list[np.ndarray]) -> list[tuple[list[int], list[Any]]]:
    """One after the other: ids and log-probabilities."""
    found = []
    for number, prompt in enumerate(prompts):
        client = Client()
        engine.submit([wanted(MODEL, prompt, top=2, seed=number)], client)
        client.wait()
        found.append((client.ids(), [token.log_prob for token in client.tokens[0]]))
    return found


PROMPTS = [prompt_of(1, 40, 30), prompt_of(2, 40, 30), prompt_of(3, 33, 33), prompt_of(4, 24, 24), prompt_of(5, 25, 24),
           prompt_of(6, 20), prompt_of(1, 40, 30)]  # fmt: skip


def test_a_beginning_is_read_once(events: list[tuple[str, int]]) -> None:
    """And no bit of the texts differs from those of an engine that keeps nothing."""
    engine, plain = Engine(MODEL, piece=PIECE), Engine(MODEL, piece=PIECE, prefix_bytes=0)
    found = answers(engine, PROMPTS)
    assert [size for kind, size in events if kind == "read"] == [8, 8, 8, 8, 8, 8, 8, 8, 1, 8, 1, 8, 8, 4, 8]
    assert engine.statistics.known_tokens == 0 + 24 + 24 + 16 + 24 + 0 + 32
    assert found == answers(plain, PROMPTS)
    assert plain.statistics.known_tokens == plain.prefixes.bytes == 0
    assert engine.prefixes.bytes == SPAN * (5 + 2 + 1 + 2)
    engine.close()
    plain.close()


def test_samples_of_a_prompt_that_is_known(events: list[tuple[str, int]]) -> None:
    engine = Engine(MODEL, places=2, piece=PIECE)
    client = Client(6)
    engine.submit([wanted(MODEL, prompt_of(1, 40), samples=6, seed=1)], client)
    assert len({tuple(client.wait().ids(i)) for i in range(6)}) == 6
    engine.close()
    assert [size for kind, size in events if kind == "read"] == [8] * 5 + [8] * 2  # the rest joins in two more turns


def test_memory_is_bounded_and_the_oldest_goes() -> None:
    decoder, prefixes = Decoder(MODEL), Prefixes(PIECE, 4 * SPAN + 1)

    def known(prompt: np.ndarray) -> int:
        reader = decoder.reader(prompt)
        found = prefixes.put_into(reader, prompt)
        while reader.rest:
            reader.read(PIECE - reader.length % PIECE)
            prefixes.keep(reader, prompt)
        assert prefixes.bytes <= 4 * SPAN
        return found

    a, b, c = prompt_of(1, 17), prompt_of(2, 17), prompt_of(3, 9)
    assert [known(a), known(b), known(a)] == [0, 0, 16]
    assert known(c) == 0  # b's second piece goes
    assert [known(a), known(c)] == [16, 8]
    assert known(b) == 8  # a's second piece goes, for b's
    assert [known(b), known(c), known(a)] == [16, 8, 8]
    assert known(prompt_of(4, 100)) == 0
    assert known(prompt_of(4, 100)) == 32  # as much as fits, from the beginning on
    assert Prefixes(PIECE, SPAN - 1).put_into(decoder.reader(a), a) == 0


def test_other_tokens_before_a_piece_are_another_beginning() -> None:
    decoder, prefixes = Decoder(MODEL), Prefixes(PIECE, 1 << 20)
    first, second = prompt_of(1, 17), prompt_of(2, 17)
    second[8:] = first[8:]
    reader = decoder.reader(first)
    for _ in range(2):
        reader.read(PIECE)
        prefixes.keep(reader, first)
    assert prefixes.put_into(decoder.reader(second), second) == 0
    second[:8] = first[:8]
    assert prefixes.put_into(decoder.reader(second), second) == 16


# Neighbours -----------------------------------------------------------------------------------------


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_random_neighbours(seed: int) -> None:
    """What a text says beside others, to the last bit, is what it says alone.

    These others come, go away in the middle, share its beginning, and push that out of the cache.
    """
    draw = random.Random(seed)
    engine = Engine(MODEL, places=draw.randint(2, 5), waiting=500, piece=PIECE, prefix_bytes=6 * SPAN)
    requests = []
    for number in range(12):
        prompt = prompt_of(number, draw.randint(1, 60), shared=draw.choice([0, 0, 20, 60]))
        options = {"seed": number, "max_new_tokens": draw.randint(1, 20), "temperature": draw.choice([0, 0.7, 1])}
        requests.append((prompt, options, Client()))

    def neighbour(*_: Any) -> None:
        if draw.random() < 0.3:
            prompt = prompt_of(draw.randint(0, 99), draw.randint(1, 60), draw.choice([0, 60]))
            other = wanted(MODEL, prompt, samples=draw.randint(1, 3), seed=draw.randint(0, 99))
            joined.append(engine.submit([other], lambda *_: None))
            leaving.append(joined[-1])
        if leaving and draw.random() < 0.3:
            leaving.pop(draw.randrange(len(leaving))).cancel()

    leaving, joined = list[Any](), list[Any]()
    for prompt, options, client in requests:
        client.then = neighbour
        engine.submit([wanted(MODEL, prompt, top=1, **options)], client)
    for *_, client in requests:
        client.wait()
    engine.close()
    assert len(joined) > 10
    assert len(leaving) < len(joined)
    for prompt, options, client in requests:
        engine, alone = Engine(MODEL, piece=PIECE, prefix_bytes=0), Client()
        engine.submit([wanted(MODEL, prompt, top=1, **options)], alone)
        assert alone.wait().tokens == client.tokens
        engine.close()


def test_equal_to_generate_up_to_rounding() -> None:
    """Greedy texts after prompts of several pieces."""
    engine = Engine(MODEL, piece=PIECE)
    for number in range(5):
        prompt, client = prompt_of(number, 50 + number), Client()
        engine.submit([wanted(MODEL, prompt, temperature=0, max_new_tokens=20, top=0)], client)
        expected = MODEL.generate(prompt[None], 20, temperature=0, return_details=True)
        assert client.wait().ids() == expected.sequences[0, len(prompt) :].tolist()
        np.testing.assert_allclose([token.log_prob for token in client.tokens[0]], expected.log_probs[0], atol=1e-5)
    engine.close()
