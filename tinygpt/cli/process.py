"""How a command ends: its exit code, and the one-line message of an error."""

from __future__ import annotations

import io
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ..console import Lenient, fill_standard_descriptors, reader_is_gone, silence
from ..errors import UsageError

DIVERGED, MISTAKE = 1, 2


def exit_with(work: Callable[[], int | None]) -> None:
    """End the process with the exit code of `work`. A usage error is printed in one line, with code 2."""
    fill_standard_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a model may produce characters that the terminal's encoding lacks
    sys.exit(_flushed(code_of(work)))


def code_of(work: Callable[[], int | None]) -> int:
    """Run `work` and return its exit code, or that of its exception."""
    try:
        return work() or 0
    except SystemExit as end:  # from the parser: --help, or an error that it has reported
        return end.code if isinstance(end.code, int) else 0
    except BrokenPipeError as error:
        # `tinygpt sample | head`: the reader has what it wanted. Any other broken pipe is an error.
        return 0 if reader_is_gone(sys.stdout) else _say(error, MISTAKE)
    except (UsageError, OSError) as error:
        return _say(error, MISTAKE)
    except MemoryError as error:
        return _say(f"there is not enough memory ({error}): use a smaller model or a smaller batch", MISTAKE)
    except KeyboardInterrupt:
        return _say("stopped", 128 + signal.SIGINT)
    except Exception as error:
        from ..training import DivergedError  # imported late: most commands do not train

        if not isinstance(error, DivergedError):
            raise
        return _say(error, DIVERGED)


def _flushed(code: int) -> int:
    """Flush the output. Python itself would exit with code 120 if that fails."""
    try:
        if sys.stdout is not None:  # None if the caller closed it
            sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except (OSError, ValueError) as error:
        silence(sys.stdout)
        code = code or _say(f"the output could not be written: {error}", MISTAKE)
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        silence(sys.stderr)
    return code


def _say(what: object, code: int) -> int:
    program = Path(sys.argv[0]).name
    words = f"{'tinygpt' if program == '__main__.py' else program}: {what}"
    print(words, file=Lenient(sys.stderr), flush=True)  # if nobody reads it, there is still the exit code
    return code


def again(*arguments: str) -> str:
    """The command that the user typed, with other arguments: what to type next."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        words = ["python", "-m", "tinygpt"]
    else:
        words = ["python", sys.argv[0]] if program.suffix == ".py" else [program.name]
    return shlex.join([*words, *arguments])
