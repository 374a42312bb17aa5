"""The tables of the question of code streams, made from its result file alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .protocol import EXCLUDING
from .report import written, written_p

TABLES: Mapping[str, str] = {
    "written": "Which stream the decoder writes",
    "codes": "One code of everything, or one per modality",
    "softmax": "Softmax over the permissible codes, or over all of a level",
    "left_out": "Streams that histories do not show at test time",
    "content": "Beside SASRec, without and with the items' content",
}
"""Tables of accuracy: name → title."""
LEFT_OUT = "left_out"
WITHOUT = "without "
"""Begins the part of a row that was measured on histories without some streams."""
ONE_CODE = "all"
"""Stands for a stream where an item has one code of everything."""
CODES = "codes_"
"""Begins the slices that say what the codes of a stream collide."""
ACCURACY = (("hr@10", "HR@10"), ("ndcg@10", "NDCG@10"))
MACHINES = "trained on"
"""Title of the column that says which machine the seconds of a training are of; stages that runs share may have been made elsewhere."""
MEGABYTE = 1e6


class Quantity(NamedTuple):
    """A column that is no accuracy: where the value stands, what it is called, what it is divided by, and how it is written."""

    part: str
    metric: str
    title: str
    unit: float = 1.0
    form: str = ",.0f"


STEPS = (
    Quantity("step", "ms", "ms per training step"),
    Quantity("step", "permissible_extra", "what the permissible softmax adds to a step", form="+.1%"),
)
COLLISIONS = (
    Quantity("", "items", "items with a code"),
    Quantity("", "collision_rate_before_last_level", "share the codes before the last level", form=".1%"),
    Quantity("", "collision_rate_before", "share all codes before they are separated", form=".1%"),
    Quantity("", "moved_share", "moved to another code", form=".1%"),
)
COSTS = (
    Quantity("cost", "vectors_seconds", "vectors, s"),
    Quantity("cost", "codes_seconds", "codes, s"),
    Quantity("cost", "train_seconds", "training, s"),
    Quantity("memory", "parameters", "parameters"),
    Quantity("memory", "weights_bytes", "weights, MB", MEGABYTE, ",.2f"),
    Quantity("memory", "index_bytes", "index, MB", MEGABYTE, ",.2f"),
    Quantity("memory", "batch_1_bytes", "a request, MB", MEGABYTE, ",.1f"),
    Quantity("memory", "batch_64_bytes", "a batch of 64, MB", MEGABYTE, ",.1f"),
    Quantity("latency", "batch_1_ms", "ms per user, alone", form=",.1f"),
    Quantity("latency", "batch_64_ms", "ms per user, in batches of 64", form=",.2f"),
)


def stands_in(about: Mapping[str, Any], table: str) -> bool:
    """Whether a row, or this part of it, is a row of a table: histories without streams have one of their own."""
    part = about["part"]
    return table in about["tables"] and (part == "" or part.startswith(WITHOUT) == (table == LEFT_OUT))


def recipe_tables(envelope: Mapping[str, Any], recipe: str, level: int = 3) -> list[str]:
    """Lines of Markdown with all tables of one recipe, whose headings are of this level; tables without any row are left out."""
    rows = {row: about for row, about in envelope["rows"].items() if about["recipe"] == recipe}
    blocks = {title: _accuracy(envelope, rows, recipe, table) for table, title in TABLES.items()}
    blocks["Items that share codes before the separating level"] = _collisions(envelope, rows)
    blocks["What it costs"] = _costs(envelope, rows)
    return [line for title, block in blocks.items() if block for line in (f"{'#' * level} {title}", "", *block, "")]


def _accuracy(envelope: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]], recipe: str, table: str) -> list[str]:
    """A table of accuracy, a row beside the one it is tested against; the test is of the recipe's own slice."""
    chosen = {row: about for row, about in rows.items() if stands_in(about, table)}
    if not chosen:
        return []
    if table == "softmax":  # both softmaxes of a system one after the other
        order = list(dict.fromkeys(about["tables"][table] or about["label"] for about in chosen.values()))
        chosen = dict(sorted(chosen.items(), key=lambda pair: order.index(pair[1]["tables"][table] or pair[1]["label"])))
    steps = STEPS if table == "softmax" else ()
    suffixes = {"": "all items", EXCLUDING: "history excluded"}
    tests = {(test["a"], test["b"]): test for test in envelope["pairs"] if test["table"] == table and test["recipe"] == recipe}
    header = ["", "seeds", *(f"{label}, {words}" for words in suffixes.values() for _, label in ACCURACY), *(step.title for step in steps)]
    metric, of = _tested(tests)
    header += [f"Δ {metric}, {of} [95 %], p"] if tests else []
    lines = [_line(header), "|---|---" + "|---:" * (len(header) - 2) + "|"]
    for row, about in chosen.items():
        values = [_measured(envelope, row, f"test{suffix}", name) for suffix in suffixes for name, _ in ACCURACY]
        values += [_value(envelope, row, step) for step in steps]
        test = next((test for (name, _), test in tests.items() if name == row), None)
        difference = [_difference(test, rows)] if tests else []
        lines.append(_line([_name(about), ", ".join(map(str, about["seeds"])) or "not run", *values, *difference]))
    return lines


def _tested(tests: Mapping[tuple[str, str], Mapping[str, Any]]) -> tuple[str, str]:
    """Metric and slice of the tests, as columns call them."""
    first = next(iter(tests.values()), {"metric": "", "slice": ""})
    return first["metric"].upper(), "history excluded" if first["slice"].endswith(EXCLUDING) else "all items"


def _difference(test: Mapping[str, Any] | None, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """ "−0.0123 [−0.02, −0.01], .004 to mscgrec"."""
    return "" if test is None else f"{tested(test)} to {_name(rows[test['b']])}"


def tested(test: Mapping[str, Any]) -> str:
    """ "−0.0123 [−0.02, −0.01], .004": the difference of users, whose values are means over the seeds of both, and its corrected p."""
    numbers = f"{test['difference']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}]".replace("-", "−")
    return f"{numbers}, {written_p(test['p_holm'])}"


def _collisions(envelope: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row per stream of every different kind of codes; variants that share their codes with an earlier row are left out."""
    header = ["codes", "of", *(quantity.title for quantity in COLLISIONS)]
    lines: list[str] = []
    seen: list[Any] = []
    for row, about in rows.items():
        slices = envelope["metrics"].get(row, {})
        codes = {name: values for name, values in slices.items() if name.startswith(CODES)}
        if about["part"] or not codes or codes in seen:
            continue
        seen.append(codes)
        for name in codes:
            stream = name.removeprefix(CODES)
            values = [_value(envelope, row, quantity._replace(part=name)) for quantity in COLLISIONS]
            lines.append(_line([_name(about), "everything" if stream == ONE_CODE else stream, *values]))
    return [_line(header), "|---|---" + "|---:" * len(COLLISIONS) + "|", *lines] if lines else []


def _costs(envelope: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    chosen = {row: about for row, about in rows.items() if "cost" in about["tables"] and not about["part"]}
    quantities = [COSTS[0], COSTS[1], COSTS[2], STEPS[0], *COSTS[3:]]
    machines = machines_of(chosen)
    lines = [
        _line([_name(about), *(_value(envelope, row, quantity) for quantity in quantities), *([machines[row]] if machines else [])])
        for row, about in chosen.items()
    ]
    titles = [*(quantity.title for quantity in quantities), *([MACHINES] if machines else [])]
    return [_line(["", *titles]), "|---" + "|---:" * len(titles) + "|", *lines] if lines else []


def machines_of(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Row → the machine that its seconds are of, where not all rows have the same: they are no comparison then."""
    found = {row: about.get("seconds_of") or ", ".join(about.get("machines", ())) or "–" for row, about in rows.items()}
    return found if len({where for where in found.values() if where != "–"}) > 1 else {}


def _name(about: Mapping[str, Any]) -> str:
    return f"{about['label']}, {about['part']}" if about["part"] else about["label"]


def _measured(envelope: Mapping[str, Any], row: str, part: str, metric: str) -> str:
    """An accuracy, with its spread over seeds or, of one seed, its interval over users."""
    mean, std, interval = (envelope.get(kind, {}).get(row, {}).get(part, {}).get(metric) for kind in ("metrics", "std", "intervals"))
    return written(mean, std, interval, ".4f")


def _value(envelope: Mapping[str, Any], row: str, quantity: Quantity) -> str:
    """ "0.0541 ± 0.0012", the spread where there are several seeds and it is one; "–" where there is no value."""
    mean, std = (envelope.get(kind, {}).get(row, {}).get(quantity.part, {}).get(quantity.metric) for kind in ("metrics", "std"))
    if mean is None:
        return "–"
    spread = "" if std is None else format(std / quantity.unit, quantity.form.removeprefix("+"))
    return format(mean / quantity.unit, quantity.form) + (f" ± {spread}" if set(spread) & set("123456789") else "")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
