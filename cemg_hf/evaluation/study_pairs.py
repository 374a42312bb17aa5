"""Paired tests between the rows of a study, over the lists that their runs kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .comparison import DEFAULT_METRIC, cases_of_run, compare_pairs
from .runs import EVALUATION_FOLDER, METRICS_NAME, MeasuredRun, read_runs
from .stream_tables import LEFT_OUT, stands_in


def evaluation_of(run: Path, part: str) -> Path:
    """Folder of a run that holds the lists of a part of its system; "" is the whole."""
    return run / "-".join([EVALUATION_FOLDER, *part.split()])


def paired_tests(
    rows: Mapping[str, Mapping[str, Any]], folders: Mapping[str, Mapping[int, Path]], slice_name: str, metric: str = DEFAULT_METRIC
) -> list[dict[str, Any]]:
    """Every row against the one it is to be tested against, over the seeds of which both kept their lists.

    p-values are corrected within a table.

    Args:
        rows: of one recipe: row → label, part, seeds and tables.
        folders: label → seed → run folder.
        slice_name, metric: what is tested.

    Returns: entries of `ComparedPair`, with the table, the metric and the slice.
    """
    by_name = {(about["label"], about["part"]): row for row, about in rows.items() if about["seeds"]}
    read: dict[Path, MeasuredRun | None] = {}

    def run_of(about: Mapping[str, Any], seed: int) -> MeasuredRun | None:
        place = evaluation_of(folders[about["label"]][seed], about["part"])
        if place not in read:
            measured = read_runs([place]) if (place / METRICS_NAME).is_file() else []
            read[place] = next((run for run in measured if run.predictions is not None), None)
        return read[place]

    asked: dict[str, dict[tuple[str, str], Any]] = {}
    for row, about in rows.items():
        for table, against in about["tables"].items():
            if not stands_in(about, table):
                continue
            whole = by_name.get((about["label"] if table == LEFT_OUT else against, ""))
            other = by_name.get((against, about["part"]), whole)
            if other is None or other == row:
                continue
            asked_of = [(run_of(about, seed), run_of(rows[other], seed)) for seed in about["seeds"] if seed in rows[other]["seeds"]]
            both = [(a, b) for a, b in asked_of if a is not None and b is not None]
            # The seed of the built-in shop makes its data too.
            data_sets: dict[Any, list[tuple[MeasuredRun, MeasuredRun]]] = {}
            for runs in both:
                data_sets.setdefault(cases_of_run(runs[0]), []).append(runs)
            if both:
                asked.setdefault(table, {})[row, other] = [tuple(zip(*some, strict=True)) for some in data_sets.values()]
    found = {table: compare_pairs(pairs, metric, slice_name) for table, pairs in asked.items()}
    return [{"table": table, "metric": metric} | vars(pair) for table, pairs in found.items() for pair in pairs]
