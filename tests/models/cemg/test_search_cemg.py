"""The search: scores in single precision, without dropout, one graph, and a catalogue that is moved to the device once."""

from __future__ import annotations

import itertools

import pytest
import torch
from dense_samples import hybrid
from generator_samples import (
    CAUSAL,
    HISTORIES,
    TOKENIZER,
    generator,
    item_tokenizer,
    plain_scores,
    rqvae_parts,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from cemg_hf.models.cemg.search_cemg import history_items


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


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("num_beams", [1, 3, 60])
def test_items_beside_a_search_are_scored_in_its_pass_and_leave_it_as_it_is(constrained, num_beams):
    model = generator(TOKENIZER, constrained_softmax=constrained)
    inputs = TOKENIZER(HISTORIES, padding=True, return_tensors="pt")
    given_items = torch.tensor([[5, 5, -1], [7, 8, 9], [-1, -1, -1], [0, 59, 30]])
    excluded = torch.tensor([[1, 2], [-1, -1], [5, -1], [10, 11]])
    calls = []
    with torch.inference_mode():
        encoded = model._encode_history(**inputs)
        expected = model._search(model.trie, *encoded, num_beams, excluded_items=excluded)
        beside = model._beside(*encoded, given_items)
        step, beside.next_level = beside.next_level, lambda *args: calls.append(args) or step(*args)
        found = model._search(model.trie, *encoded, num_beams, beside=beside, excluded_items=excluded)
    assert len(calls) == TOKENIZER.num_levels
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(beside.scores, model.score_items(**inputs, items=given_items), atol=1e-5, rtol=0)
    if num_beams == 60:  # the search finds everything that is not excluded, at the same scores
        for items, scores, others, values in zip(*expected, given_items, beside.scores, strict=True):
            known = dict(zip(items.tolist(), scores.tolist(), strict=True))
            for item, value in zip(others.tolist(), values.tolist(), strict=True):
                assert value == pytest.approx(known.get(item, value) if item >= 0 else -torch.inf, abs=1e-5)


# ---- histories ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"dense_weight": 0.5}, {"new_item_boost": 0.0, "new_item_dense": 2.0}], ids=["hybrid", "new items"])
def test_items_that_are_given_are_those_that_would_be_read_from_the_tokens(options):
    tokenizer = item_tokenizer(new_items=torch.arange(60) >= 50, item_vectors=torch.randn(60, 4))
    model = hybrid(tokenizer)
    inputs = tokenizer(HISTORIES, padding=True, return_tensors="pt")
    rows = [tokenizer.item_indices(history)[-5:] for history in HISTORIES]
    history = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    found = model.rank(**inputs, num_beams=9, history=history, **options)
    for value, expected in zip(found, model.rank(**inputs, num_beams=9, **options), strict=True):
        assert torch.equal(value, expected)
    places = torch.arange(inputs["input_ids"].shape[1]) - 1
    inputs["input_ids"] = torch.where(inputs["attention_mask"] == 0, tokenizer.item_tokens[0][places % 3], inputs["input_ids"])
    for mine, again in zip(found, model.rank(**inputs, num_beams=9, **options), strict=True):
        assert torch.equal(mine, again)  # what stands in masked places is no item
    other = model.rank(**inputs, num_beams=9, history=history.flip(0), **options)
    assert not torch.equal(found[1], other[1])  # the given ones count


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 59), max_size=5), min_size=1, max_size=5),
    st.sampled_from(["left", "right"]),
    st.sampled_from([2, 40]),
)
def test_items_are_read_back_from_their_tokens(histories, side, base):
    tokenizer = item_tokenizer(base_vocab_size=base)
    inputs = tokenizer([[f"item{item}" for item in row] for row in histories], padding=True, padding_side=side, return_tensors="pt")
    found = history_items(inputs["input_ids"], tokenizer.trie, tokenizer.first_code_id)
    longest = max(map(len, histories))
    assert found.tolist() == [row + [-1] * (longest - len(row)) for row in histories]


def test_codes_of_no_item_are_left_out_and_the_others_close_up():
    used = {tuple(row) for row in TOKENIZER.item_codes.tolist()}
    unused = next(codes for codes in itertools.product(range(8), repeat=3) if codes not in used)
    stranger = torch.tensor(unused) + TOKENIZER.first_code_id + 8 * torch.arange(3)
    start, items = torch.tensor([TOKENIZER.bos_token_id]), TOKENIZER.item_tokens
    for order in ([stranger, items[4], items[9]], [items[4], stranger, items[9]], [items[4], items[9], stranger]):
        tokens = torch.cat([start, *order])
        rows = torch.stack([tokens, torch.cat([start, *order[::-1]]), torch.cat([start, stranger, stranger, stranger])])
        assert history_items(rows, TOKENIZER.trie, TOKENIZER.first_code_id).tolist() == [[4, 9], [9, 4], [-1, -1]]
    for width in (0, 1, 2):
        assert history_items(torch.full((2, width), TOKENIZER.bos_token_id), TOKENIZER.trie, TOKENIZER.first_code_id).shape == (2, 0)
