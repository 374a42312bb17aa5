"""Recommendations: one set of scores whoever computes them, lists and filters."""

from __future__ import annotations

import pytest
import torch
from generator_samples import (
    CAUSAL,
    HISTORIES,
    TOKENIZER,
    assert_same_lists,
    generator,
    item_tokenizer,
    plain_scores,
    ranked_ids,
    small_config,
)

from cemg_hf import CEMGForConditionalGeneration
from cemg_hf.models.cemg import recommendation_cemg

# ---- recommending ---------------------------------------------------------------------------------------------------------------


@CAUSAL
def test_exhaustive_search_ranks_by_plain_teacher_forcing(item_causal):
    model = generator(TOKENIZER, item_causal=item_causal)
    for history, found in zip(HISTORIES, model.recommend(HISTORIES, k=60), strict=True):
        scores = plain_scores(model, history)
        assert sorted(ranked_ids(found)) == sorted(TOKENIZER.item_ids)
        assert [item.score for item in found] == pytest.approx(scores.sort(descending=True).values.tolist(), abs=1e-5)
        assert [item.score for item in found] == pytest.approx([float(scores[int(item.item_id[4:])]) for item in found], abs=1e-5)


@CAUSAL
@pytest.mark.parametrize("side", ["left", "right"])
def test_generate_and_recommend_give_the_same_lists(item_causal, side):
    model = generator(TOKENIZER, item_causal=item_causal)
    inputs = TOKENIZER(HISTORIES, padding=True, padding_side=side, return_tensors="pt")
    for num_beams in (1, 4, 20):
        out = model.generate(
            **inputs,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            logits_processor=[model.prefix_constraint()],
            return_dict_in_generate=True,
            output_scores=True,
        )
        sequences = out.sequences.view(len(HISTORIES), num_beams, -1)
        items, scores = model.rank(inputs["input_ids"], inputs["attention_mask"], num_beams)
        found = model.recommend(HISTORIES, k=num_beams, num_beams=num_beams)
        for row, expected in enumerate(found):
            assert [TOKENIZER.decode_items(sequence) for sequence in sequences[row]] == [[item.item_id] for item in expected]
            assert [TOKENIZER.item_ids[item] for item in items[row].tolist()] == ranked_ids(expected)
            assert scores[row].tolist() == pytest.approx([item.score for item in expected], abs=1e-5)
        if num_beams > 1:
            expected_scores = [item.score for expected in found for item in expected]
            assert out.sequences_scores.tolist() == pytest.approx(expected_scores, abs=1e-5)


def test_fewer_items_than_beams():
    tokenizer = item_tokenizer(5)
    model = generator(tokenizer)
    history = ["item1", "item2"]
    found = model.recommend(history, k=8)
    assert sorted(ranked_ids(found)) == tokenizer.item_ids
    out = model.generate(
        **tokenizer([history], return_tensors="pt"),
        num_beams=8,
        num_return_sequences=8,
        logits_processor=[model.prefix_constraint()],
        return_dict_in_generate=True,
        output_scores=True,
    )
    # `generate` cannot return a shorter list: what it fills it up with scores as impossible.
    possible = out.sequences_scores > -1e6
    assert [tokenizer.decode_items(sequence)[0] for sequence in out.sequences[possible]] == ranked_ids(found)
    assert out.sequences_scores[possible].tolist() == pytest.approx([item.score for item in found], abs=1e-5)
    remaining = model.recommend(history, k=8, exclude_history=True)
    assert ranked_ids(remaining) == [item for item in ranked_ids(found) if item not in history]
    assert model.recommend(tokenizer.item_ids, k=3, exclude_history=True) == []


def test_exclusion_covers_items_that_were_cut_off():
    model = generator(TOKENIZER)
    history = [f"item{index}" for index in range(20)] + ["item3"]
    assert len(history) > TOKENIZER.max_history
    found = model.recommend([history, [], ["item7"]], k=60, exclude_history=True)
    assert [sorted(ranked_ids(row)) for row in found] == [sorted(set(TOKENIZER.item_ids) - set(gone)) for gone in (history, [], ["item7"])]
    assert ranked_ids(found[0]) == [item for item in ranked_ids(model.recommend(history, k=60)) if item not in history]


def test_one_history_and_a_batch_agree_whatever_the_batch_size():
    model = generator(TOKENIZER)
    batch = model.recommend(HISTORIES, k=7, batch_size=64)
    for history, expected in zip(HISTORIES, batch, strict=True):
        assert_same_lists(model.recommend(history, k=7), expected)
    for found, expected in zip(model.recommend(HISTORIES, k=7, batch_size=1), batch, strict=True):
        assert_same_lists(found, expected)
    assert model.recommend(["item1", "nothing"], k=3, on_unknown="skip") == model.recommend(["item1"], k=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 0}, "k must be at least 1"), ({"k": 5, "num_beams": 4}, "cannot fill"), ({"on_unknown": "?"}, "on_unknown")],
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        generator(TOKENIZER).recommend(["item1"], **options)


def test_recommend_needs_a_catalogue_and_known_items():
    model = CEMGForConditionalGeneration(small_config(TOKENIZER))
    with pytest.raises(ValueError, match="no catalogue yet"):
        model.recommend(["item1"])
    model.set_tokenizer(TOKENIZER)
    with pytest.raises(ValueError, match="'nothing' is not among"):
        model.recommend(["nothing"])


def test_recommend_switches_dropout_off_and_the_mode_back(monkeypatch):
    model = generator(TOKENIZER, dropout_rate=0.5)
    expected = model.recommend(HISTORIES, k=5)
    model.train()
    state = torch.get_rng_state()
    assert model.recommend(HISTORIES, k=5) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.decoder.training

    def failing(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "_search", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.recommend(HISTORIES)
    assert model.training


@CAUSAL
def test_bfloat16_ranks_with_single_precision_scores(item_causal):
    model = generator(TOKENIZER, item_causal=item_causal)
    expected = model.recommend(HISTORIES, k=60)
    model.to(torch.bfloat16)
    inputs = TOKENIZER(HISTORIES, padding=True, padding_side="left", return_tensors="pt")
    items, scores = model.rank(inputs["input_ids"], inputs["attention_mask"], 60)
    assert scores.dtype == torch.float32
    assert (items.sort(dim=1).values == torch.arange(60)).all()
    assert len(scores.unique()) > 200  # sums in bfloat16 would leave a few dozen different values
    for row, exact in enumerate(expected):
        exact_scores = {item.item_id: item.score for item in exact}
        for item, score in zip(items[row].tolist(), scores[row].tolist(), strict=True):
            assert score == pytest.approx(exact_scores[f"item{item}"], abs=0.2)


# ---- filters ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [1024, 3], ids=["lists", "tries of their own"])
def test_filters_compose_and_keep_the_order(listed, monkeypatch):
    monkeypatch.setattr(recommendation_cemg, "LISTED_PER_USER", listed)
    model = generator(TOKENIZER)
    everything = [ranked_ids(found) for found in model.recommend(HISTORIES, k=60)]
    allowed, denied = TOKENIZER.item_ids[:30], TOKENIZER.item_ids[5:15]
    for k in (1, 4, 60):
        found = model.recommend(HISTORIES, k=k, num_beams=60, exclude_history=True, allowed_items=allowed, denied_items=denied)
        for row, history, ranking in zip(found, HISTORIES, everything, strict=True):
            open_items = set(allowed) - set(denied) - set(history)
            assert ranked_ids(row) == [item for item in ranking if item in open_items][:k]
    few = model.recommend(HISTORIES, k=6, num_beams=6, allowed_items=allowed[:8], denied_items=allowed[:2])
    assert [set(ranked_ids(row)) for row in few] == [set(allowed[2:8])] * len(HISTORIES)  # with no beam to spare
    assert model.recommend(HISTORIES, denied_items=TOKENIZER.item_ids) == [[]] * len(HISTORIES)
    assert model.recommend(HISTORIES[0], allowed_items=allowed[:5], denied_items=allowed[:5]) == []
    assert model.recommend(HISTORIES[0], allowed_items=[]) == []


def test_every_history_may_have_lists_of_its_own():
    model = generator(TOKENIZER)
    allowed = [["item4", "item9"], None, [], TOKENIZER.item_ids]
    denied = [["item9"], ["item1"], None, ["item2", "item3"]]
    found = model.recommend(HISTORIES, k=60, allowed_items=allowed, denied_items=denied, batch_size=3)
    for row, history, mine, gone in zip(found, HISTORIES, allowed, denied, strict=True):
        expected = [item for item in ranked_ids(model.recommend(history, k=60)) if item not in (gone or [])]
        assert ranked_ids(row) == [item for item in expected if mine is None or item in mine]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allowed_items": ["item1", "nothing"]}, "allowed_items: item id 'nothing' is not among"),
        ({"denied_items": [["item1"]] * 3}, "denied_items: 3 lists for 4 histories"),
        ({"denied_items": "item1"}, r"write \['item1'\]"),
        ({"max_per_first_code": 0}, "max_per_first_code must be 1"),
        ({"min_first_codes": 11}, "min_first_codes must be 1 … k = 10, got 11"),
        ({"max_per_first_code": 1, "new_item_boost": 0.0}, "do not go with new_item_boost"),
        ({"max_per_first_code": 11, "denied_items": TOKENIZER.item_ids}, "max_per_first_code must be 1"),
    ],
)
def test_impossible_filters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        generator(TOKENIZER).recommend(HISTORIES, k=10, **options)


def test_unknown_items_of_lists_are_skipped_on_request():
    model = generator(TOKENIZER)
    expected = model.recommend(["item1"], k=3, denied_items=["item2"])
    assert model.recommend(["item1"], k=3, denied_items=["item2", "nothing"], on_unknown="skip") == expected


def test_lists_spread_over_first_codes():
    model = generator(TOKENIZER)
    first = dict(zip(TOKENIZER.item_ids, TOKENIZER.item_codes[:, 0].tolist(), strict=True))
    for row in model.recommend(HISTORIES, k=8, max_per_first_code=1):
        assert len({first[item.item_id] for item in row}) == len(row) == 8
    for row in model.recommend(HISTORIES, k=8, min_first_codes=6):
        assert len({first[item.item_id] for item in row}) >= 6
