"""Progress of a run: a bar on a terminal or in a notebook, a few plain lines in a log file.

A closed or broken output stream does not stop the run (`tinygpt/console.py`).
"""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

from tqdm import tqdm

from ...console import Lenient, in_notebook
from ...notebook import NotebookBar

_REFRESH = 0.1  # seconds between redraws: redrawing at every step would cost more than a small model's step
_LINE = 30.0  # seconds between lines in a log file
_LAYOUT = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Progress:
    """Shows steps done, loss, tokens/s and time left on `stream`: any object with a `write` method.

    By default that is sys.stderr, and in a notebook the output of the cell.
    """

    def __init__(self, total: int, done: int, tokens_per_step: int, stream: Any = None) -> None:
        self._in_notebook = stream is None and in_notebook()
        # In a notebook the lines below the bar go to stdout: what is on stderr there looks like a warning.
        usual = sys.stdout if self._in_notebook else sys.stderr
        self.stream = Lenient(stream if stream is not None else usual)
        self.tokens_per_step = tokens_per_step
        self._shown, self._time, self._rate = done, time.perf_counter(), 0.0
        self._last: tuple[int, float] | None = None
        self._last_line = self._time
        self._bar = self._make_bar(total, done)

    def _make_bar(self, total: int, done: int) -> Any:
        # A huge miniters keeps tqdm from redrawing by itself. leave=True: the finished bar stays on the screen.
        options: dict[str, Any] = {
            "total": total, "initial": done, "bar_format": _LAYOUT, "mininterval": 0, "miniters": 1 << 62,
        }  # fmt: skip
        if self._in_notebook:
            return NotebookBar(leave=True, **options)
        # The bar fills what the text leaves of the line: on a narrow terminal it shrinks before the text is cut off.
        size = shutil.get_terminal_size()  # 80 x 24 if unknown
        hidden = not self.stream.isatty()
        return tqdm(leave=True, file=self.stream, disable=hidden, ncols=size.columns, nrows=size.lines, **options)

    def update(self, step: int, loss: float) -> None:
        """Call after each step; redraws at most every `_REFRESH` seconds."""
        self._last = step, loss
        now = time.perf_counter()
        elapsed = now - self._time
        if elapsed < _REFRESH:
            return
        rate = (step - self._shown) * self.tokens_per_step / elapsed
        self._rate = rate if self._rate == 0.0 else 0.9 * self._rate + 0.1 * rate
        self._draw(step, loss)
        self._shown, self._time = step, now
        if self._bar.disable and now - self._last_line > _LINE:
            self.line(step, f"step {step}: {self._facts(loss)}")

    def _draw(self, step: int, loss: float) -> None:
        if self._bar.disable:
            return
        self._bar.n = step
        self._bar.set_postfix_str(self._facts(loss), refresh=False)
        self._bar.refresh()

    def _facts(self, loss: float) -> str:
        return f"loss {loss:.3f}, {self._rate:,.0f} tokens/s"

    def line(self, step: int, text: str) -> None:
        """Print a line of text, above the bar of a terminal, below that of a notebook."""
        self._bar.n = step
        tqdm.write(text, file=self.stream)
        self.stream.flush()
        self._shown, self._time = step, time.perf_counter()  # evaluation time must not count in tokens/s
        self._last_line = self._time

    def close(self) -> None:
        if self._last is not None:
            self._draw(*self._last)
        self._bar.close()
