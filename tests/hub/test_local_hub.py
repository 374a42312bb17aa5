"""The local Hub speaks as the Hub does, and what breaks while the client downloads leaves nothing half-cached."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_hub import ClientProblem, Clients, Fault, LocalHub
from local_hub.store import File, HubError, large_file, regular_file

SIZE = 400_000


@pytest.fixture
def filled(repo: str, hub: LocalHub, publisher: Clients) -> str:
    """A repository with a text, a file in a folder and a large file."""
    publisher("api", method="create_repo", repo_id=repo)
    files = {
        "config.json": regular_file(b'{"a": 1}'),
        "deep/er/notes.md": regular_file(b"notes"),
        "model.safetensors": stored(hub, repo, SIZE),
    }
    hub.repositories["model", repo].commit("main", {"summary": "made"}, files, [])
    return repo


def stored(hub: LocalHub, name: str, size: int) -> File:
    """A large file of random bytes that is in the store."""
    content = np.random.default_rng(zlib.crc32(name.encode())).bytes(size)
    oid = hashlib.sha256(content).hexdigest()
    hub.objects.path(oid).write_bytes(content)
    return large_file(oid, size)


def cached(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() and "blobs" in path.parts]


def assert_complete(snapshot: str, hub: LocalHub, repo: str) -> None:
    found = {str(path.relative_to(snapshot)): path.read_bytes() for path in Path(snapshot).rglob("*") if path.is_file()}
    found.pop(".gitattributes")
    assert found == {path: hub.content(repo, path) for path in hub.files(repo)}


# ---- the protocol ----------------------------------------------------------------------------------------------------------


def test_who_and_what_is_there(hub: LocalHub, publisher: Clients, filled: str) -> None:
    assert publisher("api", method="whoami")["orgs"] == [{"name": "org"}]
    assert publisher("api", method="model_info", repo_id=filled)["sha"] == hub.head(filled)
    assert not publisher("api", method="repo_exists", repo_id="org/never-made")
    assert publisher("api", method="file_exists", repo_id=filled, filename="deep/er/notes.md")
    assert not publisher("api", method="file_exists", repo_id=filled, filename="deep/er/none.md")
    commits = publisher("api", method="list_repo_commits", repo_id=filled)
    assert [commit["title"] for commit in commits] == ["made", "initial commit"]


def test_listings_come_in_pages(hub: LocalHub, publisher: Clients, filled: str) -> None:
    hub.page, before = 2, hub.page
    try:
        tree = publisher("api", method="list_repo_tree", repo_id=filled, recursive=True)
    finally:
        hub.page = before
    assert [entry["path"] for entry in tree] == sorted([".gitattributes", "deep", "deep/er", *hub.files(filled)])
    assert [entry.get("size") for entry in tree][-2:] == [5, SIZE]
    flat = publisher("api", method="list_repo_tree", repo_id=filled, path_in_repo="deep")
    assert [entry["path"] for entry in flat] == ["deep/er"]
    infos = publisher("api", method="get_paths_info", repo_id=filled, paths=["model.safetensors", "none", "deep"])
    assert [entry["path"] for entry in infos] == ["model.safetensors", "deep"]


def test_branches_and_tags_point_to_commits(hub: LocalHub, publisher: Clients, filled: str) -> None:
    head = hub.head(filled)
    publisher("api", method="create_branch", repo_id=filled, branch="draft/one")
    publisher("api", method="create_tag", repo_id=filled, tag="v1", revision="draft/one")
    new = publisher("add", repo=filled, files={"config.json": "{}"}, revision="draft/one")
    assert hub.repositories["model", filled].branches == {"main": head, "draft/one": new}
    assert publisher("api", method="model_info", repo_id=filled, revision="v1")["sha"] == head
    assert publisher("api", method="model_info", repo_id=filled, revision=new[:10])["sha"] == new
    with pytest.raises(ClientProblem, match="RevisionNotFoundError"):
        publisher("api", method="model_info", repo_id=filled, revision="v2")


def test_an_object_that_is_not_what_it_is_called_is_not_kept(hub: LocalHub) -> None:
    (hub.objects.folder / "incoming" / "ab").write_bytes(b"half")
    with pytest.raises(HubError, match="the uploaded content is"):
        hub.objects.accept("ab", ["ab"])
    assert "ab" not in hub.objects


# ---- downloads that break --------------------------------------------------------------------------------------------------


def test_a_download_cut_off_goes_on_where_it_ended(hub: LocalHub, publisher: Clients, filled: str, tmp_path: Path) -> None:
    large = stored(hub, filled, 24_000_000)  # the client writes blocks of 10 MB, and continues after the last whole one
    hub.repositories["model", filled].commit("main", {}, {"model.safetensors": large}, [])
    with hub.failing(Fault("GET", "/objects/", cut="closed")):
        assert_complete(publisher("snapshot", repo=filled, cache_dir=tmp_path), hub, filled)
        assert hub.faults[0].seen == 1
    assert [one.status for one in hub.asked if one.method == "GET" and "/objects/" in one.path][-1] == 206


@pytest.mark.parametrize(
    "fault",
    [
        {"path": "/objects/", "cut": "reset"},
        {"path": "/objects/", "status": 503},
        {"path": "/resolve/.*config.json", "status": 500},
        {"path": "/tree/|/api/models/", "status": 403},
    ],
    ids=["reset", "503", "500", "no listing"],
)
def test_what_breaks_a_download_leaves_nothing_half_cached(
    hub: LocalHub, publisher: Clients, filled: str, tmp_path: Path, fault: dict[str, Any]
) -> None:
    with hub.failing(Fault("GET", times=None, **fault)), pytest.raises(ClientProblem):
        publisher("snapshot", repo=filled, cache_dir=tmp_path)
    whole = [hub.content(filled, path) for path in hub.files(filled)] + [hub.content(filled, ".gitattributes")]
    assert all(path.read_bytes() in whole for path in cached(tmp_path))
    assert_complete(publisher("snapshot", repo=filled, cache_dir=tmp_path), hub, filled)


def test_a_full_disk_of_the_client_leaves_nothing_half_cached(hub: LocalHub, publisher: Clients, filled: str, tmp_path: Path) -> None:
    with pytest.raises(ClientProblem, match="File too large"):
        publisher("snapshot", repo=filled, cache_dir=tmp_path, largest=SIZE // 2)
    assert all(path.stat().st_size < SIZE // 2 and "incomplete" not in path.name for path in cached(tmp_path))
    assert_complete(publisher("snapshot", repo=filled, cache_dir=tmp_path), hub, filled)
