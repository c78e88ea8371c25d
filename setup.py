"""Build the compiled kernels.

The Cython sources in the folders `cpu`, `text` and `threads` of `tinygpt/_ext` are translated to C once. That C is
compiled once per level of vector instructions, together with the thread pool `threads/pool.c`, into the modules
`tinygpt._ext.baseline`, `.avx2` and `.avx512`. At run time `tinygpt._ext.load()` imports the best one that the
processor can run, so a single wheel runs on every processor, at its full speed. An editable install
(`pip install -e .`) stays on this machine, so it compiles only the best level that this processor can run.

Environment variables:
TINYGPT_EXT=require|auto|off   require: a failed build is an error. auto (default): a level that cannot be compiled is
                               left out, and if there is none, the NumPy reference is used; the build says so (pip shows
                               it with -v), and so does every training run. off: build nothing.
TINYGPT_LEVELS=here|all|...    the levels to build: this processor's best, all of them, or those named (avx2,baseline).
                               Default: here for an editable install, else all.
TINYGPT_MARCH=native|...       build one level only, with -march=<value>, for this machine.
TINYGPT_SANITIZE=1             debug build: AddressSanitizer and UBSan watch every access (see `make test-debug`).
TINYGPT_ANNOTATE=1             Cython also writes its annotated sources, as HTML (see `make annotate`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = "tinygpt/_ext"
POOL = f"{FOLDER}/threads/pool.c"
KERNELS = "build/kernels.pyx"  # written by kernels_module
LEVEL_FLAGS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mbmi2", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma", "-mbmi2"],
    "baseline": [],
}
# The compiler may reorder sums to vectorise them, in the same way on every run. NaN and infinities behave as usual.
MATH_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"]
# -O3, not -O2 with its vectorizer: that takes less time, but sums and exponentials come out with other last bits.
# Global common subexpressions, looked for once more in the registers, take a sixth of the time and make nothing faster.
OPTIMIZE_FLAGS = ["-O3", "-fno-gcse"]
# Intel's processors of 2015 to 2020 decode anew what is around a jump that crosses or ends at a multiple of 32 bytes
# (Intel, "Mitigations for Jump Conditional Code Erratum", 2019): a loop that ends in one takes up to 1.4 times as long,
# and one jump of five does. Assemblers since 2020 can move them.
JUMP_FLAGS = ["-Wa,-mbranches-within-32B-boundaries"]
# What compilers make of plain C for processors that have it, under the name by which gcc and clang ask for it.
FEATURES = (
    "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "bmi", "bmi2", "avx512f", "avx512cd",
    "avx512bw", "avx512dq", "avx512vl", "avx512ifma", "avx512vbmi", "avx512vbmi2", "avx512vnni", "avx512bitalg",
    "avx512vpopcntdq", "avx512bf16",
)  # fmt: skip
SANITIZE = os.environ.get("TINYGPT_SANITIZE") == "1"
SANITIZE_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def mode() -> str:
    chosen = os.environ.get("TINYGPT_EXT", "auto")
    if chosen not in ("require", "auto", "off"):
        sys.exit(f"TINYGPT_EXT is {chosen!r}: set it to require, auto or off")
    return chosen


def levels() -> dict[str, list[str]]:
    """The levels to build, and the compiler flags of each."""
    march = os.environ.get("TINYGPT_MARCH")
    if march:
        return {"native": [f"-march={march}"] + ["-mprefer-vector-width=512"] * (platform.machine() == "x86_64")}
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {"baseline": []}
    chosen = os.environ.get("TINYGPT_LEVELS") or ("here" if "editable_wheel" in sys.argv else "all")
    names = list(LEVEL_FLAGS) if chosen == "all" else best_here() if chosen == "here" else chosen.split(",")
    if unknown := set(names) - set(LEVEL_FLAGS):
        sys.exit(f"TINYGPT_LEVELS has {sorted(unknown)[0]!r}: set it to here, all, or some of {','.join(LEVEL_FLAGS)}")
    return {level: flags for level, flags in LEVEL_FLAGS.items() if level in names}


@functools.cache
def best_here() -> list[str]:
    """The best level that this processor can run, by the test that is made at run time; all if it can't be made."""
    test = '#include "levels.h"\nint main(void) { return tg_has_avx512() ? 3 : tg_has_avx2() ? 2 : 1; }\n'
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "test")
        command = [*compiler(), "-I", FOLDER, "-x", "c", "-", "-o", program]
        try:
            subprocess.run(command, input=test, capture_output=True, text=True, check=True)
            found = subprocess.run([program]).returncode
        except (OSError, subprocess.CalledProcessError):
            return list(LEVEL_FLAGS)
    return {3: ["avx512"], 2: ["avx2"], 1: ["baseline"]}.get(found, list(LEVEL_FLAGS))


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def accepted(flags: list[str]) -> list[str]:
    """The flags if the compiler takes them, else none."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*compiler(), *flags, "-c", "-x", "c", "-", "-o", os.path.join(folder, "empty.o")]
        try:
            subprocess.run(command, input="int empty;\n", capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return []
    return flags


def translate() -> list[Extension]:
    """Translate the kernels and levels.pyx to C, under build/."""
    from Cython.Build import cythonize

    annotate = os.environ.get("TINYGPT_ANNOTATE") == "1"
    folder = "build/debug" if SANITIZE else "build/c"
    translated = cythonize(
        [
            Extension("tinygpt._ext.kernels", [kernels_module()]),
            Extension("tinygpt._ext.levels", [f"{FOLDER}/levels.pyx"]),
        ],
        build_dir=folder,
        include_path=[FOLDER],
        compiler_directives={
            "language_level": 3, "boundscheck": SANITIZE, "wraparound": False, "cdivision": True,
            "initializedcheck": False, "emit_code_comments": annotate or SANITIZE,
        },
        emit_linenums=SANITIZE,  # makes reports name the lines of the .pyx files
        annotate=annotate,
        force=annotate,
        quiet=True,
    )  # fmt: skip
    for header in Path(folder, FOLDER).rglob("*.h"):
        header.unlink()  # Cython's copy: the compiler must see the original
    return translated


def kernels_module() -> str:
    """Write one module that includes the Cython files of cpu/, text/ and threads/, those that are shared (.pxi) first.

    One module means one thread pool, and lets the compiler optimise across the files.
    """
    parts = sorted(Path(FOLDER).rglob("*.pxi"), key=lambda path: (path.stem != "common", path.stem))
    parts += sorted(path for path in Path(FOLDER).glob("*/**/*.pyx"))
    includes = [f'include "{path.relative_to(FOLDER).as_posix()}"' for path in parts]
    write_if_changed(Path(KERNELS), "\n".join(['"""The compiled kernels."""', *includes, ""]))
    return KERNELS


def extensions() -> list[Extension]:
    kernels, levels_module = translate()
    if SANITIZE:
        common = ["-O1", "-g", "-fno-omit-frame-pointer", *SANITIZE_FLAGS]
    else:
        common = [*OPTIMIZE_FLAGS, "-g0", *MATH_FLAGS, *accepted(JUMP_FLAGS)]
    common.append("-Wno-unused-function")
    link = ["-lm", "-ldl"] if sys.platform.startswith("linux") else []
    made = [
        Extension(
            f"tinygpt._ext.{level}",
            [kernels.sources[0], POOL],
            depends=[*headers(), stamp(level, [*common, *flags])],
            include_dirs=include_folders(),
            # All levels share one translation; only the name of the module's init function differs.
            define_macros=[("PyInit_kernels", f"PyInit_{level}")],
            extra_compile_args=[*common, *flags],
            extra_link_args=[*link, *SANITIZE_FLAGS] if SANITIZE else link,
        )
        for level, flags in levels().items()
    ]
    levels_module.depends = [stamp("levels", [native := native_features()])]
    levels_module.define_macros = [("TG_NATIVE", native)]
    levels_module.include_dirs = [FOLDER]
    levels_module.depends.append(f"{FOLDER}/levels.h")
    return [*made, levels_module]


def native_features() -> str:
    """What the level `native` needs of a processor, as a C condition: of FEATURES those that its flags switch on."""
    flags = levels().get("native")
    if flags is None or platform.machine().lower() not in ("x86_64", "amd64"):
        return "1"
    command = [*compiler(), *flags, "-dM", "-E", "-x", "c", os.devnull]
    defined = set(
        re.findall(r"__(\w+)__ 1$", subprocess.run(command, capture_output=True, text=True).stdout, re.MULTILINE)
    )
    needed = [name for name in FEATURES if name.upper().replace(".", "_") in defined]
    return " && ".join(["1", *(f'__builtin_cpu_supports("{name}")' for name in needed)])


def headers() -> list[str]:
    """The C headers, relative to this file's folder."""
    root = Path(__file__).parent
    return sorted(path.relative_to(root).as_posix() for path in Path(root, FOLDER).rglob("*.h"))


def include_folders() -> list[str]:
    """The folders of the headers: sources include a header by its bare name."""
    return sorted({str(Path(header).parent) for header in headers()})


def stamp(level: str, flags: list[str]) -> str:
    """A file that changes when the flags do: a dependency that forces recompilation."""
    path = Path("build", f"flags-{level}.txt")
    write_if_changed(path, " ".join(flags))
    return str(path)


def write_if_changed(path: Path, text: str) -> None:
    """Write a file only if its text differs, so that nothing that depends on it is rebuilt without need."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


class BuildKernels(build_ext):
    """build_ext for levels that share their sources; some levels may fail to build."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count() or 1

    def run(self) -> None:
        self.failures: dict[str, Exception] = {}
        super().run()
        if self.failures:
            say_so(f" for {', '.join(self.failures)}", next(iter(self.failures.values())))

    def build_extension(self, ext: Extension) -> None:
        # Each level compiles the same files with other flags, so its object files need a folder of their own. It is set
        # on a copy of the command because the levels are built in parallel.
        level = ext.name.rpartition(".")[2]
        command = copy.copy(self)
        command.build_temp = os.path.join(self.build_temp, level)
        try:
            build_ext.build_extension(command, ext)
        except Exception as error:
            if mode() == "require":
                raise
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.built(ext))  # an older build must not be used instead
            self.failures[level] = error

    def copy_extensions_to_source(self) -> None:
        self.extensions = [ext for ext in self.extensions if os.path.exists(self.built(ext))]
        super().copy_extensions_to_source()
        # Remove what an earlier build left there: it would be loaded instead of this build.
        fresh = {ext.name for ext in self.extensions}
        for name in (f"tinygpt._ext.{level}" for level in ("native", *LEVEL_FLAGS, "levels")):
            if name not in fresh:
                Path(self.get_ext_filename(name)).unlink(missing_ok=True)

    def built(self, ext: Extension) -> str:
        return os.path.join(self.build_lib, self.get_ext_filename(ext.name))

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if os.path.exists(path)]


def say_so(what: str, error: Exception) -> None:
    print(
        f"\ntinygpt: the compiled kernels{what} were not built: {error}\n"
        "tinygpt: They need a C compiler, gcc or clang. Without them tinygpt uses the NumPy reference, which is\n"
        "tinygpt: several times slower. TINYGPT_EXT=require makes this an error.\n",
        file=sys.stderr,
    )


def modules_to_build() -> list[Extension]:
    if mode() == "off" or "clean" in sys.argv:
        return []
    try:
        return extensions()
    except Exception as error:
        if mode() == "require":
            raise
        say_so("", error)
        return []


if __name__ == "__main__":  # benchmarks/_peak takes the flags from here
    setup(ext_modules=modules_to_build(), cmdclass={"build_ext": BuildKernels})
