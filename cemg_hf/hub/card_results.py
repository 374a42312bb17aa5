"""What a model card says of results: the table, what stands beside its figures, paired tests, and what was spent where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..artefacts import portable
from ..errors import CEMGError
from ..evaluation.drawing import metric_label, slice_title

SLICES = {"test": "all items ranked", "test_excluding_history": "history items excluded"}
METRICS = {"hr@10": "HR@10", "ndcg@10": "NDCG@10", "hr@20": "HR@20", "ndcg@20": "NDCG@20"}
SIGNIFICANT = 0.05


def own_metrics(result: Mapping[str, Any], system: str) -> Mapping[str, Any]:
    """slice → metric → value of the model's own system. Raises CEMGError where the results are of other systems."""
    if system not in result["metrics"]:
        raise CEMGError(f"results: {system!r} is not among their systems ({', '.join(result['metrics'])}); give those of this recipe")
    return result["metrics"][system]


def seeds_of(result: Mapping[str, Any], system: str) -> list[int]:
    """Seeds of the model's own figures; rows of other systems in the same file may be of others."""
    return result.get("systems", {}).get(system, {}).get("seeds", result["seeds"])


def beside(result: Mapping[str, Any], comparison: Mapping[str, Any] | None, cases: int) -> tuple[dict[str, Any], ...]:
    """metrics, std and intervals of both files; a system that is in both is taken from `result`.

    Raises:
        CEMGError: the comparison has another number of test `cases`.
    """
    if comparison is None:
        return result["metrics"], result.get("std", {}), result.get("intervals", {})
    for system, slices in comparison["metrics"].items():
        if slices["test"]["n"] != cases:
            raise CEMGError(
                f"comparison: {system} was measured on {slices['test']['n']:,} test cases, the model on {cases:,}; compare alike"
            )
    own = set(result["metrics"])
    metrics, std, intervals = (
        {system: values for system, values in comparison.get(part, {}).items() if system not in own} | result.get(part, {})
        for part in ("metrics", "std", "intervals")
    )
    return metrics, std, intervals


def results_table(system: str, metrics: Mapping[str, Any], std: Mapping[str, Any], intervals: Mapping[str, Any]) -> str:
    """Systems × (slices × metrics), best NDCG@10 without the history first, the model's own row bold."""
    columns = [(part, metric) for part in SLICES for metric in ("hr@10", "ndcg@10")]
    lines = [
        "| System | " + " | ".join(f"{METRICS[metric]}, {SLICES[part]}" for part, metric in columns) + " |",
        "|---" + "|---:" * len(columns) + "|",
    ]
    for name in sorted(metrics, key=lambda name: -metrics[name]["test_excluding_history"]["ndcg@10"]):
        cells = []
        for part, metric in columns:
            bounds, deviation = intervals.get(name, {}).get(part, {}).get(metric), std.get(name, {}).get(part, {}).get(metric)
            spread = f" ± {deviation:.4f}" if deviation is not None else ""
            cells.append(f"{metrics[name][part][metric]:.4f}{spread}" + (f" ({bounds[0]:.4f} – {bounds[1]:.4f})" if bounds else ""))
        lines.append(f"| {f'**{name}**' if name == system else name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread_of(metrics: Mapping[str, Any], std: Mapping[str, Any], intervals: Mapping[str, Any]) -> str:
    """What stands beside the figures; rows may differ in it, as those of one seed and of several do."""
    several = {system for system in metrics if std.get(system)}
    said = []
    if any(intervals.get(system) for system in metrics):
        said.append("in parentheses 95 % intervals by bootstrap over users")
    if several:
        said.append("means ± standard deviations over seeds" + ("" if several == set(metrics) else " where there are several"))
    return ", ".join(said) or "one run, without intervals"


def published_figures(measured: Mapping[str, Any] | None, system: str, cases: int) -> str:
    """What the folder itself reaches, where that was measured: its weights are rounded, those of the run are not.

    Raises:
        CEMGError: it was measured on another number of test `cases`, or it is another system.
    """
    if measured is None:
        return ""
    own = own_metrics(measured, system)
    if own["test"]["n"] != cases:
        raise CEMGError(f"published: measured on {own['test']['n']:,} test cases, the model on {cases:,}; evaluate on the same data set")
    figures = "; ".join(f"{words}, HR@10 {own[part]['hr@10']:.4f} and NDCG@10 {own[part]['ndcg@10']:.4f}" for part, words in SLICES.items())
    return (
        f"The row `{system}` is the run as it was measured when it was trained, before its weights were rounded for this folder. The "
        f"folder itself, measured by `cemg evaluate` on the same users (commit {measured['commit'][:10]}): {figures}.\n\n"
    )


def tested_against(system: str, comparison: Mapping[str, Any]) -> str:
    """What the paired tests say of the system against every other one; empty without tests."""
    found: dict[str, dict[str, list[str]]] = {}
    for pair in comparison.get("pairs", []):
        if system not in (pair["a"], pair["b"]):
            continue
        other, difference = (pair["b"], pair["difference"]) if pair["a"] == system else (pair["a"], -pair["difference"])
        answer = "not told apart from" if pair["p_holm"] >= SIGNIFICANT else "ahead of" if difference > 0 else "behind"
        # Comparisons of one slice used to name it once.
        part = pair["slice"] if "slice" in pair else comparison["slice"]
        found.setdefault(part, {"ahead of": [], "behind": [], "not told apart from": []})[answer].append(f"`{other}`")
    if not found:
        return ""
    said = [
        f"- {SLICES.get(part, slice_title(part).lower())}: `{system}` is "
        + "; ".join(f"{answer} {', '.join(others)}" for answer, others in answers.items() if others)
        for part, answers in found.items()
    ]
    metric = metric_label(comparison["metric"])
    each = ", on each of the rankings" if len(said) > 1 else ""
    rows = comparison.get("systems", {})
    # The card's own rows are of the seed that it is about.
    means = {name: rows[name]["seeds"] for name in rows if name.split(", ")[0] == system and len(rows[name]["seeds"]) > 1}
    if means:
        of = "; ".join(f"`{name}` of seeds {', '.join(map(str, seeds))}" for name, seeds in means.items())
        each += f"; tested are means over seeds, {of}"
    return f"Paired bootstrap over users, {metric}, p < {SIGNIFICANT} after Holm's correction{each}:\n\n" + "\n".join(said) + "\n\n"


def measured_by(result: Mapping[str, Any], system: str) -> str:
    """By which command, and where; of a comparison where the lists were made, not where they were laid side by side."""
    command = portable(result["command"])
    if "systems" in result:
        machine = result["systems"].get(system, {}).get("machine")
        return f"Compared by `{command}`" + (f", the lists of `{system}` made on {_machine(machine)}" if machine is not None else "")
    return f"Measured by `{command}` on {_machine(result.get('machine_by_stage', {}).get('evaluate', result['machine']))}"


def cost_of(result: Mapping[str, Any], system: str) -> str:
    """Seconds by stage, each on its machine; of a file of several systems those of this one, where they are recorded."""
    own = result if result.get("seconds_by_stage") else result.get("systems", {}).get(system, {})
    stages = own.get("seconds_by_stage")
    if stages:
        known = own.get("machine_by_stage") or ({} if own is not result else dict.fromkeys(stages, result["machine"]))
        spent: dict[str, list[str]] = {}
        for stage, seconds in stages.items():
            where = f" on {_machine(known[stage])}" if stage in known else " on a machine that is not recorded"
            spent.setdefault(where, []).append(f"{stage} {seconds:,.0f} s")
        total = f"{sum(stages.values()):,.0f} s in all"
        if len(spent) == 1:
            ((where, parts),) = spent.items()
            return f"Cost: {', '.join(parts)}; {total}{where}."
        return f"Cost: {'; '.join(', '.join(parts) + where for where, parts in spent.items())}; {total}."
    return f"Cost: {result['seconds']:,.0f} s for all that the command above does, on {_machine(result['machine'])}."


def popularity_bias(own: Mapping[str, Any]) -> str:
    """How far popular items are preferred, of slice "test_excluding_history"."""
    return (
        "Recommendations follow what was bought before: popular items come out far more often than others (mean popularity percentile of "
        f"the recommended items {own['popularity_percentile@10']:.2f}, .5 would be even; {own['coverage@10']:.0%} of the catalogue stands "
        "in somebody's first ten)."
    )


def _machine(machine: Mapping[str, Any]) -> str:
    """The accelerator, where there is one, or the cores."""
    return f"{machine['cores']} CPU cores ({machine['processor']})" if machine["accelerator"] == "none" else machine["accelerator"]
