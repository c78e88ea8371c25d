"""Cleaning: what is removed, what stays, and that it is counted."""

from __future__ import annotations

import random
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_documents import joined
from tests.data.test_token_writer import pieces_of
from tinygpt.data import cleaning
from tinygpt.data.cleaning import Cleaning, _signature
from tinygpt.errors import UsageError

# Letters with marks of several classes, Hangul in parts, what decomposes, and what composes with nothing.
TEXT = st.text(st.sampled_from("aeé\u0301\u0323\u1100\u1161\u11a8가\u212b中 \n\x00\x1b\x85\t"), min_size=1, max_size=25)


def cleaned(documents: list[str], *kinds: str, size: int = 4) -> tuple[list[str], dict[str, int]]:
    work = Cleaning(kinds)
    return joined(work(pieces_of(documents, size))), work.counts


@settings(deadline=None)
@given(documents=st.lists(TEXT, min_size=1, max_size=4), size=st.integers(1, 9))
def test_composed_and_without_control_characters(documents: list[str], size: int) -> None:
    found, counts = cleaned(documents, "nfc", size=size)
    assert found == [unicodedata.normalize("NFC", document) for document in documents]
    assert counts["nfc"] == sum(new != old for new, old in zip(found, documents, strict=True))
    found, counts = cleaned(documents, "control", size=size)
    wanted = ["".join(c for c in d if unicodedata.category(c) != "Cc" or c in "\t\n\r") for d in documents]
    assert found == [document for document in wanted if document]
    assert counts["control"] == sum(map(len, documents)) - sum(map(len, wanted))


def test_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = ["one text", "another", "one text", "One text", "another", "x" * 50, "x" * 50]
    assert cleaned(documents, "duplicates") == (["one text", "another", "One text", "x" * 50], {"duplicates": 3})
    monkeypatch.setattr(cleaning, "_LONGEST", 40)  # long documents are not held, so they are not compared
    assert cleaned(documents, "duplicates")[0] == ["one text", "another", "One text", "x" * 50, "x" * 50]


def test_near_duplicates() -> None:
    dice = random.Random(3)
    words = ["".join(dice.choices("abcdefgh", k=5)) for _ in range(500)]
    texts = [dice.choices(words, k=200) for _ in range(30)]
    close = [[*text[:100], "changed", *text[101:]] for text in texts[:10]]  # five of 196 runs differ
    far = [[*text[:100], *dice.choices(words, k=100)] for text in texts[10:20]]  # half of them
    documents = [" ".join(text) for text in [*texts, *close, *far]]
    found, counts = cleaned(documents, "near-duplicates", size=50)
    assert found == documents[:30] + documents[40:]
    assert counts == {"near-duplicates": 10}
    chinese = ["".join(chr(0x4E00 + dice.randrange(3000)) for _ in range(100)) for _ in range(5)]
    assert cleaned([*chinese, chinese[0][:50] + "。" + chinese[0][50:]], "near-duplicates")[0] == chinese


@pytest.mark.slow
def test_signatures_estimate_what_is_common() -> None:
    dice = random.Random(4)
    words = [f"w{number}" for number in range(4000)]
    for share in (0.2, 0.5, 0.8):
        estimates = []
        for _ in range(30):
            text = dice.sample(words, 1000)
            common = round(1000 * 2 * share / (1 + share))  # of two sets of 1000
            other = text[:common] + dice.sample([word for word in words if word not in text], 1000 - common)
            pair = _signature(" ".join(text)), _signature(" ".join(other))
            estimates.append(float((pair[0] == pair[1]).mean()))
        assert abs(sum(estimates) / 30 - share) < 4 * (share * (1 - share) / 64 / 30) ** 0.5 + 0.01


def test_kinds() -> None:
    with pytest.raises(UsageError, match="there is no cleaning 'html': give some of nfc, control, duplicates, near"):
        Cleaning(["nfc", "html"])
    work = Cleaning(["control", "duplicates"])
    list(work(pieces_of(["a\0", "a"])))
    assert str(work) == "1 control characters removed, 1 exact duplicates left out"
