"""The page in a real Chromium. What it shows is checked in test_engine.py; here it is clicked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from browser import after, chromium, items, opened, scrolls_sideways, settle
from demo_samples import HOSTILE, item_ids, picture
from playwright.sync_api import Browser, Page, expect
from starlette.testclient import TestClient

from cemg_hf.demo.app import _act, _controls, create_page, launch, picture_route
from cemg_hf.demo.engine import CARDS, Controls, Engine, Session
from cemg_hf.errors import CEMGError


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def served(engine: Engine) -> Iterator[str]:
    blocks, address = launch(engine, "The tiny shop", host="127.0.0.1", block=False)
    yield address
    blocks.close()


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    yield from served(engine)


@pytest.fixture(scope="module")
def address_of_both(both: Engine) -> Iterator[str]:
    yield from served(both)


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with opened(browser, address) as shown:
        yield shown


def history(page: Page) -> list[str]:
    return [entry.inner_text() for entry in page.locator("#history li .sr").all()]


def search(page: Page, query: str) -> None:
    page.fill("#query input", query)
    page.wait_for_selector(".hit")


def test_a_found_item_joins_the_history_and_changes_what_is_recommended(page: Page, engine: Engine) -> None:
    before, length = items(page), len(history(page))
    assert len(before) == CARDS
    search(page, "amber mug")
    hit = page.locator(".hit").first
    name = hit.locator("b").inner_text()
    after(page, hit.click)
    assert history(page)[-1] == name
    assert len(history(page)) == length + 1
    assert set(items(page)) <= set(item_ids())
    assert items(page) != before
    expect(hit.locator(".plus")).to_have_class("plus done")


def test_a_history_begins_empty_and_grows(page: Page) -> None:
    after(page, page.locator("[data-act=clear]").click)
    assert history(page) == []
    expect(page.locator("#history .notice.empty")).to_contain_text("Nothing yet")
    expect(page.locator("[data-act=clear]")).to_have_count(0)
    page.fill("#query input", "no such thing")
    expect(page.locator("#results .empty")).to_contain_text("Nothing in the catalogue matches “no such thing”")
    search(page, "item-01")
    after(page, lambda: page.press("#query input", "Enter"))
    assert len(history(page)) == 1
    assert page.input_value("#query input") == ""
    after(page, page.locator("#history .cross").first.click)
    assert history(page) == []


def test_another_shopper_has_another_history(page: Page) -> None:
    before = history(page)
    page.click("#shopper input")
    page.fill("#shopper input", "user-07")
    after(page, lambda: page.keyboard.press("Enter"))
    expect(page.locator("#history h2")).to_have_text("user-07")
    assert history(page) != before
    after(page, page.locator("#surprise").click)
    expect(page.locator("#history h2")).to_have_text(page.input_value("#shopper input"))
    page.click("#shopper input")
    page.fill("#shopper input", "nobody")
    after(page, lambda: page.keyboard.press("Enter"))
    expect(page.locator("[role=alert]")).to_contain_text("no shopper is called 'nobody'")


def test_an_open_card_explains_itself(page: Page, engine: Engine) -> None:
    card = page.locator(".card").nth(1)
    after(page, card.click)
    details = page.locator(".details")
    expect(details.locator("h3")).to_contain_text(card.locator(".name").inner_text())
    expect(card.locator("button")).to_have_attribute("aria-expanded", "true")
    assert details.locator(".codes .code").count() == 3
    shares = [int(text.split()[0]) for text in details.locator(".looks small").all_inner_texts()]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert "%" in card.locator(".alpha").inner_text()
    neighbour = details.locator(".neighbour").first
    item_id = neighbour.get_attribute("data-item")
    assert item_id in item_ids()
    after(page, neighbour.click)
    assert history(page)[-1] == engine.shop.item(str(item_id)).name
    expect(details).to_have_count(0)


def test_switches_change_what_may_be_recommended(page: Page, engine: Engine) -> None:
    page.click("#tune button")
    after(page, lambda: page.locator(".card").first.click())
    after(page, page.get_by_role("button", name="Add to history").click)
    bought = page.locator("#history li .sr").last.inner_text()
    names = [engine.shop.item(item_id).name for item_id in items(page)]
    assert bought not in names
    after(page, page.locator("#exclude input").uncheck)
    after(page, lambda: page.locator("#beams input[type=number]").fill("48"))
    with_history = items(page)
    after(page, page.locator("#exclude input").check)
    assert not {engine.shop.item(item_id).name for item_id in items(page)} & set(history(page))
    assert with_history != items(page)
    page.click("#categories input")
    page.keyboard.type("Wear")
    after(page, lambda: page.keyboard.press("Enter"))
    assert items(page)
    assert all("Wear" in engine.shop.item(item_id).categories for item_id in items(page))


def test_an_item_of_ones_own_is_recommended_here_and_nowhere_else(page: Page, browser: Browser, address: str, tmp_path: Path) -> None:
    (tmp_path / "own.png").write_bytes(picture("violet"))
    page.click("#add button")
    after(page, page.locator("#new-add").click)
    expect(page.locator("#new-note [role=alert]")).to_contain_text("give the new item a title, a picture, or both")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.set_input_files("#new-picture input[type=file]", tmp_path / "broken.png")
    page.wait_for_selector("#new-picture img")
    after(page, page.locator("#new-add").click)
    expect(page.locator("#new-note [role=alert]")).to_contain_text("the picture cannot be read")
    page.click("#new-picture [aria-label='Remove Image'], #new-picture [aria-label='Clear']")
    expect(page.locator("#new-picture img")).to_have_count(0)
    page.fill("#new-title textarea, #new-title input", "Violet Scarf <b>of mine</b>")
    page.set_input_files("#new-picture input[type=file]", tmp_path / "own.png")
    page.wait_for_selector("#new-picture img")
    after(page, page.locator("#new-add").click)
    expect(page.locator("#new-note [role=status]")).to_contain_text("“Violet Scarf <b>of mine</b>” is in your catalogue")
    page.click("#tune button")
    after(page, lambda: page.locator("#boost input[type=number]").fill("-15"))
    expect(page.locator(".waiting")).to_contain_text("below the last card")
    after(page, page.locator("[data-act=lift]").click)
    card = page.locator(".card.is-new")
    expect(card.locator(".flag.new")).to_have_text("Your item")
    expect(card.locator(".name")).to_have_text("Violet Scarf <b>of mine</b>")
    assert card.locator(".shot img").get_attribute("src").startswith("data:image/webp")  # type: ignore[union-attr]
    assert float(page.input_value("#boost input[type=number]")) > -15
    with opened(browser, address) as other:
        assert set(items(other)) <= set(item_ids())
        expect(other.locator(".card.is-new")).to_have_count(0)


def test_two_models_stand_side_by_side(browser: Browser, address_of_both: str) -> None:
    with opened(browser, address_of_both) as page:
        assert page.locator(".ranking h2").all_inner_texts() == ["tiny", "dense"]
        first, second = (page.locator(".ranking").nth(number).bounding_box() for number in (0, 1))
        assert first is not None
        assert second is not None
        assert first["x"] + first["width"] <= second["x"]
        shared = set(items(page, 0)) & set(items(page, 1))
        assert items(page, 0) != items(page, 1)
        assert page.locator(".ranking").first.locator(".flag.also").count() == len(shared)
        page.click("#tune button")
        codes = items(page, 0)
        before = items(page, 1)
        after(page, lambda: page.locator("#dense input[type=number]").fill("0"))
        assert items(page, 0) == codes
        assert items(page, 1) != before
        after(page, lambda: page.locator(".ranking").nth(1).locator(".card").nth(2).click())
        expect(page.locator(".ranking").nth(1).locator(".details")).to_be_visible()


def test_everything_is_reached_by_keyboard(page: Page) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                outline = page.evaluate("getComputedStyle(document.activeElement.closest('.card') ?? document.activeElement).outlineStyle")
                assert outline == "solid", "the focus cannot be seen"
                return
        pytest.fail(f"no way to {selector} by Tab")

    tab_to("[data-theme-toggle]")
    tab_to("#query input")
    page.keyboard.type("lamp")
    page.wait_for_selector(".hit")
    after(page, lambda: page.keyboard.press("Enter"))
    assert "Lamp" in history(page)[-1]
    page.keyboard.type("red scarf")
    expect(page.locator(".hit b")).to_have_text([re.compile("^Red Scarf")] * 2)
    tab_to(".hit")
    name = page.evaluate("document.activeElement.querySelector('b').innerText")
    after(page, lambda: page.keyboard.press("Space"))
    assert history(page)[-1] == name
    page.wait_for_function("document.activeElement.matches('.hit')")  # the focus stays where it was
    length = len(history(page))
    tab_to("#history .cross")
    after(page, lambda: page.keyboard.press("Enter"))
    assert len(history(page)) == length - 1
    page.wait_for_function("document.activeElement.closest('#history') !== null")
    tab_to(".face")
    after(page, lambda: page.keyboard.press("Enter"))
    expect(page.locator(".details")).to_be_visible()
    page.wait_for_function("document.activeElement.getAttribute('aria-expanded') === 'true'")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.details') !== null"), "the explanation follows its card"
    after(page, lambda: page.keyboard.press("Enter"))
    expect(page.locator(".details")).to_have_count(0)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(browser: Browser, address_of_both: str, dark: bool) -> None:
    with opened(browser, address_of_both, width=390, height=844, dark=dark) as page:
        assert not scrolls_sideways(page)
        search(page, "mug")
        page.click("#tune button")
        page.click("#add button")
        for number in (0, 1):
            after(page, lambda number=number: page.locator(".ranking").nth(number).locator(".card").nth(1).click())
            assert page.locator(".details").count() == 1
            assert not scrolls_sideways(page)
        for selector in (".hit", "#surprise", ".face", ".details .neighbour", "[data-theme-toggle]"):
            box = page.locator(selector).first.bounding_box()
            assert box is not None
            assert min(box["width"], box["height"]) >= 40, f"{selector} is too small for a finger"
        lightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
        assert (max(lightness) < 60) is dark
        clipped = page.evaluate(
            "[...document.querySelectorAll('.code-text, .number, .details h3')].filter(e => e.getBoundingClientRect().right > innerWidth)"
            ".length"
        )
        assert clipped == 0


def test_the_panel_stays_in_sight_while_the_cards_scroll(page: Page) -> None:
    page.evaluate("window.scrollTo(0, 300)")
    page.wait_for_function("scrollY === 300")
    box = page.locator("#panel").bounding_box()
    assert box is not None
    assert 0 <= box["y"] < 40


def test_light_and_dark_are_remembered(page: Page) -> None:
    assert "dark" not in (page.get_attribute("body", "class") or "").split()
    page.click("[data-theme-toggle]")
    page.reload()
    page.wait_for_selector(".card")
    page.wait_for_function("document.body.classList.contains('dark')")


def test_titles_that_attack_are_shown_and_do_nothing(page: Page) -> None:
    for item_id, title in HOSTILE.items():
        search(page, item_id)
        expect(page.locator(".hit b").first).to_have_text(title)
        after(page, lambda: page.press("#query input", "Enter"))
        assert page.locator("#history li .sr").last.text_content() == title
    page.click("#tune button")
    after(page, page.locator("#exclude input").uncheck)
    after(page, lambda: page.locator("#beams input[type=number]").fill("48"))
    after(page, page.locator(".card").first.click)
    nothing = "<img src=nowhere onerror=\"document.title='attacked'\">"
    page.fill("#query input", nothing)
    expect(page.locator("#results .empty")).to_contain_text(nothing)
    settle(page)
    assert page.title() == "The tiny shop"


def test_pictures_are_served_once_and_kept(engine: Engine) -> None:
    client = TestClient(gr.routes.FastAPI(routes=[picture_route(engine.shop.thumbnails)]))
    address = engine.shop.item("item-00").picture
    answer = client.get(f"/{address}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
    assert "immutable" in answer.headers["cache-control"]
    assert client.get(f"/thumbnails/{engine.shop.thumbnails.edition}/999.webp").status_code == 404
    assert client.get("/thumbnails/another/0.webp").status_code == 404


def test_pages_may_ask_for_anything(engine: Engine, session: Session) -> None:
    before = list(session.history)
    for data in (
        {},
        {"act": "unheard"},
        {"act": "append", "item": "no such item"},
        {"act": "remove", "place": "-1"},
        {"act": "remove", "place": "x"},
        {"act": "open", "model": "9", "item": "item-00"},
        {"act": "open"},
        {"act": "lift", "by": "much"},
        {"act": "lift", "by": "nan"},
        {"act": "lift", "by": "-7"},
    ):
        assert _act(engine, session, data, 1.0) == (1.1 if data.get("act") == "lift" else 1.0)
        assert engine.neighbourhood(session) is None
    assert session.history == before
    assert _act(engine, session, {"act": "lift", "by": "1e9"}, 1.0) == 15
    for values in ((True, None, None, None, None), (True, [], "nan", "x", float("inf"))):
        assert _controls(values) == Controls()
    assert _controls((False, ["Wear"], 10**9, -3, 99)) == Controls(False, ("Wear",), 200, 0.0, 15.0)


def test_a_port_that_is_taken_is_an_error(engine: Engine, address: str) -> None:
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(CEMGError, match=f"--port {port}: "):
        launch(engine, "x", host="127.0.0.1", port=port, block=False)


def test_a_page_is_made_of_what_the_engine_has(engine: Engine, both: Engine) -> None:
    def shown(blocks: gr.Blocks) -> dict[str, bool]:
        return {block.elem_id: block.visible for block in blocks.blocks.values() if getattr(block, "elem_id", None)}

    one, two = shown(create_page(engine, "x")), shown(create_page(both, "x"))
    assert (one["dense"], two["dense"]) == (False, True)
    assert one["shopper"]
    assert one["add"]
    assert not one["boost"]
