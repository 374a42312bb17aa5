"""Tables and figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cemg_hf.errors import CEMGError
from cemg_hf.evaluation import format_table, plot_metrics, plot_training_curve, still_rising
from cemg_hf.evaluation.report import written

METRICS = {
    "cemg": {
        "test_cold": {"hr@10": 0.0305, "ndcg@10": 0.0153, "n": 1200},
        "test": {"hr@10": 0.06653, "ndcg@10": 0.0348, "n": 22363, "coverage@10": 0.5},
    },
    "popularity": {"test_cold": {"hr@10": None, "ndcg@10": None, "n": 0}, "test": {"hr@10": 0.0072, "ndcg@10": 0.0036, "n": 22363}},
}


def test_table_has_a_row_per_system_and_a_block_per_slice() -> None:
    assert format_table(METRICS) == (
        "### Test (n = 22,363)\n\n"
        "| System | HR@10 | NDCG@10 | Coverage@10 |\n|---|---:|---:|---:|\n"
        "| cemg | 0.0665 | 0.0348 | 0.5000 |\n| popularity | 0.0072 | 0.0036 | – |\n\n"
        "### Cold start\n\n"
        "| System | HR@10 | NDCG@10 | n |\n|---|---:|---:|---:|\n"
        "| cemg | 0.0305 | 0.0153 | 1,200 |\n| popularity | – | – | 0 |\n"
    )


@pytest.mark.parametrize(
    ("values", "rising"),
    [
        ([0.01, 0.02], True),
        (np.linspace(0.01, 0.05, 30), True),
        (np.concatenate([np.linspace(0.01, 0.05, 15), np.full(15, 0.05)]), False),
        (np.concatenate([np.linspace(0.01, 0.05, 15), np.linspace(0.05, 0.04, 15)]), False),
        (0.05 - 0.04 * np.exp(-np.arange(40) / 4), False),
    ],
)
def test_whether_a_curve_was_still_rising(values: list[float], rising: bool) -> None:
    assert still_rising(values) is rising


@pytest.fixture
def history() -> list[dict[str, float]]:
    epochs = np.arange(1, 21)
    quality = 0.05 * (1 - np.exp(-epochs / 5))
    return [
        {
            "epoch": int(epoch),
            "train_loss": float(6 * 0.9**epoch),
            **({"ndcg@10": float(value), "hr@10": float(2 * value)} if epoch % 2 == 0 else {}),
        }
        for epoch, value in zip(epochs, quality, strict=True)
    ]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_figures_are_written_whole(suffix: str, tmp_path: Path, history: list[dict[str, float]]) -> None:
    curve, bars = tmp_path / "new" / f"curve{suffix}", tmp_path / "new" / f"bars{suffix}"
    plot_training_curve(history, curve, title="Sample")
    plot_metrics(METRICS, bars, title="Sample")
    assert sorted(path.name for path in curve.parent.iterdir()) == [bars.name, curve.name]
    if suffix == ".png":
        for path in (curve, bars):
            pixels = np.asarray(Image.open(path).convert("L"))
            assert pixels.shape[0] > 400
            assert 0.005 < (pixels < 200).mean() < 0.6
    else:
        assert all("</svg>" in path.read_text() for path in (curve, bars))


def test_figures_that_cannot_be_drawn_are_refused(tmp_path: Path, history: list[dict[str, float]]) -> None:
    with pytest.raises(CEMGError, match='no epoch has "ndcg@10"'):
        plot_training_curve([{"epoch": 1, "train_loss": 2.0}], tmp_path / "curve.png")
    with pytest.raises(CEMGError, match='an epoch without "train_loss"'):
        plot_training_curve([{"epoch": 1}], tmp_path / "curve.png")
    with pytest.raises(CEMGError, match="png"):
        plot_training_curve(history, tmp_path / "curve.bmp")
    with pytest.raises(CEMGError, match="no system has any of the slices"):
        plot_metrics(METRICS, tmp_path / "bars.png", slices=("validation",))
    assert not list(tmp_path.iterdir())


def test_a_value_stands_with_its_spread_or_its_interval() -> None:
    assert written(None, 0.1, [0, 1]) == "–"
    assert written(0.0541, 0.0012, [0.05, 0.06]) == "0.0541 ± 0.0012"
    assert written(0.0541, None, [0.0512, 0.057]) == "0.0541 [0.0512, 0.0570]"
    assert written(0.0541, 0.0) == "0.0541 ± 0.0000"
    assert written(1234.56, form=",.1f") == "1,234.6"
