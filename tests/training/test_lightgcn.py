"""LightGCN as a recommender: dot products of what the collaborative encoder learned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from shop_samples import ITEMS, USERS, walks, write_dataset

from cemg_hf.artefacts import MANIFEST_NAME
from cemg_hf.data import EvaluationCases, PreparedDataset, Ragged
from cemg_hf.data.dataset import SPLIT_FILE
from cemg_hf.errors import CEMGError
from cemg_hf.training import epoch_checkpoint
from cemg_hf.training.collaborative import CollaborativeConfig, train_collaborative
from cemg_hf.training.deadline import OutOfTime
from cemg_hf.training.lightgcn import EMBEDDINGS_FILE, LightGCNRanker, train_lightgcn

SMALL = CollaborativeConfig(dimension=8, layers=2, learning_rate=0.03, epochs=6, eval_every=3)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lightgcn")
    write_dataset(folder / "dataset", walks())
    train_lightgcn(SMALL, folder / "dataset", folder / "model", seed=0)
    return folder


def test_a_training_that_time_ends_after_every_epoch_comes_out_as_one_that_is_left_alone(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, SMALL.epochs + 1):
        with monkeypatch.context() as short:
            short.setattr(epoch_checkpoint, "time_is_up", lambda: True)
            if number < SMALL.epochs:
                with pytest.raises(OutOfTime):
                    train_lightgcn(SMALL, shop / "dataset", tmp_path / "model", seed=0)
            else:
                train_lightgcn(SMALL, shop / "dataset", tmp_path / "model", seed=0)
        assert (tmp_path / "model").exists() is (number == SMALL.epochs)
    assert not list(tmp_path.glob(".model*"))
    assert (tmp_path / "model" / EMBEDDINGS_FILE).read_bytes() == (shop / "model" / EMBEDDINGS_FILE).read_bytes()
    found, expected = (json.loads((folder / "model" / "report.json").read_text()) for folder in (tmp_path, shop))
    assert found | {"seconds": 0} == expected | {"seconds": 0}


@pytest.fixture(scope="module")
def data(shop: Path) -> PreparedDataset:
    return PreparedDataset.load(shop / "dataset")


@pytest.mark.parametrize("exclude", [False, True])
def test_rankings_are_dot_products_of_items_that_were_trained(shop: Path, data: PreparedDataset, exclude: bool) -> None:
    result = train_collaborative(data, SMALL, seed=0)
    cases = data.evaluation_cases("test")
    ranked, scores = LightGCNRanker.load(shop / "model", data)(cases, ITEMS, exclude_history=exclude)
    expected = result.user_embeddings @ result.item_embeddings.T
    trained = np.flatnonzero(data.train_item_counts())
    assert len(trained) < ITEMS
    for row, (user, history) in enumerate(zip(cases.users, cases.histories.to_lists(), strict=True)):
        kept = ranked[row][ranked[row] >= 0]
        assert set(kept) == set(trained) - (set(history) if exclude else set())
        np.testing.assert_allclose(scores[row, : len(kept)], expected[user, kept], atol=1e-6)
        assert (np.diff(scores[row, : len(kept)]) <= 0).all()
        assert (ranked[row, len(kept) :] == -1).all()


def test_the_folder_holds_embeddings_report_and_manifest_and_is_left_alone_when_current(shop: Path) -> None:
    folder = shop / "model"
    report = json.loads((folder / "report.json").read_text())
    assert (report["users"], report["masked_items"]) == (USERS, 2)
    written = (folder / MANIFEST_NAME).stat().st_mtime_ns
    assert train_lightgcn(SMALL, shop / "dataset", folder, seed=0) == folder
    assert (folder / MANIFEST_NAME).stat().st_mtime_ns == written
    before = (folder / EMBEDDINGS_FILE).read_bytes()
    train_lightgcn(SMALL, shop / "dataset", shop / "other", seed=1)
    assert (shop / "other" / EMBEDDINGS_FILE).read_bytes() != before


def test_another_data_set_is_refused(shop: Path, tmp_path: Path) -> None:
    others = {
        "longer": write_dataset(tmp_path / "longer", walks(), ITEMS + 1),
        "users": write_dataset(tmp_path / "users", walks(), prefix="v"),
        "fewer": write_dataset(tmp_path / "fewer", walks()[:-1]),
        "items": write_dataset(tmp_path / "items", [[ITEMS - 1 - item for item in row] for row in walks()]),
    }
    swapped = PreparedDataset(others["items"].folder, others["items"].user_ids, others["items"].item_ids[::-1], others["items"].sequences)
    for other in (others["longer"], others["users"], others["fewer"], swapped):
        with pytest.raises(CEMGError, match="was trained on another data set"):
            LightGCNRanker.load(shop / "model", other)


def test_missing_and_damaged_folders_are_refused(data: PreparedDataset, tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"holds no LightGCN \(embeddings\.safetensors is missing\)"):
        LightGCNRanker.load(tmp_path, data)
    (tmp_path / EMBEDDINGS_FILE).write_bytes(b"not tensors")
    with pytest.raises(CEMGError, match=r"cannot be read .*train it again"):
        LightGCNRanker.load(tmp_path, data)


def test_masked_items_never_come_out() -> None:
    ranker = LightGCNRanker(torch.ones(1, 2), torch.tensor([[1.0, 0], [5, 5], [2, 0]]), torch.tensor([True, False, True]))
    cases = EvaluationCases(np.zeros(1, dtype=np.int64), Ragged.from_lists([[0]]), np.zeros(1, dtype=np.int64))
    assert ranker(cases, 3, exclude_history=False)[0].tolist() == [[2, 0, -1]]
    assert ranker(cases, 3, exclude_history=True)[0].tolist() == [[2, -1, -1]]


def test_users_whom_the_graph_does_not_know_are_the_mean_of_those_it_knows(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "dataset", walks())  # timestamps count through the table, user by user
    cuts = {"validation_from": int(0.8 * len(data.sequences.values)), "test_from": int(0.9 * len(data.sequences.values))}
    (tmp_path / "dataset" / SPLIT_FILE).write_text(json.dumps(cuts))
    data = PreparedDataset.load(tmp_path / "dataset")
    trained = data.train_sequences().lengths > 0
    assert 0 < trained.sum() < USERS
    train_lightgcn(SMALL, tmp_path / "dataset", tmp_path / "model", seed=0)
    users = LightGCNRanker.load(tmp_path / "model", data).users.numpy()
    np.testing.assert_allclose(users[~trained], np.tile(users[trained].mean(axis=0), (int((~trained).sum()), 1)), atol=1e-6)
    assert len(np.unique(users[trained], axis=0)) > 1
