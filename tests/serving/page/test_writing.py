"""Writing on the page: streaming, colors, alternatives, stopping; text of any kind stays text."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.browser import in_a_browser
from tests.serving.page.helpers import (
    HOSTILE,
    MODEL,
    TOKENIZER,
    answer,
    choose,
    chunk,
    done,
    shown,
    token,
    write,
    written,
)
from tinygpt.serving.engine import Engine

pytestmark = in_a_browser


def test_typing_and_streaming(page: Any, paced: Any) -> None:
    """The text grows token by token, and is what `generate` writes."""
    page.get_by_text("tiny, 512 tokens of context").wait_for()
    choose(page, "temperature", 0)
    choose(page, "max_tokens", 6)
    page.get_by_label("Prompt").press_sequentially("To be")
    page.keyboard.press("Control+Enter")
    page.get_by_text("Writing.").wait_for()
    for count in range(1, 6):
        paced(1)
        page.locator(".token").nth(count - 1).wait_for()
        assert page.locator(".token").count() == count
        assert page.locator(".written").get_attribute("aria-busy") == "true"
        assert page.get_by_role("button", name="Write").is_disabled()
    paced(1)
    done(page)
    assert shown(page) == "To be" + written("To be", 6)
    assert "The limit of tokens is reached." in page.get_by_role("status").text_content()
    assert page.get_by_role("log").text_content() == written("To be", 6)  # what a screen reader says
    paced(6)
    page.get_by_role("button", name="Continue").click()
    page.locator(".token").nth(11).wait_for()
    done(page)
    assert shown(page) == "To be" + written("To be", 12)


def test_the_settings_are_sent(page: Any) -> None:
    """Each with its name, and the seed of the text is told."""
    bodies: list[Any] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.post_data else None)
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Maximum tokens").fill("5")
    page.get_by_label("Stop strings").fill("never\n\\nEND")
    for name, value in (("temperature", 0.5), ("top_p", 0.9), ("frequency_penalty", 0.3), ("presence_penalty", -1)):
        choose(page, name, value)
    page.get_by_label("Prompt").fill("To be")
    page.get_by_role("button", name="Write").click()
    done(page)
    assert {"seed": 7, "max_tokens": 5, "stop": ["never", "\nEND"], "temperature": 0.5, "top_p": 0.9,
            "frequency_penalty": 0.3, "presence_penalty": -1, "stream": True}.items() <= bodies[-1].items()  # fmt: skip
    first = shown(page)
    assert "seed 7." in page.get_by_role("status").text_content()
    page.get_by_role("button", name="Write").click()
    page.wait_for_timeout(100)
    done(page)
    assert shown(page) == first
    page.get_by_role("button", name="Reset").click()
    assert page.get_by_label("Temperature").input_value() == "1"
    assert page.get_by_label("Seed").input_value() == ""


def test_colors_are_probabilities(page: Any) -> None:
    ids = TOKENIZER.encode("To be")
    write(page, "To be", 4)
    details = MODEL.generate(ids[None], 4, temperature=0, return_details=True)
    strengths = page.eval_on_selector_all(".token", "all => all.map(e => +e.style.getPropertyValue('--strength'))")
    np.testing.assert_allclose(strengths, np.minimum(1, -details.log_probs[0] / np.log(2) / 8), atol=2e-3)
    share = 100 * np.exp(details.log_probs[0][0])
    assert float(page.locator(".token").first.get_attribute("title").rstrip("%")) == pytest.approx(share, abs=0.06)
    page.get_by_label("Color tokens").uncheck()
    assert page.eval_on_selector(".token", "e => getComputedStyle(e).backgroundColor") == "rgba(0, 0, 0, 0)"


def test_choosing_an_alternative(page: Any) -> None:
    """The text goes on from the alternative, and undoing brings back what was there."""
    write(page, "To be")
    before = shown(page)
    page.locator(".token").nth(4).click()
    dialog = page.get_by_role("dialog", name="Alternatives")
    taken = dialog.locator("[aria-current]")
    assert taken.locator("code").text_content() == before[9].replace(" ", "·").replace("\n", "⏎")
    assert dialog.get_by_role("button").count() == 5
    shares = [float(text.rstrip("%")) for text in dialog.locator(".share").all_text_contents()]
    assert shares == sorted(shares, reverse=True)
    assert "All other tokens" in dialog.text_content()
    other = dialog.get_by_role("button").nth(2)
    name = other.locator("code").text_content().replace("·", " ").replace("⏎", "\n")
    other.click()
    done(page)
    kept = before[:9] + name
    assert shown(page) == kept + written(kept, 12)
    assert dialog.is_hidden()
    assert page.locator(".token.chosen").count() == 1
    page.locator(".token").nth(4).click()  # its alternatives are still those of its place
    assert dialog.get_by_role("button").count() == 5
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Undo").click()
    assert shown(page) == before
    assert page.get_by_role("button", name="Undo").is_disabled()


def test_without_a_mouse(page: Any) -> None:
    """From the prompt to a token, to its alternatives and back, and on to another text."""
    write(page, "To be")
    before = shown(page)
    page.get_by_role("button", name="Clear").focus()
    page.keyboard.press("Tab")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home", "ArrowRight"):
        page.keyboard.press(key)
    token = page.locator(".token").nth(1)
    assert token.evaluate("e => e === document.activeElement")
    assert page.locator(".token[tabindex='0']").count() == 1
    page.keyboard.press("Enter")
    buttons = page.get_by_role("dialog").get_by_role("button")
    assert buttons.first.evaluate("e => e === document.activeElement")
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0
    assert token.evaluate("e => e === document.activeElement")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    name = buttons.nth(1).locator("code").text_content().replace("·", " ").replace("⏎", "\n")
    page.keyboard.press("Enter")
    page.locator(".token.chosen").wait_for()
    done(page)
    assert shown(page).startswith(before[:6] + name)


@pytest.mark.parametrize("how", ["button", "Escape", "another mode"])
def test_stop(page: Any, server: tuple[str, Engine], paced: Any, how: str) -> None:
    """The place on the server is free, and what was written stays."""
    page.get_by_label("Prompt").fill("To be")
    page.get_by_role("button", name="Write").click()
    paced(2)
    page.locator(".token").nth(1).wait_for()
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    elif how == "Escape":
        page.keyboard.press("Escape")
    else:
        page.get_by_text("Chat").click()
        page.get_by_text("Text", exact=True).click()
    if how != "another mode":
        page.get_by_text("Stopped after 2 tokens").wait_for()
    assert page.locator(".token").count() == 2
    assert page.get_by_role("button", name="Stop").is_disabled()
    for turn in range(600):
        paced(turn < 10)  # the server notices at one of the next tokens that nobody reads them, long before the last
        if not server[1].running:
            break
        page.wait_for_timeout(50)
    assert server[1].running == 0


def test_a_stop_string_is_not_part_of_the_text(page: Any) -> None:
    text = written("To be", 12)
    page.get_by_label("Stop strings").fill(text[5:7].replace("\n", "\\n"))
    write(page, "To be")
    assert shown(page) == "To be" + text[: text.index(text[5:7])]
    assert "The model ended the text." in page.get_by_role("status").text_content()


def test_no_text_becomes_html(page: Any) -> None:
    """Neither a prompt, nor a token or its alternative, nor an error."""
    answer(page, "v1/completions", [
        chunk("", []), chunk(HOSTILE, [token(HOSTILE.encode(), 1, {**token(HOSTILE.encode(), 2), "logprob": -2.0})]),
        chunk("", [], "stop"),
    ])  # fmt: skip
    write(page, HOSTILE)
    assert shown(page) == HOSTILE * 2
    page.locator(".token").click()
    assert page.get_by_role("dialog").locator("code").all_text_contents() == [HOSTILE.replace(" ", "·")] * 2
    page.unroute("**/v1/completions")
    message = json.dumps({"error": {"message": HOSTILE}})
    page.expected = ["status of 400"]
    page.route("**/v1/completions", lambda route: route.fulfill(status=400, body=message))
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Write").click()
    page.get_by_role("alert").wait_for()
    assert HOSTILE in page.get_by_role("alert").text_content()
    assert page.title() == "tinygpt"
    assert page.locator("main script, main img, #alternatives img").count() == 0


def test_a_character_of_several_tokens(page: Any) -> None:
    """It is shown whole, and each of its tokens has its alternatives."""
    parts = [token(bytes([byte]), byte, {**token(b"z", 122), "logprob": -3.0}) for byte in "中".encode()]
    answer(page, "v1/completions", [chunk("", parts[:1]), chunk("", parts[1:2]), chunk("中", parts[2:]),
                                   chunk("!", [token(b"!", 33)]), chunk("", [], "length")])  # fmt: skip
    write(page, "a")
    assert page.locator(".token").all_text_contents() == ["中", "!"]
    assert float(page.locator(".token").first.get_attribute("title").rstrip("%")) == 12.5
    page.locator(".token").first.click()
    heads = page.get_by_role("dialog").get_by_role("heading").all_text_contents()
    assert heads == ["Part 1 of 3, E4: 50.0%", "Part 2 of 3, B8: 50.0%", "Part 3 of 3, AD: 50.0%"]
    bodies: list[Any] = []
    page.on("request", lambda request: bodies.append(request.post_data_json))
    page.get_by_role("dialog").get_by_role("button").nth(3).click()  # z as the second of them
    page.locator(".chosen").wait_for()
    assert bodies[-1]["prompt"][1:] == [0xE4, 122]
