"""Does, in this process, what it is told by name."""

from __future__ import annotations

import sys
import traceback

from tests.parallel.roles import WORK, gpus, gradients, memory, runs, sums  # noqa: F401  what is to be found by name
from tinygpt.parallel import current


def main() -> None:
    team = current()
    try:
        WORK[sys.argv[1]](team, *sys.argv[2:])
    except BaseException:
        traceback.print_exc()
        team.end_all(3)


if __name__ == "__main__":
    main()
