"""The page at `/` in a browser, against a running server: what a reader types, presses and sees."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.browser import contrast, fits, in_a_browser, opened
from tests.generation.helpers import make
from tinygpt.data.dialogue import PRESETS
from tinygpt.serving.app import application
from tinygpt.serving.bodies import Served
from tinygpt.serving.engine import Engine
from tinygpt.serving.samples import Sample
from tinygpt.serving.server import address_of, listening
from tinygpt.tokenizers import CharTokenizer

pytestmark = in_a_browser

MODEL = make(np.float32, vocab_size=96, block_size=512, n_layer=1, n_head=2, n_embd=16).eval()
TOKENIZER = CharTokenizer("\n" + "".join(map(chr, range(32, 127))))
HOSTILE = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\">"
KEY = "sk-kept-in-memory"


@contextlib.contextmanager
def serving(key: str | None = None) -> Iterator[tuple[str, Engine]]:
    """The address of a server, and its engine."""
    import uvicorn

    engine, listener = Engine(MODEL, places=4), listening("127.0.0.1", 0)
    served = Served(MODEL, TOKENIZER, "tiny", PRESETS["plain"], 1, engine.most_waiting)
    config = uvicorn.Config(application(served, engine, key), http="h11", ws="none", lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield address_of(listener), engine
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        engine.close()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Engine]]:
    with serving() as found:
        yield found


@pytest.fixture
def page(browser: Any, server: tuple[str, Engine]) -> Iterator[Any]:
    with opened(browser, server[0]) as page:
        yield page


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """paced(count) lets the server write so many more tokens; until then it writes none."""
    allowed, choose = threading.Semaphore(0), Sample.choose

    def wait(self: Sample, logits: np.ndarray) -> Any:
        assert allowed.acquire(timeout=60)
        return choose(self, logits)

    monkeypatch.setattr(Sample, "choose", wait)
    yield lambda count: allowed.release(count) if count else None
    allowed.release(10_000)


def written(prompt: str, count: int, **options: Any) -> str:
    """The text of `generate`, greedy."""
    ids = TOKENIZER.encode(prompt)
    found = MODEL.generate(ids[None], count, tokenizer=TOKENIZER, temperature=0, overflow="stop", **options)
    return TOKENIZER.decode(found[0, len(ids) :])


def shown(page: Any, which: int = 0) -> str:
    """The text in a result, without the pictures of line breaks."""
    return str(page.locator(".written").nth(which).text_content()).replace("⏎\n", "\n")


def choose(page: Any, name: str, value: Any) -> None:
    """A setting."""
    page.evaluate(
        """([name, value]) => {
          const input = document.getElementById("options").elements[name];
          input.value = value;
          input.dispatchEvent(new Event("input", { bubbles: true }));
        }""",
        [name, str(value)],
    )


def write(page: Any, prompt: str, tokens: int = 12) -> None:
    """Write so many tokens after a prompt, the likeliest ones, and wait for the end."""
    choose(page, "temperature", 0)
    choose(page, "max_tokens", tokens)
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Write").click()
    done(page)


def done(page: Any) -> None:
    page.get_by_role("status").filter(has_text=re.compile("tokens in .* seed")).wait_for()


def answer(page: Any, path: str, chunks: list[Any], end: str = "data: [DONE]\n\n") -> None:
    """Let a path answer with these events, instead of the server."""
    events = "".join(f"data: {json.dumps({'choices': [chunk]})}\n\n" for chunk in chunks)
    page.route(f"**/{path}", lambda route: route.fulfill(content_type="text/event-stream", body=events + end)
               if json.loads(route.request.post_data).get("stream") else route.continue_())  # fmt: skip


def token(text: bytes, number: int, *others: Any, probability: float = 0.5) -> Any:
    """A token in `logprobs`, the first of its alternatives."""
    found = {"id": number, "bytes": list(text), "token": text.decode("utf-8", "replace")}
    return found | {"logprob": float(np.log(probability)), "top_logprobs": [{**found, "logprob": -1.0}, *others]}


def chunk(text: str, tokens: list[Any], reason: str | None = None) -> Any:
    return {"index": 0, "text": text, "logprobs": {"content": tokens} if tokens else None, "finish_reason": reason}


# Writing ------------------------------------------------------------------------------------------


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


def test_a_stop_string_is_not_part_of_the_text(page: Any) -> None:
    text = written("To be", 12)
    page.get_by_label("Stop strings").fill(text[5:7].replace("\n", "\\n"))
    write(page, "To be")
    assert shown(page) == "To be" + text[: text.index(text[5:7])]
    assert "The model ended the text." in page.get_by_role("status").text_content()


# Texts of others ----------------------------------------------------------------------------------


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


# Errors -------------------------------------------------------------------------------------------


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


# Every reader -------------------------------------------------------------------------------------


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
