"""What a trained generator does with its catalogue: ranked items for histories, by the one constrained beam search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .generation_cemg import Diversity, merge_rankings
from .hybrid_cemg import HybridMixin
from .new_items_cemg import NewItemsMixin
from .search_cemg import evaluating
from .trie_cemg import ItemTrie

DEFAULT_NUM_BEAMS = 20
LISTED_PER_USER = 1024  # a longer list that holds for all histories makes a trie of its own, if that is smaller than the lists of a batch

NOTHING = torch.empty(0, dtype=torch.int64)
Rows = Sequence[Tensor | None]
ItemLists = Sequence[str] | Sequence[Sequence[str] | None]
"""One list of item ids for all histories, or one for each (None: no such list)."""


class Recommendation(NamedTuple):
    """One recommended item and its score: Σ log p over the M codes (eq. 6), or its mixture with the dense tower's log p."""

    item_id: str
    score: float


class RecommendationMixin(HybridMixin, NewItemsMixin):
    """`recommend` and `rank` of a T5 that writes item codes, as transformers' GenerationMixin is to `generate`."""

    @torch.inference_mode()
    def rank(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_beams: int,
        excluded_items: Tensor | None = None,
        *,
        history: Tensor | None = None,
        allowed_items: Tensor | None = None,
        restricted: Tensor | None = None,
        diversity: Diversity | None = None,
        trie: ItemTrie | None = None,
        dense_weight: float | None = None,
        new_item_boost: float | None = None,
        new_item_dense: float = 0.0,
        new_item_likelihood: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Best items for a batch of tokenized histories.

        Args:
            input_ids, attention_mask: (B, S) as `tokenizer(histories, padding=True, return_tensors="pt")` gives them.
            num_beams: length of the lists; as many beams as items make the search exhaustive.
            excluded_items: (B, E) item indices that must not come out, −1 = none.
            history: (B, L) item indices of the histories, −1 = padding at the end; None: read from the tokens where they are needed, which
                takes longer, and lacks items that the tokens do not identify.
            allowed_items: (B, A) the only item indices that may come out, −1 = none.
            restricted: (B,) bool, rows of `allowed_items` that count (default: all).
            diversity: spread of the lists over first codes.
            trie: search in this one, such as `model.trie.subset(items)`, instead of the whole catalogue.
            dense_weight, new_item_boost, new_item_dense, new_item_likelihood: see `recommend`.

        Returns: item indices (B, ≤ num_beams) int64, best first, −1 where no further item is possible, and scores, fp32.
        """
        if num_beams < 1:
            raise ValueError(f"num_beams must be at least 1, got {num_beams}")
        if diversity is not None:
            diversity.check(num_beams)
        filters: dict[str, Any] = {"excluded_items": excluded_items, "allowed_items": allowed_items, "restricted": restricted}
        of_codes = diversity is not None or new_item_boost is not None
        if dense_weight is None:
            dense_weight = 0.0 if of_codes else self.config.dense_weight
        if not 0 <= dense_weight <= 1:
            raise ValueError(f"dense_weight must lie in 0 … 1, got {dense_weight}")
        if dense_weight:
            if of_codes:
                raise ValueError(
                    "max_per_first_code, min_first_codes and new_item_boost are of the codes alone; leave dense_weight out with them "
                    "(the dense tower finds new items by their content without a boost)"
                )
            found = self.hybrid_candidates(input_ids, attention_mask, num_beams, history=history, trie=trie, **filters)
            return found.ranking(dense_weight, num_beams)
        if new_item_boost is None:
            if new_item_dense or new_item_likelihood != 1:
                raise ValueError("new_item_dense and new_item_likelihood need new_item_boost; give it a number, 0 for no bonus")
            trie = self.trie if trie is None else trie
            with evaluating(self):
                return self._search(trie, *self._encode_history(input_ids, attention_mask), num_beams, diversity, **filters)
        if not math.isfinite(new_item_boost):
            raise ValueError(f"new_item_boost must be a finite number or None, got {new_item_boost}")
        if diversity is not None:
            raise ValueError("max_per_first_code and min_first_codes do not go with new_item_boost, whose lists are merged afterwards")
        apart = self.rank_separately(input_ids, attention_mask, num_beams, trie=trie, **filters)
        if new_item_dense or new_item_likelihood != 1:
            weights: dict[str, Any] = {"dense": new_item_dense, "likelihood": new_item_likelihood}
            history = self._history(input_ids, history, attention_mask)
            apart = self.score_new_items(apart, input_ids, num_beams, history=history, trie=trie, **weights, **filters)
        return merge_rankings(*apart, new_item_boost, num_beams)

    def recommend(
        self,
        histories: Sequence[str] | Sequence[Sequence[str]],
        k: int = 10,
        *,
        exclude_history: bool = False,
        allowed_items: ItemLists | None = None,
        denied_items: ItemLists | None = None,
        max_per_first_code: int | None = None,
        min_first_codes: int | None = None,
        num_beams: int | None = None,
        batch_size: int = 64,
        on_unknown: str = "error",
        dense_weight: float | None = None,
        new_item_boost: float | None = None,
        new_item_dense: float = 0.0,
        new_item_likelihood: float = 1.0,
    ) -> list[Recommendation] | list[list[Recommendation]]:
        """The k most probable next items of each history; every one of them is an item of the catalogue.

        Args:
            histories: item ids in chronological order, of one user or of a list of users. An empty history is a new user.
            k: items per list; the list is shorter only when fewer items are possible.
            exclude_history: leave out every item of the given history, also those before the last `max_history`.
            allowed_items: recommend these items only (in stock, of a category, of a region): item ids for all histories, or one list
                (or None) for each.
            denied_items: never recommend these; given likewise. Lists, filters and history compose, and what they leave out costs no
                beams: k items come back whenever so many are left.
            max_per_first_code: at most so many items of a list share their first code, the coarsest branch of the catalogue.
            min_first_codes: at least so many different first codes in a list, as far as the catalogue has them.
            num_beams: beams of the search, at least k (default: max(k, 20)).
            batch_size: users per forward pass.
            on_unknown: item ids that are not in the catalogue raise ("error") or are left out of histories and lists ("skip").
            dense_weight: w; an item's score is (1 − w) · Σ log p of its codes + w · log p of the dense tower (default: the model's own,
                `config.dense_weight`, except with `max_per_first_code`, `min_first_codes` and `new_item_boost`, which are of the codes
                alone). 0: the codes alone.
            new_item_boost: items added after training get beams of their own, and this bonus on their Σ log p; a decoder hardly
                ever writes codes it was not trained on otherwise. 0: own beams without a bonus. None: all items share the beams.
            new_item_dense: weight of the cosine between a new item's content vector and the mean of the history's, added to its score.
                All new items are candidates then. LIGER (arXiv 2411.18814) ranks cold candidates by such a cosine.
            new_item_likelihood: weight of Σ log p in a new item's score; what a decoder thinks of codes it never saw is noisy, and
                with `new_item_dense` less of it is more.

        Returns: one list of `Recommendation(item_id, score)` per history, best first; for one history just its list.

        Raises:
            ValueError: no tokenizer attached, k < 1, num_beams < k, unknown item ids, lists that are not one per history, or settings
                that cannot work (not finite, given without `new_item_boost`, or a tokenizer without content vectors).
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        num_beams = max(k, DEFAULT_NUM_BEAMS) if num_beams is None else num_beams
        if num_beams < k:
            raise ValueError(f"num_beams={num_beams} cannot fill lists of k={k}; use at least k beams")
        diversity = None
        if max_per_first_code is not None or min_first_codes is not None:
            diversity = Diversity(k, max_per_first_code, min_first_codes)
            diversity.check(num_beams)
        trie = self.trie  # raises when no catalogue is attached
        tokenizer = self.tokenizer
        assert tokenizer is not None
        single = tokenizer.is_one_history(histories)
        batch: list[Sequence[str]] = [histories] if single else list(histories)  # type: ignore[list-item]
        known = [tokenizer.item_indices(history, on_unknown=on_unknown) for history in batch]
        lists: dict[str, Rows | None] = {"denied": None, "allowed": None}
        for name, given in (("denied", denied_items), ("allowed", allowed_items)):
            if given is None:
                continue
            rows = item_rows(tokenizer.item_indices, f"{name}_items", given, len(batch), on_unknown)
            if not isinstance(rows, Tensor):
                lists[name] = rows
            elif len(rows) <= LISTED_PER_USER or len(rows) * min(batch_size, len(batch)) < (
                len(rows) if name == "allowed" else trie.num_items - len(rows)
            ):
                lists[name] = [rows] * len(batch)
            else:
                items = trie.leaf_items.long()
                items = items[torch.isin(items, rows.to(trie.device)) == (name == "allowed")]
                if not len(items):
                    nothing: list[list[Recommendation]] = [[] for _ in batch]
                    return nothing[0] if single else nothing
                trie = trie.subset(items)
        results: list[list[Recommendation]] = []
        for first in range(0, len(known), batch_size):
            part = slice(first, first + batch_size)
            inputs = tokenizer.pad({"input_ids": [tokenizer.history_ids(indices) for indices in known[part]]}, return_tensors="pt")
            items, scores = self.rank(
                inputs["input_ids"],
                inputs["attention_mask"],
                num_beams,
                **_filters(known[part] if exclude_history else None, *(None if rows is None else rows[part] for rows in lists.values())),
                history=_padded([indices[-tokenizer.max_history :] for indices in known[part]]),
                diversity=diversity,
                trie=trie,
                dense_weight=dense_weight,
                new_item_boost=new_item_boost,
                new_item_dense=new_item_dense,
                new_item_likelihood=new_item_likelihood,
            )
            for row, values in zip(items[:, :k].tolist(), scores[:, :k].tolist(), strict=True):
                found = [Recommendation(tokenizer.item_ids[item], score) for item, score in zip(row, values, strict=True) if item >= 0]
                results.append(found)
        return results[0] if single else results


def item_rows(
    indices: Callable[[Sequence[str], str], Tensor], name: str, lists: ItemLists, histories: int, on_unknown: str
) -> Tensor | Rows:
    """Item indices (n,) that hold for all histories, or those of each.

    Args:
        indices: item ids and `on_unknown` → item indices (n,), of a tokenizer or of a network with a catalogue.
        name: the argument that the lists were given as.
        lists: item ids for all histories, or one list (or None) for each.
        histories: how many there are.
        on_unknown: "error" or "skip".

    Raises:
        ValueError: a string, unknown item ids, or lists that are not one per history; names the argument.
    """
    if isinstance(lists, str):
        raise ValueError(f"{name} is a list of item ids, got the string {lists!r}; write [{lists!r}]")
    try:
        if all(isinstance(entry, str) for entry in lists):
            return indices(lists, on_unknown)  # type: ignore[arg-type]
        if len(lists) != histories:
            raise ValueError(f"{len(lists)} lists for {histories} histories; give one list (or None) for each, or one list of ids for all")
        return [None if entry is None else indices(entry, on_unknown) for entry in lists]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _filters(histories: Rows | None, denied: Rows | None, allowed: Rows | None) -> dict[str, Tensor | None]:
    """The arguments of `rank` for lists of a batch of users."""
    filters: dict[str, Tensor | None] = {}
    given = [rows for rows in (histories, denied) if rows is not None]
    if given:
        filters["excluded_items"] = _padded(
            [torch.cat([NOTHING, *(row for row in rows if row is not None)]) for rows in zip(*given, strict=True)]
        )
    if allowed is not None:
        filters["allowed_items"] = _padded([NOTHING if row is None else row for row in allowed])
        filters["restricted"] = torch.tensor([row is not None for row in allowed])
    return filters


def _padded(rows: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
