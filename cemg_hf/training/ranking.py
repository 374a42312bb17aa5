"""Ranked items for many histories with a trained generator, in length-bucketed batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from ..data import Ragged
from ..errors import CEMGError
from ..models.cemg import Candidates, CEMGForConditionalGeneration, SeparateRankings
from ..models.mscgrec import MSCGRecTokenizer


def rank_histories(
    model: CEMGForConditionalGeneration,
    histories: Ragged,
    k: int,
    *,
    num_beams: int | None = None,
    exclude_history: bool = False,
    batch_size: int = 128,
    dense_weight: float | None = None,
    without_streams: Sequence[str] = (),
    progress: str | tqdm[Any] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The k most probable next items of every history.

    Args:
        model: a generator with its tokenizer attached, in evaluation mode.
        histories: item indices, one row per user, chronological.
        k: length of the lists.
        num_beams: beams of the search, at least k (default k).
        exclude_history: leave out all items of the row, also those before the model's `max_history`.
        dense_weight: see `recommend`.
        without_streams: code streams that histories do not show (MSCGRec).
        progress: label of a progress bar, or a bar to advance by these users; none when omitted.

    Returns:
        item indices (rows, k), best first, −1 where fewer items are possible, and their scores (−inf there).

    Raises:
        ValueError: no tokenizer attached, or fewer beams than k.
        CEMGError: streams that the model does not have.
    """
    num_beams = k if num_beams is None else num_beams
    if not 1 <= k <= num_beams:
        raise ValueError(f"num_beams={num_beams} cannot fill lists of k={k}; k must be at least 1 and num_beams at least k")
    ranked = np.full((len(histories), k), -1, dtype=np.int64)
    scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
    for rows, batch in _batches(model, histories, exclude_history, batch_size, progress, without_streams):
        best, values = model.rank(**batch, num_beams=num_beams, dense_weight=dense_weight)
        width = min(k, best.shape[1])
        ranked[rows, :width] = best[:, :width].cpu().numpy()
        scores[rows, :width] = values[:, :width].cpu().numpy()
    return ranked, scores


def hybrid_candidates(
    model: CEMGForConditionalGeneration,
    histories: Ragged,
    num_beams: int,
    *,
    exclude_history: bool = False,
    batch_size: int = 128,
    progress: str | None = "codes and dense",
) -> Iterator[tuple[npt.NDArray[np.int64], Candidates]]:
    """Rows of `histories`, a batch at a time, with the candidates of both halves of the model; arguments as for `rank_histories`."""
    for rows, batch in _batches(model, histories, exclude_history, batch_size, progress):
        yield rows, model.hybrid_candidates(**batch, num_beams=num_beams)


def rank_histories_separately(
    model: CEMGForConditionalGeneration,
    histories: Ragged,
    num_beams: int,
    weights: Sequence[tuple[float, float]],
    *,
    exclude_history: bool = False,
    batch_size: int = 128,
    progress: str | None = None,
) -> list[SeparateRankings]:
    """Trained and new items ranked apart for every history, once for any number of boosts (see `merge_rankings`) and of `weights`.

    Args: as for `rank_histories`; weights: pairs of `new_item_dense` and `new_item_likelihood`, see `recommend`.

    Returns: for each pair, rankings of `num_beams` places on the CPU.
    """
    results = [_empty_rankings(len(histories), num_beams) for _ in weights]
    for rows, batch in _batches(model, histories, exclude_history, batch_size, progress):
        filters = {"excluded_items": batch["excluded_items"]}
        found = model.rank_separately(batch["input_ids"], batch["attention_mask"], num_beams, **filters)
        for result, (dense, likelihood) in zip(results, weights, strict=True):
            options = {"dense": dense, "likelihood": likelihood, "history": batch["history"]}
            scored = model.score_new_items(found, batch["input_ids"], num_beams, **options, **filters)
            for target, values in zip(result, scored, strict=True):
                target[torch.from_numpy(rows), : values.shape[1]] = values.cpu()
    return results


def _empty_rankings(rows: int, width: int) -> SeparateRankings:
    nothing, lowest = torch.full((rows, width), -1), torch.full((rows, width), -torch.inf)
    return SeparateRankings(nothing, lowest, nothing.clone(), lowest.clone())


def _batches(
    model: CEMGForConditionalGeneration,
    histories: Ragged,
    exclude_history: bool,
    batch_size: int,
    progress: str | tqdm[Any] | None,
    without_streams: Sequence[str] = (),
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, Any]]]:
    """Rows of similar length, longest first, with the arguments of `rank` that say what they hold and what to exclude."""
    config = model.config
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError("the model has no catalogue; call model.set_tokenizer(tokenizer)")
    item_tokens = tokenizer.history_tokens
    if without_streams:
        if not isinstance(tokenizer, MSCGRecTokenizer):
            raise CEMGError(f"without_streams: {', '.join(without_streams)} cannot be left out, the model reads one code per item")
        try:
            item_tokens = tokenizer.history_tokens_without(without_streams)
        except ValueError as error:
            raise CEMGError(f"without_streams: {error}") from error
    recent = histories.last(config.max_history)
    order = np.argsort(-recent.lengths, kind="stable")
    with progress_bar(progress, len(order)) as bar:
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            items = torch.from_numpy(pad(recent.take(rows)))
            present = items >= 0
            tokens = item_tokens[items.clamp(min=0)].flatten(1)
            start = torch.full((len(rows), 1), config.bos_token_id)
            attention = torch.cat([torch.ones_like(start), present.long().repeat_interleave(config.tokens_per_item, dim=1)], dim=1)
            excluded = torch.from_numpy(pad(histories.take(rows))) if exclude_history else None
            inputs = {"input_ids": torch.cat([start, tokens], dim=1), "attention_mask": attention}
            yield rows, inputs | {"history": items, "excluded_items": excluded}
            bar.update(len(rows))


@contextmanager
def progress_bar(progress: str | tqdm[Any] | None, total: int) -> Iterator[tqdm[Any]]:
    """The caller's bar, left open, or one of its own under a label."""
    if isinstance(progress, tqdm):
        yield progress
    else:
        with tqdm(total=total, desc=progress, unit="user", disable=progress is None, leave=False) as bar:
            yield bar


def pad(rows: Ragged) -> npt.NDArray[np.int64]:
    """(rows, longest) values, padded at the end with −1."""
    lengths = rows.lengths
    padded = np.full((len(rows), int(lengths.max(initial=0))), -1, dtype=np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = rows.values
    return padded
