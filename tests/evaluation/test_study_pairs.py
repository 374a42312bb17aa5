"""Rows of a study are tested against the rows that their tables name, part by part, over the seeds that kept their lists."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from comparison_samples import USERS, predictions, save_run

from cemg_hf.evaluation.comparison import compare, holm
from cemg_hf.evaluation.runs import read_runs
from cemg_hf.evaluation.study_pairs import evaluation_of, paired_tests

SLICE = "test_excluding_history"
TABLES = {"cemg": {"ablations": ""}, "without text": {"ablations": "cemg"}, "without image": {"ablations": "cemg"}}
QUALITY = {"cemg": 0.5, "without text": 0.2, "without image": 0.45}
SEEDS = (1, 2)


@pytest.fixture
def study(tmp_path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[int, Path]]]:
    """Rows and folders of three systems with codes of their own, under two seeds."""
    rows: dict[str, dict[str, Any]] = {}
    folders: dict[str, dict[int, Path]] = {}
    for number, (label, tables) in enumerate(TABLES.items()):
        for part in ("", "codes only"):
            rows[f"{label}, {part}" if part else label] = {"label": label, "part": part, "tables": tables, "seeds": list(SEEDS)}
            for seed in SEEDS:
                run = folders.setdefault(label, {})[seed] = tmp_path / label / f"seed-{seed}"
                lists = predictions(seed + 10 * number + 100 * bool(part), QUALITY[label] - 0.1 * bool(part))
                save_run(tmp_path / "scratch", f"cemg, {part}" if part else "cemg", seed, lists)
                shutil.move(tmp_path / "scratch" / "evaluation", evaluation_of(run, part))
    return rows, folders


def test_a_part_is_tested_against_the_same_part_and_all_are_corrected_together(study: Any) -> None:
    rows, folders = study
    found = paired_tests(rows, folders, SLICE)
    assert [(pair["a"], pair["b"]) for pair in found] == [
        ("without text", "cemg"),
        ("without text, codes only", "cemg, codes only"),
        ("without image", "cemg"),
        ("without image, codes only", "cemg, codes only"),
    ]
    assert [pair["p_holm"] for pair in found] == holm([pair["p_value"] for pair in found])
    for pair in found:
        places = {
            side: [evaluation_of(folders[rows[pair[side]]["label"]][seed], rows[pair[side]]["part"]) for seed in SEEDS] for side in "ab"
        }
        runs = read_runs([f"{side}={place}" for side, both in places.items() for place in both])
        (expected,) = compare([run for run in runs if run.system in ("a", "b")], slice_name=SLICE).pairs
        assert (expected.a, expected.b, expected.n) == ("a", "b", USERS)
        assert [pair[key] for key in ("difference", "low", "high", "p_value")] == [
            expected.difference,
            expected.low,
            expected.high,
            expected.p_value,
        ]


def test_only_seeds_that_both_kept_count(study: Any) -> None:
    rows, folders = study
    both = {pair["a"]: pair for pair in paired_tests(rows, folders, SLICE)}
    shutil.rmtree(evaluation_of(folders["without text"][2], ""))  # only its `metrics.json` was brought home
    (evaluation_of(folders["cemg"][1], "codes only") / "predictions.parquet").unlink()
    rows["without image"]["seeds"] = []
    found = {pair["a"]: pair for pair in paired_tests(rows, folders, SLICE)}
    assert set(found) == set(both) - {"without image"}
    for row in found:
        assert found[row]["difference"] != both[row]["difference"]
    (evaluation_of(folders["cemg"][2], "codes only") / "predictions.parquet").unlink()
    assert [pair["a"] for pair in paired_tests(rows, folders, SLICE)] == ["without text"]
