"""Recommendations: one set of scores whoever computes them, lists and filters, plain `generate`, items that came after training."""

from __future__ import annotations

import pytest
import torch
from generator_samples import (
    CAUSAL,
    HISTORIES,
    NUM_LEVELS,
    TOKENIZER,
    assert_same_lists,
    generator,
    item_tokenizer,
    plain_scores,
    ranked_ids,
    rqvae_parts,
    small_config,
)
from torch.nn import functional
from transformers import GenerationConfig, T5ForConditionalGeneration

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


# ---- generate ---------------------------------------------------------------------------------------------------------------------


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


# ---- one graph --------------------------------------------------------------------------------------------------------------------


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


# ---- items that came after training -------------------------------------------------------------------------------------------------

NEW = torch.arange(60) % 5 == 0


def ids_of(mask: torch.Tensor) -> set[str]:
    return {f"item{index}" for index in mask.nonzero().flatten().tolist()}


@CAUSAL
@pytest.mark.parametrize("boost", [0.0, 1.5, -2.0, 40.0])
def test_the_boost_of_new_items_is_added_to_their_scores(item_causal, boost):
    model = generator(item_tokenizer(new_items=NEW), item_causal=item_causal)
    for history, found in zip(HISTORIES, model.recommend(HISTORIES, k=60, new_item_boost=boost), strict=True):
        scores = plain_scores(model, history) + boost * NEW
        assert [item.score for item in found] == pytest.approx(scores.sort(descending=True).values.tolist(), abs=1e-5)
        assert [item.score for item in found] == pytest.approx([float(scores[int(item.item_id[4:])]) for item in found], abs=1e-5)
        assert sorted(ranked_ids(found)) == sorted(model.tokenizer.item_ids)


@pytest.mark.parametrize("num_beams", [3, 8])
def test_new_items_cost_the_trained_ones_no_beams(num_beams):
    tokenizer = item_tokenizer(new_items=NEW)
    model = generator(tokenizer)
    histories = [["item1", "item2", "item3"], [], ["item6"]]
    for boost in (-50.0, 0.0, 2.0):
        boosted = model.recommend(histories, k=num_beams, num_beams=num_beams, new_item_boost=boost, exclude_history=True)
        tokenizer_of_old = item_tokenizer(new_items=NEW, trained_fingerprint=tokenizer.trained_fingerprint)
        tokenizer_of_old.remove_items(sorted(ids_of(NEW)))
        model.set_tokenizer(tokenizer_of_old)
        before = model.recommend(histories, k=num_beams, num_beams=num_beams, exclude_history=True)
        model.set_tokenizer(tokenizer)
        for found, old in zip(boosted, before, strict=True):
            kept = [item for item in found if item.item_id not in ids_of(NEW)]
            assert_same_lists(kept, old[: len(kept)])
            assert len(found) == num_beams
            if boost == -50.0:
                assert len(kept) == num_beams


def test_new_items_come_first_with_a_large_boost_unless_excluded():
    model = generator(item_tokenizer(new_items=NEW))
    history = ["item0", "item1", "item5"]
    for num_beams in (20, 60):
        found = ranked_ids(model.recommend(history, k=20, num_beams=num_beams, new_item_boost=1000.0, exclude_history=True))
        assert set(found[:10]) == ids_of(NEW) - set(history)
        assert len(set(found)) == 20
        assert not set(found) & set(history)


def test_without_new_items_or_a_boost_nothing_changes():
    plain = generator(TOKENIZER).recommend(HISTORIES, k=20)
    assert generator(TOKENIZER).recommend(HISTORIES, k=20, new_item_boost=3.0) == plain
    assert generator(item_tokenizer(new_items=NEW)).recommend(HISTORIES, k=20) == plain


def test_items_added_to_the_tokenizer_are_boosted_at_once():
    tokenizer = item_tokenizer(**rqvae_parts())
    model = generator(tokenizer)
    vectors = torch.randn(3, 9, generator=torch.Generator().manual_seed(1))
    for count, name in enumerate(("first", "second", "third"), start=1):
        tokenizer.add_items([name], {"text": vectors[count - 1 : count]})
        found = model.recommend(HISTORIES, k=10, new_item_boost=1000.0)
        assert all(set(ranked_ids(row)[:count]) == {"first", "second", "third"} & set(tokenizer.item_ids) for row in found)
    tokenizer.remove_items(["second"])
    assert all(set(ranked_ids(row)[:2]) == {"first", "third"} for row in model.recommend(HISTORIES, k=10, new_item_boost=1000.0))


def test_dense_scores_are_cosines_of_content_vectors():
    torch.manual_seed(0)
    vectors = torch.randn(len(NEW), 5).half()
    tokenizer = item_tokenizer(new_items=NEW, item_vectors=vectors)
    model = generator(tokenizer)
    unit = functional.normalize(vectors.float(), dim=1)
    weights = {"new_item_dense": 2.5, "new_item_likelihood": 0.5}
    found_together = model.recommend(HISTORIES, k=60, new_item_boost=0.0, **weights)
    for history, together in zip(HISTORIES, found_together, strict=True):
        plain = {item.item_id: item.score for item in model.recommend(history, k=60, new_item_boost=0.0)}
        found = {item.item_id: item.score for item in model.recommend(history, k=60, new_item_boost=0.0, **weights)}
        assert found == pytest.approx({item.item_id: item.score for item in together}, abs=1e-4)
        recent = tokenizer.item_indices(history)[-5:]
        cosines = functional.cosine_similarity(unit[recent].sum(0, keepdim=True), unit)
        for index, name in enumerate(tokenizer.item_ids):
            expected = 0.5 * plain[name] + (2.5 * float(cosines[index]) if history else 0.0) if NEW[index] else plain[name]
            assert found[name] == pytest.approx(expected, abs=1e-4)


def test_new_items_outside_the_beams_are_candidates_by_content():
    torch.manual_seed(0)
    vectors = torch.randn(len(NEW), 5)
    tokenizer = item_tokenizer(new_items=NEW, item_vectors=vectors)
    model, history = generator(tokenizer), HISTORIES[0]
    unit = functional.normalize(vectors, dim=1)
    cosines = unit @ functional.normalize(unit[tokenizer.item_indices(history)[-5:]].sum(0), dim=0)
    best = tokenizer.item_ids[int(cosines.masked_fill(~NEW, -2).argmax())]
    found = model.recommend(history, k=1, num_beams=1, new_item_boost=1000.0, new_item_dense=100.0, new_item_likelihood=0.0)
    assert ranked_ids(found) == [best]
    hidden = model.recommend([*history, best], k=60, new_item_boost=1000.0, new_item_dense=100.0, exclude_history=True)
    assert best not in ranked_ids(hidden)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"new_item_boost": float("nan")}, "finite number"), ({"new_item_dense": 1.0}, "need new_item_boost"),
     ({"new_item_boost": 0.0, "new_item_dense": 1.0}, "holds none")],
)  # fmt: skip
def test_impossible_options_for_new_items_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        generator(item_tokenizer(new_items=NEW)).recommend(HISTORIES, **options)
