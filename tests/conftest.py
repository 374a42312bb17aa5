"""Settings every test shares: no network, few threads, and where the real data lies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
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


@pytest.fixture
def another_process() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts a process that writes a folder, as far as others can tell, until it is killed or the test ends."""
    started = []
    program = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""

    def start(folder: Path) -> subprocess.Popen[str]:
        lock = folder.with_name(f".{folder.name}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen([sys.executable, "-c", program, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
