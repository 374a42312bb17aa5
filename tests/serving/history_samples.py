"""Files of users for the tests of batch recommendation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from command_samples import save_model

ITEM_IDS = [f"item-{row:03d}" for row in range(60)]


def random_histories(users: int, seed: int = 0, longest: int = 30) -> list[list[str]]:
    """Histories of 0 … `longest` items; one in ten is empty."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, longest + 1, users) * (generator.random(users) > 0.1)
    return [[ITEM_IDS[item] for item in generator.integers(0, len(ITEM_IDS), length)] for length in lengths]


def write_users(path: Path, histories: list[list[str]], first: int = 0, row_group_size: int = 7, **names: str) -> Path:
    """Users "user-<first>" … with their histories; `names` are other names of the two columns."""
    columns = {
        names.get("user_id", "user_id"): pa.array([f"user-{first + row}" for row in range(len(histories))], pa.string()),
        "country": pa.array(["nowhere"] * len(histories)),
        names.get("history", "history"): pa.array(histories, pa.list_(pa.string())),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def write_world(folder: Path, users: int = 50) -> tuple[Path, Path, list[list[str]]]:
    """A model folder, a file of users, and their histories."""
    save_model(folder / "model", ITEM_IDS)
    histories = random_histories(users)
    return folder / "model", write_users(folder / "users.parquet", histories), histories


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of the parts by name."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.parquet"))}
