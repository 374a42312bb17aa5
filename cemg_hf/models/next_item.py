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
from .cemg.search_cemg import evaluating

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

    @torch.inference_mode()
    def recommend(
        self, histories: Sequence[str] | Sequence[Sequence[str]], k: int = 10, *, exclude_history: bool = False
    ) -> list[ScoredItem] | list[list[ScoredItem]]:
        """The k best next items of each history of item ids, oldest first; of one history just its list.

        Raises:
            ValueError: no catalogue, or unknown item ids.
        """
        if self.item_ids is None:
            raise ValueError("the model has no catalogue; load it from a folder that holds item_ids.json")
        place = {item: index for index, item in enumerate(self.item_ids)}
        single = not histories or isinstance(histories[0], str)
        lists: list[ScoredItem] | list[list[ScoredItem]] = []
        for history in [histories] if single else histories:
            unknown = [item for item in history if item not in place]
            if unknown:
                raise ValueError(f"not in the catalogue: {', '.join(map(str, unknown[:3]))}; leave unknown items out of the history")
            indices = torch.tensor([[place[str(item)] for item in history]], dtype=torch.int64, device=self.device)
            scores = self.scores(indices[:, -self.config.max_history :])[0]
            if exclude_history:
                scores[indices[0]] = -torch.inf
            best, items = scores.topk(min(k, len(scores)))
            found = [
                ScoredItem(self.item_ids[item], score)
                for item, score in zip(items.tolist(), best.tolist(), strict=True)
                if score > -torch.inf
            ]
            lists.append(found)  # type: ignore[arg-type]
        return lists[0] if single else lists  # type: ignore[return-value]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in transformers, with the catalogue of the same place."""
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
            (loaded[0] if isinstance(loaded, tuple) else loaded).item_ids = json.loads(Path(path).read_text(encoding="utf-8"))
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in transformers, with the catalogue."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.item_ids is not None:
            (Path(save_directory) / ITEM_IDS_FILE).write_text(json.dumps(self.item_ids), encoding="utf-8")
