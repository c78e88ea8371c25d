"""How a command ends: its exit code, and the sentence of a mistake."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import UsageError

DIVERGED, MISTAKE = 1, 2


def exit_with(work: Callable[[], int | None]) -> None:
    """End the process with `work`'s exit code; a mistake of the user's becomes a sentence and code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack a character that the model has
    try:
        code = work() or 0
        if sys.stdout is not None:  # None: closed by the caller, who wants no output
            sys.stdout.flush()
    except BrokenPipeError:  # `tinygpt sample | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (UsageError, OSError) as error:
        code = _say(error, MISTAKE)
    except MemoryError as error:
        code = _say(f"there is not enough memory ({error}): take a smaller model or a smaller batch", MISTAKE)
    except KeyboardInterrupt:
        code = _say("stopped", 128 + signal.SIGINT)
    except Exception as error:
        from ..training import DivergedError  # only now: most commands do not train

        if not isinstance(error, DivergedError):
            raise
        code = _say(error, DIVERGED)
    sys.exit(code)


def _say(what: object, code: int) -> int:
    program = Path(sys.argv[0]).name
    if sys.stderr is None:
        return code
    with contextlib.suppress(OSError):  # nobody reads it; the exit code says it all the same
        print(f"{'tinygpt' if program == '__main__.py' else program}: {what}", file=sys.stderr, flush=True)
    return code


def again(*arguments: str) -> str:
    """The command that was typed, with other arguments: what to type next."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        words = ["python", "-m", "tinygpt"]
    else:
        words = ["python", sys.argv[0]] if program.suffix == ".py" else [program.name]
    return shlex.join([*words, *arguments])
