"""Texts changed at random: what may happen to one, how often, and that it follows from the generator alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.data.augment import Augmentation, read_augmentation, read_synonyms, stream_of, with_absolute_path
from tinygpt.data.row_batches import RowBatches
from tinygpt.errors import UsageError
from tinygpt.random import Generator

TEXT = " ".join(f"w{i}" for i in range(1000))


def test_deletion_leaves_words_out_at_its_rate_and_in_order() -> None:
    words = Augmentation(deletion=0.2)(TEXT, Generator(1)).split()
    assert 740 < len(words) < 860  # 800 expected, standard deviation 13
    assert words == [word for word in TEXT.split() if word in set(words)]


def test_a_swap_keeps_the_words_and_moves_at_most_two_a_swap() -> None:
    words = Augmentation(swap=0.1)(TEXT, Generator(1)).split()
    assert sorted(words) == sorted(TEXT.split())
    moved = sum(a != b for a, b in zip(words, TEXT.split(), strict=True))
    assert 100 < moved <= 200


def test_synonyms_take_the_place_of_words_at_their_rate() -> None:
    augmentation = Augmentation(replacement=0.3, synonyms={"good": ["fine", "great"], "film": ["movie"]})
    words = augmentation("good " * 1000, Generator(2)).split()
    assert {"good", "fine", "great"} == set(words)
    assert 640 < words.count("good") < 760  # 700 expected, standard deviation 14
    assert 100 < words.count("fine") < 200
    always = Augmentation(replacement=0.999999, synonyms={"good": ["fine"], "good film": ["treat"]})
    assert always("a good film, goodness! good-natured", Generator(0)) == "a treat, goodness! fine-natured"


def test_a_chinese_character_is_a_word_of_its_own_and_a_synonym_may_have_several() -> None:
    text = "这本书很好" * 40
    shorter = Augmentation(deletion=0.5)(text, Generator(3))
    assert 60 < len(shorter) < 140
    swapped = Augmentation(swap=0.5)(text, Generator(3))
    assert sorted(swapped) == sorted(text)
    assert swapped != text
    always = Augmentation(replacement=0.999999, synonyms={"很好": ["不错"]})
    assert always("这本书很好ok", Generator(0)) == "这本书不错ok"


@given(st.text(), st.integers(0, 5), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_text_keeps_at_least_a_word_and_gains_none(text: str, seed: int, deletion: float, swap: float) -> None:
    augmentation = Augmentation(deletion=deletion, swap=swap)
    changed = augmentation(text, Generator(seed))
    assert changed == augmentation(text, Generator(seed))
    assert bool(changed.strip()) == bool(text.strip())
    kept, there = [c for c in changed if not c.isspace()], [c for c in text if not c.isspace()]
    assert all(kept.count(c) <= there.count(c) for c in kept)


def test_without_rates_a_text_stays_as_it_is() -> None:
    assert Augmentation()("a  b\tc 好 d", Generator(0)) == "a  b\tc 好 d"


def test_an_option_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "words.txt"
    path.write_text("good fine\n\nvery good\tgreat\ngood\tnice one\n快乐 高兴\n", encoding="utf-8")
    found = read_augmentation(f"deletion=0.1, swap=0.2,synonyms={path}")
    assert (found.deletion, found.swap, found.replacement) == (0.1, 0.2, 0.1)
    assert found.synonyms["good"] == ["fine", "nice one"]
    assert found.synonyms["very good"] == ["great"]
    assert found.synonyms["高兴"] == ["快乐"]
    assert read_augmentation(f"synonyms={path},replacement=0.5").replacement == 0.5
    monkeypatch.chdir(tmp_path)
    assert with_absolute_path("swap=0.2,synonyms=words.txt") == f"swap=0.2,synonyms={path}"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "expected settings such as deletion"),
        ("deletion", "not 'deletion'"),
        ("insertion=0.1", "not 'insertion=0.1'"),
        ("swap=0.1,swap=0.2", "each once"),
        ("deletion=much", "deletion must be a number, not 'much'"),
        ("deletion=1", "deletion must be"),
        ("swap=-0.1", "swap must be"),
        ("swap=nan", "swap must be"),
        ("replacement=0.1", "give synonyms=FILE as well"),
        ("synonyms=absent.txt", r"absent\.txt"),
    ],
)
def test_mistakes_in_an_option(words: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_augmentation(words)


def test_mistakes_in_a_file_of_synonyms(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("good fine\nalone\n")
    with pytest.raises(UsageError, match=r"words\.txt, line 2: 'alone' stands alone"):
        read_synonyms(str(path))
    path.write_text("\n")
    with pytest.raises(UsageError, match="there are no synonyms in"):
        read_synonyms(str(path))


def test_batches_ask_for_each_row_once_an_epoch() -> None:
    asked: list[tuple[int, int]] = []

    def varied(row: int, epoch: int) -> str:
        asked.append((row, epoch))
        return "x" * (row + 1)

    batches = RowBatches(["x" * (i + 1) for i in range(10)], 3, 1, 0, lambda rows: tuple(map(len, rows)), varied)
    plain = RowBatches(["x" * (i + 1) for i in range(10)], 3, 1, 0, lambda rows: tuple(map(len, rows)))
    for index in range(2 * batches.steps_per_epoch):
        assert batches.batch(index) == plain.batch(index)
    assert sorted(asked) == sorted((row, epoch) for row in range(10) for epoch in range(2))


def test_each_row_and_epoch_has_a_stream_of_its_own() -> None:
    streams = {stream_of(row, epoch) for row in range(50) for epoch in range(50)}
    assert len(streams) == 2500
    assert all(stream < (1 << 64) - 1 for stream in streams)
