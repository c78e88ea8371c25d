"""Make the pictures of the pages of `tinygpt serve`, `tinygpt explain` and `tinygpt report` in docs/pictures/.

    python docs/screenshots.py --model out/shakespeare-tiny
    python docs/screenshots.py --report out/shakespeare-tiny out/high-rate      # of the report alone

The model is that of the README's first command line. The runs of the report are of `tinygpt train --watch-layers 20
--sample-every 200 --steps 600`, the second with `--lr 4e-3`. Needs the extras `serve` and `browser`, and Chromium; a
font with Chinese characters for the page in Chinese (--chinese).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser import chromium, opened  # noqa: E402

PICTURES = Path(__file__).with_name("pictures")
MOST_BYTES = 150_000
PROMPT, SEED = "ROMEO:\nO, she doth", 12
TEXT = "To be, or not to be, that is the question"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="out/shakespeare-tiny")
    parser.add_argument("--chinese", action="store_true", help="the page in Chinese too")
    parser.add_argument("--report", nargs="+", metavar="FOLDER", help="runs, for pictures of their report alone")
    options = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    if options.report:
        with tempfile.TemporaryDirectory() as folder, chromium() as browser:
            report(browser, Path(folder), options.report)
        return
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        explained = Path(folder) / "explain.html"
        explain = [sys.executable, "-m", "tinygpt", "explain", "--model", options.model, "--text", TEXT]
        subprocess.run([*explain, "--out", str(explained)], check=True)
        for scheme in ("light", "dark"):
            view = {"width": 800, "height": 1150}
            take(
                browser, explained.as_uri(), f"explain_{scheme}", lambda page: None, viewport=view, color_scheme=scheme
            )
        serve = [
            sys.executable,
            "-m",
            "tinygpt",
            "serve",
            "--model",
            options.model,
            "--port",
            "0",
            "--template",
            "play",
        ]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                pages(browser, server.stdout.readline().split()[3].removesuffix("/v1"), options.chinese)
            finally:
                server.terminate()


def report(browser: Any, folder: Path, runs: list[str]) -> None:
    """The page of one run, and of several beside each other; on a narrow screen too."""
    for name, shown, height in (("report", runs[:1], 1500), ("report_several", runs, 800)):
        made = folder / f"{name}.html"
        subprocess.run([sys.executable, "-m", "tinygpt", "report", *shown, "--out", str(made)], check=True)
        for scheme in ("light", "dark"):
            view = {"width": 900, "height": height}
            take(browser, made.as_uri(), f"{name}_{scheme}", lambda page: None, viewport=view, color_scheme=scheme)
    narrow = {"width": 360, "height": 640}
    take(browser, (folder / "report.html").as_uri(), "report_narrow", lambda page: None, viewport=narrow)


def pages(browser: Any, url: str, chinese: bool) -> None:
    """The page of the server."""
    take(browser, url, "page_text", write, color_scheme="light")
    take(browser, url, "page_chat", talk, color_scheme="dark")
    narrow = {"width": 360, "height": 640}
    take(browser, url, "page_narrow", write, viewport=narrow, color_scheme="dark")
    if chinese:
        take(browser, url, "page_chinese", write, locale="zh-CN", color_scheme="light")


def write(page: Any) -> None:
    """A text, and the alternatives of its least likely token."""
    settings(page, seed=SEED, max_tokens=40, temperature=0.8)
    send(page, PROMPT)
    strengths = page.eval_on_selector_all(".token", "all => all.map(e => +e.style.getPropertyValue('--strength'))")
    page.locator(".token").nth(strengths.index(max(strengths))).click()


def talk(page: Any) -> None:
    page.locator(".switch label").nth(1).click()
    settings(page, seed=SEED, temperature=0.8)
    send(page, "Who comes there?")


def settings(page: Any, **values: float) -> None:
    closed = page.locator("#settings").get_attribute("open") is None  # on a narrow screen
    if closed:
        page.locator("summary").click()
    for name, value in values.items():
        page.locator(f"#options [name={name}]").fill(str(value))
    if closed:
        page.locator("summary").click()


def send(page: Any, text: str) -> None:
    page.locator("#prompt").fill(text)
    page.locator("#write").click()
    page.locator("#status", has_text=re.compile("seed|种子")).wait_for()


def take(browser: Any, url: str, name: str, act: Callable[[Any], None], **options: Any) -> None:
    path = PICTURES / f"{name}.png"
    with opened(browser, url, **({"viewport": {"width": 1100, "height": 720}} | options)) as page:
        act(page)
        page.screenshot(path=path, animations="disabled", caret="hide")
    size = path.stat().st_size
    assert size < MOST_BYTES, f"{path} has {size} bytes: more than {MOST_BYTES}"
    print(path, size)


if __name__ == "__main__":
    main()
