"""What a trained generator does with its catalogue: ranked items for histories, by the one constrained beam search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput

from .decoding_cemg import BeamDecoder
from .dense_cemg import DenseTower
from .generation_cemg import Diversity, ItemFilter, PrefixConstrainedLogitsProcessor, constrained_beam_search, merge_rankings
from .hybrid_cemg import Candidates, history_items, possible_items
from .tokenization_cemg import CEMGTokenizer
from .trie_cemg import ItemTrie

if TYPE_CHECKING:
    from transformers import T5PreTrainedModel as Base
else:
    Base = object

DEFAULT_NUM_BEAMS = 20
LISTED_PER_USER = 1024  # a longer list that holds for all histories makes a trie of its own, if that is smaller than the lists of a batch
PLAIN_SETTINGS = ("num_beams", "num_return_sequences", "return_dict_in_generate")
PLAIN_ARGUMENTS = {"input_ids", "attention_mask", *PLAIN_SETTINGS}
WITHOUT_EFFECT = {"use_cache", "early_stopping"}  # on a search of M steps that scores all beams alike

NOTHING = torch.empty(0, dtype=torch.int64)
Rows = Sequence[Tensor | None]
ItemLists = Sequence[str] | Sequence[Sequence[str] | None]
"""One list of item ids for all histories, or one for each (None: no such list)."""


class Recommendation(NamedTuple):
    """One recommended item and its score: Σ log p over the M codes (eq. 6), or its mixture with the dense tower's log p."""

    item_id: str
    score: float


class SeparateRankings(NamedTuple):
    """Rankings of trained and of new items, each by beams of its own.

    Item indices (B, W) int64 with −1 for none, and scores fp32.
    """

    items: Tensor
    scores: Tensor
    new_items: Tensor
    new_scores: Tensor


class RecommendationMixin(Base):
    """`recommend`, `rank` and constrained `generate` of a T5 that writes item codes, as transformers' GenerationMixin is to `generate`."""

    if TYPE_CHECKING:
        config: Any
        tokenizer: CEMGTokenizer | None
        encoder: Any
        decoder: Any
        dense: DenseTower | None
        dense_item_codes: Tensor

        def _cross_attention_mask(self, attention_mask: Tensor, seen_items: Tensor | None) -> Tensor: ...
        def _level_logits(self, hidden: Tensor, first_level: int) -> Tensor: ...

    _moved_trie: tuple[ItemTrie, ItemTrie] | None = None
    _split_tries: tuple[ItemTrie, ItemTrie | None, ItemTrie | None] | None = None
    _dense_rows: tuple[ItemTrie, Tensor] | None = None

    # ---- the catalogue --------------------------------------------------------------------------------------------------------

    @property
    def trie(self) -> ItemTrie:
        """The trie of the tokenizer's catalogue as it is now, on the model's device."""
        if self.tokenizer is None:
            raise ValueError(
                "the model has no catalogue yet; load it from a folder that holds its tokenizer, or call model.set_tokenizer(tokenizer)"
            )
        trie = self.tokenizer.trie
        moved = self._moved_trie
        if moved is None or moved[0] is not trie or moved[1].device != self.device:
            moved = self._moved_trie = (trie, trie.to(self.device))
        return moved[1]

    def prefix_constraint(self) -> PrefixConstrainedLogitsProcessor:
        """The logits processor that keeps transformers' own `generate` loop inside the catalogue."""
        return PrefixConstrainedLogitsProcessor(self.trie, self.config.first_code_id, self.config.constrained_softmax)

    # ---- tensors in, tensors out ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def rank(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_beams: int,
        excluded_items: Tensor | None = None,
        *,
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
            return self.hybrid_candidates(input_ids, attention_mask, num_beams, trie=trie, **filters).ranking(dense_weight, num_beams)
        if new_item_boost is None:
            if new_item_dense or new_item_likelihood != 1:
                raise ValueError("new_item_dense and new_item_likelihood need new_item_boost; give it a number, 0 for no bonus")
            trie = self.trie if trie is None else trie
            with self._evaluating():
                return self._search(trie, *self._encode_history(input_ids, attention_mask), num_beams, diversity, **filters)
        if not math.isfinite(new_item_boost):
            raise ValueError(f"new_item_boost must be a finite number or None, got {new_item_boost}")
        if diversity is not None:
            raise ValueError("max_per_first_code and min_first_codes do not go with new_item_boost, whose lists are merged afterwards")
        found = self.rank_separately(input_ids, attention_mask, num_beams, trie=trie, **filters)
        if new_item_dense or new_item_likelihood != 1:
            found = self.score_new_items(
                found, input_ids, num_beams, dense=new_item_dense, likelihood=new_item_likelihood, trie=trie, **filters
            )
        return merge_rankings(*found, new_item_boost, num_beams)

    @torch.inference_mode()
    def hybrid_candidates(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_beams: int,
        *,
        trie: ItemTrie | None = None,
        excluded_items: Tensor | None = None,
        allowed_items: Tensor | None = None,
        restricted: Tensor | None = None,
    ) -> Candidates:
        """The `num_beams` best items of the beam search and those of the dense tower, every one scored by both.

        Arguments as for `rank`.

        Raises:
            ValueError: a model without a dense tower.
        """
        if self.dense is None:
            raise ValueError("this model has no dense tower, so dense_weight must be 0; train one with finetune.dense")
        trie = self.trie if trie is None else trie
        filters: dict[str, Any] = {"excluded_items": excluded_items, "allowed_items": allowed_items, "restricted": restricted}
        with self._evaluating():
            encoded = self._encode_history(input_ids, attention_mask)
            written, codes = self._search(trie, *encoded, num_beams, None, **filters)
            log_probs = self.dense_log_probs(history_items(input_ids.to(self.device), self.trie, self.config.first_code_id))
            possible = possible_items(log_probs.shape[1], trie, len(log_probs), **filters)
            best, found = log_probs.masked_fill(~possible, -torch.inf).topk(min(num_beams, log_probs.shape[1]), dim=1)
            twice = (found.unsqueeze(2) == written.unsqueeze(1)).any(dim=2)
            found = found.masked_fill((best == -torch.inf) | twice, -1)
            codes = torch.cat([codes, self._score(*encoded, found)], dim=1)
        items = torch.cat([written, found], dim=1)
        dense = log_probs.gather(1, items.clamp(min=0)).masked_fill(items < 0, -torch.inf)
        return Candidates(items, codes, dense)

    def dense_log_probs(self, items: Tensor) -> Tensor:
        """(B, N) fp32 log p of the dense tower over all items of the catalogue, after histories (B, L) of item indices, −1 = padding."""
        assert self.dense is not None
        vectors, longest = self.dense_vectors(), self.dense.settings.max_history
        if items.shape[1] > longest:  # a row's last items, whose end padding may follow
            first = ((items >= 0).sum(dim=1, keepdim=True) - longest).clamp(min=0)
            items = items.gather(1, first + torch.arange(longest, device=items.device))
        states = self.dense.last_states(items, vectors)
        scores = states.float() @ vectors.float().T
        if self.dense.content is None:  # it knows nothing of new items, which come last
            scores = torch.where(self._tower_rows() >= 0, scores, scores.amin(dim=1, keepdim=True) - 1)
        return scores.log_softmax(dim=1)

    def dense_vectors(self) -> Tensor:
        """(N, d) the dense tower's vectors of the catalogue as it is now; new items are known by their content alone."""
        assert self.dense is not None
        assert self.tokenizer is not None
        content = self.tokenizer.item_vectors
        return self.dense.item_vectors(self._tower_rows(), None if content is None else content.to(self.device))

    def _tower_rows(self) -> Tensor:
        """(N,) int64 row of each item in the dense tower, −1 for items that came after its training."""
        assert self.tokenizer is not None
        trie, tokenizer = self.trie, self.tokenizer
        kept = self._dense_rows
        if kept is None or kept[0] is not trie:
            trained = ItemTrie(self.dense_item_codes, self.config.codebook_size)  # codes, because indices change when items go
            leaves = trained.walk(tokenizer.item_codes.to(self.device))
            known = (leaves >= 0) & ~tokenizer.new_items.to(self.device)
            kept = self._dense_rows = (trie, torch.where(known, trained.leaf_items[leaves.clamp(min=0)].long(), -1))
        return kept[1]

    @torch.inference_mode()
    def score_items(self, input_ids: Tensor, attention_mask: Tensor, items: Tensor) -> Tensor:
        """(B, C) fp32 Σ log p of the codes of items (B, C), −inf for −1: what the beam search gives them if it finds them."""
        with self._evaluating():
            return self._score(*self._encode_history(input_ids, attention_mask), items.to(self.device))

    def _score(self, attention_mask: Tensor, states: Tensor, items: Tensor) -> Tensor:
        """`score_items` from encoded histories: the candidates are the beams, and none of them ever leaves."""
        assert self.tokenizer is not None
        trie, config = self.trie, self.config
        codes = self.tokenizer.item_codes.to(self.device)[items.clamp(min=0)]
        next_level = self._level_scorer(attention_mask, states)
        beams = torch.arange(items.shape[1], device=self.device).expand(len(items), -1)
        total = torch.zeros(items.shape, device=self.device)
        nodes = torch.zeros_like(items)
        for level in range(config.num_levels):
            logits = next_level(level, beams, codes[..., level - 1]).float()
            if config.constrained_softmax:
                logits = logits.masked_fill(~trie.allowed(level, nodes), -torch.inf)
                nodes = trie.descend(level, nodes, codes[..., level])
            total = total + logits.log_softmax(dim=-1).gather(-1, codes[..., level : level + 1]).squeeze(-1)
        return total.masked_fill(items < 0, -torch.inf)

    @torch.inference_mode()
    def rank_separately(
        self, input_ids: Tensor, attention_mask: Tensor, num_beams: int, *, trie: ItemTrie | None = None, **filters: Any
    ) -> SeparateRankings:
        """Trained and new items ranked apart, from one pass of the encoder: new items never compete with trained ones for beams.

        Arguments as for `rank`. `merge_rankings(*found, boost)` makes one list of the two, for any boost.
        """
        found = []
        with self._evaluating():
            encoded = self._encode_history(input_ids, attention_mask)
            for part in self._tries_by_age(self.trie if trie is None else trie):
                if part is None:
                    nothing = torch.empty(len(input_ids), 0, device=self.device)
                    found += [nothing.long(), nothing]
                else:
                    found += self._search(part, *encoded, num_beams, None, **filters)
        return SeparateRankings(*found)

    @torch.inference_mode()
    def score_new_items(
        self,
        found: SeparateRankings,
        input_ids: Tensor,
        size: int,
        *,
        dense: float,
        likelihood: float,
        trie: ItemTrie | None = None,
        excluded_items: Tensor | None = None,
        allowed_items: Tensor | None = None,
        restricted: Tensor | None = None,
    ) -> SeparateRankings:
        """The same with the `size` best of *all* new items by likelihood · Σ log p + dense · cosine with the history.

        Σ log p is known of the items that `rank_separately` found; the others had less than the last of these, and get that. With
        `dense` = 0 the found ones keep their order.

        Raises:
            ValueError: weights that are negative or not finite, or a tokenizer without content vectors.
        """
        for name, weight in (("new_item_dense", dense), ("new_item_likelihood", likelihood)):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, got {weight}")
        items, scores = found.new_items, found.new_scores
        if not dense:
            return found._replace(new_scores=torch.where(items >= 0, likelihood * scores, -torch.inf))
        tokenizer = self.tokenizer
        assert tokenizer is not None
        if tokenizer.item_vectors is None:  # also while there is no new item: settings that will fail should fail at once
            raise ValueError("new_item_dense needs content vectors, and this tokenizer holds none; leave it at 0")
        _, part = self._tries_by_age(self.trie if trie is None else trie)
        if part is None:
            return found
        vectors = tokenizer.item_vectors.to(self.device)
        new = part.leaf_items.long()
        cosines = functional.normalize(self._history_vectors(input_ids.to(self.device), vectors), dim=1)
        cosines = cosines @ functional.normalize(vectors[new].float(), dim=1).T
        place = torch.full((len(vectors) + 1,), len(new), device=self.device)  # the last column takes what is no item
        place[new] = torch.arange(len(new), device=self.device)
        least = scores.masked_fill(scores == -torch.inf, torch.inf).amin(1, keepdim=True)
        log_probs = torch.where(least == torch.inf, 0.0, least).expand(-1, len(new) + 1).clone()
        log_probs.scatter_(1, place[torch.where(scores > -torch.inf, items, -1)], scores)
        totals = likelihood * log_probs[:, :-1] + dense * cosines

        possible = possible_items(len(vectors), part, len(totals), excluded_items, allowed_items, restricted)[:, new]
        totals = totals.masked_fill(~possible, -torch.inf)
        best, chosen = totals.topk(min(size, len(new)), dim=1)
        return found._replace(new_items=torch.where(best > -torch.inf, new[chosen], -1), new_scores=best)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout, whatever the mode; the mode is as before afterwards."""
        training = self.training
        if training:
            self.eval()
        try:
            yield
        finally:
            if training:
                self.train()

    def _encode_history(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Attention mask on the model's device, and the encoder's states (B, S, D)."""
        input_ids, attention_mask = input_ids.to(self.device), attention_mask.to(self.device)
        return attention_mask, self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def _search(
        self,
        trie: ItemTrie,
        attention_mask: Tensor,
        states: Tensor,
        num_beams: int,
        diversity: Diversity | None = None,
        *,
        excluded_items: Tensor | None = None,
        allowed_items: Tensor | None = None,
        restricted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Constrained beam search in `trie` from encoded histories."""
        next_level = self._level_scorer(attention_mask, states)
        items = None
        if excluded_items is not None or allowed_items is not None:
            items = ItemFilter(
                trie, *(None if rows is None else rows.to(trie.device) for rows in (excluded_items, allowed_items, restricted))
            )
        whole = self.trie if self.config.constrained_softmax else None
        return constrained_beam_search(next_level, trie, len(states), num_beams, items, diversity, normalised_in=whole)

    def _level_scorer(self, attention_mask: Tensor, states: Tensor) -> Callable[[int, Tensor, Tensor], Tensor]:
        """(level, parents (B, W), codes (B, W) of the level before) → logits (B, W, K) of a level; to be called level by level."""
        config = self.config
        decoder = BeamDecoder(self.decoder, states, self._cross_attention_mask(attention_mask, seen_items=None), config.num_levels)

        def next_level(level: int, parents: Tensor, codes: Tensor) -> Tensor:
            first = config.first_code_id + (level - 1) * config.codebook_size
            tokens = codes + first if level else torch.full_like(codes, config.decoder_start_token_id)
            hidden = decoder.step(tokens, parents)
            if config.scale_decoder_outputs:
                hidden = hidden * config.d_model**-0.5
            return self._level_logits(hidden.unsqueeze(-2), first_level=level).squeeze(-2)

        return next_level

    def _tries_by_age(self, whole: ItemTrie) -> tuple[ItemTrie | None, ItemTrie | None]:
        """Tries of the trained and of the new items of `whole`, None for one without items. Those of the whole catalogue are kept."""
        tokenizer, kept = self.tokenizer, self._split_tries
        assert tokenizer is not None
        if kept is not None and kept[0] is whole:
            return kept[1:]
        items = whole.leaf_items.long()
        new = tokenizer.new_items.to(whole.device)[items]
        trained, added = (whole.subset(items[rows]) if bool(rows.any()) else None for rows in (~new, new))
        if whole is self.trie:
            self._split_tries = (whole, trained, added)
        return trained, added

    def _history_vectors(self, input_ids: Tensor, vectors: Tensor) -> Tensor:
        """(B, V) sum of the unit content vectors of the items in token sequences (B, S), wherever the padding stands."""
        items = history_items(input_ids, self.trie, self.config.first_code_id)
        return (functional.normalize(vectors[items.clamp(min=0)].float(), dim=-1) * (items >= 0).unsqueeze(-1)).sum(1)

    # ---- generate -------------------------------------------------------------------------------------------------------------

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, and with a tokenizer attached inside its catalogue. A plain call is answered by the search of `recommend`:

            model.generate(**tokenizer(histories, padding=True, return_tensors="pt"), num_beams=20, num_return_sequences=10)

        Plain means no arguments but `inputs` or `input_ids`, `attention_mask`, `num_beams`, `num_return_sequences` and
        `return_dict_in_generate`, and a generation configuration that says nothing else either. Every other call (sampling, other scores,
        prompt tuning) is transformers' own loop, with `prefix_constraint()` as its logits processor unless it brings processors of its own.

        Returns:
            (B · num_return_sequences, 1 + M) token ids, best first for each history and padded after the start token where fewer items
            are possible; with `return_dict_in_generate=True` as `sequences`, and Σ log p as `sequences_scores`.
        """
        if self.tokenizer is None:
            return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]
        input_ids = kwargs.get("input_ids", inputs)
        if args or input_ids is None or not self._is_plain(kwargs):
            if len(args) < 2 and kwargs.get("logits_processor") is None and kwargs.get("prefix_allowed_tokens_fn") is None:
                kwargs["logits_processor"] = [self.prefix_constraint()]
            return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]
        given = {name: getattr(self.generation_config, name) if kwargs.get(name) is None else kwargs[name] for name in PLAIN_SETTINGS}
        num_beams, count = given["num_beams"], given["num_return_sequences"] or 1
        if count > num_beams:
            raise ValueError(f"num_return_sequences={count} has to be at most num_beams={num_beams}")
        attention_mask = kwargs.get("attention_mask")
        if attention_mask is None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        items, scores = self.rank(input_ids, attention_mask, num_beams, dense_weight=0)
        missing = count - items.shape[1]
        items = functional.pad(items[:, :count], (0, max(missing, 0)), value=-1).flatten()
        scores = functional.pad(scores[:, :count], (0, max(missing, 0)), value=-torch.inf).flatten()
        tokens = self.tokenizer.item_tokens.to(items.device)[items.clamp(min=0)]
        tokens = tokens.masked_fill(items.unsqueeze(1) < 0, self.config.pad_token_id)
        sequences = functional.pad(tokens, (1, 0), value=self.config.decoder_start_token_id)
        if given["return_dict_in_generate"]:
            return GenerateBeamEncoderDecoderOutput(sequences=sequences, sequences_scores=scores)  # type: ignore[arg-type]
        return sequences

    def _is_plain(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a call of `generate` asks for nothing but the best items."""
        if "prepare_inputs_for_generation" in vars(self):  # peft puts the prompts it tuned in there
            return False
        plain = {"do_sample": False, "max_new_tokens": self.config.num_levels, "length_penalty": 0.0}
        asked = {name: value for name, value in arguments.items() if name not in PLAIN_ARGUMENTS | WITHOUT_EFFECT}
        if any(name not in plain or value != plain[name] for name, value in asked.items()):
            return False
        settings, usual = self.generation_config.to_dict(), self.usual_generation(self.config).to_dict()
        decisive = settings.keys() - PLAIN_ARGUMENTS - WITHOUT_EFFECT - {"transformers_version"}
        return all(settings[name] == usual.get(name) for name in decisive if not name.startswith("_"))

    @staticmethod
    def usual_generation(config: Any) -> GenerationConfig:
        """How `generate` writes one item, for a `CEMGConfig`."""
        settings = GenerationConfig.from_model_config(config)
        settings.update(
            max_new_tokens=config.num_levels,
            max_length=None,
            eos_token_id=None,
            num_beams=DEFAULT_NUM_BEAMS,
            length_penalty=0.0,
            decoder_start_token_id=config.decoder_start_token_id,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
        )
        return settings

    # ---- item ids in, item ids out --------------------------------------------------------------------------------------------

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
            rows = _item_rows(tokenizer, f"{name}_items", given, len(batch), on_unknown)
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


def _item_rows(tokenizer: CEMGTokenizer, name: str, lists: ItemLists, histories: int, on_unknown: str) -> Tensor | Rows:
    """Item indices (n,) that hold for all histories, or those of each."""
    if isinstance(lists, str):
        raise ValueError(f"{name} is a list of item ids, got the string {lists!r}; write [{lists!r}]")
    try:
        if all(isinstance(entry, str) for entry in lists):
            return tokenizer.item_indices(lists, on_unknown)  # type: ignore[arg-type]
        if len(lists) != histories:
            raise ValueError(f"{len(lists)} lists for {histories} histories; give one list (or None) for each, or one list of ids for all")
        return [None if entry is None else tokenizer.item_indices(entry, on_unknown) for entry in lists]
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
