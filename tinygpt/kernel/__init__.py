"""@kernel: one name, up to three bodies.

The decorated function **is** the reference: it runs on arrays of either library, and it is what you read to learn what
is computed. If there is a fast body of the same name, compiled from `_ext/cpu/*.pyx` for NumPy arrays or from
`_ext/cuda/*.cu` for CuPy arrays, a call runs that instead. The checks that every fast body would need are made here,
once:

- the floating-point arrays are all float32 or all float64, in native byte order (a CUDA body also takes the 16-bit
  types, float16 and bfloat16, and so do, for bfloat16, the compiled bodies in `TAKES_BFLOAT16`; float32 arrays may
  accompany those);
- none has size zero;
- every array is C-contiguous and aligned; one that is not is copied. A kernel declared `strided` gets its arrays as
  they are and reads the strides. A kernel declared `in_place` writes into its arguments, and whatever it wrote into a
  copy would be lost: where an array would have to be copied, the reference runs;
- integer arrays are int64, and are passed only as the arguments called `ids`, `targets` or `length` (or those that
  `@kernel(integers=...)` names). With integers or booleans anywhere else the reference runs, since a compiled body
  would read their bytes as floats.

A fast body that still can't handle its arguments returns `NotImplemented`, and the reference runs. Where no body takes
16-bit arrays they are upcast to float32 for the kernel (on a GPU, for its reference), and its results are rounded to 16
bits once. The results that a kernel declares as `statistics`, a mapping from their names to their positions, stay in
float32, as in the bodies that take 16 bits; and these take arguments of these names, and the gradients of these, in
float32.

`TINYGPT_KERNELS=reference|cython|cuda` or `with use_kernels(...)` forces one kind of body. If this machine does not
have that kind, it is an error: no other kind is silently used instead. `python -m tinygpt.kernel` prints which body
runs for each kernel.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from .._ext import cuda
from ..backends import array_module, get, is_array
from ..backends import numpy as numpy_backend
from ..backends.precision import has_16_bits, in_float32, is_floating
from ..backends.recording import here, noted
from ..errors import UsageError

KINDS = ("auto", "reference", "cython", "cuda")
REGISTRY: dict[str, Kernel] = {}
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_GPU_FLOATS = ("float32", "float64", "float16", "bfloat16")
_TOGETHER = ({"float32"}, {"float64"}, {"float16"}, {"bfloat16"}, {"float16", "float32"}, {"bfloat16", "float32"})
INTEGERS = ("ids", "targets", "length")


class _Choice(threading.local):
    """The kind of body that is forced in this thread."""

    kind = os.environ.get("TINYGPT_KERNELS", "auto") or "auto"


_choice = _Choice()


class Kernel:
    """A callable that picks its body by the type of its arguments. The module's docstring explains the options."""

    def __init__(
        self,
        reference: Callable[..., Any],
        strided: bool = False,
        in_place: bool = False,
        statistics: Mapping[str, int] = MappingProxyType({}),
        integers: tuple[str, ...] = INTEGERS,
    ) -> None:
        self.reference = reference
        self.names = tuple(inspect.signature(reference).parameters)
        self.integers = tuple([place for place, name in enumerate(self.names) if name in integers])
        self.strided = strided
        self.in_place = in_place
        self.statistics = tuple(statistics.values())
        cuda.STATISTICS.update(statistics, (f"d{name}" for name in statistics))
        self.__name__ = reference.__name__
        self.__doc__ = reference.__doc__
        self.__wrapped__ = reference

    def __repr__(self) -> str:
        return f"<kernel {self.__name__}: {', '.join(self.variants())}>"

    def __call__(self, *args: Any) -> Any:
        if _choice.kind != "reference":
            fast = self.fast_body(args)
            if fast is not None:
                prepared = self._prepared(args)
                if prepared is not None:
                    result = fast(*prepared)
                    if result is not NotImplemented:
                        if here.tape is not None:
                            here.tape.note(fast, prepared, result, self.in_place)
                        return result
        if here.tape is not None:
            return here.tape.run(self._run_reference, args, self.in_place)
        return self._run_reference(*args)

    def _run_reference(self, *args: Any) -> Any:
        if has_16_bits(args):
            on_cpu = isinstance(args[0], np.ndarray) and _choice.kind != "reference"
            return in_float32(self if on_cpu else self.reference, args, self.in_place, self.statistics)
        return self.reference(*args)

    def each(self, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """The kernel's results for several lists of arguments. If there is a fast body called `<name>_each`, it
        computes them all in a single call."""
        if _choice.kind != "reference" and len({type(args[0]) for args in calls}) == 1:
            fast = self.fast_body(calls[0], "_each")
            prepared = [] if fast is None else [self._prepared(args) for args in calls]
            if fast is not None and None not in prepared:
                results = fast(prepared)
                if results is not NotImplemented:
                    return list(results)
        return [self(*args) for args in calls]

    def _prepared(self, args: Sequence[Any]) -> list[Any] | None:
        """The arguments in the form that fast bodies expect, or None if only the reference can take them."""
        if not isinstance(args[0], np.ndarray):
            return _ready_for_gpu(args, self.strided, self.in_place, self.integers)
        return _ready_for_cpu(args, self.strided, self.in_place, self.integers, self._takes_bfloat16)

    def each_on_device(self, calls: Sequence[Sequence[Any]]) -> Any:
        """The results of several calls as one array on the device, without waiting for them: those of a fast body
        called `<name>_on_device`. None if there is none that takes these arguments."""
        fast = None if _choice.kind == "reference" else self.fast_body(calls[0], "_on_device")
        if fast is None:
            return None
        prepared = [self._prepared(args) for args in calls]
        results = NotImplemented if None in prepared else fast(prepared)
        return None if results is NotImplemented else results

    def fast_body(self, args: Sequence[Any], suffix: str = "") -> Callable[..., Any] | None:
        """The compiled body for the library these arguments belong to, or None."""
        name = self.__name__ + suffix
        kind = _choice.kind
        if kind not in KINDS:  # checked here, not at import, so that it is reported like any other mistake
            raise UsageError(f"TINYGPT_KERNELS is {kind!r}: set it to one of {', '.join(KINDS)}")
        if isinstance(args[0], np.ndarray):
            if kind == "cuda":
                raise UsageError(f"TINYGPT_KERNELS=cuda, but {self.__name__} was given NumPy arrays")
            return numpy_backend.native_body(name, required=kind == "cython")
        if kind == "cython":
            raise UsageError(f"TINYGPT_KERNELS=cython, but {self.__name__} was given CuPy arrays")
        return get("cupy").native_body(name)

    def _takes_bfloat16(self, args: Sequence[Any]) -> bool:
        """Whether the compiled body takes these NumPy arrays, some of which have 16 bits."""
        if self.__name__ not in getattr(numpy_backend.extension(), "TAKES_BFLOAT16", ()):
            return False
        floats: dict[str, set[str]] = {}  # dtype -> the names of the arguments
        for name, value in zip(self.names, args, strict=False):
            if is_array(value) and is_floating(value.dtype):
                floats.setdefault(value.dtype.name, set()).add(name)
        narrow, wide = floats.pop("bfloat16", set()), floats.pop("float32", set())
        return bool(narrow) and not floats and (narrow == {"rounded"} or wide <= {*cuda.STATISTICS, "out"})

    @property
    def compiled(self) -> bool:
        """Whether this machine has a compiled body for NumPy arrays."""
        return numpy_backend.native_body(self.__name__) is not None

    def variants(self) -> dict[str, Callable[..., Any]]:
        """Every body that this machine can run on NumPy arrays, by kind. The tests compare them."""
        bodies = {"reference": self.reference}
        if self.compiled:

            def cython(*args: Any) -> Any:
                with use_kernels("cython"):
                    return self(*args)

            bodies["cython"] = cython
        return bodies


def kernel(reference: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Decorator: register `reference` as the kernel of its name. options: those of `Kernel`."""
    if reference is None:
        return functools.partial(kernel, **options)
    made = REGISTRY[reference.__name__] = Kernel(reference, **options)
    return made


def _ready_for_cpu(
    args: Sequence[Any],
    strided: bool,
    in_place: bool,
    integers: tuple[int, ...],
    takes_bfloat16: Callable[[Sequence[Any]], bool],
) -> list[Any] | None:
    """`Kernel._prepared` for NumPy arrays. A training step calls it hundreds of times, so it must be fast."""
    floating, narrow = None, False
    prepared: list[Any] = []
    for value in args:
        if isinstance(value, np.ndarray):
            if value.size == 0:
                return None
            dtype = value.dtype
            if dtype is not floating:
                if dtype.kind == "f":
                    if dtype not in _FLOATS or (floating is not None and dtype != floating):
                        return None
                    floating = dtype
                elif dtype.kind == "V":  # bfloat16, perhaps
                    if not narrow and not takes_bfloat16(args):
                        return None
                    narrow = True
                elif dtype.kind not in "iu" or len(prepared) not in integers:  # booleans, stray integers
                    return None
                elif dtype != np.int64:
                    value = _with_dtype(value, np.int64)
            flags = value.flags
            if not flags.aligned or not (strided or flags.c_contiguous):
                if in_place:
                    return None
                value = _contiguous(value)
        prepared.append(value)
    return prepared


@noted
def _contiguous(array: np.ndarray) -> np.ndarray:
    return np.array(array, order="C")


@noted
def _with_dtype(array: np.ndarray, dtype: Any) -> np.ndarray:
    return array.astype(dtype)


def _ready_for_gpu(args: Sequence[Any], strided: bool, in_place: bool, integers: tuple[int, ...]) -> list[Any] | None:
    """`Kernel._prepared` for CuPy arrays, which are always aligned and in native byte order, and can have 16-bit types.

    16-bit arrays may be accompanied by float32 arrays: the bodies check which is which.
    """
    floating = None
    prepared: list[Any] = []
    for value in args:
        if hasattr(value, "dtype") and is_array(value):
            if value.size == 0:
                return None
            dtype = value.dtype
            if dtype.kind == "f" or dtype.name == "bfloat16":  # its kind is "V" to NumPy
                if dtype.name not in _GPU_FLOATS or (floating is not None and {dtype.name, floating} not in _TOGETHER):
                    return None
                floating = dtype.name if floating in (None, "float32") else floating
            elif dtype.kind not in "iu" or len(prepared) not in integers:
                return None
            elif dtype != np.int64:
                value = value.astype(np.int64)
            if not strided and not value.flags.c_contiguous:
                if in_place:
                    return None
                value = array_module(value).array(value, order="C")
        prepared.append(value)
    return prepared


def forced_kind() -> str | None:
    """The kind of body that is forced in this thread, or None."""
    return None if _choice.kind == "auto" else _choice.kind


def work_size(name: str, like: Any, *sizes: int) -> int:
    """How many numbers of workspace a compiled body needs for arrays like `like`: the extension's function `name`
    computes it from `sizes`. 0 where the reference runs, which allocates its own."""
    extension = numpy_backend.extension() if isinstance(like, np.ndarray) else None
    return 0 if extension is None else int(getattr(extension, name)(*sizes))


def compiled_part(name: str) -> Any:
    """A class or function of the compiled extension that is not a kernel; None without the extension, and where the
    references are forced."""
    return None if _choice.kind == "reference" else numpy_backend.native_body(name)


def describe(backend: str) -> str:
    """One line about a backend on this machine, and the kind of body that is forced, if any."""
    forced = forced_kind()
    return get(backend).describe() + (f"; TINYGPT_KERNELS={forced}" if forced else "")


@contextlib.contextmanager
def use_kernels(wanted: str) -> Iterator[None]:
    """Force one kind of body inside the block, in this thread: auto, reference, cython or cuda."""
    if wanted not in KINDS:
        raise UsageError(f"there are no kernels of kind {wanted!r}: choose one of {', '.join(KINDS)}")
    previous, _choice.kind = _choice.kind, wanted
    try:
        yield
    finally:
        _choice.kind = previous
