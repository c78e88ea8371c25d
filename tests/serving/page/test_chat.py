"""Chats on the page: turns, a context that is full, a message that is sent again."""

from __future__ import annotations

from typing import Any

from tests.browser import in_a_browser
from tests.serving.page.helpers import (
    choose,
    done,
    shown,
    written,
)

pytestmark = in_a_browser


def test_chat(page: Any) -> None:
    """Turns become messages; an alternative in an earlier answer takes back what came after it."""
    page.get_by_text("Chat").click()
    choose(page, "temperature", 0)
    choose(page, "max_tokens", 8)
    page.get_by_label("System message").fill("S")
    message, stops = page.get_by_label("Message", exact=True), ["\nUser:"]
    message.fill("a")
    message.press("Enter")
    done(page)
    first = "S\n\nUser: a\nAssistant:"
    answers = [written(first, 8, stop_strings=stops)]
    assert shown(page) == answers[0]
    message.fill("b")
    message.press("Shift+Enter")
    message.press("c")
    message.press("Enter")
    page.locator(".written").nth(1).locator(".token").first.wait_for()
    done(page)
    second = f"{first} {answers[0].strip(' ')}\nUser: b\nc\nAssistant:"
    assert shown(page, 1) == written(second, 8, stop_strings=stops)
    assert page.get_by_role("heading", name="You").count() == 2
    page.locator(".written").first.locator(".token").nth(3).click()
    other = page.get_by_role("dialog").get_by_role("button").nth(1)
    name = other.locator("code").text_content().replace("·", " ").replace("⏎", "\n")
    other.click()
    page.locator(".token.chosen").wait_for()
    done(page)
    assert page.locator(".written").count() == 1
    begun = answers[0][:3] + name
    assert shown(page) == begun + written(first + begun, 8, stop_strings=stops)
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".turn").count() == 0


def test_a_chat_that_outgrows_the_context(page: Any) -> None:
    """The oldest turns are left out, and marked; a message that doesn't fit by itself is an error."""
    page.expected = ["status of 400"]
    bodies: list[Any] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.post_data else None)
    page.get_by_text("Chat").click()
    choose(page, "max_tokens", 20)
    message = page.get_by_label("Message", exact=True)
    for number in range(3):
        message.fill(str(number) * 150)
        message.press("Enter")
        page.locator(".turn").nth(number).locator(".token").first.wait_for()
        done(page)
    said = [one["content"][0] for one in bodies[-1]["messages"] if one["role"] == "user"]
    assert said == ["1", "2"]
    assert [turn.get_attribute("class") for turn in page.locator(".turn").all()] == ["turn omitted", "turn", "turn"]
    assert "no longer fit into the model's context" in page.locator("#status").text_content()
    message.fill("x" * 460)
    choose(page, "max_tokens", 100)  # a maximum: as many as fit
    message.press("Enter")
    page.locator(".turn").nth(3).locator(".token").first.wait_for()
    done(page)
    assert len(bodies[-1]["messages"]) == 1
    message.fill("x" * 512)
    message.press("Enter")
    page.get_by_role("alert").filter(has_text="maximum context length is 512 tokens").wait_for()
    assert message.input_value() == "x" * 512


def test_a_message_that_fails_can_be_sent_again(page: Any) -> None:
    page.expected = ["status of 400"]
    page.get_by_text("Chat").click()
    message = page.get_by_label("Message", exact=True)
    message.press("Enter")
    page.get_by_role("alert").filter(has_text="Write a message first.").wait_for()
    message.fill("中")
    message.press("Enter")
    page.get_by_role("alert").filter(has_text="'中'").wait_for()
    assert message.input_value() == "中"
    assert page.locator(".turn").count() == 0
