"""The chat page, driven in headless Chromium."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines import EchoEngine
from servers import RunningServer, running

from small_doge.serving.security import hash_key

CHROMIUM = Path("/usr/bin/chromium")
pytest.importorskip("gradio", reason="the chat page needs gradio: install small-doge[serve]")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: install small-doge[dev]")
needs_chromium = pytest.mark.skipif(
    not CHROMIUM.is_file(), reason=f"there is no browser at {CHROMIUM}: apt-get install chromium"
)

ANSWER = """<think>
The formula comes first.
</think>

### The energy
It is **exact**: $E = mc^2$, and

$$\\int_0^1 x^2 dx = \\frac{1}{3}$$

```python
def energy(mass):
    return mass * 299_792_458**2
```"""
BOT, USER = "#chatbot .bot", "#chatbot .user"
SECONDS = 30_000  # milliseconds, as Playwright counts: the machine may be busy


@pytest.fixture(scope="module")
def server(tokenizer: Any) -> Iterator[RunningServer]:
    with running({"echo": EchoEngine(tokenizer, 0.01)}, ui=True) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: RunningServer) -> Iterator[Any]:
    """The page in a browser of its own: nothing is shared with the others."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = open_page(context, server)
    yield page
    context.close()


def open_page(context: Any, server: RunningServer) -> Any:
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    page.requested = []
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(f"{server.url}/")
    page.wait_for_selector("#question textarea")
    return page


def send(page: Any, text: str, wait: bool = True) -> None:
    page.fill("#question textarea", text)
    page.keyboard.press("Enter")
    if wait:
        sync_api.expect(page.locator("#status")).to_contain_text("tokens/s", timeout=SECONDS)
        page.wait_for_selector("#question .submit-button")


def shoot(page: Any, name: str) -> None:
    """Keep a screenshot where the variable SMALL_DOGE_SCREENSHOTS names a folder."""
    if folder := os.environ.get("SMALL_DOGE_SCREENSHOTS"):
        page.wait_for_timeout(500)
        page.screenshot(path=f"{folder}/{name}.png")


@needs_chromium
def test_an_answer_streams_with_its_thought_folded_and_stays_after_a_reload(page, server):
    send(page, ANSWER)
    assert re.search(r"\d+ tokens, [\d,]+ tokens/s", page.inner_text("#status"))
    answer = page.locator(BOT).last
    sync_api.expect(answer.locator("strong")).to_have_text("exact")
    assert page.locator(f"{BOT} .katex").count() >= 2
    assert "299_792_458" in page.locator(f"{BOT} pre code").last.inner_text()
    thought = page.locator("#chatbot").get_by_text("The formula comes first.", exact=True).last
    sync_api.expect(thought).to_be_hidden()
    page.get_by_text("Thought").last.click()
    sync_api.expect(thought).to_be_visible()
    shoot(page, "desktop-light")
    page.click("#dark button, button#dark")
    assert "dark" in page.get_attribute("body", "class")
    shoot(page, "desktop-dark")
    page.reload()
    sync_api.expect(page.locator(BOT).last.locator("strong")).to_have_text("exact", timeout=SECONDS)
    assert all(url.startswith((server.url, "data:", "blob:")) for url in page.requested), page.requested


@needs_chromium
def test_stop_keeps_what_came_and_frees_the_row(page, server):
    send(page, "word " * 200, wait=False)
    sync_api.expect(page.locator(BOT).last).to_contain_text("word word", timeout=SECONDS)
    page.click("#question .stop-button")
    page.wait_for_selector("#question .submit-button")
    deadline = time.monotonic() + 5
    while not server.models["echo"].batcher.idle:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kept = page.locator(BOT).last.inner_text()
    assert 9 < len(kept) < 990
    page.reload()
    sync_api.expect(page.locator(BOT).last).to_contain_text("word word", timeout=SECONDS)


@needs_chromium
def test_chats_are_kept_apart_and_questions_can_be_edited_and_asked_again(page):
    send(page, "the first chat")
    page.click("#new-chat")
    sync_api.expect(page.locator(BOT)).to_have_count(0)
    send(page, "the second chat")
    chats = page.locator("#chats label")
    sync_api.expect(chats).to_have_count(2)
    chats.filter(has_text="the first chat").click()
    sync_api.expect(page.locator(BOT).last).to_contain_text("the first chat")
    page.get_by_label("Retry").last.click()
    sync_api.expect(page.locator("#status")).to_contain_text("tokens/s", timeout=SECONDS)
    sync_api.expect(page.locator(BOT).last).to_contain_text("the first chat")
    page.get_by_label("Edit").last.click()
    page.locator("#chatbot textarea").fill("an edited question")
    page.get_by_label("Submit").last.click()
    sync_api.expect(page.locator(BOT).last).to_contain_text("an edited question", timeout=SECONDS)
    sync_api.expect(page.locator("#chatbot")).not_to_contain_text("the first chat")
    page.click("#delete-chat")
    sync_api.expect(chats).to_have_count(1)


@needs_chromium
def test_another_browser_sees_nothing_and_a_phone_has_room(page, browser, server):
    send(page, "a private matter")
    phone = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    other = open_page(phone, server)
    other.wait_for_timeout(500)
    other.click("#question textarea")  # nothing covers it
    assert "a private matter" not in other.content()
    send(other, ANSWER)
    box = other.locator("#question").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["y"] + box["height"] <= 844
    assert other.evaluate("document.documentElement.scrollWidth") <= 390
    shoot(other, "phone")
    phone.close()


@needs_chromium
def test_closing_the_page_frees_the_row(browser, server):
    context = browser.new_context()
    page = open_page(context, server)
    send(page, "word " * 200, wait=False)
    sync_api.expect(page.locator(BOT).last).to_contain_text("word", timeout=SECONDS)
    context.close()
    deadline = time.monotonic() + 10
    while not server.models["echo"].batcher.idle:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_with_api_keys_the_page_asks_for_one(start):
    server = start(ui=True, api_key_hashes=(hash_key("a-key-that-is-long-enough"),))
    assert httpx.get(f"{server.url}/chat/config").status_code == 401
    login = {"username": "me", "password": "not the key at all"}
    assert httpx.post(f"{server.url}/chat/login", data=login).status_code == 400
    login["password"] = "a-key-that-is-long-enough"
    with httpx.Client() as client:
        assert client.post(f"{server.url}/chat/login", data=login).status_code == 200
        assert client.get(f"{server.url}/chat/config").status_code == 200
