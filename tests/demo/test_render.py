from __future__ import annotations

from html.parser import HTMLParser

import jinja2
import pytest
from demo_samples import HOSTILE

from cemg_hf.demo.engine import Controls, Engine, Session
from cemg_hf.demo.render import render
from cemg_hf.demo.shop import Hits, Item, Shopper

VOID = {"img"}


class Outline(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "button":
            assert "button" not in self._open, "a button inside a button"
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def pages(engine: Engine, session: Session, titles: list[str]) -> list[str]:
    """Every part of the page, with hostile texts wherever texts go."""
    items = [Item(f"id{title}", title, title, (title, title), title) for title in titles]
    session.history = list(HOSTILE)
    session.shopper = Shopper(titles[0], (), None)
    (ranking,) = engine.rank(session, Controls(num_beams=48, exclude_history=False))
    session.opened = (0, ranking.cards[0].item.item_id)
    return [
        render("header", title=titles[0], items=3, levels=3, shoppers=1),
        render("results", query=titles[0], hits=Hits(items, 9), history={items[0].item_id}),
        render("results", query=titles[0], hits=Hits([], 0), history=set()),
        render("history", history=items, shopper=session.shopper, longest=2, has_shoppers=True),
        render("history", history=[], shopper=None, longest=2, has_shoppers=True),
        render("note", error=titles[0], item=None, code=""),
        render("note", error=None, item=items[0], code=["a_1"]),
        render(
            "recommendations",
            rankings=[ranking, ranking],
            opened=session.opened,
            neighbourhood=engine.neighbourhood(session),
            target=items[0],
            errors=titles,
            turn=1,
        ),
    ]


def test_texts_of_a_shop_are_never_markup(engine: Engine, session: Session) -> None:
    attack, harmless = pages(engine, session, list(HOSTILE.values())), pages(engine, session, ["Mug"] * len(HOSTILE))
    for part, plain in zip(attack, harmless, strict=True):
        outline, usual = Outline(part), Outline(plain)
        assert [tag for tag, _ in outline.tags] == [tag for tag, _ in usual.tags]
        assert [set(attributes) for _, attributes in outline.tags] == [set(attributes) for _, attributes in usual.tags]
        assert not any(name.startswith("on") for _, attributes in outline.tags for name in attributes)
    joined = "".join(Outline(part).text for part in attack)
    assert all(title in joined for title in HOSTILE.values())


def test_every_button_says_what_it_does(engine: Engine, session: Session) -> None:
    for part in pages(engine, session, ["Mug"] * 4):
        outline = Outline(part)
        for tag, attributes in outline.tags:
            if tag == "button":
                assert attributes.get("type") == "button"
                assert attributes.get("aria-label") or attributes.get("class") in ("link", "solid")
            if tag == "img":
                assert attributes["alt"] == ""


def test_a_forgotten_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("note", error=None, item=None)
