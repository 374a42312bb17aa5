"""MMGRec as a stage, on a made-up shop whose users keep to the items of one block."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from cemg_hf.artefacts import MANIFEST_NAME
from cemg_hf.data import PreparedDataset, Ragged
from cemg_hf.data.collators import TrainingWindows
from cemg_hf.data.splits import EvaluationCases
from cemg_hf.errors import CEMGError
from cemg_hf.evaluation.metrics import check_rankings, ranking_metrics
from cemg_hf.features.projection import Projection
from cemg_hf.features.store import FeatureStore, ModalityFeatures
from cemg_hf.recipes import load_recipe
from cemg_hf.training.collaborative import NegativeSampler
from cemg_hf.training.loop import LoopConfig
from cemg_hf.training.mmgrec import HistoryCollator, MMGRecConfig, MMGRecRanker, build_recommender, train_mmgrec
from cemg_hf.training.rec_ids import RecIdConfig, RecIds, TripleCollator, content_features, make_rec_ids, training_graph
from cemg_hf.training.systems import FAMILIES

BLOCKS, BLOCK_ITEMS, USERS, LENGTH = 5, 12, 120, 9
ITEMS = BLOCKS * BLOCK_ITEMS + 2  # the last two are bought by nobody
REC_IDS = RecIdConfig(
    dimension=16,
    codebook_size=8,
    latent_dim=8,
    rqvae_epochs=4,
    loop=LoopConfig(epochs=10, batch_size=128, learning_rate=0.02, eval_every=5),
)
SMALL = MMGRecConfig(
    rec_ids=REC_IDS,
    num_heads=2,
    d_ff=32,
    num_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.0,
    max_history=6,
    loop=LoopConfig(epochs=8, batch_size=16, learning_rate=0.01, eval_every=4),
)


def histories(seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    block = np.arange(USERS) % BLOCKS
    return np.stack([generator.choice(BLOCK_ITEMS, LENGTH, replace=False) + first * BLOCK_ITEMS for first in block])


def write_dataset(folder: Path, rows: np.ndarray, num_items: int = ITEMS, prefix: str = "u") -> PreparedDataset:
    folder.mkdir(parents=True)
    users = [f"{prefix}{user}" for user in range(len(rows)) for _ in range(rows.shape[1])]
    pl.DataFrame({"user_id": users, "item_id": [f"i{item}" for item in rows.ravel()]}).write_parquet(folder / "interactions.parquet")
    pl.DataFrame({"item_id": [f"i{item}" for item in range(num_items)]}).write_parquet(folder / "items.parquet")
    return PreparedDataset.load(folder)


def features(names: tuple[str, ...] = ("text",), num_items: int = ITEMS) -> FeatureStore:
    """Vectors that tell blocks apart; the first item has none."""
    generator = np.random.default_rng(1)
    mask = np.arange(num_items) > 0
    vectors = generator.normal(size=(BLOCKS + 1, 10))[np.arange(num_items) // BLOCK_ITEMS] + 0.3 * generator.normal(size=(num_items, 10))
    projection = Projection(np.zeros(10, np.float32), np.eye(10, dtype=np.float32), np.ones((), np.float32))
    one = ModalityFeatures((vectors * mask[:, None]).astype(np.float32), mask, projection, {"name": "made up"})
    return FeatureStore([f"i{item}" for item in range(num_items)], dict.fromkeys(names, one))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `dataset`, `features` and the trained `model`."""
    folder = tmp_path_factory.mktemp("mmgrec")
    write_dataset(folder / "dataset", histories())
    features().save(folder / "features")
    train_mmgrec(SMALL, folder / "dataset", folder / "features", folder / "model", seed=0)
    return folder


@pytest.fixture(scope="module")
def data(shop: Path) -> PreparedDataset:
    return PreparedDataset.load(shop / "dataset")


@pytest.fixture(scope="module")
def ranker(shop: Path, data: PreparedDataset) -> MMGRecRanker:
    return MMGRecRanker.load(shop / "model", data)


def test_training_improves_on_the_untrained_model(ranker: MMGRecRanker, data: PreparedDataset) -> None:
    model = ranker.model
    found = RecIds(model.item_codes, model.items.weight[:-1].detach(), model.user_vectors[:-1])
    torch.manual_seed(0)
    untrained = MMGRecRanker(build_recommender(SMALL, data, found).eval())
    cases = data.evaluation_cases("test")
    before, after = (
        ranking_metrics(rank(cases, 10, exclude_history=True)[0], cases.targets, [10])["ndcg@10"] for rank in (untrained, ranker)
    )
    assert before is not None
    assert after is not None
    assert after > max(2 * before, 0.3)  # four items of the block are left: .64 with no more than that known


def test_lists_are_of_different_catalogue_items_outside_the_history(ranker: MMGRecRanker, data: PreparedDataset) -> None:
    cases = data.evaluation_cases("test")
    for exclude in (False, True):
        ranked, scores = ranker(cases, 20, exclude_history=exclude)
        assert ranked.shape == scores.shape == (len(cases), 20)
        check_rankings(ranked, ITEMS)
        assert (ranked >= 0).all()
        assert (np.diff(scores, axis=1) <= 1e-6).all()
        owned = [set(row) & set(history) for row, history in zip(ranked.tolist(), cases.histories.to_lists(), strict=True)]
        assert any(owned) != exclude


def test_a_list_longer_than_the_catalogue_ends_with_nothing(ranker: MMGRecRanker) -> None:
    cases = EvaluationCases(np.array([3, -1]), Ragged.from_lists([[1, 2, 1], []]), np.array([0, 0]))
    ranked, scores = ranker(cases, ITEMS + 3, exclude_history=True)
    assert [set(row[row >= 0].tolist()) for row in ranked] == [set(range(ITEMS)) - {1, 2}, set(range(ITEMS))]
    assert ((ranked < 0) == (scores == -np.inf)).all()
    assert (ranked[:, -3:] == -1).all()


def test_batches_do_not_change_a_ranking(ranker: MMGRecRanker, data: PreparedDataset) -> None:
    cases = data.evaluation_cases("validation")
    one, other = (MMGRecRanker(ranker.model, 20, size)(cases, 10, exclude_history=False) for size in (128, 7))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_allclose(one[1], other[1], atol=1e-4)


def test_every_item_has_its_own_rec_id_that_ends_with_its_rank_by_popularity(ranker: MMGRecRanker, data: PreparedDataset) -> None:
    codes, popularity = ranker.model.item_codes.numpy(), data.train_item_counts()
    assert len(np.unique(codes, axis=0)) == ITEMS
    for tokens in np.unique(codes[:, :-1], axis=0):
        group = np.flatnonzero((codes[:, :-1] == tokens).all(1))
        ordered = group[np.argsort(codes[group, -1])]
        np.testing.assert_array_equal(codes[ordered, -1], np.arange(len(group)))
        assert (np.diff(popularity[ordered]) <= 0).all()


def test_the_stage_is_skipped_when_current_and_reports_what_it_did(shop: Path) -> None:
    before = (shop / "model" / MANIFEST_NAME).stat().st_mtime_ns
    train_mmgrec(SMALL, shop / "dataset", shop / "features", shop / "model", seed=0)
    assert (shop / "model" / MANIFEST_NAME).stat().st_mtime_ns == before
    assert not (shop / ".model.training").exists()
    report = json.loads((shop / "model" / "training_report.json").read_text())
    assert report["targets"] == USERS * (LENGTH - 2)
    assert report["best_metrics"]["ndcg@10"] > 0
    assert report["seconds"] == pytest.approx(sum(report["seconds_by_part"].values()), abs=0.01)
    assert report["rec_ids"]["collision_rate_after"] == 0


@pytest.mark.parametrize("part", ["graph", "recommender"])
def test_an_interrupted_training_ends_where_the_uninterrupted_one_does(shop: Path, tmp_path: Path, part: str) -> None:
    short = replace(SMALL, loop=replace(SMALL.loop, time_budget_s=0.01))
    if part == "graph":
        short = replace(SMALL, rec_ids=replace(REC_IDS, loop=replace(REC_IDS.loop, time_budget_s=0.01)))
    with pytest.raises(CEMGError, match=r"run .* again to continue"):
        train_mmgrec(short, shop / "dataset", shop / "features", tmp_path / "model", seed=0)
    train_mmgrec(SMALL, shop / "dataset", shop / "features", tmp_path / "model", seed=0)
    expected, found = (load_file(folder / "model" / "model.safetensors") for folder in (shop, tmp_path))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=0, rtol=0, msg=name)


@pytest.mark.parametrize("part", ["graph", "recommender"])
def test_an_interrupted_training_continues_under_its_own_settings_only(shop: Path, tmp_path: Path, part: str) -> None:
    stopped, others = replace(SMALL.loop, time_budget_s=0.01), [{"validation_beams": 30}, {"validation_excludes_history": False}]
    short = replace(SMALL, loop=stopped)
    if part == "graph":
        short = replace(SMALL, rec_ids=replace(REC_IDS, loop=replace(REC_IDS.loop, time_budget_s=0.01)))
        others = [{"validation_users": 7}, {"rec_ids": replace(REC_IDS, modalities=["text"])}]
    with pytest.raises(CEMGError, match=r"run .* again to continue"):
        train_mmgrec(short, shop / "dataset", shop / "features", tmp_path / "model", seed=0)
    for other in others:
        with pytest.raises(CEMGError, match="was made with other settings"):
            train_mmgrec(replace(SMALL, **other), shop / "dataset", shop / "features", tmp_path / "model", seed=0)  # type: ignore[arg-type]


def test_the_graph_is_made_of_training_interactions_only(data: PreparedDataset, tmp_path: Path) -> None:
    adjacency, users, items = training_graph(data)
    training = {(user, item) for user, row in enumerate(data.train_sequences().to_lists()) for item in row}
    assert set(zip(users.tolist(), items.tolist(), strict=True)) == training
    dense = adjacency.to_dense()
    assert dense.sum() == 2 * len(training)
    torch.testing.assert_close(dense, dense.T)
    assert all(dense[user, USERS + item] == 1 for user, item in training)
    rows = histories()
    rows[:, -2:] = np.random.default_rng(5).integers(0, ITEMS, (USERS, 2))
    other = write_dataset(tmp_path / "other", rows)
    # Validation chooses the epoch; with one there is nothing to choose.
    config = replace(REC_IDS, loop=replace(REC_IDS.loop, epochs=1))
    first, second = (
        make_rec_ids(config, given, features(), tmp_path / f"rec-ids-{number}", 0, {"data": str(number)}, 0)
        for number, given in enumerate((data, other))
    )
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two, atol=0, rtol=0)


def test_negatives_are_items_the_user_does_not_have(data: PreparedDataset) -> None:
    _, users, items = training_graph(data)
    batch = TripleCollator(users, items, NegativeSampler(users, items, USERS, ITEMS))(list(range(len(users))))
    pairs = set(zip(users.tolist(), items.tolist(), strict=True))
    assert set(zip(batch["users"].tolist(), batch["labels"].tolist(), strict=True)) == pairs
    assert pairs.isdisjoint(zip(batch["users"].tolist(), batch["negatives"].tolist(), strict=True))


@pytest.mark.parametrize("item_causal", [True, False])
def test_every_training_item_is_a_target_once_of_its_own_user(item_causal: bool) -> None:
    sequences = Ragged.from_lists([[], [4, 5, 6, 7, 8, 9], [], [1], [2, 3]])
    windows = TrainingWindows(sequences, 3, item_causal)
    batch = HistoryCollator(windows, sequences, item_causal)(list(range(len(windows))))
    seen: list[tuple[int, int]] = []
    for history, user, labels in zip(batch["history"].tolist(), batch["users"].tolist(), batch["labels"].tolist(), strict=True):
        row = sequences[user].tolist()
        for place, item in enumerate(labels):
            if item != -100:
                before = history[:place] if item_causal else [known for known in history if known >= 0]
                seen.append((user, item))
                assert before == row[row.index(item) - len(before) : row.index(item)]
    assert sorted(seen) == [(1, item) for item in range(4, 10)] + [(3, 1), (4, 2), (4, 3)]


def test_content_is_laid_side_by_side_with_zeros_where_it_is_missing() -> None:
    store = features(("image", "text", "collaborative"))
    found = content_features(store, [])
    assert found.shape == (ITEMS, 20)
    assert not found[0].any()
    torch.testing.assert_close(found[1:, :10], torch.from_numpy(np.array(store.modalities["text"].vectors))[1:])
    assert content_features(store, ["text"]).shape == (ITEMS, 10)
    with pytest.raises(CEMGError, match="no text or image vectors"):
        content_features(features(("collaborative",)), [])
    with pytest.raises(CEMGError, match="no image vectors"):
        content_features(features(), ["image"])


def test_a_folder_that_is_no_mmgrec_model_or_another_data_sets(shop: Path, tmp_path: Path) -> None:
    data = PreparedDataset.load(shop / "dataset")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    for folder in (tmp_path, shop / "dataset"):
        with pytest.raises(CEMGError, match="not a folder of an MMGRec model"):
            MMGRecRanker.load(folder, data)
    with pytest.raises(CEMGError, match="its catalogue is not that of"):
        MMGRecRanker.load(shop / "model", write_dataset(tmp_path / "more", histories(), ITEMS + 1))
    with pytest.raises(CEMGError, match="its users are not those of"):
        MMGRecRanker.load(shop / "model", write_dataset(tmp_path / "others", histories(), prefix="v"))
    shutil.copytree(shop / "model", tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CEMGError, match="train it again"):
        MMGRecRanker.load(tmp_path / "damaged", data)


def test_features_of_other_items(shop: Path, tmp_path: Path) -> None:
    features(num_items=ITEMS - 1).save(tmp_path / "features")
    with pytest.raises(CEMGError, match="not the features of"):
        train_mmgrec(SMALL, shop / "dataset", tmp_path / "features", tmp_path / "model", seed=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"modalities": ["collaborative"]}, "name some of image, text"),
        ({"num_levels": 1}, "num_levels = 1"),
        ({"graph_layers": 0}, "graph_"),
    ],
)
def test_settings_that_cannot_work(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(CEMGError, match=message):
        RecIdConfig(**wrong)  # type: ignore[arg-type]


def test_the_recipe_lies_over_any_data_recipe() -> None:
    recipe = load_recipe("beauty", system="mmgrec")
    assert recipe.family == recipe.system == "mmgrec"
    assert isinstance(recipe.mmgrec, MMGRecConfig)
    assert recipe.mmgrec.rec_ids.codebook_size == 256


def test_it_is_measured_with_the_beams_of_the_recipe(shop: Path, data: PreparedDataset) -> None:
    recipe = load_recipe("beauty", ["evaluate={num_beams: 60, batch_size: 9}"], system="mmgrec")
    found = FAMILIES["mmgrec"].ranker(recipe, {"train": shop / "model"}, data)
    assert isinstance(found, MMGRecRanker)
    assert (found.num_beams, found.batch_size) == (60, 9)
