"""The one kind of bar chart that benchmarks draw: variants below each other, the package's own first and in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def draw_bars(path: Path, panels: Mapping[str, Sequence[tuple[str, float]]], label: str, unit: str) -> None:
    """Args: panels: title -> variants and their values, the package's own first; label: of the axis; unit: behind every value."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(max(8, 5.5 * len(panels)), 2.4), layout="constrained", squeeze=False)
    for panel, (title, rows) in zip(axes[0], panels.items(), strict=True):
        names, values = zip(*rows[::-1], strict=True)
        bars = panel.barh(names, values, color=["#b8b8b8"] * (len(rows) - 1) + ["#2a6f97"])
        panel.bar_label(bars, labels=[f"{value:,.0f} {unit}" for value in values], padding=3, fontsize=8)
        panel.set_title(title, fontsize=10)
        panel.set_xlim(right=1.2 * max(values))
        panel.set_xlabel(label)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(axis="y", labelsize=8)
    figure.savefig(path, dpi=130)
