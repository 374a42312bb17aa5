"""Commands that train: all stages at once, or one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared import Assignments, Dataset, Output, RecipeArgument, Seed, command_line, settings_of, show_result


def run(
    recipe: RecipeArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder (default: runs/<recipe name>, with -<system> for another than CEMG).")
    ] = None,
    system: Annotated[str, typer.Option(help="The system to train: cemg, or one to compare with (`cemg recipes` lists them).")] = "cemg",
    interactions: Annotated[
        str | None, typer.Option(help="Interactions: Parquet, CSV, JSON lines, .inter, `datasets` folder or Hub id.")
    ] = None,
    items: Annotated[str | None, typer.Option(help="Your items, in any of the same formats.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder with your images, named <item_id>.jpg, .png, …")] = None,
    until: Annotated[str, typer.Option(help="Last stage to run: prepare, encode, tokenize, finetune (train) or evaluate.")] = "evaluate",
    seed: Seed = None,
    assignments: Assignments = None,
) -> None:
    """Run every stage of a recipe: data set, features, item codes, generator, metrics. Run again to resume."""
    from ..training.pipeline import run as run_pipeline

    own = {"prepare__interactions": interactions, "prepare__items": items, "prepare__images": images}
    settings = settings_of(recipe, assignments, seed, system, **own)
    folder = output or Path("runs") / (settings.name if system == "cemg" else f"{settings.name}-{system}")
    result = run_pipeline(settings, folder, until=until, command=command_line())
    if result:
        show_result(result, folder)


def quickstart(
    output: Output = Path("runs/quickstart"),
    seed: Seed = None,
    ablations: Annotated[bool, typer.Option("--ablations", help="Also train without each modality, over several seeds.")] = False,
    seeds: Annotated[int, typer.Option(help="Number of seeds of the ablations.")] = 3,
    assignments: Assignments = None,
) -> None:
    """Make the built-in sample shop, train a recommender on it and measure it; nothing is downloaded."""
    from ..training.pipeline import run as run_pipeline
    from ..training.pipeline import run_ablations

    settings = settings_of("sample", assignments, seed)
    if ablations:
        first = settings.seed
        result = run_ablations(settings, output, list(range(first, first + seeds)), command=command_line())
        show_result(result, output)
        return
    result = run_pipeline(settings, output, command=command_line())
    show_result(result, output)
    _example(output)


def _example(folder: Path) -> None:
    """One real user of the run: what she bought, and what the model recommends."""
    from ..data import PreparedDataset
    from ..models.cemg import CEMGForConditionalGeneration

    data = PreparedDataset.load(folder / "dataset")
    titles = dict(data.items_table(["item_id", "title"]).iter_rows())
    cases = data.evaluation_cases("test")
    history = [data.item_ids[index] for index in cases.histories[0]]
    model = CEMGForConditionalGeneration.from_pretrained(folder / "model")
    typer.echo(f"\nuser {data.user_ids[cases.users[0]]} bought (last 5):")
    for item_id in history[-5:]:
        typer.echo(f"  {item_id}  {titles[item_id]}")
    typer.echo("the model recommends:")
    for item_id, score in model.recommend(history, k=5, exclude_history=True):
        typer.echo(f"  {item_id}  {titles[item_id]}  ({score:.2f})")


def recipes() -> None:
    """List the recipes that ship with the package, and the systems that `cemg run --system` trains on any of them."""
    from ..recipes import load_recipe, recipe_names, system_names

    for name in recipe_names():
        typer.echo(f"{name:16s} {load_recipe(name).description}")
    typer.echo(f"\nsystems: {', '.join(system_names())}")


def encode(recipe: RecipeArgument, dataset: Dataset, output: Output, seed: Seed = None, assignments: Assignments = None) -> None:
    """Encode images, texts and the interaction graph; write the feature folder."""
    from ..training.encode import encode as encode_stage

    settings = settings_of(recipe, assignments, seed)
    encode_stage(settings.encode, dataset, output, settings.seed)


def tokenize(
    recipe: RecipeArgument,
    features: Annotated[Path, typer.Option(help="Folder written by `cemg encode`.")],
    output: Output,
    dataset: Annotated[Path | None, typer.Option(help="Folder written by `cemg prepare`, whose training part teaches the fusion.")] = None,
    seed: Seed = None,
    assignments: Assignments = None,
) -> None:
    """Fuse the modalities, train the RQ-VAE and give every item its code; write the tokenizer folder."""
    from ..training.tokenize import tokenize as tokenize_stage

    settings = settings_of(recipe, assignments, seed)
    tokenize_stage(settings.tokenize, features, output, settings.seed, dataset, settings.streams)


def rq_dino(
    pictures: Annotated[Path, typer.Argument(help="Folder of images named after their items, or folder written by `cemg prepare`.")],
    output: Output,
    backbone: Annotated[
        str | None, typer.Option(help="torchvision network, transformers model type, or a folder or Hub id (default: resnet18).")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights that a torchvision network starts from: a name, or a state dict.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pictures (default: 100).")] = None,
    time_budget: Annotated[float | None, typer.Option(help="Stop after this many seconds; the same command continues.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 42,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as crops.size=96; repeatable.")
    ] = None,
) -> None:
    """Learn image codes by self-distillation with a residual quantiser (RQ-DINO); write model, codes and report. Run again to resume."""
    from ..settings import assign, from_mapping, override
    from ..training.rq_dino import RQDinoTrainingConfig, format_report, train_rq_dino

    values = override({}, assignments or [])
    given = {"backbone": backbone, "weights": weights, "loop.epochs": epochs, "loop.time_budget_s": time_budget}
    for key, value in given.items():
        if value is not None:
            values = assign(values, key, value, "cemg rq-dino")
    folder = train_rq_dino(from_mapping(RQDinoTrainingConfig, values, "cemg rq-dino"), pictures, output, seed)
    typer.echo(format_report(folder))
    typer.echo(f"everything is in {folder}; `cemg inspect {folder / 'tokenizer'}` shows the codes")


def finetune(
    recipe: RecipeArgument,
    dataset: Dataset,
    tokenizer: Annotated[Path, typer.Option(help="Folder written by `cemg tokenize`.")],
    output: Output,
    seed: Seed = None,
    assignments: Assignments = None,
) -> None:
    """Train the generator; write the model folder. Run again to resume. Several processes: `accelerate launch training/finetune.py`."""
    from ..training.finetune import finetune as finetune_stage

    settings = settings_of(recipe, assignments, seed)
    finetune_stage(settings.finetune, dataset, tokenizer, output, settings.seed, settings.streams)
