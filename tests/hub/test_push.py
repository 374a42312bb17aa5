"""One atomic commit, whatever happens on the way; the client is unmodified, what goes wrong goes wrong at the server or in its process."""

from __future__ import annotations

import os
import signal
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_hub import ClientProblem, Clients, Fault, LocalHub

SIZE = 600_000
AGAIN = "it holds all of the push or nothing; run the same command again, what was uploaded is not sent twice"


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A model folder with two large files that no other test has uploaded."""
    random = np.random.default_rng(zlib.crc32(request.node.name.encode()))
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "cemg"}')
    for name in ("model.safetensors", "rqvae.safetensors"):
        (made / name).write_bytes(random.bytes(SIZE))
    return made


def assert_published(hub: LocalHub, repo: str, folder: Path) -> None:
    assert hub.files(repo).keys() == {path.name for path in folder.iterdir()}
    assert all(hub.content(repo, path.name) == path.read_bytes() for path in folder.iterdir())
    assert hub.commits(repo) == ["push"]


def failed(publisher: Clients, folder: Path, repo: str, **settings: Any) -> str:
    with pytest.raises(ClientProblem) as problem:
        publisher("push", folder=folder, repo=repo, **settings)
    assert problem.value.kind == "CEMGError"
    assert problem.value.message.startswith(f"{repo}: ")
    return problem.value.message


def test_a_push_is_one_commit_and_a_second_one_is_none(hub: LocalHub, publisher: Clients, folder: Path, repo: str) -> None:
    first = publisher("push", folder=folder, repo=repo)
    assert_published(hub, repo, folder)
    assert (first["changed"], first["commit"], first["url"]) == (True, hub.head(repo), f"{hub.endpoint}/{repo}")
    second = publisher("push", folder=folder, repo=repo)
    assert (second["changed"], second["commit"]) == (False, first["commit"])
    assert hub.commits(repo) == ["push"]


def test_large_files_go_up_in_parts_where_the_hub_says_so(hub: LocalHub, publisher: Clients, folder: Path, repo: str) -> None:
    hub.multipart_over, before = 250_000, hub.multipart_over
    try:
        publisher("push", folder=folder, repo=repo)
    finally:
        hub.multipart_over = before
    assert sum(one.path.endswith(".3") for one in hub.asked) >= 2
    assert_published(hub, repo, folder)


@pytest.mark.parametrize("path", ["/preupload/", "/upload/"])
@pytest.mark.parametrize(
    "fault",
    [{"status": 503}, {"status": 429, "headers": {"Retry-After": "0"}}, {"cut": "closed"}, {"cut": "reset"}],
    ids=["503", "429", "closed", "reset"],
)
def test_what_happens_once_is_overcome_in_the_same_call(
    hub: LocalHub, publisher: Clients, folder: Path, repo: str, path: str, fault: dict[str, Any]
) -> None:
    method = "PUT" if path == "/upload/" else "POST"
    with hub.failing(Fault(method, path, **fault)):
        publisher("push", folder=folder, repo=repo)
        assert hub.faults[0].seen == 1
    assert_published(hub, repo, folder)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"status": 503, "times": None}, f"the Hub answered 503 (injected); {AGAIN}"),
        ({"status": 429, "times": None}, f"the Hub answered 429 (injected); {AGAIN}"),
        ({"cut": "closed", "times": None}, "the connection broke ("),
        ({"cut": "reset", "times": None}, "the connection broke ("),
        ({"status": 403, "times": None}, "not allowed (injected); take a token with write access to it, or another --repo"),
        ({"status": 400, "times": None}, "the Hub refused (400: injected)"),
    ],
    ids=["503", "429", "closed", "reset", "403", "400"],
)
def test_a_commit_that_fails_leaves_the_repository_as_it_was(
    hub: LocalHub, publisher: Clients, folder: Path, repo: str, fault: dict[str, Any], said: str
) -> None:
    with hub.failing(Fault("POST", "/commit/", **fault)):
        message = failed(publisher, folder, repo)
    assert said in message
    assert hub.files(repo) == {}
    hub.asked.clear()
    publisher("push", folder=folder, repo=repo)
    assert_published(hub, repo, folder)
    assert hub.received("/upload/") == 0, "what was uploaded is not sent twice"


def test_a_client_killed_half_way_through_an_upload_leaves_nothing(hub: LocalHub, publisher: Clients, folder: Path, repo: str) -> None:
    def kill() -> None:
        running = max((publisher.home / "jobs").iterdir())
        os.kill(int((running / "pid").read_text()), signal.SIGKILL)

    with hub.failing(Fault("PUT", "/upload/", on_half=kill)), pytest.raises(ClientProblem, match=f"signal: {signal.SIGKILL.value}"):
        publisher("push", folder=folder, repo=repo)
    assert hub.files(repo) == {}
    publisher("push", folder=folder, repo=repo)
    assert_published(hub, repo, folder)


def test_an_answer_that_is_lost_after_the_commit_costs_no_second_commit(hub: LocalHub, publisher: Clients, folder: Path, repo: str) -> None:
    with hub.failing(Fault("POST", "/commit/", after_work=True)):
        assert "run the same command again" in failed(publisher, folder, repo)
    assert not publisher("push", folder=folder, repo=repo)["changed"]
    assert_published(hub, repo, folder)


def test_a_hub_whose_disk_is_full_keeps_nothing_of_it(hub: LocalHub, publisher: Clients, folder: Path, repo: str) -> None:
    hub.objects.capacity = hub.objects.used + SIZE // 2
    used = hub.objects.used
    assert "the Hub answered 507 (No space left on device)" in failed(publisher, folder, repo)
    assert hub.files(repo) == {}
    assert hub.objects.used == used
    hub.objects.capacity = None
    publisher("push", folder=folder, repo=repo)
    assert_published(hub, repo, folder)


def test_what_somebody_else_commits_meanwhile_is_not_overwritten(hub: LocalHub, publisher: Clients, folder: Path, repo: str) -> None:
    from local_hub.store import regular_file

    def other() -> None:
        hub.repositories["model", repo].commit("main", {"summary": "theirs"}, {"config.json": regular_file(b"{}")}, [])

    with hub.failing(Fault("POST", "/commit/", meanwhile=other)):
        assert "somebody else has committed to it meanwhile" in failed(publisher, folder, repo)
    assert hub.commits(repo) == ["theirs"]
    assert hub.content(repo, "config.json") == b"{}"


def test_what_an_earlier_push_brought_and_this_one_does_not_goes_and_the_rest_stays(
    hub: LocalHub, publisher: Clients, folder: Path, repo: str
) -> None:
    publisher("api", method="create_repo", repo_id=repo)
    publisher("add", repo=repo, files={"model.safetensors.index.json": "{}", "pictures/one.txt": "mine", "old_cemg.py": "pass"})
    publisher("push", folder=folder, repo=repo)
    assert hub.files(repo).keys() == {"pictures/one.txt", *(path.name for path in folder.iterdir())}
    assert len(hub.commits(repo)) == 2


def test_a_branch_is_made_from_main(hub: LocalHub, publisher: Clients, folder: Path, repo: str) -> None:
    publisher("push", folder=folder, repo=repo, branch="draft")
    assert hub.files(repo) == {}
    assert hub.files(repo, revision="draft").keys() == {path.name for path in folder.iterdir()}


def test_private_is_not_promised_for_a_repository_that_is_public(hub: LocalHub, publisher: Clients, folder: Path, repo: str) -> None:
    publisher("api", method="create_repo", repo_id=repo)
    assert "exists and is public, --private does not change it" in failed(publisher, folder, repo, private=True)
    assert hub.files(repo) == {}


def test_a_name_of_somebody_else_and_a_broken_card_are_refused(hub: LocalHub, publisher: Clients, folder: Path, repo: str) -> None:
    assert "not allowed (You don't have the rights" in failed(publisher, folder, "stranger/model")
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    assert "correct what it names" in failed(publisher, folder, repo)
    assert hub.files(repo) == {}


@pytest.mark.slow  # the client tries six times before it gives up
@pytest.mark.parametrize("fault", [{"status": 503}, {"cut": "reset"}], ids=["503", "reset"])
def test_an_upload_that_never_works_ends_with_what_to_do(
    hub: LocalHub, publisher: Clients, folder: Path, repo: str, fault: dict[str, Any]
) -> None:
    with hub.failing(Fault("PUT", "/upload/", times=None, **fault)):
        assert AGAIN in failed(publisher, folder, repo)
    assert hub.files(repo) == {}
    publisher("push", folder=folder, repo=repo)
    assert_published(hub, repo, folder)
