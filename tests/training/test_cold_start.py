"""Cold start: nothing held out reaches training, and what is measured obeys what boosts can and cannot do."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cemg_hf.data import PreparedDataset
from cemg_hf.data.prepare import PrepareConfig, prepare
from cemg_hf.errors import CEMGError
from cemg_hf.recipes import load_recipe
from cemg_hf.training.cold_start import ADDED, BEFORE, KNN, KNN_NEW, ColdStartConfig, run_cold_start
from cemg_hf.training.hold_out import HELD_OUT_FILE, hold_out_items

USERS, ITEMS = 80, 40
WITHOUT_CONTENT = 4
QUICK = [
    "encode.dimension=16",
    "encode.modalities=[text, collaborative]",
    "encode.text={encoder: tfidf, components: 8}",
    "encode.collaborative.epochs=3",
    "encode.sequential=null",
    "tokenize.dimension=16",
    "tokenize.codebook_size=8",
    "tokenize.latent_dim=8",
    "tokenize.hidden_dims=[16]",
    "tokenize.num_levels=3",
    "tokenize.epochs=3",
    "finetune.generator={d_model: 16, d_kv: 8, d_ff: 32, num_heads: 2, num_layers: 1, num_decoder_layers: 1, max_history: 6}",
    "finetune.loop={epochs: 1, batch_size: 16, learning_rate: 0.01, eval_every: 1}",
    "finetune.dense=null",
    "finetune.objective={}",
]
CONFIG = ColdStartConfig(share=0.2, ks=[5, 12], boosts=[0.0, 2.0, 50.0], dense=[0.0, 4.0], num_beams=12, half_lives=[1.0, 5.0])


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users with 1 to 8 interactions; the first items have no content."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, USERS)
    rows = [(f"u{user}", f"i{item}", step) for user in range(USERS) for step, item in enumerate(rng.choice(ITEMS, lengths[user], False))]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "interactions.csv")
    kinds = np.array(["mug", "lamp", "shoe", "bag"])[np.arange(ITEMS) % 4]
    titles = [f"{kinds[item]} number {item} for {kinds[item // 4 % 4]} lovers" if item >= WITHOUT_CONTENT else "" for item in range(ITEMS)]
    items = [{"item_id": f"i{item}", "title": title} for item, title in enumerate(titles)]
    (folder / "items.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    return folder


@pytest.fixture(scope="module")
def dataset(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = PrepareConfig(
        name="shop", interactions=str(tables / "interactions.csv"), items=str(tables / "items.jsonl"), min_interactions=0
    )
    return prepare(config, tmp_path_factory.mktemp("prepared") / "dataset")


def pairs(data: PreparedDataset, sequences: Any) -> Counter[tuple[str, str]]:
    return Counter((data.user_ids[user], data.item_ids[item]) for user, item in zip(sequences.rows, sequences.values, strict=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.05, 0.4, 0.7])
def test_nothing_held_out_is_left_and_nothing_evaluated_is_trained_on(dataset: Path, tmp_path: Path, share: float, seed: int) -> None:
    folder = hold_out_items(dataset, tmp_path / "held", share, seed)
    original, reduced = PreparedDataset.load(dataset), PreparedDataset.load(folder)
    held = json.loads((folder / HELD_OUT_FILE).read_text())
    assert len(held) == len(set(held)) == round(share * original.num_items)
    assert [item for item in original.item_ids if item not in held] == reduced.item_ids
    assert not {f"i{item}" for item in range(WITHOUT_CONTENT)} & set(held)
    trained, before = pairs(reduced, reduced.train_sequences()), pairs(original, original.train_sequences())
    assert trained <= before
    # What goes, goes for a reason: the item is held out, or it is evaluated in the original.
    gone = pairs(original, original.sequences) - pairs(reduced, reduced.sequences)
    assert all(item in held or (user, item) not in before for user, item in gone)
    order = {
        user: [reduced.item_ids[item] for item in row] for user, row in zip(reduced.user_ids, reduced.sequences.to_lists(), strict=True)
    }
    for user, row in zip(original.user_ids, original.sequences.to_lists(), strict=True):
        kept = [original.item_ids[item] for item in row if original.item_ids[item] not in held]
        assert order.get(user, []) == kept[: len(order.get(user, []))]
    for split in ("train", "validation", "test"):
        written = pl.read_parquet(folder / "splits" / f"{split}.parquet")
        assert not set(held) & {*written["target"], *written["history"].explode().drop_nulls()}
    statistics = json.loads((folder / "statistics.json").read_text())
    assert statistics["items"] == reduced.num_items
    assert statistics["interactions"] == len(reduced.sequences.values)


def test_targets_of_evaluation_are_drawn_first(dataset: Path, tmp_path: Path) -> None:
    data = PreparedDataset.load(dataset)
    targets = {data.item_ids[item] for split in ("validation", "test") for item in data.evaluation_cases(split).targets}
    held = json.loads((hold_out_items(dataset, tmp_path / "held", 0.1) / HELD_OUT_FILE).read_text())
    assert set(held) <= targets


def test_holding_out_is_skipped_when_current_and_done_again_when_not(dataset: Path, tmp_path: Path) -> None:
    folder = hold_out_items(dataset, tmp_path / "held", 0.2, seed=1)
    first, written = (folder / HELD_OUT_FILE).read_text(), (folder / HELD_OUT_FILE).stat().st_mtime_ns
    hold_out_items(dataset, folder, 0.2, seed=1)
    assert (folder / HELD_OUT_FILE).stat().st_mtime_ns == written
    hold_out_items(dataset, folder, 0.2, seed=2)
    assert (folder / HELD_OUT_FILE).read_text() != first


def test_impossible_requests_are_refused(dataset: Path, tmp_path: Path) -> None:
    for arguments, message in [
        ({"share": 0.0}, "share = 0.0"),
        ({"share": 1.0}, "share = 1.0"),
        ({"share": 0.95}, "cannot be held out"),
        ({"modalities": ["image"]}, "0 of 40 items have image"),
        ({"modalities": ["collaborative"]}, "coded from content"),
    ]:
        with pytest.raises(CEMGError, match=message):
            hold_out_items(dataset, tmp_path / "held", **arguments)
    with pytest.raises(CEMGError, match="not a prepared dataset"):
        hold_out_items(tmp_path, tmp_path / "held")
    assert not (tmp_path / "held").exists()
    for wrong, message in [({"num_beams": 5}, "num_beams = 5"), ({"boosts": []}, "boosts"), ({"collaborative": ["x"]}, "collaborative")]:
        with pytest.raises(CEMGError, match=message):
            run_cold_start(load_recipe("sample"), tmp_path / "run", ColdStartConfig(**wrong))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def finished(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("cold")
    inputs = {"prepare.interactions": str(tables / "interactions.csv"), "prepare.items": str(tables / "items.jsonl")}
    recipe = load_recipe("own-data", QUICK, {**inputs, "prepare.min_interactions": 0})
    result = run_cold_start(recipe, folder, CONFIG, command="test")
    model, made = folder / "model" / "config.json", (folder / "model" / "config.json").stat().st_mtime_ns
    again = run_cold_start(recipe, folder, CONFIG)
    assert again["metrics"] == result["metrics"]
    assert model.stat().st_mtime_ns == made  # the second call trained nothing
    return folder, result


def test_the_report_holds_every_system_on_the_original_cases(finished: tuple[Path, dict[str, Any]], dataset: Path) -> None:
    folder, result = finished
    stored = json.loads((folder / "cold_start.json").read_text())
    assert stored["metrics"].keys() == result["metrics"].keys()
    assert {"command", "commit", "seeds", "versions", "machine", "seconds"} <= set(stored)
    assert (folder / "cold_start.png").stat().st_size > 10_000
    metrics, original = result["metrics"], PreparedDataset.load(dataset)
    held = json.loads((folder / "dataset" / HELD_OUT_FILE).read_text())
    assert metrics["held_out_items"] == len(held) == 8
    for split in ("validation", "test"):
        targets = [original.item_ids[item] for item in original.evaluation_cases(split).targets]
        unseen = sum(target in held for target in targets)
        rows = metrics[split]
        assert {row["system"] for row in rows} == {BEFORE, ADDED, KNN, KNN_NEW}
        assert {row.get("collaborative") for row in rows} >= {None, "masked"}
        for row in rows:
            assert (row["unseen"]["n"], row["seen"]["n"]) == (unseen, len(targets) - unseen)
            for part in ("unseen", "seen"):
                assert 0 <= row[part]["recall@5"]["mean"] <= row[part]["recall@12"]["mean"] <= 1
                assert row[part]["recall@5"]["low"] <= row[part]["recall@5"]["mean"] <= row[part]["recall@5"]["high"]
        assert rows[0]["system"] == BEFORE
        assert rows[0]["unseen"]["recall@12"]["mean"] == 0  # what is not in the catalogue cannot be recommended
        for row in rows:
            if row["system"] == KNN_NEW:
                assert row["seen"]["recall@12"]["mean"] == 0


def test_more_boost_finds_more_new_items_and_fewer_others(finished: tuple[Path, dict[str, Any]]) -> None:
    metrics = finished[1]["metrics"]
    for split in ("validation", "test"):
        for mode, dense, likelihood in product(metrics["chosen"], CONFIG.dense, CONFIG.likelihood):
            settings = {"collaborative": mode, "dense": dense, "likelihood": likelihood}
            rows = [row for row in metrics[split] if settings.items() <= row.items() and row["boost"] is not None]
            assert [row["boost"] for row in rows] == CONFIG.boosts
            for name in ("recall@5", "recall@12"):
                assert (np.diff([row["unseen"][name]["mean"] for row in rows]) >= 0).all()
                assert (np.diff([row["seen"][name]["mean"] for row in rows]) <= 0).all()
            # Eight new items in a list of twelve that they lead: every one of them is found, unless it is in the history.
            assert rows[-1]["unseen"]["recall@12"]["mean"] == 1


def test_the_choice_is_made_on_validation_within_the_tolerance(finished: tuple[Path, dict[str, Any]]) -> None:
    metrics = finished[1]["metrics"]
    rows, floor = metrics["validation"], (1 - CONFIG.tolerance) * metrics["validation"][0]["seen"]["recall@5"]["mean"]
    for mode, choice in metrics["chosen"].items():
        row = rows[choice["row"]]
        assert (row["system"], row["collaborative"], row["boost"]) == (ADDED, mode, choice["settings"]["boost"])
        affordable = [other for other in rows if other.get("collaborative") == mode and other["seen"]["recall@5"]["mean"] >= floor]
        if affordable:
            assert row["seen"]["recall@5"]["mean"] >= floor
            assert row["unseen"]["recall@5"]["mean"] == max(other["unseen"]["recall@5"]["mean"] for other in affordable)
        difference = choice["seen_recall@5_after_minus_before"]["mean"]
        after, before = metrics["test"][choice["row"]]["seen"]["recall@5"]["mean"], metrics["test"][0]["seen"]["recall@5"]["mean"]
        assert difference == pytest.approx(after - before)
    assert f"e^c {metrics['best']}" in metrics["price"]
