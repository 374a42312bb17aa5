"""One page of plots of an item tokenizer, drawn from the figures of its inspection alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CEMGError
from .drawing import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "#777777"
# One colour per space in every panel.
SPACE_COLOURS = {"fused": "#000000", "image": COLOURS[1], "text": COLOURS[0], "collaborative": COLOURS[2]}
COLUMNS = 3
LCM_OF_ROWS = 6  # rows of 1, 2 and 3 panels share one grid


def plot_codes(metrics: Mapping[str, Any], path: str | Path, title: str = "Item tokenizer") -> None:
    """Draw the figures of one tokenizer; a panel without data is left out.

    Args:
        metrics: `metrics["tokenizer"]` of an inspection (`cemg_hf.training.inspect.inspect_tokenizer`).
        path: figure to write; its suffix (.png, .svg, .pdf) is the format.
        title: what was inspected.

    Raises:
        CEMGError: figures without `levels` and `frequencies`, or a format that is none of these.
    """
    missing = [key for key in ("levels", "frequencies", "codebook_size", "items") if key not in metrics]
    if missing:
        raise CEMGError(f"metrics: no {missing[0]!r}; give metrics['tokenizer'] of an inspection.json")
    shown = [draw for has_data, draw in PANELS if has_data(metrics)]
    rows = math.ceil(len(shown) / COLUMNS)
    # Panels spread evenly, the fuller rows first: 7 are 3 + 2 + 2.
    sizes = [len(part) for part in np.array_split(np.arange(len(shown)), rows)]
    figure = new_figure(12, 0.9 + 2.9 * rows)
    grid = figure.add_gridspec(rows, LCM_OF_ROWS)
    places = [
        grid[row, column * LCM_OF_ROWS // size : (column + 1) * LCM_OF_ROWS // size]
        for row, size in enumerate(sizes)
        for column in range(size)
    ]
    for place, draw in zip(places, shown, strict=True):
        panel = figure.add_subplot(place)
        draw(panel, metrics)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
        panel.title.set_fontsize(10)
        panel.xaxis.label.set_fontsize(9)
        panel.yaxis.label.set_fontsize(9)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, hspace=0.04, wspace=0.03)
    codes = {"nearest": "nearest codes", "resolved": "codes after resolution"}.get(metrics.get("assignment", ""), "codes")
    geometry = f"{metrics['items']:,} items, {len(metrics['levels'])} levels × {metrics['codebook_size']} codes; {codes}"
    figure.suptitle(f"{title}\n{geometry}", fontsize=12)
    save_figure(figure, path)


def _frequencies(panel: Axes, metrics: Mapping[str, Any]) -> None:
    counts = -np.sort(-np.asarray(metrics["frequencies"]), axis=1)
    ranks = np.arange(1, counts.shape[1] + 1)
    for level, row in enumerate(counts):
        # Dead codes end a curve: a logarithmic axis has no zero.
        panel.plot(ranks[row > 0], row[row > 0], color=COLOURS[level % len(COLOURS)], label=f"level {level + 1}", linewidth=1.4)
    panel.axhline(metrics["items"] / counts.shape[1], color=GREY, linestyle="--", linewidth=1, label="even use")
    panel.set_yscale("log")
    panel.set_title("Items per code, most used first")
    panel.set_xlabel("Rank of the code")
    panel.set_ylabel("Items")
    panel.legend(fontsize=7, frameon=False, ncols=2, loc="lower left")


def _usage(panel: Axes, metrics: Mapping[str, Any]) -> None:
    size = metrics["codebook_size"]
    places = np.arange(1, len(metrics["levels"]) + 1)
    series = (
        ("codes in use", [level["used_codes"] * size for level in metrics["levels"]], COLOURS[4]),
        ("perplexity", [level["perplexity"] for level in metrics["levels"]], COLOURS[0]),
    )
    for offset, (label, values, colour) in zip((-0.2, 0.2), series, strict=True):
        bars = panel.bar(places + offset, values, 0.38, color=colour, label=label)
        labels = panel.bar_label(bars, [f"{value:.0f}" for value in values], fontsize=7, padding=1)
        for text in labels:  # readable where the line of K runs through them
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.4})
    panel.axhline(size, color=GREY, linestyle="--", linewidth=1, label=f"K = {size}")
    panel.set_ylim(0, 1.35 * size)
    panel.set_xticks(places)
    panel.set_title("Codebook use")
    panel.set_xlabel("Level")
    panel.set_ylabel("Codes")
    panel.legend(fontsize=7, frameon=False, ncols=3, loc="upper center")


def _collisions(panel: Axes, metrics: Mapping[str, Any]) -> None:
    items = metrics["items"]
    values = {
        "collisions\nbefore": metrics.get("collision_rate_before"),
        "collisions\nafter": metrics.get("collision_rate_after"),
        "items\nmoved": metrics["moved"] / items if "moved" in metrics else None,
        "to another\nprefix": metrics["spilled"] / items if "spilled" in metrics else None,
    }
    known = {name: 100 * value for name, value in values.items() if value is not None}
    colours = [COLOURS[5], COLOURS[2], COLOURS[4], COLOURS[4]]
    bars = panel.bar(
        list(known), list(known.values()), 0.6, color=[c for c, v in zip(colours, values.values(), strict=True) if v is not None]
    )
    panel.bar_label(bars, [f"{value:.2f} %" for value in known.values()], fontsize=8, padding=1)
    panel.set_ylim(0, 1.2 * max(known.values()) or 1)
    panel.set_title("Collisions and their resolution")
    panel.set_ylabel("% of items")


def _neighbours(panel: Axes, metrics: Mapping[str, Any]) -> None:
    spaces = {name: found["depths"] for name, found in metrics["neighbour_preservation"].items() if found["depths"]}
    for name, depths in spaces.items():
        kept = [entry for entry in depths if entry["share"] > 0]
        colour = SPACE_COLOURS.get(name, GREY)
        panel.plot([entry["depth"] for entry in kept], [entry["share"] for entry in kept], "o-", color=colour, markersize=4, label=name)
    # Chance differs between spaces only by the items that have no vector there: one line stands for all.
    chance = [entry for entry in next(iter(spaces.values())) if entry["chance"] > 0]
    panel.plot([entry["depth"] for entry in chance], [entry["chance"] for entry in chance], "s--", color=GREY, markersize=4, label="chance")
    panel.set_yscale("log")
    panel.set_xticks(range(1, max((entry["depth"] for entry in chance), default=1) + 1))
    neighbours = max(found["k"] for found in metrics["neighbour_preservation"].values())
    panel.set_title(f"Share of {neighbours} nearest neighbours under one prefix")
    panel.set_xlabel("Codes in common")
    panel.set_ylabel("Share of neighbours")
    panel.legend(fontsize=7, frameon=False, loc="lower left")


def _categories(panel: Axes, metrics: Mapping[str, Any]) -> None:
    rows = [row for row in metrics["category_purity"] if row["purity"] is not None]
    places = np.arange(len(rows))
    series = (("purity", "purity", COLOURS[0]), ("chance", "purity by chance", GREY), ("nmi", "adjusted NMI", COLOURS[1]))
    for offset, (key, label, colour) in zip((-0.27, 0, 0.27), series, strict=True):
        values = [row[key] or 0.0 for row in rows]
        bars = panel.bar(places + offset, values, 0.26, color=colour, label=label)
        panel.bar_label(bars, [f"{value:.2f}" for value in values], fontsize=7, padding=1)
    highest = max(max(row["purity"], row["chance"] or 0, row["nmi"] or 0) for row in rows)
    panel.set_ylim(min(0.0, *(row["nmi"] or 0 for row in rows), 0.0), 1.3 * highest)
    panel.set_xticks(places, [f"{row['depth']}\n{row['items']:,} items" for row in rows])
    panel.set_title(f"Categories under one prefix ({metrics['categories']} categories)")
    panel.set_xlabel("Codes in common (prefixes of two items or more)")
    panel.legend(fontsize=7, frameon=False, ncols=3, loc="upper center")


def _alpha(panel: Axes, metrics: Mapping[str, Any]) -> None:
    histogram = metrics["alpha_histogram"]
    counts = np.asarray(histogram["counts"])
    edges = np.asarray(histogram["edges"])
    panel.bar(edges[:-1], 100 * counts / counts.sum(), np.diff(edges), align="edge", color=COLOURS[1], edgecolor="white", linewidth=0.5)
    panel.axvline(0.5, color=GREY, linestyle="--", linewidth=1)
    panel.set_xlim(0, 1)
    panel.set_title(f"Fusion weight of the image ({counts.sum():,} items with both)")
    panel.set_xlabel("α image (α text = 1 − α image)")
    panel.set_ylabel("% of items")


def _reconstruction(panel: Axes, metrics: Mapping[str, Any]) -> None:
    errors = metrics["reconstruction_by_level"]
    panel.plot(range(1, len(errors) + 1), errors, "o-", color=COLOURS[0], markersize=4, label="quantised")
    for level, error in enumerate(errors, start=1):
        panel.annotate(f"{error:.3f}", (level, error), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=7)
    reference = (
        ("autoencoder_error", "autoencoder, not quantised", COLOURS[4], ":"),
        ("pca_error", f"PCA to {metrics['latent_dim']}, not quantised", COLOURS[5], "--"),
    )
    for key, label, colour, style in reference:
        panel.axhline(metrics[key], color=colour, linestyle=style, linewidth=1.4, label=f"{label}: {metrics[key]:.3f}")
    panel.set_xticks(range(1, len(errors) + 1))
    panel.set_xlim(0.7, len(errors) + 0.3)
    panel.set_ylim(0, 1.45 * max(*errors, metrics["pca_error"], metrics["autoencoder_error"]))
    panel.set_title("Reconstruction error of x")
    panel.set_xlabel("Levels decoded")
    panel.set_ylabel("Share of the variance")
    panel.legend(fontsize=7, frameon=False, loc="upper right")


def _residuals(panel: Axes, metrics: Mapping[str, Any]) -> None:
    shares = [1.0, *metrics["residual_share"]]
    bars = panel.bar(range(len(shares)), shares, 0.6, color=[GREY, *[COLOURS[0]] * (len(shares) - 1)])
    panel.bar_label(bars, [f"{share:.2f}" for share in shares], fontsize=8, padding=1)
    panel.set_xticks(range(len(shares)), ["z", *(f"after {level}" for level in range(1, len(shares)))])
    panel.set_ylim(0, 1.15 * max(shares))
    panel.set_title("What each level leaves of z")
    panel.set_ylabel("Share of ‖z‖²")


def _contribution(panel: Axes, metrics: Mapping[str, Any]) -> None:
    rows = {name: row for name, row in metrics["modality_contribution"].items() if row["items"]}
    places = np.arange(len(rows))
    series = (("first_code_changed", "first code changes", COLOURS[0]), ("any_code_changed", "any code changes", COLOURS[4]))
    for offset, (key, label, colour) in zip((-0.2, 0.2), series, strict=True):
        values = [100 * row[key] for row in rows.values()]
        bars = panel.bar(places + offset, values, 0.38, color=colour, label=label)
        panel.bar_label(bars, [f"{value:.0f}" for value in values], fontsize=8, padding=1)
    panel.set_ylim(0, 135)
    panel.set_yticks(range(0, 101, 25))
    panel.set_xticks(places, [f"{name}\n{row['items']:,} items" for name, row in rows.items()])
    panel.set_title("Codes without one modality")
    panel.set_ylabel("% of items")
    panel.legend(fontsize=7, frameon=False, ncols=2, loc="upper center")


def _has(key: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda metrics: bool(metrics.get(key))


# In reading order: are the codes used, are they near the vectors, do they mean something, what makes them.
PANELS: tuple[tuple[Callable[[Mapping[str, Any]], bool], Callable[[Any, Mapping[str, Any]], None]], ...] = (
    (_has("frequencies"), _frequencies),
    (_has("levels"), _usage),
    (lambda metrics: metrics.get("collision_rate_before") is not None, _collisions),
    (_has("reconstruction_by_level"), _reconstruction),
    (_has("residual_share"), _residuals),
    (lambda metrics: any(found["depths"] for found in metrics.get("neighbour_preservation", {}).values()), _neighbours),
    (lambda metrics: any(row["purity"] is not None for row in metrics.get("category_purity", [])), _categories),
    (lambda metrics: any(row["items"] for row in metrics.get("modality_contribution", {}).values()), _contribution),
    (_has("alpha_histogram"), _alpha),
)
