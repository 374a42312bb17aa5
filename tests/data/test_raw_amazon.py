from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_samples import DAY, FIRST_DAY, IDS, USERS, metadata_2014, metadata_2023, reviews_2014, reviews_2023, visits, write_lines

from cemg_hf.data.raw import FORMATS, lines, read_interactions, read_items
from cemg_hf.errors import CEMGError

A2014, A2018, A2023 = (FORMATS[f"amazon-{year}"] for year in (2014, 2018, 2023))


def test_2014_reviews_in_the_order_of_the_file(tmp_path: Path) -> None:
    table, outside = read_interactions(A2014, write_lines(tmp_path / "reviews_Beauty_5.json", reviews_2014()))
    expected = [(user, item, FIRST_DAY + day * DAY) for user, item, day in visits()]
    assert table.select("user_id", "item_id", "timestamp").rows() == expected
    assert table["rating"].unique().to_list() == [4.0]
    assert table["row"].to_list() == list(range(1, len(expected) + 1))
    assert outside == 0


def test_gzip_plain_and_small_blocks_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = read_interactions(A2014, write_lines(tmp_path / "r.json", reviews_2014()))[0]
    items = read_items(A2014, write_lines(tmp_path / "m.json", metadata_2014()), IDS)[0]
    monkeypatch.setattr(lines, "BLOCK_BYTES", 500)
    assert read_interactions(A2014, write_lines(tmp_path / "r.json.gz", reviews_2014()))[0].equals(plain)
    assert read_items(A2014, write_lines(tmp_path / "m.json.gz", metadata_2014()), IDS)[0].equals(items)
    # Browsers unpack what they download and keep the name.
    (tmp_path / "unpacked.json.gz").write_bytes((tmp_path / "r.json").read_bytes())
    assert read_interactions(A2014, tmp_path / "unpacked.json.gz")[0].equals(plain)


def test_memory_holds_a_block_not_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 2000)
    path = write_lines(tmp_path / "r.json.gz", reviews_2014() * 20)
    schema = {"asin": pl.String()}
    rows = [len(part.table) for part in lines.read_columns(path, schema)]
    assert sum(rows) == 20 * len(visits())
    assert max(rows) < 20


def test_2014_metadata_are_python_literals(tmp_path: Path) -> None:
    items, repeated = read_items(A2014, write_lines(tmp_path / "meta_Beauty.json.gz", metadata_2014()), IDS)
    assert items["item_id"].to_list() == [*IDS[:3], *IDS[4:]]
    assert items.row(0, named=True) == {
        "item_id": IDS[0],
        "title": "It's a \"Brush\", 5'",
        "brand": "Ünder",
        "categories": ["Beauty", "Tools", "Hair Care"],
        "description": "Soft. Very soft: true, false & null.",
        "image_url": "http://ecx.images-amazon.com/images/I/41.jpg",
    }
    assert items.row(1) == (IDS[1], "Plain", None, ["Beauty"], None, None)
    assert items.row(2) == (IDS[2], None, None, None, None, None)
    assert repeated == 0


def test_2014_metadata_may_be_strict_json_or_a_mixture(tmp_path: Path) -> None:
    import ast

    records = [ast.literal_eval(line) for line in metadata_2014()]
    expected = read_items(A2014, write_lines(tmp_path / "python.json", metadata_2014()), IDS)[0]
    assert read_items(A2014, write_lines(tmp_path / "strict.json", map(json.dumps, records)), IDS)[0].equals(expected)
    mixed = [json.dumps(one) if row % 2 else repr(one) for row, one in enumerate(records)]
    assert read_items(A2014, write_lines(tmp_path / "mixed.json", mixed), IDS)[0].equals(expected)


def test_metadata_is_parsed_never_evaluated(tmp_path: Path) -> None:
    attack = f"{{'asin': __import__('pathlib').Path({str(tmp_path / 'made')!r}).touch()}}"
    with pytest.raises(CEMGError, match=r"m\.json: line 1: .* is not a JSON object or a Python dictionary"):
        read_items(A2014, write_lines(tmp_path / "m.json", [attack]), IDS)
    assert not (tmp_path / "made").exists()


def test_repeated_metadata_is_counted_and_the_first_stays(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.json", [*metadata_2014(), repr({"asin": IDS[0], "title": "Second"}), repr({"asin": "B99"})])
    items, repeated = read_items(A2014, path, IDS)
    assert repeated == 1
    assert items["item_id"].is_unique().all()
    assert items["title"][0].startswith("It's")


def test_files_of_ratings_only(tmp_path: Path) -> None:
    """2014 has the user first, 2018 the item, 2023 a header and, in its benchmark files, the history behind."""
    expected = [("A1", "B1", 1369699200, 5.0), ("A2", "B1", 1355443200, 3.0)]
    files = {
        "2014": ["A1,B1,5.0,1369699200", "A2,B1,3.0,1355443200"],
        "2018": ["B1,A1,5.0,1369699200", "B1,A2,3.0,1355443200"],
        "2023": ["user_id,parent_asin,rating,timestamp,history", "A1,B1,5.0,1369699200999,", "A2,B1,3.0,1355443200000,B7 B9"],
    }
    for year, content in files.items():
        path = write_lines(tmp_path / f"ratings_{year}.csv.gz", content)
        table = read_interactions(FORMATS[f"amazon-{year}"], path)[0]
        assert table.select("user_id", "item_id", "timestamp", "rating").rows() == expected, year


def test_2018_reviews_and_metadata(tmp_path: Path) -> None:
    review = {"overall": 5.0, "verified": True, "reviewTime": "09 1, 2016", "reviewerID": "A3CIUOJXQ5VDQ2", "asin": IDS[0]}
    review |= {"style": {"Size:": " 7.0 oz"}, "reviewText": "As advertised", "unixReviewTime": 1472688000, "image": ["https://x/y.jpg"]}
    table = read_interactions(A2018, write_lines(tmp_path / "All_Beauty_5.json.gz", [json.dumps(review)]))[0]
    assert table.select("user_id", "item_id", "timestamp", "rating").rows() == [("A3CIUOJXQ5VDQ2", IDS[0], 1472688000, 5.0)]
    common = {"category": [], "tech1": "", "price": "$1.00", "also_buy": [], "details": {"ASIN: ": IDS[0]}}
    records: list[dict[str, Any]] = [
        {"asin": IDS[0], "title": "Loud 'N Clear&trade;", "brand": "idea village", "description": ["One.", "", "Two."]},
        {"asin": IDS[1], "title": "var aPageStart = (new Date()).getTime();", "brand": "by\n    \n    Xlent", "description": ""},
        {"asin": IDS[2], "category": ["Beauty", "Bath", "Beauty"], "imageURL": ["https://thumb"], "imageURLHighRes": ["https://large"]},
        {"asin": IDS[3], "image": ["https://thumb"], "imageURLHighRes": []},
    ]
    path = write_lines(tmp_path / "meta_All_Beauty.json.gz", (json.dumps(common | one) for one in records))
    assert read_items(A2018, path, IDS)[0].rows() == [
        (IDS[0], "Loud 'N Clear&trade;", "idea village", None, "One. Two.", None),
        (IDS[1], None, "Xlent", None, None, None),
        (IDS[2], None, None, ["Beauty", "Bath"], None, "https://large"),
        (IDS[3], None, None, None, None, "https://thumb"),
    ]


def test_2023_items_are_parents_and_times_milliseconds(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "All_Beauty.jsonl.gz", reviews_2023([(USERS[0], IDS[0], 1588687728923), (USERS[0], IDS[1], 999)]))
    table = read_interactions(A2023, path)[0]
    assert table.select("item_id", "timestamp", "instant").rows() == [(IDS[0], 1588687728, 1588687728923), (IDS[1], 0, 999)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4_102_444_800_000), min_size=1, max_size=20))
def test_milliseconds_become_whole_seconds(tmp_path_factory: pytest.TempPathFactory, times: list[int]) -> None:
    path = write_lines(tmp_path_factory.mktemp("raw") / "r.jsonl", reviews_2023([("u", "i", time) for time in times]))
    table = read_interactions(A2023, path)[0]
    assert table["timestamp"].to_list() == [time // 1000 for time in times]
    assert table["instant"].to_list() == times


PICTURES = [
    {"thumb": "t1", "large": "l1", "variant": "PT01", "hi_res": "h1"},
    {"thumb": "t0", "large": "l0", "variant": "MAIN", "hi_res": None},
]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (PICTURES, "l0"),
        ({key: [one[key] for one in PICTURES] for key in PICTURES[0]}, "l0"),
        ([{"thumb": "t", "large": None, "variant": "MAIN", "hi_res": None}, PICTURES[0]], "t"),
        ({"hi_res": [None], "large": ["l"], "thumb": [], "variant": ["MAIN"]}, "l"),
        ({"hi_res": [], "large": [], "thumb": [], "variant": []}, None),
        ([], None),
        (None, None),
    ],
)
def test_2023_pictures_in_both_shapes(tmp_path: Path, images: Any, expected: str | None) -> None:
    record = metadata_2023(images)
    items = read_items(A2023, write_lines(tmp_path / "meta.jsonl", [json.dumps(record)]), IDS)[0]
    assert items.rows() == [(IDS[0], record["title"], "Howard Products", ["All Beauty"], "Soft Red", expected)]


def test_2023_parquet_gives_the_same_as_json_lines(tmp_path: Path) -> None:
    images = {key: [one[key] for one in PICTURES] for key in PICTURES[0]}
    records = [metadata_2023(images, details="{}"), metadata_2023(images, parent_asin=IDS[1], categories=["A", "B"], details="{}")]
    pl.DataFrame(records, infer_schema_length=None).write_parquet(tmp_path / "meta.parquet")
    expected = read_items(A2023, write_lines(tmp_path / "meta.jsonl", map(json.dumps, records)), IDS)[0]
    assert read_items(A2023, tmp_path / "meta.parquet", IDS)[0].equals(expected)
    content = reviews_2023([(USERS[0], IDS[0], 1588687728923), (USERS[1], IDS[1], 1588687728924)])
    pl.DataFrame([json.loads(line) for line in content]).write_parquet(tmp_path / "reviews.parquet")
    expected = read_interactions(A2023, write_lines(tmp_path / "reviews.jsonl", content))[0]
    assert read_interactions(A2023, tmp_path / "reviews.parquet")[0].equals(expected)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"reviewerID": "A", "asin": ', "is not a JSON object"),
        ("{'reviewerID': 'A'}", "is not a JSON object"),
        ("[1, 2]", "is not a JSON object"),
        ('{"reviewerID": "A", "asin": "B", "overall": 5.0}', "field unixReviewTime is missing or unreadable"),
        ('{"asin": "B", "overall": 5.0, "unixReviewTime": 3}', "field reviewerID is missing"),
        ('{"reviewerID": "A", "asin": "", "unixReviewTime": 3}', "field asin is missing"),
        ('{"reviewerID": "A", "asin": "B", "unixReviewTime": "noon"}', "is not a JSON object with the published fields"),
    ],
)
def test_a_bad_review_is_named_by_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str) -> None:
    content = reviews_2014()
    content[30:30] = ["", line]
    for block in (300, 1 << 20):
        monkeypatch.setattr(lines, "BLOCK_BYTES", block)
        for name in ("reviews.json", "reviews.json.gz"):
            with pytest.raises(CEMGError, match=message) as caught:
                read_interactions(A2014, write_lines(tmp_path / name, content))
            assert str(caught.value).startswith(f"{tmp_path / name}: line 32: ")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["A1,B1,5.0,3", "A2,B1,5.0"], "line 2: expected reviewerID,asin,overall,unixReviewTime"),
        (["A1,B1,5.0,3", "", "A2,B1,5.0,x"], "line 3: field unixReviewTime is missing or unreadable"),
        (["A1,B1,5.0,3", ",B1,5.0,3"], "line 2: field reviewerID is missing"),
    ],
)
def test_a_bad_rating_is_named_by_its_line(tmp_path: Path, content: list[str], message: str) -> None:
    with pytest.raises(CEMGError, match=message):
        read_interactions(A2014, write_lines(tmp_path / "ratings_Beauty.csv", content))


def test_bad_metadata_is_named_by_its_line(tmp_path: Path) -> None:
    for bad, message in (
        ("{'asin': ", "is not a JSON object or"),
        ("['asin']", "is not a JSON"),
        ("{'title': 'x'}", "field asin is missing"),
    ):
        with pytest.raises(CEMGError, match=rf"m\.json: line 3: .*{message}"):
            read_items(A2014, write_lines(tmp_path / "m.json", [metadata_2014()[0], "", bad]), IDS)
    with pytest.raises(CEMGError, match="line 1: "):
        read_items(A2018, write_lines(tmp_path / "m.json", metadata_2014()), IDS)


def test_damaged_missing_and_empty_files(tmp_path: Path) -> None:
    whole = write_lines(tmp_path / "r.json.gz", reviews_2014() * 50).read_bytes()
    (tmp_path / "cut.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CEMGError, match=r"cut\.json\.gz: damaged after line \d+ .*download it again"):
        read_interactions(A2014, tmp_path / "cut.json.gz")
    for name in ("empty.json", "empty.json.gz", "empty.csv"):
        with pytest.raises(CEMGError, match="the file is empty"):
            read_interactions(A2014, write_lines(tmp_path / name, []))
    with pytest.raises(CEMGError, match=r"none\.json: no such file"):
        read_interactions(A2014, tmp_path / "none.json")
    with pytest.raises(CEMGError, match="line 1: the columns are a, b, c, d, expected user_id"):
        read_interactions(A2023, write_lines(tmp_path / "r.csv", ["a,b,c,d", "1,2,3,4"]))
    pl.DataFrame({"user_id": ["a"]}).write_parquet(tmp_path / "r.parquet")
    with pytest.raises(CEMGError, match="column parent_asin is missing"):
        read_interactions(A2023, tmp_path / "r.parquet")


def test_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(reviews_2014()[0], encoding="utf-8-sig")
    assert len(read_interactions(A2014, tmp_path / "r.json")[0]) == 1
