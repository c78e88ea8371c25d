"""The operations of a communicator, each against what NumPy makes of the numbers of all processes."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

import tinygpt as tg
from tests.parallel.roles import numbers_of, work
from tinygpt.errors import DtypeError
from tinygpt.parallel import Communicator
from tinygpt.parallel.communicator import sum_in_order
from tinygpt.parallel.mpi import Mpi
from tinygpt.parallel.sums import SharedRoom


@work
def collectives(team: Mpi) -> None:
    """Each operation against what NumPy makes of the numbers of all processes."""
    everyone = range(team.size)
    for dtype in (np.float32, np.float64, np.int64):
        for count in (1, 5, 24, 1000):
            mine = numbers_of(team.rank, count, dtype)
            expected = sum_in_order(np.stack([numbers_of(rank, count, dtype) for rank in everyone]))
            total = mine.copy()
            team.all_reduce(total)
            assert np.array_equal(total, expected), (dtype, count)
            gathered = team.all_gather(mine)
            assert np.array_equal(gathered, np.concatenate([numbers_of(rank, count, dtype) for rank in everyone]))
            for root in everyone:
                value = mine.copy()
                team.broadcast(value, root)
                assert np.array_equal(value, numbers_of(root, count, dtype))
            long = numbers_of(team.rank, count * team.size, dtype)
            parts = sum_in_order(np.stack([numbers_of(rank, count * team.size, dtype) for rank in everyone]))
            part = team.reduce_scatter(long)
            assert np.array_equal(part, parts.reshape(team.size, count)[team.rank])
    table = numbers_of(team.rank, 12).reshape(3, 4)
    team.all_reduce(table)
    assert np.array_equal(table.reshape(-1), sum_in_order(np.stack([numbers_of(rank, 12) for rank in everyone])))
    assert team.gather_values({"rank": team.rank}) == [{"rank": rank} for rank in everyone]
    assert team.share_value(f"from {team.rank}") == "from 0"
    values_of_processes(team)
    pending = [team.start_all_reduce(numbers_of(team.rank + 10 * i, 3000)) for i in range(4)]
    while sum(one.advance() for one in pending) < 4:
        pass
    for i, one in enumerate(pending):
        assert np.array_equal(one.wait(), sum_in_order(np.stack([numbers_of(r + 10 * i, 3000) for r in everyone])))
    sums_at_different_paces(team)
    sums_in_rooms(team)
    team.barrier()
    try:
        team.reduce_scatter(np.zeros(team.size + 1))
    except tg.UsageError as error:
        assert "not divisible" in str(error)  # noqa: PT017
    else:
        raise AssertionError("an array that can't be divided was accepted")


def values_of_processes(team: Communicator) -> None:
    """Plain values of any length arrive as they are; anything else is refused before a byte is sent."""
    for length in (0, 1, 499, 500, 501, 600, 100_000):  # below and above what fits into a single message
        mine = "ä" * length if team.rank % 2 else [*range(length)]
        assert team.gather_values(mine) == ["ä" * length if rank % 2 else [*range(length)] for rank in range(team.size)]
        assert team.share_value([*range(length)] if team.rank == 0 else {1}) == [*range(length)]
    found = team.gather_values((0.1 + team.rank, math.inf, None, {"a": [True]}))
    assert found == [[0.1 + rank, math.inf, None, {"a": [True]}] for rank in range(team.size)]
    for wrong in (np.arange(3), np.float32(1), b"a", {1}, {1: 2}, object(), [[np.int64(1)]]):
        with pytest.raises(DtypeError, match="a value for other processes"):
            team.gather_values(wrong)
    arrays = {"a": np.arange(6, dtype=np.int8).reshape(2, 3), "b": np.full((), 2.5), "c": np.zeros((0, 4), np.float32)}
    arrays |= {"d": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "e": np.array([True, False])}
    found = team.share_arrays(arrays if team.rank == 0 else None)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(found[name], array)


def sums_at_different_paces(team: Communicator) -> None:
    """Process 0 is in the second exchange of one sum before it starts another, the others start both at once."""
    begin = time.monotonic()
    pending = []
    for i in range(2):
        pending.append(team.start_all_reduce(numbers_of(team.rank + 10 * i, 60)))
        while team.rank == 0 and time.monotonic() < begin + 0.3:
            pending[0].advance()
    time.sleep(0.0 if team.rank == 0 else 0.6)
    for i, one in enumerate(pending):
        expected = sum_in_order(np.stack([numbers_of(rank + 10 * i, 60) for rank in range(team.size)]))
        assert np.array_equal(one.wait(), expected)


def sums_in_rooms(team: Mpi) -> None:
    """The same sums in shared memory and by messages, again and again, with processes at different paces."""
    everyone, N = range(team.size), team.size
    for shares in (True, False):
        team.shares_memory = shares
        likes = [np.zeros(0, dtype) for dtype in (np.float32, np.float64, np.float32)]
        rooms = team.rooms([(n * N, like) for n, like in zip((1, 1000, 4097), likes, strict=True)])
        assert all(isinstance(room, SharedRoom) == shares for room in rooms)
        for turn in range(6):
            scatter = turn % 3 == 2
            time.sleep(0.02 * ((team.rank + turn) % N))
            pending = []
            for room, like in zip(rooms, likes, strict=True):
                assert room.array.shape[0] % N == 0
                assert room.array.dtype == like.dtype
                assert turn or not room.array.any()
                room.array[...] = numbers_of(team.rank + 10 * turn, room.array.size, like.dtype)
                pending.append(room.start(scatter))
            for room, like, one in zip(rooms, likes, pending, strict=True):
                total, n = one.wait(), room.array.size
                parts = np.stack([numbers_of(rank + 10 * turn, n, like.dtype) for rank in everyone])
                expected = sum_in_order(parts.copy())
                mine = expected.reshape(N, -1)[team.rank]
                assert np.array_equal(total, mine if scatter else expected), (shares, turn, n)
                if shares:
                    assert not total.flags.writeable
                    assert np.array_equal(room.array, parts[team.rank])
                    assert np.shares_memory(total, room.rows[-1])
                if scatter:
                    room.part[...] = mine * 2
            if scatter:
                for room, one in zip(rooms, [room.start_gather() for room in rooms], strict=True):
                    doubled = [numbers_of(r + 10 * turn, room.array.size, room.array.dtype) for r in everyone]
                    assert np.array_equal(one.wait(), sum_in_order(np.stack(doubled)) * 2)
        assert not team.under_way
    team.shares_memory = True
