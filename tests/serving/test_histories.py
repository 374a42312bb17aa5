"""Every wanted row is read once and in order, however files and row groups are cut; what cannot be used is named."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from history_samples import ITEM_IDS, random_histories, write_users

from cemg_hf.errors import CEMGError
from cemg_hf.serving import histories as module
from cemg_hf.serving.histories import HistoryFiles

CATALOGUE = pa.array(ITEM_IDS, pa.large_string())


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_ROWS", 5)


def write(path: Path, users: Any = None, history: Any = None, **more: pa.Array) -> Path:
    users = pa.array(["a", "b", "c"]) if users is None else users
    history = pa.array([["item-001"], [], ["item-002", "item-003"]]) if history is None else history
    pq.write_table(pa.table({"user_id": users, "history": history, **more}), path)
    return path


def ids(source: HistoryFiles, table: pa.Table) -> list[list[str]]:
    return [[ITEM_IDS[item] for item in row] for row in source.items(table, CATALOGUE).to_lists()]


# ---- reading ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row_group_size", [1, 4, 12, 100])
@pytest.mark.parametrize("files", [(40,), (13, 1, 26), (0, 17, 0, 23)])
def test_ranges_are_the_rows_they_name(tmp_path: Path, row_group_size: int, files: tuple[int, ...]) -> None:
    histories = random_histories(40)
    first = 0
    for number, rows in enumerate(files):
        path = tmp_path / "users" / f"{number}.parquet"
        write_users(path, histories[first : first + rows], first, row_group_size)
        first += rows
    source = HistoryFiles.open(tmp_path / "users")
    assert (len(source), source.rows) == (40, files)
    generator = np.random.default_rng(0)
    for _ in range(10):
        bounds = np.unique(generator.integers(0, 41, 8)).tolist()
        pairs = [range(start, stop) for start, stop in pairwise(bounds)]
        wanted = [pair for pair in pairs if generator.random() < 0.7]
        tables = list(source.tables(wanted))
        assert [source.users(table).to_pylist() for table in tables] == [[f"user-{row}" for row in pair] for pair in wanted]
        assert [ids(source, table) for table in tables] == [histories[pair.start : pair.stop] for pair in wanted]


def test_row_groups_without_wanted_rows_are_not_read(tmp_path: Path) -> None:
    path = write_users(tmp_path / "users.parquet", random_histories(40), row_group_size=10)
    whole = bytearray(path.read_bytes())
    spoilt = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    whole[spoilt : spoilt + 20] = b"\xff" * 20
    path.write_bytes(whole)
    source = HistoryFiles.open(path)
    assert [len(table) for table in source.tables([range(10, 25), range(30, 40)])] == [15, 10]
    with pytest.raises(CEMGError, match=r"users\.parquet: cannot be read after row 0"):
        list(source.tables([range(5, 25)]))


def test_a_row_group_is_never_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_ROWS", 1000)
    monkeypatch.setattr(module, "BUFFER_BYTES", 1 << 14)
    users = 50_000
    table = pa.table({"user_id": np.arange(users), "history": pa.array([ITEM_IDS[:20]] * users)})
    plain: dict[str, Any] = {"use_dictionary": False, "compression": "none", "data_page_size": 1 << 14}
    pq.write_table(table, tmp_path / "users.parquet", row_group_size=users, **plain)
    size = (tmp_path / "users.parquet").stat().st_size
    assert size > 10e6
    source = HistoryFiles.open(tmp_path / "users.parquet")
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in source.tables([range(row, row + 1000) for row in range(0, users, 1000)])]
    assert len(held) == 50
    assert max(held) < size / 5


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (pa.array(["07", "b", "ü"], pa.large_string()), pa.string()),
        (pa.array(["07", "b", "ü"], pa.string_view()), pa.string()),
        (pa.array(["07", "b", "ü"]).dictionary_encode(), pa.string()),
        (pa.array([7, 2**62, -1], pa.int64()), pa.int64()),
        (pa.array([7, 2, 2**16 - 1], pa.uint16()), pa.uint16()),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_user_ids_stay_what_they_are(tmp_path: Path, written: pa.Array, read: pa.DataType) -> None:
    source = HistoryFiles.open(write(tmp_path / "users.parquet", users=written))
    (table,) = source.tables([range(3)])
    assert source.users(table).type == source.user_type == read
    assert source.users(table).to_pylist() == written.to_pylist()


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.string(), 2),
        pa.list_(pa.string_view()),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
        pa.list_(pa.int16()),
    ],
    ids=str,
)
def test_lists_of_any_kind_are_histories(tmp_path: Path, kind: pa.DataType) -> None:
    integers = pa.types.is_integer(kind.value_type)
    rows = [[1, 2], [2, 1], [9, 1]] if integers else [["1", "2"], ["2", "1"], ["9", "1"]]
    path = write(tmp_path / "users.parquet", history=pa.array(rows, kind))
    source = HistoryFiles.open(path)
    catalogue = pa.array(["0", "1", "2"], pa.large_string())
    (table,) = source.tables([range(1, 3)])
    assert source.items(table, catalogue).to_lists() == [[2, 1], [1]]
    assert source.check(catalogue, "skip") == 1


def test_a_column_of_empty_lists_without_a_type(tmp_path: Path) -> None:
    source = HistoryFiles.open(write(tmp_path / "users.parquet", history=pa.array([[], [], []])))
    (table,) = source.tables([range(3)])
    assert ids(source, table) == [[], [], []]
    assert source.check(CATALOGUE) == 0


def test_a_folder_is_its_parquet_files_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "users"
    for name, first in (("b.pq", 3), ("a.parquet", 0), (".hidden.parquet", 6)):
        write_users(folder / name, [[], [], []], first)
    (folder / "_SUCCESS").touch()
    (folder / "c.parquet").mkdir()
    source = HistoryFiles.open(folder)
    assert [file.name for file in source.files] == ["a.parquet", "b.pq"]
    (table,) = source.tables([range(6)])
    assert source.users(table).to_pylist() == [f"user-{row}" for row in range(6)]


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    one, same, other = (write_users(tmp_path / name, random_histories(9, seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    prints = [HistoryFiles.open(path).fingerprint() for path in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]


# ---- what cannot be used --------------------------------------------------------------------------------------------------------


def opening(path: Path, **columns: str) -> str:
    with pytest.raises(CEMGError) as caught:
        HistoryFiles.open(path, **columns)
    return str(caught.value)


def test_columns_are_checked_before_any_row(tmp_path: Path) -> None:
    path = write(tmp_path / "users.parquet", age=pa.array([1.5, 2.5, 3.5]))
    assert opening(path, user_column="id") == (
        f"{path}: column id is missing (present: user_id, history, age); name yours with --user-column"
    )
    assert "column clicks is missing" in opening(path, history_column="clicks")
    assert f"{path}: column age: holds double, expected strings or integers" in opening(path, user_column="age")
    assert f"{path}: column user_id: holds string, expected lists of item ids" in opening(path, history_column="user_id")
    write(path, history=pa.array([[1.5], [], []]))
    assert "column history: holds list<element: double>, expected lists of item ids" in opening(path)


def test_files_of_a_folder_agree_on_the_user_ids(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", users=pa.array([1, 2, 3]))
    assert opening(tmp_path) == (
        f"{tmp_path / 'b.parquet'}: column user_id: holds int64, but string in {tmp_path / 'a.parquet'}; give all files one type"
    )


def test_what_is_no_file_of_users(tmp_path: Path) -> None:
    assert "none.parquet: no such file or folder" in opening(tmp_path / "none.parquet")
    assert f"{tmp_path}: holds no Parquet files" in opening(tmp_path)
    (tmp_path / "text.parquet").write_text("user_id,history\n")
    assert "text.parquet: cannot be read as Parquet" in opening(tmp_path / "text.parquet")
    (tmp_path / "text.parquet").unlink()
    write_users(tmp_path / "empty.parquet", [])
    assert "no rows" in opening(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("user_id", None, "column user_id, row 13: the user id is empty"),
        ("history", None, "column history, row 13: the history is null; write an empty list"),
        ("history", ["item-001", None], "column history, row 13: the history has an empty item id"),
        ("history", ["item-001", "gone"], "column history, row 13: item id 'gone' is not among the 60 items of the catalogue"),
    ],
)
def test_bad_values_are_named_by_file_and_row(tmp_path: Path, column: str, value: Any, message: str) -> None:
    write_users(tmp_path / "a.parquet", random_histories(9))
    columns: dict[str, list[Any]] = {"user_id": [f"user-{row}" for row in range(20)], "history": random_histories(20)}
    columns[column][12] = value
    arrays = {"user_id": pa.array(columns["user_id"]), "history": pa.array(columns["history"], pa.list_(pa.string()))}
    pq.write_table(pa.table(arrays), tmp_path / "b.parquet", row_group_size=8)
    source = HistoryFiles.open(tmp_path)
    with pytest.raises(CEMGError) as caught:
        source.check(CATALOGUE)
    assert str(caught.value).startswith(f"{tmp_path / 'b.parquet'}: {message}")


def test_unknown_items_are_counted_and_left_out(tmp_path: Path) -> None:
    known = random_histories(30)
    mixed = [["gone", *row, "lost"] if number % 3 == 0 else row for number, row in enumerate(known)]
    source = HistoryFiles.open(write_users(tmp_path / "users.parquet", mixed))
    assert source.check(CATALOGUE, "skip") == 20
    (table,) = source.tables([range(30)])
    assert ids(source, table) == known
