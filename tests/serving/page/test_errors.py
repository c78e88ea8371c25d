"""Errors on the page: sentences, and the key that is asked for."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.browser import in_a_browser, opened
from tests.serving.page.helpers import (
    KEY,
    answer,
    chunk,
    serving,
    shown,
    token,
    write,
)

pytestmark = in_a_browser


def test_errors_are_sentences(page: Any, browser: Any) -> None:
    page.expected = ["status of 400", "ERR_FAILED"]
    alert, ask = page.get_by_role("alert"), page.get_by_role("button", name="Write")
    page.get_by_label("Prompt").fill("中")
    ask.click()
    alert.wait_for()
    assert re.match(r"Prompt: .*'中'.*\.$", alert.text_content())
    page.get_by_label("Prompt").fill("a" * 600)
    ask.click()
    alert.filter(has_text="This model's maximum context length is 512 tokens.").wait_for()
    page.get_by_label("Prompt").fill("a" * 512)
    ask.click()
    alert.filter(has_text="context").wait_for()
    write(page, "a", 3)
    assert alert.is_hidden()
    page.route("**/v1/completions", lambda route: route.abort())
    ask.click()
    alert.filter(has_text="The server cannot be reached. Is it still running?").wait_for()
    page.unroute("**/v1/completions")
    answer(page, "v1/completions", [chunk("b", [token(b"b", 67)])], end="")
    ask.click()
    alert.filter(has_text="The connection ended before the text did.").wait_for()
    assert shown(page) == "ab"
    page.unroute("**/v1/completions")
    failed = 'data: {"error": {"message": "the model failed at this request"}}\n\n'
    answer(page, "v1/completions", [chunk("b", [token(b"b", 67)])], end=failed)
    ask.click()
    alert.filter(has_text="The model failed at this request.").wait_for()
    assert ask.is_enabled()


def test_a_key_is_asked_for_and_kept_in_memory(browser: Any) -> None:
    with serving(KEY) as (address, _), opened(browser, address) as page:
        page.expected = ["status of 401"]
        alert = page.get_by_role("alert")
        alert.filter(has_text="This server needs an API key.").wait_for()
        field = page.get_by_label("API key")
        assert field.evaluate("e => e === document.activeElement")
        field.fill("wrong")
        field.press("Enter")
        alert.filter(has_text="The server does not accept this key.").wait_for()
        field.fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        page.get_by_text("The key is accepted.").wait_for()
        assert field.is_hidden()
        write(page, "a", 3)
        assert KEY not in json.dumps([page.context.storage_state(), page.content()])
        assert page.evaluate("document.getElementById('key').value") == ""
        page.reload()
        alert.filter(has_text="This server needs an API key.").wait_for()
