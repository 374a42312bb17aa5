from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from cemg_hf.errors import CEMGError
from cemg_hf.models.cemg import CEMGTokenizer
from cemg_hf.models.cemg.modeling_rqvae import CEMGRQVAE, CEMGRQVAEConfig
from cemg_hf.training.new_items import add_encoded_items


def tokenizer() -> CEMGTokenizer:
    torch.manual_seed(0)
    rqvae = CEMGRQVAE(CEMGRQVAEConfig(modality_dims={"text": 4}, dimension=8, num_levels=2, codebook_size=8, hidden_dims=[8], latent_dim=4))
    projection = {"mean": torch.zeros(6), "components": torch.eye(4, 6), "scale": torch.ones(())}
    codes = torch.tensor([[0, 0], [0, 1], [3, 3]])
    return CEMGTokenizer(
        item_ids=["a", "b", "c"],
        item_codes=codes,
        num_levels=2,
        codebook_size=8,
        rqvae=rqvae.eval(),
        encoders={"text": {"name": "made-up"}},
        projections={"text": projection},
    )


def test_items_without_readable_content_are_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    grown = tokenizer()
    vectors = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    with caplog.at_level(logging.WARNING):
        added = add_encoded_items(grown, ["x", "y", "z"], {"text": (vectors, np.array([True, False, True]))}, "masked")
    assert grown.item_ids == ["a", "b", "c", "x", "z"]
    assert len(added.item_codes) == 2
    assert "1 new items have no content" in caplog.text
    assert "(first: y)" in caplog.text
    # A modality that the codes are not made of changes nothing.
    other = tokenizer()
    more = {"text": (vectors, np.array([True, False, True])), "image": (np.ones((3, 5), dtype=np.float32), np.ones(3, dtype=bool))}
    add_encoded_items(other, ["x", "y", "z"], more, "masked")
    assert torch.equal(other.item_codes, grown.item_codes)


def test_nothing_to_code_by_and_known_ids_are_errors() -> None:
    grown = tokenizer()
    vectors = np.zeros((1, 6), dtype=np.float32)
    with pytest.raises(CEMGError, match="no new item has text that can be read"):
        add_encoded_items(grown, ["x"], {"text": (vectors, np.zeros(1, dtype=bool))}, "masked")
    with pytest.raises(CEMGError, match="no new item has text"):
        add_encoded_items(grown, ["x"], {}, "masked")
    with pytest.raises(CEMGError, match="the new items cannot be added: item id 'a'"):
        add_encoded_items(grown, ["a"], {"text": (vectors, np.ones(1, dtype=bool))}, "masked")
    assert grown.item_ids == ["a", "b", "c"]
    closed = CEMGTokenizer(item_ids=["a"], item_codes=torch.tensor([[0, 0]]), num_levels=2, codebook_size=8)
    with pytest.raises(CEMGError, match="cannot be added: this tokenizer has no RQ-VAE"):
        add_encoded_items(closed, ["x"], {"text": (vectors, np.ones(1, dtype=bool))}, "masked")
