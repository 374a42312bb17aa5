"""The table, the figure and the files of a comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from comparison_samples import USERS, predictions, save_result, save_run
from PIL import Image

from cemg_hf.artefacts import result_envelope
from cemg_hf.errors import CEMGError
from cemg_hf.evaluation import compare, format_comparison, plot_comparison, read_runs
from cemg_hf.evaluation.comparison_report import MOST_PAIRS, _drawn_pairs, write_comparison


def test_tables_have_a_row_per_system_and_intervals(tmp_path: Path) -> None:
    places = [save_run(tmp_path / "a1", "a", 1), save_run(tmp_path / "a2", "a", 2), save_run(tmp_path / "b", "b", 1, predictions(4, 0.9))]
    comparison = compare(read_runs([*places, save_result(tmp_path / "results.json", ["tiger"])]), resamples=200)
    text = format_comparison(comparison)
    headings = [line for line in text.splitlines() if line.startswith("### ")]
    assert headings[0] == f"### Test (n = {USERS})"
    assert headings[1] == f"### Test, history items excluded (n = {USERS})"
    assert headings[2].startswith("### Cold start")
    assert headings[-3] == f"### Beyond accuracy, test, history items excluded (n = {USERS})"
    tested = [f"### Paired differences, NDCG@10, test{history} (n = {USERS})" for history in ("", ", history items excluded")]
    assert headings[-2:] == tested
    rows_of = [block.splitlines()[4:] for block in text.split("### ")[-2:]]
    rows = {line.split(" | ")[0]: line for line in text.split("### ")[1].splitlines() if line.startswith("| ")}
    assert set(rows) == {"| System", "| a", "| b", "| tiger", "| popularity"}
    assert rows["| a"].count(" ± ") == rows["| a"].count("[") == 4
    assert rows["| b"].count(" ± ") == 0
    assert rows["| b"].count("[") == 4
    assert rows["| tiger"] == "| tiger | 0.2000 ± 0.0100 | 0.1000 ± 0.0100 | 0.3000 | 0.1200 |"
    for pair, (row, *others) in zip(comparison.pairs, rows_of, strict=True):
        assert row.startswith(f"| a − b | {pair.difference:+.4f} | [{pair.low:+.4f}, {pair.high:+.4f}] |")
        assert others == [""] * len(others)
    assert [pair.slice for pair in comparison.pairs] == ["test", "test_excluding_history"]


@pytest.mark.parametrize("paired", [True, False])
def test_figures(tmp_path: Path, paired: bool) -> None:
    """A row of panels per slice that is tested, each as high as that of a single one."""
    runs = read_runs([save_run(tmp_path / name, name, seed) for seed, name in enumerate("abc" if paired else "a")])
    heights = []
    for part in (None, "test"):
        plot_comparison(compare(runs, slice_name=part, resamples=50), tmp_path / "compare.png", "Sample")
        pixels = np.asarray(Image.open(tmp_path / "compare.png").convert("L"))
        assert pixels.shape[1] > (1500 if paired else 900)
        assert all(0.005 < (half < 200).mean() < 0.6 for half in np.array_split(pixels, 2))
        heights.append(len(pixels))
    assert heights[0] == pytest.approx(2 * heights[1], abs=2)


def test_of_many_systems_the_differences_from_the_best_are_drawn(tmp_path: Path) -> None:
    comparison = compare(read_runs([save_run(tmp_path / name, name, seed) for seed, name in enumerate("abcdefg")]), resamples=50)
    few = compare(read_runs([tmp_path / "a", tmp_path / "b"]), resamples=50)
    for part in comparison.slices:
        assert len(comparison.pairs_of(part)) > MOST_PAIRS
        drawn = _drawn_pairs(comparison, part)
        values = {system.name: system.metrics[part][comparison.metric] for system in comparison.systems}
        (best,) = {pair.b for pair in drawn}
        assert values[best] == max(values[name] for name in "abcdefg")
        assert {pair.a for pair in drawn} == set("abcdefg") - {best}
        for pair in drawn:
            assert pair.difference == pytest.approx(values[pair.a] - values[pair.b])
            assert pair.low <= pair.difference <= pair.high
        assert _drawn_pairs(few, part) == [pair for pair in few.pairs if pair.slice == part]


def test_what_is_written(tmp_path: Path) -> None:
    places = [save_run(tmp_path / "a", "a", 1), save_run(tmp_path / "b", "b", 2)]
    text = write_comparison(places, tmp_path / "out", "hr@10", "test", command="cemg compare a b")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.json", "compare.md", "compare.png"]
    assert (tmp_path / "out" / "compare.md").read_text() == text
    stored = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert set(result_envelope({}, command="", seeds=[], seconds=0)) <= set(stored)
    assert (stored["metric"], stored["slices"], stored["seeds"]) == ("hr@10", ["test"], [1, 2])
    assert set(stored["metrics"]) == set(stored["intervals"]) == set(stored["systems"]) == {"a", "b", "popularity"}
    assert "std" not in stored
    assert set(stored["pairs"][0]) == {"a", "b", "difference", "low", "high", "p_value", "p_holm", "n", "slice"}
    assert {pair["slice"] for pair in stored["pairs"]} == {"test"}
    write_comparison(places, tmp_path / "out")
    both = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert both["slices"] == [pair["slice"] for pair in both["pairs"]] == ["test", "test_excluding_history"]


def test_the_tested_metric_has_a_column_of_its_own_where_it_is_not_a_usual_one(tmp_path: Path) -> None:
    places = [save_run(tmp_path / "a", "a", 1), save_run(tmp_path / "b", "b", 2)]
    usual = write_comparison(places, tmp_path / "usual", "hr@20", "test")
    assert "| System | HR@10 | NDCG@10 | HR@20 | NDCG@20 |" in usual
    text = write_comparison(places, tmp_path / "out", "mrr@7", "test")
    assert text.count("| System | HR@10 | NDCG@10 | HR@20 | NDCG@20 | MRR@7 |") == 4
    assert "### Paired differences, MRR@7, test" in text


def test_nothing_is_written_of_what_cannot_be_compared(tmp_path: Path) -> None:
    places = [save_run(tmp_path / "a", "a", 1), save_run(tmp_path / "b", "b", 1, predictions(1, data_seed=3))]
    with pytest.raises(CEMGError, match="cannot be compared"):
        write_comparison(places, tmp_path / "out")
    assert not (tmp_path / "out").exists()
