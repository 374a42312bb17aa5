from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cemg_hf.data import parsing


@given(st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)), st.sampled_from([None, 0, 120, -330]), st.booleans())
def test_iso_strings_agree_with_the_standard_library(moment: datetime, offset: int | None, blank: bool) -> None:
    if offset is not None:
        moment = moment.replace(tzinfo=timezone(timedelta(minutes=offset)))
    expected = moment if offset is not None else moment.replace(tzinfo=UTC)
    column = pl.Series("t", [moment.isoformat(sep=" " if blank else "T")])
    assert parsing.timestamps(column).stored.to_list() == [expected.timestamp() // 1]


def test_iso_short_forms() -> None:
    column = pl.Series(["2014-07-23", "2014-07-23T10:30", "2014-07-23T10:30:00Z", "2014-07-23 12:30:00+0200", "yesterday", None])
    day = int(datetime(2014, 7, 23, tzinfo=UTC).timestamp())
    noon = day + 37_800
    assert parsing.timestamps(column).stored.to_list() == [day, noon, noon, noon, None, None]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pl.Series(["1", " 2 ", "x"]), [1, 2, None]),
        (pl.Series(["1", "2.5", "nan"]), [1, 2, None]),
        (pl.Series([1.9, float("nan"), float("inf"), None]), [1, None, None, None]),
        (pl.Series([7, None]), [7, None]),
        (pl.Series([1e30]), [None]),
        (pl.Series([2**63], dtype=pl.UInt64), [None]),
        (pl.Series([date(1970, 1, 2)]), [86_400]),
        (pl.Series([datetime(1970, 1, 2)], dtype=pl.Datetime("ms", "Europe/Berlin")), [82_800 + 3_600]),
        (pl.Series([None, None]), [None, None]),
    ],
)
def test_timestamps(column: pl.Series, expected: list[int | None]) -> None:
    stored = parsing.timestamps(column).stored
    assert stored.dtype == pl.Int64
    assert stored.to_list() == expected


def test_instants_keep_what_the_stored_seconds_lose() -> None:
    for column in (pl.Series([1.75, 1.25]), pl.Series(["2014-07-23T10:00:00.9", "2014-07-23T10:00:00.1"]), pl.Series(["1.75", "1.25"])):
        times = parsing.timestamps(column)
        assert times.stored[0] == times.stored[1]
        assert times.instant[0] > times.instant[1]


def test_identifiers_keep_strings_and_repair_floats() -> None:
    assert parsing.identifiers(pl.Series(["007", "", None, " x"])).to_list() == ["007", None, None, " x"]
    assert parsing.identifiers(pl.Series([1.0, 2.5, float("nan"), None, 3.0])).to_list() == ["1", None, None, None, "3"]
    assert parsing.identifiers(pl.Series([7, 8])).to_list() == ["7", "8"]


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([["A", " B ", "", "A"], None, []]),
        pl.Series([[["A", "B"], ["A"]], None, [[]]]),
        pl.Series(["A| B |A|", None, " "]),
        pl.Series(['["A", "B"]', None, "[]"]),
        pl.Series(['[["A", "B"], ["B"]]', None, ""]),
    ],
)
def test_categories_forms_agree(column: pl.Series) -> None:
    parsed = parsing.categories(column)
    assert parsed.dtype == pl.List(pl.String)
    assert parsed.to_list() == [["A", "B"], None, None]
    assert not parsing.unreadable_json_lists(column).any()


def test_forms_of_categories_mix_and_bad_json_is_told_from_missing() -> None:
    column = pl.Series(["a|b", '["c"]', '[["d"], ["e"]]', "['f']", '[{"g": 1}]', None, "[1, 2]"])
    assert parsing.categories(column).to_list() == [["a", "b"], ["c"], ["d", "e"], None, None, None, ["1", "2"]]
    assert parsing.unreadable_json_lists(column).to_list() == [False, False, False, True, True, False, False]


def test_texts_join_paragraphs_and_drop_blanks() -> None:
    assert parsing.texts(pl.Series([" a ", "  ", None])).to_list() == ["a", None, None]
    assert parsing.texts(pl.Series([["a", "b"], [], None])).to_list() == ["a b", None, None]
    assert parsing.texts(pl.Series([1, 2])).to_list() == ["1", "2"]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pl.Series([b"x", b"", None]), [{"bytes": b"x", "path": None}, None, None]),
        (pl.Series(["a.png", " ", None]), [{"bytes": None, "path": "a.png"}, None, None]),
        (pl.Series([{"bytes": b"x", "path": "a"}, {"bytes": None, "path": None}, None]), [{"bytes": b"x", "path": "a"}, None, None]),
        (pl.Series([None, None]), [None, None]),
    ],
)
def test_images_forms(column: pl.Series, expected: list[object]) -> None:
    parsed = parsing.images(column)
    assert parsed.dtype == parsing.IMAGE_DTYPE
    assert parsed.to_list() == expected


@pytest.mark.parametrize(
    ("parser", "column"),
    [
        (parsing.identifiers, pl.Series([["a"]])),
        (parsing.timestamps, pl.Series([True])),
        (parsing.numbers, pl.Series([[1]])),
        (parsing.texts, pl.Series([b"x"])),
        (parsing.categories, pl.Series([1])),
        (parsing.images, pl.Series([3])),
        (parsing.images, pl.Series([{"url": "x"}])),
    ],
)
def test_columns_without_a_reading_are_refused(parser, column: pl.Series) -> None:
    with pytest.raises(parsing.UnreadableColumn, match="holds"):
        parser(column)
