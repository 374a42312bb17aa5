"""SASRec is CEMG's dense tower by itself, with the content vectors it was trained on."""

from __future__ import annotations

import torch

from cemg_hf.models.sasrec import SASRecConfig, SASRecForNextItem

ITEMS = torch.tensor([[3, 1, 4], [1, -1, -1]])


def network(**settings) -> SASRecForNextItem:
    torch.manual_seed(0)
    return SASRecForNextItem(SASRecConfig(num_items=12, hidden_size=8, max_history=5, **settings)).eval()


def test_states_and_vectors_are_those_of_the_tower() -> None:
    model = network(layer="ligr")
    vectors = model.tower.item_vectors()
    assert model.content_vectors is None
    assert torch.equal(model.item_vectors(), vectors)
    assert torch.equal(model(ITEMS).states, model.tower(ITEMS, vectors))
    assert torch.equal(model.scores(ITEMS), model.tower.last_states(ITEMS, vectors) @ vectors.T)


def test_content_vectors_travel_with_the_model(tmp_path) -> None:
    model = network(content_dim=3, id_dropout=0.2)
    assert not model.content_vectors.any()
    before = model.scores(ITEMS)
    model.content_vectors = torch.randn(12, 3)
    assert not torch.equal(model.scores(ITEMS), before)
    torch.testing.assert_close(model.item_vectors(), model.tower.item_vectors(content=model.content_vectors))
    model.save_pretrained(tmp_path)
    loaded = SASRecForNextItem.from_pretrained(tmp_path)
    assert torch.equal(loaded.content_vectors, model.content_vectors)
    assert loaded.tower.settings == model.tower.settings
    torch.testing.assert_close(loaded.scores(ITEMS), model.scores(ITEMS), atol=1e-5, rtol=0)
    assert "content_vectors" not in dict(model.named_parameters())  # given, not learned


def test_vectors_of_a_catalogue_with_content_are_projected_once() -> None:
    model = network(content_dim=3)
    model.content_vectors = torch.randn(12, 3)
    calls = []
    handle = model.tower.content.register_forward_hook(lambda *_: calls.append(1))
    expected = model.scores(ITEMS)
    assert torch.equal(model.scores(ITEMS), expected)
    assert len(calls) == 1
    model.content_vectors.mul_(2)
    assert not torch.equal(model.scores(ITEMS), expected)
    assert len(calls) == 2
    handle.remove()
    assert torch.equal(model.train().scores(ITEMS), model.eval().scores(ITEMS))
