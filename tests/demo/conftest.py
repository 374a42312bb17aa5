"""The shop of the demo's tests, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from demo_samples import write_run

from cemg_hf.demo.engine import Engine, Session
from cemg_hf.demo.loading import open_demo


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("demo") / "tiny")


@pytest.fixture(scope="session")
def engine(run_folder: Path) -> Engine:
    """One model, which no test changes: sessions are made for that."""
    return open_demo([str(run_folder / "model")])


@pytest.fixture(scope="session")
def both(run_folder: Path) -> Engine:
    """Two models side by side, the second with a dense tower."""
    return open_demo([str(run_folder / "model"), str(run_folder / "dense")])


@pytest.fixture
def session(engine: Engine) -> Session:
    return engine.start()
