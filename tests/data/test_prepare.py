from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from cemg_hf.artefacts import fingerprint_path
from cemg_hf.data import PrepareConfig, PreparedDataset, Statistics, prepare
from cemg_hf.errors import CEMGError


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def shop(folder: Path) -> PrepareConfig:
    """Six users of five items each out of twelve, a sparse seventh; images of three kinds; written so that the order matters."""
    generator = np.random.default_rng(0)
    users = np.repeat([f"u{n}" for n in (3, 1, 5, 0, 2, 4)], 5)
    items = np.concatenate([generator.permutation(6)[:5] for _ in range(6)])
    table = pl.DataFrame(
        {"user": [*users, "rare"], "item_id": [*(f"i{n}" for n in items), "i9"], "timestamp": [*generator.integers(0, 3, 30), 1]}
    )
    table.write_csv(folder / "log.csv")
    catalogue = {
        "item_id": [f"i{n}" for n in range(12)],
        "title": [f"title {n}" if n != 4 else None for n in range(12)],
        "categories": ["x|y", *[None] * 11],
        "image": [None, "relative.png", "missing.png", *[None] * 9],
    }
    pl.DataFrame(catalogue).write_parquet(folder / "items.parquet")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "relative.png").write_bytes(png((255, 0, 0)))
    (folder / "pictures" / "i3.png").write_bytes(png((0, 255, 0)))
    return PrepareConfig(
        name="shop",
        interactions=str(folder / "log.csv"),
        items=str(folder / "items.parquet"),
        images=str(folder / "pictures"),
        columns={"user_id": "user"},
        min_interactions=2,
        license="mit",
    )


def changed(config: PrepareConfig, **settings: object) -> PrepareConfig:
    return PrepareConfig(**{**config.__dict__, **settings})  # type: ignore[arg-type]


@pytest.fixture
def hf_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


@pytest.mark.usefixtures("hf_cache")
def test_whole_folder_opens_with_load_dataset(tmp_path: Path) -> None:
    import datasets

    folder = prepare(shop(tmp_path), tmp_path / "out")
    prepared = PreparedDataset.load(folder)

    interactions = datasets.load_dataset(str(folder), "interactions", split="train")
    assert interactions.features["timestamp"].dtype == "int64"
    assert list(dict.fromkeys(interactions["user_id"])) == prepared.user_ids == ["u3", "u1", "u5", "u0", "u2", "u4"]

    items = datasets.load_dataset(str(folder), "items", split="train")
    assert items["item_id"][:] == prepared.item_ids
    by_id = {row["item_id"]: row for row in items}
    assert by_id["i1"]["image"].getpixel((0, 0)) == (255, 0, 0)
    assert by_id["i3"]["image"].getpixel((0, 0)) == (0, 255, 0)
    assert by_id["i2"]["image"] is None
    assert by_id["i0"]["categories"] == ["x", "y"]

    splits = datasets.load_dataset(str(folder), "splits")
    ids = np.array(prepared.item_ids)
    for split in ("validation", "test"):
        cases = prepared.evaluation_cases(split)  # type: ignore[arg-type]
        assert splits[split]["history"][:] == [ids[row].tolist() for row in cases.histories.to_lists()]
        assert splits[split]["target"][:] == ids[cases.targets].tolist()
        assert splits[split]["user_id"][:] == [prepared.user_ids[user] for user in cases.users]
    train = [[*row["history"], row["target"]] for row in splits["train"]]
    assert train == [ids[row].tolist() for row in prepared.train_sequences().to_lists()]


def test_order_is_by_time_then_file(tmp_path: Path) -> None:
    config = shop(tmp_path)
    prepared = PreparedDataset.load(prepare(config, tmp_path / "out"))
    source = pl.read_csv(tmp_path / "log.csv")
    for user, row in zip(prepared.user_ids, prepared.sequences.to_lists(), strict=True):
        own = source.filter(pl.col("user") == user).rows(named=True)
        assert [prepared.item_ids[item] for item in row] == [one["item_id"] for one in sorted(own, key=lambda one: one["timestamp"])]


def test_statistics_and_reports(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cemg_hf"):
        statistics = Statistics.load(prepare(shop(tmp_path), tmp_path / "out"))
    assert (statistics.users, statistics.interactions, statistics.removed_by_k_core, statistics.unreadable_images) == (6, 30, 1, 1)
    assert statistics.items == 6
    assert (statistics.items_with_image, statistics.items_with_text, statistics.items_without_content) == (2, 5, 1)
    assert statistics.table() in caplog.text
    assert "1 images could not be read and are null (first: item 'i2'" in caplog.text
    assert "1 items have neither text nor image and are kept (first: 'i4')" in caplog.text


def test_cold_items_stay_when_asked(tmp_path: Path) -> None:
    config = shop(tmp_path)
    prepared = PreparedDataset.load(prepare(changed(config, keep_unseen_items=True), tmp_path / "out"))
    assert prepared.item_ids == [f"i{n}" for n in range(12)]
    assert prepared.train_item_counts()[6:].tolist() == [0] * 6
    without = PreparedDataset.load(prepare(config, tmp_path / "without"))
    assert without.item_ids == [f"i{n}" for n in range(6)]


def test_preparing_a_prepared_dataset_changes_nothing(tmp_path: Path) -> None:
    first = PreparedDataset.load(prepare(shop(tmp_path), tmp_path / "out"))
    again = PrepareConfig(interactions=f"{first.folder}/interactions.parquet", items=f"{first.folder}/items.parquet", min_interactions=2)
    second = PreparedDataset.load(prepare(again, tmp_path / "again"))
    assert second.user_ids == first.user_ids
    assert second.sequences.to_lists() == first.sequences.to_lists()
    assert second.items_table().equals(first.items_table())


@pytest.mark.usefixtures("hf_cache")
def test_prepared_folder_as_a_source_of_both_tables(tmp_path: Path) -> None:
    first = PreparedDataset.load(prepare(shop(tmp_path), tmp_path / "out"))
    config = PrepareConfig("again", str(first.folder), str(first.folder), columns={"brand": "title"}, min_interactions=2)
    second = PreparedDataset.load(prepare(config, tmp_path / "again"))
    assert second.sequences.to_lists() == first.sequences.to_lists()
    assert second.items_table()["brand"].to_list() == first.items_table()["title"].to_list()


def test_current_folder_is_skipped_and_a_changed_input_or_setting_is_not(tmp_path: Path) -> None:
    config, output = shop(tmp_path), tmp_path / "out"

    def written() -> int:
        return (prepare(config, output) / "items.parquet").stat().st_ino

    first = written()
    assert written() == first
    (tmp_path / "pictures" / "i3.png").write_bytes(png((0, 0, 255)))
    second = written()
    assert second != first
    config = changed(config, min_interactions=3)
    third = written()
    assert third != second
    (tmp_path / "moved").mkdir()
    config = changed(config, interactions=str((tmp_path / "log.csv").rename(tmp_path / "moved" / "log.csv")))
    assert written() == third


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    config = shop(tmp_path)
    one, two = prepare(config, tmp_path / "one"), prepare(config, tmp_path / "two")
    for path in sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file() and path.name != "manifest.json"):
        assert (one / path).read_bytes() == (two / path).read_bytes(), path
    assert fingerprint_path(one) == fingerprint_path(two)


def test_duplicates_and_unknown_items_and_ratings_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = {"user_id": list("uuuuvv"), "item_id": list("aabzab"), "timestamp": [1, 1, 2, 3, 1, 2], "rating": [5, 5, 4, 5, 2, 5]}
    pl.DataFrame(rows).write_csv(tmp_path / "log.csv")
    pl.DataFrame({"item_id": list("abc")}).write_csv(tmp_path / "items.csv")
    config = PrepareConfig(
        interactions=str(tmp_path / "log.csv"), items=str(tmp_path / "items.csv"), min_interactions=0, min_rating=4, license="mit"
    )
    statistics = Statistics.load(prepare(config, tmp_path / "out"))
    counted = (statistics.below_min_rating, statistics.unknown_item_interactions, statistics.duplicates_removed, statistics.interactions)
    assert counted == (1, 1, 1, 3)
    assert "skipped 1 of 5 interactions whose item is not in the items table (first: row 4, column item_id: 'z')" in caplog.text
    assert "there are no validation and test cases" in caplog.text
    assert pl.read_parquet(tmp_path / "out" / "interactions.parquet")["rating"].to_list() == [5.0, 4.0, 5.0]


def test_without_an_items_table_the_catalogue_is_the_ids(tmp_path: Path) -> None:
    config = changed(shop(tmp_path), items=None, images=None)
    prepared = PreparedDataset.load(prepare(config, tmp_path / "out"))
    assert len(prepared.item_ids) == 6
    assert prepared.items_table()["title"].null_count() == 6
    pictured = PreparedDataset.load(prepare(changed(config, images=str(tmp_path / "pictures")), tmp_path / "pictured"))
    assert dict(pictured.items_table().select("item_id", pl.col("image").is_not_null()).iter_rows())["i3"]


def test_nothing_left_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    config = shop(tmp_path)
    with pytest.raises(CEMGError, match=r"min_interactions: 50 .*lower it"):
        prepare(changed(config, min_interactions=50), tmp_path / "out")
    with pytest.raises(CEMGError, match="column rating is missing"):
        prepare(changed(config, min_rating=3.0), tmp_path / "out")
    pl.DataFrame({"item_id": ["other"]}).write_csv(tmp_path / "other.csv")
    with pytest.raises(CEMGError, match=r"no item_id is in .*other.csv"):
        prepare(changed(config, items=str(tmp_path / "other.csv"), images=None), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_files_is_not_overwritten(tmp_path: Path) -> None:
    config = shop(tmp_path)
    with pytest.raises(CEMGError, match="would be lost"):
        prepare(config, tmp_path)
    assert (tmp_path / "log.csv").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"user": "x"}}, "columns: unknown name 'user'"),
        ({"min_interactions": -1}, "min_interactions: -1"),
        ({"license": " "}, "license: is empty"),
        ({"name": ""}, "name: is empty"),
        ({"items": "mine.csv"}, "items: 'mine.csv' does not go with"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(CEMGError, match=message):
        PrepareConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "k", "users", "items", "interactions"),
    [
        ("beauty", 5, 22_363, 12_101, 198_502),
        ("sports", 5, 35_598, 18_357, 296_337),
        ("yelp", 5, 30_431, 20_033, 316_354),
        ("movielens-100k", 0, 943, 1_663, 99_815),
    ],
)
def test_statistics_of_the_public_data_sets(
    tmp_path: Path, shared_data: Path, name: str, k: int, users: int, items: int, interactions: int
) -> None:
    source = shared_data / name
    config = PrepareConfig(name, str(source / "interactions.parquet"), str(source / "items.parquet"), min_interactions=k)
    statistics = Statistics.load(prepare(config, tmp_path / name))
    assert (statistics.users, statistics.items, statistics.interactions) == (users, items, interactions)
    assert statistics.duplicates_removed == statistics.removed_by_k_core == statistics.unknown_item_interactions == 0
    raw, prepared = PreparedDataset.load(source), PreparedDataset.load(tmp_path / name)
    assert prepared.user_ids == raw.user_ids
    assert np.array_equal(prepared.sequences.values, raw.sequences.values)
    content = json.loads((tmp_path / name / "statistics.json").read_text())
    assert content["average_length"] == pytest.approx(interactions / users, abs=1e-4)


def test_built_in_sample_is_complete_and_decided_by_the_seed(tmp_path: Path) -> None:
    folder = prepare(PrepareConfig(), tmp_path / "sample", seed=3)
    statistics, made = Statistics.load(folder), (folder / "items.parquet").stat().st_ino
    assert statistics.items_with_image == statistics.items_with_text == statistics.items
    assert statistics.unknown_item_interactions == statistics.duplicates_removed == 0
    assert (prepare(PrepareConfig(), folder, seed=3) / "items.parquet").stat().st_ino == made
    other = PreparedDataset.load(prepare(PrepareConfig(), tmp_path / "other", seed=4))
    assert other.sequences.to_lists() != PreparedDataset.load(folder).sequences.to_lists()


@pytest.mark.usefixtures("hf_cache")
def test_a_split_by_time_is_recorded_and_written(tmp_path: Path) -> None:
    import datasets

    config = changed(shop(tmp_path), split="time", time_quantiles=[0.5, 0.75])
    log = pl.read_csv(tmp_path / "log.csv")
    moments = 1_700_000_000 + np.random.default_rng(1).permutation(len(log))
    log.with_columns(timestamp=pl.Series(moments)).write_csv(tmp_path / "log.csv")
    folder = prepare(config, tmp_path / "out")
    prepared = PreparedDataset.load(folder)
    stored = pl.read_parquet(folder / "interactions.parquet")
    assert prepared.cuts is not None
    assert stored.filter(pl.col("timestamp") < prepared.cuts.validation_from).height == 15 == len(prepared.train_sequences().values)
    ids = np.array(prepared.item_ids)
    splits = datasets.load_dataset(str(folder), "splits")
    for split in ("validation", "test"):
        cases = prepared.evaluation_cases(split)  # type: ignore[arg-type]
        assert len(cases)
        assert splits[split]["history"][:] == [ids[row].tolist() for row in cases.histories.to_lists()]
        assert splits[split]["target"][:] == ids[cases.targets].tolist()
    assert Statistics.load(folder).evaluated_users == len(prepared.evaluation_cases("test"))
    assert f"before timestamp {prepared.cuts.validation_from}" in (folder / "README.md").read_text()
    settings = json.loads((folder / "manifest.json").read_text())["settings"]
    assert (settings["split"], settings["time_quantiles"]) == ("time", [0.5, 0.75])
    assert fingerprint_path(folder) != fingerprint_path(prepare(changed(config, split="leave_one_out"), tmp_path / "other"))


def test_leave_one_out_leaves_manifest_and_folder_as_they_were(tmp_path: Path) -> None:
    folder = prepare(shop(tmp_path), tmp_path / "out")
    assert set(json.loads((folder / "manifest.json").read_text())["settings"]) == {
        "name",
        "columns",
        "min_interactions",
        "min_rating",
        "keep_unseen_items",
        "license",
    }
    assert not (folder / "split.json").exists()
    assert "Leave-one-out: a user's last item is the `test` target" in (folder / "README.md").read_text()


@pytest.mark.parametrize("first", [0, 1])
def test_positions_are_not_split_by_time(tmp_path: Path, first: int) -> None:
    config = changed(shop(tmp_path), split="time")
    log = pl.read_csv(tmp_path / "log.csv")
    log.with_columns(timestamp=pl.int_range(pl.len()).over("user") + first).write_csv(tmp_path / "log.csv")
    with pytest.raises(CEMGError, match="positions in a history and not times"):
        prepare(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert prepare(changed(config, split="leave_one_out"), tmp_path / "out").is_dir()


@pytest.mark.parametrize("quantiles", [[0.8], [0.9, 0.8], [0.0, 0.5], [0.5, 1.0], [0.2, 0.4, 0.6]])
def test_quantiles_that_are_none_are_refused(quantiles: list[float]) -> None:
    with pytest.raises(CEMGError, match="two rising shares between 0 and 1"):
        PrepareConfig(time_quantiles=quantiles)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beauty", "sports", "yelp"])
def test_shared_data_without_times_are_refused(shared_data: Path, tmp_path: Path, name: str) -> None:
    source = shared_data / name
    with pytest.raises(CEMGError, match="positions in a history and not times"):
        prepare(PrepareConfig(name, str(source / "interactions.parquet"), str(source / "items.parquet"), split="time"), tmp_path / "out")
