from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command_samples import Command
from raw_samples import IDS, USERS, metadata_2014, reviews_2014, reviews_2023, visits, write_lines
from test_download import FAST, Shop, picture, shop  # noqa: F401

from cemg_hf.data import PrepareConfig, convert, prepare
from cemg_hf.data.convert import PUBLISHED, ConvertConfig, Counts
from cemg_hf.data.convert import convert as run
from cemg_hf.errors import CEMGError

KEPT = [visit for visit in visits() if visit[0] in USERS[:6] and visit[1] in IDS[:6]]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The two files of the 2014 sample."""
    reviews = write_lines(tmp_path / "reviews_Beauty_5.json.gz", reviews_2014())
    metadata = write_lines(tmp_path / "meta_Beauty.json.gz", metadata_2014())
    return {"format": "amazon-2014", "reviews": str(reviews), "metadata": str(metadata)}


def pictured(tmp_path: Path, server: Shop, kinds: dict[str, str]) -> dict[str, Any]:
    """The sample with a picture per item at the test's server: item id → kind of answer."""
    reviews = write_lines(tmp_path / "reviews.json", reviews_2014())
    records = [repr({"asin": item, "title": f"It's {item}", "imUrl": server.url(f"/{kind}/{item}.jpg")}) for item, kind in kinds.items()]
    metadata = write_lines(tmp_path / "meta.json", records)
    return {"format": "amazon-2014", "reviews": str(reviews), "metadata": str(metadata), "images": str(tmp_path / "pictures")}


def test_tables_are_the_k_core_and_prepare_keeps_all_of_them(files: dict[str, str], tmp_path: Path) -> None:
    told = run(ConvertConfig(**files), tmp_path / "data")
    interactions, items = (pl.read_parquet(tmp_path / "data" / f"{name}.parquet") for name in ("interactions", "items"))
    assert interactions.columns == ["user_id", "item_id", "timestamp", "rating"]
    assert interactions.select("user_id", "item_id").rows() == [visit[:2] for visit in KEPT]
    assert all(count >= 5 for column in ("user_id", "item_id") for count in Counter(interactions[column]).values())
    assert set(items["item_id"]) == set(interactions["item_id"])
    without = items.filter(pl.col("title").is_null() & pl.col("categories").is_null())["item_id"].to_list()
    assert set(without) == {IDS[2], IDS[3]}

    figures = json.loads((tmp_path / "data" / "statistics.json").read_text())
    assert figures["before"] == {"users": 7, "items": 8, "interactions": len(visits())}
    assert (figures["users"], figures["items"], figures["interactions"]) == (6, 6, 36)
    assert (figures["removed_by_k_core"], figures["items_without_metadata"], figures["same_user_and_timestamp"]) == (4, 1, 36)
    assert "36 of 36 interactions (100%) share user and timestamp" in told
    assert "cannot be recovered from raw files" in told

    source = {name: str(tmp_path / "data" / f"{name}.parquet") for name in ("interactions", "items")}
    folder = prepare(PrepareConfig(name="beauty", **source), tmp_path / "prepared")
    prepared = pl.read_parquet(folder / "interactions.parquet")
    assert prepared.equals(interactions.select(prepared.columns))
    assert json.loads((folder / "statistics.json").read_text())["removed_by_k_core"] == 0
    assert (
        pl.read_parquet(folder / "items.parquet")
        .select("item_id", "title", "brand", "description")
        .equals(items.select("item_id", "title", "brand", "description"))
    )


def test_one_more_round_changes_nothing(files: dict[str, str], tmp_path: Path) -> None:
    run(ConvertConfig(**files), tmp_path / "once")
    table = pl.read_parquet(tmp_path / "once" / "interactions.parquet")
    csv = write_lines(tmp_path / "ratings.csv", (f"{user},{item},{rating},{time}" for user, item, time, rating in table.rows()))
    run(ConvertConfig(format="amazon-2014", reviews=str(csv)), tmp_path / "twice")
    assert pl.read_parquet(tmp_path / "twice" / "interactions.parquet").equals(table)
    assert pl.read_parquet(tmp_path / "twice" / "items.parquet")["title"].null_count() == 6


def test_milliseconds_order_reviews_of_one_second_and_repeats_go(tmp_path: Path) -> None:
    times = [("u", "late", 5_900), ("u", "early", 5_100), ("u", "early", 5_200), ("u", "first", 100), ("u", "same", 5_900)]
    path = write_lines(tmp_path / "r.jsonl", reviews_2023(times))
    run(ConvertConfig(format="amazon-2023", reviews=str(path), min_interactions=0), tmp_path / "data")
    table = pl.read_parquet(tmp_path / "data" / "interactions.parquet")
    assert table.select("item_id", "timestamp").rows() == [("first", 0), ("early", 5), ("late", 5), ("same", 5)]
    assert json.loads((tmp_path / "data" / "statistics.json").read_text())["duplicates_removed"] == 1
    prepared = prepare(PrepareConfig(interactions=str(tmp_path / "data" / "interactions.parquet"), min_interactions=0), tmp_path / "p")
    assert pl.read_parquet(prepared / "interactions.parquet")["item_id"].to_list() == ["first", "early", "late", "same"]


def test_dates(files: dict[str, str], tmp_path: Path) -> None:
    told = run(ConvertConfig(**files, from_date="2014-01-02", to_date="2014-01-06", min_interactions=0), tmp_path / "data")
    kept = [visit for visit in visits() if 1 <= visit[2] <= 5]
    assert len(pl.read_parquet(tmp_path / "data" / "interactions.parquet")) == len(kept)
    assert f"{len(visits()) - len(kept)} interactions lie outside the dates" in told


def test_published_counts_are_compared(files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = run(ConvertConfig(**files, expect="beauty"), tmp_path / "data")
    assert "THE COUNTS DIFFER from the published ones of beauty: -22,357 users, -12,095 items, -198,466 interactions" in told
    monkeypatch.setattr(convert, "PUBLISHED", {**PUBLISHED, "beauty": Counts(6, 6, 36)})
    assert "the counts are the published ones of beauty" in run(ConvertConfig(**files, expect="beauty"), tmp_path / "data")


def test_published_counts_are_those_of_the_shared_data(shared_data: Path) -> None:
    for name in ("beauty", "sports", "yelp"):
        table = pl.read_parquet(shared_data / name / "interactions.parquet", columns=["user_id", "item_id"])
        assert PUBLISHED[name] == (table["user_id"].n_unique(), table["item_id"].n_unique(), len(table)), name


def test_what_is_current_is_left_alone(files: dict[str, str], tmp_path: Path) -> None:
    told = run(ConvertConfig(**files), tmp_path / "data")
    written = (tmp_path / "data" / "manifest.json").stat().st_mtime_ns
    assert run(ConvertConfig(**files), tmp_path / "data") == told
    assert (tmp_path / "data" / "manifest.json").stat().st_mtime_ns == written
    run(ConvertConfig(**files, min_interactions=2), tmp_path / "data")
    assert (tmp_path / "data" / "manifest.json").stat().st_mtime_ns != written


def test_pictures_are_attached_and_read_by_prepare(tmp_path: Path, shop: Shop) -> None:  # noqa: F811
    kinds = dict.fromkeys(IDS[:5], "ok") | {IDS[5]: "gone"}
    config = ConvertConfig(**pictured(tmp_path, shop, kinds))
    told = run(config, tmp_path / "data", FAST)
    assert "pictures: 5 downloaded, 0 cached, 1 missing, 0 invalid, 0 failed" in told
    assert {path.split("/")[2] for path, _ in shop.asked} == {f"{item}.jpg" for item in IDS[:6]}, "only what the k-core keeps is asked for"
    items = pl.read_parquet(tmp_path / "data" / "items.parquet")
    assert items.filter(pl.col("image").is_null())["item_id"].to_list() == [IDS[5]]
    source = {name: str(tmp_path / "data" / f"{name}.parquet") for name in ("interactions", "items")}
    prepared = pl.read_parquet(prepare(PrepareConfig(**source), tmp_path / "prepared") / "items.parquet")
    data = dict(prepared.select("item_id", pl.col("image").struct.field("bytes")).iter_rows())
    assert data == dict.fromkeys(IDS[:5], picture()) | {IDS[5]: None}
    shop.asked.clear()
    assert "0 downloaded, 5 cached, 1 missing" in run(config, tmp_path / "data", FAST)
    assert not shop.asked


def test_items_without_picture_may_go_and_the_k_core_follows(tmp_path: Path, shop: Shop) -> None:  # noqa: F811
    config = pictured(tmp_path, shop, dict.fromkeys(IDS[:5], "ok") | {IDS[5]: "gone"})
    told = run(ConvertConfig(**config, missing_images="drop-items"), tmp_path / "data", FAST)
    table = pl.read_parquet(tmp_path / "data" / "interactions.parquet")
    assert set(table["item_id"]) == set(IDS[:5]) == set(pl.read_parquet(tmp_path / "data" / "items.parquet")["item_id"])
    assert all(count >= 5 for column in ("user_id", "item_id") for count in Counter(table[column]).values())
    assert "6 interactions removed with the items without picture" in told
    with pytest.raises(CEMGError, match="no user and item is left with min_interactions: 6"):
        run(ConvertConfig(**config, missing_images="drop-items", min_interactions=6), tmp_path / "other", FAST)


def test_a_missing_picture_may_be_an_error(tmp_path: Path, shop: Shop) -> None:  # noqa: F811
    config = pictured(tmp_path, shop, dict.fromkeys(IDS[:4], "ok") | {IDS[4]: "page"})
    with pytest.raises(CEMGError, match=r"2 of 6 items have no picture \(first: .*report\.parquet") as caught:
        run(ConvertConfig(**config, missing_images="error"), tmp_path / "data", FAST)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "amazon-2015"}, "amazon-2015: no such format; the formats are amazon-2014"),
        ({"min_interactions": -1}, "min_interactions: -1 is negative"),
        ({"expect": "books"}, "no published counts of 'books'"),
        ({"missing_images": "guess"}, "missing_images: 'guess' is unknown"),
        ({"from_date": "1.1.2019"}, "from_date: '1.1.2019' is not a day"),
        ({"from_date": "2019-02-01", "to_date": "2019-01-01"}, "to_date: 2019-01-01 is before from_date"),
        ({"format": "yelp", "images": "x"}, "yelp names no URLs of pictures"),
        ({"images": "x", "metadata": None}, "the URLs of pictures are in the metadata"),
    ],
)
def test_bad_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CEMGError, match=message):
        ConvertConfig(**{"format": "amazon-2014", "reviews": "r", "metadata": "m", **change})


def test_bad_places_and_files(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "interactions.parquet").write_bytes(b"precious")
    with pytest.raises(CEMGError, match="would be lost"):
        run(ConvertConfig(**files), tmp_path / "mine")
    with pytest.raises(CEMGError, match="inside the output"):
        run(ConvertConfig(**files, images=str(tmp_path / "data" / "images")), tmp_path / "data")
    with pytest.raises(CEMGError, match="is a file"):
        run(ConvertConfig(**files), Path(files["reviews"]))
    with pytest.raises(CEMGError, match=r"none\.json: no such file"):
        run(ConvertConfig(**{**files, "metadata": str(tmp_path / "none.json")}), tmp_path / "data")
    other = write_lines(tmp_path / "meta_Sports.json", [repr({"asin": "B99"})])
    with pytest.raises(CEMGError, match="describes none of the 6 items"):
        run(ConvertConfig(**{**files, "metadata": str(other)}), tmp_path / "data")
    with pytest.raises(CEMGError, match="no user and item is left with min_interactions: 7"):
        run(ConvertConfig(**files, min_interactions=7), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_commands(
    files: dict[str, str],
    tmp_path: Path,
    shop: Shop,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cemg = Command(monkeypatch, capsys)
    given = ["--reviews", files["reviews"], "--metadata", files["metadata"], "--output", tmp_path / "data"]
    done = cemg("convert", "amazon-2014", *given, "--expect", "beauty")
    assert done.status == 0, done.errors
    assert "THE COUNTS DIFFER" in done.output
    tables = ["--interactions", tmp_path / "data" / "interactions.parquet", "--items", tmp_path / "data" / "items.parquet"]
    ran = cemg("run", "own-data", *tables, "--output", tmp_path / "run", "--until", "prepare")
    assert ran.status == 0, ran.errors
    assert json.loads((tmp_path / "run" / "dataset" / "statistics.json").read_text())["interactions"] == 36
    refused = cemg("convert", "amazon-2013", *given)
    assert (refused.status, len(refused.error_lines)) == (2, 1)
    write_lines(tmp_path / "items.csv", ["item_id,picture", f"a,{shop.url('/ok/1')}", f"b,{shop.url('/gone/1')}"])
    fetched = cemg("download-images", tmp_path / "items.csv", "--url-column", "picture", "--output", tmp_path / "pictures")
    assert fetched.status == 0, fetched.errors
    assert fetched.output.startswith("1 downloaded, 0 cached, 1 missing")
