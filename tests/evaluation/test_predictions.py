"""Predictions on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cemg_hf.errors import CEMGError
from cemg_hf.evaluation import Predictions, predictions_table, read_predictions, write_predictions

PREDICTIONS = Predictions(
    ["u1", "u2", "u3"],
    ["a", "b", "ç"],
    np.array([4, 0, 1]),
    np.array([0, 1, 2]),
    np.array([[2, 0, -1, -1], [-1, -1, -1, -1], [1, 2, 0, -1]]),
    np.array([[-0.5, -1.25, -np.inf, -np.inf], [np.nan] * 4, [3.0, 2.0, 1.0, 0.0]]),
    np.array([[1, -1], [0, 2], [-1, -1]]),
    np.array([[1.5, -np.inf], [2.0, 1.0], [-np.inf, -np.inf]]),
)


def test_round_trip_through_parquet(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    write_predictions(folder, PREDICTIONS)
    write_predictions(folder, PREDICTIONS)
    assert sorted(file.name for file in folder.iterdir()) == ["catalogue.parquet", "predictions.parquet"]
    first, second, third = pq.read_table(folder / "predictions.parquet").to_pylist()
    assert first == {
        "user_id": "u1",
        "target": "a",
        "items": ["ç", "a"],
        "scores": [-0.5, -1.25],
        "items_excluding_history": ["b"],
        "scores_excluding_history": [1.5],
    }
    assert second["items"] == second["scores"] == third["items_excluding_history"] == []
    for place in (folder, folder / "predictions.parquet"):
        found = read_predictions(place)
        assert (found.user_ids, found.item_ids) == (PREDICTIONS.user_ids, PREDICTIONS.item_ids)
        for name in ("train_item_counts", "targets", "ranked"):
            np.testing.assert_array_equal(getattr(found, name), getattr(PREDICTIONS, name))
        np.testing.assert_array_equal(found.ranked_excluding_history[:, :2], PREDICTIONS.ranked_excluding_history)
        assert (found.ranked_excluding_history[:, 2:] == -1).all()
        np.testing.assert_array_equal(found.scores[found.ranked >= 0], PREDICTIONS.scores[PREDICTIONS.ranked >= 0])
        assert (found.scores[found.ranked < 0] == -np.inf).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(CEMGError, match=r"scores_excluding_history: .* not finite"):
        predictions_table(replace(PREDICTIONS, scores_excluding_history=np.full((3, 2), np.nan)))
    with pytest.raises(CEMGError, match="one row per case"):
        predictions_table(replace(PREDICTIONS, user_ids=["u", "v"]))
    with pytest.raises(CEMGError, match="no item"):
        predictions_table(replace(PREDICTIONS, item_ids=["a", "b"], targets=np.zeros(3, dtype=int)))
    with pytest.raises(CEMGError, match="targets: item indices must lie between 0 and 2"):
        predictions_table(replace(PREDICTIONS, targets=np.array([0, 3, 1])))


def test_files_that_are_no_predictions(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"predictions\.parquet: no such file"):
        read_predictions(tmp_path)
    write_predictions(tmp_path, PREDICTIONS)
    catalogue = pq.read_table(tmp_path / "catalogue.parquet")
    pq.write_table(catalogue.slice(1), tmp_path / "catalogue.parquet")
    with pytest.raises(CEMGError, match=r"item 'a' is not in catalogue\.parquet"):
        read_predictions(tmp_path)
    pq.write_table(catalogue, tmp_path / "catalogue.parquet")
    table = pq.read_table(tmp_path / "predictions.parquet")
    pq.write_table(table.drop_columns(["items_excluding_history"]), tmp_path / "predictions.parquet")
    with pytest.raises(CEMGError, match="column items_excluding_history is missing"):
        read_predictions(tmp_path)
    (tmp_path / "predictions.parquet").write_text("no")
    with pytest.raises(CEMGError, match="not predictions"):
        read_predictions(tmp_path)
