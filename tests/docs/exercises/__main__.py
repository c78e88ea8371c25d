"""python -m tests.docs.exercises softmax mine.py: whether the functions in mine.py are right."""

from __future__ import annotations

import runpy
import sys

from . import CHECKS


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in CHECKS:
        print(f"python -m tests.docs.exercises OPERATION FILE, with OPERATION one of {', '.join(CHECKS)}")
        return 2
    operation, path = arguments
    functions, run = CHECKS[operation]
    names = runpy.run_path(path)
    missing = [name for name in functions if name not in names]
    if missing:
        print(f"{path} does not define {', '.join(missing)}")
        return 1
    try:
        run(names)
    except AssertionError:
        print(f"{operation}: not right yet")
        return 1
    print(f"{operation}: right")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
