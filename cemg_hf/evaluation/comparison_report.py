"""A comparison as people read it: Markdown tables with intervals, a figure of bars and paired differences, and `cemg compare`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..artefacts import result_envelope, write_json, write_text
from .comparison import DEFAULT_METRIC, ComparedPair, ComparedSystem, Comparison, compare
from .drawing import COLOURS, metric_label, new_figure, save_figure, slice_title, whiskers
from .protocol import EXCLUDING
from .runs import read_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCURACY = ("hr@10", "ndcg@10", "hr@20", "ndcg@20")
BEYOND = (
    "coverage@10",
    "gini@10",
    "popularity_percentile@10",
    "average_popularity@10",
    "intra_list_distance@10",
    "inter_user_diversity@10",
)
BLOCKS = tuple((part + suffix, ACCURACY) for part in ("test", "test_cold") for suffix in ("", EXCLUDING))
GREY = "#777777"
MOST_PAIRS = 15
"""Differences that one panel shows: those of six systems."""


def format_comparison(comparison: Comparison) -> str:
    """Markdown: accuracy per slice with 95 % intervals, what is recommended beside accuracy, and the paired differences.

    The metric that was tested stands among the accuracy also where it is none of the usual ones.
    """
    tested = () if comparison.metric in ACCURACY else (comparison.metric,)
    blocks = [_block(comparison, part, (*names, *tested), slice_title(part)) for part, names in BLOCKS]
    blocks += [
        _block(comparison, "test" + suffix, BEYOND, f"Beyond accuracy, {slice_title('test' + suffix).lower()}")
        for suffix in ("", EXCLUDING)
    ]
    blocks += [_pairs_block(comparison, part) for part in comparison.slices]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _pairs_block(comparison: Comparison, part: str) -> str:
    """The paired differences of one slice; empty where nothing was tested."""
    pairs = comparison.pairs_of(part)
    if not pairs:
        return ""
    lines = [
        f"### Paired differences, {metric_label(comparison.metric)}, {slice_title(part).lower()} (n = {pairs[0].n:,})",
        "",
        "| Systems | difference | 95 % interval | p | p, Holm |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {pair.a} − {pair.b} | {pair.difference:+.4f} | [{pair.low:+.4f}, {pair.high:+.4f}] "
            f"| {_p(pair.p_value)} | {_p(pair.p_holm)} |"
            for pair in pairs
        ),
    ]
    return "\n".join(lines)


def _block(comparison: Comparison, part: str, names: tuple[str, ...], title: str) -> str:
    """One table; empty where no system has any of the metrics."""
    systems = [system for system in comparison.systems if part in system.metrics]
    shown = [name for name in names if any(system.metrics[part].get(name) is not None for system in systems)]
    if not shown:
        return ""
    counts = {system.metrics[part].get("n") for system in systems} - {None}
    only = counts.pop() if len(counts) == 1 else None
    lines = [
        f"### {title}" + (f" (n = {only:,.0f})" if only is not None else ""),
        "",
        "| System | " + " | ".join(metric_label(name) for name in shown) + " |",
        "|---" + "|---:" * len(shown) + "|",
        *(f"| {system.name} | " + " | ".join(_cell(system, part, name) for name in shown) + " |" for system in systems),
    ]
    return "\n".join(lines)


def _cell(system: ComparedSystem, part: str, name: str) -> str:
    """ "0.0541 ± 0.0012 [0.0512, 0.0570]": mean, spread over seeds, interval over users, as far as they are known."""
    value = system.metrics[part].get(name)
    if value is None:
        return "–"
    spread, interval = system.std.get(part, {}).get(name), system.intervals.get(part, {}).get(name)
    digits = 4 if abs(value) < 10 else 1
    text = f"{value:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")
    return text + (f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else "")


def _p(value: float) -> str:
    return f"{value:.4f}" if value < 0.001 else f"{value:.3f}"


def plot_comparison(comparison: Comparison, path: str | Path, title: str = "") -> None:
    """Bars of the metric that was tested, with 95 % intervals, and beside them the paired differences with their own; a row per slice.

    Of many systems only the differences from the best one are drawn; the table has them all.

    Args:
        comparison: what `compare` found.
        path: figure to write; its suffix (.png, .svg, .pdf) is the format.
        title: what was compared, on what.
    """
    pairs = {part: _drawn_pairs(comparison, part) for part in comparison.slices}
    wide = any(pairs.values())
    rows = max(len(comparison.systems), *map(len, pairs.values()), 5)
    figure = new_figure(12 if wide else 7, len(pairs) * (1.6 + 0.34 * rows))
    panels = figure.subplots(len(pairs), 2 if wide else 1, squeeze=False)
    for row, (part, drawn) in zip(panels, pairs.items(), strict=True):
        _draw_systems(row[0], comparison, part)
        if drawn:
            _draw_pairs(row[1], drawn)
        elif wide:
            row[1].set_axis_off()
    if title:
        figure.suptitle(title, fontsize=12)
    save_figure(figure, path)


def _draw_systems(panel: Axes, comparison: Comparison, part: str) -> None:
    values = [system.metrics[part].get(comparison.metric) for system in comparison.systems]
    intervals = [system.intervals.get(part, {}).get(comparison.metric) for system in comparison.systems]
    places = np.arange(len(values))
    bars = panel.barh(
        places,
        [0.0 if value is None else value for value in values],
        0.7,
        color=COLOURS[4],
        xerr=whiskers(values, intervals),
        error_kw={"linewidth": 1},
    )
    panel.bar_label(bars, ["n/a" if value is None else f"{value:.4f}" for value in values], padding=4, fontsize=8)
    panel.set_yticks(places, [system.name for system in comparison.systems], fontsize=8)
    panel.margins(x=0.18)
    panel.set_ylim(len(values) - 0.5, -0.5)
    panel.set_xlim(left=0)
    panel.set_title(f"{metric_label(comparison.metric)}, {slice_title(part).lower()}", fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)


def _drawn_pairs(comparison: Comparison, part: str) -> list[ComparedPair]:
    """All pairs of a slice, or of more than a panel holds those of its best system, each as other − best."""
    pairs = comparison.pairs_of(part)
    if len(pairs) <= MOST_PAIRS:
        return pairs
    values = {system.name: system.metrics[part].get(comparison.metric) or 0.0 for system in comparison.systems}
    best = max({name for pair in pairs for name in (pair.a, pair.b)}, key=values.__getitem__)
    turned = [replace(pair, a=pair.b, b=pair.a, difference=-pair.difference, low=-pair.high, high=-pair.low) for pair in pairs]
    return [pair for pair in (*pairs, *turned) if pair.b == best]


def _draw_pairs(panel: Axes, pairs: Sequence[ComparedPair]) -> None:
    for place, pair in enumerate(pairs):
        colour = GREY if pair.p_holm >= 0.05 else COLOURS[2] if pair.difference > 0 else COLOURS[5]
        panel.plot([pair.low, pair.high], [place, place], color=colour, linewidth=1.6)
        panel.plot(pair.difference, place, "o", color=colour, markersize=5)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.locator_params(axis="x", nbins=6)
    panel.set_yticks(range(len(pairs)), [f"{pair.a} − {pair.b}" for pair in pairs], fontsize=8)
    panel.set_ylim(len(pairs) - 0.5, -0.5)
    panel.set_title("Paired differences, 95 % intervals\n(coloured: p < 0.05 after Holm's correction)", fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)


def write_comparison(
    places: Sequence[str | Path], output: str | Path, metric: str = DEFAULT_METRIC, slice_name: str | None = None, command: str = ""
) -> str:
    """Read runs, compare them, and write `compare.json` (the one envelope), `compare.md` and `compare.png`.

    Args:
        places: as for `read_runs`.
        output: folder to write into; other files there stay.
        metric, slice_name: as for `compare`.
        command: the command that reproduces the comparison.

    Returns:
        The content of `compare.md`.
    """
    started, output = time.perf_counter(), Path(output)
    comparison = compare(read_runs(places), metric, slice_name)
    text = format_comparison(comparison)
    plot_comparison(comparison, output / "compare.png")
    write_text(output / "compare.md", text)
    parts = comparison.envelope_parts()
    write_json(output / "compare.json", result_envelope(**parts, command=command, seconds=time.perf_counter() - started))
    return text
