"""`generate`: plain calls are the search of `recommend`, all others stay inside the catalogue."""

from __future__ import annotations

import pytest
import torch
from generator_samples import (
    CAUSAL,
    HISTORIES,
    NUM_LEVELS,
    TOKENIZER,
    generator,
    item_tokenizer,
)
from transformers import GenerationConfig, T5ForConditionalGeneration

from cemg_hf import CEMGForConditionalGeneration


@CAUSAL
@pytest.mark.parametrize("side", ["left", "right"])
def test_plain_generate_is_the_constrained_search(item_causal, side, monkeypatch, tmp_path):
    model = generator(TOKENIZER, item_causal=item_causal)
    inputs = TOKENIZER(HISTORIES, padding=True, padding_side=side, return_tensors="pt")
    settings = {"num_beams": 7, "num_return_sequences": 5, "return_dict_in_generate": True}
    slow = model.generate(**inputs, **settings, output_scores=True, logits_processor=[model.prefix_constraint()])
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(T5ForConditionalGeneration, "generate", None)  # transformers' loop is not asked
    for same in (model, CEMGForConditionalGeneration.from_pretrained(tmp_path)):
        fast = same.generate(**inputs, **settings)
        assert torch.equal(fast.sequences, slow.sequences)
        assert torch.allclose(fast.sequences_scores, slow.sequences_scores, atol=1e-5)
    neutral = {"do_sample": False, "max_new_tokens": NUM_LEVELS, "use_cache": True, "early_stopping": True}
    assert torch.equal(model.generate(inputs["input_ids"], num_beams=7, num_return_sequences=5, **neutral), slow.sequences)
    assert model.generate(**inputs).shape == (len(HISTORIES), 1 + NUM_LEVELS)  # the generation config's beams
    model.generation_config.return_dict_in_generate = True
    assert torch.equal(model.generate(**inputs, num_beams=7, num_return_sequences=5).sequences, slow.sequences)


def test_plain_generate_pads_what_the_catalogue_has_not():
    tokenizer = item_tokenizer(5)
    out = generator(tokenizer).generate(**tokenizer([["item1"]], return_tensors="pt"), num_beams=8, num_return_sequences=8)
    assert sorted(tokenizer.decode_items(out.flatten())) == tokenizer.item_ids
    assert (out[5:, 1:] == tokenizer.pad_token_id).all()
    with pytest.raises(ValueError, match="num_return_sequences=9"):
        generator(tokenizer).generate(**tokenizer([["item1"]], return_tensors="pt"), num_beams=8, num_return_sequences=9)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "num_beams": 1},
        {"length_penalty": 1.0},
        {"output_scores": True, "return_dict_in_generate": True},
        {"generation_config": GenerationConfig(max_new_tokens=NUM_LEVELS, num_beams=4, eos_token_id=None, pad_token_id=0)},
    ],
)
def test_every_other_call_of_generate_is_transformers_own_within_the_catalogue(settings):
    model = generator(TOKENIZER)
    inputs = TOKENIZER(HISTORIES, padding=True, return_tensors="pt")
    assert not model._is_plain(settings)
    out = model.generate(**inputs, **settings)
    assert len(TOKENIZER.decode_items(out if isinstance(out, torch.Tensor) else out.sequences)) == len(HISTORIES)


def test_a_generation_config_of_ones_own_and_processors_of_ones_own_are_heard():
    model = generator(TOKENIZER)
    inputs = TOKENIZER([["item1"]], return_tensors="pt")
    first = model.generate(**inputs)[0, 1]
    model.generation_config.suppress_tokens = [int(first)]
    assert model.generate(**inputs)[0, 1] != first
    model.generation_config.max_new_tokens = 2
    assert model.generate(**inputs).shape[1] == 3
    free = [lambda input_ids, scores: scores.scatter(1, torch.ones_like(input_ids[:, :1]), 1e9)]
    assert (model.generate(**inputs, logits_processor=free)[0, 1:] == 1).all()
    model.tokenizer = None
    assert model.generate(**inputs, num_beams=2).shape[0] == 1
