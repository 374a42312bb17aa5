from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from serving_samples import ADMIN, HeldModel, served, small_model, small_network, wait_for

from cemg_hf.serving.service import RecommendService
from cemg_hf.training.loading import open_tokenizer

NEW = {"item_ids": ["new1", "new2"], "vectors": {"text": [[0.1] * 9, [-0.3] * 9]}}
Served = tuple[TestClient, RecommendService]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def running(folder: Path) -> Iterator[Served]:
    with served(small_model, folder=folder) as pair:
        yield pair


def change(client: TestClient, method: str, path: str, body: Any = None) -> dict[str, Any]:
    response = client.request(method, path, json=body, headers=ADMIN)
    assert response.status_code == 200, response.text
    return response.json()


def test_items_are_added_and_removed_as_the_tokenizer_does(running: Served) -> None:
    client, _ = running
    before = client.get("/catalogue").json()
    expected = small_model().tokenizer
    assert (before["items"], before["new_items"]) == (60, 0)

    expected.add_items(NEW["item_ids"], {"text": torch.tensor(NEW["vectors"]["text"])})
    added = change(client, "POST", "/catalogue/items", NEW)
    assert (added["items"], added["fingerprint"]) == (62, expected.catalogue_fingerprint)
    state = client.get("/catalogue").json()
    assert (state["new_items"], state["new_item_ids"]) == (2, ["new1", "new2"])
    answer = client.post("/recommend", json={"history": ["new1"], "k": 62, "num_beams": 62}).json()
    assert {entry["item_id"] for entry in answer["recommendations"]} == set(expected.item_ids)
    assert answer["catalogue"] == expected.catalogue_fingerprint

    expected.remove_items(["item7", "new1"])
    removed = change(client, "DELETE", "/catalogue/items", {"item_ids": ["item7", "new1"]})
    assert (removed["items"], removed["fingerprint"]) == (60, expected.catalogue_fingerprint)
    assert client.post("/recommend", json={"history": ["item7"]}).json()["unknown"] == ["item7"]
    answer = client.post("/recommend", json={"k": 60, "num_beams": 60}).json()
    assert {entry["item_id"] for entry in answer["recommendations"]} == set(expected.item_ids)


def test_a_network_over_whole_items_loses_items_and_gets_them_back_but_takes_no_new_ones(tmp_path: Path) -> None:
    small_network().save_pretrained(tmp_path)
    with served(small_network, folder=tmp_path) as (client, _):
        before = client.get("/catalogue").json()
        assert (before["items"], before["new_items"], before["new_item_ids"]) == (60, 0, [])
        removed = change(client, "DELETE", "/catalogue/items", {"item_ids": ["item7"]})
        assert removed["items"] == 59
        assert removed["fingerprint"] != before["fingerprint"]
        answer = client.post("/recommend", json={"k": 60}).json()
        assert answer["catalogue"] == removed["fingerprint"]
        assert {entry["item_id"] for entry in answer["recommendations"]} == {f"item{row}" for row in range(60)} - {"item7"}
        assert client.post("/recommend", json={"history": ["item7"]}).json()["unknown"] == ["item7"]
        refused = client.post("/catalogue/items", json=NEW, headers=ADMIN)
        assert refused.status_code == 422
        assert "takes no new ones; train it again" in refused.json()["detail"]
        assert client.get("/catalogue").json()["items"] == 59
        assert change(client, "POST", "/catalogue/reload") == {name: before[name] for name in ("items", "fingerprint")}
        assert len(client.post("/recommend", json={"k": 60}).json()["recommendations"]) == 60
        small_network(num_items=40).save_pretrained(tmp_path / "stranger")
        stranger = client.post("/catalogue/reload", json={"folder": str(tmp_path / "stranger")}, headers=ADMIN)
        assert stranger.status_code == 422
        assert "do not belong together" in stranger.json()["detail"]


def test_new_items_are_ranked_by_the_settings_of_the_service(folder: Path) -> None:
    with served(small_model, new_item_boost=100.0) as (client, _):
        change(client, "POST", "/catalogue/items", NEW)
        found = client.post("/recommend", json={"k": 2}).json()["recommendations"]
        assert {entry["item_id"] for entry in found} == {"new1", "new2"}


@pytest.mark.parametrize(
    ("method", "path", "body", "message"),
    [
        ("POST", "items", {**NEW, "item_ids": ["item1", "new2"]}, "'item1' exists"),
        ("POST", "items", {**NEW, "item_ids": ["new1"]}, "2 rows for 1 item ids"),
        ("POST", "items", {**NEW, "vectors": {"text": [[1.0]] * 2}}, "dimension 1, expected 9"),
        ("POST", "items", {**NEW, "vectors": {"sound": [[1.0]] * 2}}, "'sound'"),
        ("POST", "items", {**NEW, "vectors": {"text": [[0.1] * 9, [0.1] * 8]}}, "rows of different length"),
        ("POST", "items", {**NEW, "vectors": {}}, "vectors: empty"),
        ("POST", "items", {**NEW, "masks": {"text": [True, False]}}, "'new2' has no modality"),
        ("POST", "items", {**NEW, "item_ids": []}, "body.item_ids"),
        ("DELETE", "items", {"item_ids": ["gone"]}, "'gone' is not among"),
        ("DELETE", "items", {"item_ids": [f"item{row}" for row in range(60)]}, "at least one"),
        ("POST", "reload", {"folder": "/nowhere"}, "not a tokenizer folder"),
    ],
)
def test_changes_that_cannot_be_made_leave_the_catalogue_as_it_was(
    running: Served, method: str, path: str, body: dict[str, Any], message: str
) -> None:
    client, _ = running
    before = client.get("/catalogue").json()
    refused = client.request(method, f"/catalogue/{path}", json=body, headers=ADMIN)
    assert refused.status_code == 422, refused.text
    assert message in refused.json()["detail"]
    assert client.get("/catalogue").json() == before
    assert client.post("/recommend", json={"history": ["item1"]}).json()["catalogue"] == before["fingerprint"]


def test_reload_reads_what_the_folder_holds_now(running: Served, folder: Path, tmp_path: Path) -> None:
    client, _ = running
    original = client.get("/catalogue").json()["fingerprint"]
    tokenizer = open_tokenizer(folder)
    tokenizer.remove_items(["item3"])
    tokenizer.save_pretrained(folder)
    assert change(client, "POST", "/catalogue/reload") == {"items": 59, "fingerprint": tokenizer.catalogue_fingerprint}
    small_model().save_pretrained(tmp_path / "other")
    assert change(client, "POST", "/catalogue/reload", {"folder": str(tmp_path / "other")})["fingerprint"] == original
    small_model(40).save_pretrained(tmp_path / "stranger")
    refused = client.post("/catalogue/reload", json={"folder": str(tmp_path / "stranger")}, headers=ADMIN)
    assert refused.status_code == 422
    assert "do not belong together" in refused.json()["detail"]
    samples = client.get("/metrics").text
    assert 'cemg_catalogue_changes_total{kind="reload",outcome="done"} 2.0' in samples
    assert 'cemg_catalogue_changes_total{kind="reload",outcome="failed"} 1.0' in samples


def test_a_model_without_a_folder_needs_one_named(folder: Path) -> None:
    with served(small_model) as (client, _):
        assert client.post("/catalogue/reload", headers=ADMIN).status_code == 422
        assert change(client, "POST", "/catalogue/reload", {"folder": str(folder)})["items"] == 60


def test_an_answer_under_way_finishes_on_the_catalogue_it_began_with() -> None:
    model = small_model()
    held = HeldModel(model)
    with served(lambda: model) as (client, service), ThreadPoolExecutor(3) as pool:
        before = client.get("/catalogue").json()["fingerprint"]
        held.hold()
        body = {"history": ["item3"], "k": 60, "num_beams": 60}
        running = pool.submit(client.post, "/recommend", json=body)
        assert held.busy.wait(60)
        changing = pool.submit(change, client, "DELETE", "/catalogue/items", {"item_ids": ["item3"]})
        queued = pool.submit(client.post, "/recommend", json={**body, "on_unknown": "skip"})
        wait_for(lambda: service.batcher.length == 1)
        assert client.get("/catalogue").json()["fingerprint"] == before
        # The change waits for the model's thread too; which of it and the queued request comes first is open.
        held.go.set()
        after = changing.result()["fingerprint"]
        answer = running.result().json()
        assert answer["catalogue"] == before
        assert "item3" in {entry["item_id"] for entry in answer["recommendations"]}
        late = queued.result().json()
        assert late["unknown"] == (["item3"] if late["catalogue"] == after else [])
        assert ("item3" in {entry["item_id"] for entry in late["recommendations"]}) == (late["catalogue"] == before)


def test_changes_come_one_after_the_other_and_none_is_lost(running: Served) -> None:
    client, _ = running
    bodies = [{"item_ids": [f"new{row}"], "vectors": {"text": [[0.01 * row] * 9]}} for row in range(8)]
    with ThreadPoolExecutor(8) as pool:
        changed = list(pool.map(lambda body: change(client, "POST", "/catalogue/items", body), bodies))
    assert sorted(state["items"] for state in changed) == list(range(61, 69))
    assert set(client.get("/catalogue").json()["new_item_ids"]) == {f"new{row}" for row in range(8)}
