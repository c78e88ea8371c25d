"""How a command ends: its exit code, and the sentence of a mistake."""

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
    """End the process with `work`'s exit code; a mistake of the user's becomes a sentence and code 2."""
    fill_standard_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack a character that the model has
    sys.exit(_flushed(_code(work)))


def _code(work: Callable[[], int | None]) -> int:
    """Do the work; its exit code, or that of what went wrong with it."""
    try:
        return work() or 0
    except SystemExit as end:  # of the parser: --help, or a mistake that it has explained
        return end.code if isinstance(end.code, int) else 0
    except BrokenPipeError as error:
        # `tinygpt sample | head`: the reader has what it wanted. Another pipe that breaks is an error like any other.
        return 0 if reader_is_gone(sys.stdout) else _say(error, MISTAKE)
    except (UsageError, OSError) as error:
        return _say(error, MISTAKE)
    except MemoryError as error:
        return _say(f"there is not enough memory ({error}): take a smaller model or a smaller batch", MISTAKE)
    except KeyboardInterrupt:
        return _say("stopped", 128 + signal.SIGINT)
    except Exception as error:
        from ..training import DivergedError  # only now: most commands do not train

        if not isinstance(error, DivergedError):
            raise
        return _say(error, DIVERGED)


def _flushed(code: int) -> int:
    """Write out what is still to be written. Python itself would end with code 120 where that can't be done."""
    try:
        if sys.stdout is not None:  # None: closed by the caller, who wants no output
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
    print(words, file=Lenient(sys.stderr), flush=True)  # where nobody reads it, the exit code says it all the same
    return code


def again(*arguments: str) -> str:
    """The command that was typed, with other arguments: what to type next."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        words = ["python", "-m", "tinygpt"]
    else:
        words = ["python", sys.argv[0]] if program.suffix == ".py" else [program.name]
    return shlex.join([*words, *arguments])
