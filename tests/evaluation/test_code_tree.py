"""The page of item codes: complete, self-contained, escaped, within its size, whatever the pictures are like."""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from cemg_hf.errors import CEMGError
from cemg_hf.evaluation.code_tree import THUMBNAIL_SIDE, write_code_tree

NASTY = '</script><script>alert(1)</script> & <b>"bold"</b> {{DATA}} \u2028 ünïcode'


@cache
def picture(seed: int, size: tuple[int, int] = (160, 240), mode: str = "RGB") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (*size[::-1], len(mode)), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise, mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def shop() -> dict[str, Any]:
    rows = np.random.default_rng(0).permutation(48)
    codes = torch.stack([torch.tensor(rows % 4), torch.tensor(rows // 4 % 3), torch.tensor(rows // 12)], 1)
    ids = [f"item-{row:02d}" for row in rows]
    items = pl.DataFrame(
        {
            "item_id": sorted(ids),
            "title": [NASTY if row == 5 else f"Lamp {row}" if row % 4 == 1 else f"Chair {row}" for row in range(48)],
            "brand": ["Ola" if row % 2 else None for row in range(48)],
            "categories": [["Home", "Light" if row % 4 == 1 else "Seats"] for row in range(48)],
            "image": [{"bytes": picture(row) if row % 5 else None, "path": None} for row in range(48)],
        },
        schema_overrides={"image": pl.Struct({"bytes": pl.Binary, "path": pl.String})},
    )
    return {"item_ids": ids, "item_codes": codes, "items": items, "title": "Shop & <more>"}


class _Page(HTMLParser):
    VOID = frozenset({"meta", "input", "path", "circle", "link", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.content: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        key = self.open[-1] if self.open else ""
        if key == "script" and self.tags[-1][1].get("type") == "application/json":
            key = "data"
        self.content[key] = self.content.get(key, "") + data


def read(path: Path) -> dict[str, Any]:
    return json.loads(_Page(path.read_text(encoding="utf-8")).content["data"])


def test_every_item_is_on_the_page_once_with_its_code(shop: dict[str, Any], tmp_path: Path) -> None:
    report = write_code_tree(tmp_path / "tree.html", **shop)
    data = read(tmp_path / "tree.html")
    assert sorted(data["ids"]) == sorted(shop["item_ids"])
    codes = np.array(data["codes"]).reshape(48, 3)
    assert {item: tuple(code) for item, code in zip(data["ids"], codes.tolist(), strict=True)} == {
        item: tuple(code) for item, code in zip(shop["item_ids"], shop["item_codes"].tolist(), strict=True)
    }
    assert codes.tolist() == sorted(codes.tolist())  # the page finds branches by binary search
    titles = dict(shop["items"].select("item_id", "title").iter_rows())
    assert data["titles"] == [titles[item] for item in data["ids"]]
    assert set(data["branches"]) == {str(a) for a in range(4)} | {f"{a}/{b}" for a in range(4) for b in range(3)}
    assert report.num_items == 48
    assert report.num_branches == 16
    assert report.num_bytes == (tmp_path / "tree.html").stat().st_size


def test_branches_show_items_of_their_own_and_what_sets_them_apart(shop: dict[str, Any], tmp_path: Path) -> None:
    write_code_tree(tmp_path / "tree.html", **shop, latent=torch.randn(48, 3, generator=torch.Generator().manual_seed(0)))
    data = read(tmp_path / "tree.html")
    for prefix, (typical, _, _) in data["branches"].items():
        for item in typical:
            assert "/".join(map(str, data["codes"][3 * item : 3 * item + 3])).startswith(prefix + "/")
        # Four of five items have a picture, so every branch has one to show first.
        with_picture = [str(item) in data["pictures"] for item in typical]
        assert with_picture == sorted(with_picture, reverse=True)
        assert with_picture[0]
    _, words, shares = data["branches"]["1"]
    assert data["names"][words[0]] == "lamp"
    assert [data["names"][shares[0]], shares[1], shares[2]] == ["Light", 100, 25]


def test_page_is_wellformed_self_contained_and_escaped(shop: dict[str, Any], tmp_path: Path) -> None:
    write_code_tree(tmp_path / "tree.html", **shop)
    text = (tmp_path / "tree.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == []
    assert page.content["title"] == shop["title"]
    assert NASTY in read(tmp_path / "tree.html")["titles"]
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert "alert(1)" not in page.content["script"]
    assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", text)
    assert not any(name in attributes for _, attributes in page.tags for name in ("src", "srcset", "action"))
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in page.tags)
    policy = next(attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", page.content["script"])


def test_pictures_are_small_and_of_the_right_items(shop: dict[str, Any], tmp_path: Path) -> None:
    colours = [(red, 40, 200 - red) for red in range(0, 192, 4)]

    def plain(colour: tuple[int, int, int]) -> bytes:
        buffer = BytesIO()
        Image.new("RGB", (300, 450), colour).save(buffer, "PNG")
        return buffer.getvalue()

    shop["items"] = shop["items"].with_columns(image=pl.Series([plain(colour) for colour in colours], dtype=pl.Binary))
    report = write_code_tree(tmp_path / "tree.html", **shop)
    data = read(tmp_path / "tree.html")
    assert (report.num_pictures, report.num_left_out, report.num_unreadable) == (48, 0, 0)
    assert data["aspect"] == pytest.approx(2 / 3, abs=0.01)
    for position, encoded in data["pictures"].items():
        image = Image.open(BytesIO(base64.b64decode(encoded)))
        assert image.width * image.height <= (THUMBNAIL_SIDE + 2) ** 2
        expected = colours[int(data["ids"][int(position)].removeprefix("item-"))]
        assert np.abs(np.array(image.convert("RGB")).mean((0, 1)) - expected).max() < 12


def test_size_limit_holds_and_typical_items_keep_their_pictures(shop: dict[str, Any], tmp_path: Path) -> None:
    write_code_tree(tmp_path / "all.html", **shop)
    limit = (tmp_path / "all.html").stat().st_size - 60_000
    report = write_code_tree(tmp_path / "tree.html", **shop, max_bytes=limit, thumbnails_per_branch=1)
    assert (tmp_path / "tree.html").stat().st_size == report.num_bytes <= limit
    assert 0 < report.num_pictures < 38
    assert report.num_pictures + report.num_left_out == 38
    data = read(tmp_path / "tree.html")
    kept = {int(position) for position in data["pictures"]}
    first = {data["branches"][str(code)][0][0] for code in range(4)}
    assert first <= kept
    with pytest.raises(CEMGError, match=r"max_bytes 1,000: the texts of 48 items alone need"):
        write_code_tree(tmp_path / "none.html", **shop, max_bytes=1_000)
    assert not (tmp_path / "none.html").exists()


def test_missing_and_broken_pictures_are_counted_not_fatal(shop: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "good.png").write_bytes(picture(1, (30, 900), "RGBA"))
    (tmp_path / "pictures" / "bad.png").write_bytes(picture(2)[:200])
    (tmp_path / "pictures" / "text.png").write_text("no picture")
    paths = ["good.png", "bad.png", "text.png", "absent.png", None, *([None] * 43)]
    shop["items"] = shop["items"].with_columns(image=pl.Series(paths, dtype=pl.String))
    report = write_code_tree(tmp_path / "tree.html", **shop, image_base=tmp_path / "pictures")
    assert (report.num_pictures, report.num_unreadable, report.num_left_out) == (1, 3, 0)
    data = read(tmp_path / "tree.html")
    assert [data["ids"][int(position)] for position in data["pictures"]] == ["item-00"]


def test_without_table_or_with_a_part_of_it(shop: dict[str, Any], tmp_path: Path) -> None:
    report = write_code_tree(tmp_path / "ids.html", **shop | {"items": None})
    data = read(tmp_path / "ids.html")
    assert report.num_pictures == 0
    assert data["titles"] == [None] * 48
    assert data["brands"] == [-1] * 48
    write_code_tree(tmp_path / "part.html", **shop | {"items": shop["items"].head(7).drop("image")})
    assert sum(title is not None for title in read(tmp_path / "part.html")["titles"]) == 7


def test_same_input_same_page(shop: dict[str, Any], tmp_path: Path) -> None:
    write_code_tree(tmp_path / "a.html", **shop)
    write_code_tree(tmp_path / "b.html", **shop | {"items": shop["items"].reverse()})
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_unfit_input_is_named_and_the_old_page_stays(shop: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "tree.html"
    page.write_text("old")
    items: pl.DataFrame = shop["items"]
    repeated = shop["item_codes"].clone()
    repeated[3] = repeated[9]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"items": items.drop("item_id")}, "no column item_id"),
        ({"items": pl.concat([items, items.head(1)])}, "'item-00' occurs more than once"),
        ({"items": items.with_columns(item_id=pl.lit("x") + pl.col("item_id"))}, "none of the catalogue's ids"),
        ({"item_codes": repeated}, "item_codes must be unique"),
        ({"item_codes": repeated[:5]}, "item_codes must be 48"),
        ({"latent": torch.zeros(3, 2)}, "latent must be 48"),
        ({"items": items.with_columns(title=pl.lit(3))}, "column title, row 0"),
        ({"thumbnails_per_branch": 0}, "thumbnails_per_branch"),
    ]
    for change, message in wrong:
        with pytest.raises(CEMGError, match=message):
            write_code_tree(page, **shop | change)
    assert page.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["tree.html"]
