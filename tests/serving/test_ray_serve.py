"""Two replicas on a local Ray, started and asked by a process of its own: Ray leaves threads and handlers behind in its driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving_samples import same_ranking, small_model, small_network

from cemg_hf import Recommendation

SCRIPT = """
import json, socket, sys, time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen

import ray
from ray import serve
from cemg_hf.serving.ray_serve import DeploymentArguments, build

folder, grown, requests = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": port})
arguments = {"model": folder, "replicas": 2, "cpus": 0.5, "device": "cpu", "settings": {"max_batch_size": 4, "max_history": 9}}


def ask(body):
    request = Request(f"http://127.0.0.1:{port}/recommend", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as response:
        return json.load(response)


def replicas():
    # A replica's metrics tell when it made them, to the microsecond, and count what it answered.
    found = {}
    deadline = time.monotonic() + 60
    while len(found) < 2:
        assert time.monotonic() < deadline, found
        lines = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode().splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        found[values["cemg_batch_size_created"]] = float(values["cemg_batch_size_sum"])
    return found


serve.run(build(DeploymentArguments(**arguments)))
with ThreadPoolExecutor(16) as pool:
    before = list(pool.map(ask, requests))
counts = list(replicas().values())
serve.run(build(DeploymentArguments(**arguments, catalogue=grown)))
with ThreadPoolExecutor(16) as pool:
    after = list(pool.map(ask, requests))
print("RESULT" + json.dumps({"before": before, "counts": counts, "after": after}))
serve.shutdown()
ray.shutdown()
"""


def on_two_replicas(model: Path, catalogue: Path, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """Answers before and after both replicas have read another catalogue, and how many each gave before."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), str(catalogue), json.dumps(asked)],
        capture_output=True,
        text=True,
        timeout=600,
        # Ray's workers yield to everybody else, and its proxy has 15 s to start: on a busy machine both end badly.
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_worker_niceness": "0"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[6:])
    return result


@pytest.mark.slow
def test_replicas_of_a_network_over_whole_items_answer_as_it_does(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'cemg-hf[ray]'")
    network = small_network()
    network.save_pretrained(tmp_path)
    asked = [{"history": [f"item{row % 60}", f"item{row % 7}"], "k": 5, "exclude_history": True} for row in range(120)]
    result = on_two_replicas(tmp_path, tmp_path, asked)
    assert sum(result["counts"]) == len(asked)
    assert min(result["counts"]) > 0
    expected = network.recommend([body["history"] for body in asked], k=5, exclude_history=True)
    for answers in (result["before"], result["after"]):
        for ranking, answer in zip(expected, answers, strict=True):
            assert same_ranking([(entry["item_id"], entry["score"]) for entry in answer["recommendations"]], ranking)


@pytest.mark.slow
def test_two_replicas_answer_as_the_model_and_both_take_a_new_catalogue(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'cemg-hf[ray]'")
    model = small_model()
    model.save_pretrained(tmp_path / "model")
    requests = [{"history": [f"item{row % 60}", f"item{row % 7}"], "k": 5, "exclude_history": True} for row in range(120)]
    expected = [model.recommend(body["history"], k=5, exclude_history=True) for body in requests]
    fingerprint = model.tokenizer.catalogue_fingerprint
    model.tokenizer.remove_items(["item59"])
    model.tokenizer.save_pretrained(tmp_path / "grown")
    asked = [body for body in requests if "item59" not in body["history"]]
    result = on_two_replicas(tmp_path / "model", tmp_path / "grown", asked)
    wanted = [ranking for body, ranking in zip(requests, expected, strict=True) if "item59" not in body["history"]]
    for ranking, answer in zip(wanted, result["before"], strict=True):
        found = [Recommendation(entry["item_id"], entry["score"]) for entry in answer["recommendations"]]
        assert [item_id for item_id, _ in found] == [item_id for item_id, _ in ranking]
        assert [score for _, score in found] == pytest.approx([score for _, score in ranking], abs=1e-4)
        assert answer["catalogue"] == fingerprint
    assert len(result["counts"]) == 2
    assert min(result["counts"]) > 0
    assert sum(result["counts"]) == len(asked), "between them the two answered every request once"
    for answer in result["after"]:
        assert answer["catalogue"] == model.tokenizer.catalogue_fingerprint, "every replica has read the new catalogue"
