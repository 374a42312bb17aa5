from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from raw_samples import write_lines

from cemg_hf.data.raw import FORMATS, read_interactions, read_items
from cemg_hf.errors import CEMGError

YELP = FORMATS["yelp"]
START, END = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (2019, 2020))


def review(date: str, business: str = "XQfwVwDr-v0ZS3_CbbE5Xw", stars: float = 3.0) -> str:
    record = {"review_id": "KU_O5udG6zpxOg-VcAEodg", "user_id": "mh_-eMZ6K5RLWhZyISBhwA", "business_id": business, "stars": stars}
    return json.dumps(record | {"useful": 0, "funny": 0, "cool": 0, "text": 'If you decide to eat here,\n"just" be aware', "date": date})


def business(business_id: str, name: str, categories: str | list[str] | None) -> str:
    record = {"business_id": business_id, "name": name, "address": "", "city": "Montréal", "state": "QC", "stars": 4.0, "is_open": 1}
    return json.dumps(record | {"attributes": {"WiFi": "u'free'"}, "categories": categories, "hours": None}, ensure_ascii=False)


def test_reviews_with_times_and_repeats(tmp_path: Path) -> None:
    dates = ["2018-07-07 22:09:11", "2018-07-07 22:09:12", "2018-07-07"]
    table, _ = read_interactions(YELP, write_lines(tmp_path / "yelp_academic_dataset_review.json", map(review, dates)))
    midnight = int(datetime(2018, 7, 7, tzinfo=UTC).timestamp())
    assert table["timestamp"].to_list() == [midnight + 79_751, midnight + 79_752, midnight]
    assert table.row(0)[:2] == ("mh_-eMZ6K5RLWhZyISBhwA", "XQfwVwDr-v0ZS3_CbbE5Xw")
    assert table["rating"].to_list() == [3.0] * 3


def test_dates_include_the_first_and_the_last_second(tmp_path: Path) -> None:
    dates = ["2018-12-31 23:59:59", "2019-01-01 00:00:00", "2019-12-31 23:59:59", "2020-01-01 00:00:00"]
    path = write_lines(tmp_path / "review.json", map(review, dates))
    table, outside = read_interactions(YELP, path, START, END)
    assert table["timestamp"].to_list() == [START, END - 1]
    assert table["row"].to_list() == [1, 2]
    assert outside == 2
    assert read_interactions(YELP, path, START)[1] == 1
    assert read_interactions(YELP, path, None, END)[1] == 1
    with pytest.raises(CEMGError, match="none of the 4 reviews lies between the dates"):
        read_interactions(YELP, path, END + 1)


def test_businesses(tmp_path: Path) -> None:
    lines = [
        business("a", "Emerald  Chinese ", "Specialty Food, Restaurants, Dim Sum, Restaurants"),
        business("b", "Café", None),
        business("c", "Old release", ["Food", "Tea Rooms"]),
        business("d", "not wanted", "Food"),
    ]
    items, _ = read_items(YELP, write_lines(tmp_path / "yelp_academic_dataset_business.json", lines), ["a", "b", "c"])
    assert items.rows() == [
        ("a", "Emerald Chinese", None, ["Specialty Food", "Restaurants", "Dim Sum"], None, None),
        ("b", "Café", None, None, None, None),
        ("c", "Old release", None, ["Food", "Tea Rooms"], None, None),
    ]


@pytest.mark.parametrize("date", ["2018-13-07 22:09:11", "yesterday", ""])
def test_a_bad_date_is_named_by_its_line(tmp_path: Path, date: str) -> None:
    path = write_lines(tmp_path / "review.json", [review("2018-07-07 22:09:11"), review(date)])
    with pytest.raises(CEMGError, match=r"review\.json: line 2: field date is missing or unreadable"):
        read_interactions(YELP, path)


def test_there_is_no_csv(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match="not published as CSV"):
        read_interactions(YELP, write_lines(tmp_path / "review.csv", ["a,b,1,2"]))
