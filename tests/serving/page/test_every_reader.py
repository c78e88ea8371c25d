"""The page for every reader: narrow screens, languages, light and dark, names of controls."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.browser import contrast, fits, in_a_browser, opened
from tests.serving.page.helpers import (
    choose,
    done,
    write,
)
from tinygpt.serving.engine import Engine

pytestmark = in_a_browser


@pytest.mark.parametrize("mode", ["text", "chat"])
def test_a_narrow_screen(browser: Any, server: tuple[str, Engine], mode: str) -> None:
    size = {"width": 360, "height": 640}
    with opened(browser, server[0], viewport=size) as page:
        assert page.locator("#settings").get_attribute("open") is None  # they would push the text away
        assert fits(page)
        page.get_by_text("Settings").click()
        assert fits(page)
        if mode == "chat":
            page.get_by_text("Chat").click()
            choose(page, "max_tokens", 60)
            page.get_by_label("Message", exact=True).fill("x" * 300)
            page.get_by_role("button", name="Send").click()
            done(page)
        else:
            write(page, "x" * 300, 60)
        assert fits(page)
        for number in (0, 30, 59):
            page.locator(".token").nth(number).click()
            box = page.get_by_role("dialog").bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360
            page.keyboard.press("Escape")


def test_languages(browser: Any, server: tuple[str, Engine]) -> None:
    """The browser's at first; then the one that was chosen, on the next visit too."""
    with opened(browser, server[0], locale="zh-CN") as page:
        page.get_by_text(re.compile("tiny.上下文 512 个词元")).wait_for()
        assert page.locator("html").get_attribute("lang") == "zh-CN"
        page.get_by_label("提示词").fill("To be")
        page.get_by_role("button", name="生成").click()
        page.get_by_role("status").filter(has_text="已达到词元数上限。").wait_for()
        english = re.compile("[A-Za-z]{3,}")
        for element in page.locator("button:visible, label span:visible, #keys, #legend").all():
            words = element.text_content()
            assert not english.search(re.sub("Ctrl|Enter|Shift|Esc|Top", "", words)), words
        page.get_by_label("语言").select_option("en")
        page.get_by_text("tiny, 512 tokens of context").wait_for()
        assert page.get_by_role("button", name="Write").is_enabled()
        assert "The limit of tokens is reached." in page.get_by_role("status").text_content()
        assert re.search(", [\\d.]+%$", page.locator(".token").first.get_attribute("aria-label"))
        page.reload()
        page.get_by_role("button", name="Write").wait_for()
        assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser: Any, server: tuple[str, Engine], scheme: str) -> None:
    """The browser's at first, or the one chosen; every text can be read (WCAG AA), that in full color too."""
    with opened(browser, server[0], color_scheme=scheme) as page:
        ground = "e => getComputedStyle(e).backgroundColor"
        colors = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}
        assert page.eval_on_selector("body", ground) == colors[scheme]
        write(page, "To be", 3)
        page.evaluate("document.querySelector('.token').style.setProperty('--strength', 1)")
        page.locator(".token").nth(1).click()
        for where in (".token", ".given", "#write", "#stop", "#keys", "#status", "summary", "#alternatives .share"):
            if page.locator(where).first.is_enabled():
                assert contrast(page, where) >= 4.5, where
        other = {"light": "dark", "dark": "light"}[scheme]
        page.keyboard.press("Escape")
        page.get_by_label("Colors").select_option(other)
        assert page.eval_on_selector("body", ground) == colors[other]


def test_every_control_has_a_name(page: Any) -> None:
    for element in page.locator("button, input, select, textarea").all():
        name = element.evaluate("e => (e.labels?.[0] ?? e).textContent.trim() || e.getAttribute('aria-label')")
        assert name, element
