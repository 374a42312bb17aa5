"""The log of a run that may be interrupted and continued."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RunLog:
    """JSON lines. What an interrupted run wrote after the checkpoint it continues from is cut off, as it is written again."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, min(size, path.stat().st_size))
        self.size = path.stat().st_size

    def append(self, row: Mapping[str, Any]) -> None:
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        with self.path.open("ab") as file:
            file.write(line)
        self.size += len(line)
