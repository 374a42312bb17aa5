"""HR@K, NDCG@K and MRR@K over ranked items, vectorised: the one implementation that everything else calls.

There is one relevant item per case (leave-one-out), so with its 0-based rank r

    HR@K   = [r < K]
    NDCG@K = [r < K] / log2(r + 2)          (the ideal DCG is 1)
    MRR@K  = [r < K] / (r + 1)

A ranking is an integer array of shape (cases, places) of item indices, best first; -1 means "no item" and may stand only at
the end of a row (a list that is shorter than the others). Tensors stay on their device; numpy arrays are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch

from ..errors import CEMGError

DEFAULT_KS = (5, 10, 20)
MISSED = int(torch.iinfo(torch.int64).max)
METRICS = ("hr", "ndcg", "mrr")
"""Names before the @K; each has a value per case."""

Array: TypeAlias = np.ndarray | torch.Tensor
ItemKey: TypeAlias = int | str


class Rows(Protocol):
    """Rows of different lengths: row i is `values[offsets[i]:offsets[i + 1]]`."""

    @property
    def values(self) -> np.ndarray:
        """All rows, one after the other."""

    @property
    def offsets(self) -> np.ndarray:
        """Where each row begins, and the end of the last: (rows + 1,) int64."""


def hit_ranks(ranked: Array, targets: Array) -> torch.Tensor:
    """Place of each case's target in its ranking.

    Args:
        ranked: (N, K) item indices, best first, -1 for no item.
        targets: (N,) item indices, none negative.

    Returns:
        (N,) int64 ranks, 0 for the first place, K where the target is not in the list. An item listed twice counts where it comes first.

    Raises:
        CEMGError: shapes or types do not fit, or a target is negative.
    """
    ranked, targets = integer_tensor(ranked, "ranked", dimensions=2), integer_tensor(targets, "targets", dimensions=1)
    targets = targets.to(ranked.device)
    cases, places = ranked.shape
    if len(targets) != cases:
        raise CEMGError(f"targets: {len(targets)} of them for {cases} rows of ranked; pass one target per row")
    if places == 0:
        raise CEMGError("ranked: rows have no places; rank at least one item (-1 where there is none)")
    if bool((targets < 0).any()):
        row = int((targets < 0).nonzero()[0])
        raise CEMGError(f"targets: row {row} holds {int(targets[row])}, which is no item; leave cases without a target out")
    place = torch.arange(places, device=ranked.device)
    return torch.where(ranked == targets[:, None], place, places).amin(dim=1)


def per_case_metrics(ranks: Array, ks: Sequence[int] = DEFAULT_KS) -> dict[str, np.ndarray]:
    """Metrics of every single case, for means, slices and confidence intervals.

    Args:
        ranks: (N,) 0-based ranks; anything at or beyond max(ks) is a miss.
        ks: cut-offs.

    Returns:
        `{"hr@5": (N,) float64, "ndcg@5": …, "mrr@5": …}`, in the order of `ks`.
    """
    checked_ks(ks)
    ranks = integer_tensor(ranks, "ranks", dimensions=1)
    if bool((ranks < 0).any()):
        raise CEMGError("ranks: a negative rank; ranks count from 0, a miss is any rank of at least max(ks)")
    gain, reciprocal = 1.0 / torch.log2(ranks.double() + 2.0), 1.0 / (ranks.double() + 1.0)
    values: dict[str, np.ndarray] = {}
    for k in ks:
        hit = ranks < k
        values[f"hr@{k}"] = hit.double().cpu().numpy()
        values[f"ndcg@{k}"] = torch.where(hit, gain, 0.0).cpu().numpy()
        values[f"mrr@{k}"] = torch.where(hit, reciprocal, 0.0).cpu().numpy()
    return values


def mean_metrics(values: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Means over cases; None where there is no case, because the mean of nothing is not 0."""
    return {name: float(array.mean()) if len(array) else None for name, array in values.items()}


def ranking_metrics(ranked: Array, targets: Array, ks: Sequence[int] = DEFAULT_KS) -> dict[str, float | None]:
    """`{"hr@5": …, "ndcg@5": …, "mrr@5": …, "hr@10": …}`: means over the cases of `ranked` (N, K) and `targets` (N,); None when N is 0.

    Raises:
        CEMGError: as in `hit_ranks`, or `ranked` has fewer places than the largest cut-off.
    """
    check_width(ranked, checked_ks(ks), "ranked")
    return mean_metrics(per_case_metrics(hit_ranks(ranked, targets), ks))


def rank_from_scores(
    scores: Array, targets: Array, exclude: Rows | None = None, ties: Literal["pessimistic", "catalogue"] = "pessimistic"
) -> torch.Tensor:
    """Rank of each target in a full ranking of the catalogue, without sorting it.

    Equal scores: "pessimistic" places the target behind every item it ties with, so a model that scores all items alike earns
    nothing; "catalogue" breaks ties by item index, as a stable sort of the scores does.

    Args:
        scores: (N, items) floats, higher is better. -inf is allowed, NaN is not.
        targets: (N,) item indices.
        exclude: items of each case (N rows, repeats allowed) that may not be recommended.
        ties: what to do with equal scores.

    Returns:
        (N,) int64, 0-based; `MISSED`, which is beyond every cut-off, where the target itself is excluded.
    """
    scores = scores if isinstance(scores, torch.Tensor) else torch.from_numpy(np.require(scores, requirements=["C", "W"]))
    targets = integer_tensor(targets, "targets", dimensions=1).to(scores.device)
    if scores.dim() != 2 or len(scores) != len(targets):
        raise CEMGError(f"scores: shape {tuple(scores.shape)} for {len(targets)} targets; pass (cases, items)")
    items = scores.shape[1]
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < items:
        raise CEMGError(f"targets: item indices must lie between 0 and {items - 1}, the last column of scores")
    if scores.numel() and bool(torch.isnan(scores.amax())):  # the maximum of anything with a NaN is NaN
        raise CEMGError("scores: they contain NaN, which has no rank; look for a diverged model")

    target_scores = scores.gather(1, targets[:, None])
    if ties == "pessimistic":
        before = scores >= target_scores
    elif ties == "catalogue":
        before = scores > target_scores
        before |= (scores == target_scores) & (torch.arange(items, device=scores.device) < targets[:, None])
    else:
        raise CEMGError(f'ties: "{ties}" is unknown; choose "pessimistic" or "catalogue"')
    before.scatter_(1, targets[:, None], False)
    if exclude is None:
        return before.sum(dim=1, dtype=torch.int32).long()  # int32: twice as fast over booleans

    flat = flatten_rows(exclude, len(targets), items, name="exclude")
    rows, columns = (integer_tensor(part, "exclude", dimensions=1).to(scores.device) for part in flat)
    before[rows, columns] = False
    ranks = before.sum(dim=1, dtype=torch.int32).long()
    ranks[rows[columns == targets[rows]]] = MISSED
    return ranks


def list_metrics(
    metric: str, predictions: Sequence[Sequence[ItemKey]], references: Sequence[ItemKey], k: int | Sequence[int]
) -> dict[str, float | None]:
    """One metric over plain lists of item ids (strings or integers); what the `evaluate` modules compute.

    Lists may differ in length; a list shorter than k simply has nothing in its later places.

    Returns:
        `{"hr@10": …}` for metric "hr" and k = 10; one entry per k when several are given.
    """
    if metric not in METRICS:
        raise CEMGError(f'metric: "{metric}" is unknown; choose one of {", ".join(METRICS)}')
    ks = checked_ks((k,) if isinstance(k, int) else k)
    ranked, targets = _lists_to_arrays(predictions, references, width=max(ks))
    values = ranking_metrics(ranked, targets, ks)
    return {f"{metric}@{k}": values[f"{metric}@{k}"] for k in ks}


def check_rankings(ranked: Array, items: int, name: str = "ranked") -> None:
    """Raise a CEMGError unless every row holds different catalogue items, with -1 only behind the last of them.

    A list with a repeated item or an invalid one would not be noticed by the metrics, which look at the target alone.
    """
    ranked = integer_tensor(ranked, name, dimensions=2)
    outside = ((ranked < -1) | (ranked >= items)).any(dim=1)
    _refuse(outside, f"{name}: row {{row}} holds an index that is no item; the catalogue has {items} items, -1 means none")
    if ranked.shape[1] < 2:
        return
    gap = ((ranked[:, :-1] == -1) & (ranked[:, 1:] != -1)).any(dim=1)
    _refuse(gap, f"{name}: row {{row}} has an item behind a missing one; put -1 at the end of the row only")
    ordered = ranked.sort(dim=1).values
    repeated = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(dim=1)
    _refuse(repeated, f"{name}: row {{row}} lists an item twice; recommend every item at most once")


def check_width(ranked: Array, ks: Sequence[int], name: str) -> None:
    """Raise a CEMGError if `ranked` is too narrow for the largest cut-off, where a metric would silently equal that of a smaller one."""
    if len(ranked.shape) == 2 and ranked.shape[1] < max(ks):
        raise CEMGError(f"{name}: {ranked.shape[1]} places are too few for K = {max(ks)}; rank {max(ks)} items, -1 where there are no more")


def checked_ks(ks: Sequence[int]) -> Sequence[int]:
    """`ks` itself if it holds positive integers, at least one."""
    if len(ks) == 0 or any(isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1 for k in ks):
        raise CEMGError(f"ks: {list(ks)} are not cut-offs; pass positive integers such as 5, 10, 20")
    return ks


def integer_tensor(array: Array, name: str, dimensions: int) -> torch.Tensor:
    """`array` as an int64 tensor, shared where possible; anything but integers of the right number of dimensions is an error."""
    if isinstance(array, torch.Tensor):
        integral, tensor = not (array.is_floating_point() or array.is_complex() or array.dtype == torch.bool), array
    else:
        array = np.asarray(array)
        integral = array.dtype.kind in "iu" or array.size == 0
        tensor = torch.from_numpy(np.require(array, np.int64, ["C", "W"])) if integral else torch.empty(0)
    if not integral:
        raise CEMGError(f"{name}: type {array.dtype} where item indices are expected; pass integers")
    if tensor.dim() != dimensions:
        raise CEMGError(f"{name}: {tensor.dim()} dimensions where {dimensions} are expected; its shape is {tuple(tensor.shape)}")
    return tensor.long()


def flatten_rows(rows: Rows, count: int | None, items: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Row number and item index, both (values,) int64, of every value of `rows`.

    Raises:
        CEMGError: there are not `count` rows (None: any number), or an index is outside the catalogue of `items`.
    """
    offsets, values = np.asarray(rows.offsets, dtype=np.int64), np.asarray(rows.values, dtype=np.int64)
    if count is not None and len(offsets) - 1 != count:
        raise CEMGError(f"{name}: {len(offsets) - 1} rows for {count} cases; pass one row per case (an empty one where there is none)")
    if len(values) and not 0 <= values.min() <= values.max() < items:
        raise CEMGError(f"{name}: item indices must lie between 0 and {items - 1}; found {values.min()} to {values.max()}")
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), values[offsets[0] : offsets[-1]]


def _refuse(rows: torch.Tensor, message: str) -> None:
    if bool(rows.any()):
        raise CEMGError(message.format(row=int(rows.nonzero()[0])))


def _lists_to_arrays(predictions: Sequence[Sequence[ItemKey]], references: Sequence[ItemKey], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rectangular `ranked` (N, ≥ width) and `targets` (N,) of lists; strings become numbers of their own."""
    if len(predictions) != len(references):
        raise CEMGError(f"references: {len(references)} of them for {len(predictions)} predictions; pass one per list")
    lengths = np.fromiter(map(len, predictions), dtype=np.int64, count=len(predictions))
    flat, targets = np.array(list(chain.from_iterable(predictions))), np.array(list(references))
    if targets.dtype.kind == "U" or flat.dtype.kind == "U":
        _, numbers = np.unique(np.concatenate([flat.astype(str), targets.astype(str)]), return_inverse=True)
        flat, targets = numbers[: len(flat)], numbers[len(flat) :]
    elif len(flat) and (flat.dtype.kind not in "iu" or targets.dtype.kind not in "iu"):
        raise CEMGError(f"predictions: ids of type {flat.dtype} and references of {targets.dtype}; pass strings or integers")
    ranked = np.full((len(predictions), max(width, int(lengths.max(initial=0)))), -1, dtype=np.int64)
    ranked[np.arange(ranked.shape[1]) < lengths[:, None]] = flat
    return ranked, targets
