"""What models over whole items have in common: the loss, scores of the catalogue, `recommend`, and a catalogue that travels with them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput
from transformers.utils import cached_file

from .cemg.dense_cemg import DenseSettings, next_item_loss
from .cemg.recommendation_cemg import NOTHING, ItemLists, Rows, item_rows
from .cemg.search_cemg import evaluating
from .cemg.tokenization_cemg import CEMGTokenizer

ITEM_IDS_FILE = "item_ids.json"


class ScoredItem(NamedTuple):
    """One recommended item and its score, the dot product of state and item."""

    item_id: str
    score: float


@dataclass
class NextItemOutput(ModelOutput):
    """Loss (if there were labels) and the states (B, 1 + T, d) after the first 0 … T items."""

    loss: Tensor | None = None
    states: Tensor | None = None


class NextItemModel(PreTrainedModel):
    """A network that turns a history into a state and scores items by their dot product with it.

    Subclasses give `states` and `item_vectors`, and `settings` for the loss.
    """

    config: Any
    main_input_name = "items"
    item_ids: list[str] | None = None
    """The catalogue, by item index; saved and loaded with the model."""
    _indexed: tuple[list[str], dict[str, int]] | None = None

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.settings = DenseSettings(loss=config.loss, num_negatives=config.num_negatives, label_smoothing=config.label_smoothing)

    def states(self, items: Tensor, vectors: Tensor) -> Tensor:
        """(B, 1 + T, d) states after the first 0 … T items of (B, T) item indices, −1 = padding at the end; vectors (N, d) of all."""
        raise NotImplementedError

    def item_vectors(self) -> Tensor:
        """(N, d) vectors of all items."""
        raise NotImplementedError

    def _init_weights(self, module: nn.Module) -> None:
        """Networks initialise themselves."""

    def forward(self, items: Tensor, labels: Tensor | None = None, num_items_in_batch: Tensor | int | None = None) -> NextItemOutput:
        """States and, with labels, the mean next-item loss.

        Args:
            items: (B, T) item indices, chronological, −1 = padding at the end.
            labels: (B, 1 + T) the item after each prefix, −100 where there is none.
            num_items_in_batch: divide the summed loss by this number instead of by the batch's own number of labels.
        """
        vectors = self.item_vectors()
        states = self.states(items, vectors)
        if labels is None:
            return NextItemOutput(states=states)
        chosen = labels >= 0
        loss = next_item_loss(states[chosen], labels[chosen], vectors, self.settings)
        return NextItemOutput(loss / (chosen.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch), states)

    @torch.inference_mode()
    def scores(self, items: Tensor) -> Tensor:
        """(B, N) fp32 scores of all items after histories (B, T), −1 = padding at the end; only the last `max_history` may be given.

        Without dropout, whatever the model's mode.
        """
        with evaluating(self):
            vectors = self.item_vectors()
            states = self.states(items, vectors)
        last = states[torch.arange(len(items), device=items.device), (items >= 0).sum(dim=1)]
        with torch.autocast(items.device.type, enabled=False):  # it would round what was made fp32, and near items to one score
            return last.float() @ vectors.float().T

    def item_indices(self, history: Sequence[str], on_unknown: str = "error") -> Tensor:
        """Indices (L,) int64 of the items of a history.

        Raises:
            ValueError: no catalogue, or an id outside of it, unless `on_unknown="skip"` leaves it out.
        """
        if on_unknown not in ("error", "skip"):
            raise ValueError(f"on_unknown must be 'error' or 'skip', got {on_unknown!r}")
        index = self._index
        unknown = [item_id for item_id in history if item_id not in index]
        if unknown and on_unknown == "error":
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise ValueError(
                f"item id {unknown[0]!r}{more} is not among the {len(index)} items of the catalogue; "
                "correct it, or pass on_unknown='skip' to leave unknown items out"
            )
        return torch.tensor([index[item_id] for item_id in history if item_id in index], dtype=torch.int64)

    @property
    def _index(self) -> dict[str, int]:
        """Item id → index, made once for a catalogue."""
        if self.item_ids is None:
            raise ValueError(f"the model has no catalogue; load it from a folder that holds {ITEM_IDS_FILE}")
        if self._indexed is None or self._indexed[0] is not self.item_ids:
            self._indexed = (self.item_ids, {item_id: row for row, item_id in enumerate(self.item_ids)})
        return self._indexed[1]

    @torch.inference_mode()
    def recommend(
        self,
        histories: Sequence[str] | Sequence[Sequence[str]],
        k: int = 10,
        *,
        exclude_history: bool = False,
        allowed_items: ItemLists | None = None,
        denied_items: ItemLists | None = None,
        batch_size: int = 64,
        on_unknown: str = "error",
    ) -> list[ScoredItem] | list[list[ScoredItem]]:
        """The k best next items of each history, by the scores of the whole catalogue.

        Args:
            histories: item ids, oldest first, of one user or of a list of users. An empty history is a new user.
            k: items per list; the list is shorter only when fewer items are possible.
            exclude_history: leave out every item of the given history, also those before the last `max_history`.
            allowed_items: recommend these items only: item ids for all histories, or one list (or None) for each.
            denied_items: never recommend these; given likewise. Lists, filters and history compose.
            batch_size: users per forward pass.
            on_unknown: item ids that are not in the catalogue raise ("error") or are left out of histories and lists ("skip").

        Returns: one list of `ScoredItem(item_id, score)` per history, best first; for one history just its list.

        Raises:
            ValueError: no catalogue, k or batch_size < 1, unknown item ids, or lists that are not one per history.
        """
        if k < 1 or batch_size < 1:
            raise ValueError(f"k must be at least 1, and batch_size too; got {k} and {batch_size}")
        single = CEMGTokenizer.is_one_history(histories)
        batch: list[Sequence[str]] = [histories] if single else list(histories)  # type: ignore[list-item]
        known = [self.item_indices(history, on_unknown) for history in batch]
        denied, allowed = (
            self._of_each(name, lists, len(batch), on_unknown)
            for name, lists in (("denied_items", denied_items), ("allowed_items", allowed_items))
        )
        if exclude_history:
            denied = [rows if more is None else torch.cat([rows, more]) for rows, more in zip(known, denied, strict=True)]
        lists = self.rank_histories(known, k, denied, allowed, batch_size)
        return lists[0] if single else lists

    def _of_each(self, name: str, lists: ItemLists | None, histories: int, on_unknown: str) -> Rows:
        """Item indices of each history's list; None where it has none."""
        if lists is None:
            return [None] * histories
        rows = item_rows(self.item_indices, name, lists, histories, on_unknown)
        return [rows] * histories if isinstance(rows, Tensor) else rows

    @torch.inference_mode()
    def rank_histories(self, histories: list[Tensor], k: int, hidden: Rows, allowed: Rows, batch_size: int = 64) -> list[list[ScoredItem]]:
        """`recommend` for item indices.

        Args:
            histories: int64 (L,) each, oldest first.
            k: items per list, at most.
            hidden: items (n,) that must not come out, of each history; None where all may.
            allowed: likewise the only ones that may.
            batch_size: users per forward pass.

        Returns: one list per history, best first.
        """
        ids = self.item_ids
        assert ids is not None  # or nothing could have been made an index
        lists: list[list[ScoredItem]] = []
        for first in range(0, len(histories), batch_size):
            part = slice(first, first + batch_size)
            scores = self.scores(_padded([rows[-self.config.max_history :] for rows in histories[part]], -1).to(self.device))
            if any(rows is not None for rows in hidden[part]):
                scores.masked_fill_(_marked(hidden[part], scores), -torch.inf)
            if any(rows is not None for rows in allowed[part]):
                restricted = torch.tensor([rows is not None for rows in allowed[part]], device=scores.device)
                scores.masked_fill_(~_marked(allowed[part], scores) & restricted[:, None], -torch.inf)
            best, items = scores.topk(min(k, len(ids)), dim=1)
            for values, row in zip(best.tolist(), items.tolist(), strict=True):
                lists.append([ScoredItem(ids[item], score) for item, score in zip(row, values, strict=True) if score > -torch.inf])
        return lists

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in transformers, with the catalogue of the same place.

        Raises:
            ValueError: a catalogue of another number of items than the network knows.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        where = {key: kwargs[key] for key in ("cache_dir", "token", "revision", "local_files_only", "subfolder") if key in kwargs}
        path = cached_file(
            pretrained_model_name_or_path,
            ITEM_IDS_FILE,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **where,
        )
        if path is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.item_ids = json.loads(Path(path).read_text(encoding="utf-8"))
            if len(model.item_ids) != model.config.num_items:
                raise ValueError(
                    f"{ITEM_IDS_FILE} holds {len(model.item_ids)} items and the network knows {model.config.num_items}; "
                    "take the file that was saved with it"
                )
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in transformers, with the catalogue."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.item_ids is not None:
            (Path(save_directory) / ITEM_IDS_FILE).write_text(json.dumps(self.item_ids), encoding="utf-8")


def _padded(rows: list[Tensor], value: int) -> Tensor:
    """(rows, longest) int64, padded at the end."""
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def _marked(rows: Rows, scores: Tensor) -> Tensor:
    """(B, N) bool on the device of the scores (B, N): True at the item indices of each row, of which there may be none."""
    size, num_items = scores.shape
    marked = scores.new_zeros(size, num_items + 1, dtype=torch.bool)  # padding stands in one more column, which is cut off again
    marked.scatter_(1, _padded([NOTHING if row is None else row for row in rows], num_items).to(scores.device), True)
    return marked[:, :-1]
