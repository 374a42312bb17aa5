"""Curves of a self-distillation: whether it learns, whether it collapses, and what becomes of the codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CEMGError
from .drawing import COLOURS, new_figure, save_figure

SHARES = {
    "target_entropy": "Entropy of the teacher's targets, share of log P",
    "prototypes_used": "Prototypes used, share of P",
    "used_codes": "Codes used, share of K",
    "collision_rate": "Pictures that share all codes",
    "quantisation_error": "Quantisation error, share of variance",
}


def plot_distillation(history: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Training loss (left) and the shares of `SelfDistillation.measure` (right) against the epoch.

    Args:
        history: one mapping per measurement with "epoch", "train_loss" and the keys of `SHARES`.
        path: figure to write; its suffix (.png, .svg, .pdf) is the format.
        title: what was trained, on what.

    Raises:
        CEMGError: no measurements, or one without one of the keys.
    """
    wanted = ("epoch", "train_loss", *SHARES)
    if not history:
        raise CEMGError("history: holds no measurement; plot the curve of a run that has finished an epoch")
    for row in history:
        missing = [key for key in wanted if key not in row]
        if missing:
            raise CEMGError(f'history: an entry without "{missing[0]}" (it has {", ".join(row)}); pass what the training reports')
    figure = new_figure(9, 4)
    loss_axis, share_axis = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) <= 40 else None
    loss_axis.plot(epochs, [row["train_loss"] for row in history], color="#777777", marker=marker, markersize=3)
    loss_axis.set(xlabel="Epoch", ylabel="Training loss")
    for colour, (key, label) in zip(COLOURS, SHARES.items(), strict=False):
        share_axis.plot(epochs, [row[key] for row in history], color=colour, marker=marker, markersize=3, label=label)
    share_axis.set(xlabel="Epoch", ylim=(0, max(1.0, *(row["quantisation_error"] for row in history)) * 1.02))
    for axis in (loss_axis, share_axis):
        axis.xaxis.get_major_locator().set_params(integer=True)
    share_axis.legend(fontsize=7, frameon=False)
    figure.suptitle(title)
    save_figure(figure, path)
