"""transformers' `generate`, inside the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput

from .recommendation_cemg import DEFAULT_NUM_BEAMS, RecommendationMixin

PLAIN_SETTINGS = ("num_beams", "num_return_sequences", "return_dict_in_generate")
PLAIN_ARGUMENTS = {"input_ids", "attention_mask", *PLAIN_SETTINGS}
WITHOUT_EFFECT = {"use_cache", "early_stopping"}  # on a search of M steps that scores all beams alike


class GenerateMixin(RecommendationMixin):
    """`generate` whose plain calls are answered by the search of `recommend`, and whose other calls cannot leave the catalogue."""

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
        tokens = self._on_device("item_tokens")[items.clamp(min=0)]
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
