"""The paper's questions as people read them: a table of each, made from its result file alone; figures are in `study_plots`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .drawing import metric_label
from .protocol import EXCLUDING
from .report import machine_name, written
from .stream_tables import MACHINES, machines_of, recipe_tables, tested

QUESTIONS: Mapping[str, str] = {
    "rq1": "RQ1, overall",
    "rq2": "RQ2, what each part is worth",
    "rq3": "RQ3, time and latency",
    "rq4": "RQ4, settings of the tokenizer",
    "rq5": "RQ5, cold items",
    "streams": "Code streams, one code, or none",
}
"""Question → its title; the first five are the paper's."""
STREAMS = "streams"
STAGE_ORDER = ("prepare", "encode", "tokenize", "train", "evaluate")
COLD_PARTS = {"test_cold_0": "0", "test_cold_1_5": "1–5"}
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "rq3": {f"{stage}, s": f"seconds.{stage}" for stage in STAGE_ORDER}
    | {"ms per user, alone": "latency.batch_1_ms", "ms per user, in batches of 64": "latency.batch_64_ms"},
    "rq5": {
        title: f"{part}{EXCLUDING}.{metric}"
        for part, words in COLD_PARTS.items()
        for title, metric in (
            (f"n, {words} interactions", "n"),
            *((f"{metric_label(name)}, {words}", name) for name in ("hr@10", "ndcg@10")),
        )
    },
}
"""Of questions whose tables are no plain table of accuracy: title → key of the value, `slice.metric`."""
PAPER = {
    "rq3": "The paper, on an A100, read off its chart: Beauty ≈ 2.6 h tokenisation + 5.5 h generation, ≈ 15.6 ms per user; "
    "Sports ≈ 7.5 h + 16 h, ≈ 61 ms."
}
INTERVALS = ("rq2", "rq4", STREAMS)
"""Questions whose tables have room for intervals."""
ABLATIONS = "ablations"
"""The table of RQ2, among the tables that a row stands in."""
FULL = "cemg"
WHOLE = ""


class Cell(NamedTuple):
    """Where a value stands in a row, and what it is called."""

    part: str
    metric: str
    title: str


def format_study(envelope: Mapping[str, Any]) -> str:
    """Markdown: what was asked, and per recipe a table with a row per variant; a variant without a result says why."""
    lines = [f"# {QUESTIONS[envelope['study']]}", ""]
    for recipe, about in envelope["recipes"].items():
        lines += [f"## {recipe}", "", _circumstances(envelope, about), "", *_tables(envelope, recipe, 3)]
    lines += [line for note in _notes(envelope) for line in (note, "")]
    if envelope["not_run"]:
        lines += ["Not run yet, or not to be run:", ""]
        for row, missing in envelope["not_run"].items():
            lines.append(f"- {row}, seed {', '.join(map(str, missing['seeds']))}: {missing['reason']}")
        lines.append("")
    return "\n".join([*lines, f"`{envelope['command']}`", ""])


def format_for_page(envelope: Mapping[str, Any], level: int = 3) -> str:
    """The tables for a page that has headings above `level` of its own; recipes have one each where they are several."""
    several = len(envelope["recipes"]) > 1
    lines = []
    for recipe, about in envelope["recipes"].items():
        lines += [f"{'#' * level} {recipe}", ""] if several else []
        lines += [_circumstances(envelope, about), "", *_tables(envelope, recipe, level + several)]
    return "\n".join([*lines, "\n\n".join(_notes(envelope))]).rstrip()


def _tables(envelope: Mapping[str, Any], recipe: str, level: int) -> list[str]:
    """Lines of all tables of a recipe, the last one empty."""
    return recipe_tables(envelope, recipe, level) if envelope["study"] == STREAMS else [*_table(envelope, recipe), ""]


def _notes(envelope: Mapping[str, Any]) -> list[str]:
    """How to read the tables."""
    study = envelope["study"]
    notes = [f"{_how_latency_was_measured(envelope)} {PAPER.get(study, '')}".strip()] if study in ("rq3", STREAMS) else []
    if study in INTERVALS and envelope.get("intervals"):
        notes.append("[…]: 95 % bootstrap intervals over users, of rows of one seed.")
    if study == "rq2" and envelope.get("pairs"):
        notes.append(
            "Δ: to the same part of full CEMG, user by user over the seeds that kept their lists, with p of the paired bootstrap after "
            "Holm's correction for all rows of the table."
        )
    return notes


def _how_latency_was_measured(envelope: Mapping[str, Any]) -> str:
    measured, machine = envelope["latency"], envelope["machine"]
    threads = f"{measured['threads']} thread{'s' if measured['threads'] > 1 else ''}"
    return (
        f"Latency: lists of {measured['k']}, history left out, median of {measured['batches']} batches; {machine_name(machine)}, {threads}."
    )


def _circumstances(envelope: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    changes = f"; with {', '.join(f'`{change}`' for change in envelope['set'])}" if envelope["set"] else ""
    return f"{about['description']} Budget of CEMG: {about['budget']}{changes}.".strip()


def rows_of(envelope: Mapping[str, Any], recipe: str) -> dict[str, Mapping[str, Any]]:
    """The rows of a recipe: name in `metrics` → what it is. Parts of a system follow it."""
    return {row: about for row, about in envelope["rows"].items() if about["recipe"] == recipe}


def name_of(about: Mapping[str, Any]) -> str:
    return f"{about['label']}, {about['part']}" if about["part"] else about["label"]


def _cells(envelope: Mapping[str, Any], recipe: str) -> list[Cell]:
    """The columns of a table."""
    study, about = envelope["study"], envelope["recipes"][recipe]
    if study == "rq3":
        return [
            Cell(part, metric, title) for title, (part, _, metric) in ((title, key.partition(".")) for title, key in COLUMNS["rq3"].items())
        ]
    bases = cold_parts(about) if study == "rq5" else ["test"]
    parts = [part + suffix for part in bases for suffix in ("", EXCLUDING)]
    metrics = ("hr@10", "ndcg@10", "hr@20", "ndcg@20") if study == "rq1" else ("hr@10", "ndcg@10")
    counts = {part: cases_of(envelope, recipe, part) for part in parts}
    return [Cell(part, metric, f"{metric_label(metric)}, {short_title(part)}{counts[part]}") for part in parts for metric in metrics]


def cold_parts(about: Mapping[str, Any]) -> dict[str, str]:
    """Slices of cold items and how many training interactions their targets have."""
    threshold = about["cold_threshold"]
    return {"test_cold_0": "0", f"test_cold_1_{threshold}": f"1–{threshold}"}


def short_title(part: str) -> str:
    """A slice in a column's title."""
    base, suffix = part.removesuffix(EXCLUDING), ", history excluded" if part.endswith(EXCLUDING) else ""
    cold = base.removeprefix("test_cold_").replace("_", "–")
    return ("all items" if base == "test" and not suffix else f"{cold} interactions" if base != "test" else "") + (
        suffix if base != "test" else suffix.removeprefix(", ")
    )


def cases_of(envelope: Mapping[str, Any], recipe: str, part: str) -> str:
    """ " (n = 1,700)" where every row was measured on so many cases."""
    metrics = envelope["metrics"]
    counts = {metrics[row].get(part, {}).get("n") for row in rows_of(envelope, recipe) if row in metrics} - {None}
    return f" (n = {counts.pop():,.0f})" if len(counts) == 1 else ""


def _table(envelope: Mapping[str, Any], recipe: str) -> list[str]:
    cells = _cells(envelope, recipe)
    reference = _difference_cell(envelope, recipe)
    tests = _tests(envelope, recipe)
    extra = [f"Δ {reference.title.partition(' (')[0]}{' [95 %], p' if tests else ''}"] if reference else []
    rows = rows_of(envelope, recipe)
    machines = machines_of(rows) if envelope["study"] == "rq3" else {}
    extra += [MACHINES] if machines else []
    header = ["Variant" if envelope["study"] in ("rq2", "rq4") else "System", "seeds", *(cell.title for cell in cells), *extra]
    lines = [f"| {' | '.join(header)} |", "|---|---" + "|---:" * (len(header) - 2) + "|"]
    for row, about in rows.items():
        seeds = ", ".join(map(str, about["seeds"])) or "not run"
        values = [_value(envelope, row, cell) for cell in cells]
        difference = [tests[row] if row in tests else difference_to_full(envelope, recipe, row, reference)] if reference else []
        where = [machines[row]] if machines else []
        lines.append(f"| {' | '.join([name_of(about), seeds, *values, *difference, *where])} |")
    return lines


def _tests(envelope: Mapping[str, Any], recipe: str) -> dict[str, str]:
    """Row of the ablations → its paired test against full CEMG."""
    pairs = envelope.get("pairs", []) if envelope["study"] == "rq2" else []
    return {pair["a"]: tested(pair) for pair in pairs if (pair["recipe"], pair["table"]) == (recipe, ABLATIONS)}


def _value(envelope: Mapping[str, Any], row: str, cell: Cell) -> str:
    """ "0.0541 ± 0.0012" or, where there is room, "0.0541 [0.0512, 0.0570]"; seconds and milliseconds with fewer digits."""
    study = envelope["study"]
    mean, std = value_of(envelope["metrics"], row, cell), value_of(envelope.get("std", {}), row, cell)
    interval = envelope.get("intervals", {}).get(row, {}).get(cell.part, {}).get(cell.metric) if study in INTERVALS else None
    digits = 4 if study != "rq3" else 1 if cell.part == "seconds" else 2
    return written(mean, std, interval, f",.{digits}f")


def value_of(values: Mapping[str, Any], row: str, cell: Cell) -> float | None:
    return values.get(row, {}).get(cell.part, {}).get(cell.metric)


def headline(envelope: Mapping[str, Any], recipe: str, part: str = "test") -> str:
    """The slice that stands for a recipe: history items left out, except where repeats are targets."""
    return part + envelope["recipes"][recipe]["headline"]


def _difference_cell(envelope: Mapping[str, Any], recipe: str) -> Cell | None:
    """What the ablations are compared with full CEMG by."""
    if envelope["study"] != "rq2":
        return None
    part = headline(envelope, recipe)
    return Cell(part, "ndcg@10", f"NDCG@10, {short_title(part)}")


def full_row(envelope: Mapping[str, Any], recipe: str, part: str) -> str | None:
    """The row of full CEMG, or of the same part of it."""
    return next((row for row, about in rows_of(envelope, recipe).items() if (about["label"], about["part"]) == (FULL, part)), None)


def difference_to_full(envelope: Mapping[str, Any], recipe: str, row: str, cell: Cell) -> str:
    """ "−0.0023": the row minus the same part of full CEMG; "" for that itself."""
    full = full_row(envelope, recipe, envelope["rows"][row]["part"])
    value, reference = value_of(envelope["metrics"], row, cell), None if full is None else value_of(envelope["metrics"], full, cell)
    if row == full or value is None or reference is None:
        return ""
    return f"{value - reference:+.4f}".replace("-", "−")
