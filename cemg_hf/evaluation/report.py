"""Results as people read them: Markdown tables, the training curve, a bar chart of the systems compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..errors import CEMGError
from .drawing import COLOURS, SLICE_TITLES, metric_label, new_figure, save_figure, slice_title, whiskers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# slice -> metric -> value, and [low, high]
SliceValues: TypeAlias = Mapping[str, Mapping[str, float | int | None]]
SliceIntervals: TypeAlias = Mapping[str, Mapping[str, Sequence[float] | None]]
# system -> slice -> metric -> the same
SystemMetrics: TypeAlias = Mapping[str, SliceValues]
SystemIntervals: TypeAlias = Mapping[str, SliceIntervals]


def format_table(metrics: SystemMetrics) -> str:
    """Markdown: one table per slice, a row per system, a column per metric, four decimals, "–" where there is no value."""
    blocks = []
    for slice_name in _slices(metrics):
        rows = {system: slices[slice_name] for system, slices in metrics.items() if slice_name in slices}
        names = list(dict.fromkeys(name for row in rows.values() for name in row if name != "n"))
        counts = {row.get("n") for row in rows.values()}
        shared = counts.pop() if len(counts) == 1 else None
        columns = names if shared is not None or counts <= {None} else [*names, "n"]
        lines = [
            f"### {slice_title(slice_name)}" + (f" (n = {shared:,})" if shared is not None else ""),
            "",
            "| System | " + " | ".join(metric_label(name) for name in columns) + " |",
            "|---" + "|---:" * len(columns) + "|",
            *(f"| {system} | " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for system, row in rows.items()),
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def written(mean: float | None, std: float | None = None, interval: Sequence[float] | None = None, form: str = ",.4f") -> str:
    """ "0.0541 ± 0.0012": a mean with its spread over seeds where there are several, else "0.0541 [0.0512, 0.0570]" with its interval where
    that is known; "–" where there is no value."""
    if mean is None:
        return "–"
    if std is not None:
        return f"{mean:{form}} ± {std:{form}}"
    return f"{mean:{form}}" + (f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else "")


def written_p(value: float) -> str:
    """ ".036", or "< .001": a p-value."""
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def machine_name(machine: Mapping[str, Any]) -> str:
    """What `artefacts.machine` found, as tables call it: the accelerator, or the number of cores."""
    return f"{machine['cores']} cores" if machine["accelerator"] == "none" else machine["accelerator"]


def still_rising(values: Sequence[float]) -> bool:
    """Whether a validation curve had not levelled off when training ended.

    It had not if its best value is among the last tenth of the evaluations (at least the last one) and the mean of the last quarter
    is more than 1 % above that of the quarter before. Fewer than four evaluations cannot show a plateau and count as rising.
    """
    if len(values) < 4:
        return True
    curve = np.asarray(values, dtype=np.float64)
    tail, quarter = max(1, len(curve) // 10), len(curve) // 4
    best_is_recent = curve[-tail:].max() >= curve.max()
    return bool(best_is_recent and curve[-quarter:].mean() > 1.01 * curve[-2 * quarter : -quarter].mean())


def plot_training_curve(history: Sequence[Mapping[str, Any]], path: str | Path, title: str = "Training") -> None:
    """Training loss (left axis) and validation NDCG@10 and HR@10 (right axis) against the epoch; best epoch by NDCG@10 marked.

    Args:
        history: one mapping per epoch with "epoch" and "train_loss", and with "ndcg@10" and "hr@10" where the epoch was validated.
        path: figure to write; its suffix (.png, .svg, .pdf) is the format.
        title: what was trained, on what.

    Raises:
        CEMGError: no epochs, an epoch without "epoch" or "train_loss", or none validated.
    """
    for row in history:
        missing = [key for key in ("epoch", "train_loss") if key not in row]
        if missing:
            raise CEMGError(f'history: an epoch without "{missing[0]}" (it has {", ".join(row)}); pass one mapping per epoch')
    validated = [row for row in history if row.get("ndcg@10") is not None]
    if not validated:
        raise CEMGError('history: no epoch has "ndcg@10"; plot the curve of a run that was validated')
    best = max(validated, key=lambda row: row["ndcg@10"])
    rising = still_rising([row["ndcg@10"] for row in validated])
    verdict = "validation NDCG@10 was still rising" if rising else "validation NDCG@10 had levelled off"

    from matplotlib.ticker import MaxNLocator

    figure = new_figure(8, 4.5)
    loss_axis = figure.add_subplot()
    metric_axis = loss_axis.twinx()
    epochs = [row["epoch"] for row in history]
    lines = loss_axis.plot(epochs, [row["train_loss"] for row in history], color="#777777", label="Training loss")
    for key, colour in (("ndcg@10", COLOURS[0]), ("hr@10", COLOURS[1])):
        points = [(row["epoch"], row[key]) for row in validated if row.get(key) is not None]
        if points:
            marker = "o" if len(points) <= 40 else None
            lines += metric_axis.plot(
                *zip(*points, strict=True), color=colour, marker=marker, markersize=3, label=f"Validation {metric_label(key)}"
            )
    metric_axis.axvline(best["epoch"], color="black", linestyle=":", linewidth=1)
    lines += metric_axis.plot(
        best["epoch"],
        best["ndcg@10"],
        "*",
        color="black",
        markersize=11,
        label=f"Best epoch {best['epoch']}: NDCG@10 {best['ndcg@10']:.4f}",
    )
    loss_axis.set_xlabel("Epoch")
    loss_axis.set_ylabel("Training loss")
    loss_axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    metric_axis.set_ylabel("Validation metric")
    metric_axis.set_ylim(bottom=0)
    figure.suptitle(f"{title}: {verdict}", fontsize=12)
    loss_axis.spines["top"].set_visible(False)
    metric_axis.spines["top"].set_visible(False)
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False, fontsize=9)
    save_figure(figure, path)


def plot_metrics(
    metrics: SystemMetrics,
    path: str | Path,
    slices: Sequence[str] = ("test", "test_excluding_history", "test_cold"),
    names: Sequence[str] = ("hr@10", "ndcg@10"),
    title: str = "",
    intervals: SystemIntervals | None = None,
) -> None:
    """Grouped bars: a panel per slice, a group per metric, a bar per system.

    Args:
        metrics: system -> slice -> metric -> value; systems keep their order and colour in every panel.
        path: figure to write; its suffix is the format.
        slices: panels; slices that no system has are left out.
        names: the metrics of each panel.
        title: what was measured, on what.
        intervals: drawn as error bars where there are any.
    """
    shown = [name for name in slices if any(name in system for system in metrics.values())]
    if not shown:
        raise CEMGError(f"metrics: no system has any of the slices {', '.join(slices)}; evaluate first")
    width = max(4.5, 1.0 + len(shown) * len(names) * (0.8 + 0.34 * len(metrics)))
    figure = new_figure(width, 4.2)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, slice_name in zip(panels, shown, strict=True):
        _bars(panel, metrics, slice_name, names, intervals or {})
    panels[0].set_ylabel("Mean over cases")
    tops = [_top(metrics, intervals or {}, system, part, name) for system in metrics for part in shown for name in names]
    highest = max(tops)
    panels[0].set_ylim(0, 1.25 * highest or 1.0)  # room for the upright labels
    if title:
        figure.suptitle(title, fontsize=12)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(2, min(len(labels), int(width / 2.2))), frameon=False, fontsize=9)
    save_figure(figure, path)


def _top(metrics: SystemMetrics, intervals: SystemIntervals, system: str, part: str, name: str) -> float:
    """Where a bar ends, its error bar included."""
    interval = intervals.get(system, {}).get(part, {}).get(name)
    return max(metrics[system].get(part, {}).get(name) or 0.0, interval[1] if interval else 0.0)


def _bars(panel: Axes, metrics: SystemMetrics, slice_name: str, names: Sequence[str], intervals: SystemIntervals) -> None:
    width = 0.8 / len(metrics)
    groups = np.arange(len(names))
    for number, (system, slices) in enumerate(metrics.items()):
        values = [slices.get(slice_name, {}).get(name) for name in names]
        bars = panel.bar(
            groups + (number - (len(metrics) - 1) / 2) * width,
            [0.0 if value is None else value for value in values],
            width * 0.92,
            color=COLOURS[number % len(COLOURS)],
            label=system,
            yerr=whiskers(values, [intervals.get(system, {}).get(slice_name, {}).get(name) for name in names]),
            error_kw={"linewidth": 1},
        )
        panel.bar_label(bars, ["n/a" if value is None else f"{value:.4f}" for value in values], rotation=90, padding=3, fontsize=8)
    panel.set_xticks(groups, [metric_label(name) for name in names])
    counts = {slices[slice_name].get("n") for slices in metrics.values() if slice_name in slices} - {None}
    panel.set_title(slice_title(slice_name) + (f"\nn = {counts.pop():,}" if len(counts) == 1 else ""), fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)


def _slices(metrics: SystemMetrics) -> list[str]:
    """Slices in the order of `SLICE_TITLES`, unknown ones behind them in order of appearance."""
    present = dict.fromkeys(name for slices in metrics.values() for name in slices)
    return [*(name for name in SLICE_TITLES if name in present), *(name for name in present if name not in SLICE_TITLES)]


def _cell(value: float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
