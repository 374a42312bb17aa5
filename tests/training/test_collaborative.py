from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch_geometric.nn.models import LightGCN

from cemg_hf.data import PreparedDataset, Ragged
from cemg_hf.errors import CEMGError
from cemg_hf.training import collaborative
from cemg_hf.training.collaborative import (
    CollaborativeConfig,
    NegativeSampler,
    SymmetricLightGCN,
    normalized_adjacency,
    train_collaborative,
)

BLOCKS, BLOCK_ITEMS, BLOCK_USERS, LENGTH = 5, 24, 40, 9
SMALL = CollaborativeConfig(dimension=16, layers=2, learning_rate=0.02, batch_size=512, epochs=4, eval_every=2, patience=2)


def dataset_of(sequences: list[list[int]], num_items: int) -> PreparedDataset:
    ragged = Ragged.from_lists(sequences)
    return PreparedDataset(Path("memory"), [f"u{row}" for row in range(len(sequences))], [f"i{item}" for item in range(num_items)], ragged)


@pytest.fixture(scope="module")
def blocks() -> PreparedDataset:
    """Users keep to the items of one block; the catalogue is shuffled, and its last two items are bought by nobody."""
    generator = np.random.default_rng(0)
    catalogue = generator.permutation(BLOCKS * BLOCK_ITEMS).reshape(BLOCKS, BLOCK_ITEMS)
    sequences = [generator.choice(catalogue[user % BLOCKS], LENGTH, replace=False).tolist() for user in range(BLOCKS * BLOCK_USERS)]
    return dataset_of(sequences, BLOCKS * BLOCK_ITEMS + 2)


def random_pairs(num_users: int, num_items: int, pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs; the last user and the last item have none."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, num_users - 1, pairs) * num_items + generator.integers(0, num_items - 1, pairs)
    users, items = np.divmod(np.unique(drawn), num_items)
    return users, items


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_csr_propagation_equals_message_passing_over_the_edge_index(layers: int) -> None:
    users, items = random_pairs(70, 50, 600, seed=layers)
    torch.manual_seed(0)
    reference, ours = LightGCN(120, 8, layers), SymmetricLightGCN(120, 8, layers)
    ours.load_state_dict(reference.state_dict())
    pairs = torch.from_numpy(np.stack([users, items + 70]))
    adjacency = normalized_adjacency(users, items, 70, 50)
    expected, found = reference.get_embedding(torch.cat([pairs, pairs.flip(0)], dim=1)), ours.get_embedding(adjacency)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    found.backward(upstream)
    torch.testing.assert_close(ours.embedding.weight.grad, reference.embedding.weight.grad, atol=1e-5, rtol=0)


def test_adjacency_is_symmetric_and_normalised_by_both_degrees() -> None:
    users, items = random_pairs(20, 15, 90, seed=1)
    dense = normalized_adjacency(users, items, 20, 15).to_dense().numpy()
    np.testing.assert_array_equal(dense, dense.T)
    assert not dense[:20, :20].any()
    assert not dense[20:, 20:].any()
    plain = np.zeros((35, 35))
    plain[users, items + 20] = plain[items + 20, users] = 1
    degrees = plain.sum(1)
    expected = np.divide(plain, np.sqrt(np.outer(degrees, degrees)), out=np.zeros_like(plain), where=plain > 0)
    np.testing.assert_allclose(dense, expected, atol=1e-6)


def test_negatives_are_uniform_over_what_the_user_does_not_have() -> None:
    num_users, num_items = 12, 9
    generator = np.random.default_rng(3)
    has = generator.random((num_users, num_items)) < np.linspace(0, 0.9, num_users)[:, None]
    has[3], has[4] = False, [True] * (num_items - 1) + [False]
    has[5], has[6] = [False] + [True] * (num_items - 1), np.arange(num_items) % 2 == 0
    users, items = np.nonzero(has)
    sampler = NegativeSampler(users, items, num_users, num_items)
    np.testing.assert_array_equal(sampler.available, (~has).sum(1))
    some = np.flatnonzero(~has.all(1))
    draws = np.repeat(some, 4000)
    negatives = sampler(draws, generator)
    assert negatives.min() >= 0
    assert negatives.max() < num_items
    assert not has[draws, negatives].any()
    counts = np.zeros((num_users, num_items))
    np.add.at(counts, (draws, negatives), 1)
    expected = 4000 / np.maximum((~has).sum(1, keepdims=True), 1) * ~has
    assert (np.abs(counts - expected)[some] <= 5 * np.sqrt(expected)[some]).all()


def test_training_never_sees_a_training_item_as_negative(blocks: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    class Recording(NegativeSampler):
        def __call__(self, users: np.ndarray, generator: np.random.Generator) -> np.ndarray:
            negatives = super().__call__(users, generator)
            seen.append((users, negatives))
            return negatives

    monkeypatch.setattr(collaborative, "NegativeSampler", Recording)
    train_collaborative(blocks, SMALL, seed=0)
    users, items = blocks.train_pairs()
    in_graph = np.flatnonzero(blocks.train_item_counts())
    owned = set(zip(users.tolist(), items.tolist(), strict=True))
    assert len(seen) == SMALL.epochs
    for drawn_users, negatives in seen:
        assert len(drawn_users) == len(owned)
        assert owned.isdisjoint(zip(drawn_users.tolist(), in_graph[negatives].tolist(), strict=True))


def test_planted_blocks_are_learnt(blocks: PreparedDataset) -> None:
    config = replace(SMALL, epochs=30, eval_every=5)
    result = train_collaborative(blocks, config, seed=0)
    # By chance 20 of 120 − 7 items; knowing the block alone: 20 of the 17 left of 24, so every target.
    assert result.report["best_recall@20"] > 0.95
    members = blocks.sequences.values.reshape(-1, LENGTH)
    block_of = np.full(blocks.num_items, -1)
    block_of[members.ravel()] = np.repeat(np.arange(len(members)) % BLOCKS, LENGTH)
    unit = result.item_embeddings[result.mask] / np.linalg.norm(result.item_embeddings[result.mask], axis=1, keepdims=True)
    similarity = unit @ unit.T - 2 * np.eye(len(unit), dtype=np.float32)
    nearest = np.argsort(-similarity, axis=1)[:, :10]
    labels = block_of[result.mask]
    assert (labels[nearest] == labels[:, None]).mean() > 0.95


def test_recall_counts_targets_among_the_first_twenty(blocks: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The curve's value against a ranking done case by case with sorting."""
    generator = np.random.default_rng(0)
    users = torch.from_numpy(generator.normal(size=(blocks.num_users, 4)).astype(np.float32))
    items = torch.from_numpy(generator.normal(size=(blocks.num_items, 4)).astype(np.float32))
    cases, training = blocks.evaluation_cases("validation"), blocks.train_sequences()
    held = collaborative._ValidationCases(cases.users, cases.targets, training, len(cases) + 10)
    scores = (users @ items.T).numpy()
    hits = 0
    for user, target in zip(cases.users, cases.targets, strict=True):
        ranking = [item for item in np.argsort(-scores[user]) if item not in set(training[user].tolist())]
        hits += int(target) in ranking[:20]
    assert 0 < hits < len(cases)
    assert held.recall(users, items) == pytest.approx(hits / (len(cases) + 10))
    monkeypatch.setattr(collaborative, "SCORES_AT_ONCE", 7 * blocks.num_items)
    assert held.recall(users, items) == pytest.approx(hits / (len(cases) + 10))


def test_validation_and_test_interactions_do_not_reach_the_graph(blocks: PreparedDataset) -> None:
    """Other held-out items: the same graph, steps and embeddings (the epoch is fixed, as validation chooses it)."""
    config = replace(SMALL, epochs=2, eval_every=2)
    generator = np.random.default_rng(5)
    rows = blocks.sequences.values.reshape(-1, LENGTH).copy()
    rows[:, -2:] = generator.integers(0, blocks.num_items, (len(rows), 2))
    perturbed = dataset_of(rows.tolist(), blocks.num_items)
    first, second = train_collaborative(blocks, config, seed=0), train_collaborative(perturbed, config, seed=0)
    assert first.report["best_epoch"] == second.report["best_epoch"] == 2
    assert first.report["best_recall@20"] != second.report["best_recall@20"]
    np.testing.assert_array_equal(first.item_embeddings, second.item_embeddings)
    np.testing.assert_array_equal(first.mask, second.mask)
    rows[:, 0] = rows[::-1, 0]
    trained_otherwise = train_collaborative(dataset_of(rows.tolist(), blocks.num_items), config, seed=0)
    assert not np.array_equal(first.item_embeddings, trained_otherwise.item_embeddings)


def test_items_without_training_interactions_are_masked(blocks: PreparedDataset) -> None:
    result = train_collaborative(blocks, SMALL, seed=0)
    np.testing.assert_array_equal(result.mask, blocks.train_item_counts() > 0)
    assert not result.mask[-2:].any()
    assert result.item_embeddings.shape == (blocks.num_items, SMALL.dimension)
    assert result.item_embeddings.dtype == np.float32
    assert not result.item_embeddings[~result.mask].any()
    assert np.linalg.norm(result.item_embeddings[result.mask], axis=1).min() > 0


def test_a_target_outside_the_graph_is_a_miss() -> None:
    sequences = [[0, 1, 4, 5], [1, 2, 4, 5], [2, 3, 5, 4], [3, 0, 0, 1]]  # 4 and 5 only ever held out
    result = train_collaborative(dataset_of(sequences, 6), SMALL, seed=0)
    np.testing.assert_array_equal(result.mask, [True] * 4 + [False] * 2)
    assert result.report["validation_cases"] == 4
    assert result.report["best_recall@20"] == 0  # the fourth target, 0, is excluded as a training item
    assert result.report["masked_items"] == 2


def test_seed_decides_everything_and_leaves_the_global_generators_alone(blocks: PreparedDataset) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = train_collaborative(blocks, SMALL, seed=3)
    torch.testing.assert_close(torch.get_rng_state(), before)
    torch.rand(3)
    second, other = train_collaborative(blocks, SMALL, seed=3), train_collaborative(blocks, SMALL, seed=4)
    np.testing.assert_array_equal(first.item_embeddings, second.item_embeddings)
    timeless = [{key: value for key, value in result.report.items() if key != "seconds"} for result in (first, second)]
    assert timeless[0] == timeless[1]
    assert not np.array_equal(first.item_embeddings, other.item_embeddings)


def test_repeated_pairs_are_one_edge(blocks: PreparedDataset) -> None:
    rows = blocks.sequences.to_lists()
    repeated = dataset_of([[*row[:-2], row[2], row[0], *row[-2:]] for row in rows], blocks.num_items)
    config = replace(SMALL, epochs=2, eval_every=2)
    first, second = train_collaborative(blocks, config, seed=0), train_collaborative(repeated, config, seed=0)
    assert first.report["edges"] == second.report["edges"] == len(rows) * (LENGTH - 2)
    np.testing.assert_array_equal(first.item_embeddings, second.item_embeddings)


def test_best_epoch_is_returned_and_patience_ends_the_training(blocks: PreparedDataset) -> None:
    config = replace(SMALL, epochs=60, eval_every=1, patience=2)
    result = train_collaborative(blocks, config, seed=0)
    report = result.report
    recalls = [entry["recall@20"] for entry in report["curve"]]
    assert report["stopped_by"] == "patience"
    assert report["epochs"] == report["best_epoch"] + 2 < 60
    assert report["best_recall@20"] == max(recalls) == recalls[report["best_epoch"] - 1]
    until_best = train_collaborative(blocks, replace(config, epochs=report["best_epoch"], patience=60), seed=0)
    np.testing.assert_array_equal(result.item_embeddings, until_best.item_embeddings)
    assert report["curve"][-1]["loss"] < report["curve"][0]["loss"]
    assert json.loads(json.dumps(report)) == report


def test_users_are_those_of_the_same_epoch_as_the_items(blocks: PreparedDataset) -> None:
    """Ranked by their dot products, they give the recall that the report says."""
    result = train_collaborative(blocks, SMALL, seed=0)
    assert result.user_embeddings.shape == (blocks.num_users, SMALL.dimension)
    assert result.user_embeddings.dtype == np.float32
    cases = blocks.evaluation_cases("validation")
    scores = result.user_embeddings[cases.users] @ result.item_embeddings.T
    scores[:, ~result.mask] = -np.inf
    training = blocks.train_sequences()
    scores[training.rows, training.values] = -np.inf
    best = np.argsort(-scores, axis=1)[:, :20]
    assert result.report["best_recall@20"] == pytest.approx((best == cases.targets[:, None]).any(axis=1).mean())


def test_a_small_graph_is_not_trained_in_a_handful_of_steps(blocks: PreparedDataset) -> None:
    """Batches are cut to an eighth of the training pairs, and no further than `batch_size`."""
    pairs = len(blocks.train_pairs()[0])
    huge, eighth, less = (
        train_collaborative(blocks, replace(SMALL, batch_size=size), seed=0).item_embeddings
        for size in (100 * pairs, pairs // 8, pairs // 16)
    )
    np.testing.assert_array_equal(huge, eighth)
    assert not np.array_equal(eighth, less)


def test_time_budget_ends_the_training_with_a_measured_result(blocks: PreparedDataset) -> None:
    result = train_collaborative(blocks, replace(SMALL, epochs=500, time_budget_s=1e-6), seed=0)
    assert (result.report["epochs"], result.report["best_epoch"], result.report["stopped_by"]) == (1, 1, "time_budget")
    assert len(result.report["curve"]) == 1
    assert result.item_embeddings[result.mask].any()


def test_without_validation_cases_the_last_epoch_counts() -> None:
    result = train_collaborative(dataset_of([[0, 1], [1, 2], [2, 3], [0, 3]], 5), SMALL, seed=0)
    assert result.report["best_epoch"] == result.report["epochs"] == SMALL.epochs
    assert result.report["best_recall@20"] is None
    np.testing.assert_array_equal(result.mask, [True, True, True, True, False])


def test_a_user_who_has_everything_is_in_the_graph_but_not_in_the_loss() -> None:
    everything = [0, 1, 2, 3]
    result = train_collaborative(dataset_of([[*everything, 0, 1], [0, 1], [1, 2]], 4), SMALL, seed=0)
    assert result.report["edges"] == 8
    assert np.isfinite(result.item_embeddings).all()
    with pytest.raises(CEMGError, match="every user has every item in training"):
        train_collaborative(dataset_of([[*everything, 0, 1], [*everything, 2, 3]], 4), SMALL, seed=0)


def test_no_training_interactions() -> None:
    with pytest.raises(CEMGError, match="no training interactions"):
        train_collaborative(dataset_of([], 4), SMALL, seed=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"dimension": 0},
        {"layers": -1},
        {"batch_size": 0},
        {"epochs": 0},
        {"eval_every": 0},
        {"patience": 0},
        {"weight_decay": -1e-4},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"init_std": -0.1},
        {"time_budget_s": 0.0},
    ],
)
def test_wrong_settings(changes: dict[str, Any], blocks: PreparedDataset) -> None:
    with pytest.raises(CEMGError, match=f"collaborative: {next(iter(changes))} = "):
        train_collaborative(blocks, replace(SMALL, **changes), seed=0)


def test_diverged_training_is_an_error(blocks: PreparedDataset) -> None:
    with pytest.raises(CEMGError, match="lower learning_rate"):
        train_collaborative(blocks, replace(SMALL, learning_rate=1e30), seed=0)


def test_no_warnings(blocks: PreparedDataset) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_collaborative(blocks, replace(SMALL, epochs=1), seed=0)


@pytest.mark.slow
def test_movielens_recall_is_far_above_popularity(shared_data: Path) -> None:
    folder = shared_data / "movielens-100k"
    table = pl.read_parquet(folder / "interactions.parquet").sort("user_id", "timestamp", maintain_order=True)
    catalogue = pl.read_parquet(folder / "items.parquet", columns=["item_id"])["item_id"].to_list()
    index = {item: row for row, item in enumerate(catalogue)}
    lists = table.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()
    dataset = dataset_of([[index[item] for item in row] for row in lists], len(catalogue))
    result = train_collaborative(dataset, CollaborativeConfig(weight_decay=1e-4, epochs=60, eval_every=20), seed=0)
    popularity = torch.from_numpy(dataset.train_item_counts()).float()[:, None]
    cases = dataset.evaluation_cases("validation")
    floor = collaborative._ValidationCases(cases.users, cases.targets, dataset.train_sequences(), len(cases))
    popular = floor.recall(torch.ones(dataset.num_users, 1), popularity)
    assert result.report["best_recall@20"] > 1.5 * popular
