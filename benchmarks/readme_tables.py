"""Fill the result tables of README.md and docs/*.md from the JSON files in benchmarks/results.

A table stands between `<!-- results:NAME -->` and `<!-- /results -->` and is made from results/NAME.json. A single figure stands between
`<!-- value: NAME | key | … | format -->` and `<!-- /value -->`: the keys lead through `metrics` of results/NAME.json (a first key `/key`
through the file itself), the format is Python's, or `p` for a p-value. What a paired test found stands under `/pairs | A − B | slice`, in
either order of the two. Figures are never typed in.

    (p <!-- value: beauty | /pairs | cemg − cemg-lightgcn | test_excluding_history | p_holm | p -->.524<!-- /value -->)

    python benchmarks/readme_tables.py            write the pages
    python benchmarks/readme_tables.py --check    write nothing; exit status 1 when a page is not what would be written
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cemg_hf.artefacts import portable
from cemg_hf.errors import CEMGError
from cemg_hf.evaluation.report import machine_name, written, written_p
from cemg_hf.evaluation.study_report import format_for_page
from cemg_hf.training.cold_start import format_cold_start

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "benchmarks" / "results"

SECTION = re.compile(r"(<!-- results:(?P<name>[\w.-]+) -->\n)(?P<body>.*?)(<!-- /results -->)", re.DOTALL)
VALUE = re.compile(
    r"(<!-- value: (?P<name>[\w.-]+) \| (?P<keys>[^<>]+) \| (?P<format>[\w.,%+]+) -->)(?P<body>(?:[^<]|<(?!!--))*)(<!-- /value -->)"
)
P_VALUE = "p"
"""The format that is not Python's."""
MARKER = re.compile(r"<!-- (?:results:|/results|value:|/value)")
NOT_MEASURED = "Not measured yet.\n"

ACCURACY_SLICES = {"test": "all items", "test_excluding_history": "history excluded", "test_cold": "cold targets"}
ACCURACY_METRICS = {"hr@10": "HR@10", "ndcg@10": "NDCG@10"}


def fill(text: str, results: Path) -> str:
    """`text` with every table and every figure made anew.

    Raises:
        CEMGError: a marker without its partner, a figure that is not in its file, or a results file that is not the envelope of
            `artefacts.result_envelope`.
    """
    filled = SECTION.sub(lambda match: match[1] + table(results / f"{match['name']}.json") + match[4], text)
    filled = VALUE.sub(
        lambda match: match[1] + figure(results / f"{match['name']}.json", match["keys"], match["format"]) + match[6], filled
    )
    paired = 2 * len(SECTION.findall(text)) + 2 * len(VALUE.findall(text))
    if len(MARKER.findall(text)) != paired:
        raise CEMGError(
            "a marker stands alone; write <!-- results:NAME --> … <!-- /results -->, each on its own line, or "
            "<!-- value: NAME | key | … | format --> … <!-- /value -->"
        )
    return filled


def figure(path: Path, keys: str, form: str) -> str:
    """One measured value, formatted."""
    first, *rest = keys.split(" | ")
    try:
        place: Any = json.loads(path.read_text(encoding="utf-8"))
        place = place[first.removeprefix("/")] if first.startswith("/") else place["metrics"][first]
        if first == "/pairs":
            systems, part, *rest = rest
            place = pair_of(place, systems, part)
        for key in rest:
            place = place[int(key)] if isinstance(place, list) else place[key]
        return written_p(place) if form == P_VALUE else format(place, form)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise CEMGError(f"{path}: has no figure {keys!r} to be written as {form!r} ({type(error).__name__}: {error})") from error


def pair_of(pairs: Sequence[Mapping[str, Any]], systems: str, part: str) -> Mapping[str, Any]:
    """The paired test of "A − B" on a slice; one that was made of B − A is turned round."""
    a, _, b = systems.partition(" − ")
    found = [pair for pair in pairs if {pair["a"], pair["b"]} == {a, b} and pair["slice"] == part]
    if len(found) != 1:
        raise KeyError(f"{len(found)} paired tests of {systems!r} on {part!r}; write `A − B` as in compare.md")
    (pair,) = found
    turned = {"a": a, "b": b, "difference": -pair["difference"], "low": -pair["high"], "high": -pair["low"]}
    return pair if pair["a"] == a else {**pair, **turned}


def table(path: Path) -> str:
    """Markdown of one results file: its table and a line on how it was measured."""
    if not path.is_file():
        return NOT_MEASURED
    try:
        envelope = json.loads(path.read_text(encoding="utf-8"))
        return "\n".join(["", *rows_of(envelope), "", provenance(envelope), ""])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CEMGError(f"{path}: not a results file ({reason}); write it with cemg_hf.artefacts.result_envelope") from error


def rows_of(envelope: Mapping[str, Any]) -> list[str]:
    """The table of one results file: those of a study with paired tests, the columns it names itself, a cold-start comparison, ranking
    metrics, or all it measured."""
    metrics = envelope["metrics"]
    if "study" in envelope and "pairs" in envelope:
        return format_for_page(envelope).splitlines()
    if "columns" in envelope:
        return column_rows(metrics, envelope["columns"])
    if "held_out_items" in metrics:
        return format_cold_start(envelope).splitlines()
    return accuracy_rows(envelope) if is_accuracy(metrics) else benchmark_rows(metrics)


def column_rows(metrics: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> list[str]:
    """Variants × chosen columns, title → key; `key.0` is the first entry of a list, `key.name` the entry of a mapping."""

    def value(values: Any, key: str) -> Any:
        for part in key.split("."):
            values = None if values is None else values[int(part)] if isinstance(values, list) else values.get(part)
        return values

    rows = {variant: [_quantity(value(values, key)) for key in columns.values()] for variant, values in metrics.items()}
    return _markdown("Variant", list(columns), rows)


def is_accuracy(metrics: Mapping[str, Any]) -> bool:
    """Whether these are ranking metrics: system → slice → metric → value."""
    return any(isinstance(values, Mapping) for slices in metrics.values() for values in slices.values())


def accuracy_rows(envelope: Mapping[str, Any]) -> list[str]:
    """Systems × (slices × metrics): `mean ± standard deviation` where there are several seeds, else `mean [low, high]` where known."""
    metrics, std, intervals = envelope["metrics"], envelope.get("std", {}), envelope.get("intervals", {})
    slices = [name for name in ACCURACY_SLICES if any(name in system for system in metrics.values())]
    columns = [(part, metric) for part in slices for metric in ACCURACY_METRICS]
    header = [f"{ACCURACY_METRICS[metric]}, {ACCURACY_SLICES[part]}{_cases(metrics, part)}" for part, metric in columns]
    rows = {
        system: [
            written(*(place.get(part, {}).get(key) for place in (values, std.get(system, {}), intervals.get(system, {}))))
            for part, key in columns
        ]
        for system, values in metrics.items()
    }
    return _markdown("System", header, rows)


def benchmark_rows(metrics: Mapping[str, Mapping[str, float | int | None]]) -> list[str]:
    """Variants × measured quantities, three significant digits."""
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    rows = {variant: [_quantity(values.get(name)) for name in names] for variant, values in metrics.items()}
    return _markdown("Variant", [name.replace("_", " ") for name in names], rows)


def provenance(envelope: Mapping[str, Any]) -> str:
    """How to measure it again, and what it was measured on."""
    seeds = envelope["seeds"]
    commit, dirty, _ = envelope["commit"].partition("-dirty")
    parts = [
        f"`{portable(envelope['command'])}`",
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
        machine_name(envelope["machine"]),
        _duration(envelope["seconds"]) + (" of runs" if "seconds_of_call" in envelope else ""),
        f"torch {envelope['versions']['torch']}, transformers {envelope['versions']['transformers']}",
        f"commit {commit[:10]}{' with changes' if dirty else ''}",
    ]
    return " · ".join(parts) + "."


def _markdown(corner: str, header: list[str], rows: Mapping[str, list[str]]) -> list[str]:
    return [
        f"| {corner} | {' | '.join(header)} |",
        "|---" + "|---:" * len(header) + "|",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
    ]


def _cases(metrics: Mapping[str, Any], part: str) -> str:
    """ " (n = 1,700)" where every system was measured on the same number of cases."""
    counts = {system[part].get("n") for system in metrics.values() if part in system}
    only = counts.pop() if len(counts) == 1 else None
    return "" if only is None else f" (n = {only:,.0f})"


def _quantity(value: float | int | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def main() -> int:
    parser = argparse.ArgumentParser(description="Fill the result tables of README.md and docs/*.md from benchmarks/results.")
    parser.add_argument("pages", type=Path, nargs="*", default=PAGES, help="files with tables (default: README.md and docs/*.md)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 when a page is stale")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    stale = 0
    for page in arguments.pages:
        text = page.read_text(encoding="utf-8")
        filled = fill(text, arguments.results)
        if not arguments.check:
            page.write_text(filled, encoding="utf-8")
        elif filled != text:
            stale = 1
            print(f"{page} is stale: run `python benchmarks/readme_tables.py`", file=sys.stderr)
    return stale


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CEMGError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
