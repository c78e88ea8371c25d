"""Chromium, driven by Playwright: for the tests with the marker `browser`.

Playwright drives the Chromium that is there (the distribution's, or the program that TINYGPT_CHROMIUM names); it never
fetches one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("TINYGPT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
MISSING = [what for what, there in (
    ("the program chromium", CHROMIUM), ("the extra browser", importlib.util.find_spec("playwright")),
) if not there]  # fmt: skip

in_a_browser = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}: .ci/browser installs them"),
]


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's Browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # In a container there is no sandbox of Chromium's, and /dev/shm is small. No page here is a stranger's.
        options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page in a fresh profile: at the end no script failed and nothing was blocked. options: of `new_context`.

    `page.expected` has patterns of the messages that a test provokes.
    """
    context = browser.new_context(**{"viewport": {"width": 1000, "height": 800}, "locale": "en-US"} | options)
    page, said = context.new_page(), []
    page.expected = []
    page.set_default_timeout(60_000)  # machines are shared
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(url)
    yield page
    context.close()
    assert not [text for text in said if not any(re.search(pattern, text) for pattern in page.expected)]


def fits(page: Any) -> bool:
    """Whether nothing is wider than the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def contrast(page: Any, selector: str) -> float:
    """The lowest contrast between the text of these elements and what is behind it (WCAG 2.2, "contrast ratio")."""
    found = page.eval_on_selector_all(
        selector,
        """elements => elements.map(element => {
          const layers = [];
          for (let e = element; e; e = e.parentElement) layers.push(getComputedStyle(e).backgroundColor);
          return [getComputedStyle(element).color, layers];
        })""",
    )
    return min(_contrast(ink, layers) for ink, layers in found)


def _contrast(ink: str, layers: list[str]) -> float:
    """layers: the backgrounds, from the front to the back."""
    behind: tuple[float, ...] = (255.0, 255.0, 255.0)
    for layer in reversed(layers):
        *color, alpha = _rgba(layer)
        behind = tuple(alpha * c + (1 - alpha) * b for c, b in zip(color, behind, strict=True))
    light, dark = sorted((_luminance(_rgba(ink)[:3]), _luminance(behind)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _rgba(color: str) -> tuple[float, ...]:
    """rgb(1, 2, 3), rgba(1, 2, 3, 0.5)"""
    numbers = tuple(map(float, re.findall(r"[\d.]+", color)))
    assert color.startswith("rgb"), color
    return numbers if len(numbers) == 4 else (*numbers, 1.0)


def _luminance(color: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (c / 255 for c in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
