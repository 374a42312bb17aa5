"""Publishing and pulling with the oldest clients that are supported: transformers 5.17 and huggingface_hub 1."""

from __future__ import annotations

import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_samples import MODEL_FILES, histories, recommended
from local_hub import ClientProblem, Clients, Fault, LocalHub

import cemg_hf
from cemg_hf.hub.export import export_model

pytestmark = pytest.mark.slow  # makes an environment


@pytest.fixture(scope="module")
def oldest(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    """Processes of an environment with transformers 5.17 and huggingface_hub 1, over the packages of this one."""
    folder = tmp_path_factory.mktemp("oldest")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "transformers==5.17.*", "huggingface-hub>=1,<2"], check=True)
    subprocess.run([*install, "httpx"], check=True)
    packages = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip()
    Path(packages, "base.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    checkout = str(Path(cemg_hf.__file__).parents[1])  # not imported beforehand: what is pulled runs without it
    with hub.clients(
        folder / "home",
        python=str(python),
        preload=("transformers.models.t5.modeling_t5", "datasets"),
        environment={"PYTHONPATH": checkout},
    ) as clients:
        yield clients


def test_the_oldest_clients_publish_pull_and_resume(finished: Path, hub: LocalHub, oldest: Clients, tmp_path: Path) -> None:
    assert oldest("versions") == {"transformers": "5.17", "huggingface_hub": "1"}
    arguments = [finished, "--repo", "org/oldest", "--dataset-repo", "org/oldest-data"]
    with hub.failing(Fault("POST", "/models/.*/commit/", status=503)):
        assert "the Hub answered 503" in oldest("publish", arguments=arguments)["errors"][0]
    assert hub.files("org/oldest") == {}
    again = oldest("publish", arguments=arguments)
    assert "dataset org/oldest-data: nothing to change" in again["output"]
    assert "model org/oldest: commit" in again["output"]
    assert oldest("publish", arguments=arguments)["output"].count("nothing to change") == 2

    asked = {"repo": "org/oldest", "histories": histories(finished), "cache_dir": tmp_path / "cache"}
    with hub.failing(Fault("HEAD", "/resolve/.*/rqvae.safetensors", status=403, times=None)), pytest.raises(ClientProblem):
        oldest("recommend", **asked, tokenizer=False)
    found = oldest("recommend", **asked, revision=hub.head("org/oldest"))
    assert found["recommended"] == recommended(export_model(finished, tmp_path / "here"), finished)
    assert found["module"] == "transformers_modules"
    items = oldest("load_data", repo="org/oldest-data", config="items", cache_dir=tmp_path / "data")["train"]
    assert items["first"]["image"] == {"picture": [48, 48]}
    oldest("push_model", folder=finished / "model", repo="org/oldest-pushed", revision="draft")
    assert hub.files("org/oldest-pushed", revision="draft").keys() >= MODEL_FILES - {"recipe.yaml"}


@pytest.mark.parametrize("fault", [{"cut": "closed"}, {"cut": "reset"}, {"status": 503}], ids=["closed", "reset", "503"])
def test_what_breaks_the_oldest_clients_downloads_leaves_nothing_half_cached(
    finished: Path, repo: str, hub: LocalHub, oldest: Clients, tmp_path: Path, fault: dict[str, Any]
) -> None:
    oldest("push_model", folder=finished / "model", repo=repo)
    with hub.failing(Fault("GET", "/objects/", times=None, **fault)), pytest.raises(ClientProblem):
        oldest("snapshot", repo=repo, cache_dir=tmp_path)
    whole = {hub.content(repo, path) for path in [*hub.files(repo), ".gitattributes"]}
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and "blobs" in path.parts and path.suffix != ".incomplete"]
    assert all(path.read_bytes() in whole for path in kept)
    snapshot = Path(oldest("snapshot", repo=repo, cache_dir=tmp_path))
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()}.items() >= {
        path: hub.content(repo, path) for path in hub.files(repo)
    }.items()
