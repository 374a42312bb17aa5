from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from serving_samples import ADMIN, HeldModel, same_ranking, served, small_model, small_network, wait_for
from stream_samples import growing_stream_tokenizer, raw_vectors, stream_generator

from cemg_hf import Recommendation
from cemg_hf.errors import CEMGError
from cemg_hf.serving.loading import load_model, load_recommender

LIMITS = {"max_history": 6, "max_k": 25, "max_beams": 40, "max_filter": 5, "max_requests": 4, "max_body_mb": 0.002}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """For requests that leave the service as it is."""
    with served(small_model, **LIMITS) as (client, _):
        yield client


def problem(response: Any, status: int) -> dict[str, Any]:
    """The content of an error, which must have the one shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content = response.json()
    assert content["status"] == status
    assert content["type"] == "about:blank"
    assert content["title"]
    assert content["detail"]
    return content


def counted(client: TestClient) -> dict[tuple[str, ...], float]:
    """Every sample of /metrics by its name and labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


# ---- recommending -------------------------------------------------------------------------------------------------------------


def test_an_answer_is_that_of_the_model(client: TestClient) -> None:
    model = small_model()
    body = {"history": ["item1", "item2"], "k": 8, "exclude_history": False, "num_beams": 30}
    answer = client.post("/recommend", json=body).json()
    found = [Recommendation(entry["item_id"], entry["score"]) for entry in answer["recommendations"]]
    assert same_ranking(found, model.recommend(["item1", "item2"], k=8, num_beams=30))
    assert answer["catalogue"] == model.tokenizer.catalogue_fingerprint
    assert answer["unknown"] == []


def test_code_streams_are_served_and_grow(tmp_path: Path) -> None:
    stream_generator(growing_stream_tokenizer()).save_pretrained(tmp_path)
    expected = stream_generator(growing_stream_tokenizer())
    with served(lambda: load_model(str(tmp_path)), folder=tmp_path) as (client, _):
        body = {"history": ["item1", "item3", "item0"], "k": 8, "exclude_history": True, "denied_items": ["item2"]}
        found = client.post("/recommend", json=body).json()["recommendations"]
        options = {"k": 8, "exclude_history": True, "denied_items": ["item2"]}
        listed = [Recommendation(entry["item_id"], entry["score"]) for entry in found]
        assert same_ranking(listed, expected.recommend(body["history"], **options))
        vectors = {name: rows.tolist() for name, rows in raw_vectors(1).items()}
        added = client.post("/catalogue/items", json={"item_ids": ["new0"], "vectors": vectors}, headers=ADMIN)
        assert added.status_code == 200, added.text
        assert client.get("/catalogue").json()["new_item_ids"] == ["new0"]
        only = client.post("/recommend", json={"history": ["new0"], "allowed_items": ["new0", "item1"]}).json()["recommendations"]
        assert {entry["item_id"] for entry in only} == {"new0", "item1"}
        assert client.post("/catalogue/reload", headers=ADMIN).status_code == 200
        assert client.get("/catalogue").json()["new_items"] == 0


@pytest.mark.parametrize("kind", ["sasrec", "gru4rec"])
def test_networks_over_whole_items_are_served_from_their_folders(tmp_path: Path, kind: str) -> None:
    network = small_network(kind)
    network.save_pretrained(tmp_path)
    with served(lambda: load_recommender(str(tmp_path)), folder=tmp_path) as (client, service):
        filters = {"k": 8, "exclude_history": True, "denied_items": ["item2"], "allowed_items": [f"item{row}" for row in range(12)]}
        for body in ({}, {"history": ["item1", "item3"]}, {"history": ["item1", "item3"], **filters}):
            answer = client.post("/recommend", json=body).json()
            found = [(entry["item_id"], entry["score"]) for entry in answer["recommendations"]]
            options = {name: value for name, value in body.items() if name != "history"}
            assert same_ranking(found, network.recommend(body.get("history", []), **options))
            assert set(answer) == {"recommendations", "unknown", "catalogue"}
            assert answer["catalogue"] == client.get("/catalogue").json()["fingerprint"] == service.recommender.catalogue.fingerprint
        titled = client.post("/recommend", json={"allowed_items": ["item1"]}).json()["recommendations"]
        assert [entry["title"] for entry in titled] == ["One"]
        unknown = {"history": ["gone", "item1"]}
        assert problem(client.post("/recommend", json=unknown), 422)["unknown"] == ["gone"]
        skipped = client.post("/recommend", json={**unknown, "on_unknown": "skip"}).json()
        assert skipped["unknown"] == ["gone"]
        assert client.get("/health/ready").json() == {"status": "ready"}
        samples = counted(client)
    assert samples["cemg_requests_total", "/recommend", "200"] == 5
    assert samples["cemg_requests_total", "/recommend", "422"] == 1
    assert samples["cemg_catalogue_items",] == 60


def test_settings_of_codes_are_a_problem_to_a_network_over_whole_items() -> None:
    with served(small_network) as (client, service):
        for name in ("num_beams", "max_per_first_code", "min_first_codes"):
            content = problem(client.post("/recommend", json={name: 10}), 422)
            assert content["detail"].startswith(f"{name}: is for models that write item codes")
            assert [error["loc"] for error in content["errors"]] == [["body", name]]
        content = problem(client.post("/recommend/batch", json=[{}, {"num_beams": 20, "min_first_codes": 2}]), 422)
        assert [error["loc"] for error in content["errors"]] == [["body", 1, "num_beams"], ["body", 1, "min_first_codes"]]
        assert "(and 1 more)" in content["detail"]
        assert service.batcher.length == 0


def test_requests_of_every_kind_share_a_pass_of_a_network_over_whole_items() -> None:
    network = small_network()
    held = HeldModel(network)
    bodies = [
        {"k": 30},
        {"history": ["item1"], "exclude_history": True},
        {"allowed_items": ["item5"]},
        {"denied_items": ["item5"], "k": 60},
    ]
    with served(lambda: network, max_wait_ms=0) as (client, service), ThreadPoolExecutor(8) as pool:
        held.hold()
        first = pool.submit(client.post, "/recommend", json={})
        assert held.busy.wait(60)
        others = [pool.submit(client.post, "/recommend", json=body) for body in bodies]
        wait_for(lambda: service.batcher.length == 4)
        held.go.set()
        answers = [task.result().json()["recommendations"] for task in [first, *others]]
        samples = counted(client)
    assert [len(answer) for answer in answers] == [10, 30, 10, 1, 59]
    assert samples["cemg_batch_size_count",] == 2


def test_left_out_settings_are_those_of_recommend(client: TestClient) -> None:
    found = client.post("/recommend", json={}).json()["recommendations"]
    expected = small_model().recommend([])
    assert same_ranking([Recommendation(entry["item_id"], entry["score"]) for entry in found], expected)


def test_titles_stand_beside_the_items_that_have_one(client: TestClient) -> None:
    found = client.post("/recommend", json={"allowed_items": ["item1", "item2"]}).json()["recommendations"]
    assert {entry["item_id"]: entry.get("title") for entry in found} == {"item1": "One", "item2": None}
    assert all(("title" in entry) == (entry["item_id"] == "item1") for entry in found)


def test_filters_and_history_compose(client: TestClient) -> None:
    body = {"history": ["item1"], "allowed_items": ["item1", "item2", "item3"], "denied_items": ["item3"], "exclude_history": True}
    assert [entry["item_id"] for entry in client.post("/recommend", json=body).json()["recommendations"]] == ["item2"]


def test_unknown_items_are_named_or_skipped(client: TestClient) -> None:
    body = {"history": ["gone", "item1", "gone"], "denied_items": ["lost"]}
    content = problem(client.post("/recommend", json=body), 422)
    assert content["unknown"] == ["gone", "lost"]
    assert "'gone' and 1 more" in content["detail"]
    skipped = client.post("/recommend", json={**body, "on_unknown": "skip"}).json()
    assert skipped["unknown"] == ["gone", "lost"]
    assert skipped["recommendations"] == client.post("/recommend", json={"history": ["item1"]}).json()["recommendations"]


def test_a_list_of_requests_is_answered_in_order_or_not_at_all(client: TestClient) -> None:
    bodies = [{"history": [f"item{row}"], "k": row + 1} for row in range(4)]
    answers = client.post("/recommend/batch", json=bodies).json()
    for body, answer in zip(bodies, answers, strict=True):
        alone = client.post("/recommend", json=body).json()
        assert [entry["item_id"] for entry in answer["recommendations"]] == [entry["item_id"] for entry in alone["recommendations"]]
    bodies[2]["history"] = ["gone"]
    content = problem(client.post("/recommend/batch", json=bodies), 422)
    assert [(error["loc"], error["unknown"]) for error in content["errors"]] == [(["body", 2], ["gone"])]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"history": ["item1"] * 7}, ["body", "history"]),
        ({"history": "item1"}, ["body", "history"]),
        ({"history": [1]}, ["body", "history", 0]),
        ({"history": [""]}, ["body", "history", 0]),
        ({"history": ["i" * 600]}, ["body", "history", 0]),
        ({"k": 0}, ["body", "k"]),
        ({"k": 26}, ["body", "k"]),
        ({"k": "5"}, ["body", "k"]),
        ({"k": 5.5}, ["body", "k"]),
        ({"num_beams": 41}, ["body", "num_beams"]),
        ({"k": 10, "num_beams": 9}, ["body"]),
        ({"k": 3, "max_per_first_code": 4}, ["body"]),
        ({"min_first_codes": 0}, ["body", "min_first_codes"]),
        ({"on_unknown": "ignore"}, ["body", "on_unknown"]),
        ({"exclude_history": "yes"}, ["body", "exclude_history"]),
        ({"allowed_items": ["item1"] * 6}, ["body", "allowed_items"]),
        ({"denied_items": [None]}, ["body", "denied_items", 0]),
        ({"exclude_histroy": True}, ["body", "exclude_histroy"]),
    ],
)
def test_wrong_and_too_large_settings_are_named(client: TestClient, change: dict[str, Any], place: list[Any]) -> None:
    content = problem(client.post("/recommend", json=change), 422)
    assert [error["loc"] for error in content["errors"]] == [place]


def test_what_is_no_request_is_a_problem_too(client: TestClient) -> None:
    problem(client.post("/recommend", content=b"{", headers={"content-type": "application/json"}), 422)
    problem(client.post("/recommend", json=[]), 422)
    problem(client.post("/recommend/batch", json=[]), 422)
    problem(client.post("/recommend/batch", json=[{}] * 5), 422)
    problem(client.get("/nowhere"), 404)
    problem(client.get("/recommend"), 405)


def test_large_bodies_are_refused_by_their_length_or_while_they_arrive(client: TestClient) -> None:
    body = b'{"history": ["' + b"i" * 2000 + b'"]}'
    problem(client.post("/recommend", content=body, headers={"content-type": "application/json"}), 413)
    pieces = (body[start : start + 100] for start in range(0, len(body), 100))
    problem(client.post("/recommend", content=pieces, headers={"content-type": "application/json"}), 413)


# ---- under load ---------------------------------------------------------------------------------------------------------------


def test_a_full_queue_is_429_and_every_request_that_was_taken_is_answered() -> None:
    model = small_model()
    held = HeldModel(model)
    with served(lambda: model, queue_size=4, max_requests=4, max_batch_size=4, max_wait_ms=0) as (client, service):
        held.hold()
        with ThreadPoolExecutor(8) as pool:
            first = pool.submit(client.post, "/recommend", json={"history": ["item0"]})
            assert held.busy.wait(60)
            others = [pool.submit(client.post, "/recommend", json={"history": [f"item{row}"], "k": row}) for row in range(1, 5)]
            wait_for(lambda: service.batcher.length == 4)
            refused = client.post("/recommend", json={})
            assert "4 requests are waiting" in problem(refused, 429)["detail"]
            assert int(refused.headers["retry-after"]) >= 1
            held.go.set()
            answers = [task.result() for task in [first, *others]]
        assert [answer.status_code for answer in answers] == [200] * 5
        assert [len(answer.json()["recommendations"]) for answer in answers] == [10, 1, 2, 3, 4]
        samples = counted(client)
    assert samples["cemg_requests_total", "/recommend", "200"] == 5
    assert samples["cemg_requests_total", "/recommend", "429"] == 1
    assert samples["cemg_batch_size_count",] == 2
    assert samples["cemg_batch_size_sum",] == samples["cemg_queue_seconds_count",] == 5
    assert samples["cemg_model_seconds_count",] == 2
    assert samples["cemg_queue_length",] == 0
    assert samples["cemg_catalogue_items",] == 60


def test_a_request_that_waits_too_long_is_504() -> None:
    model = small_model()
    held = HeldModel(model)
    with served(lambda: model, deadline_seconds=0.05) as (client, service):
        held.hold()
        problem(client.post("/recommend", json={}), 504)
        held.go.set()
        wait_for(lambda: client.post("/recommend", json={}).status_code == 200)
        assert service.batcher.length == 0


def test_a_failure_of_the_model_is_500_and_the_service_goes_on() -> None:
    model = small_model()
    with served(lambda: model) as (client, _):
        original = model.recommend
        model.recommend = lambda *arguments, **options: 1 / 0
        assert "log" in problem(client.post("/recommend", json={}), 500)["detail"]
        model.recommend = original
        assert client.post("/recommend", json={}).status_code == 200


def test_alive_but_not_ready_while_loading() -> None:
    may_load = threading.Event()

    def load() -> Any:
        assert may_load.wait(60)
        return small_model()

    with served(load, ready=False) as (client, _):
        assert client.get("/health/live").json() == {"status": "loading"}
        for response in (client.get("/health/ready"), client.post("/recommend", json={}), client.get("/catalogue")):
            assert "loaded" in problem(response, 503)["detail"]
            assert "retry-after" in response.headers
        assert client.get("/metrics").status_code == 200
        may_load.set()
        wait_for(lambda: client.get("/health/ready").status_code == 200)
        assert client.post("/recommend", json={}).status_code == 200


def test_a_model_that_cannot_be_loaded_is_told() -> None:
    def load() -> Any:
        raise CEMGError("nowhere: no such model")

    with served(load, ready=False) as (client, service):
        wait_for(lambda: service.state == "failed")
        assert problem(client.get("/health/live"), 503)["detail"] == "nowhere: no such model"
        problem(client.post("/recommend", json={}), 503)
    with served(small_model, ready=False, new_item_boost=0.0, new_item_dense=1.0) as (_, service):  # this tokenizer has no content vectors
        wait_for(lambda: service.state == "failed")
        assert isinstance(service.failure, CEMGError)
        assert "refuses the service's settings: new_item_dense needs content vectors" in str(service.failure)


def test_stopping_refuses_what_is_new_and_finishes_what_is_queued() -> None:
    model = small_model()
    held = HeldModel(model)
    with served(lambda: model) as (client, service), ThreadPoolExecutor(2) as pool:
        held.hold()
        running = pool.submit(client.post, "/recommend", json={})
        assert held.busy.wait(60)
        queued = pool.submit(client.post, "/recommend", json={"k": 3})
        wait_for(lambda: service.batcher.length == 1)
        client.portal.call(service.stop)
        refused = client.post("/recommend", json={})
        assert "stopping" in problem(refused, 503)["detail"]
        assert refused.headers["connection"] == "close"
        problem(client.get("/health/ready"), 503)
        assert client.get("/health/live").json() == {"status": "stopping"}
        held.go.set()
        assert running.result().status_code == 200
        assert len(queued.result().json()["recommendations"]) == 3


# ---- what the service says of itself -----------------------------------------------------------------------------------------


def test_the_api_is_described_with_its_limits_and_problems(client: TestClient) -> None:
    assert client.get("/docs").status_code == 200
    described = client.get("/openapi.json").json()
    request = described["components"]["schemas"]["RecommendRequest"]["properties"]
    assert request["history"]["maxItems"] == LIMITS["max_history"]
    assert request["k"]["maximum"] == LIMITS["max_k"]
    assert request["k"]["description"]
    for name in ("num_beams", "max_per_first_code", "min_first_codes"):
        assert "a network over whole items (SASRec, GRU4Rec) answers 422" in request[name]["description"]
    assert {"413", "422", "429", "503", "504"} <= set(described["paths"]["/recommend"]["post"]["responses"])
    assert "application/problem+json" in described["paths"]["/recommend"]["post"]["responses"]["429"]["content"]


def test_lists_spread_over_branches_are_a_problem_where_new_items_have_beams_of_their_own() -> None:
    with served(small_model, new_item_boost=0.0) as (client, _):
        content = problem(client.post("/recommend", json={"k": 5, "max_per_first_code": 2}), 422)
        assert "max_per_first_code: does not go with the new_item_boost of this service" in content["detail"]


def test_routes_that_change_the_catalogue_need_the_token_and_are_absent_without_one(client: TestClient) -> None:
    changes = [("POST", "/catalogue/items"), ("DELETE", "/catalogue/items"), ("POST", "/catalogue/reload")]
    before = client.get("/catalogue").json()
    for method, path in changes:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic secret"},
            {"Authorization": "Bearer sécret".encode()},
        ):
            refused = client.request(method, path, headers=headers, json={"item_ids": ["item1"]})
            problem(refused, 401)
            assert refused.headers["www-authenticate"] == "Bearer"
    assert client.get("/catalogue").json() == before
    with served(small_model, admin=False) as (bare, _):
        for method, path in changes:
            assert bare.request(method, path, headers=ADMIN, json={"item_ids": ["item1"]}).status_code in (404, 405)
        assert not any(path in bare.get("/openapi.json").json()["paths"] for _, path in changes)
