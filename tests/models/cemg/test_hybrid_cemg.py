"""Codes and dense scores in one ranking, against exhaustive scoring; what the tower says about codes, against a loop over the catalogue."""

from __future__ import annotations

import copy
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from dense_samples import CONTENT_DIM, growing_tokenizer, hybrid, plain_dense_log_probs, tower
from generator_samples import (
    CAUSAL,
    HISTORIES,
    TOKENIZER,
    assert_same_lists,
    catalogues,
    generator,
    item_tokenizer,
    plain_scores,
    ranked_ids,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cemg_hf import CEMGForConditionalGeneration, ItemTrie, Recommendation
from cemg_hf.models.cemg.hybrid_cemg import Candidates, code_distributions, possible_items

WEIGHTS = (0.0, 0.3, 0.5, 1.0)


def indices(history: list[str]) -> list[int]:
    return [int(item[4:]) for item in history]


def mixed_scores(model: CEMGForConditionalGeneration, history: list[str], weight: float) -> Tensor:
    """(N,) scores of the whole catalogue: T5's own forward, and the tower without padding."""
    vectors = model.dense.item_vectors(content=model.tokenizer.item_vectors)
    dense = plain_dense_log_probs(model, indices(history)[-model.config.max_history :], vectors)
    return (1 - weight) * plain_scores(model, history) + weight * dense


def exhaustive(model: CEMGForConditionalGeneration, history: list[str], weight: float) -> list[Recommendation]:
    scores, items = mixed_scores(model, history, weight).sort(descending=True)
    return [Recommendation(f"item{item}", score) for item, score in zip(items.tolist(), scores.tolist(), strict=True)]


def assert_same_scores(found: list[list[Recommendation]], expected: list[list[Recommendation]], tolerance: float = 1e-5) -> None:
    """The same items with nearly the same scores; those that are nearly equal may stand in any order."""
    for row, wanted in zip(found, expected, strict=True):
        scores = {item.item_id: item.score for item in row}
        assert scores == pytest.approx({item.item_id: item.score for item in wanted}, abs=tolerance)


# ---- one ranking -------------------------------------------------------------------------------------------------------------------


@CAUSAL
@pytest.mark.parametrize("weight", WEIGHTS)
def test_with_as_many_beams_as_items_it_is_exhaustive_scoring(item_causal, weight):
    model = hybrid(item_causal=item_causal)
    for history, found in zip(HISTORIES, model.recommend(HISTORIES, k=60, dense_weight=weight), strict=True):
        assert_same_lists(found, exhaustive(model, history, weight), tolerance=1e-4)


def test_constrained_scores_join_in_too():
    model = hybrid(constrained_softmax=True)
    codes = {item.item_id: item.score for item in model.recommend(HISTORIES[0], k=60, dense_weight=0)}
    dense = {item.item_id: item.score for item in model.recommend(HISTORIES[0], k=60, dense_weight=1)}
    for item_id, score in model.recommend(HISTORIES[0], k=60, dense_weight=0.4):
        assert score == pytest.approx(0.6 * codes[item_id] + 0.4 * dense[item_id], abs=1e-4)


def test_weight_zero_is_the_plain_search_and_the_weight_of_the_configuration_is_the_default():
    model, plain = hybrid(), generator(TOKENIZER)
    expected = plain.recommend(HISTORIES, k=10)
    for found in (model.recommend(HISTORIES, k=10), model.recommend(HISTORIES, k=10, dense_weight=0)):
        assert_same_scores(found, expected)
    model.config.dense_weight = 0.5
    mixed = model.recommend(HISTORIES, k=10)
    assert_same_scores(mixed, model.recommend(HISTORIES, k=10, dense_weight=0.5))
    assert [ranked_ids(row) for row in mixed] != [ranked_ids(row) for row in expected]
    assert_same_scores(model.recommend(HISTORIES, k=10, dense_weight=0), expected)


@pytest.mark.parametrize("num_beams", [1, 3, 8])
def test_candidates_are_the_best_of_both_halves_scored_by_both(num_beams):
    model = hybrid()
    inputs = TOKENIZER(HISTORIES, padding=True, padding_side="left", return_tensors="pt")
    found = model.hybrid_candidates(**inputs, num_beams=num_beams)
    written, _ = model.rank(**inputs, num_beams=num_beams, dense_weight=0)
    assert found.items.shape == found.codes.shape == found.dense.shape == (len(HISTORIES), 2 * num_beams)
    assert torch.equal(model.score_items(**inputs, items=found.items).isinf(), found.items < 0)
    for row, history in enumerate(HISTORIES):
        items = [item for item in found.items[row].tolist() if item >= 0]
        assert len(set(items)) == len(items)
        codes, dense = plain_scores(model, history), mixed_scores(model, history, 1.0)
        assert set(items) == {*written[row].tolist(), *dense.topk(num_beams).indices.tolist()}
        present = found.items[row] >= 0
        torch.testing.assert_close(found.codes[row, present], codes[items], atol=1e-4, rtol=0)
        torch.testing.assert_close(found.dense[row, present], dense[items], atol=1e-4, rtol=0)
        assert (found.codes[row, ~present] == -torch.inf).all()
        assert (found.dense[row, ~present] == -torch.inf).all()
    for weight in WEIGHTS:
        ranked, scores = found.ranking(weight, num_beams)
        assert ranked.shape == (len(HISTORIES), num_beams)
        assert (scores.diff(dim=1) <= 0).all()
        assert not scores.isnan().any()
        for row in ranked.tolist():
            assert len(set(row)) == len(row)


def test_places_without_an_item_come_last_and_are_no_numbers_of_any_weight():
    nothing = -torch.inf
    found = Candidates(torch.tensor([[4, -1, 2]]), torch.tensor([[-3.0, nothing, -1.0]]), torch.tensor([[-1.0, nothing, -5.0]]))
    for weight, expected in ((0.0, [2, 4, -1]), (1.0, [4, 2, -1])):
        items, scores = found.ranking(weight, 5)
        assert items.tolist() == [expected]
        assert scores[0, 2] == nothing
        assert not scores.isnan().any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_batches_do_not_matter(side):
    model = hybrid()
    inputs = TOKENIZER(HISTORIES, padding=True, padding_side=side, return_tensors="pt")
    items, scores = model.rank(**inputs, num_beams=60, dense_weight=0.5)
    expected = model.recommend(HISTORIES, k=60, dense_weight=0.5, batch_size=1)
    for row, found in enumerate(expected):
        assert [TOKENIZER.item_ids[item] for item in items[row].tolist()] == ranked_ids(found)
        assert scores[row].tolist() == pytest.approx([item.score for item in found], abs=1e-4)


def test_histories_longer_than_the_tower_reads_are_cut_to_their_last_items():
    """Also those that come as tokens, beside short ones that end with padding."""
    model = hybrid()
    histories = [list(range(12)), [5, 6], []]
    items = torch.tensor([row + [-1] * (12 - len(row)) for row in histories])
    vectors = model.dense.item_vectors()
    found = model.dense_log_probs(items)
    for row, history in enumerate(histories):
        torch.testing.assert_close(found[row], plain_dense_log_probs(model, history, vectors), atol=1e-5, rtol=0)


@pytest.mark.parametrize("weight", [0.5, 1.0])
@pytest.mark.parametrize("num_beams", [6, 60])
def test_filters_hold(weight, num_beams):
    model = hybrid()
    allowed, denied = TOKENIZER.item_ids[:30], TOKENIZER.item_ids[5:15]
    options = {"k": 6, "num_beams": num_beams, "dense_weight": weight}
    found = model.recommend(HISTORIES, exclude_history=True, allowed_items=allowed, denied_items=denied, **options)
    for row, history in zip(found, HISTORIES, strict=True):
        open_items = set(allowed) - set(denied) - set(history)
        assert len(row) == 6
        assert set(ranked_ids(row)) <= open_items
        if num_beams == 60:
            assert ranked_ids(row) == [item.item_id for item in exhaustive(model, history, weight) if item.item_id in open_items][:6]
    own = model.recommend(
        HISTORIES, allowed_items=[["item4", "item9"], None, [], allowed], denied_items=[["item9"], None, None, []], **options
    )
    assert ranked_ids(own[0]) == ["item4"]
    assert len(own[1]) == 6
    assert own[2] == []
    assert set(ranked_ids(own[3])) <= set(allowed)
    assert model.recommend(HISTORIES, denied_items=TOKENIZER.item_ids, **options) == [[]] * len(HISTORIES)


def test_a_part_of_the_trie_holds_for_both_halves_and_scores_stay():
    model = hybrid()
    inputs = TOKENIZER(HISTORIES, padding=True, return_tensors="pt")
    part = model.trie.subset(torch.arange(0, 60, 7))
    items, scores = model.rank(**inputs, num_beams=20, trie=part, dense_weight=0.4)
    for row, history in enumerate(HISTORIES):
        expected = [item for item in exhaustive(model, history, 0.4) if int(item.item_id[4:]) % 7 == 0]
        kept = items[row] >= 0
        assert items[row, kept].tolist() == indices(ranked_ids(expected))
        assert scores[row, kept].tolist() == pytest.approx([item.score for item in expected], abs=1e-4)


def test_fewer_items_than_beams():
    tokenizer = item_tokenizer(5)
    model = hybrid(tokenizer)
    found = model.recommend(["item1", "item2"], k=8, dense_weight=0.5)
    assert sorted(ranked_ids(found)) == tokenizer.item_ids
    assert model.recommend(tokenizer.item_ids, k=3, exclude_history=True, dense_weight=0.5) == []


def test_training_mode_ranks_without_dropout():
    model = hybrid(dropout_rate=0.5, dense={"dropout": 0.5})
    expected = model.recommend(HISTORIES, k=9, dense_weight=0.5)
    model.train()
    assert model.dense.training
    assert_same_scores(model.recommend(HISTORIES, k=9, dense_weight=0.5), expected)
    assert model.dense.training


def test_generate_ignores_the_tower():
    model, plain = hybrid(), generator(TOKENIZER)
    model.config.dense_weight = 0.9
    inputs = TOKENIZER(HISTORIES, padding=True, return_tensors="pt")
    for options in ({"num_beams": 7, "num_return_sequences": 5}, {"num_beams": 4, "length_penalty": 1.0}):
        assert torch.equal(model.generate(**inputs, **options), plain.generate(**inputs, **options))


# ---- attaching, saving and loading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_ranks_the_same(tmp_path, dtype):
    model = hybrid(growing_tokenizer(), dense={"layer": "ligr", "feed_forward": 2}).to(dtype)
    model.config.dense_weight = 0.4
    expected = model.recommend(HISTORIES, k=60)
    model.save_pretrained(tmp_path)
    loaded, info = CEMGForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.dense_weight == 0.4
    assert loaded.dense.settings == model.dense.settings
    assert not loaded.dense.training
    assert torch.equal(loaded.dense_item_codes, model.dense_item_codes)
    assert loaded.dense_item_codes.dtype == torch.int32
    assert {parameter.dtype for parameter in loaded.dense.parameters()} == {dtype}
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    assert_same_scores(loaded.recommend(HISTORIES, k=60), expected, tolerance)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert_same_scores(CEMGForConditionalGeneration.from_pretrained(again, dtype=dtype).recommend(HISTORIES, k=60), expected, tolerance)


def test_bfloat16_scores_are_close_to_those_of_single_precision(tmp_path):
    model = hybrid()
    model.config.dense_weight = 0.5
    model.save_pretrained(tmp_path)
    loaded = CEMGForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    exact = {item.item_id: item.score for item in model.recommend(HISTORIES[0], k=60)}
    found = loaded.recommend(HISTORIES[0], k=60)
    assert {item.item_id for item in found} == exact.keys()
    for item_id, score in found:
        assert score == pytest.approx(exact[item_id], abs=0.2)


def test_log_probabilities_of_a_bfloat16_tower_are_taken_in_single_precision():
    model = hybrid().to(torch.bfloat16).eval()
    history = torch.tensor([[3, 1, 4]])
    with torch.no_grad():
        states, vectors = model.dense.last_states(history, model.dense_vectors()), model.dense_vectors()
        found = model.dense_log_probs(history)
    torch.testing.assert_close(found, (states.double() @ vectors.double().T).log_softmax(dim=1).float(), rtol=0, atol=1e-5)


def test_a_model_without_a_tower_saves_none(tmp_path):
    generator(TOKENIZER).save_pretrained(tmp_path)
    loaded = CEMGForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.dense is None
    assert loaded.config.dense is None
    assert not any(name.startswith("dense") for name in loaded.state_dict())


def test_a_tower_takes_the_mode_of_the_model_and_can_be_replaced():
    model = generator(TOKENIZER)
    fresh = tower(60, dropout=0.5).train()
    model.set_dense(fresh, dense_weight=0.5)
    assert not model.dense.training
    assert model.config.dense_weight == 0.5
    first = model.recommend(HISTORIES, k=60)
    assert_same_scores(model.recommend(HISTORIES, k=60), first)
    model.set_dense(tower(60, seed=9))
    assert model.config.dense_weight == 0.5
    assert [ranked_ids(row) for row in model.recommend(HISTORIES, k=60)] != [ranked_ids(row) for row in first]


def test_towers_that_do_not_fit_are_refused():
    model = generator(TOKENIZER)
    with pytest.raises(ValueError, match="the tower knows 59 items, the tokenizer 60"):
        model.set_dense(tower(59))
    with pytest.raises(ValueError, match="the tower reads 4 items of a history, the generator 5"):
        model.set_dense(tower(60, max_history=4))
    model.tokenizer = None
    with pytest.raises(ValueError, match="the tokenizer 0; attach the tokenizer"):
        model.set_dense(tower(60))
    assert model.dense is None
    assert model.config.dense is None


def test_a_tower_with_content_needs_a_tokenizer_with_content():
    model = generator(TOKENIZER)
    model.set_dense(tower(60, content_dim=3))
    with pytest.raises(ValueError, match="trained with content vectors, and none are given"):
        model.recommend(HISTORIES, dense_weight=0.5)
    assert len(model.recommend(HISTORIES, dense_weight=0)) == len(HISTORIES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense_weight": -0.1}, r"dense_weight must lie in 0 … 1, got -0\.1"),
        ({"dense_weight": 1.01}, r"dense_weight must lie in 0 … 1, got 1\.01"),
        ({"dense_weight": math.nan}, "dense_weight must lie in"),
        ({"dense_weight": 0.5, "max_per_first_code": 1}, "leave dense_weight out with them"),
        ({"dense_weight": 0.5, "min_first_codes": 3}, "leave dense_weight out with them"),
        ({"dense_weight": 0.5, "new_item_boost": 0.0}, "leave dense_weight out with them"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        hybrid().recommend(HISTORIES, **options)


def test_a_weight_without_a_tower_is_refused():
    with pytest.raises(ValueError, match="no dense tower, so dense_weight must be 0"):
        generator(TOKENIZER).recommend(HISTORIES, dense_weight=0.5)
    assert generator(TOKENIZER, dense_weight=0.0).recommend(HISTORIES)


# ---- a catalogue that changes ------------------------------------------------------------------------------------------------------


def test_vectors_may_be_trained_after_a_ranking():
    """What a ranking keeps for the next one, it must not make under its own inference mode."""
    model = hybrid(item_tokenizer(item_vectors=torch.randn(60, CONTENT_DIM)))
    before = model.recommend(["item1"], k=60, dense_weight=1.0)
    optimizer = torch.optim.SGD(model.dense.parameters(), lr=1.0)
    (model.dense_vectors() * torch.randn(60, 8)).sum().backward()
    optimizer.step()
    after = model.recommend(["item1"], k=60, dense_weight=1.0)
    assert [item.item_id for item in after] != [item.item_id for item in before]
    model._dense_rows = model._moved_tensors = None
    model.dense._vectors.forget()
    assert model.recommend(["item1"], k=60, dense_weight=1.0) == after


def test_what_is_kept_between_rankings_is_what_a_fresh_copy_computes(tmp_path):
    """Whatever happens to weights and catalogue in between; a copy begins with nothing kept."""
    tokenizer = growing_tokenizer()
    model = hybrid(tokenizer, dense_weight=0.5)
    history = ["item1", "item2"]

    def other_tokenizer() -> None:
        twin = growing_tokenizer()
        twin.remove_items(["item9"])
        model.set_tokenizer(twin)

    def train() -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        model.dense_log_probs(torch.tensor([[1, 2]]))[0, 3].neg().backward()
        optimizer.step()

    changes = {
        "nothing": lambda: None,
        "items come": lambda: tokenizer.add_items(["new0", "new1"], {"text": torch.randn(2, 6)}),
        "items go": lambda: tokenizer.remove_items(["item30"]),
        "another tokenizer": other_tokenizer,
        "other weights": lambda: model.load_state_dict(hybrid(growing_tokenizer(), seed=4).state_dict()),
        "a training step in evaluation mode": train,
        "a training step": lambda: (model.train(), train(), model.eval()),
        "half the bits": lambda: model.to(torch.bfloat16),
        "and back": lambda: model.to(torch.float32),
        "saving": lambda: model.save_pretrained(tmp_path),
        "another tower": lambda: model.set_dense(tower(59, seed=8, content_dim=CONTENT_DIM)),
    }
    previous = None
    for name, change in changes.items():
        change()
        copied = copy.deepcopy(model)
        assert copied.dense._vectors._found is None
        expected = copied.recommend(history, k=10)
        assert model.recommend(history, k=10) == expected, name
        assert model.recommend(history, k=10) == expected, name
        assert (previous == expected) == (name in ("nothing", "saving")) or previous is None, name
        previous = expected


def test_rankings_do_not_project_the_catalogue_again_nor_encode_a_history_twice():
    model = hybrid(growing_tokenizer(), dense_weight=0.5)
    calls = []
    for name, module in (("content", model.dense.content), ("encoder", model.encoder)):
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    for _ in range(3):
        model.recommend(HISTORIES, k=5)
    assert calls == ["encoder", "content", "encoder", "encoder"]


def test_threads_get_what_one_gets():
    """As in a server, whose threads call one model; the first calls find nothing kept."""
    model = hybrid(growing_tokenizer(), dense_weight=0.5)
    expected = copy.deepcopy(model).recommend(HISTORIES, k=10, batch_size=1)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda row: model.recommend(HISTORIES[row % 4], k=10), range(40)))
    for row, found in enumerate(answers):
        assert_same_lists(found, expected[row % 4])


def test_items_that_come_and_go():
    """An added item is known by its content, a removed one never comes out, and the others keep their scores up to the normalisation."""
    tokenizer = growing_tokenizer()
    model = hybrid(tokenizer)
    inputs = tokenizer(HISTORIES, padding=True, return_tensors="pt")
    history = torch.tensor([[1, 2, 3], [5, -1, -1]])
    before = dict(zip(tokenizer.item_ids, model.dense_vectors(), strict=True))
    scores = dict(zip(tokenizer.item_ids, model.dense_log_probs(history).T, strict=True))
    gone = ["item0", "item30", "item59"]
    tokenizer.remove_items(gone)
    torch.manual_seed(3)
    tokenizer.add_items(["new0", "new1"], {"text": torch.randn(2, 6)})
    after = dict(zip(tokenizer.item_ids, model.dense_vectors(), strict=True))
    content = model.dense.content.weight
    for item_id, vector in after.items():
        expected = before.get(item_id)
        if expected is None:
            expected = content @ tokenizer.item_vectors[tokenizer.item_ids.index(item_id)].float()
        torch.testing.assert_close(vector, expected, atol=1e-6, rtol=0)
    history = torch.tensor([[tokenizer.item_ids.index(f"item{item}") if item >= 0 else -1 for item in row] for row in history.tolist()])
    found = dict(zip(tokenizer.item_ids, model.dense_log_probs(history).T, strict=True))
    shifts = torch.stack([found[item_id] - scores[item_id] for item_id in tokenizer.item_ids[:57]])
    torch.testing.assert_close(shifts, shifts[:1].expand_as(shifts), atol=1e-5, rtol=0)
    assert torch.stack(list(found.values())).logsumexp(0).abs().max() < 1e-5
    for weight in (0.5, 1.0):
        ranked = model.recommend([["item1", "item2"], []], k=59, dense_weight=weight)
        for row in ranked:
            assert sorted(ranked_ids(row)) == sorted(tokenizer.item_ids)
    items, _ = model.rank(**inputs, num_beams=59, dense_weight=0.5)
    assert int(items.max()) < 59


def test_an_item_that_takes_the_code_of_a_removed_one_does_not_take_its_embedding():
    tokenizer = growing_tokenizer()
    model = hybrid(tokenizer)
    code = tokenizer.item_codes[8].clone()
    tokenizer.remove_items(["item8"])
    before = tokenizer._catalogue
    tokenizer._catalogue = tokenizer._new_catalogue(
        [*before.item_ids, "heir"],
        torch.cat([before.item_codes, code.unsqueeze(0)]),
        torch.cat([before.new_items, torch.tensor([True])]),
        torch.cat([before.item_vectors, torch.ones(1, CONTENT_DIM)]),
    )
    torch.testing.assert_close(model.dense_vectors()[-1], model.dense.content.weight.sum(dim=1), atol=1e-6, rtol=0)


def test_a_changed_catalogue_survives_saving(tmp_path):
    tokenizer = growing_tokenizer()
    model = hybrid(tokenizer)
    model.config.dense_weight = 0.5
    tokenizer.remove_items(["item0", "item41"])
    torch.manual_seed(3)
    tokenizer.add_items(["new0"], {"text": torch.randn(1, 6)})
    expected = model.recommend(["item1", "new0"], k=59)
    assert sorted(ranked_ids(expected)) == sorted(tokenizer.item_ids)
    model.save_pretrained(tmp_path)
    assert_same_lists(CEMGForConditionalGeneration.from_pretrained(tmp_path).recommend(["item1", "new0"], k=59), expected)


# ---- which items may come out ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_possible_items_are_those_of_a_computation_with_sets(data):
    count = data.draw(st.integers(2, 12))
    trie = ItemTrie(item_tokenizer(count).item_codes, 8)
    part = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    if data.draw(st.booleans()):
        trie = trie.subset(torch.tensor(part))
    else:
        part = list(range(count))
    rows = data.draw(st.integers(1, 3))
    lists = st.none() | st.lists(st.lists(st.integers(-1, count - 1), min_size=4, max_size=4), min_size=rows, max_size=rows)
    excluded, allowed = data.draw(lists), data.draw(lists)
    restricted = data.draw(st.none() | st.lists(st.booleans(), min_size=rows, max_size=rows))
    given_lists = [None if entries is None else torch.tensor(entries) for entries in (excluded, allowed, restricted)]
    found = possible_items(count, trie, rows, *given_lists).expand(rows, -1)
    for row in range(rows):
        expected = set(part)
        if excluded is not None:
            expected -= set(excluded[row])
        if allowed is not None and (restricted is None or restricted[row]):
            expected &= set(allowed[row])
        assert set(found[row].nonzero().flatten().tolist()) == expected


# ---- what items say about codes ----------------------------------------------------------------------------------------------------


def obvious_distributions(log_probs: Tensor, codes: Tensor, catalogue: Tensor, size: int) -> Tensor:
    """p(c_m | prefix) by a loop over the catalogue, in the logarithm."""
    found = torch.zeros(*codes.shape, size, dtype=torch.float64)
    for row, level in itertools.product(range(len(codes)), range(codes.shape[1])):
        under = (catalogue[:, :level] == codes[row, :level]).all(dim=1)
        total = log_probs[row, under].logsumexp(0)
        for code in range(size):
            chosen = under & (catalogue[:, level] == code)
            if bool(chosen.any()):
                found[row, level, code] = (log_probs[row, chosen].logsumexp(0) - total).exp()
    return found


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.sampled_from([0.0, 1.0, 10.0, 80.0]), st.integers(0, 10**6))
def test_code_distributions_are_those_of_a_loop_over_the_catalogue(catalogue, scale, seed):
    codes, size = catalogue
    draw = torch.Generator().manual_seed(seed)
    log_probs = (scale * torch.randn(6, len(codes), generator=draw, dtype=torch.float64)).log_softmax(1).float()
    targets = codes[torch.randint(len(codes), (6,), generator=draw)]
    trie = ItemTrie(codes, size)
    found = code_distributions(log_probs[:, trie.leaf_items.long()], targets, trie)
    assert found.shape == (6, codes.shape[1], size)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:2]), atol=1e-5, rtol=0)
    expected = obvious_distributions(log_probs.double(), targets, codes, size)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_distributions_stay_distributions_where_a_branch_has_no_mass_at_all():
    codes = item_tokenizer(20).item_codes
    log_probs = torch.full((20, 20), -torch.inf)
    log_probs[torch.arange(20), (torch.arange(20) + 1) % 20] = 0.0
    trie = ItemTrie(codes, 8)
    found = code_distributions(log_probs[:, trie.leaf_items.long()], codes, trie)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(20, 3))
    sure = torch.full((20, 20), -torch.inf).fill_diagonal_(0.0)
    found = code_distributions(sure[:, trie.leaf_items.long()], codes, trie)
    assert torch.equal(found, torch.nn.functional.one_hot(codes, 8).float())


def test_no_targets_have_no_distributions():
    codes = item_tokenizer(20).item_codes
    assert code_distributions(torch.empty(0, 20), codes[:0], ItemTrie(codes, 8)).shape == (0, 3, 8)


def test_what_is_of_the_codes_alone_leaves_the_tower_out():
    model = hybrid(dense_weight=0.6)
    for options in ({"max_per_first_code": 2}, {"new_item_boost": 0.0}):
        assert model.recommend(HISTORIES, k=5, **options) == model.recommend(HISTORIES, k=5, dense_weight=0, **options)


def test_new_items_come_last_for_a_tower_without_content():
    model = hybrid()
    before = model.dense_log_probs(torch.tensor([[3, 1], [5, -1]]))
    model.tokenizer._catalogue = replace(model.tokenizer._catalogue, new_items=torch.arange(60) >= 55)
    model._dense_rows = model._moved_tensors = None
    after = model.dense_log_probs(torch.tensor([[3, 1], [5, -1]]))
    assert (after[:, 55:].amax(dim=1) < after[:, :55].amin(dim=1)).all()
    torch.testing.assert_close(after[:, :55].softmax(dim=1), before[:, :55].softmax(dim=1))
