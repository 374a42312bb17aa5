"""Parts cut the rows without gap or overlap, are there completely or not at all, and never stand under another run's manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cemg_hf.errors import CEMGError
from cemg_hf.serving.parts import MANIFEST_NAME, PartFolder


def identity(k: int = 10, model: str = "m", histories: str = "h") -> dict[str, Any]:
    return {"stage": "recommend", "settings": {"k": k, "dtype": "float32"}, "inputs": {"model": model, "histories": histories}}


def rows(numbers: range) -> pa.Table:
    return pa.table({"row": list(numbers)})


def filled(path: Path, total: int = 10, rows_per_part: int = 3) -> PartFolder:
    folder = PartFolder(path, total, rows_per_part)
    folder.begin(identity())
    for part in range(len(folder)):
        folder.write(part, rows(folder.range(part)))
    return folder


@pytest.mark.parametrize(("total", "rows_per_part"), [(1, 1), (1, 100), (10, 3), (9, 3), (250_000, 2)])
def test_parts_cut_the_rows(tmp_path: Path, total: int, rows_per_part: int) -> None:
    folder = PartFolder(tmp_path, total, rows_per_part)
    parts = range(len(folder))
    assert [row for part in parts for row in folder.range(part)] == list(range(total))
    assert all(0 < len(folder.range(part)) <= rows_per_part for part in parts)
    names = [folder.file(part).name for part in parts]
    assert names == sorted(names), "readers that go by name keep the order"
    assert folder.count(parts) == total


def test_what_is_left_is_what_has_no_whole_file(tmp_path: Path) -> None:
    folder = filled(tmp_path / "recs")
    assert folder.left() == []
    folder.file(1).unlink()
    whole = folder.file(3).read_bytes()
    folder.file(3).write_bytes(whole[: len(whole) // 2])
    folder.file(0).with_name(".part-00000.parquet.partial").write_bytes(b"half")
    assert folder.left() == [1, 3]
    assert folder.written() == [0, 2]
    for part in folder.left():
        folder.write(part, rows(folder.range(part)))
    assert pq.read_table(folder.path)["row"].to_pylist() == list(range(10))
    assert folder.file(3).read_bytes() == whole


def test_a_part_that_cannot_be_finished_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = PartFolder(tmp_path / "recs", 10, 3)
    folder.begin(identity())

    def half(table: pa.Table, where: Path, **options: Any) -> None:
        where.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(pq, "write_table", half)
    with pytest.raises(OSError, match="no space"):
        folder.write(0, rows(range(3)))
    assert folder.written() == []


def test_an_earlier_run_is_continued_or_refused(tmp_path: Path) -> None:
    folder = PartFolder(tmp_path / "recs", 10, 3)
    assert folder.claim(identity(), overwrite=False) is None, "nothing there"
    filled(tmp_path / "recs")
    assert folder.claim(identity(), overwrite=False) == identity()
    for other, difference in (
        (identity(k=5), "k 10 → 5"),
        (identity(model="n"), "other model"),
        (identity(histories="i"), "other histories"),
        (identity(k=5, model="n"), "other model, k 10 → 5"),
    ):
        with pytest.raises(CEMGError, match=rf"begun with other inputs or settings \({difference}\); use --overwrite"):
            folder.claim(other, overwrite=False)
        assert folder.claim(other, overwrite=True) is None
    assert folder.left() == [], "a claim changes nothing"


def test_a_new_run_begins_without_the_parts_of_the_old(tmp_path: Path) -> None:
    filled(tmp_path / "recs")
    folder = PartFolder(tmp_path / "recs", 4, 2)
    folder.begin(identity(k=5))
    assert folder.written() == []
    assert [file.name for file in folder.path.iterdir()] == [MANIFEST_NAME]
    assert folder.claim(identity(k=5), overwrite=False) == identity(k=5)


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_peoples_folders_are_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "part-00000.parquet").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / MANIFEST_NAME).write_text('{"stage": "prepare"}')
    for name, message in (("photos", "holds files that are no recommendations"), ("file", "is a file"), ("stage", "not the manifest")):
        with pytest.raises(CEMGError, match=message):
            PartFolder(tmp_path / name, 10, 3).claim(identity(), overwrite)
    (tmp_path / "empty").mkdir()
    assert PartFolder(tmp_path / "empty", 10, 3).claim(identity(), overwrite) is None
