"""Run all benchmarks, one after the other, and write their tables to one file.

    python benchmarks/all.py [--out benchmarks/results/cpu.md] [--append] [--note "..."] [--only step ...] [--quiet M]

The file starts with the targets, met or not. The training step, its products and decoding are measured at the best
level of vector instructions and, where that is AVX-512, at AVX2 too, the best that most machines have: PyTorch and
OpenBLAS are then held to AVX2 as well, and a script that finds otherwise exits. llama.cpp has no switch for that:
LLAMA_AT_AVX2 may name the folder of a library of it that was built without AVX-512, otherwise its rows are those of its
own build; either way its instructions stand above the table. On a machine that others use, --quiet 30 lets each script
wait for up to 30 minutes until they don't (`quiet.py`). --append adds the run to the file as another section, which
shows whether the targets are met a second time. The file is written after each script, so that a run that is stopped
leaves what it has measured. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import machine

from tinygpt.files import atomic_write

HERE = Path(__file__).parent
# name: (title, commands: each a script and its arguments)
PARTS: dict[str, tuple[str, list[list[str]]]] = {
    "step": ("A training step", [["train_step.py", "--compile", "--no-reference", "--recompute", "--rounds", "3"]]),
    "products": ("Matrix products", [["products.py"]]),
    "bfloat16": ("A training step in bfloat16", [["bfloat16_step.py", "--compile"]]),
    "lora": ("A LoRA step", [["lora_step.py", "--presets", "tiny", "gpt2"]]),
    "ops": ("Each operation", [["ops.py", "--rounds", "3"]]),
    "profile": (
        "Where a step's time goes",
        [
            ["profile_step.py", "--preset", name, "--steps", steps]  # the first few steps of tiny are a warm-up
            for name, steps in (("tiny", "100"), ("baby", "5"), ("baby-dropout", "5"), ("gpt2", "5"))
        ],
    ),
    "first seconds": ("The first seconds of a process", [["first_seconds.py"]]),
    "startup": ("The first line of a run", [["startup.py"]]),
    "scaling": ("How cost grows", [["scaling.py"]]),
    "generate": ("Decoding", [["generate.py", "--rounds", "3", "--only", "decode", "prefill", "batch", "load"]]),
    "quality": ("Perplexity in each format", [["generate.py", "--only", "quality"]]),
}
AT_EACH_LEVEL = ("step", "products", "profile", "generate")  # the others at the best level only
VERDICTS = ("- met: ", "- not met: ")
FAILED = "failed with exit code"
TOP = """# Training on a CPU

The output of `make bench`. The machine is shared and noisy, so compare ratios, which were all measured side by side in
one run. Each script's docstring says how it measures; `benchmarks/LOG.md` says what was tried.
"""


def lines_of(command: list[str], level: str) -> list[str]:
    """Run a script at a level; print its output as it arrives, and return it.

    One that fails does not take the others' results with it: its last line is then a target that is not met.
    """
    lines = []
    script = [sys.executable, str(HERE / command[0]), *command[1:]]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True, env=machine.environment(level)) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if process.returncode:
        lines.append(f"- not met: `{' '.join(command)}`, {level}, {FAILED} {process.returncode}")
    return lines


def summary(found: list[str]) -> list[str]:
    """How many targets are met, then the targets themselves, the unmet ones first."""
    met, unmet = ([line for line in found if line.startswith(kind)] for kind in VERDICTS)
    return [f"{len(met)} of {len(met) + len(unmet)} targets are met.", "", *unmet, *met]


def tables(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith(VERDICTS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu.md", help="where the tables go")
    parser.add_argument("--note", help="a sentence about the machine in this run, under its heading")
    words = "wait so long, in each script, for moments when others leave the processor alone (quiet.py)"
    parser.add_argument("--quiet", type=float, metavar="MINUTES", help=words)
    parser.add_argument("--append", action="store_true", help="keep the contents of the file, and add this run")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="which tables (default: all)")
    options = parser.parse_args()
    if options.quiet:
        os.environ["BENCH_QUIET"] = str(options.quiet)
    before = options.out.read_text(encoding="utf-8") if options.append and options.out.exists() else TOP
    start, found = time.monotonic(), []
    sections: list[str] = []
    for name in options.only:
        title, commands = PARTS[name]
        for level in machine.levels() if name in AT_EACH_LEVEL else machine.levels()[:1]:
            sections += ["", f"## {title}, {level}"]
            for command in commands:
                print(f"--- {' '.join(command)}, {level} (after {time.monotonic() - start:.0f} s)", file=sys.stderr)
                lines = lines_of(command, level)
                found += lines
                set_before = f"TINYGPT_LEVEL={level} " if level != machine.levels()[0] else ""
                sections += ["", f"`{set_before}python benchmarks/{' '.join(command)}`", "", *tables(lines)]
                head = f"# Run of {datetime.date.today()}, {(time.monotonic() - start) / 60:.0f} minutes"
                note = [options.note, ""] if options.note else []
                text = [before.rstrip(), "", head, "", *note, *summary(found), *sections]
                with atomic_write(options.out, "w") as file:  # after each script, not at the end
                    file.write("\n".join(text).rstrip() + "\n")
    print(f"--- {options.out} (after {time.monotonic() - start:.0f} s)", file=sys.stderr)
    if failures := [line for line in found if FAILED in line]:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
