"""The output of a batch run: a folder of Parquet files, one per stretch of rows, each there completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..artefacts import write_json
from ..errors import CEMGError

MANIFEST_NAME = ".manifest.json"
"""Hidden, or `load_dataset("parquet", data_dir=…)`, pandas and pyarrow would take it for a table."""


@dataclass(frozen=True)
class PartFolder:
    """Part p holds rows p · `rows_per_part` … of `rows` rows, in order; the manifest says what they were made from."""

    path: Path
    rows: int
    rows_per_part: int

    def __len__(self) -> int:
        return -(-self.rows // self.rows_per_part)

    def range(self, part: int) -> range:
        """The rows of a part."""
        return range(part * self.rows_per_part, min((part + 1) * self.rows_per_part, self.rows))

    def file(self, part: int) -> Path:
        width = max(5, len(str(len(self) - 1)))  # names sort as their numbers do
        return self.path / f"part-{part:0{width}d}.parquet"

    def count(self, parts: Sequence[int]) -> int:
        """Rows of some parts."""
        return sum(len(self.range(part)) for part in parts)

    def written(self) -> list[int]:
        """Parts that have a file."""
        return [part for part in range(len(self)) if self.file(part).is_file()]

    def left(self) -> list[int]:
        """Parts still to write. A file that a full disk or a broken copy cut short is deleted, and its part is one of them."""
        left = []
        for part in range(len(self)):
            file = self.file(part)
            if file.is_file() and not _is_complete(file, len(self.range(part))):
                file.unlink()
            if not file.is_file():
                left.append(part)
        return left

    def write(self, part: int, table: pa.Table) -> None:
        """Write one part atomically."""
        final = self.file(part)
        scratch = final.with_name(f".{final.name}.partial")
        pq.write_table(table, scratch, compression="zstd")
        scratch.replace(final)

    # ---- the manifest ---------------------------------------------------------------------------------------------------------

    def claim(self, identity: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
        """The manifest of an earlier run to continue, or None where a new one is to `begin`; nothing is changed yet.

        Args:
            identity: what the rows depend on, as plain JSON values under `inputs` and `settings`.
            overwrite: begin anew, whatever the earlier run was.

        Raises:
            CEMGError: the folder holds something else, or parts made from something else (names the differences).
        """
        if self.path.exists() and not self.path.is_dir():
            raise CEMGError(f"{self.path}: is a file; choose another --output")
        manifest = self._manifest()
        if manifest is None:
            if self.path.is_dir() and any(self.path.iterdir()):
                raise CEMGError(f"{self.path}: holds files that are no recommendations of an earlier run; choose another --output")
            return None
        if overwrite:
            return None
        changed = [f"other {name}" for name in identity["inputs"] if manifest["inputs"].get(name) != identity["inputs"][name]]
        changed += _changed(manifest["settings"], identity["settings"])
        if changed:
            raise CEMGError(
                f"{self.path}: was begun with other inputs or settings ({', '.join(changed)}); "
                "use --overwrite to start over, or choose another --output"
            )
        return manifest

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Delete the parts of an earlier run, then write the manifest of the new one; a part never stands under another's manifest."""
        for file in [*self.path.glob("part-*.parquet"), *self.path.glob(".part-*.partial")]:
            file.unlink()
        self.write_manifest(manifest)

    def write_manifest(self, content: Mapping[str, Any]) -> None:
        write_json(self.path / MANIFEST_NAME, content)

    def _manifest(self) -> dict[str, Any] | None:
        path = self.path / MANIFEST_NAME
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            content = None
        if not isinstance(content, dict) or content.get("stage") != "recommend":
            raise CEMGError(f"{path}: is not the manifest of a batch run; choose another --output")
        return content


def _is_complete(file: Path, rows: int) -> bool:
    try:
        return pq.read_metadata(file).num_rows == rows
    except pa.ArrowInvalid:
        return False


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = sorted(before.keys() | now.keys())
    return [f"{name} {before.get(name)!r} → {now.get(name)!r}" for name in names if before.get(name) != now.get(name)]
