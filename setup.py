"""Build the compiled kernels.

The Cython sources in `tinygpt/_ext/cpu` are translated to C once. That C is compiled once for each level of vector
instructions, together with the thread pool of `tinygpt/_ext/threads`, into the modules `tinygpt._ext.baseline`, `.avx2`
and `.avx512`. At run time `tinygpt._ext.load()` imports the best one that the processor can run, so one wheel is right
everywhere and fast where it can be.

Environment variables:
TINYGPT_EXT=require|auto|off   require: a failed build is an error. auto (default): a level that can't be compiled is
                               left out, and without any the NumPy reference bodies serve; the build says so (pip shows
                               it with -v) and so does every training run. off: build nothing.
TINYGPT_MARCH=native|...       build one level only, with -march=<value>, for this machine.
TINYGPT_SANITIZE=1             debug build: AddressSanitizer and UBSan watch every access (see `make test-debug`).
TINYGPT_ANNOTATE=1             Cython also writes its annotated sources, as HTML (see `make annotate`).
"""

from __future__ import annotations

import contextlib
import copy
import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = "tinygpt/_ext"
POOL = f"{FOLDER}/threads/pool.c"
KERNELS = "build/kernels.pyx"  # made by kernels_module
LEVEL_FLAGS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mbmi2", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma", "-mbmi2"],
    "baseline": [],
}
# Sums may be reordered into vector lanes, the same way on every run. NaN and infinities keep their meaning.
MATH_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"]
SANITIZE = os.environ.get("TINYGPT_SANITIZE") == "1"
SANITIZE_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def mode() -> str:
    chosen = os.environ.get("TINYGPT_EXT", "auto")
    if chosen not in ("require", "auto", "off"):
        sys.exit(f"TINYGPT_EXT is {chosen!r}: set it to require, auto or off")
    return chosen


def levels() -> dict[str, list[str]]:
    """Which modules to build, and the compiler flags of each."""
    march = os.environ.get("TINYGPT_MARCH")
    if march:
        return {"native": [f"-march={march}"] + ["-mprefer-vector-width=512"] * (platform.machine() == "x86_64")}
    if platform.machine().lower() in ("x86_64", "amd64"):
        return LEVEL_FLAGS
    return {"baseline": []}


def translate() -> list[Extension]:
    """The kernels and levels.pyx as C, under build/."""
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
            "initializedcheck": False,
        },
        emit_linenums=SANITIZE,  # reports then name the lines of the .pyx files
        annotate=annotate,
        force=annotate,
        quiet=True,
    )  # fmt: skip
    for header in Path(folder, FOLDER).rglob("*.h"):
        header.unlink()  # Cython's copy: the compiler must see the original
    return translated


def kernels_module() -> str:
    """One module made of all Cython files of cpu/ and threads/: what several kernels share (.pxi), then the kernels.

    A single module keeps the thread pool single, and lets the compiler see everything at once.
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
        common = ["-O3", "-g0", *MATH_FLAGS]
    common.append("-Wno-unused-function")
    link = ["-lm", "-ldl"] if sys.platform.startswith("linux") else []
    made = [
        Extension(
            f"tinygpt._ext.{level}",
            [kernels.sources[0], POOL],
            depends=[*headers(), stamp(level, [*common, *flags])],
            include_dirs=include_folders(),
            # One translation serves all levels: only the name of its initialiser differs.
            define_macros=[("PyInit_kernels", f"PyInit_{level}")],
            extra_compile_args=[*common, *flags],
            extra_link_args=[*link, *SANITIZE_FLAGS] if SANITIZE else link,
        )
        for level, flags in levels().items()
    ]
    return [*made, levels_module]


def headers() -> list[str]:
    """The C headers, of the tree that this file is in."""
    root = Path(__file__).parent
    return sorted(path.relative_to(root).as_posix() for path in Path(root, FOLDER).rglob("*.h"))


def include_folders() -> list[str]:
    """Where the compiler looks for them: a header is included by its name alone."""
    return sorted({str(Path(header).parent) for header in headers()})


def stamp(level: str, flags: list[str]) -> str:
    """A file that changes when the flags do, so that other flags compile again."""
    path = Path("build", f"flags-{level}.txt")
    write_if_changed(path, " ".join(flags))
    return str(path)


def write_if_changed(path: Path, text: str) -> None:
    """Write a file, unless it is as it should be: then what is made of it need not be made again."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


class BuildKernels(build_ext):
    """build_ext for levels that share their sources, some of which may fail."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count() or 1

    def run(self) -> None:
        self.failures: dict[str, Exception] = {}
        super().run()
        if self.failures:
            say_so(f" for {', '.join(self.failures)}", next(iter(self.failures.values())))

    def build_extension(self, ext: Extension) -> None:
        # Each level compiles the same files with other flags: its object files get a folder of their own. The copy
        # keeps the levels, which are built at the same time, from seeing each other's.
        level = ext.name.rpartition(".")[2]
        command = copy.copy(self)
        command.build_temp = os.path.join(self.build_temp, level)
        try:
            build_ext.build_extension(command, ext)
        except Exception as error:
            if mode() == "require":
                raise
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.built(ext))  # an older one must not take its place
            self.failures[level] = error

    def copy_extensions_to_source(self) -> None:
        self.extensions = [ext for ext in self.extensions if os.path.exists(self.built(ext))]
        super().copy_extensions_to_source()
        # What an earlier build left there would be loaded in the place of this one's.
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
        "tinygpt: They need a C compiler, gcc or clang. Where none of them is built the NumPy reference runs, several\n"
        "tinygpt: times slower. TINYGPT_EXT=require makes this an error.\n",
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
