"""Greedy and beam search against transformers' generate, token for token; stop strings; generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import (
    generate_theirs,
    load_ours,
    load_theirs,
    make_ours,
    make_theirs,
    pad_left,
    torch,
    transformers,
)
from tinygpt import GPT
from tinygpt.generation import GenerationConfig, config_from_dict, read_config_file, write_config_file
from tinygpt.generation.stopping import Stopping
from tinygpt.tokenizers import BPETokenizer

StopStringCriteria = transformers.generation.StopStringCriteria

V, BLOCK = 31, 48
rng = np.random.default_rng(0)
ROWS = [rng.integers(0, V, length).tolist() for length in (5, 1, 9, 3)]
EQUAL = rng.integers(0, V, (4, 5))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Any]:
    """(ours, transformers'): one model."""
    model = make_theirs(seed=5, scale=0.25, vocab_size=V, n_positions=BLOCK)
    return load_ours(model, tmp_path_factory.mktemp("model")), model


def check(pair: Any, rows: Any, padding: int = 30, **options: Any) -> np.ndarray:
    """Both generate, and the tables are equal. Rows of different length are padded on the left."""
    ids, mask = pad_left([list(row) for row in rows], padding)
    options |= {"pad_token_id": padding}
    wanted = generate_theirs(pair[1], ids, mask, **options).numpy()
    found = pair[0].generate(ids, attention_mask=mask, do_sample=False, **options)
    np.testing.assert_array_equal(found, wanted)
    return found[:, ids.shape[1] :]


# Greedy -----------------------------------------------------------------------------------------------

GREEDY: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.8},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1},
    {"suppress_tokens": [0, 3, 17], "begin_suppress_tokens": [5, 11]},
    {"bad_words_ids": [[4], [7, 7], [9, 1, 2]], "repetition_penalty": 1.2},
    {"begin_suppress_tokens": [2, 5, 8, 11]},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 6, "eos_token_id": 12},
]


@pytest.mark.parametrize("options", GREEDY, ids=str)
def test_greedy(pair: Any, options: dict[str, Any]) -> None:
    check(pair, EQUAL, max_new_tokens=25, **options)
    check(pair, EQUAL[:, :1], max_new_tokens=25, **options)
    check(pair, EQUAL[:1], max_length=30, **options)


@pytest.mark.parametrize("options", GREEDY[:3], ids=str)
def test_greedy_with_padding_on_the_left(pair: Any, options: dict[str, Any]) -> None:
    check(pair, ROWS, max_new_tokens=25, **options)


def ends(pair: Any, rows: Any, count: int) -> list[int]:
    """Ids that greedy choice comes to, at different times in different rows."""
    new = check(pair, rows, max_new_tokens=20, repetition_penalty=1.4)
    times = {token: {int(row.tolist().index(token)) for row in new if token in row} for token in range(V)}
    return sorted(times, key=lambda token: -len(times[token]))[:count]


@pytest.mark.parametrize("rows", [ROWS, EQUAL.tolist()], ids=["padded", "equal"])
@pytest.mark.parametrize("count", [1, 2])
def test_rows_that_end_at_different_times(pair: Any, rows: Any, count: int) -> None:
    eos = ends(pair, rows, count)
    for options in ({}, {"min_new_tokens": 4}, {"min_new_tokens": 20}):
        new = check(pair, rows, max_new_tokens=20, repetition_penalty=1.4, eos_token_id=eos, **options)
        if not options:
            lengths = (new == eos[0]).argmax(axis=1)
            assert len(set(lengths)) > 1, "the rows were meant to end at different times"
    check(pair, EQUAL, max_length=24, min_length=12, repetition_penalty=1.4, eos_token_id=eos)
    for least in (1, 6):  # new tokens win over lengths, on both sides
        check(
            pair, EQUAL, max_new_tokens=15, max_length=17, min_new_tokens=least, min_length=16, eos_token_id=eos,
            repetition_penalty=1.4,
        )  # fmt: skip


def test_our_files_generate_the_same(tmp_path: Path) -> None:
    for bias in (True, False):
        ours = make_ours(seed=2, scale=0.3, bias=bias)
        ours.save_pretrained(tmp_path / str(bias))
        check((ours, load_theirs(tmp_path / str(bias))), [row[:4] for row in ROWS], max_new_tokens=15)


# Beams ------------------------------------------------------------------------------------------------


def check_beams(pair: Any, rows: Any, num_beams: int, padding: int = 30, **options: Any) -> None:
    ids, mask = pad_left([list(row) for row in rows], padding)
    settings = {"num_beams": num_beams, "num_return_sequences": num_beams, "pad_token_id": padding} | options
    wanted = generate_theirs(pair[1], ids, mask, return_dict_in_generate=True, output_scores=True, **settings)
    found = pair[0].generate(ids, attention_mask=mask, do_sample=False, return_details=True, **settings)
    np.testing.assert_array_equal(found.sequences, wanted.sequences.numpy())
    np.testing.assert_allclose(found.scores, wanted.sequences_scores.numpy(), rtol=1e-4, atol=1e-4)


PENALTIES = (-1.0, -0.2, 0.0, 0.6, 1.0, 2.0)
ROWS_END, EQUAL_END = [26, 11, 5], [8, 5]  # ids that beams of these rows come to, early and late


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("num_beams", [2, 3, 4, 5])
def test_beams(pair: Any, num_beams: int, early_stopping: bool | str) -> None:
    for length_penalty in PENALTIES:
        options: dict[str, Any] = {"length_penalty": length_penalty, "early_stopping": early_stopping}
        check_beams(pair, ROWS, num_beams, max_new_tokens=10, eos_token_id=ROWS_END, **options)
        check_beams(pair, EQUAL, num_beams, max_length=15, eos_token_id=EQUAL_END, **options)


@pytest.mark.parametrize(("rows", "eos"), [(ROWS, ROWS_END), (EQUAL.tolist(), EQUAL_END)], ids=["padded", "equal"])
def test_in_these_beams_the_options_matter(pair: Any, rows: Any, eos: list[int]) -> None:
    """Without that the test above would see nothing: hypotheses of many lengths, other outcomes for other options."""
    ids, mask = pad_left(rows, 30)
    outcomes, lengths = {}, set()
    for penalty in PENALTIES:
        for early_stopping in (False, True, "never"):
            found = pair[0].generate(
                ids, attention_mask=mask, do_sample=False, num_beams=4, num_return_sequences=4, max_new_tokens=10,
                pad_token_id=30, eos_token_id=eos, early_stopping=early_stopping, length_penalty=penalty,
                return_details=True,
            )  # fmt: skip
            outcomes[penalty, early_stopping] = found.sequences[:, ids.shape[1] :].tobytes()
            lengths.update(found.lengths.tolist())
    assert len(lengths) > 5
    assert len({outcomes[penalty, False] for penalty in PENALTIES}) > 2
    assert any(len({outcomes[penalty, how] for how in (False, True, "never")}) == 3 for penalty in PENALTIES)


BEAMS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 2, "min_new_tokens": 5, "eos_token_id": [8, 5, 26]},
    {"no_repeat_ngram_size": 2, "min_length": 5, "eos_token_id": 26},
    {"bad_words_ids": [[4], [8, 8], [8, 2], [26, 5]], "suppress_tokens": [9, 11], "eos_token_id": 18},
    {"begin_suppress_tokens": [5, 6], "eos_token_id": 5, "num_return_sequences": 1},
    {"eos_token_id": list(range(0, 14)), "num_return_sequences": 2},
]


@pytest.mark.parametrize("options", BEAMS, ids=str)
def test_beams_with_processors(pair: Any, options: dict[str, Any]) -> None:
    check_beams(pair, EQUAL, 3, max_new_tokens=12, **options)
    check_beams(pair, EQUAL[:, :1], 2, max_new_tokens=7, **options)


@pytest.mark.parametrize("seed", range(8))
def test_beams_of_other_models(seed: int, tmp_path: Path) -> None:
    """Random models, settings and prompts: flat and sharp distributions, small and larger vocabularies."""
    rng = np.random.default_rng(seed)
    vocabulary, num_beams = int(rng.integers(21, 60)), int(rng.integers(2, 6))
    model = make_theirs(seed=seed, scale=float(rng.uniform(0.1, 0.4)), vocab_size=vocabulary, n_positions=40)
    both = load_ours(model, tmp_path), model
    rows = [rng.integers(0, vocabulary, length).tolist() for length in rng.integers(1, 9, 3)]
    free = both[0].generate(
        rows, do_sample=False, num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=12, pad_token_id=0
    )[:, max(map(len, rows)) :]
    for _ in range(4):
        check_beams(
            both, rows, num_beams, padding=vocabulary - 1, max_new_tokens=int(rng.integers(1, 16)),
            length_penalty=float(rng.uniform(-1, 2)), early_stopping=[True, False, "never"][rng.integers(3)],
            eos_token_id=np.unique(rng.choice(free.ravel(), int(rng.integers(1, 4)))).tolist(),
            num_return_sequences=int(rng.integers(1, num_beams + 1)),
        )  # fmt: skip


def test_beams_that_improve_late_under_a_penalty_on_length(tmp_path: Path) -> None:
    """Poor hypotheses come first, a good beam ends later: "never" must not give it up."""
    model = make_theirs(seed=5, scale=0.7, vocab_size=V, n_positions=BLOCK)
    both = load_ours(model, tmp_path), model
    for eos in ([20, 19], [29, 20]):
        check_beams(both, ROWS, 2, max_new_tokens=20, eos_token_id=eos, length_penalty=-1.0, early_stopping="never")


def test_on_purpose_beams_that_do_not_exist_never_come_up(tmp_path: Path) -> None:
    """Three tokens and five beams: at first there are three rows to go on with, not five.

    Theirs fills up with rows of score -1e9, which are copies. Here all rows are different and have real scores.
    """
    model = make_theirs(vocab_size=3, n_positions=8)
    options: dict[str, Any] = {"num_beams": 5, "num_return_sequences": 3, "max_new_tokens": 1}
    ours = load_ours(model, tmp_path).generate([[0]], do_sample=False, return_details=True, **options)
    assert sorted(ours.sequences[:, 1].tolist()) == [0, 1, 2]
    assert (ours.scores > -50).all()
    theirs = generate_theirs(
        model, [[0]], return_dict_in_generate=True, output_scores=True, **(options | {"num_return_sequences": 5})
    )
    assert theirs.sequences_scores.numpy().min() < -1e8


def test_on_purpose_padding_is_the_padding_token_even_if_that_is_0(pair: Any) -> None:
    """transformers takes pad_token_id=0 in beam search for none, and fills with the first eos token."""
    options: dict[str, Any] = {
        "num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 10, "eos_token_id": EQUAL_END, "pad_token_id": 0,
    }  # fmt: skip
    mask = np.ones_like(EQUAL)  # it has zeros
    found = pair[0].generate(EQUAL, do_sample=False, attention_mask=mask, return_details=True, **options)
    wanted = generate_theirs(pair[1], EQUAL, **options).numpy()
    padding = np.arange(found.sequences.shape[1]) >= EQUAL.shape[1] + found.lengths[:, None]
    assert padding.any()
    np.testing.assert_array_equal(found.sequences[~padding], wanted[~padding])
    assert set(found.sequences[padding]) == {0}
    assert set(wanted[padding]) == {EQUAL_END[0]}


# Padding without a mask ---------------------------------------------------------------------------------

LEFT = [[0, 0, 7, 8], [5, 6, 7, 8], [0, 1, 2, 3]]


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    ("padding", "eos"), [(0, None), (0, 30), (0, [30, 29]), (0, 0), (0, [30, 0]), (None, None), (25, None)]
)
def test_padding_that_is_inferred(pair: Any, padding: int | None, eos: Any, num_beams: int) -> None:
    """From pad_token_id, where it is given and is no eos token; one text alone is no exception."""
    options: dict[str, Any] = {"max_new_tokens": 8, "num_beams": num_beams, "eos_token_id": eos}
    for table in (LEFT, LEFT[:1]):
        found = pair[0].generate(table, do_sample=False, pad_token_id=padding, return_details=True, **options)
        ids = torch.tensor(table)
        wanted = pair[1].generate(ids, do_sample=False, pad_token_id=padding, **options).numpy()
        own = np.arange(found.sequences.shape[1]) < 4 + found.lengths[:, None]  # what pads the end differs by design
        np.testing.assert_array_equal(found.sequences[own], wanted[:, : found.sequences.shape[1]][own])


def test_top_p_of_0_keeps_the_best_token(pair: Any) -> None:
    prompt = np.array([[3, 7, 7]])
    wanted = generate_theirs(pair[1], prompt, do_sample=True, top_p=0.0, max_new_tokens=6).numpy()
    np.testing.assert_array_equal(pair[0].generate(prompt, max_new_tokens=6, top_p=0, seed=0), wanted)


# Lengths on purpose -----------------------------------------------------------------------------------


def test_on_purpose_lengths_count_a_rows_own_tokens(pair: Any) -> None:
    """max_length and min_length of a padded batch: theirs count the padding too, ours give what the row gets alone."""
    ids, mask = pad_left(ROWS, 30)  # lengths 5, 1, 9, 3
    found = pair[0].generate(
        ids, attention_mask=mask, do_sample=False, max_length=12, pad_token_id=30, return_details=True
    )
    assert found.lengths.tolist() == [7, 11, 3, 9]
    for row, ids_alone, length in zip(found.sequences, ROWS, found.lengths, strict=True):
        alone = generate_theirs(pair[1], [ids_alone], max_length=12).numpy()[0]
        np.testing.assert_array_equal(row[ids.shape[1] :][:length], alone[len(ids_alone) :])
    assert generate_theirs(pair[1], ids, mask, max_length=12, pad_token_id=30).shape == (4, 12)  # 3 new for each


def test_on_purpose_the_window_slides_past_the_block(pair: Any) -> None:
    """Beyond the positions it has, theirs fails; ours slides the window, or stops where theirs could still go."""
    options: dict[str, Any] = {"max_new_tokens": BLOCK, "pad_token_id": 30}
    with pytest.raises(IndexError):
        generate_theirs(pair[1], EQUAL, **options)
    stopped = pair[0].generate(EQUAL, do_sample=False, overflow="stop", **options)
    np.testing.assert_array_equal(stopped, generate_theirs(pair[1], EQUAL, max_length=BLOCK, pad_token_id=30))
    slid = pair[0].generate(EQUAL, do_sample=False, **options)
    np.testing.assert_array_equal(slid[:, :BLOCK], stopped)
    for end in (BLOCK, BLOCK + 3):  # each further token is theirs for the window before it
        with torch.no_grad():
            logits = pair[1](torch.tensor(slid[:, end - BLOCK : end])).logits[:, -1].numpy()
        np.testing.assert_array_equal(slid[:, end], logits.argmax(axis=1))


def test_without_a_length_both_make_twenty_tokens(pair: Any) -> None:
    with pytest.warns(UserWarning, match="default"):
        assert check(pair, EQUAL).shape == (4, 20)


# Stop strings -----------------------------------------------------------------------------------------

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


# generation_config.json -------------------------------------------------------------------------------

SETTINGS: list[dict[str, Any]] = [
    {"do_sample": False, "max_new_tokens": 7},
    {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.9,
     "max_length": 30},
    {"do_sample": True, "top_k": 0, "max_new_tokens": 9, "eos_token_id": [3, 12], "pad_token_id": 12},
    {"do_sample": False, "num_beams": 4, "length_penalty": 0.5, "early_stopping": True, "num_return_sequences": 3,
     "eos_token_id": 3, "max_new_tokens": 8},
    {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[1], [2, 3]],
     "suppress_tokens": [4], "begin_suppress_tokens": [5], "max_new_tokens": 8},
    {"do_sample": False, "min_new_tokens": 4, "max_new_tokens": 12, "eos_token_id": 3, "stop_strings": ["a", "b"]},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_generation_config_in_both_directions(settings: dict[str, Any], tmp_path: Path) -> None:
    transformers.GenerationConfig(**settings).save_pretrained(tmp_path)
    found = read_config_file(tmp_path)
    assert found == config_from_dict(settings)
    expected = {name: value for name, value in settings.items() if (name, value) != ("top_k", 0)}
    assert found == GenerationConfig(**expected)
    write_config_file(found, tmp_path)
    again = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in settings} == settings
    # Nothing else has come in: what both leave unsaid they mean alike.
    untouched = transformers.GenerationConfig.from_dict(settings)
    others = {name for name in json.loads((tmp_path / "generation_config.json").read_text()) if name not in settings}
    assert {name: getattr(again, name) for name in others} == {name: getattr(untouched, name) for name in others} or (
        others <= {"top_k"} and again.top_k == 0
    )


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[3], SETTINGS[4]], ids=str)
def test_the_settings_of_a_folder_are_where_generate_starts(
    settings: dict[str, Any], pair: Any, tmp_path: Path
) -> None:
    theirs = pair[1]
    before = theirs.generation_config
    try:
        theirs.generation_config = transformers.GenerationConfig(**({"pad_token_id": 30} | settings))
        wanted = theirs.generate(torch.tensor(EQUAL), attention_mask=torch.ones(EQUAL.shape, dtype=torch.int64)).numpy()
        ours = load_ours(theirs, tmp_path / "theirs")
    finally:
        theirs.generation_config = before
    np.testing.assert_array_equal(ours.generate(EQUAL), wanted)
    ours.save_pretrained(tmp_path / "ours")
    again = load_theirs(tmp_path / "ours")
    mask = torch.ones(EQUAL.shape, dtype=torch.int64)
    np.testing.assert_array_equal(again.generate(torch.tensor(EQUAL), attention_mask=mask).numpy(), wanted)


def test_on_purpose_a_folder_that_says_nothing_of_sampling_samples(pair: Any, tmp_path: Path) -> None:
    ours = load_ours(pair[1], tmp_path)
    different = [ours.generate(EQUAL, max_new_tokens=15, seed=seed, pad_token_id=30) for seed in (0, 1)]
    assert (different[0] != different[1]).any()
    wanted = generate_theirs(pair[1], EQUAL, max_new_tokens=15).numpy()
    np.testing.assert_array_equal(ours.generate(EQUAL, max_new_tokens=15, do_sample=False, pad_token_id=30), wanted)
