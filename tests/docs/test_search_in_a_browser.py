"""The site in Chromium: search on the Chinese pages, the switch of languages, the width of a phone."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chromium, fits, in_a_browser, opened

from .test_chinese import site  # noqa: F401  # the fixture

pytestmark = in_a_browser
WIDE = {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:  # noqa: F811
    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/favicon.ico":  # browsers ask for it, and log that there is none
                self.send_response(204)
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *arguments: Any) -> None:
            pass

    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("因果掩码", "tutorials"),
        ("层归一化", "operations/layer_norm"),
        ("softmax 概率", "operations/softmax"),
        ("红楼梦", None),
    ],
)
def test_a_word_finds_its_page(address: str, query: str, page: str | None) -> None:
    with chromium() as browser, opened(browser, f"{address}/zh/search.html?q={query}") as tab:
        tab.locator(".search-summary", has_text="搜索").or_(tab.locator(".search-summary", has_text="没有")).wait_for()
        found = [link.get_attribute("href") for link in tab.locator("#search-results li a").all()]
        assert any((link or "").startswith(f"{page}.html") for link in found) == (page is not None), found


def test_the_switch_leads_to_the_same_page_and_back(address: str) -> None:
    with chromium() as browser, opened(browser, f"{address}/operations/softmax.html", viewport=WIDE) as tab:
        tab.locator(".sidebar-language a").click()
        tab.wait_for_url("**/zh/operations/softmax.html")
        assert tab.locator("article h2").first.inner_text().startswith("推导")
        tab.locator(".sidebar-language a").click()
        tab.wait_for_url(f"{address}/operations/softmax.html")


@pytest.mark.parametrize("page", ["installing", "bias_probe", "zh/web_page"])  # titles that reach the edge
def test_nothing_is_wider_than_a_phone(address: str, page: str) -> None:
    size = {"width": 360, "height": 800}
    with chromium() as browser, opened(browser, f"{address}/{page}.html", viewport=size) as tab:
        assert fits(tab)
