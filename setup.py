"""Build the compiled kernels.

The Cython sources in `tinygpt/_ext` are translated to C once, and that C is compiled once for each level of
vector instructions, into the modules `tinygpt._ext.baseline`, `.avx2` and `.avx512`. At run time
`tinygpt._ext.load()` imports the best one that the processor can run, so one wheel is right everywhere
and fast where it can be.

Environment variables:
TINYGPT_EXT=require|auto|off   require: a failed build is an error. auto (default): without a working compiler
                               the NumPy reference bodies serve, and the build says so. off: build nothing.
TINYGPT_MARCH=native|...       build one level only, with -march=<value>, for this machine.
TINYGPT_SANITIZE=1             debug build: AddressSanitizer and UBSan check the bounds of every access.
"""

from __future__ import annotations

import os
import platform
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = "tinygpt/_ext"
LEVEL_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mbmi2"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mbmi2", "-mprefer-vector-width=512"],
}
# Sums may be reordered into vector lanes, the same way on every run. NaN and infinities keep their meaning.
MATH_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"]


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


def extensions() -> list[Extension]:
    from Cython.Build import cythonize

    sanitize = os.environ.get("TINYGPT_SANITIZE") == "1"
    common = ["-O3", *MATH_FLAGS, "-Wno-unused-function"]
    link = ["-lm", "-ldl"] if sys.platform.startswith("linux") else []
    if sanitize:
        common = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-fno-sanitize-recover"]
        link = [*link, "-fsanitize=address,undefined"]
    directives = {
        "language_level": 3, "boundscheck": sanitize, "wraparound": False, "cdivision": True, "initializedcheck": False,
    }  # fmt: skip
    sources = [f"{FOLDER}/kernels.pyx", f"{FOLDER}/cpu.pyx"]
    translated = cythonize(
        [Extension(f"tinygpt._ext.{name}", [source]) for name, source in zip(("kernels", "cpu"), sources, strict=True)],
        compiler_directives=directives,
        annotate=os.environ.get("TINYGPT_ANNOTATE") == "1",
        quiet=True,
    )
    kernels_c, cpu = translated[0].sources[0], translated[1]
    headers = [f"{FOLDER}/{name}" for name in sorted(os.listdir(FOLDER)) if name.endswith(".h")]
    made = [cpu]
    for level, flags in levels().items():
        made.append(
            Extension(
                f"tinygpt._ext.{level}",
                [kernels_c, f"{FOLDER}/pool.c"],
                depends=headers,
                include_dirs=[FOLDER],
                # One translation serves all levels: only the name of its initialiser differs.
                define_macros=[("PyInit_kernels", f"PyInit_{level}")],
                extra_compile_args=[*common, *flags],
                extra_link_args=link,
            )
        )
    return made


class BuildKernels(build_ext):
    """build_ext that, with TINYGPT_EXT=auto, carries on without the extension and says so."""

    def build_extension(self, ext: Extension) -> None:
        # Each level compiles the same files with other flags: keep their object files apart.
        shared, self.build_temp = self.build_temp, os.path.join(self.build_temp, ext.name.rpartition(".")[2])
        try:
            super().build_extension(ext)
        finally:
            self.build_temp = shared

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            if mode() == "require":
                raise
            self.say_so(error)
            self.extensions = []

    def copy_extensions_to_source(self) -> None:
        if mode() != "require":
            self.extensions = [e for e in self.extensions if os.path.exists(self._built(e))]
        super().copy_extensions_to_source()

    def _built(self, ext: Extension) -> str:
        return os.path.join(self.build_lib, self.get_ext_filename(ext.name))

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if mode() == "require" or os.path.exists(path)]

    @staticmethod
    def say_so(error: Exception) -> None:
        compiler = sysconfig.get_config_var("CC") or "cc"
        print(
            f"\ntinygpt: the compiled kernels were not built ({error}).\n"
            f"tinygpt: it will run on the NumPy reference, several times slower. Install a C compiler ({compiler})\n"
            "tinygpt: and install again; TINYGPT_EXT=require makes this an error.\n",
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
        BuildKernels.say_so(error)
        return []


setup(ext_modules=modules_to_build(), cmdclass={"build_ext": BuildKernels})
