from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_samples import one_by_one, same_ranking, small_model

from cemg_hf.serving.config import ServingConfig
from cemg_hf.serving.recommender import Catalogue, Found, Query, Recommender, UnknownItems
from cemg_hf.serving.service import RecommendService

MODEL = small_model()
IDS = st.sampled_from([*MODEL.tokenizer.item_ids, "unknown1", "unknown2"])
QUERIES = st.builds(
    Query,
    history=st.lists(IDS, max_size=8),
    k=st.integers(1, 25),
    exclude_history=st.booleans(),
    num_beams=st.sampled_from([None, 25, 60]),
    on_unknown=st.sampled_from(["error", "skip", "skip"]),
    allowed_items=st.none() | st.lists(IDS, max_size=30),
    denied_items=st.none() | st.lists(IDS, max_size=30),
    max_per_first_code=st.sampled_from([None, None, 1]),
    min_first_codes=st.sampled_from([None, None, 1]),
)


@settings(max_examples=25, deadline=None)
@given(queries=st.lists(QUERIES, min_size=1, max_size=12), size=st.integers(1, 8))
def test_answers_are_those_of_the_model_whatever_the_batching(queries: list[Query], size: int) -> None:
    service = RecommendService(lambda: MODEL, ServingConfig(max_batch_size=size))

    async def ask() -> list[Found | UnknownItems]:
        await service.start()
        answers = await asyncio.gather(*(service.batcher.submit([query], 60.0) for query in queries))
        await service.finish()
        return [answer for (answer,) in answers]

    known = set(MODEL.tokenizer.item_ids)
    for query, answer in zip(queries, asyncio.run(ask()), strict=True):
        assert answer.unknown == list(dict.fromkeys(item_id for item_id in query.named_items() if item_id not in known))
        assert answer.fingerprint == MODEL.tokenizer.catalogue_fingerprint
        if query.on_unknown == "error" and answer.unknown:
            assert isinstance(answer, UnknownItems)
            with pytest.raises(ValueError, match="not among"):
                one_by_one(MODEL, query)
        else:
            assert isinstance(answer, Found)
            assert same_ranking(answer.recommendations, one_by_one(MODEL, query)), query


def test_queries_that_differ_in_k_history_and_denied_items_share_a_pass() -> None:
    group = Recommender.group
    shared = Query(history=["item1"], k=5)
    assert group(shared) == group(Query(k=20)) == group(Query(exclude_history=True, denied_items=["item2"])) == group(Query(num_beams=20))
    assert len({group(shared), group(Query(k=21)), group(Query(num_beams=30)), group(Query(allowed_items=[]))}) == 4
    assert len({group(shared), group(Query(min_first_codes=2)), group(Query(k=5, min_first_codes=2))}) == 3  # spread over k items


def test_a_catalogue_of_another_model_is_refused_and_the_old_one_stays() -> None:
    recommender = Recommender(small_model(), ServingConfig())
    before = recommender.catalogue
    with pytest.raises(ValueError, match="do not belong together"):
        recommender.use(Catalogue(small_model(40).tokenizer))
    assert recommender.catalogue is before
    assert recommender.model.tokenizer is before.tokenizer
