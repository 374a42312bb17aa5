"""A real Chromium for the tests of pages, and what every page has to keep to."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

PATIENCE = 60_000  # ms, on a machine that trains something else
expect.set_options(timeout=PATIENCE)
TWO_FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
_asked: dict[Page, set[Request]] = {}
"""By page: what it has sent to the demo and has no answer to yet."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str:
    """The browser: what `CHROMIUM` names, or the first that is installed. Skips the test where there is none."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on this machine; `apt-get install chromium`, or name one in $CHROMIUM")
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    path = executable()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Page]:
    """The demo in a browser profile of its own. Fails on errors in the console, failed requests, and requests to anywhere else."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", has_touch=width < 500
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("response", lambda response: wrong.append(f"{response.status}: {response.url}") if response.status >= 400 else None)
    host = urlsplit(address).netloc
    page.on("request", lambda request: None if is_ours(request.url, host) else wrong.append(f"request to {request.url}"))
    asked = _asked.setdefault(page, set())
    page.on("request", lambda request: asked.add(request) if request.method == "POST" else None)
    page.on("requestfinished", lambda request: asked.discard(request))
    page.on("requestfailed", lambda request: asked.discard(request))
    page.goto(address)
    page.wait_for_selector(".card")
    yield page
    context.close()
    del _asked[page]
    assert wrong == []


def is_ours(url: str, host: str) -> bool:
    """Whether nothing leaves the machine for it."""
    return urlsplit(url).scheme in ("data", "blob") or urlsplit(url).netloc == host


def after(page: Page, action: Callable[[], object]) -> None:
    """Do something and wait until the recommendations were drawn again, and no more."""
    turn = drawn(page)
    action()
    page.wait_for_function("turn => Number(document.querySelector('.rankings')?.dataset.turn) > turn", arg=turn)
    settle(page)


def settle(page: Page) -> None:
    """Wait until every answer is here and drawn, which may bring the page to ask again: a number that is typed is sent as it grows."""
    deadline = time.monotonic() + PATIENCE / 1000
    turn = -1
    while _asked[page] or turn != drawn(page):
        assert time.monotonic() < deadline, f"no answer to {[request.url for request in _asked[page]]}"
        turn = drawn(page)
        page.evaluate(TWO_FRAMES)


def drawn(page: Page) -> int:
    """How often the recommendations were drawn."""
    return int(page.get_attribute(".rankings", "data-turn") or 0)


def items(page: Page, ranking: int = 0) -> list[str]:
    """Ids on the cards of a ranking."""
    cards = page.locator(".ranking").nth(ranking).locator(".card")
    return [card.get_attribute("data-item") or "" for card in cards.all()]


def scrolls_sideways(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))
