from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_samples import one_by_one, same_ranking, small_model, small_network

from cemg_hf.serving.config import ServingConfig
from cemg_hf.serving.ranker import Query
from cemg_hf.serving.recommender import Found, UnknownItems
from cemg_hf.serving.service import RecommendService

MODELS = {"cemg": small_model(), "sasrec": small_network("sasrec"), "gru4rec": small_network("gru4rec")}
KNOWN = [f"item{row}" for row in range(60)]
IDS = st.sampled_from([*KNOWN, "unknown1", "unknown2"])
ANY_MODEL = {
    "history": st.lists(IDS, max_size=8),
    "k": st.integers(1, 25),
    "exclude_history": st.booleans(),
    "on_unknown": st.sampled_from(["error", "skip", "skip"]),
    "allowed_items": st.none() | st.lists(IDS, max_size=30),
    "denied_items": st.none() | st.lists(IDS, max_size=30),
}
OF_CODES = {
    "num_beams": st.sampled_from([None, 25, 60]),
    "max_per_first_code": st.sampled_from([None, None, 1]),
    "min_first_codes": st.sampled_from([None, None, 1]),
}


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), size=st.integers(1, 8))
def test_answers_are_those_of_the_model_whatever_the_batching(kind: str, data: st.DataObject, size: int) -> None:
    model = MODELS[kind]
    drawn = st.builds(Query, **ANY_MODEL, **(OF_CODES if kind == "cemg" else {}))
    queries = data.draw(st.lists(drawn, min_size=1, max_size=12))
    service = RecommendService(lambda: model, ServingConfig(max_batch_size=size))

    async def ask() -> list[Found | UnknownItems]:
        await service.start()
        answers = await asyncio.gather(*(service.batcher.submit([query], 60.0) for query in queries))
        await service.finish()
        return [answer for (answer,) in answers]

    answers = asyncio.run(ask())
    assert {answer.fingerprint for answer in answers} == {service.recommender.catalogue.fingerprint}
    for query, answer in zip(queries, answers, strict=True):
        assert answer.unknown == list(dict.fromkeys(item_id for item_id in query.named_items() if item_id not in KNOWN))
        if query.on_unknown == "error" and answer.unknown:
            assert isinstance(answer, UnknownItems)
            with pytest.raises(ValueError, match="not among"):
                one_by_one(model, query)
        else:
            assert isinstance(answer, Found)
            assert same_ranking(answer.recommendations, one_by_one(model, query)), query
