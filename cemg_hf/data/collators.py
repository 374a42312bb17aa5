"""Training windows over user sequences and their batches of code tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from .augmentation import Augmentation
from .ragged import IntArray, Ragged

IGNORED_LABEL = -100
"""Label of a position without a target."""


class TrainingWindows(Dataset[int]):
    """Cuts every user's sequence into windows in which each item is a target exactly once.

    An item-causal model trains all prefixes of a window in one pass. The first window of a user holds `max_history` + 1 items,
    all of them targets; each further window moves on by `stride` items, so that its new targets see at least
    `max_history` + 1 − `stride` items of history. A bidirectional model gets one window per target instead.

    The dataset yields window numbers; `collate` turns a list of them into tensors in one vectorised step.

    Args:
        sequences: training items of each user, chronological.
        max_history: H, items a target may look back on.
        item_causal: one window for many targets, or one window per target.
        stride: new targets per further window (default H // 2, at least 1).
    """

    def __init__(self, sequences: Ragged, max_history: int, item_causal: bool, stride: int | None = None) -> None:
        stride = max(1, max_history // 2) if stride is None else stride
        if not 1 <= stride <= max_history + 1:
            raise ValueError(f"stride must lie in 1 … max_history + 1 = {max_history + 1}, got {stride}")
        self.items: IntArray = sequences.values
        length = sequences.lengths
        if item_causal:
            further = np.maximum(0, -(-(length - (max_history + 1)) // stride))
            windows = np.where(length > 0, 1 + further, 0)
        else:
            windows = length
        user = np.repeat(np.arange(len(sequences)), windows)
        number = np.arange(len(user)) - np.repeat(np.cumsum(windows) - windows, windows)
        if item_causal:
            end = np.minimum(max_history + 1 + number * stride, length[user])
            first_target = np.where(number > 0, max_history + 1 + (number - 1) * stride, 0)
        else:
            end, first_target = number + 1, number
        begin = np.maximum(0, end - (max_history + 1))
        self.begin: IntArray = sequences.offsets[user] + begin
        self.size: IntArray = end - begin
        """(windows,) items per window, the targets included."""
        self.skipped: IntArray = first_target - begin
        """(windows,) leading items of the window that are no targets here, because another window has them."""

    def __len__(self) -> int:
        return len(self.size)

    def __getitem__(self, window: int) -> int:
        return window

    @property
    def num_targets(self) -> int:
        return int((self.size - self.skipped).sum())

    def item_batch(self, windows: Sequence[int]) -> tuple[IntArray, IntArray]:
        """Items (B, T) of the windows, padded with −1, and where targets begin (B,)."""
        chosen = np.asarray(windows)
        slots = np.arange(self.size[chosen].max())
        inside = slots < self.size[chosen, None]
        items = np.where(inside, self.items[np.where(inside, self.begin[chosen, None] + slots, 0)], -1)
        return items, self.skipped[chosen]


class WindowCollator:
    """Window numbers → `input_ids`, `attention_mask`, `labels` as `CEMGForConditionalGeneration.forward` takes them.

    With an augmentation a window differs from epoch to epoch. Items that are left out of the history stay targets, the others keep
    their order, and `seen_items` tells an item-causal model how many of them each target sees. All items of a window, targets too,
    go by identifiers of one set (MTGRec, arXiv 2504.04400). Code streams of history items give way to the tokens that say so (MSCGRec).

    Args:
        windows: the windows.
        item_tokens: (N, M) token ids of every item, or (E, N, M) of E identifier sets.
        history_start_id: id of `<s>`.
        item_causal: all items of a window are targets, each seeing the items before it; otherwise only the last one is.
        augmentation: what differs between epochs; None: nothing, and every item goes by the first set.
        with_items: also give `items` (B, T), the item indices behind the labels, −1 = padding at the end (for many targets a window).
        history_tokens: (N, T) token ids of every item in a history, where they are others than those of a target.
        missing_tokens: (S,) token ids that stand in the place of the codes of a stream, of S streams one after the other in an item.
        pad_to_multiple_of: histories are padded to a number of tokens that this divides.

    Raises:
        ValueError: an augmentation that draws from another number of identifier sets than there are, or hides streams where there are none.
    """

    def __init__(
        self,
        windows: TrainingWindows,
        item_tokens: Tensor,
        history_start_id: int,
        item_causal: bool,
        augmentation: Augmentation | None = None,
        with_items: bool = False,
        history_tokens: Tensor | None = None,
        missing_tokens: Tensor | None = None,
        pad_to_multiple_of: int = 1,
    ) -> None:
        self.windows = windows
        self.with_items = with_items
        self.item_tokens = item_tokens if item_tokens.ndim == 3 else item_tokens.unsqueeze(0)
        """(E, N, M)"""
        self.history_start_id = history_start_id
        self.item_causal = item_causal
        self.augmentation = augmentation
        self.history_tokens, self.missing_tokens = history_tokens, missing_tokens
        self.pad_to_multiple_of = pad_to_multiple_of
        if augmentation is not None and augmentation.stream_dropout and (history_tokens is None or missing_tokens is None):
            raise ValueError("stream_dropout hides code streams; give history_tokens and missing_tokens")
        if augmentation is not None and augmentation.num_identifiers != len(self.item_tokens):
            raise ValueError(
                f"the augmentation draws from {augmentation.num_identifiers} identifier sets, item_tokens hold {len(self.item_tokens)}"
            )

    def __call__(self, batch: Sequence[int]) -> dict[str, Tensor]:
        items_array, skipped = self.windows.item_batch(batch)
        items = torch.from_numpy(items_array)
        size = (items >= 0).sum(dim=1, keepdim=True)
        slots = torch.arange(items.shape[1])
        # The last item of a window is a target only: it is no history of any other target of the window.
        is_history = slots[:-1] < size - 1
        tokens = self._tokens(items, batch)
        history, seen = self._history(items[:, :-1], tokens[:, :-1], batch), None
        if self.augmentation is not None and self.augmentation.item_dropout:
            is_history, history, seen = _without(self.augmentation.left_out(batch, len(slots) - 1), is_history, history)
        attention = is_history.long().repeat_interleave(history.shape[-1], dim=1)
        history = history.masked_fill(~is_history.unsqueeze(-1), 0).flatten(1)
        start = torch.full((len(items), 1), self.history_start_id)
        if self.item_causal:
            is_target = (slots >= torch.from_numpy(skipped).unsqueeze(1)) & (items >= 0)
            labels = tokens.masked_fill(~is_target.unsqueeze(-1), IGNORED_LABEL).flatten(1)
        else:
            labels = tokens[torch.arange(len(items)), size.squeeze(1) - 1]
        padding = (0, -(1 + history.shape[1]) % self.pad_to_multiple_of)
        tensors = {
            "input_ids": functional.pad(torch.cat([start, history], dim=1), padding),
            "attention_mask": functional.pad(torch.cat([torch.ones_like(start), attention], dim=1), padding),
            "labels": labels,
        }
        if seen is not None and self.item_causal:
            tensors["seen_items"] = seen
        if self.with_items:
            tensors["items"] = items
        return tensors

    def _history(self, items: Tensor, tokens: Tensor, batch: Sequence[int]) -> Tensor:
        """(B, H, T) tokens of history items (B, H), whose tokens as targets are (B, H, M)."""
        if self.history_tokens is None:
            return tokens
        history = self.history_tokens[items.clamp(min=0)]
        if self.augmentation is None or not self.augmentation.stream_dropout:
            return history
        assert self.missing_tokens is not None
        missing, codes = self.missing_tokens.unsqueeze(-1), history.unflatten(-1, (len(self.missing_tokens), -1))
        hidden = self.augmentation.hidden_streams(batch, (codes != missing).any(dim=-1))  # no code is the token of a missing stream
        return torch.where(hidden.unsqueeze(-1), missing, codes).flatten(-2)

    def _tokens(self, items: Tensor, batch: Sequence[int]) -> Tensor:
        """(B, T, M) tokens of items (B, T), in the identifiers drawn for their windows."""
        if self.augmentation is None or len(self.item_tokens) == 1:
            return self.item_tokens[0, items.clamp(min=0)]
        return self.item_tokens[self.augmentation.identifiers(batch).unsqueeze(1), items.clamp(min=0)]


def _without(left_out: Tensor, is_history: Tensor, history: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """History slots (B, H), their tokens (B, H, M) moved to the front, and how many of them slots 0 … H see (B, H + 1)."""
    kept = is_history & ~left_out
    order = (~kept).long().argsort(dim=1, stable=True)
    seen = functional.pad(kept.long().cumsum(dim=1), (1, 0))
    front = torch.arange(kept.shape[1]) < kept.sum(dim=1, keepdim=True)
    return front, history.gather(1, order.unsqueeze(-1).expand_as(history)), seen
