"""Stop strings, however the text is cut into tokens, and text as it streams."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.generation.helpers import make
from tinygpt import GPT, GPTConfig, UsageError
from tinygpt.generation import generate, stream_text
from tinygpt.generation.stopping import StopStrings
from tinygpt.tokenizers import ByteTokenizer, CharTokenizer

LETTERS = CharTokenizer("abcdefghijklm")


def feed(stops, prompt, pieces):
    """What is shown, and the number of the piece in which a stop string ended."""
    search = StopStrings(stops)
    held, shown = search.begin(prompt), []
    for i, piece in enumerate(pieces):
        out, held, found = search.feed(held, piece)
        shown.append(out)
        if found:
            return b"".join(shown), i
    return b"".join(shown) + held, None


def test_stop_strings_by_hand():
    assert feed(["stop"], b"", [b"a s", b"t", b"op b"]) == (b"a ", 2)
    assert feed(["stop"], b"", [b"stostop!"]) == (b"sto", 0)
    assert feed(["stop"], b"", [b"sto", b"re"]) == (b"store", None)
    assert feed(["bc", "abcd"], b"", [b"ab", b"c"]) == (b"a", 1)
    assert feed(["abcd", "x"], b"", [b"ab", b"cx"]) == (b"abc", 1)
    assert feed(["ab"], b"xa", [b"b"]) == (b"", 0)  # begun in the prompt: what is shown includes its end...
    assert feed(["ab"], b"xab", [b"c"]) == (b"c", None)  # ...but ended in the prompt it does not count
    assert feed(["aXb", "X"], b"aX", [b"c"]) == (b"aXc", None)
    assert feed(["abcd", "x"], b"x", [b"c"]) == (b"c", None)
    assert feed(["é"], b"", ["é".encode()[:1], "é".encode()[1:]]) == (b"", 1)


@settings(max_examples=300)
@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.text("ab", max_size=5),
    st.lists(st.text("ab", max_size=3), max_size=8),
)
def test_stop_strings_by_their_definition(stops, prompt, pieces):
    """The first piece in which an occurrence ends, of all the text; shown is what precedes the earliest of those."""
    text, want = prompt, (None, None)
    for i, piece in enumerate(pieces):
        new = text + piece
        starts = [
            s for stop in stops for s in range(len(new))
            if new.startswith(stop, s) and s + len(stop) > len(text)
        ]  # fmt: skip
        if starts:
            want = (i, new[: min(starts)])
            break
        text = new
    shown, place = feed(stops, prompt.encode(), [piece.encode() for piece in pieces])
    assert place == want[0]
    full = text if want[0] is None else want[1]
    held = len(StopStrings(stops).begin(prompt.encode()))  # what is shown begins with the held end of the prompt
    assert shown.decode() == full[len(prompt) - held :]


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.text("ab", max_size=20))
def test_nothing_of_a_stop_string_is_ever_shown(stops, text):
    search, held, shown = StopStrings(stops), b"", ""
    for letter in text:
        out, held, found = search.feed(held, letter.encode())
        shown += out.decode()
        assert not any(stop in shown for stop in stops)
        if found:
            return
        # all that is not shown yet could be the beginning of a stop string, and no more is held than that
        assert not held or any(stop.encode().startswith(held) for stop in stops)
        assert text.startswith(shown + held.decode())


# In the loop ----------------------------------------------------------------------------------------


def free_text(seed=3, prompt="abcd", count=20):
    model = make(block_size=64)
    return model, LETTERS.decode(model.generate(LETTERS.encode(prompt)[None], count, seed=seed)[0, len(prompt) :])


def test_a_row_ends_with_the_token_in_which_a_stop_string_ends():
    model, text = free_text()
    stop = text[7:10]
    assert text.index(stop) == 7
    out = generate(
        model, LETTERS.encode("abcd")[None], 20, seed=3, stop_strings=["zz", stop], tokenizer=LETTERS,
        return_details=True,
    )  # fmt: skip
    assert LETTERS.decode(out.sequences[0, 4:]) == text[:10]
    assert (out.finish_reasons, out.lengths.tolist()) == (["stop_string"], [10])


def test_a_stop_string_may_begin_in_the_prompt():
    model, text = free_text()
    out = generate(model, LETTERS.encode("abcd")[None], 20, seed=3, stop_strings="d" + text[:2], tokenizer=LETTERS)
    assert out.shape == (1, 6)
    assert list(stream_text(model, LETTERS, "abcd", 20, seed=3, stop_strings="d" + text[:2])) == []
    out = generate(model, LETTERS.encode("abcd")[None], 5, seed=3, stop_strings="cd", tokenizer=LETTERS)
    assert "cd" in text[:5] or out.shape == (1, 9)


def test_rows_stop_by_themselves():
    model = make(block_size=64)
    idx = np.array([LETTERS.encode("abcd"), LETTERS.encode("efgh")])
    free = [LETTERS.decode(row) for row in model.generate(idx, 30, seed=3, num_return_sequences=9)[:, 4:]]
    stops = [free[r][4 + r : 6 + r] for r in (1, 5, 9)] + [free[12][8:11]]
    out = generate(
        model, idx, 30, seed=3, num_return_sequences=9, stop_strings=stops, tokenizer=LETTERS, pad_token_id=13,
        return_details=True,
    )  # fmt: skip
    assert len(set(out.lengths.tolist())) > 5  # so that some rows leave while others have begun a stop string
    for r, text in enumerate(free):
        end = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=30)
        assert out.lengths[r] == end
        assert LETTERS.decode(out.sequences[r, 4 : 4 + end]) == text[:end]


def test_stream_text_is_the_text_before_the_stop_string():
    model, text = free_text()
    for stops, want in ((None, text), (text[7:10], text[:7]), (["dzz", text[18:20] + "x"], text)):
        pieces = list(stream_text(model, LETTERS, "abcd", 20, seed=3, stop_strings=stops))
        assert "".join(pieces) == want
        assert all(pieces)
    first = int(LETTERS.encode(text[5])[0])
    shown = "".join(stream_text(model, LETTERS, "abcd", 20, seed=3, eos_token_id=first))
    assert shown == text[: text.index(text[5])]
    shown = "".join(stream_text(model, LETTERS, "abcd", 20, seed=3, eos_token_id=first, skip_special_tokens=False))
    assert shown == text[: text.index(text[5]) + 1]


def test_stream_text_yields_complete_characters():
    """A model that says given bytes: one token each, characters of up to four."""
    said = "aé漢😀b"
    model = GPT(GPTConfig(vocab_size=256, block_size=32, n_layer=1, n_head=1, n_embd=4), seed=0)
    spoken = said.encode()

    def say(rows, logits):
        logits[:] = -np.inf
        logits[:, spoken[rows.new_tokens]] = 0
        return logits

    def pieces(count, **options):
        return list(stream_text(model, ByteTokenizer(), "x", count, logits_processor=[say], seed=0, **options))

    assert pieces(len(spoken)) == ["a", "é", "漢", "😀", "b"]
    assert pieces(len(spoken) - 2) == ["a", "é", "漢", "\ufffd"]  # cut off in the middle of the last one
    assert pieces(len(spoken), stop_strings="😀b") == ["a", "é", "漢"]
    assert pieces(len(spoken) - 1, stop_strings="😀b") == ["a", "é", "漢", "😀"]  # did not become one
    assert "".join(pieces(len(spoken), stop_strings="漢x")) == said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": 3}, "stream_text needs a tokenizer"),
        ({"tokenizer": None}, "stream_text needs a tokenizer"),
        ({"num_return_sequences": 2}, "stream_text yields one text"),
        ({"num_beams": 2}, "can't stream"),
        ({"tokenizer": ByteTokenizer()}, "the tokenizer has 256 ids"),
        ({"top_p": 2}, "top_p must be at least 0"),
    ],
)
def test_mistakes_get_a_sentence_before_the_first_token(arguments, words):
    with pytest.raises(UsageError, match=words):
        stream_text(**({"model": make(), "tokenizer": LETTERS, "prompt": "abc", "max_new_tokens": 3} | arguments))
