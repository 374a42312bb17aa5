"""Commands that measure and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import CEMGError
from .shared import Assignments, Dataset, Output, RecipeArgument, Seed, command_line, settings_of, show_result


def evaluate(
    recipe: RecipeArgument,
    dataset: Dataset,
    model: Annotated[Path, typer.Option(help="Folder written by `cemg finetune`.")],
    output: Output,
    without_streams: Annotated[str, typer.Option(help="Code streams that histories do not show, by commas (MSCGRec).")] = "",
    seed: Seed = None,
    assignments: Assignments = None,
) -> None:
    """Rank the whole catalogue for every test user; write metrics and predictions."""
    from ..evaluation.runs import METRICS_NAME
    from ..training.evaluate import evaluate as evaluate_stage

    settings = settings_of(recipe, assignments, seed)
    hidden = [name.strip() for name in without_streams.split(",") if name.strip()]
    evaluate_stage(settings.evaluate, dataset, model, output, command=command_line(), seed=settings.seed, without_streams=hidden)
    show_result(json.loads((output / METRICS_NAME).read_text()), output)


def cold_start(
    recipe: RecipeArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run folder (default: runs/<recipe name>-cold-start).")] = None,
    share: Annotated[float, typer.Option(help="Share of the items that are held out of training.")] = 0.05,
    seed: Seed = None,
    assignments: Assignments = None,
) -> None:
    """Hold items out of training, add them afterwards without retraining, and measure who finds them at which price."""
    from ..training.cold_start import ColdStartConfig, format_cold_start, run_cold_start

    settings = settings_of(recipe, assignments, seed)
    folder = output or Path("runs") / f"{settings.name}-cold-start"
    config = ColdStartConfig(share=share, seed=settings.seed)
    typer.echo(format_cold_start(run_cold_start(settings, folder, config, command=command_line())))
    typer.echo(f"\neverything is in {folder}")


def compare(
    places: Annotated[list[str], typer.Argument(help="Run folders or files of results; NAME=PLACE gives a run a name of its own.")],
    output: Output = Path("comparison"),
    metric: Annotated[str, typer.Option(help="What the systems are tested by: hr@K, ndcg@K or mrr@K.")] = "ndcg@10",
    slice_name: Annotated[
        str | None, typer.Option("--slice", help="The cases they are tested on (default: test, and test_excluding_history).")
    ] = None,
) -> None:
    """Compare systems on the same test cases: intervals, paired tests, beyond accuracy; write compare.json, compare.md and compare.png."""
    from ..evaluation.comparison_report import write_comparison

    typer.echo(write_comparison(places, output, metric, slice_name, command=command_line()))
    typer.echo(f"everything is in {output}")


def study(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="rq1, rq2, rq3, rq4, rq5 or streams.")],
    recipes: Annotated[list[str], typer.Argument(help="Names of shipped recipes, or paths of YAML files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of all studies of one budget; they share the runs in it.")] = Path(
        "runs/studies"
    ),
    systems: Annotated[str, typer.Option(help="Systems of rq1, rq3, rq5 and streams, by commas (default: all but the -paper ones).")] = "",
    sweep: Annotated[str, typer.Option(help="What rq4 varies, by commas: M, K, lambda_q, lambda_d (default: all).")] = "",
    seeds: Annotated[int, typer.Option(help="Number of seeds, from the recipe's own upwards.")] = 1,
    init_from: Annotated[str | None, typer.Option(help="A pretrained T5 (folder or Hub id) that rq2 compares with.")] = None,
    time_budget: Annotated[float | None, typer.Option(help="Stop after this many seconds; the same command continues.")] = None,
    until: Annotated[str | None, typer.Option(help="Only make the data sets (prepare), features (encode) or codes (tokenize).")] = None,
    prepared: Annotated[bool, typer.Option("--prepared", help="Take those as they are; needs no raw data and no encoders.")] = False,
    assignments: Assignments = None,
) -> None:
    """Answer a question of the paper: overall (rq1), ablations (rq2), time (rq3), sweeps (rq4), cold items (rq5).

    Or that of MSCGRec: code streams, one code, or none (streams). Run again to resume, or beside itself to share the work.

    Writes QUESTION.json, .md and .png; what is not run yet is named in them.
    """
    from ..training.studies import Study, StudyConfig

    config = StudyConfig(
        question,
        recipes,
        output,
        systems=[name.strip() for name in systems.split(",") if name.strip()],
        sweeps=[name.strip() for name in sweep.split(",") if name.strip()],
        seeds=seeds,
        assignments=assignments or [],
        init_from=init_from,
        time_budget_s=time_budget,
        prepared=prepared,
    )
    asked = Study(config, command_line())
    if until is not None:
        asked.prepare(until)
        typer.echo(f"everything up to {until} is in {output}")
        return
    asked.run()
    typer.echo((output / f"{question}.md").read_text(encoding="utf-8"))
    typer.echo(f"everything is in {output}")
    if asked.failed:
        (recipe, variant), reason = next(iter(asked.failed.items()))
        raise CEMGError(f"{len(asked.failed)} of the variants cannot be run, among them {recipe}, {variant}: {reason}")
