"""The configuration: derived vocabulary, refusals, and what survives saving."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, T5Config

from cemg_hf import CEMGConfig


def test_vocabulary_follows_from_the_geometry():
    config = CEMGConfig(num_levels=3, codebook_size=16, base_vocab_size=100)
    assert (config.bos_token_id, config.first_code_id, config.vocab_size) == (100, 101, 101 + 48)


@pytest.mark.parametrize(
    "settings",
    [{"num_levels": 0}, {"codebook_size": 1}, {"max_history": 0}, {"vocab_size": 5}],
    ids=lambda settings: next(iter(settings)),
)
def test_impossible_geometry_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CEMGConfig(**settings)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_dense_weight_outside_0_to_1_is_refused(weight):
    with pytest.raises(ValueError, match="dense_weight must lie in 0 … 1"):
        CEMGConfig(dense_weight=weight)


@pytest.mark.parametrize("scaled", [True, False])
def test_saved_and_loaded_config_is_the_same(tmp_path, scaled):
    config = CEMGConfig(
        num_levels=2,
        codebook_size=4,
        item_causal=False,
        max_history=7,
        tie_lm_head=scaled,
        catalogue_fingerprint="ab",
        feed_forward_proj="gated-gelu",
        scale_decoder_outputs=scaled,
        constrained_softmax=scaled,
        dense={"num_items": 9, "layer": "ligr", "dropout": 0.5} if scaled else None,
        dense_weight=0.25 if scaled else 0.0,
    )
    config.save_pretrained(tmp_path)
    for loaded in (CEMGConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is CEMGConfig
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
        assert loaded.scale_decoder_outputs is scaled


def test_unscaled_outputs_of_t5_v1_1_carry_over():
    backbone = T5Config(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    assert backbone.scale_decoder_outputs is False
    described = {key: value for key, value in backbone.to_dict().items() if key not in ("vocab_size", "model_type")}
    assert CEMGConfig(**described).scale_decoder_outputs is False
