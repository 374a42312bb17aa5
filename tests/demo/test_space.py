from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import gradio as gr
import polars as pl
import pytest
import yaml
from packaging.requirements import Requirement

from cemg_hf.demo import space
from cemg_hf.demo.space import export_space
from cemg_hf.errors import CEMGError

MODEL, DATA = "someone/cemg-tiny", "someone/cemg-tiny-data"


@pytest.fixture
def folder(run_folder: Path, tmp_path: Path) -> Path:
    return export_space(tmp_path / "space", [MODEL], title='A "tiny" shop', dataset=DATA, features=[str(run_folder / "features")])


def test_the_card_names_what_the_space_needs(folder: Path) -> None:
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["title"] == 'A "tiny" shop'
    assert (card["sdk"], card["sdk_version"], card["app_file"]) == ("gradio", gr.__version__, "app.py")
    assert (card["models"], card["datasets"]) == ([MODEL], [DATA])
    assert len(card["short_description"]) <= 60
    assert f"cemg demo {MODEL} --dataset {DATA}" in text
    lines = (folder / "requirements.txt").read_text().splitlines()
    names = {Requirement(line).name for line in lines if not line.startswith("--")}
    assert {"torch", "transformers", "huggingface-hub", "polars"} <= names
    assert not names & {"pytest", "uvicorn", "ray"}


def test_no_item_text_and_no_picture_is_in_it(run_folder: Path, folder: Path) -> None:
    items = pl.read_parquet(run_folder / "raw" / "items.parquet")
    content = b"\0".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert not any(title.encode() in content for title in items["title"].drop_nulls())
    assert not any(row["bytes"] in content for row in items["image"] if row["bytes"])
    assert not list(folder.rglob("*.pyc"))
    assert (folder / "cemg_hf" / "demo" / "templates" / "recommendations.html").is_file()


def in_cache(cache: Path, kind: str, name: str, source: Path) -> None:
    """Put a folder where the Hub's client keeps what it downloaded."""
    place = cache / f"{kind}--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(source, place / "snapshots" / ("0" * 40))


@pytest.mark.slow
def test_it_runs_as_the_hub_runs_it(run_folder: Path, folder: Path, tmp_path: Path) -> None:
    """`python app.py` in the folder, with the package that lies there, the model and its data under their Hub ids."""
    cache = tmp_path / "cache"
    in_cache(cache, "models", MODEL, run_folder / "model")
    in_cache(cache, "datasets", DATA, run_folder / "dataset")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen([sys.executable, "app.py"], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                page = urlopen(f"http://127.0.0.1:{port}/", timeout=5).read().decode()
                break
            except (URLError, ConnectionError, TimeoutError):
                log.seek(0)
                assert process.poll() is None, log.read()
                assert time.monotonic() < deadline, log.read()
                time.sleep(0.3)
    finally:
        process.terminate()
        process.wait(20)
    assert "48 items, written as 3 codes each" in page
    assert "40 shoppers" in page


def test_local_folders_and_foreign_outputs_are_refused(run_folder: Path, folder: Path, tmp_path: Path) -> None:
    again = export_space(folder, [MODEL], title="Again")
    assert not (again / "features").exists()
    with pytest.raises(CEMGError, match=r"MODEL .*model: a folder here; a Space loads from the Hub"):
        export_space(tmp_path / "other", [str(run_folder / "model")], title="x")
    with pytest.raises(CEMGError, match=r"--dataset .*dataset: a folder here"):
        export_space(tmp_path / "other", [MODEL], title="x", dataset=str(run_folder / "dataset"))
    with pytest.raises(CEMGError, match="not a Hub id"):
        export_space(tmp_path / "other", ["a b"], title="x")
    with pytest.raises(CEMGError, match="not a feature folder"):
        export_space(tmp_path / "other", [MODEL], title="x", features=[str(run_folder / "dataset")])
    with pytest.raises(CEMGError, match="2 folders for 1 models"):
        export_space(tmp_path / "other", [MODEL], title="x", features=[str(run_folder / "features")] * 2)
    with pytest.raises(CEMGError, match="is no exported Space"):
        export_space(run_folder / "dataset", [MODEL], title="x")
    assert not (tmp_path / "other").exists()


def test_a_package_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> list[str]:
        raise space.PackageNotFoundError(name)

    monkeypatch.setattr(space, "requires", missing)
    with pytest.raises(CEMGError, match="not installed"):
        export_space(tmp_path / "space", [MODEL], title="x")
    assert not (tmp_path / "space").exists()
