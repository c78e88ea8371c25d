"""The two small things that everything rests on: atomic files and counter-based random numbers."""

from __future__ import annotations

import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt import random
from tinygpt.backends import get
from tinygpt.errors import UsageError
from tinygpt.files import atomic_write, atomic_write_with
from tinygpt.random import Generator, philox4x32, words

# --- files --------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)


def test_atomic_write_makes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"one")
        assert not path.exists()
    with atomic_write(path, "w") as file:
        file.write("zwölf")
        assert path.read_bytes() == b"one"
    assert path.read_bytes() == "zwölf".encode()
    atomic_write_with(path, lambda name: fill(name, b"three"))
    assert path.read_bytes() == b"three"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("exception", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, exception: BaseException) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(name: str) -> None:
        fill(name, b"half")
        raise exception

    def write_opened() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise exception

    with pytest.raises(type(exception)):
        write_opened()
    with pytest.raises(type(exception)):
        atomic_write_with(path, write)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_late_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A full disk may show itself only when the data is flushed to it."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"), atomic_write(path) as file:
        file.write(b"new")
    with pytest.raises(OSError, match="No space left"):
        atomic_write_with(path, lambda name: fill(name, b"new"))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_killed_writer_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    script = (
        "import os, sys; from tinygpt.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os._exit(9)\n"
    )
    root = Path(random.__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", script, str(path)], cwd=root, timeout=120)
    assert result.returncode == 9
    assert path.read_bytes() == b"old"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits to compare")
def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    """Those that `open` gives, not those of a temporary file, which nobody else may read."""
    (tmp_path / "plain").write_bytes(b"")
    with atomic_write(tmp_path / "atomic"):
        pass
    atomic_write_with(tmp_path / "with", lambda name: None)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic", "with")}
    assert len(modes) == 1


def test_writing_into_no_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "absent" / "file"):
        pass


# --- random numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # "philox4x32 10" in the known-answer file kat_vectors of Random123
        (
            (0, 0, 0, 0),
            (0, 0),
            (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        ),
        (
            (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple, key: tuple, expected: tuple) -> None:
    counters = [np.array([word], np.uint64) for word in counter]
    found = philox4x32(*counters, seed=key[0] | key[1] << 32)
    assert tuple(int(word[0]) for word in found) == expected


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 5), st.integers(0, 20), st.data())
def test_each_word_depends_on_its_place_alone(
    seed: int, stream: int, rows: int, columns: int, data: st.DataObject
) -> None:
    block = words(seed, stream, rows, columns)
    assert block.shape == (rows, columns)
    assert block.dtype == np.uint32
    larger = words(seed, stream, rows + 2, columns + 5)
    np.testing.assert_array_equal(block, larger[:rows, :columns])
    if block.size:
        row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
        counter = [np.array([word], np.uint64) for word in (column // 4, row, stream & 0xFFFFFFFF, stream >> 32)]
        assert block[row, column] == philox4x32(*counter, seed=seed)[column % 4][0]


def test_seeds_and_streams_differ() -> None:
    blocks = [words(seed, stream, 8, 8) for seed in (0, 1, 1 << 32) for stream in (0, 1, 1 << 32)]
    assert len({block.tobytes() for block in blocks}) == len(blocks)


def test_uniform_statistics() -> None:
    """Within five standard errors; the seed is fixed, so this can't fail by chance twice."""
    n = 200_000
    u = Generator(1).uniform(n)
    assert u.dtype == np.float64
    assert u.min() >= 0.0
    assert u.max() < 1.0
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    counts = np.bincount((u * 100).astype(int), minlength=100)
    chi_squared = ((counts - n / 100) ** 2 / (n / 100)).sum()
    assert abs(chi_squared - 99) < 5 * math.sqrt(2 * 99)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / math.sqrt(n)


def test_normal_statistics() -> None:
    n = 200_000
    z = Generator(2).normal(n, std=3.0) / 3.0
    assert np.isfinite(z).all()
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert abs((np.abs(z) < 1).mean() - 0.6826895) < 5 * math.sqrt(0.22 / n)
    assert abs(np.corrcoef(z[: n // 2], z[n // 2 :])[0, 1]) < 5 / math.sqrt(n / 2)  # the two of one pair


def test_integers_cover_their_range_evenly() -> None:
    values = Generator(3).integers(7, (100, 700))
    assert values.dtype == np.int64
    assert values.shape == (100, 700)
    counts = np.bincount(values.reshape(-1), minlength=7)
    assert len(counts) == 7
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 6 + 5 * math.sqrt(12)
    assert (Generator(3).integers(1, 10) == 0).all()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 0), (3, 5)])
def test_shapes(shape: tuple[int, ...]) -> None:
    assert Generator(0).uniform(shape).shape == shape
    assert Generator(0).normal(shape).shape == shape
    assert Generator(0).integers(9, shape).shape == shape


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 3000), max_size=4))
def test_state_is_seed_and_number_of_draws(seed: int, sizes: list[int]) -> None:
    generator, other = Generator(seed), Generator(seed)
    for size in sizes:
        generator.uniform(size)
        other.normal(7)
    assert generator.state_dict() == other.state_dict() == {"seed": seed, "stream": len(sizes)}
    resumed = Generator()
    resumed.load_state_dict(generator.state_dict())
    np.testing.assert_array_equal(resumed.uniform(5), other.uniform(5))


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, "0", None, float("nan")])
def test_impossible_seeds(seed: object) -> None:
    with pytest.raises(UsageError, match="seed is an integer from 0"):
        Generator(seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", [-1, 2**64, 1.5, "a"])
def test_impossible_streams(stream: object) -> None:
    with pytest.raises(UsageError, match=r"a stream is an integer from 0 to 2\*\*64 - 1"):
        Generator(0, stream)  # type: ignore[arg-type]


def test_impossible_range() -> None:
    with pytest.raises(UsageError, match="high >= 1"):
        Generator(0).integers(0)


def test_manual_seed() -> None:
    before = random.default_generator.state_dict()
    try:
        random.manual_seed(5)
        first = random.default_generator.uniform(4)
        random.manual_seed(5)
        np.testing.assert_array_equal(random.default_generator.uniform(4), first)
    finally:
        random.default_generator.load_state_dict(before)


@pytest.mark.skipif(get("numpy").extension() is None, reason="extension not built")
@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 511, 512, 513, 1024, 32768 + 700])
@pytest.mark.parametrize("key", [(0, 0, 0), (7 << 40 | 5, 1 << 48 | 3, 64), (2**64 - 1, 2**64 - 1, 1)])
def test_compiled_numbers_are_those_of_numpy(size: int, key: tuple[int, int, int]) -> None:
    """key: seed, stream and first row."""
    compiled = get("numpy").uniform_body()
    found, expected = np.empty(size + 1), np.empty(size + 1)
    found[-1] = expected[-1] = 7.0  # beyond the end
    compiled(found[:-1], *key)
    random.fill_uniform(expected[:-1], *key)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("count", [32768 * 3, 32768 * 3 + 1001, 999])
def test_several_threads_draw_the_numbers_of_one(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is a function of its place; whichever is made first, the numbers and the next stream are the same."""
    drawn = []
    for threads in ("1", "3"):
        monkeypatch.setenv("TINYGPT_NUM_THREADS", threads)
        monkeypatch.setattr("tinygpt.random._MANY", 1000)
        generator = Generator(3)
        drawn.append((generator.normal(count, 0.02, np.float32), generator.uniform(count), generator.stream))
    (a, b, stream), (c, d, other) = drawn
    assert np.array_equal(a, c)
    assert np.array_equal(b, d)
    assert stream == other == 2
