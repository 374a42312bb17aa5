"""The CEMG generator: a T5 that reads a history of item codes and writes the codes of the next item."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.t5.modeling_t5 import T5Stack
from transformers.utils import cached_file

from .configuration_cemg import CEMGConfig
from .dense_cemg import DenseSettings, DenseTower
from .generate_cemg import GenerateMixin
from .hybrid_cemg import code_distributions
from .objective_cemg import IGNORED, Objective, permissible_codes
from .pipeline_cemg import TASK, NextItemRecommendationPipeline  # an import of this file, so that it goes wherever this one goes
from .tokenization_cemg import CEMGTokenizer

TOKEN_MATRICES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
REMOTE_CODE = {
    "AutoConfig": "configuration_cemg.CEMGConfig",
    "AutoModel": "modeling_cemg.CEMGForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_cemg.CEMGForConditionalGeneration",
}
CUSTOM_PIPELINES = {TASK: {"impl": f"pipeline_cemg.{NextItemRecommendationPipeline.__name__}", "pt": ("AutoModelForSeq2SeqLM",)}}


def items_before(attention_mask: Tensor, tokens_per_item: int) -> Tensor:
    """Number of the item each token belongs to, counted from 1; `<s>` belongs to item 0, wherever the padding stands.

    Args: attention_mask (B, S), 1 = token. Returns (B, S) int64.
    """
    position = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)  # padding on the left sees `<s>`: no row may see nothing
    return (position + tokens_per_item - 1).div(tokens_per_item, rounding_mode="floor")


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """(…, Q, S) bool → float mask (…, 1, Q, S) that T5 adds to its attention scores."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min).unsqueeze(-3)


class CEMGEncoder(T5Stack):
    """T5's encoder, item-causal when the configuration says so, whoever calls it (training, `recommend`, `generate`)."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        given = input_ids if input_ids is not None else inputs_embeds
        if attention_mask is None and given is not None:
            attention_mask = given.new_ones(given.shape[:2], dtype=torch.long)
        assert attention_mask is not None, "an encoder needs input_ids or inputs_embeds"
        mask = self._self_attention_mask(attention_mask)
        return super().forward(input_ids=input_ids, attention_mask=mask, inputs_embeds=inputs_embeds, **kwargs)

    def _self_attention_mask(self, attention_mask: Tensor) -> Tensor:
        """(B, S), 1 = token → what T5 takes as its mask."""
        if not self.config.item_causal:
            return attention_mask
        return additive(self._visible(attention_mask), self.final_layer_norm.weight.dtype)

    def _visible(self, attention_mask: Tensor) -> Tensor:
        """(B, S or 1, S) bool, which tokens each token attends to."""
        given = attention_mask.bool().unsqueeze(1)
        if not self.config.item_causal:
            return given
        item = items_before(attention_mask, self.config.tokens_per_item)
        return (item.unsqueeze(1) <= item.unsqueeze(2)) & given


class RecencyBias(nn.Embedding):
    """Bias of the decoder's attention to an item by its age, per head: row 0 is the latest item, the last row is `<s>`.

    An item-causal encoder cannot tell a token how many items follow, and T5's cross-attention knows no positions, so without it the
    decoder could not find the latest item. It starts at zero, which is T5.
    """


class CEMGForConditionalGeneration(GenerateMixin, T5ForConditionalGeneration):
    """T5 over item codes with `recommend`.

    Loading a folder (or Hub repository) that holds a tokenizer too attaches it, so that `recommend` works at once:

        >>> model = AutoModel.from_pretrained("org/cemg-beauty")
        >>> model.recommend(["B004756YJA", "B004ZT0SSG"], k=10)
    """

    config_class = CEMGConfig
    item_tokenizer_class: type[CEMGTokenizer] = CEMGTokenizer
    carries_code = True
    """Whether a saved folder names this code, which then goes with it and loads it without the package."""

    def __init__(self, config: CEMGConfig) -> None:
        if not config.tie_lm_head:  # before T5 ties what this names
            self._tied_weights_keys = {key: source for key, source in type(self)._tied_weights_keys.items() if key != "lm_head.weight"}
        super().__init__(config)
        # T5's own stack under the subclass's forward. A new CEMGEncoder would start from other weights: transformers skips the
        # initialisation of T5's attention and feed-forward modules in stacks that are defined outside of it.
        self.encoder.__class__ = CEMGEncoder
        if config.item_causal:
            self.recency_bias = RecencyBias(config.max_history + 2, config.num_heads)
            nn.init.zeros_(self.recency_bias.weight)
        self.dense: DenseTower | None = None
        if config.dense is not None:
            settings = dict(config.dense)
            self.dense = DenseTower(settings.pop("num_items"), DenseSettings(**settings))
            known = len(self.dense.item_embedding.weight)
            self.register_buffer("dense_item_codes", torch.zeros(known, config.num_levels, dtype=torch.int32))
        self.tokenizer: CEMGTokenizer | None = None
        self.objective = Objective()  # of training alone; what rankings depend on is in the configuration
        self.generation_config = self.usual_generation(config)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RecencyBias):
            init.zeros_(module.weight)

    # ---- loading and saving ---------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in transformers; a tokenizer in the same place is loaded and attached.

        Raises:
            ValueError: the tokenizer's catalogue is not the one the model was trained on.
            OSError: the Hub gave a model and not its tokenizer.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        where = {
            key: kwargs[key]
            for key in ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
            if key in kwargs
        }
        catalogue = cached_file(
            pretrained_model_name_or_path,
            cls.item_tokenizer_class.vocab_files_names["item_ids_file"],
            _raise_exceptions_for_missing_entries=False,
            **where,
        )
        if catalogue is not None:
            model.set_tokenizer(cls.item_tokenizer_class.from_pretrained(pretrained_model_name_or_path, **where))
        elif model.config.catalogue_fingerprint is not None and not Path(pretrained_model_name_or_path).is_dir():
            # A connection that breaks between two files would otherwise leave a model that cannot recommend.
            raise OSError(f"{pretrained_model_name_or_path}: the Hub gave the model and not its tokenizer; load it again")
        return loaded

    @classmethod
    def from_t5(cls, backbone: T5ForConditionalGeneration, tokenizer: CEMGTokenizer, **settings: Any) -> CEMGForConditionalGeneration:
        """A generator that continues from any T5: its weights, with one embedding row added per code token.

        The new rows are drawn with the mean and the standard deviation of the T5's own in each dimension, so that codes differ from
        each other from the start and are as large as other tokens. A head that is a matrix of its own stays one. The backbone is
        left as it is.

        Args:
            backbone: the pretrained T5.
            tokenizer: made with `base_vocab_size=backbone.config.vocab_size`, so that code tokens follow the T5's own.
            settings: further `CEMGConfig` fields, such as `item_causal`.
        """
        if tokenizer.base_vocab_size != backbone.config.vocab_size:
            raise ValueError(
                f"the tokenizer leaves room for {tokenizer.base_vocab_size} backbone tokens, the T5 has {backbone.config.vocab_size}; "
                f"make the tokenizer with base_vocab_size={backbone.config.vocab_size}"
            )
        other = ("vocab_size", "model_type", "architectures", "bos_token_id", "dtype")
        network = {key: value for key, value in backbone.config.to_dict().items() if key not in other}
        weights = backbone.state_dict()
        tied = torch.equal(weights["shared.weight"], weights["lm_head.weight"])
        model = cls(cls.config_class(**{**network, **tokenizer.geometry(), "tie_lm_head": tied, **settings}))
        noise = torch.randn(model.config.vocab_size - tokenizer.base_vocab_size, model.config.d_model)
        for name in TOKEN_MATRICES:
            std, mean = torch.std_mean(weights[name].float().cpu(), dim=0)
            weights[name] = torch.cat([weights[name].cpu(), (mean + std * noise).to(weights[name].dtype)])
        model.load_state_dict({**model.state_dict(), **weights})
        model.set_tokenizer(tokenizer)
        return model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in transformers; the attached tokenizer and the code that loads both without this package go with it."""
        if self.carries_code:
            self.config.auto_map = dict(REMOTE_CODE)
            self.config.custom_pipelines = {task: dict(described) for task, described in CUSTOM_PIPELINES.items()}
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    def set_tokenizer(self, tokenizer: CEMGTokenizer) -> None:
        """Attach the catalogue that `recommend` writes from. What `tokenizer.add_items` and `remove_items` change later holds at once.

        Raises:
            ValueError: another geometry, or a tokenizer that does not come from the catalogue the model was trained on.
        """
        for name, value in tokenizer.geometry().items():
            mine = getattr(self.config, name)
            if mine != value:
                raise ValueError(f"tokenizer and model do not belong together: {name} is {value} in the tokenizer, {mine} in the model")
        if self.config.catalogue_fingerprint is None:
            self.config.catalogue_fingerprint = tokenizer.trained_fingerprint
        elif self.config.catalogue_fingerprint != tokenizer.trained_fingerprint:
            raise ValueError(
                "tokenizer and model do not belong together: "
                f"the model was trained on catalogue {self.config.catalogue_fingerprint[:12]}…, "
                f"the tokenizer comes from catalogue {tokenizer.trained_fingerprint[:12]}…; load the tokenizer saved with this model"
            )
        self.tokenizer = tokenizer

    @torch.no_grad()
    def set_dense(self, tower: DenseTower, dense_weight: float | None = None) -> None:
        """Put a trained tower beside the generator; its items are those of the attached tokenizer, row by row.

        Raises:
            ValueError: no tokenizer, or one of another number of items, or a tower that reads fewer items than the generator.
        """
        if self.tokenizer is None or len(self.tokenizer.item_ids) != len(tower.item_embedding.weight):
            raise ValueError(
                f"the tower knows {len(tower.item_embedding.weight)} items, the tokenizer "
                f"{0 if self.tokenizer is None else len(self.tokenizer.item_ids)}; attach the tokenizer it was trained with"
            )
        if tower.settings.max_history < self.config.max_history:
            raise ValueError(
                f"the tower reads {tower.settings.max_history} items of a history, the generator {self.config.max_history}; "
                "train the tower with a max_history of at least that"
            )
        self.dense = tower.to(self.device).train(self.training)
        self._dense_rows = None
        self.register_buffer("dense_item_codes", self.tokenizer.item_codes.to(self.device, torch.int32))
        self.config.dense = {"num_items": len(self.tokenizer.item_ids), **asdict(tower.settings)}
        if dense_weight is not None:
            self.config.dense_weight = dense_weight

    # ---- training ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        teacher: Tensor | None = None,
        seen_items: Tensor | None = None,
        items: Tensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """T5's forward; with `labels`, the loss of eq. 5 over the K codes of each level, as `self.objective` shapes it.

        With `config.constrained_softmax` the loss is over the codes that continue the label's prefix in the catalogue, of which the
        labels then have to be items.

        Args:
            input_ids: (B, S) histories, `<s>` and the tokens of each item.
            attention_mask: (B, S), 1 = token.
            labels: (B, M) the item after the whole history, or, for an item-causal model, (B, T·M): T targets one after the
                other, of which target t (from 0) sees the first t items of the history. −100 is ignored.
            num_items_in_batch: divide the summed loss by this number of label tokens instead of by the batch's own.
            teacher: (B, T, M, K) distributions that another model gives the codes of each label position, rows summing to 1; they weigh
                `objective.teacher_weight`.
            items: (B, T) item indices behind `labels`, −1 = padding at the end, of which target t follows the first t: the dense tower
                reads them and is the teacher then.
            seen_items: (B, T) how many items of the history each target sees, for an item-causal model whose histories lack items that
                are targets (item dropout); None: target t sees t.

        Returns:
            Without labels T5's output over the whole vocabulary; with labels `loss` and `logits` (B, T·M, K), where the logits at
            a position are over the codes of its level.
        """
        if labels is None:
            if any(given is not None for given in (teacher, seen_items, items)):
                raise ValueError("teacher, seen_items and items speak about the positions of labels; give labels too")
            return self._forward_without_labels(input_ids, attention_mask, **kwargs)
        if input_ids is None:
            raise ValueError("labels need input_ids")
        levels = self.config.num_levels
        if labels.shape[1] % levels:
            raise ValueError(f"labels must hold whole items of {levels} codes, got {labels.shape[1]} positions")
        if (labels.shape[1] > levels or seen_items is not None) and not self.config.item_causal:
            raise ValueError("several targets per history need an item-causal model; give a bidirectional one a sample per prefix")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        blocks = labels.view(labels.shape[0], -1, levels)
        level_offsets = self.config.first_code_id + self.config.codebook_size * torch.arange(levels, device=labels.device)
        ignored = blocks == IGNORED
        tokens = blocks.masked_fill(ignored, self.config.pad_token_id or 0)
        start = torch.full_like(tokens[..., :1], self.config.decoder_start_token_id)
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        prefixes = torch.cat([start, tokens[..., :-1]], dim=-1)
        if seen_items is None and blocks.shape[1] > 1:
            seen_items = torch.arange(blocks.shape[1], device=labels.device).unsqueeze(0)
        hidden = self._decode_blocks(prefixes, states, attention_mask, seen_items)
        logits = self._level_logits(hidden, first_level=0)
        codes = (blocks - level_offsets).masked_fill(ignored, IGNORED)
        if items is not None and self.objective.teacher_weight:
            teacher = self._dense_teacher(items, codes)
        permissible = permissible_codes(self.trie, codes) if self.config.constrained_softmax else None
        loss = self.objective.loss(logits, codes, permissible, teacher)
        loss = loss / ((~ignored).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        return Seq2SeqLMOutput(loss=loss, logits=logits.flatten(1, 2), encoder_last_hidden_state=states)

    @torch.no_grad()
    def _dense_teacher(self, items: Tensor, codes: Tensor) -> Tensor:
        """(B, T, M, K) what the dense tower's softmax over items says about the codes (B, T, M) of targets `items` (B, T)."""
        if self.dense is None:
            raise ValueError("a model without a dense tower has no teacher in itself; give `teacher`, or set objective.teacher_weight to 0")
        self.dense.eval()  # it is trained beforehand, and a teacher does not guess
        vectors = self.dense_vectors()
        # A window's last item is a target only, as in the tower's own training: positions count back from the last item that is read.
        read = torch.arange(items.shape[1], device=items.device) < (items >= 0).sum(dim=1, keepdim=True) - 1
        states = self.dense(items.masked_fill(~read, -1)[:, :-1], vectors)
        chosen = codes[..., 0] != IGNORED
        scores = states[chosen] @ vectors[self.trie.leaf_items.long()].T / self.objective.teacher_temperature
        if self.objective.teacher_excludes_history:
            rows, targets = chosen.nonzero(as_tuple=True)
            earlier = torch.arange(items.shape[1], device=items.device) < targets.unsqueeze(1)
            history = items[rows].masked_fill(~earlier | (items[rows] == items[rows, targets].unsqueeze(1)), -1)
            hidden = torch.zeros(len(scores), scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
            hidden.scatter_(1, self.trie.leaves_of(history), True)  # the last column takes what is no item
            scores = scores.masked_fill(hidden[:, :-1], -torch.inf)
        teacher = torch.zeros(*codes.shape, self.config.codebook_size, device=codes.device)
        teacher[chosen] = code_distributions(scores, codes[chosen], self.trie)
        return teacher

    def _forward_without_labels(self, input_ids: Tensor | None, attention_mask: Tensor | None, **kwargs: Any) -> Seq2SeqLMOutput:
        """T5's forward, as `generate` calls it, with the cross-attention of `_decode_blocks`."""
        if kwargs.get("encoder_outputs") is None:
            kwargs["encoder_outputs"] = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=kwargs.pop("inputs_embeds", None)
            )
        states = kwargs["encoder_outputs"][0]
        if attention_mask is None:
            attention_mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        return super().forward(attention_mask=self._cross_attention_mask(attention_mask, seen_items=None), **kwargs)

    def _cross_attention_mask(self, attention_mask: Tensor, seen_items: Tensor | None) -> Tensor:
        """Float mask the decoder adds to its attention to the history: what a target may see, and the bias by age.

        Args:
            attention_mask: (B, S), 1 = token.
            seen_items: (B or 1, T) how many items each of T targets sees. None: one target that sees the whole history.

        Returns: (B, heads or 1, T or 1, S).
        """
        dtype = self.decoder.final_layer_norm.weight.dtype
        item = items_before(attention_mask, self.config.tokens_per_item).unsqueeze(1)
        latest = item.amax(dim=-1, keepdim=True) if seen_items is None else seen_items.unsqueeze(-1)
        seen = attention_mask.bool().unsqueeze(1) & (item <= latest)
        if not self.config.item_causal:
            return additive(seen, dtype)
        age = (latest - item).clamp(0, self.config.max_history).masked_fill(item <= 0, self.config.max_history + 1)
        return self.recency_bias(age).to(dtype).movedim(-1, 1).masked_fill(~seen.unsqueeze(1), torch.finfo(dtype).min)

    def _decode_blocks(self, prefixes: Tensor, states: Tensor, attention_mask: Tensor, seen_items: Tensor | None) -> Tensor:
        """Decoder over T independent blocks per user in one pass, sharing the user's encoder states.

        The blocks lie one after the other in one sequence. Each is causal in itself and sees no other block; T5's relative
        positions make a block's place in the sequence immaterial.

        Args:
            prefixes: (B, T, m) decoder tokens of each block, the start token first.
            states: (B, S, D) encoder output.
            attention_mask: (B, S).
            seen_items: (B or 1, T) how many items each block sees. None: every block sees the whole history.

        Returns: (B, T, m, D) hidden states, scaled for the head.
        """
        batch, count, length = prefixes.shape
        dtype = self.decoder.final_layer_norm.weight.dtype
        token = torch.arange(count * length, device=prefixes.device)
        block = token.div(length, rounding_mode="floor")
        own = (block.unsqueeze(0) == block.unsqueeze(1)) & (token.unsqueeze(0) <= token.unsqueeze(1))
        cross = self._cross_attention_mask(attention_mask, seen_items)
        hidden = self.decoder(
            input_ids=prefixes.flatten(1),
            attention_mask=additive(own.unsqueeze(0), dtype),
            encoder_hidden_states=states,
            encoder_attention_mask=cross.repeat_interleave(count * length if seen_items is None else length, dim=2),
            use_cache=False,
        ).last_hidden_state
        if self.config.scale_decoder_outputs:
            hidden = hidden * self.model_dim**-0.5
        return hidden.view(batch, count, length, -1)

    def _level_logits(self, hidden: Tensor, first_level: int) -> Tensor:
        """(..., m, D) hidden states of levels first_level … first_level + m − 1 → (..., m, K) logits over each level's codes."""
        size, count = self.config.codebook_size, hidden.shape[-2]
        first = self.config.first_code_id + first_level * size
        # The weight, not the head's forward: K rows per level instead of the whole vocabulary. peft's wrapper for trainable token
        # rows answers with the rows as they are trained.
        rows = self.lm_head.weight[first : first + count * size]
        if count == 1:  # in every step of a search, where what einsum prepares takes longer than the product
            return nn.functional.linear(hidden, rows)
        codes = rows.view(count, size, -1)
        return torch.einsum("...md,mkd->...mk", hidden, codes)
