from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from mmgrec_samples import ITEMS, USERS, WIDTH, exhaustive, recommender
from safetensors import safe_open

from cemg_hf.models.mmgrec import MMGRecForRecommendation, MMGRecModelConfig
from cemg_hf.models.mmgrec.modeling_mmgrec import RelationAwareAttention

HISTORIES = torch.tensor([[3, 7, 1, 20], [5, 5, -1, -1], [-1, -1, -1, -1]])
WHO = torch.tensor([0, 4, -1])
ENCODERS = pytest.mark.parametrize("item_causal", [True, False], ids=["item-causal", "bidirectional"])


def test_relation_aware_attention_equals_its_equations_pair_by_pair() -> None:
    torch.manual_seed(0)
    heads, width, length = 3, 8, 5
    attention = RelationAwareAttention(width, heads, dropout=0.1).eval()
    items, user = torch.randn(2, length, width), torch.randn(2, width)
    allowed = (torch.rand(2, length, length) < 0.6) | torch.eye(length, dtype=torch.bool)
    found = attention(items, user, allowed)
    for row in range(2):
        scales = attention.user_scales(user[row])
        shared = (attention.user_query, attention.user_key, attention.user_value)
        w_user = [scale * layer.weight.T for scale, layer in zip(scales, shared, strict=True)]  # eq. 18
        outcomes = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            w_query, w_key, w_value = (layer.weight[part].T for layer in (attention.query, attention.key, attention.value))
            for i in range(length):
                seen = [j for j in range(length) if allowed[row, i, j]]
                e_i, e_j = items[row, i], items[row, seen]
                logits = (e_j @ w_key) @ (e_i @ w_query) + (e_j @ w_user[1]) @ (e_i @ w_user[0])  # eq. 17
                weights = (logits / math.sqrt(width)).softmax(0)  # eq. 16
                outcomes.append(weights @ (e_j @ w_value + e_j @ w_user[2]))  # eq. 14, 15
        mixed = torch.stack(outcomes).view(heads, length, width).transpose(0, 1).flatten(1)
        torch.testing.assert_close(found[row], attention.output(mixed), atol=1e-5, rtol=1e-4)


@ENCODERS
def test_beam_search_equals_exhaustive_search(item_causal: bool) -> None:
    model = recommender(item_causal=item_causal)
    scores = exhaustive(model, HISTORIES, WHO)
    items, found = model.rank(HISTORIES, WHO, ITEMS)
    torch.testing.assert_close(found, scores.sort(descending=True).values, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.gather(1, items), found, atol=1e-4, rtol=0)
    assert all(len(set(row)) == ITEMS for row in items.tolist())
    few, best = model.rank(HISTORIES, WHO, 8)
    assert few.shape == (3, 8)
    assert ((few >= 0) & (few < ITEMS)).all()
    torch.testing.assert_close(scores.gather(1, few), best, atol=1e-4, rtol=0)


def test_excluded_items_never_come_out() -> None:
    model = recommender()
    excluded = torch.tensor([list(range(0, ITEMS, 2)), [1] * (ITEMS // 2), [-1] * (ITEMS // 2)])
    items, scores = model.rank(HISTORIES, WHO, ITEMS, excluded)
    assert [set(range(ITEMS)) - set(row) for row in items.tolist()] == [set(range(0, ITEMS, 2)), {1}, set()]
    assert (items[0, ITEMS // 2 :] == -1).all()
    assert (scores[0, ITEMS // 2 :] == -torch.inf).all()


def test_one_pass_over_a_sequence_is_one_pass_per_prefix() -> None:
    """Logits of every target of a window equal those of the target alone after its prefix."""
    model = recommender()
    sequence = torch.tensor([[3, 7, 1, 20, 9]])
    together = model(sequence[:, :-1], WHO[:1], sequence).logits
    for target in range(sequence.shape[1]):
        alone = model(sequence[:, :target], WHO[:1], sequence[:, target : target + 1]).logits
        torch.testing.assert_close(together[:, target], alone[:, 0], atol=1e-5, rtol=1e-4)


def test_ignored_targets_and_padding_change_nothing() -> None:
    model = recommender()
    sequence, user = torch.tensor([[3, 7, 1]]), WHO[:1]
    labels = torch.tensor([[-100, 7, 1]])
    padded = torch.tensor([[3, 7, -1, -1]]), torch.tensor([[-100, 7, 1, -100, -100]])
    expected = model(sequence[:, :-1], user, labels).loss
    torch.testing.assert_close(model(padded[0], user, padded[1]).loss, expected)
    torch.testing.assert_close(model(padded[0], user, padded[1], num_items_in_batch=4).loss, expected / 2)


def test_the_bidirectional_encoder_reads_a_set() -> None:
    for item_causal in (False, True):
        model = recommender(item_causal=item_causal)
        backwards = HISTORIES[:1].flip(1)
        same = torch.allclose(exhaustive(model, HISTORIES[:1], WHO[:1]), exhaustive(model, backwards, WHO[:1]), atol=1e-5)
        assert same != item_causal


def test_several_targets_need_an_item_causal_model() -> None:
    model = recommender(item_causal=False)
    with pytest.raises(ValueError, match="item-causal"):
        model(HISTORIES[:, :2], WHO, HISTORIES[:, :3].clamp(min=0))


def test_users_make_a_difference_and_an_unknown_one_is_the_mean_user() -> None:
    model = recommender()
    torch.testing.assert_close(model.user_vectors[-1], model.user_vectors[:-1].mean(0))
    history = HISTORIES[:1].expand(USERS, -1)
    scores = exhaustive(model, history, torch.arange(USERS))
    assert not torch.allclose(scores[0], scores[1])


def test_saved_and_loaded_it_ranks_the_same(tmp_path: Path) -> None:
    model = recommender()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {"item_codes", "user_vectors"} <= set(file.keys())
    loaded = MMGRecForRecommendation.from_pretrained(tmp_path)
    assert loaded.item_ids == model.item_ids
    assert not loaded.training
    for before, after in zip(model.rank(HISTORIES, WHO, 10), loaded.rank(HISTORIES, WHO, 10), strict=True):
        torch.testing.assert_close(before, after, atol=0, rtol=0)


@pytest.mark.parametrize("settings", [{"num_levels": 1}, {"codebook_size": 1}, {"max_history": 0}, {"d_model": 10, "num_heads": 4}])
def test_settings_that_cannot_work(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        MMGRecModelConfig(num_items=3, num_users=1, **settings)


def test_a_catalogue_of_another_shape_is_refused() -> None:
    model = recommender()
    with pytest.raises(ValueError, match="item_vectors"):
        model.set_catalogue(model.item_ids, model.item_codes, torch.zeros(ITEMS, WIDTH + 1), torch.zeros(USERS, WIDTH))
