"""Files get the lists that `recommend` gives, row for row; a run that was killed ends as one that was not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_samples import save_model, save_network
from history_samples import ITEM_IDS, contents, random_histories, write_users, write_world
from stream_samples import stream_generator

from cemg_hf import CEMGForConditionalGeneration
from cemg_hf.errors import CEMGError
from cemg_hf.serving import batch
from cemg_hf.serving.batch import BatchConfig, model_fingerprint, recommend_files
from cemg_hf.serving.parts import MANIFEST_NAME, PartFolder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[list[str]]]:
    return write_world(tmp_path_factory.mktemp("world"))


def settings(**changes: Any) -> BatchConfig:
    return BatchConfig(**{"k": 5, "rows_per_part": 8, "batch_size": 4, "device": "cpu", **changes})


def lists(output: Path) -> list[list[tuple[str, float]]]:
    table = pl.read_parquet(output / "*.parquet")
    return [list(zip(*row, strict=True)) for row in zip(table["item_ids"].to_list(), table["scores"].to_list(), strict=True)]


def assert_same_lists(found: list[list[tuple[str, float]]], expected: list[list[tuple[str, float]]]) -> None:
    """Equal items; scores equal but for the rounding that another batch brings."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert [item for item, _ in one] == [item for item, _ in other]
        np.testing.assert_allclose([score for _, score in one], [score for _, score in other], atol=1e-5)


# ---- what is written ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"exclude_history": True, "num_beams": 60}, {"k": 1, "num_beams": 1}])
def test_lists_are_those_of_recommend(world, tmp_path: Path, changes: dict[str, Any]) -> None:
    model, users, histories = world
    config = settings(**changes)
    report = recommend_files(model, users, tmp_path / "recs.parquet", config)
    assert (report.users, report.users_now, report.unknown) == (50, 50, 0)
    table = pl.read_parquet(tmp_path / "recs.parquet" / "*.parquet")
    assert table.schema == {"user_id": pl.String, "item_ids": pl.List(pl.String), "scores": pl.List(pl.Float32)}
    assert table["user_id"].to_list() == [f"user-{row}" for row in range(50)], "in the input's order"
    generator = CEMGForConditionalGeneration.from_pretrained(model)
    options = {"k": config.k, "exclude_history": config.exclude_history, "num_beams": config.num_beams}
    assert [] in histories, "new users are among them"
    assert_same_lists(lists(tmp_path / "recs.parquet"), generator.recommend(histories, **options))


def test_code_streams_answer_files_too(tmp_path: Path) -> None:
    model = stream_generator()
    model.save_pretrained(tmp_path / "model")
    histories = [["item1", "item3", "item0"], [], ["item5"] * 9, [f"item{row}" for row in range(10, 19)]]
    users = write_users(tmp_path / "users.parquet", histories)
    recommend_files(tmp_path / "model", users, tmp_path / "recs", settings(exclude_history=True))
    assert_same_lists(lists(tmp_path / "recs"), model.recommend(histories, k=5, exclude_history=True))


@pytest.mark.parametrize("kind", ["sasrec", "gru4rec"])
@pytest.mark.parametrize("exclude", [False, True])
def test_networks_over_whole_items_answer_files_too(world, tmp_path: Path, kind: str, exclude: bool) -> None:
    _, users, histories = world
    network = save_network(tmp_path / "model", ITEM_IDS, kind)
    report = recommend_files(tmp_path / "model", users, tmp_path / "recs", settings(exclude_history=exclude))
    assert report.users == 50
    assert_same_lists(lists(tmp_path / "recs"), network.recommend(histories, k=5, exclude_history=exclude))
    (tmp_path / "recs" / "part-00002.parquet").unlink()
    assert recommend_files(tmp_path / "model", users, tmp_path / "recs", settings(exclude_history=exclude)).users_now == 8
    other = save_network(tmp_path / "other", ITEM_IDS[::-1], kind)
    with pytest.raises(CEMGError, match="other model"):
        recommend_files(tmp_path / "other", users, tmp_path / "recs", settings(exclude_history=exclude))
    assert other.item_ids == ITEM_IDS[::-1]


def test_lists_end_where_items_run_out(world, tmp_path: Path) -> None:
    model, _, _ = world
    users = write_users(tmp_path / "users.parquet", [ITEM_IDS, ITEM_IDS[:58], []])
    recommend_files(model, users, tmp_path / "recs", settings(k=60, exclude_history=True))
    found = [[item for item, _ in row] for row in lists(tmp_path / "recs")]
    assert [len(row) for row in found] == [0, 2, 60]
    assert sorted(found[1]) == ITEM_IDS[58:]


def test_cutting_the_input_or_the_output_otherwise_changes_nothing(world, tmp_path: Path) -> None:
    model, users, histories = world
    recommend_files(model, users, tmp_path / "one", settings())
    write_users(tmp_path / "users" / "a.parquet", histories[:11], row_group_size=100)
    write_users(tmp_path / "users" / "b.parquet", histories[11:], first=11, row_group_size=3)
    recommend_files(model, tmp_path / "users", tmp_path / "two", settings(rows_per_part=1000, batch_size=64))
    assert len(contents(tmp_path / "one")) == 7
    assert len(contents(tmp_path / "two")) == 1
    assert_same_lists(lists(tmp_path / "two"), lists(tmp_path / "one"))


def test_integer_ids_and_other_column_names(world, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers"
    save_model(numbers, [str(item) for item in range(60)])
    columns = {"customer": pa.array([2**40, -1], pa.int64()), "seen": pa.array([[3, 5], []], pa.list_(pa.int32()))}
    pq.write_table(pa.table(columns), tmp_path / "users.parquet")
    config = settings(user_column="customer", history_column="seen", exclude_history=True, k=58)
    recommend_files(numbers, tmp_path / "users.parquet", tmp_path / "recs", config)
    table = pl.read_parquet(tmp_path / "recs" / "*.parquet")
    assert table.schema == {"customer": pl.Int64, "item_ids": pl.List(pl.String), "scores": pl.List(pl.Float32)}
    assert table["customer"].to_list() == [2**40, -1]
    assert set(table["item_ids"][0]) == {str(item) for item in range(60)} - {"3", "5"}


def test_others_read_the_folder(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    model, users, _ = world
    recommend_files(model, users, tmp_path / "recs.parquet", settings())
    loaded = datasets.load_dataset("parquet", data_dir=str(tmp_path / "recs.parquet"))["train"]
    assert loaded["user_id"] == [f"user-{row}" for row in range(50)]
    assert loaded.features["item_ids"] == datasets.List(datasets.Value("string"))
    assert loaded.features["scores"] == datasets.List(datasets.Value("float32"))
    assert pq.read_table(tmp_path / "recs.parquet").num_rows == 50


def test_half_precision_is_the_networks(world, tmp_path: Path) -> None:
    model, users, _ = world
    found = {}
    for dtype in batch.DTYPES:
        recommend_files(model, users, tmp_path / dtype, settings(dtype=dtype, num_beams=60))
        found[dtype] = np.array([[score for _, score in row] for row in lists(tmp_path / dtype)])
    for dtype in ("bfloat16", "float16"):
        assert not np.array_equal(found[dtype], found["float32"])
        np.testing.assert_allclose(found[dtype], found["float32"], atol=0.2)


# ---- being killed, and going on -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing in the package catches it."""


@pytest.mark.parametrize("at", [0, 1, 6])
def test_a_resumed_run_is_a_whole_one(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, at: int) -> None:
    model, users, _ = world
    recommend_files(model, users, tmp_path / "whole", settings())
    write = PartFolder.write

    def killed(self: PartFolder, part: int, table: pa.Table) -> None:
        if part == at:
            raise Killed
        write(self, part, table)

    monkeypatch.setattr(PartFolder, "write", killed)
    with pytest.raises(Killed):
        recommend_files(model, users, tmp_path / "killed", settings())
    monkeypatch.undo()
    before = contents(tmp_path / "killed")
    assert len(before) == at
    stamps = {name: (tmp_path / "killed" / name).stat().st_mtime_ns for name in before}
    capsys.readouterr()
    report = recommend_files(model, users, tmp_path / "killed", settings())
    assert (report.users, report.users_now) == (50, 50 - 8 * at)
    first_state = re.findall(r"recommend: .*? (\d+)/50 \[", capsys.readouterr().err)[0]
    assert int(first_state) == 8 * at, "the bar starts at what was there"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert {name: (tmp_path / "killed" / name).stat().st_mtime_ns for name in before} == stamps, "what was there is left alone"


KILLED_WHILE_WRITING = """
import os, signal, sys
import pyarrow.parquet as pq
from cemg_hf.serving.batch import BatchConfig, recommend_files

write, calls = pq.write_table, []

def half_of_the_third(table, where, **options):
    write(table, where, **options)
    calls.append(where)
    if len(calls) == 3:
        os.truncate(where, os.path.getsize(where) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

pq.write_table = half_of_the_third
recommend_files(*sys.argv[1:], BatchConfig(k=5, rows_per_part=8, batch_size=4, device="cpu"))
"""


def test_sigkill_in_the_middle_of_a_part(world, tmp_path: Path) -> None:
    model, users, _ = world
    recommend_files(model, users, tmp_path / "whole", settings())
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(model), str(users), str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert sorted(contents(tmp_path / "killed")) == ["part-00000.parquet", "part-00001.parquet"]
    report = recommend_files(model, users, tmp_path / "killed", settings())
    assert report.users_now == 50 - 16
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert {file.name for file in (tmp_path / "killed").iterdir()} == {*contents(tmp_path / "whole"), MANIFEST_NAME}


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`cemg recommend` on two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cemg_hf.cli", "recommend"]
    options = ["--device", "cpu", "-k", "5", "--rows-per-part", "8", "--batch-size", "4"]
    return subprocess.run(
        [*launcher, *map(str, arguments), *options],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same(world, tmp_path: Path) -> None:
    """Two processes; two that continue what one began; one that continues what two began."""
    model, users, _ = world
    recommend_files(model, users, tmp_path / "whole", settings())
    shutil.copytree(tmp_path / "whole", tmp_path / "continued")
    for part in (1, 2, 3, 6):
        (tmp_path / "continued" / f"part-{part:05d}.parquet").unlink()
    for name in ("two", "continued"):
        done = launch(model, "--histories", users, "--output", tmp_path / name)
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(done.stdout.splitlines()) == 1, "one process speaks for all"
        assert contents(tmp_path / name) == contents(tmp_path / "whole")
    (tmp_path / "two" / "part-00003.parquet").unlink()
    assert recommend_files(model, users, tmp_path / "two", settings()).users_now == 8
    assert contents(tmp_path / "two") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_what_the_main_process_finds_wrong_ends_all(world, tmp_path: Path) -> None:
    model, _, histories = world
    users = write_users(tmp_path / "users.parquet", [*histories, ["gone"]])
    done = launch(model, "--histories", users, "--output", tmp_path / "recs")
    assert done.returncode != 0
    # Every process says it, none in the words of its network.
    assert done.stderr.count(f"error: {users}: column history, row 51: item id 'gone' is not among") == 2
    assert "[rank" not in done.stderr
    assert not (tmp_path / "recs").exists()


def test_a_finished_run_is_left_alone(world, tmp_path: Path) -> None:
    model, users, _ = world
    recommend_files(model, users, tmp_path / "recs", settings())
    stamps = [file.stat().st_mtime_ns for file in sorted((tmp_path / "recs").iterdir())]
    report = recommend_files(model, users, tmp_path / "recs", settings(batch_size=3))
    assert (report.users, report.users_now) == (50, 0)
    assert str(report) == "all 50 users are there already"
    assert [file.stat().st_mtime_ns for file in sorted((tmp_path / "recs").iterdir())] == stamps


def test_another_model_other_histories_and_other_settings_are_refused(world, tmp_path: Path) -> None:
    model, users, histories = world
    output = tmp_path / "recs"
    recommend_files(model, users, output, settings())
    written = contents(output)
    save_model(tmp_path / "other", ITEM_IDS, seed=1)
    changed = write_users(tmp_path / "changed.parquet", [*histories[:-1], ["item-000"]])
    for arguments, difference in (
        ((tmp_path / "other", users, output, settings()), "other model"),
        ((model, changed, output, settings()), "other histories"),
        ((model, users, output, settings(k=6, exclude_history=True)), "exclude_history False → True, k 5 → 6"),
    ):
        with pytest.raises(CEMGError, match=rf"\({difference}\); use --overwrite"):
            recommend_files(*arguments)
    assert contents(output) == written
    report = recommend_files(model, changed, output, settings(k=2), overwrite=True)
    assert report.users_now == 50
    assert {len(row) for row in lists(output)} == {2}


def test_input_that_cannot_be_used_costs_nothing_that_was_there(world, tmp_path: Path) -> None:
    model, users, histories = world
    output = tmp_path / "recs"
    recommend_files(model, users, output, settings())
    written = contents(output)
    wrong = write_users(tmp_path / "wrong.parquet", [*histories, ["gone"]])
    with pytest.raises(CEMGError, match=r"wrong\.parquet: column history, row 51: item id 'gone'"):
        recommend_files(model, wrong, output, settings(), overwrite=True)
    assert contents(output) == written
    with pytest.raises(CEMGError, match="row 51"):
        recommend_files(model, wrong, tmp_path / "new", settings())
    assert not (tmp_path / "new").exists()


def test_unknown_items_are_counted_also_by_the_run_that_finishes(world, tmp_path: Path) -> None:
    model, users, histories = world
    recommend_files(model, users, tmp_path / "known", settings())
    mixed = write_users(tmp_path / "mixed.parquet", [["gone", *row] for row in histories])
    report = recommend_files(model, mixed, tmp_path / "mixed", settings(on_unknown="skip"))
    assert report.unknown == 50
    assert contents(tmp_path / "mixed") == contents(tmp_path / "known")
    (tmp_path / "mixed" / "part-00002.parquet").unlink()
    report = recommend_files(model, mixed, tmp_path / "mixed", settings(on_unknown="skip"))
    assert (report.users_now, report.unknown) == (8, 50)
    assert re.fullmatch(r"8 users \(42 more were there before\) in [\d.]+ s, [\d.,]+ users/s, 50 unknown item ids skipped", str(report))


def test_running_out_of_memory_says_how_to_go_on(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, users, _ = world
    rank, calls = batch.rank_histories, []

    def limited(*arguments: Any, batch_size: int, **options: Any) -> Any:
        calls.append(batch_size)
        if len(calls) > 2 and batch_size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rank(*arguments, batch_size=batch_size, **options)

    monkeypatch.setattr(batch, "rank_histories", limited)
    with pytest.raises(CEMGError, match="with 4 users at once; run the same command with a smaller --batch-size, it goes on after the 16"):
        recommend_files(model, users, tmp_path / "recs", settings())
    assert recommend_files(model, users, tmp_path / "recs", settings(batch_size=3)).users_now == 34


# ---- settings and fingerprints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"k": 0},
        {"k": 10, "num_beams": 9},
        {"rows_per_part": 0},
        {"batch_size": 0},
        {"on_unknown": "ignore"},
        {"dtype": "int8"},
        {"user_column": "scores"},
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any]) -> None:
    with pytest.raises(CEMGError, match=f"{list(changes)[-1]}="):
        BatchConfig(**changes)


def test_a_model_is_known_by_what_it_recommends_with(world, tmp_path: Path) -> None:
    model, _, _ = world
    moved = shutil.copytree(model, tmp_path / "moved")
    (moved / "README.md").write_text("a card")
    assert model_fingerprint(moved) == model_fingerprint(model)
    ids = moved / "item_ids.json"
    ids.write_text(json.dumps([*json.loads(ids.read_text())[:-1], "renamed"]))
    assert model_fingerprint(moved) != model_fingerprint(model)
    save_model(tmp_path / "other", ITEM_IDS, seed=1)
    assert model_fingerprint(tmp_path / "other") != model_fingerprint(model)


def test_users_are_ranked_a_part_at_a_time(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the row groups are; `benchmarks/batch_recommendation.py` measures the memory."""
    model, _, _ = world
    users = write_users(tmp_path / "users.parquet", random_histories(90), row_group_size=1000)
    longest: list[int] = []
    rank = batch.rank_histories

    def watched(generator: Any, histories: Any, *arguments: Any, **options: Any) -> Any:
        longest.append(len(histories))
        return rank(generator, histories, *arguments, **options)

    monkeypatch.setattr(batch, "rank_histories", watched)
    recommend_files(model, users, tmp_path / "recs", settings(rows_per_part=20))
    assert longest == [20, 20, 20, 20, 10]
