from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from cemg_hf.data.readers import read_table
from cemg_hf.data.schema import normalise_interactions, normalise_items
from cemg_hf.errors import CEMGError

INTERACTIONS = pl.DataFrame(
    {"user_id": ["007", "u,2", "ü"], "item_id": ["01", "02", "01"], "timestamp": [3, 1, 2], "rating": [5.0, None, 1.5]}
)
ITEMS = pl.DataFrame({"item_id": ["01", "02"], "title": ['A "quoted", title', None], "brand": ["é", None], "categories": ["x|y", None]})


def write(table: pl.DataFrame, path: Path) -> Path:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    match plain.suffix:
        case ".parquet":
            table.write_parquet(plain)
        case ".csv":
            table.write_csv(plain)
        case ".tsv":
            table.write_csv(plain, separator="\t")
        case _:
            table.write_ndjson(plain)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


@pytest.fixture
def hf_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl", "ndjson", "csv.gz", "jsonl.gz"])
def test_file_formats_agree(tmp_path: Path, suffix: str) -> None:
    interactions = normalise_interactions(read_table(write(INTERACTIONS, tmp_path / f"interactions.{suffix}")), {}, "x")
    assert interactions.select(INTERACTIONS.columns).equals(INTERACTIONS)
    items = normalise_items(read_table(write(ITEMS, tmp_path / f"items.{suffix}")), {}, "x")
    assert items.select("item_id", "title", "brand").equals(ITEMS.select("item_id", "title", "brand"))
    assert items["categories"].to_list() == [["x", "y"], None]


@pytest.mark.usefixtures("hf_cache")
def test_datasets_folders_agree_with_files(tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_dict(INTERACTIONS.to_dict(as_series=False))
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"a": table.select([0, 1]), "b": table.select([2])}).save_to_disk(str(tmp_path / "saved_splits"))
    (tmp_path / "plain").mkdir()
    INTERACTIONS.write_parquet(tmp_path / "plain" / "data.parquet")
    (tmp_path / "configs").mkdir()
    INTERACTIONS.write_parquet(tmp_path / "configs" / "i.parquet")
    ITEMS.write_parquet(tmp_path / "configs" / "c.parquet")
    configs = "configs:\n- config_name: interactions\n  data_files: i.parquet\n- config_name: catalogue\n  data_files: c.parquet\n"
    (tmp_path / "configs" / "README.md").write_text(f"---\n{configs}---\n")
    for folder in ("saved", "saved_splits", "plain", "configs", "configs:interactions"):
        assert read_table(f"{tmp_path / folder}", "interactions").equals(INTERACTIONS), folder
    assert read_table(f"{tmp_path / 'configs'}:catalogue", "interactions").equals(ITEMS)


@pytest.mark.usefixtures("hf_cache")
def test_image_feature_of_a_datasets_folder_stays_encoded(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"item_id": datasets.Value("string"), "image": datasets.Image()})
    rows = {"item_id": ["a", "b"], "image": [{"bytes": b"not decoded", "path": "a.jpg"}, None]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    items = normalise_items(read_table(tmp_path / "saved"), {}, "x")
    assert items["image"].to_list() == rows["image"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file"),
        ("empty.csv", b"", "empty"),
        ("empty.parquet", b"", "empty"),
        ("header.csv", b"user_id,item_id\n", "empty"),
        ("empty.jsonl.gz", gzip.compress(b""), "empty"),
        ("table.xlsx", b"x", "unsupported file type"),
        ("table.parquet.gz", b"x", "unsupported file type"),
        ("broken.parquet", b"PAR1 is not all", "cannot be read as parquet"),
        ("ragged.csv", b"a,b\n1,2,3\n", "cannot be read as csv"),
        ("empty.inter", b"", "empty"),
        ("header.inter", b"user_id:token\titem_id:token\n", "empty"),
        ("ragged.inter", b"user_id:token\titem_id:token\n1\t2\t3\n", "cannot be read as inter"),
        ("ml.user", b"user_id:token\n1\n", "unsupported file type"),
        ("broken.jsonl", b'{"a": 1}\n\n{"a":}\n', "row 3 is not a JSON object"),
        ("python.jsonl", b"{'a': 1}\n", "row 1 is not a JSON object"),
        ("broken.jsonl.gz", b"no gzip", "cannot be read as jsonl"),
        ("truncated.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 1000)[:30], "truncated.csv.gz"),
        ("damaged.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000)[:12] + b"\xff" * 40, "cannot be read as jsonl"),
        ("truncated.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000)[:30], "cannot be read as jsonl"),
    ],
)
def test_unreadable_sources_are_one_line_errors(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CEMGError, match=message) as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    for name, content in (("x.csv", "user_id,item_id\n1,2\n"), ("x.jsonl", '{"user_id": "1", "item_id": "2"}\n')):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert read_table(tmp_path / name).rows(named=True) == [{"user_id": "1", "item_id": "2"}]


@pytest.mark.usefixtures("hf_cache")
def test_unreachable_hub_id_and_folder_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CEMGError, match="org/name: no such file or folder, and the Hub did not give it") as caught:
        read_table("org/name")
    assert "\n" not in str(caught.value)
    (tmp_path / "bare").mkdir()
    with pytest.raises(CEMGError, match="cannot be opened as a `datasets` folder"):
        read_table(tmp_path / "bare")
