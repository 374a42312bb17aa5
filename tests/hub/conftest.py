"""A finished run, and a local Hub with the clients that speak to it: made once for all tests of this folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_samples import small_recipe, write_shop
from hub_samples import write_stream_run
from local_hub import Clients, LocalHub

from cemg_hf.recipes import load_recipe
from cemg_hf.training.pipeline import run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a small shop with texts and images under a licence that lets them be passed on; a model with a dense tower."""
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    values: dict[str, Any] = small_recipe(folder)
    values["prepare"]["license"] = "cc-by-4.0"
    values["finetune"] |= {"dense": {"settings": {"hidden_size": 8}, "content": True, "loop": {"epochs": 1, "batch_size": 16}}}
    (folder / "dense.yaml").write_text(yaml.safe_dump(values))
    run(load_recipe(folder / "dense.yaml"), folder / "run", command=f"cemg run dense.yaml --output {folder / 'run'}")
    return folder / "run"


@pytest.fixture(scope="session")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of MSCGRec, whose model is not trained and whose figures are made up; no data set beside it."""
    return write_stream_run(tmp_path_factory.mktemp("streams") / "run")


@pytest.fixture
def repo(request: pytest.FixtureRequest, hub: LocalHub) -> Iterator[str]:
    """The name of a repository for one test; the Hub is whole again afterwards."""
    yield f"org/{re.sub('[^a-z0-9]+', '-', request.node.name)[-70:].strip('-')}"
    hub.faults.clear()
    hub.objects.capacity = None


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="session")
def publisher(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    """Processes with the package."""
    with hub.clients(tmp_path_factory.mktemp("publisher"), preload=("cemg_hf.cli", "cemg_hf.hub.publish")) as clients:
        yield clients


@pytest.fixture(scope="session")
def puller(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    """Processes that know the libraries alone."""
    preload = ("transformers.models.t5.modeling_t5", "datasets")
    with hub.clients(tmp_path_factory.mktemp("puller"), preload=preload) as clients:
        yield clients
