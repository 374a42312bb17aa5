from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from cemg_hf.data.images import attach_files, fingerprint_files, read_files
from cemg_hf.data.schema import normalise_items
from cemg_hf.errors import CEMGError


def items(images: list[object] | None = None, ids: list[str] | None = None) -> pl.DataFrame:
    ids = ids or ["a", "b", "c"]
    return normalise_items(pl.DataFrame({"item_id": ids, **({"image": images} if images else {})}), {}, "x")


def test_files_named_after_items_are_found_at_any_depth_and_others_ignored(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "a.png", "sub/b.WEBP", "c.txt", "d.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    files = attach_files(items(), tmp_path, None)["image_file"]
    assert files.to_list() == [str(tmp_path / "a.jpg"), str(tmp_path / "sub/b.WEBP"), None]
    assert read_files(files).to_list() == [b"a.jpg", b"sub/b.WEBP", None]


def test_paths_in_the_table_are_relative_to_the_images_folder_else_to_the_table(tmp_path: Path) -> None:
    table = items(["x.png", "/abs/y.png", None])
    assert attach_files(table, None, Path("/base"))["image_file"].to_list() == ["/base/x.png", "/abs/y.png", None]
    assert attach_files(table, None, None)["image_file"].to_list() == ["x.png", "/abs/y.png", None]
    (tmp_path / "c.jpg").write_bytes(b"c")
    assert attach_files(table, tmp_path, Path("/base"))["image_file"].to_list() == [f"{tmp_path}/x.png", "/abs/y.png", f"{tmp_path}/c.jpg"]


def test_bytes_in_the_table_win_over_files(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"file")
    table = items([{"bytes": b"table", "path": "a.jpg"}, None, None])
    assert attach_files(table, tmp_path, None)["image_file"].to_list() == [None, None, None]


def test_folder_that_serves_no_item_and_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "z.jpg").write_bytes(b"z")
    with pytest.raises(CEMGError, match=r"no image file there is named after an item \(expected e.g. a.jpg\)"):
        attach_files(items(), tmp_path, None)
    with pytest.raises(CEMGError, match="no such folder of images"):
        attach_files(items(), tmp_path / "none", None)


def test_missing_and_empty_files_are_null_and_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    files = pl.Series([None, str(tmp_path / "empty.png"), str(tmp_path / "missing.png"), str(tmp_path)])
    assert read_files(files).to_list() == [None] * 4
    before = fingerprint_files(files)
    assert fingerprint_files(files) == before
    (tmp_path / "missing.png").write_bytes(b"here now")
    assert fingerprint_files(files) != before
