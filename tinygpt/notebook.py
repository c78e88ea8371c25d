"""The progress bar of a notebook: Jupyter, JupyterLab, VS Code, Colab.

tqdm has a bar for notebooks too, but that needs ipywidgets, and it is missing from a saved notebook. This one is an
HTML element that is rewritten in place. It needs nothing but the kernel, and a saved notebook keeps its last state.
`tinygpt/console.py` decides when it is used.
"""

from __future__ import annotations

import contextlib
from html import escape
from typing import Any

from tqdm import tqdm

_PLACE = "\0"  # stands for the bar in tqdm's text
_LAYOUT = "{l_bar}{bar}{r_bar}"  # tqdm's own


class NotebookBar(tqdm):
    """A tqdm bar, with tqdm's options, in the output of the cell that is running."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._handle: Any = None
        # gui: tqdm then writes nothing itself, and leaves all drawing to `display`. file: a terminal that isn't there.
        super().__init__(*arguments, **options, gui=True, file=_Nowhere(), ncols=0)
        if not self.disable and self.delay <= 0:
            self.display()

    def display(self, *_: Any, **__: Any) -> None:
        """Draw the bar, or draw it again."""
        self._show(*_drawn(self.format_dict))

    def clear(self, *_: Any, **__: Any) -> None:
        """Nothing to clear before a line of text: it goes below the bar."""

    def close(self) -> None:
        """Leave the last state, or nothing with leave=False."""
        if self.disable:
            return
        if self.leave:
            self.display()
        elif self._handle is not None:
            self._show("", "")
        super().close()

    def _show(self, html: str, plain: str) -> None:
        from IPython.display import display  # installed, since it runs this code: see `console.in_notebook`

        data = {"text/html": html, "text/plain": plain}
        with contextlib.suppress(Exception):  # a lost connection to the browser must not end a run
            if self._handle is None:
                self._handle = display(data, raw=True, display_id=True)
            else:
                self._handle.update(data, raw=True)


class _Nowhere:
    """A stream for tqdm, which drops everything."""

    encoding = "utf-8"

    def write(self, words: str) -> int:
        return len(words)

    def flush(self) -> None:
        pass


def _drawn(facts: dict[str, Any]) -> tuple[str, str]:
    """The bar as HTML and as text. facts: tqdm's `format_dict`."""
    if not facts["total"]:
        words = tqdm.format_meter(**facts)
        return f"<span>{escape(words)}</span>", words
    layout = (facts["bar_format"] or _LAYOUT).replace("{bar}", _PLACE)
    words = tqdm.format_meter(**(facts | {"bar_format": layout, "ncols": None}))
    before, _, after = (part.strip("| ") for part in words.partition(_PLACE))
    bar = f'<progress value="{facts["n"]}" max="{facts["total"]}" style="width: 20em"></progress>'
    return f"<div>{escape(before)} {bar} {escape(after)}</div>", f"{before} {after}"
