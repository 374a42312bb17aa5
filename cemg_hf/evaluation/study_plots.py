"""The figures of the paper's questions, made from their result files alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .drawing import COLOURS, metric_label, new_figure, save_figure, slice_title
from .protocol import EXCLUDING
from .study_report import (
    FULL,
    QUESTIONS,
    STAGE_ORDER,
    WHOLE,
    Cell,
    cases_of,
    cold_parts,
    difference_to_full,
    full_row,
    headline,
    name_of,
    rows_of,
    short_title,
    value_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SYMBOLS = {"M": "M", "K": "K", "lambda_q": r"$\lambda_q$", "lambda_d": r"$\lambda_d$"}
CODES_ONLY = "codes only"
LONGEST_CHANGES = 80
"""Characters of changed settings that fit into a title."""


def plot_study(envelope: Mapping[str, Any], path: str | Path) -> None:
    """The figure of a question, a row of panels per recipe.

    RQ1 and RQ5: grouped bars of HR@10 and NDCG@10. RQ2: bars with the difference to full CEMG behind each. RQ3: seconds by stage on
    top of each other, and milliseconds per user. RQ4: a line per swept setting. Streams: bars of NDCG@10 and of
    milliseconds per user. Whiskers are one standard deviation over seeds.

    Args:
        envelope: content of the result file.
        path: figure to write; its suffix (.png, .svg, .pdf) is the format.
    """
    draw, columns = {
        "rq1": (_draw_overall, 2),
        "rq2": (_draw_ablations, 2),
        "rq3": (_draw_time, 2),
        "rq4": (_draw_sweeps, max(1, len({about["parameter"] for about in envelope["rows"].values()}))),
        "rq5": (_draw_cold, 2),
        "streams": (_draw_streams, 2),
    }[envelope["study"]]
    recipes = list(envelope["recipes"])
    swept = envelope["study"] == "rq4"
    heights = [3.4 if swept else 1.3 + 0.42 * max(len(rows_of(envelope, recipe)), 3) for recipe in recipes]
    figure = new_figure(max(3.4 * columns, 9) if swept else 12, 0.9 + sum(heights))
    parts = figure.subfigures(len(recipes), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, recipe in zip(parts, recipes, strict=True):
        panels = part.subplots(1, columns, squeeze=False, sharey=swept)[0]  # of several sweeps one scale says which setting matters
        draw(panels, envelope, recipe)
        part.suptitle(_figure_title(envelope, recipe), fontsize=11)
    save_figure(figure, path)


def _figure_title(envelope: Mapping[str, Any], recipe: str) -> str:
    """ "RQ1, overall: beauty\\nT5 of …, at most 20 epochs · seeds 42, 43"."""
    about, seeds = envelope["recipes"][recipe], sorted({seed for row in rows_of(envelope, recipe).values() for seed in row["seeds"]})
    named = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else "nothing run yet"
    first = f"{QUESTIONS[envelope['study']]}: {recipe}"
    changes = ", ".join(envelope["set"])
    changes = f"{len(envelope['set'])} settings changed" if len(changes) > LONGEST_CHANGES else changes
    return f"{first}\n{' · '.join(part for part in (about['budget'], named, changes) if part)}"


def _draw_overall(panels: Sequence[Axes], envelope: Mapping[str, Any], recipe: str) -> None:
    for panel, metric in zip(panels, ("hr@10", "ndcg@10"), strict=True):
        series = {part: [Cell(part, metric, short_title(part) + cases_of(envelope, recipe, part))] for part in ("test", f"test{EXCLUDING}")}
        _bars(panel, envelope, recipe, series, metric_label(metric))


def _draw_cold(panels: Sequence[Axes], envelope: Mapping[str, Any], recipe: str) -> None:
    parts = [headline(envelope, recipe, part) for part in cold_parts(envelope["recipes"][recipe])]
    for panel, metric in zip(panels, ("hr@10", "ndcg@10"), strict=True):
        series = {part: [Cell(part, metric, short_title(part) + cases_of(envelope, recipe, part))] for part in parts}
        _bars(panel, envelope, recipe, series, metric_label(metric))


def _draw_ablations(panels: Sequence[Axes], envelope: Mapping[str, Any], recipe: str) -> None:
    part = headline(envelope, recipe)
    for panel, metric in zip(panels, ("hr@10", "ndcg@10"), strict=True):
        cell = Cell(part, metric, short_title(part) + cases_of(envelope, recipe, part))
        _bars(panel, envelope, recipe, {part: [cell]}, f"{metric_label(metric)}, {cell.title}", differences=True)
        full = full_row(envelope, recipe, WHOLE)
        reference = None if full is None else value_of(envelope["metrics"], full, cell)
        if reference is not None:
            panel.axvline(reference, color="black", linewidth=0.8, linestyle=":")


def _draw_time(panels: Sequence[Axes], envelope: Mapping[str, Any], recipe: str) -> None:
    stages = [stage for stage in STAGE_ORDER if any(stage in _part(envelope, row, "seconds") for row in rows_of(envelope, recipe))]
    _bars(panels[0], envelope, recipe, {"stages": [Cell("seconds", stage, stage) for stage in stages]}, "Seconds by stage", digits=0)
    latency = {name: [Cell("latency", f"batch_{size}_ms", name)] for name, size in (("one user at a time", 1), ("batches of 64", 64))}
    _bars(panels[1], envelope, recipe, latency, "Milliseconds per user", digits=1)


def _draw_streams(panels: Sequence[Axes], envelope: Mapping[str, Any], recipe: str) -> None:
    part = headline(envelope, recipe)
    cell = Cell(part, "ndcg@10", short_title(part) + cases_of(envelope, recipe, part))
    _bars(panels[0], envelope, recipe, {part: [cell]}, f"{metric_label('ndcg@10')}, {cell.title}")
    latency = {name: [Cell("latency", f"batch_{size}_ms", name)] for name, size in (("one user at a time", 1), ("batches of 64", 64))}
    timed = {row: about for row, about in envelope["rows"].items() if "cost" in about["tables"] and about["part"] == WHOLE}
    _bars(panels[1], {**envelope, "rows": timed}, recipe, latency, "Milliseconds per user", digits=2)


def _part(envelope: Mapping[str, Any], row: str, part: str) -> Mapping[str, Any]:
    return envelope["metrics"].get(row, {}).get(part, {})


def _bars(
    panel: Axes,
    envelope: Mapping[str, Any],
    recipe: str,
    groups: Mapping[str, Sequence[Cell]],
    title: str,
    *,
    digits: int = 4,
    differences: bool = False,
) -> None:
    """Bars from left to right, a group per row and in it one bar per entry of `groups`, whose cells lie end to end.

    The number behind a bar is its whole length and, with `differences`, that minus full CEMG's; a row without a result says so.
    """
    rows = rows_of(envelope, recipe)
    width = 0.8 / len(groups)
    places = np.arange(len(rows))
    furthest = 0.0
    for group, cells in enumerate(groups.values()):
        left = np.zeros(len(rows))
        at = places + (group - (len(groups) - 1) / 2) * width
        measured = [any(value_of(envelope["metrics"], row, cell) is not None for cell in cells) for row in rows]
        whiskers = np.zeros(len(rows))
        for number, cell in enumerate(cells):
            lengths = np.array([value_of(envelope["metrics"], row, cell) or 0.0 for row in rows])
            whiskers = np.array([value_of(envelope.get("std", {}), row, cell) or 0.0 for row in rows])
            panel.barh(at, lengths, width * 0.9, left=left, color=COLOURS[(group + number) % len(COLOURS)], label=cell.title)
            left = left + lengths
        if len(cells) == 1 and whiskers.any():
            panel.errorbar(left, at, xerr=whiskers, fmt="none", ecolor="black", elinewidth=1)
        ends = left + (whiskers if len(cells) == 1 else 0)
        furthest = max(furthest, float(ends.max(initial=0.0)))
        for row, place, end, length, known in zip(rows, at, ends, left, measured, strict=True):
            missing = "not run" if row not in envelope["metrics"] else "n/a"
            difference = difference_to_full(envelope, recipe, row, cells[0]) if differences else ""
            text = f"{length:,.{digits}f}" + (f"  ({difference})" if difference else "") if known else missing
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # the reference line passes behind the number
            panel.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=7.5, bbox=box)
    panel.set_yticks(places, [name_of(about) for about in rows.values()], fontsize=8)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlim(0, (1.45 if differences else 1.25) * furthest or 1.0)
    panel.set_title(title, fontsize=10)
    panel.tick_params(axis="x", labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    if sum(map(len, groups.values())) > 1:
        panel.legend(fontsize=7.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=sum(map(len, groups.values())))


def _draw_sweeps(panels: Sequence[Axes], envelope: Mapping[str, Any], recipe: str) -> None:
    rows = rows_of(envelope, recipe)
    cell = Cell(headline(envelope, recipe), "ndcg@10", "")
    for panel, symbol in zip(panels, dict.fromkeys(about["parameter"] for about in rows.values()), strict=True):
        parts = dict.fromkeys(about["part"] for about in rows.values())
        tried = [about["value"] for about in rows.values() if about["parameter"] == symbol and about["part"] == WHOLE]
        for number, part in enumerate(parts):
            points = list(_points(envelope, recipe, symbol, part, cell))
            if points:
                places, values, spreads = zip(*((tried.index(value), mean, std) for value, mean, std in points), strict=True)
                style = "o--" if part == CODES_ONLY else "o-"
                panel.errorbar(places, values, yerr=spreads, fmt=style, color=COLOURS[number], markersize=4, capsize=2, label=part or FULL)
        own = [about["value"] for about in rows.values() if about["parameter"] == symbol and not about["assignments"]]
        panel.axvline(tried.index(own[0]), color="#999999", linewidth=0.8, linestyle=":")
        panel.set_xticks(range(len(tried)), [f"{value:g}" for value in tried], fontsize=8)
        panel.set_xlim(-0.4, len(tried) - 0.6)
        panel.set_title(f"{SYMBOLS[symbol]} (the recipe's: {own[0]:g})", fontsize=10)
        panel.tick_params(axis="y", labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        if len(parts) > 1:
            panel.legend(fontsize=7.5, frameon=False)
    panels[0].set_ylabel(f"NDCG@10, {slice_title(cell.part).lower()}", fontsize=8)


def _points(envelope: Mapping[str, Any], recipe: str, symbol: str, part: str, cell: Cell) -> Iterator[tuple[float, float, float]]:
    """Value of a swept setting, mean, spread over seeds, as far as they were measured."""
    for row, about in rows_of(envelope, recipe).items():
        mean = value_of(envelope["metrics"], row, cell)
        if (about["parameter"], about["part"]) == (symbol, part) and mean is not None:
            yield about["value"], mean, value_of(envelope.get("std", {}), row, cell) or 0.0
