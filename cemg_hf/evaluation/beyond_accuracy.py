"""What a system recommends, whether it hits or not: catalogue coverage, popularity bias, and diversity within and between lists.

All figures describe the first k places. With c_i the number of lists that item i stands in, N items, U lists and L_u the list of user u:

    coverage              share of items with c_i > 0
    gini                  Σ_i (2i − N − 1) c_(i) / (N Σ c), c_(1) ≤ c_(2) ≤ …; 0: all items equally often, (N − 1)/N: one item alone
                          (Fleder & Hosanagar 2009, "Blockbuster culture's next rise or fall", Management Science 55)
    popularity_percentile mean percentile of the recommended items in training popularity
    average_popularity    mean over users of the mean training interactions of L_u (Yin et al. 2012, "Challenging the long tail
                          recommendation", VLDB; ARP in Abdollahpouri et al. 2019, "Managing popularity bias")
    intra_list_distance   mean over users of the mean of 1 − cos(v_i, v_j) over the pairs of L_u (Ziegler et al. 2005, "Improving
                          recommendation lists through topic diversification", WWW; Castells et al. 2015)
    inter_user_diversity  1 − mean over pairs of users of |L_u ∩ L_w| / k (Zhou et al. 2010, "Solving the apparent
                          diversity-accuracy dilemma of recommender systems", PNAS 107)
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from scipy import sparse

from ..errors import CEMGError

# The list length at which what is recommended (not whether it hits) is described.
DESCRIBED_AT = 10
USERS_AT_ONCE = 8192

ItemVectors: TypeAlias = np.ndarray | sparse.csr_array
"""(items, d), dense or sparse: one vector per catalogue item, rows of zeros where nothing is known of an item."""


def describe_recommendations(
    ranked: np.ndarray, train_item_counts: np.ndarray, item_vectors: ItemVectors | None = None, k: int = DESCRIBED_AT
) -> dict[str, float | None]:
    """The figures at the head of this module, of the first k places of `ranked`.

    Args:
        ranked: (cases, places) item indices, -1 behind a shorter list.
        train_item_counts: (items,) training interactions of every catalogue item.
        item_vectors: what the distance inside a list is measured on; left out, there is no "intra_list_distance".
        k: places described.

    Returns:
        `{"coverage@10": …, "popularity_percentile@10": …, …}`; None where nothing is recommended, or no two items or lists to compare.
    """
    counts = np.asarray(train_item_counts)
    exposure = item_exposure(ranked, len(counts), k)
    figures: dict[str, float | None] = {
        f"coverage@{k}": None,
        f"popularity_percentile@{k}": None,
        f"average_popularity@{k}": None,
        f"gini@{k}": None,
        f"inter_user_diversity@{k}": None,
    }
    if exposure.any():
        figures[f"coverage@{k}"] = float((exposure > 0).mean())
        figures[f"popularity_percentile@{k}"] = float(exposure @ popularity_percentiles(counts) / exposure.sum())
        figures[f"gini@{k}"] = gini(exposure)
        figures[f"inter_user_diversity@{k}"] = inter_user_diversity(exposure, len(ranked), k)
    for name, values in case_descriptions(ranked, counts, item_vectors, k).items():
        known = values[~np.isnan(values)]
        figures[name] = float(known.mean()) if len(known) else None
    return figures


def case_descriptions(
    ranked: np.ndarray, train_item_counts: np.ndarray, item_vectors: ItemVectors | None = None, k: int = DESCRIBED_AT
) -> dict[str, np.ndarray]:
    """Those of the figures that are means over users, per user, for confidence intervals.

    Returns:
        `{"average_popularity@10": (cases,) float64}` and, with vectors, "intra_list_distance@10"; NaN where a list has none.
    """
    top = np.asarray(ranked)[:, :k]
    present = top >= 0
    lengths = present.sum(axis=1)
    popularity = np.where(present, np.asarray(train_item_counts)[top], 0).sum(axis=1)
    values = {f"average_popularity@{k}": np.where(lengths > 0, popularity / np.maximum(lengths, 1), np.nan)}
    if item_vectors is not None:
        values[f"intra_list_distance@{k}"] = intra_list_distances(top, item_vectors)
    return values


def item_exposure(ranked: np.ndarray, items: int, k: int = DESCRIBED_AT) -> np.ndarray:
    """(items,) int64: in how many lists each item stands among the first k places."""
    top = np.asarray(ranked)[:, :k]
    return np.bincount(top[top >= 0].astype(np.int64), minlength=items)


def popularity_percentiles(train_item_counts: np.ndarray) -> np.ndarray:
    """(items,) share of the catalogue with fewer training interactions, ties counted half; the mean over the catalogue is 0.5."""
    _, inverse, sizes = np.unique(train_item_counts, return_inverse=True, return_counts=True)
    return ((np.cumsum(sizes) - sizes / 2) / len(train_item_counts))[inverse]


def gini(exposure: np.ndarray) -> float | None:
    """Gini index of the items' exposure (items,), those never recommended included; None where nothing is recommended."""
    items, total = len(exposure), exposure.sum()
    if total == 0:
        return None
    return float((2 * np.arange(1, items + 1) - items - 1) @ np.sort(exposure) / (items * total))


def inter_user_diversity(exposure: np.ndarray, users: int, k: int) -> float | None:
    """1 − the mean share of k places that the lists of two different users have in common; None for fewer than two users.

    Exact, without going through the pairs: an item that stands in c lists is common to c (c − 1) ordered pairs, so the mean over the
    U (U − 1) ordered pairs is Σ_i c_i (c_i − 1) / (k U (U − 1)). An empty place is common to nobody.
    """
    if users < 2:
        return None
    counts = exposure.astype(np.float64)
    return float(1 - counts @ (counts - 1) / (k * users * (users - 1)))


def intra_list_distances(ranked: np.ndarray, item_vectors: ItemVectors) -> np.ndarray:
    """Mean cosine distance over the pairs of items of each list.

    With unit vectors, Σ_{i≠j} cos(v_i, v_j) = ‖Σ v‖² − n, so a list costs n vector sums instead of n² products.

    Args:
        ranked: (cases, places) item indices, all places counted, -1 for no item.
        item_vectors: (items, d); an item whose vector is zero is no part of a pair.

    Returns:
        (cases,) float64; NaN where fewer than two items of a list have a vector.

    Raises:
        CEMGError: vectors that are not (items, d), hold NaN, or are fewer than the items recommended.
    """
    vectors = item_vectors if sparse.issparse(item_vectors) else np.asarray(item_vectors)
    top = int(np.max(ranked, initial=-1))
    if vectors.ndim != 2 or (len(ranked) and top >= vectors.shape[0]):
        raise CEMGError(f"item_vectors: shape {vectors.shape} where item {top} is recommended; pass one row per catalogue item")
    if not np.isfinite(vectors.data if sparse.issparse(vectors) else vectors).all():
        raise CEMGError("item_vectors: they hold NaN or infinite values; leave out what is not known as a row of zeros")
    vectors = sparse.csr_array(vectors, dtype=np.float64)
    norms = np.sqrt(vectors.multiply(vectors).sum(axis=1))
    units = sparse.csr_array(sparse.diags_array(1 / np.where(norms > 0, norms, 1)) @ vectors)
    usable = (ranked >= 0) & (norms > 0)[ranked]
    pairs = usable.sum(axis=1) * (usable.sum(axis=1) - 1)
    squared = np.empty(len(ranked))
    for start in range(0, len(ranked), USERS_AT_ONCE):
        part = usable[start : start + USERS_AT_ONCE]
        offsets = np.concatenate([[0], part.sum(axis=1).cumsum()])
        members = sparse.csr_array(
            (np.ones(offsets[-1]), ranked[start : start + len(part)][part], offsets), shape=(len(part), vectors.shape[0])
        )
        sums = sparse.csr_array(members @ units)
        squared[start : start + len(part)] = sums.multiply(sums).sum(axis=1)
    similarity = (squared - usable.sum(axis=1)) / np.maximum(pairs, 1)
    return np.where(pairs > 0, 1 - similarity, np.nan)
