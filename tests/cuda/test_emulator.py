"""The emulator of CUDA is checked: small kernels that do what no kernel may do are found out, right ones are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.cuda.emulator import COMPILER, Guarded, KernelError, Program

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (g++, c++ or clang++; CXX names another)")

THREADS = 96
SOURCE = """
__global__ void turned_round(float *x) {
    __shared__ float here[96];
    here[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = here[95 - threadIdx.x];
}
__global__ void without_a_barrier(float *x) {
    __shared__ float here[96];
    here[threadIdx.x] = x[threadIdx.x];
    x[threadIdx.x] = here[95 - threadIdx.x];
}
__global__ void shared_too_soon(float *x) {
    __shared__ float here[96];
    for (int turn = 0; turn < 2; turn++) {
        here[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        x[threadIdx.x] = here[95 - threadIdx.x];
    }
}
__global__ void sum_of_a_warp(float *x) {
    float sum = x[threadIdx.x];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    x[threadIdx.x] = sum;
}
__global__ void barrier_in_a_branch(float *x) {
    if (threadIdx.x < 40) __syncthreads();
}
__global__ void two_barriers(float *x) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
__global__ void shuffle_in_a_branch(float *x) {
    if (threadIdx.x < 40) x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
}
__global__ void shuffle_of_a_part(float *x) { x[threadIdx.x] = __shfl_xor_sync(0xffffu, x[threadIdx.x], 1); }
__global__ void beyond_shared(float *x) {
    __shared__ float here[96];
    here[threadIdx.x + 1] = x[threadIdx.x];
}
__global__ void too_much_shared(float *x) {
    __shared__ double here[6145];
    here[threadIdx.x] = 0;
}
__global__ void misaligned(float *x) { *static_cast<double *>(__builtin_assume_aligned(x + 1, 8)) = 0; }
__global__ void beyond_the_array(float *x) { x[threadIdx.x + 1] = 0; }
__global__ void before_the_array(float *x) { x[(int)threadIdx.x - 1] = 0; }
__global__ void uninitialised(float *x) {
    __shared__ float here[96];
    x[threadIdx.x] = here[threadIdx.x];
}
"""
NAMES = [line.split("void ")[1].partition("(")[0] for line in SOURCE.splitlines() if line.startswith("__global__")]


@pytest.fixture(scope="module")
def program() -> Program:
    return Program({"v": (SOURCE, NAMES)})


def run(program: Program, kernel: str, schedule: int = 0, arguments: Any = None) -> np.ndarray:
    x = np.arange(THREADS, dtype=np.float32)
    guarded = Guarded(x)
    values = [np.uintp(guarded.copy.ctypes.data)] if arguments is None else arguments
    program.launch("v", kernel, (1,), (THREADS,), 0, schedule, values)
    guarded.finish()
    return x


@pytest.mark.parametrize("schedule", range(6))
def test_right_kernels_are_run_rightly(program: Program, schedule: int) -> None:
    assert np.array_equal(run(program, "turned_round", schedule), np.arange(THREADS)[::-1])
    assert np.array_equal(run(program, "sum_of_a_warp", schedule), np.repeat([496, 1520, 2544], 32))


@pytest.mark.parametrize("schedule", range(6))
@pytest.mark.parametrize("kernel", ["without_a_barrier", "shared_too_soon"])
def test_a_missing_barrier_shows(program: Program, kernel: str, schedule: int) -> None:
    turns = {"without_a_barrier": 1, "shared_too_soon": 2}[kernel]
    expected = np.arange(THREADS)[:: (-1) ** turns]
    assert not np.array_equal(run(program, kernel, schedule), expected)


@pytest.mark.parametrize("schedule", range(4))
@pytest.mark.parametrize(
    ("kernel", "sentence"),
    [
        ("barrier_in_a_branch", "waits at line .* which not all of its block or warp reach"),
        ("two_barriers", "waits at line .* which not all of its block or warp reach"),
        ("shuffle_in_a_branch", "waits at line .* which not all of its block or warp reach"),
        ("shuffle_of_a_part", "a shuffle of a part of a warp"),
        ("beyond_shared", "a write beyond an array of 384 bytes in shared memory"),
        ("too_much_shared", "49160 bytes of shared memory"),
        ("misaligned", "8 bytes at an address that is no multiple of 8"),
        ("beyond_the_array", "a write outside of an array"),
        ("before_the_array", "a write outside of an array"),
    ],
)
def test_what_no_kernel_may_do(program: Program, kernel: str, sentence: str, schedule: int) -> None:
    with pytest.raises(KernelError, match=sentence):
        run(program, kernel, schedule)
    assert run(program, "turned_round").tolist() == list(range(THREADS))[::-1]  # the next launch is none the worse


def test_shared_memory_begins_as_nan(program: Program) -> None:
    assert np.isnan(run(program, "uninitialised")).all()


@pytest.mark.parametrize("arguments", [[], [np.int32(1)], [np.uintp(0), np.int32(1)]])
def test_arguments_that_do_not_fit(program: Program, arguments: list[Any]) -> None:
    with pytest.raises(KernelError, match="do not fit the kernel's parameters"):
        run(program, "turned_round", arguments=arguments)


def test_blocks_and_grids_that_cuda_refuses(program: Program) -> None:
    for grid, block in (((0,), (32,)), ((1, 65536), (32,)), ((1,), (33,)), ((1,), (1056,))):
        with pytest.raises(KernelError, match=r"a grid|a block"):
            program.launch("v", "turned_round", grid, block, 0, 0, [np.uintp(0)])
