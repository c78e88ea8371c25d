"""The page of `tinygpt explain` in a browser: light and dark, wide and narrow, with and without JavaScript."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.browser import contrast, fits, in_a_browser, opened
from tests.interpret.helpers import make_model
from tinygpt import tokenizers
from tinygpt.interpret import Explanation, explain, page

pytestmark = in_a_browser

TEXT = "a<b>&\n \"c'"


@pytest.fixture(scope="module")
def found() -> Explanation:
    return explain(make_model("float32", vocab_size=256).eval(), tokenizers.ByteTokenizer(), TEXT, "b", steps=40)


@pytest.fixture(scope="module")
def url(found: Explanation, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("explained") / "page.html"
    path.write_text(page("a model", found), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_every_screen(browser: Any, url: str, scheme: str, width: int) -> None:
    """Nothing is wider than the window but in a box that scrolls, and each text can be read in its color."""
    with opened(browser, url, viewport={"width": width, "height": 800}, color_scheme=scheme) as shown:
        grounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}
        assert shown.eval_on_selector("body", "e => getComputedStyle(e).backgroundColor") == grounds[scheme]
        assert fits(shown)
        for element in shown.locator(".wide").all():
            assert element.evaluate("e => e.getBoundingClientRect().right <= innerWidth")
        shown.evaluate("document.querySelectorAll('.tokens span').forEach(e => e.style.setProperty('--a', 1))")
        for what in (".tokens span", "td", "th", "td small", "p", ".legend b", "h1", "h2"):
            assert contrast(shown, what) >= 4.5, what


def test_without_javascript(browser: Any, found: Explanation, url: str) -> None:
    """What the page says of the text and of its last token is there; only pointing at other tokens is missing."""
    with opened(browser, url, java_script_enabled=False) as shown:
        assert shown.locator("h2").count() == 5
        titles = [e.get_attribute("title") for e in shown.locator(".tokens").first.locator("span").all()]
        bits = [float(title.split()[0]) for title in titles[1:]]
        assert bits == pytest.approx(found.surprise[1:], abs=0.01)
        assert shown.locator("#how").is_hidden()
        assert shown.locator("#heads button").count() == 0
        assert re.fullmatch(r"\S+ \d+ %", shown.locator("#heads td").first.text_content())
        assert fits(shown)


def test_pointing_and_keys(browser: Any, found: Explanation, url: str) -> None:
    """The third token under the mouse or in focus, and head 1 of block 0: that row of that map."""
    requests: list[str] = []
    with opened(browser, url) as shown:
        shown.on("request", lambda request: requests.append(request.url))
        tokens, heads = shown.locator("#look span"), shown.locator("#heads button")
        tokens.nth(2).hover()
        heads.nth(1).click()
        row = [f"{100 * round(255 * a) / 255:.1f} %" for a in found.maps[0, 1, 2, :3]]
        later = ["comes later"] * (len(TEXT) - 3)
        assert [e.get_attribute("title") for e in tokens.all()] == [*row, *later]
        assert shown.locator("#who").text_content() == "block 0, head 1"
        assert heads.count() == 12
        assert shown.locator("td.chosen").count() == 1
        assert heads.nth(1).get_attribute("aria-pressed") == "true"
        shown.keyboard.press("Space")  # the head that has the focus, again
        assert shown.locator("#who").text_content() == "the mean of all heads"
        tokens.nth(4).focus()
        assert shown.locator("#which").text_content() == TEXT[4]
    assert not requests
