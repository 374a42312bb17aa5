from __future__ import annotations

from pathlib import Path

import pytest

from cemg_hf.errors import CEMGError
from cemg_hf.evaluation.distillation_plot import SHARES, plot_distillation


def test_a_figure_is_written(tmp_path: Path) -> None:
    history = [{"epoch": epoch, "train_loss": 1 / epoch, **dict.fromkeys(SHARES, 0.5)} for epoch in range(1, 4)]
    plot_distillation(history, tmp_path / "curve.png", "a title")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_history_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match="holds no measurement"):
        plot_distillation([], tmp_path / "curve.png", "x")
    with pytest.raises(CEMGError, match='an entry without "target_entropy"'):
        plot_distillation([{"epoch": 1, "train_loss": 2.0}], tmp_path / "curve.png", "x")
