"""Quality figures of item codes."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from cemg_hf.errors import CEMGError
from cemg_hf.evaluation import codes as measured
from cemg_hf.evaluation.codes import (
    category_labels,
    category_purity,
    code_agreement,
    code_frequencies,
    level_usage,
    modality_contribution,
    nearest_neighbours,
    neighbour_preservation,
    prefix_groups,
)


def random_codes(items: int = 400, levels: int = 3, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, size, (items, levels))


def test_prefixes_are_shared_exactly_where_the_codes_are() -> None:
    codes = random_codes(60, 3, 3)
    groups = prefix_groups(codes)
    for depth in range(1, 4):
        same = (codes[:, None, :depth] == codes[None, :, :depth]).all(2)
        np.testing.assert_array_equal(groups[:, None, depth - 1] == groups[None, :, depth - 1], same)


def test_even_use_has_full_entropy_and_one_code_has_none() -> None:
    even = np.stack([np.tile(np.arange(8), 4), np.zeros(32, dtype=int)], axis=1)
    usage = level_usage(even, 8)
    full, single = usage["levels"]
    assert full == {"used_codes": 1.0, "dead": 0, "perplexity": 8.0, "entropy_bits": 3.0, "entropy_share": 1.0}
    assert single == {"used_codes": 1 / 8, "dead": 7, "perplexity": 1.0, "entropy_bits": 0.0, "entropy_share": 0.0}
    assert [row["distinct"] for row in usage["prefixes"]] == [8, 8]
    assert usage["prefixes"][0]["largest_share"] == 1 / 8


def test_usage_does_not_depend_on_the_names_of_codes_or_the_order_of_items() -> None:
    codes = random_codes()
    generator = np.random.default_rng(1)
    renamed = np.stack([generator.permutation(8)[column] for column in codes.T], axis=1)[generator.permutation(len(codes))]
    before, after = level_usage(codes, 8), level_usage(renamed, 8)
    for kind in ("levels", "prefixes"):
        for one, other in zip(before[kind], after[kind], strict=True):
            assert one == pytest.approx(other)
    np.testing.assert_array_equal(code_frequencies(codes, 8).sum(1), len(codes))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.array([[0, 8]]), "row 0 has a code outside 0 … 7"),
        (np.array([[0, 1], [0, -1]]), "row 1"),
        (np.zeros((0, 4), dtype=int), "at least one item"),
        (np.zeros((3, 4)), "expected integers"),
    ],
)
def test_codes_that_are_none_are_refused(codes: np.ndarray, message: str) -> None:
    with pytest.raises(CEMGError, match=message):
        level_usage(codes, 8)


def test_neighbours_are_those_of_an_exact_search_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(90, 7))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -2)
    expected = np.sort(np.argsort(-similarity, axis=1)[:, :5], axis=1)
    for at_once in (2**24, 90 * 7):
        monkeypatch.setattr(measured, "SIMILARITIES_AT_ONCE", at_once)
        np.testing.assert_array_equal(np.sort(nearest_neighbours(vectors, 5, np.arange(90)), axis=1), expected)


def test_codes_of_clusters_keep_neighbours_and_random_codes_only_by_chance() -> None:
    generator = np.random.default_rng(0)
    cluster = np.repeat(np.arange(10), 30)
    vectors = 5 * generator.normal(size=(10, 16))[cluster] + 0.1 * generator.normal(size=(300, 16))
    codes = np.stack([cluster, generator.integers(0, 4, 300)], axis=1)
    first, both = neighbour_preservation(vectors, codes)["depths"]
    assert first["share"] == 1.0
    assert first["chance"] == pytest.approx(29 / 299)
    assert first["lift"] == pytest.approx(299 / 29)
    assert both["share"] == pytest.approx(0.25, abs=0.04)
    shuffled = neighbour_preservation(vectors, codes[generator.permutation(300)])["depths"][0]
    assert shuffled["share"] == pytest.approx(shuffled["chance"], abs=0.02)
    assert shuffled["lift"] == pytest.approx(1, abs=0.2)


def test_a_sample_of_queries_estimates_the_whole_and_repeats() -> None:
    generator = np.random.default_rng(3)
    cluster = generator.integers(0, 10, 600)
    vectors = generator.normal(size=(10, 8))[cluster] + 0.6 * generator.normal(size=(600, 8))
    codes = np.stack([cluster, generator.integers(0, 8, 600)], axis=1)
    whole = neighbour_preservation(vectors, codes)
    part = neighbour_preservation(vectors, codes, sample=300, seed=1)
    assert (whole["queries"], part["queries"], part["items"]) == (600, 300, 600)
    assert part["depths"][0]["share"] == pytest.approx(whole["depths"][0]["share"], abs=0.06)
    assert part == neighbour_preservation(vectors, codes, sample=300, seed=1)
    assert part != neighbour_preservation(vectors, codes, sample=300, seed=2)


def test_items_without_a_vector_are_left_out_and_few_items_are_no_error() -> None:
    generator = np.random.default_rng(0)
    vectors, codes = generator.normal(size=(20, 4)), random_codes(20)
    padded = np.concatenate([vectors, np.zeros((30, 4))])
    more = np.concatenate([codes, np.zeros((30, 3), dtype=int)])
    assert neighbour_preservation(padded, more) == neighbour_preservation(vectors, codes)
    assert neighbour_preservation(vectors[:3], codes[:3])["k"] == 2
    assert neighbour_preservation(vectors[:1], codes[:1])["depths"] == []
    unique = neighbour_preservation(vectors, np.arange(20)[:, None])["depths"][0]
    assert unique == {"depth": 1, "share": 0.0, "chance": 0.0, "lift": None}


def test_vectors_that_do_not_fit_are_refused() -> None:
    codes = random_codes(5)
    with pytest.raises(CEMGError, match=r"shape \(4, 2\), expected \(5, dimension\)"):
        neighbour_preservation(np.ones((4, 2)), codes)
    vectors = np.ones((5, 2))
    vectors[3, 1] = np.nan
    with pytest.raises(CEMGError, match="row 3 is not finite"):
        neighbour_preservation(vectors, codes)


def paths(rows: list[list[str] | None]) -> pl.Series:
    return pl.Series("categories", rows, dtype=pl.List(pl.String))


def test_labels_are_the_most_specific_that_are_not_nearly_unique() -> None:
    rows: list[list[str] | None] = [["Shop", f"kind {n % 3}", f"shape {n % 12}", f"item {n}"] for n in range(120)]
    labels, depth = category_labels(paths([*rows, None, []]))
    assert depth == 3
    assert labels is not None
    assert labels[0] == "Shop > kind 0 > shape 0"
    assert labels[-1] is None
    assert labels[-2] is None
    assert len(set(labels[:120])) == 12


@pytest.mark.parametrize("rows", [[None] * 5, [["all"]] * 50, [[f"own {n}"] for n in range(50)], []])
def test_categories_that_tell_nothing_give_no_labels(rows: list[list[str] | None]) -> None:
    assert category_labels(paths(rows)) == (None, 0)


def test_a_column_of_other_values_is_refused() -> None:
    with pytest.raises(CEMGError, match=r"column price: .*expected lists of strings"):
        category_labels(pl.Series("price", [1.0]))


def test_purity_is_one_where_codes_are_categories_and_chance_where_they_are_not() -> None:
    generator = np.random.default_rng(0)
    kind = generator.integers(0, 8, 800)
    labels = np.array([f"kind {value}" for value in range(8)], dtype=object)[kind]
    codes = np.stack([kind, generator.integers(0, 8, 800), np.arange(800) % 8], axis=1)
    first, second = category_purity(codes, labels)
    assert first["purity"] == second["purity"] == 1.0
    assert first["nmi"] == pytest.approx(1.0)
    assert first["chance"] < 0.35
    assert 0 < second["nmi"] < first["nmi"]  # finer than the categories
    stranger = category_purity(codes, generator.permutation(labels))[0]
    assert stranger["purity"] == pytest.approx(stranger["chance"], abs=0.04)
    assert stranger["nmi"] == pytest.approx(0, abs=0.02)


def test_unlabelled_items_and_prefixes_of_one_item_do_not_count() -> None:
    codes = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2], [1, 0, 0], [0, 1, 0]])
    first, second = category_purity(codes, ["x", "x", "y", "x", None])
    assert (first["prefixes"], first["items"], first["purity"]) == (1, 3, pytest.approx(2 / 3))
    assert (second["prefixes"], second["items"]) == (1, 3)
    none = category_purity(np.arange(6).reshape(3, 2), ["x", "y", "x"])
    assert none == [{"depth": 1, "prefixes": 0, "items": 0, "purity": None, "chance": None, "nmi": None}]
    with pytest.raises(CEMGError, match="2 for 5 items"):
        category_purity(codes, ["x", "y"])


def test_contribution_counts_the_items_that_change() -> None:
    codes = random_codes(100)
    other = codes.copy()
    other[:30, 2] += 1
    other[:10, 0] += 1
    has = np.arange(100) < 50
    found = modality_contribution(codes, {"image": other, "text": codes}, {"image": has})
    assert found["image"]["items"] == 50
    assert found["image"]["first_code_changed"] == pytest.approx(0.2)
    assert found["image"]["any_code_changed"] == pytest.approx(0.6)
    assert found["text"]["any_code_changed"] == 0
    assert modality_contribution(codes, {"image": other}, {"image": ~has & has})["image"]["any_code_changed"] is None
    with pytest.raises(CEMGError, match=r"masked\[image\]"):
        modality_contribution(codes, {"image": other[:3]})


def test_agreement_is_of_prefixes() -> None:
    old = random_codes(100)
    new = old.copy()
    new[:25, 1] = (new[:25, 1] + 1) % 8
    agreement = code_agreement(old, new)
    assert [row["kept"] for row in agreement["depths"]] == [1.0, 0.75, 0.75]
    assert [row["kept"] for row in code_agreement(old, old)["depths"]] == [1.0, 1.0, 1.0]
    with pytest.raises(CEMGError, match="expected"):
        code_agreement(old, new[:50])
