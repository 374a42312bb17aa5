"""The search: scores in single precision, without dropout, one graph, and a catalogue that is moved to the device once."""

from __future__ import annotations

import pytest
import torch
from generator_samples import (
    CAUSAL,
    HISTORIES,
    TOKENIZER,
    generator,
    item_tokenizer,
    plain_scores,
    rqvae_parts,
)


def test_log_probabilities_of_a_bfloat16_model_are_taken_in_single_precision():
    tokenizer = item_tokenizer(8, num_levels=1)
    scores = generator(tokenizer).to(torch.bfloat16).rank(torch.tensor([[2]]), torch.tensor([[1]]), 8)[1]
    assert (scores != scores.bfloat16().float()).sum() >= 6
    assert float(scores.exp().sum()) == pytest.approx(1.0, abs=1e-6)


@CAUSAL
@pytest.mark.parametrize("side", ["left", "right"])
def test_given_items_are_scored_as_the_exhaustive_search_scores_them(item_causal, side):
    model = generator(TOKENIZER, item_causal=item_causal, dropout_rate=0.5).train()
    inputs = TOKENIZER(HISTORIES, padding=True, padding_side=side, return_tensors="pt")
    items = torch.stack([torch.randperm(60, generator=torch.Generator().manual_seed(row))[:7] for row in range(len(HISTORIES))])
    items[1, 2:], items[2, 0], items[3, 1] = -1, -1, items[3, 0]  # some rows ask for fewer, and one asks twice
    scores = model.score_items(**inputs, items=items)
    assert model.training
    assert scores.dtype == torch.float32
    assert torch.equal(scores == -torch.inf, items < 0)
    for row, history in enumerate(HISTORIES):
        kept = items[row] >= 0
        torch.testing.assert_close(scores[row, kept], plain_scores(model.eval(), history)[items[row, kept]], atol=1e-4, rtol=0)
    assert model.score_items(**inputs, items=items[:, :0]).shape == (len(HISTORIES), 0)


def test_ranking_in_training_mode_is_ranking_without_dropout():
    model = generator(TOKENIZER, dropout_rate=0.5)
    inputs = TOKENIZER(HISTORIES, padding=True, return_tensors="pt")
    expected, codes = model.rank(**inputs, num_beams=9), model.generate(**inputs, num_beams=9)
    model.train()
    for found, value in zip(model.rank(**inputs, num_beams=9), expected, strict=True):
        assert torch.equal(found, value)
    assert torch.equal(model.generate(**inputs, num_beams=9), codes)
    assert all(torch.equal(a, b) for a, b in zip(model.rank_separately(**inputs, num_beams=9)[:2], expected, strict=True))
    assert model.training


def test_the_search_is_one_graph_that_reads_nothing_back():
    """`fullgraph` fails on everything that would make the host wait for the device."""
    model = generator(TOKENIZER)
    inputs = TOKENIZER(HISTORIES, padding=True, return_tensors="pt")
    excluded = torch.tensor([[1, 2], [-1, -1], [5, -1], [10, 11]])
    search = torch.compile(model._search, fullgraph=True, backend="eager")
    with torch.inference_mode():
        encoded = model._encode_history(**inputs)
        items, scores = search(model.trie, *encoded, 6, excluded_items=excluded)
    expected = model.rank(**inputs, num_beams=6, excluded_items=excluded)
    assert torch.equal(items, expected[0])
    assert torch.allclose(scores, expected[1], atol=1e-5)


def test_what_is_moved_to_the_device_is_moved_once_per_catalogue_and_may_be_trained_with():
    tokenizer = item_tokenizer(**rqvae_parts(), item_vectors=torch.randn(60, 2))
    model = generator(tokenizer).to("meta")
    with torch.inference_mode():
        first = {name: model._on_device(name) for name in ("item_codes", "item_vectors", "new_items")}
        trie = model.trie
    for name, tensor in first.items():
        assert tensor.device.type == "meta"
        assert tensor.shape == getattr(tokenizer, name).shape
        assert not tensor.is_inference()
        assert model._on_device(name) is tensor
    assert not trie.leaf_items.is_inference()
    tokenizer.remove_items(["item3"])
    assert len(model._on_device("item_vectors")) == 59
    assert model.to_empty(device="cpu")._on_device("item_vectors") is tokenizer.item_vectors  # follows the model
