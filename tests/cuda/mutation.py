"""Deliberately wrong CUDA kernels, made from the right ones, and whether the tests' cases notice.

`mutants(source)` breaks one place of a .cu file, or of a header, at a time: a barrier is removed, a shuffle is, a
reduction begins at the wrong width, a comparison is off by one, a loop stops one short, a statement is left out, a sign
is lost, a factor is dropped. `sample(source, exempt)` has fewer: all barriers, shuffles and reductions, and for every
function one of each other kind.

Run as a program, `python -m tests.cuda.mutation SOURCE NUMBER ...` prints those numbers of mutants that no case
notices. It is a process of its own, without threads, because it forks one for each mutant: a mutant may well crash, or
never end.
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
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import tinygpt.ops
import tinygpt.optim
from tests.cuda.cases import ROWS, emulated
from tests.cuda.checks import CHECKS
from tests.cuda.emulator import TRAPS, Device, Program
from tests.cuda.equivalent import LISTED
from tests.ops.cases.wide import TILES, tiles_of_attention
from tests.ops.drawing import Example, KernelRow, some_examples
from tests.ops.kernel_rule import assert_within, float32_budget, results
from tinygpt._ext import cuda

ROOT = Path(__file__).parents[2]

# What can be broken, and the file whose kernels are run for it. A header is broken for the file of its name, or for one
# of those that include it.
BROKEN_FOR = {"common.cuh": "layer_norm", "philox.cuh": "dropout", "tensors.cuh": "clip"}
SOURCES = {f"{file}.cu": file for file in cuda.FILES} | {
    path.name: BROKEN_FOR.get(path.name, path.stem) for path in sorted(cuda.FOLDER.rglob("*.cuh"))
}
# The kernels of each file. Of attention_mma there are none: the checks have all sizes, in 16 bits.
KERNELS = {file: cuda.launched_by(file) for file in cuda.FILES}
AT_ONCE = 20  # versions of a file in one program
CAUGHT = 77  # exit status
QUICK, FAST = ("-O0", *TRAPS), ("-O1", *TRAPS)  # compiled quickly, for a few cases; run fast, for all of them
SCHEDULES = ((0, "behind"), (1, "before"), (2, "behind"))  # and on which side of the arrays there is no memory


ALWAYS = ("barrier", "shuffle", "reduction")  # what a sample has all of
SLOW = (
    "attention_mma.cu",
    "attention_mma.cuh",
)  # beside these a sample of them has but loops and factors: four minutes would be too long


class Mutant(NamedTuple):
    change: str  # "file: what stood there  ->  what stands there now", and "#2" where that is done a second time
    text: str  # the whole source
    kernels: tuple[str, ...]  # the instances that differ from the right ones, or may
    kind: str  # what was done
    function: int  # the line of the whole source where the function, or what it is, begins


# A statement on a line of its own, perhaps behind `for (...)`, `if (...)` or `else`.
STATEMENT = re.compile(
    r"^(\s*(?:(?:for|if) \((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\) |else )?)"
    r"((?:[\w.>\[\]*()?:+/ -]*?(?<![=!<>])(?:[-+*]=|=)(?!=) |store|narrow\(|return|continue|values\[)[^{}]*;)$"
)
DECLARATION = re.compile(
    r"^\s*(const |typedef |using |constexpr |static |__shared__ |extern |struct |return \{|return [^;])"
)
TYPED = re.compile(
    r"^(?:const )?(?:unsigned |long )*"
    r"(?:int|unsigned|long|accum|real|small|bool|double|float|char|T|Words|Packed)\b [\w*]"
)


def replacements(line: str) -> Iterator[tuple[int, int, str, str]]:
    """(from, to, what to put there, kind) for the wrong versions of one line of code."""
    code = line.partition("//")[0].rstrip()
    if not code.strip() or code.lstrip().startswith(("#", "template", "__global__", "typedef", "*")):
        return
    for found in re.finditer(r"__syncthreads\(\);", code):
        yield found.start(), found.end(), ";", "barrier"
    for found in re.finditer(r"__syncwarp\(\);", code):
        yield found.start(), found.end(), ";", "barrier"
    for found in re.finditer(r"__shfl_xor_sync\(\w+, (\w+), \w+\)", code):
        yield found.start(), found.end(), found[1], "shuffle"
    for found in re.finditer(r"\b(WARP|SIDE) / 2\b", code):
        yield found.start(), found.end(), f"{found[1]} / 4", "reduction"
    for found in re.finditer(r"(?<=\w) (<=|>=|<|>) (?=[\w(])", code):
        yield found.start(1), found.end(1), {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}[found[1]], "comparison"
    for found in re.finditer(r"; \w+ < ([^;]+);", code):
        yield found.start(1), found.end(1), f"{found[1]} - 1", "loop"
    statement = STATEMENT.match(code)
    if statement and not DECLARATION.match(statement[2]) and not TYPED.match(statement[2]):
        yield statement.start(2), statement.end(2), ";", "statement"
    for found in re.finditer(r"(?<=[\w)\]]) ([+-]) (?=[\w(])", code):
        yield found.start(1), found.end(1), "-" if found[1] == "+" else "+", "sign"
    for found in re.finditer(r" \* (\([a-z]+\))?[\w.]+(\[[^\]]*\])*(?=[ ;),])", code):
        yield found.start(), found.end(), "", "factor"


@functools.cache
def mutants(source: str) -> list[Mutant]:
    """Every wrong version of a .cu file or of a header."""
    file = SOURCES[source]
    lines = cuda.source(file).split("\n")
    made: list[Mutant] = []
    seen: Counter[str] = Counter()
    name, number, begin, for_gpu = "", 0, 0, False
    for i, line in enumerate(lines):
        marker = re.fullmatch(r'#line (\d+) "(.*)"', line)
        if marker:
            name, number = marker[2], int(marker[1]) - 1
            continue
        number += 1
        if line.startswith("#"):  # what stands in for it in the emulator follows behind #else
            for_gpu = line.startswith(("#if", "#elif")) and "__CUDACC__" in line
        if re.match(r"template|__device__|struct", line):
            begin = i
        if name == source and not for_gpu:
            for start, end, instead, kind in replacements(line):
                wrong = line[:start] + instead + line[end:]
                change = f"{name}: {line.partition('//')[0].strip()}  ->  {wrong.partition('//')[0].strip()}"
                seen[change] += 1
                if seen[change] > 1:
                    change += f"  #{seen[change]}"
                text = "\n".join([*lines[:i], wrong, *lines[i + 1 :]])
                made.append(Mutant(change, text, concerned(file, lines, i), kind, begin))
    return made


def sample(source: str, exempt: Collection[str]) -> list[int]:
    """The numbers of fewer mutants, without the exempt changes."""
    chosen, seen = [], set()
    for i, mutant in enumerate(mutants(source)):
        place = (mutant.function, mutant.kind)
        if source in SLOW and mutant.kind not in (*ALWAYS, "loop", "factor"):
            continue
        if mutant.change not in exempt and (mutant.kind in ALWAYS or place not in seen):
            seen.add(place)
            chosen.append(i)
    return chosen


def concerned(file: str, lines: list[str], place: int) -> tuple[str, ...]:
    """The instances of the kernel that a line belongs to; all of them for the functions that kernels call."""
    begin = max((i for i in range(place) if lines[i].startswith("template")), default=0)
    definition = "\n".join(lines[begin : place + 1])
    own = [e for e in instances(file) if "__global__" in definition and f" {e.partition('<')[0]}(" in definition]
    return tuple(own) or instances(file)


@functools.cache
def instances(file: str) -> tuple[str, ...]:
    """Those for float32, or else for float16; of attention's four for each head size two that have everything."""
    everything = cuda.expressions(file, "float") or cuda.expressions(file, "float16")
    if file != "attention":
        return everything
    return tuple(e for e in everything if re.search(r", 32[,>]|, 4, 128[,>]", e))


# Running them -------------------------------------------------------------------------------------


class Case(NamedTuple):
    check: Callable[[Device], None]  # raises an AssertionError where the kernels are wrong
    seconds: float  # that it takes the right ones


def cases(file: str, thorough: bool) -> list[Case]:
    """For every kernel of a file the largest examples and a choice of others, and the checks; the quickest first."""
    drawn, largest = (60, 8) if thorough else (30, 5)
    made = [timed(check) for check in CHECKS.get(file, ())]
    for row in ROWS:
        if row.name in KERNELS[file]:
            examples = some_examples(row.examples, drawn)
            if file == "attention":
                examples = [tiles_of_attention("backward" in row.name, *sizes) for sizes in TILES] + examples[::3]
            found = [example for example in examples if takes_part(file, row, example)]
            found.sort(key=lambda example: -sum(min(a.size, 3000) for a in arrays_of(example)))
            made += [timed(comparison(row, example)) for example in found[:largest] + found[largest::4]]
    return sorted(made, key=lambda case: case.seconds)


def takes_part(file: str, row: KernelRow, example: Example) -> bool:
    """False where none of the kernels to be broken runs.

    There may be no elements, or they lie in memory as no kernel takes them, or it is another instance.
    """
    device = Device()
    with emulated(device):
        results(row, "cython", example.make(np.float32))
    kernels = [kernel for of, kernel in device.launched if of == file]
    return len(kernels) > 0 and all(kernel in instances(file) for kernel in kernels)


def arrays_of(example: Example) -> list[np.ndarray]:
    return [a for a in example.make(np.float32) if isinstance(a, np.ndarray)]


def comparison(row: KernelRow, example: Example) -> Callable[[Device], None]:
    """The example under the rule of `tests/ops/kernel_rule.py`."""
    truth, budget = float32_budget(row, example)

    def check(device: Device) -> None:
        with emulated(device):
            got = results(row, "cython", example.make(np.float32))
        assert_within(got, truth, budget)

    return check


def timed(check: Callable[[Device], None]) -> Case:
    begin = time.process_time()
    check(Device())
    return Case(check, time.process_time() - begin)


def is_caught(device: Device, case: Case) -> bool:
    """True where the case notices; a kernel that computes for too long ends the process."""
    signal.setitimer(
        signal.ITIMER_VIRTUAL, 0.5 + 30 * case.seconds
    )  # without optimization it takes three times as long
    try:
        case.check(device)
    except AssertionError:
        return True
    return False


def ends_caught(file: str, program: Program, version: str, all_cases: list[Case]) -> bool:
    """Whether a case notices, in a process of its own: one that crashes, or takes too long, is caught too."""
    child = os.fork()
    if child == 0:
        devices = [Device(schedule, {file: (program, version)}, fence) for schedule, fence in SCHEDULES]
        os._exit(CAUGHT if any(is_caught(device, case) for device in devices for case in all_cases) else 0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status > 0 and status != CAUGHT:
        raise AssertionError(f"the mutants of {file} could not be run: the process of {version} ended with {status}")
    return status != 0


def run(source: str, numbers: Sequence[int], thorough: bool) -> list[int]:
    """Those of the mutants of a source, by number, that no case notices.

    At first only the instances for packs are broken, of attention those for small heads, and compiled without
    optimization: most mutants do not survive a few cases of that. The others, and those that are expected to survive,
    meet all cases.
    """
    file = SOURCES[source]
    all_cases = cases(file, thorough)
    small = [
        e for e in instances(file) if re.search({"attention": ", 4, 32", "attention_mma": ", 32>"}.get(file, ", 4>"), e)
    ]
    right = Program({"right": (cuda.source(file), instances(file))}, FAST)
    if ends_caught(file, right, "right", all_cases):
        raise AssertionError(f"{file}.cu fails as it is, with its arrays fenced in and its indices watched")
    expected = {i for i in numbers if mutants(source)[i].change in LISTED}
    missed = missed_of(source, [i for i in numbers if i not in expected], small, all_cases, QUICK)
    missed = missed_of(source, sorted({*missed, *expected}), instances(file), all_cases, FAST)
    doubtful = sorted(expected.difference(missed))  # an index beyond a constant array lets the compiler do as it likes
    return sorted([*missed, *missed_of(source, doubtful, instances(file), all_cases, QUICK)])


def missed_of(
    source: str, numbers: list[int], chosen: Sequence[str], all_cases: list[Case], options: Sequence[str]
) -> list[int]:
    """Those of the mutants that no case notices where the chosen instances are broken, and the others are right."""
    missed: list[int] = []
    for start in range(0, len(numbers), AT_ONCE):
        versions = {}
        for i in numbers[start : start + AT_ONCE]:
            mutant = mutants(source)[i]
            versions[f"v{i}"] = (mutant.text, [e for e in mutant.kernels if e in chosen] or mutant.kernels)
        program = Program(versions, options)
        missed += [int(v[1:]) for v in versions if not ends_caught(SOURCES[source], program, v, all_cases)]
    return missed


def survivors(source: str, numbers: Sequence[int], thorough: bool) -> list[str]:
    """The changes that no case notices, of these mutants. thorough: of more cases."""
    command = [sys.executable, "-P", "-m", "tests.cuda.mutation", source, str(int(thorough)), *map(str, numbers)]
    home = str(Path(tinygpt.__file__).parent.parent)  # the tinygpt under test, installed or not
    search = os.pathsep.join(filter(None, [home, str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": search, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"the mutants of {source} could not be run:\n{done.stderr[-3000:]}"
    return [mutants(source)[i].change for i in json.loads(done.stdout)]


if __name__ == "__main__":
    source, thorough, *numbers = sys.argv[1:]
    print(json.dumps(run(source, [int(number) for number in numbers], thorough == "1")))
