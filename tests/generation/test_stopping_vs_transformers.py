"""Stop strings against transformers', token for token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import (
    generate_theirs,
    load_ours,
    make_theirs,
    pad_left,
    torch,
    transformers,
)
from tinygpt.generation import GenerationConfig
from tinygpt.generation.stopping import Stopping
from tinygpt.tokenizers import BPETokenizer

StopStringCriteria = transformers.generation.StopStringCriteria


TEXT = "the cat sat on the mat; 今天天气很好, 明天也很好! naïve café, über: 🙂🙃 stop, stopped, stopper, nonstop " * 3


@pytest.fixture(scope="module")
def both_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[BPETokenizer, Any]:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = BPETokenizer.train(TEXT, vocab_size=330)
    tokenizer.save(folder)
    return tokenizer, transformers.AutoTokenizer.from_pretrained(folder)


def first_stop(criteria: Any, ids: list[int], prompt: int) -> int | None:
    """At which new token transformers stops, by asking after each."""
    table = torch.tensor([ids])
    return next((n for n in range(prompt + 1, len(ids) + 1) if criteria(table[:, :n], None).item()), None)


@pytest.mark.parametrize("seed", range(30))
def test_stop_strings_end_at_their_token(both_tokenizers: Any, seed: int) -> None:
    """Random tokens, so that characters and stop strings are cut anywhere, also between prompt and answer."""
    ours, theirs = both_tokenizers
    rng = np.random.default_rng(seed)
    text = ours.encode(TEXT)
    known = np.unique(np.concatenate([text, *(ours.encode(character) for character in "stop 今🙂")]))
    ids = np.concatenate([text[:40], rng.choice(known, 160)]).tolist()
    whole = ours.decode(np.array(ids))
    stops = []
    for _ in range(int(rng.integers(1, 4))):
        start = int(rng.integers(0, len(whole) - 6))
        stops.append(whole[start : start + int(rng.integers(1, 6))].replace("�", "s") or "s")
    prompt = int(rng.integers(1, 60))
    criteria = StopStringCriteria(theirs, stops)
    stopping = Stopping(GenerationConfig(stop_strings=stops), ours)
    held, found = stopping.begin(np.array(ids[:prompt])), None
    for n, token in enumerate(ids[prompt:], prompt + 1):
        held, reason = stopping.feed(held, token)
        if reason:
            found = n
            break
    assert found == first_stop(criteria, ids, prompt)


def test_what_stops_in_the_prompt_stops_nothing(both_tokenizers: Any) -> None:
    """But it may begin there. The end of the prompt could be that of another, longer one."""
    ours, theirs = both_tokenizers
    for stops, ends in ((["the c", "h"], True), (["the x", "h"], False), (["eat", "th"], False), (["he ca"], True)):
        ids = [*ours.encode("on the"), *(int(one) for letter in " cats" for one in ours.encode(letter))]
        prompt = len(ours.encode("on the"))
        stopping = Stopping(GenerationConfig(stop_strings=stops), ours)
        held, found = stopping.begin(np.array(ids[:prompt])), None
        for n, token in enumerate(ids[prompt:], prompt + 1):
            held, reason = stopping.feed(held, token)
            if reason and found is None:
                found = n
        assert found == first_stop(StopStringCriteria(theirs, stops), ids, prompt)
        assert (found is not None) == ends


def test_stop_strings_in_generation(both_tokenizers: Any, tmp_path: Path) -> None:
    ours, theirs = both_tokenizers
    model = make_theirs(seed=1, scale=0.25, vocab_size=ours.vocab_size, n_positions=64)
    both = load_ours(model, tmp_path), model
    ids, mask = pad_left([ours.encode(text).tolist() for text in ("the cat", "今天", "st", "naïve")], 0)
    options: dict[str, Any] = {"max_new_tokens": 30, "repetition_penalty": 1.3, "pad_token_id": 0}
    ours_alone = {"attention_mask": mask, "do_sample": False, "return_details": True}
    free = both[0].generate(ids, attention_mask=mask, do_sample=False, **options)[:, ids.shape[1] :]
    pieces = [ours.token_bytes(row[k : k + 2]) for row, k in zip(free, (3, 9, 15, 21), strict=True)]
    stops = [text for text in (piece.decode("utf-8", "ignore") for piece in pieces) if text]
    never = next(token for token in range(ours.vocab_size) if token not in free)
    for num_beams in (1, 3):
        options |= {"num_beams": num_beams, "eos_token_id": never}
        wanted = generate_theirs(model, ids, mask, stop_strings=stops, tokenizer=theirs, **options).numpy()
        found = both[0].generate(ids, stop_strings=stops, tokenizer=ours, **ours_alone, **options)
        if num_beams == 1:
            np.testing.assert_array_equal(found.sequences, wanted)
        else:  # pad_token_id=0 is none to their beam search: see above
            np.testing.assert_array_equal(found.sequences, np.where(wanted == never, 0, wanted))
        assert len(set(found.lengths)) > 1
        assert "stop_string" in found.finish_reasons
    # On purpose: without an eos token, their rows go on after a stop string until all have ended. Ours are over.
    options |= {"num_beams": 1, "eos_token_id": None}
    wanted = generate_theirs(model, ids, mask, stop_strings=stops, tokenizer=theirs, **options).numpy()
    found = both[0].generate(ids, stop_strings=stops, tokenizer=ours, **ours_alone, **options)
    padding = np.arange(wanted.shape[1]) >= ids.shape[1] + found.lengths[:, None]
    np.testing.assert_array_equal(found.sequences[~padding], wanted[~padding])
    assert not found.sequences[padding].any()
    assert wanted[padding].any()
