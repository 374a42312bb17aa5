"""Items that came after training: beams of their own, a boost, scores by content."""

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
    rqvae_parts,
)
from torch.nn import functional

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
