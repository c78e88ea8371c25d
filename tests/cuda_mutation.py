"""Deliberately wrong CUDA kernels, made from the right ones, and whether the tests' cases notice.

`mutants(source)` breaks one place of a .cu file, or of a header, at a time: a barrier is removed, a
reduction begins or ends at the wrong width, a comparison is off by one, a loop stops one short, a statement is left
out, a sign is lost, a factor is dropped.

Run as a program, `python cuda_mutation.py SOURCE` prints the numbers of the mutants that no case notices. It is a
process of its own, without threads, because it forks one for each mutant: a mutant may well crash, or never end.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cuda_cases import ROWS, TILES, emulated, tiles_of_attention
from cuda_checks import CHECKS
from cuda_emulator import TRAPS, Device, Program
from drawing import Example, KernelRow, some_examples
from kernel_rule import assert_within, float32_budget, results

import tinygpt.ops
import tinygpt.optim
from tinygpt._ext import cuda

# What can be broken, and the file whose kernels are run for it: a header is broken for one of those that include it.
SOURCES = {f"{file}.cu": file for file in cuda.FILES} | {
    "common.cuh": "layer_norm",
    "layer_norm.cuh": "layer_norm",
    "softmax.cuh": "softmax",
    "philox.cuh": "dropout",
    "attention.cuh": "attention",
    "tensors.cuh": "clip",
}
KERNELS = {
    "layer_norm": ("layer_norm_forward", "layer_norm_backward"),
    "residual_layer_norm": ("residual_layer_norm_forward", "residual_layer_norm_backward"),
    "linear": ("add_bias", "column_sum"),
    "gelu": (
        "gelu_forward", "gelu_backward", "gelu_erf_forward", "gelu_erf_backward", "bias_gelu_forward",
        "bias_gelu_backward",
    ),
    "softmax": ("softmax_forward", "softmax_backward", "log_softmax_forward", "log_softmax_backward"),
    "cross_entropy": ("cross_entropy_forward", "cross_entropy_backward", "cross_entropy_inplace"),
    "attention": ("attention_forward", "attention_backward"),
    "embedding": ("embedding_forward", "embedding_backward"),
    "dropout": ("dropout_apply",),
    "adamw": ("adamw_update", "adamw_update_each"),
    "clip": ("sum_of_squares", "sum_of_squares_each"),
}  # fmt: skip
AT_ONCE = 20  # versions of a file in one program
LONGEST = 60.0  # seconds of computing for a right version
CAUGHT = 77  # exit status
SCHEDULES = ((0, "behind"), (1, "before"), (2, "behind"))  # and on which side of the arrays there is no memory


class Mutant(NamedTuple):
    change: str  # "file: what stood there  ->  what stands there now", and "#2" where that is done a second time
    text: str  # the whole source
    kernels: tuple[str, ...]  # the instances that differ from the right ones, or may


# A statement on a line of its own, perhaps behind `for (...)`, `if (...)` or `else`.
STATEMENT = re.compile(
    r"^(\s*(?:(?:for|if) \((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\) |else )?)"
    r"((?:[\w.>\[\]*()?:+/ -]*?(?<![=!<>])(?:[-+*]=|=)(?!=) |store|narrow\(|return|continue|values\[)[^{}]*;)$"
)
DECLARATION = re.compile(
    r"^\s*(const |typedef |using |constexpr |static |__shared__ |extern |struct |return \{|return [^;])"
)
TYPED = re.compile(
    r"^(?:const )?(?:unsigned |long )*(?:int|unsigned|long|accum|real|bool|double|float|char|T|Words|Packed)\b [\w*]"
)


def replacements(line: str) -> Iterator[tuple[int, int, str]]:
    """(from, to, what to put there) for the wrong versions of one line of code."""
    code = line.partition("//")[0].rstrip()
    if not code.strip() or code.lstrip().startswith(("#", "template", "__global__", "typedef", "*")):
        return
    for found in re.finditer(r"__syncthreads\(\);", code):
        yield found.start(), found.end(), ";"
    for found in re.finditer(r"\b(WARP|SIDE) / 2\b", code):
        yield found.start(), found.end(), f"{found[1]} / 4"
    for found in re.finditer(r"(?<=\w) (<=|>=|<|>) (?=[\w(])", code):
        yield found.start(1), found.end(1), {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}[found[1]]
    for found in re.finditer(r"; \w+ < ([^;]+);", code):
        yield found.start(1), found.end(1), f"{found[1]} - 1"
    statement = STATEMENT.match(code)
    if statement and not DECLARATION.match(statement[2]) and not TYPED.match(statement[2]):
        yield statement.start(2), statement.end(2), ";"
    for found in re.finditer(r"(?<=[\w)\]]) ([+-]) (?=[\w(])", code):
        yield found.start(1), found.end(1), "-" if found[1] == "+" else "+"
    for found in re.finditer(r" \* (\([a-z]+\))?[\w.]+(\[[^\]]*\])*(?=[ ;),])", code):
        yield found.start(), found.end(), ""


@functools.cache
def mutants(source: str) -> list[Mutant]:
    """Every wrong version of a .cu file or of a header."""
    file = SOURCES[source]
    lines = cuda.source(file).split("\n")
    made: list[Mutant] = []
    seen: Counter[str] = Counter()
    name, number = "", 0
    for i, line in enumerate(lines):
        marker = re.fullmatch(r'#line (\d+) "(.*)"', line)
        if marker:
            name, number = marker[2], int(marker[1]) - 1
            continue
        number += 1
        if name == source:
            for start, end, instead in replacements(line):
                wrong = line[:start] + instead + line[end:]
                change = f"{name}: {line.partition('//')[0].strip()}  ->  {wrong.partition('//')[0].strip()}"
                seen[change] += 1
                if seen[change] > 1:
                    change += f"  #{seen[change]}"
                made.append(Mutant(change, "\n".join([*lines[:i], wrong, *lines[i + 1 :]]), concerned(file, lines, i)))
    return made


def concerned(file: str, lines: list[str], place: int) -> tuple[str, ...]:
    """The instances of the kernel that a line belongs to; all of them for the functions that kernels call."""
    begin = max((i for i in range(place) if lines[i].startswith("template")), default=0)
    definition = "\n".join(lines[begin : place + 1])
    own = [e for e in instances(file) if "__global__" in definition and f" {e.partition('<')[0]}(" in definition]
    return tuple(own) or instances(file)


@functools.cache
def instances(file: str) -> tuple[str, ...]:
    """Those for float32; of attention's four for each head size two that have everything in them."""
    everything = cuda.expressions(file, "float")
    if file != "attention":
        return everything
    return tuple(e for e in everything if re.search(r"<float>|, 32, |, 4, 128, ", e))


# Running them -------------------------------------------------------------------------------------


class Case(NamedTuple):
    row: KernelRow
    example: Example
    truth: list[np.ndarray]
    budget: list[float]


def cases(file: str) -> list[Case]:
    """Examples for every kernel of a file, the largest and a choice of others, those first that take the least time."""
    made: list[tuple[float, Case]] = []
    for row in ROWS:
        if row.name in KERNELS[file]:
            examples = some_examples(row.examples, 60)
            if file == "attention":
                examples = [tiles_of_attention("backward" in row.name, *sizes) for sizes in TILES] + examples[::3]
            found = [(e, seconds) for e in examples if (seconds := time_of(file, row, e)) > 0]
            found.sort(key=lambda pair: -sum(min(a.size, 3000) for a in arrays_of(pair[0])))
            for example, seconds in found[:8] + found[8::4]:
                made.append((seconds, Case(row, example, *float32_budget(row, example))))
    return [case for _, case in sorted(made, key=lambda pair: pair[0])]


def time_of(file: str, row: KernelRow, example: Example) -> float:
    """Seconds for the right kernels; 0 where none of those to be broken takes part: there are no elements, or they lie
    in memory as no kernel takes them, or it is another instance."""
    device = Device()
    begin = time.process_time()
    with emulated(device):
        results(row, "cython", example.make(np.float32))
    kernels = [kernel for of, kernel in device.launched if of == file]
    return time.process_time() - begin if kernels and all(kernel in instances(file) for kernel in kernels) else 0.0


def arrays_of(example: Example) -> list[np.ndarray]:
    return [a for a in example.make(np.float32) if isinstance(a, np.ndarray)]


def notices(case: Case, device: Device) -> bool:
    try:
        with emulated(device):
            got = results(case.row, "cython", case.example.make(np.float32))
        assert_within(got, case.truth, case.budget)
    except AssertionError:
        return True
    return False


def is_caught(file: str, program: Program, version: str, all_cases: list[Case]) -> bool:
    devices = [Device(schedule, {file: (program, version)}, fence) for schedule, fence in SCHEDULES]
    return any(
        any(fails(check, device) for check in CHECKS.get(file, ())) or any(notices(case, device) for case in all_cases)
        for device in devices
    )


def fails(check: Callable[[Device], None], device: Device) -> bool:
    try:
        check(device)
    except AssertionError:
        return True
    return False


def run(source: str) -> list[int]:
    """The numbers of the mutants of a source that no case notices."""
    file = SOURCES[source]
    all_cases = cases(file)
    wrong = mutants(source)
    missed: list[int] = []
    patience = LONGEST
    for start in range(0, len(wrong), AT_ONCE):
        part = wrong[start : start + AT_ONCE]
        versions = {f"v{i}": (mutant.text, mutant.kernels) for i, mutant in enumerate(part, start)}
        program = Program({"right": (cuda.source(file), instances(file)), **versions}, TRAPS)
        if start == 0:
            before = os.times().children_user
            if ends_caught(file, program, "right", all_cases, LONGEST):
                raise AssertionError(f"{file}.cu fails as it is, with its arrays fenced in and its indices watched")
            patience = 1 + 4 * (os.times().children_user - before)
        numbers = range(start, start + len(part))
        missed += [i for i in numbers if not ends_caught(file, program, f"v{i}", all_cases, patience)]
    return missed


def ends_caught(file: str, program: Program, version: str, all_cases: list[Case], patience: float) -> bool:
    """As is_caught, in a process of its own: one that crashes is caught too, or computes for longer than `patience`."""
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_VIRTUAL, patience)
        os._exit(CAUGHT if is_caught(file, program, version, all_cases) else 0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status > 0 and status != CAUGHT:
        raise AssertionError(f"the mutants of {file} could not be run: the process of {version} ended with {status}")
    return status != 0


def survivors(source: str) -> list[str]:
    """The changes that no case notices."""
    command = [sys.executable, str(Path(__file__)), source]
    home = str(Path(tinygpt.__file__).parent.parent)  # the tinygpt under test, installed or not
    search = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": search, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"the mutants of {source} could not be run:\n{done.stderr[-3000:]}"
    return [mutants(source)[i].change for i in json.loads(done.stdout)]


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1])))
