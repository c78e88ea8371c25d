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
from tinygpt.generation.joint_prompts import JointPrompts
from tinygpt.serving import reading
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


Events = list[tuple[str, int]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """What the engine's thread does: ("pass", prompts), ("read", tokens) for each of them, ("step", rows)."""
    events, read, step = Events(), reading.read_together, Decoder.step

    def reads(pieces: Any) -> None:
        events.append(("pass", len(pieces)))
        events.extend(("read", min(count, reader.rest)) for reader, count in pieces)
        read(pieces)

    def steps(decoder: Decoder, ids: Any) -> Any:
        events.append(("step", len(ids)))
        return step(decoder, ids)

    monkeypatch.setattr(reading, "read_together", reads)
    monkeypatch.setattr(Decoder, "step", steps)
    return events


def reads_of(events: Events) -> list[int]:
    return [size for kind, size in events if kind == "read"]


# Long prompts ---------------------------------------------------------------------------------------


def joined_by_a_long_prompt_and_six_short_ones(samples: int) -> None:
    """While `samples` texts are written."""
    engine = Engine(MODEL, places=20, waiting=20, piece=PIECE)
    long, short = Client(), [Client() for _ in range(6)]

    def join(number: int, token: Any) -> None:
        if number == 0 and len(first.tokens[0]) == 3:
            with engine._changed:  # all at once, before the engine looks
                engine.submit([wanted(MODEL, prompt_of(1, 100))], long)
                for number, client in enumerate(short):
                    engine.submit([wanted(MODEL, prompt_of(number, 3))], client)

    first = Client(samples, then=join)
    engine.submit([wanted(MODEL, prompt_of(2, 5), samples, max_new_tokens=60)], first)
    for client in [first, long, *short]:
        client.wait()
    engine.close()
    assert len(first.ids()) == 60


def tokens_between_steps(events: Events) -> list[int]:
    between = [0]
    for kind, size in events:
        if kind == "step":
            between.append(0)
        elif kind == "read":
            between[-1] += size
    return between


def test_others_keep_their_pace(events: Events) -> None:
    """While a prompt of 100 tokens and six short ones are read, no two steps are further apart than a piece."""
    joined_by_a_long_prompt_and_six_short_ones(samples=8)
    between = tokens_between_steps(events)
    assert max(between) <= PIECE
    assert reads_of(events) == [5, *[8] * 12, 4, *[3] * 6]
    assert between[2:19] == [*[8] * 12, 4 + 3, 3 + 3, 3 + 3, 3, 0]


def test_few_wait_for_many(events: Events) -> None:
    """One text is written, and seven prompts come: as much as four pieces is read at once, in one pass."""
    joined_by_a_long_prompt_and_six_short_ones(samples=1)
    between = tokens_between_steps(events)
    assert between[2:16] == [8 + 6 * 3, *[8] * 11, 4, 0]
    assert ("pass", 7) in events


def test_a_pass_is_bounded(events: Events) -> None:
    """Nobody is written to, and nine prompts of a piece wait."""
    engine, clients = Engine(MODEL, places=9, piece=PIECE), [Client() for _ in range(9)]
    with engine._changed:
        for number, client in enumerate(clients):
            engine.submit([wanted(MODEL, prompt_of(number, PIECE), max_new_tokens=30)], client)
    for client in clients:
        client.wait()
    engine.close()
    assert tokens_between_steps(events)[:5] == [4 * PIECE, 4 * PIECE, PIECE, 0, 0]


def test_a_beginning_that_is_being_read_is_waited_for(events: Events) -> None:
    """Three prompts come together, which have two pieces in common: these are read once."""
    engine, clients = Engine(MODEL, places=9, piece=PIECE), [Client() for _ in range(3)]
    prompts = [prompt_of(number, 20 + number, shared=17) for number in range(1, 4)]
    with engine._changed:
        for prompt, client in zip(prompts, clients, strict=True):
            engine.submit([wanted(MODEL, prompt, seed=1)], client)
    found = [client.wait().ids() for client in clients]
    engine.close()
    assert reads_of(events) == [8, 8, 5, 6, 7]
    assert [size for kind, size in events if kind == "pass"] == [1, 1, 3]
    plain = Engine(MODEL, piece=PIECE, prefix_bytes=0)
    for prompt, ids in zip(prompts, found, strict=True):
        client = Client()
        plain.submit([wanted(MODEL, prompt, seed=1)], client)
        assert client.wait().ids() == ids
    plain.close()


def test_a_client_that_leaves_while_its_prompt_is_read(events: Events) -> None:
    engine = Engine(MODEL, places=1, piece=PIECE)
    client, other = Client(), Client()
    reached, left = threading.Event(), threading.Event()
    read = reading.read_together

    def leaves(pieces: Any) -> None:
        if pieces[0][0].length == 24:
            reached.set()
            assert left.wait(PATIENCE)
        read(pieces)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reading, "read_together", leaves)
        ticket = engine.submit([wanted(MODEL, prompt_of(1, 100))], client)
        engine.submit([wanted(MODEL, prompt_of(2, 5), max_new_tokens=3)], other)
        assert reached.wait(PATIENCE)
        assert (engine.running, engine.waiting) == (1, 1)
        ticket.cancel()
        left.set()
        assert len(other.wait().ids()) == 3
    engine.close()
    assert not client.tokens[0]
    assert reads_of(events) == [8, 8, 8, 8, 5]


def test_an_error_while_a_prompt_is_read(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It ends the texts of that prompt alone, and frees their places; those that are read with it go on."""
    read = JointPrompts.__call__

    def fails(joint: JointPrompts, prompts: Any, caches: Any) -> Any:
        failing = [cache[0].keys.shape[2] == 50 and cache[0].lengths[0] == 16 for cache in caches]
        if any(failing):
            sizes.append(len(prompts))
            raise MemoryError("no memory")
        return read(joint, prompts, caches)

    monkeypatch.setattr(JointPrompts, "__call__", fails)
    engine, sizes = Engine(MODEL, places=3, piece=PIECE), list[int]()
    bad, good = Client(2), Client()
    with engine._changed:
        engine.submit([wanted(MODEL, prompt_of(1, 50), samples=2)], bad)
        engine.submit([wanted(MODEL, prompt_of(2, 30), samples=1)], good)
    assert [type(error) for error in bad.wait().errors] == [MemoryError] * 2
    assert len(good.wait().ids()) == 10
    assert (engine.running, engine.waiting) == (0, 0)
    engine.close()
    assert "the engine failed to read a prompt" in caplog.text
    assert sizes == [2, 1]  # together, and then each by itself


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


def test_a_beginning_is_read_once(events: Events) -> None:
    """And no bit of the texts differs from those of an engine that keeps nothing."""
    engine, plain = Engine(MODEL, piece=PIECE), Engine(MODEL, piece=PIECE, prefix_bytes=0)
    found = answers(engine, PROMPTS)
    assert reads_of(events) == [8, 8, 8, 8, 8, 8, 8, 8, 1, 8, 1, 8, 8, 4, 8]
    assert engine.statistics.known_tokens == 0 + 24 + 24 + 16 + 24 + 0 + 32
    assert found == answers(plain, PROMPTS)
    assert plain.statistics.known_tokens == plain.prefixes.bytes == 0
    assert engine.prefixes.bytes == SPAN * (5 + 2 + 1 + 2)
    engine.close()
    plain.close()


def test_samples_of_a_prompt_that_is_known(events: Events) -> None:
    engine = Engine(MODEL, places=2, piece=PIECE)
    client = Client(6)
    engine.submit([wanted(MODEL, prompt_of(1, 40), samples=6, seed=1)], client)
    assert len({tuple(client.wait().ids(i)) for i in range(6)}) == 6
    engine.close()
    assert reads_of(events) == [8] * 5 + [8] * 2  # the rest joins in two more turns


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
