"""Settings every test shares: no network, few threads, and where the real data lies."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small only wait for each other on more threads

import pytest

SHARED_DATA = Path(os.environ.get("CEMG_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
"""`CEMG_SHARED_DATA` names the folder for a checkout that does not lie beside it, such as the copy `.ci/run` tests."""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data not found at {SHARED_DATA}")
    return SHARED_DATA
