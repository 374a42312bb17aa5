"""How good item codes are: use of the codebooks, neighbours and categories that share prefixes, what moves them.

Codes are (N, M) raw codes 0 … K−1; the prefix of depth l is an item's first l codes. The functions know arrays only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from sklearn.metrics import adjusted_mutual_info_score

from ..errors import CEMGError

EXACT_UP_TO = 20_000
SAMPLED_QUERIES = 4_000
SIMILARITIES_AT_ONCE = 2**24
MOST_CATEGORIES = 200


def code_frequencies(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """(M, K) int64: items that have each code of each level."""
    codes = _checked(codes, codebook_size)
    levels = codes.shape[1]
    flat = (codes + np.arange(levels) * codebook_size).ravel()
    return np.bincount(flat, minlength=levels * codebook_size).reshape(levels, codebook_size)


def prefix_groups(codes: np.ndarray) -> np.ndarray:
    """(N, M) int64: a number 0, 1, … for the prefix of each depth; items share it exactly where they share the prefix."""
    codes = np.asarray(codes, dtype=np.int64)
    span = int(codes.max()) + 1 if codes.size else 1
    groups = np.zeros_like(codes)
    above = np.zeros(len(codes), dtype=np.int64)
    for level in range(codes.shape[1]):
        above = np.unique(above * span + codes[:, level], return_inverse=True)[1].ravel()
        groups[:, level] = above
    return groups


def code_usage(counts: np.ndarray) -> dict[str, float]:
    """Of a level whose K codes have `counts` (K,) items: `used_codes`, the share of them that have any, and `perplexity` (2^entropy)."""
    return {"used_codes": int((counts > 0).sum()) / len(counts), "perplexity": 2 ** _entropy_bits(counts)}


def level_usage(codes: np.ndarray, codebook_size: int) -> dict[str, list[dict[str, Any]]]:
    """How evenly items spread over the codes of each level and over the prefixes of each depth.

    Returns:
        `levels`: per level `used_codes` and `perplexity` (see `code_usage`), `dead` (codes without an item), `entropy_bits` and
        `entropy_share` (of log2 K). `prefixes`: per depth `distinct`, `items_per_prefix`, `largest_share` (items under the fullest
        prefix) and `entropy_bits`.

    Raises:
        CEMGError: codes that are not (N, M) integers of 0 … K−1 with at least one item.
    """
    counts = code_frequencies(codes, codebook_size)
    items = len(codes)
    levels = []
    for row in counts:
        bits = _entropy_bits(row)
        levels.append(
            {
                **code_usage(row),
                "dead": int((row == 0).sum()),
                "entropy_bits": bits,
                "entropy_share": bits / np.log2(codebook_size) if codebook_size > 1 else 1.0,
            }
        )
    prefixes = []
    for depth, groups in enumerate(prefix_groups(codes).T, start=1):
        sizes = np.bincount(groups)
        prefixes.append(
            {
                "depth": depth,
                "distinct": len(sizes),
                "items_per_prefix": items / len(sizes),
                "largest_share": int(sizes.max()) / items,
                "entropy_bits": _entropy_bits(sizes),
            }
        )
    return {"levels": levels, "prefixes": prefixes}


def nearest_neighbours(vectors: np.ndarray, k: int, queries: np.ndarray) -> np.ndarray:
    """(Q, k) rows of `vectors` (N, d) nearest to the rows `queries` (Q,) by cosine, the row itself left out; exact, in chunks."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    found = np.empty((len(queries), k), dtype=np.int64)
    size = max(1, min(1024, SIMILARITIES_AT_ONCE // len(unit)))
    for start in range(0, len(queries), size):
        rows = queries[start : start + size]
        similarity = unit[rows] @ unit.T
        similarity[np.arange(len(rows)), rows] = -np.inf
        found[start : start + size] = np.argpartition(similarity, -k, axis=1)[:, -k:]
    return found


def neighbour_preservation(vectors: np.ndarray, codes: np.ndarray, k: int = 10, sample: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Share of an item's k nearest neighbours (cosine) that share its prefix, per depth, against chance.

    Args:
        vectors: (N, d); rows of zeros have no direction and are left out.
        codes: (N, M).
        k: neighbours per item; at most one less than there are items.
        sample: number of items that ask for their neighbours (among all items); all of them where None, beyond 20,000 items 4,000.
        seed: of the sample.

    Returns:
        `k`, `items`, `queries` and `depths`: per depth `share`, `chance` (probability that a random other item shares the prefix, mean
        over the same queries) and `lift` (share / chance; None where chance is 0). `depths` is empty with fewer than two items.

    Raises:
        CEMGError: arrays that do not fit, values that are not finite, or k < 1.
    """
    codes, vectors = _checked(codes), np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != len(codes):
        raise CEMGError(f"vectors: shape {vectors.shape}, expected ({len(codes)}, dimension), a row per item of codes")
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise CEMGError(f"vectors: row {row} is not finite; leave the item out or encode it again")
    if k < 1 or (sample is not None and sample < 1):
        raise CEMGError(f"k and sample must be positive integers, got {k} and {sample}")
    usable = np.flatnonzero(vectors.any(axis=1))
    vectors, groups = vectors[usable], prefix_groups(codes[usable])
    items = len(usable)
    if items < 2:
        return {"k": k, "items": items, "queries": 0, "depths": []}
    k = min(k, items - 1)
    if sample is None:
        sample = items if items <= EXACT_UP_TO else SAMPLED_QUERIES
    queries = np.arange(items)
    if sample < items:
        queries = np.sort(np.random.default_rng(seed).choice(items, sample, replace=False))
    neighbours = nearest_neighbours(vectors, k, queries)
    depths: list[dict[str, Any]] = []
    for depth, column in enumerate(groups.T, start=1):
        share = float((column[neighbours] == column[queries, None]).mean())
        chance = float((np.bincount(column)[column[queries]] - 1).mean() / (items - 1))
        depths.append({"depth": depth, "share": share, "chance": chance, "lift": share / chance if chance > 0 else None})
    return {"k": k, "items": items, "queries": len(queries), "depths": depths}


def category_labels(categories: pl.Series) -> tuple[np.ndarray | None, int]:
    """One label per item from category paths (general to specific): as specific as it can be without being nearly unique.

    The label is the path down to one depth, the same for all items (a shorter path counts whole). The depth is the deepest with at
    most 200 distinct labels and at least two items per label on average; deeper ones have more labels, so a depth with 8 to 200 is
    taken where there is one. A set without order, such as genres, is read as it is written.

    Args:
        categories: (N,) lists of names, as the column `categories` of an items table.

    Returns:
        (N,) object array of labels, None where an item has no category, and the depth; (None, 0) where no depth has 2 … 200 labels.

    Raises:
        CEMGError: a column that does not hold lists of strings.
    """
    if categories.dtype != pl.List(pl.String):
        raise CEMGError(f"column {categories.name or 'categories'}: {categories.dtype}, expected lists of strings")
    deepest = int(categories.list.len().fill_null(0).to_numpy().max(initial=0))
    for depth in range(deepest, 0, -1):
        joined = categories.list.head(depth).list.join(" > ")
        labels = pl.select(pl.when(joined != "").then(joined)).to_series()
        named = len(labels) - labels.null_count()
        if 2 <= labels.drop_nulls().n_unique() <= min(MOST_CATEGORIES, named // 2):
            return labels.to_numpy().astype(object), depth
    return None, 0


def category_purity(
    codes: np.ndarray, labels: np.ndarray | Sequence[str | None], permutations: int = 5, seed: int = 0
) -> list[dict[str, Any]]:
    """How far the items under one prefix are of one category, per depth 1 … M−1, against labels dealt out at random.

    Args:
        codes: (N, M).
        labels: (N,) strings; None = unlabelled, left out.
        permutations: random permutations of the labels that the chance value is the mean of.
        seed: of the permutations.

    Returns:
        Per depth, over the prefixes with at least two labelled items: `prefixes`, `items`, `purity` (share of a prefix's most frequent
        label, mean weighted by items), `chance` (the same with permuted labels) and `nmi` (mutual information of prefix and label,
        normalised and adjusted for chance, sklearn's `adjusted_mutual_info_score`). The values are None where there is no such prefix.

    Raises:
        CEMGError: labels that are not one per item.
    """
    codes = _checked(codes)
    names = pl.Series(list(labels), dtype=pl.String)
    if len(names) != len(codes):
        raise CEMGError(f"labels: {len(names)} for {len(codes)} items; give one label (or None) per item")
    labelled = np.flatnonzero(names.is_not_null().to_numpy())
    classes = np.unique(names.drop_nulls().to_numpy().astype(str), return_inverse=True)[1].ravel()
    generator = np.random.default_rng(seed)
    shuffled = [generator.permutation(classes) for _ in range(permutations)]
    result = []
    for depth, column in enumerate(prefix_groups(codes[labelled])[:, :-1].T, start=1):
        sizes = np.bincount(column)
        shared = sizes[column] > 1
        row: dict[str, Any] = {"depth": depth, "prefixes": int((sizes > 1).sum()), "items": int(shared.sum())}
        row |= dict.fromkeys(("purity", "chance", "nmi"))
        if shared.any():
            row["purity"] = _majority_share(column[shared], classes[shared])
            row["chance"] = float(np.mean([_majority_share(column[shared], order[shared]) for order in shuffled])) if shuffled else None
            row["nmi"] = float(adjusted_mutual_info_score(classes[shared], column[shared]))
        result.append(row)
    return result


def modality_contribution(
    codes: np.ndarray, masked: Mapping[str, np.ndarray], counted: Mapping[str, np.ndarray] | None = None
) -> dict[str, dict[str, Any]]:
    """How many items get other codes when one modality is masked.

    Args:
        codes: (N, M) nearest codes from all modalities.
        masked: modality -> (N, M) nearest codes with that modality masked.
        counted: modality -> (N,) bool: items to count (those that have it and another one); all where left out.

    Returns:
        modality -> `items`, `first_code_changed`, `any_code_changed` (shares; None without items) and `changed_by_depth` (share of items
        whose prefix of each depth changes).
    """
    codes = _checked(codes)
    contribution: dict[str, dict[str, Any]] = {}
    for name, others in masked.items():
        if np.shape(others) != codes.shape:
            raise CEMGError(f"masked[{name}]: shape {np.shape(others)}, expected {codes.shape}")
        rows = np.ones(len(codes), dtype=bool) if counted is None or name not in counted else np.asarray(counted[name], dtype=bool)
        by_depth = [1 - share for share in _kept(codes[rows], np.asarray(others)[rows])] if rows.any() else []
        contribution[name] = {
            "items": int(rows.sum()),
            "first_code_changed": by_depth[0] if by_depth else None,
            "any_code_changed": by_depth[-1] if by_depth else None,
            "changed_by_depth": by_depth,
        }
    return contribution


def code_agreement(old_codes: np.ndarray, new_codes: np.ndarray) -> dict[str, Any]:
    """Share of items that keep the prefix of each depth from `old_codes` to `new_codes` (N, M), rows of the same items.

    Returns:
        `items` and `depths`: per depth `kept`; the last one is the share of items whose whole code stays.

    Raises:
        CEMGError: no items, or shapes that differ.
    """
    old, new = _checked(old_codes), _checked(new_codes)
    if old.shape != new.shape:
        raise CEMGError(f"new_codes: shape {new.shape}, expected {old.shape}; give the codes of the items that both have, in one order")
    return {"items": len(old), "depths": [{"depth": depth, "kept": share} for depth, share in enumerate(_kept(old, new), start=1)]}


def _kept(old: np.ndarray, new: np.ndarray) -> list[float]:
    same = np.logical_and.accumulate(old == new, axis=1)
    return [float(share) for share in same.mean(axis=0)]


def _majority_share(groups: np.ndarray, classes: np.ndarray) -> float:
    """Share of items that are of their group's most frequent class."""
    span = int(classes.max()) + 1
    keys, counts = np.unique(groups * span + classes, return_counts=True)
    starts = np.flatnonzero(np.diff(keys // span, prepend=-1))
    return float(np.maximum.reduceat(counts, starts).sum() / len(groups))


def _entropy_bits(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(max(0.0, -(share * np.log2(share)).sum()))


def _checked(codes: np.ndarray, codebook_size: int | None = None) -> np.ndarray:
    codes = np.asarray(codes)
    if codes.ndim != 2 or not codes.size or not np.issubdtype(codes.dtype, np.integer):
        raise CEMGError(f"codes: shape {codes.shape} of {codes.dtype}, expected integers of shape (items, levels), at least one item")
    if codes.min() < 0 or (codebook_size is not None and codes.max() >= codebook_size):
        row = int(np.flatnonzero(((codes < 0) | (codes >= (codebook_size or np.inf))).any(axis=1))[0])
        raise CEMGError(f"codes: row {row} has a code outside 0 … {'K−1' if codebook_size is None else codebook_size - 1}")
    return codes.astype(np.int64)
