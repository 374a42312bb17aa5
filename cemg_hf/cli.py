"""`cemg …`: the stages as commands. Thin: every command builds settings and calls the package."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import CEMGError
from .serving.config import ServingConfig

if TYPE_CHECKING:
    from .recipes import Recipe

app = typer.Typer(
    name="cemg",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Multimodal generative recommendation: raw interactions and items in, a recommender for the Hugging Face Hub out.",
)

RecipeArgument = Annotated[str, typer.Argument(help="Name of a shipped recipe, or path of a YAML file.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting; repeatable.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every random choice (default: the recipe's).")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")]
Dataset = Annotated[Path, typer.Option(help="Folder written by `cemg prepare`.")]


def _recipe(recipe: str, assignments: list[str] | None, seed: int | None = None, system: str = "cemg", **overrides: Any) -> Recipe:
    from .recipes import load_recipe

    changes = {key.replace("__", "."): value for key, value in overrides.items() if value is not None}
    if seed is not None:
        changes["seed"] = seed
    return load_recipe(recipe, assignments or [], changes, system)


def _serving(name: str) -> Any:
    """The option of a setting of the service."""
    return typer.Option(help=ServingConfig.__dataclass_fields__[name].metadata["help"])


def _command() -> str:
    return shlex.join(["cemg", *sys.argv[1:]])


@app.callback()
def _logging(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also show what libraries log.")] = False) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("cemg_hf").setLevel(logging.INFO)
    if not verbose:  # torch-geometric says this of itself at every import
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)


@app.command()
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
    from .training.pipeline import run as run_pipeline

    own = {"prepare__interactions": interactions, "prepare__items": items, "prepare__images": images}
    settings = _recipe(recipe, assignments, seed, system, **own)
    folder = output or Path("runs") / (settings.name if system == "cemg" else f"{settings.name}-{system}")
    result = run_pipeline(settings, folder, until=until, command=_command())
    if result:
        _show(result, folder)


@app.command()
def quickstart(
    output: Output = Path("runs/quickstart"),
    seed: Seed = None,
    ablations: Annotated[bool, typer.Option("--ablations", help="Also train without each modality, over several seeds.")] = False,
    seeds: Annotated[int, typer.Option(help="Number of seeds of the ablations.")] = 3,
    assignments: Assignments = None,
) -> None:
    """Make the built-in sample shop, train a recommender on it and measure it; nothing is downloaded."""
    from .training.pipeline import run as run_pipeline
    from .training.pipeline import run_ablations

    settings = _recipe("sample", assignments, seed)
    if ablations:
        first = settings.seed
        result = run_ablations(settings, output, list(range(first, first + seeds)), command=_command())
        _show(result, output)
        return
    result = run_pipeline(settings, output, command=_command())
    _show(result, output)
    _example(output)


@app.command()
def convert(
    published: Annotated[str, typer.Argument(metavar="FORMAT", help="amazon-2014, amazon-2018, amazon-2023 or yelp.")],
    reviews: Annotated[str, typer.Option(help="File of reviews, or of ratings only, as published (plain or .gz).")],
    output: Output,
    metadata: Annotated[str | None, typer.Option(help="File of the items' metadata (default: identifiers only).")] = None,
    min_interactions: Annotated[int, typer.Option(help="k of the iterative k-core on users and items; 0: none.")] = 5,
    from_date: Annotated[str | None, typer.Option(help="Keep reviews from this day on, such as 2019-01-01 (UTC).")] = None,
    to_date: Annotated[str | None, typer.Option(help="Keep reviews to this day, which is included.")] = None,
    expect: Annotated[str | None, typer.Option(help="Compare with published counts: beauty, sports, toys or yelp.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder to download the items' pictures into (default: none).")] = None,
    missing_images: Annotated[str, typer.Option(help="Items without a picture: mask, drop-items or error.")] = "mask",
    longest_side: Annotated[int | None, typer.Option(help="Shrink pictures to this many pixels.")] = None,
    requests_per_second: Annotated[float, typer.Option(help="Downloads per second and host; 0: no limit.")] = 20.0,
) -> None:
    """Turn a data set as it is published into the tables that `cemg run` reads, k-core and statistics included."""
    from .data.convert import ConvertConfig
    from .data.convert import convert as convert_stage
    from .data.download import DownloadConfig
    from .settings import from_mapping

    given = {"format": published, "reviews": reviews, "metadata": metadata, "min_interactions": min_interactions, "expect": expect}
    given |= {"from_date": from_date, "to_date": to_date, "images": images, "missing_images": missing_images}
    download = DownloadConfig(longest_side=longest_side, requests_per_second=requests_per_second)
    typer.echo(convert_stage(from_mapping(ConvertConfig, given, "cemg convert"), output, download))


@app.command(name="download-images")
def download_images(
    items: Annotated[str, typer.Argument(help="Table of item_id and the URL of the picture, in any format that `cemg run` reads.")],
    output: Output,
    url_column: Annotated[str, typer.Option(help="Column of the URLs.")] = "image_url",
    longest_side: Annotated[int | None, typer.Option(help="Shrink pictures to this many pixels.")] = None,
    requests_per_second: Annotated[float, typer.Option(help="Downloads per second and host; 0: no limit.")] = 20.0,
) -> None:
    """Download the items' pictures into a folder for `cemg run --images`; run again, only what is missing is asked for."""
    from .data.download import DownloadConfig, download_table

    config = DownloadConfig(longest_side=longest_side, requests_per_second=requests_per_second)
    counts = download_table(items, output, url_column, config)
    typer.echo(", ".join(f"{count:,} {status}" for status, count in counts.items()) + f"; in {output}")


@app.command()
def prepare(recipe: RecipeArgument, output: Output, seed: Seed = None, assignments: Assignments = None) -> None:
    """Read, check and filter raw data; write the data set folder that `load_dataset` opens."""
    from .data.prepare import prepare as prepare_stage

    settings = _recipe(recipe, assignments, seed)
    prepare_stage(settings.prepare, output, settings.seed)


@app.command()
def encode(recipe: RecipeArgument, dataset: Dataset, output: Output, seed: Seed = None, assignments: Assignments = None) -> None:
    """Encode images, texts and the interaction graph; write the feature folder."""
    from .training.encode import encode as encode_stage

    settings = _recipe(recipe, assignments, seed)
    encode_stage(settings.encode, dataset, output, settings.seed)


@app.command()
def tokenize(
    recipe: RecipeArgument,
    features: Annotated[Path, typer.Option(help="Folder written by `cemg encode`.")],
    output: Output,
    dataset: Annotated[Path | None, typer.Option(help="Folder written by `cemg prepare`, whose training part teaches the fusion.")] = None,
    seed: Seed = None,
    assignments: Assignments = None,
) -> None:
    """Fuse the modalities, train the RQ-VAE and give every item its code; write the tokenizer folder."""
    from .training.tokenize import tokenize as tokenize_stage

    settings = _recipe(recipe, assignments, seed)
    tokenize_stage(settings.tokenize, features, output, settings.seed, dataset, settings.streams)


@app.command(name="rq-dino")
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
    from .settings import assign, from_mapping, override
    from .training.rq_dino import RQDinoTrainingConfig, format_report, train_rq_dino

    values = override({}, assignments or [])
    given = {"backbone": backbone, "weights": weights, "loop.epochs": epochs, "loop.time_budget_s": time_budget}
    for key, value in given.items():
        if value is not None:
            values = assign(values, key, value, "cemg rq-dino")
    folder = train_rq_dino(from_mapping(RQDinoTrainingConfig, values, "cemg rq-dino"), pictures, output, seed)
    typer.echo(format_report(folder))
    typer.echo(f"everything is in {folder}; `cemg inspect {folder / 'tokenizer'}` shows the codes")


@app.command()
def inspect(
    tokenizer: Annotated[Path, typer.Argument(help="Folder written by `cemg tokenize`, or a model folder.")],
    features: Annotated[Path | None, typer.Option(help="Its features (default: `features` beside it).")] = None,
    dataset: Annotated[Path | None, typer.Option(help="Its data set, for categories and the tree (default: `dataset` beside it).")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write (default: `inspection` beside it).")] = None,
    tree: Annotated[bool, typer.Option(help="Also write tree.html, the catalogue to browse by its codes.")] = True,
) -> None:
    """Measure an item tokenizer: codebook use, collisions, neighbours, purity, α; JSON, a page of plots and a browsable tree."""
    from .training.inspect import format_inspection, inspect_tokenizer

    typer.echo(format_inspection(inspect_tokenizer(tokenizer, features=features, dataset=dataset, output=output, tree=tree)))


@app.command()
def describe(
    tokenizer: Annotated[Path, typer.Argument(help="Folder written by `cemg tokenize`, or a model folder.")],
    codes: Annotated[str, typer.Argument(help='The branch, such as "<a_12><b_7>"; "" is the whole catalogue.')] = "",
    dataset: Annotated[Path | None, typer.Option(help="Its data set, for words and titles (default: `dataset` beside it).")] = None,
) -> None:
    """Say what a code means: typical items, words and categories of a branch, and its share of the catalogue."""
    from .training.inspect import describe_codes

    typer.echo(str(describe_codes(tokenizer, codes, dataset=dataset)))


@app.command(name="add-items")
def add_items(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    items: Annotated[str, typer.Option(help="Table of the new items, in any format that `cemg run` reads.")],
    features: Annotated[Path, typer.Option(help="Folder written by `cemg encode` for the model: it holds the encoders.")],
    output: Output,
    images: Annotated[Path | None, typer.Option(help="Folder of pictures, named <item_id>.jpg, .png, …")] = None,
    collaborative: Annotated[str, typer.Option(help="The missing collaborative vector: predicted or masked.")] = "predicted",
    text_source: Annotated[str | None, typer.Option(help="Where the text encoder's weights lie on this machine.")] = None,
    image_source: Annotated[str | None, typer.Option(help="Where the image encoder's weights lie on this machine.")] = None,
) -> None:
    """Add new items to a trained model without retraining: codes from their text and pictures, all other codes stay."""
    from .training.new_items import add_items_to_model

    added = add_items_to_model(
        model,
        items,
        features,
        output,
        images=images,
        collaborative=collaborative,
        text_source=text_source,
        image_source=image_source,
    )
    typer.echo(f"{len(added.item_codes)} items added, {added.moved} of them beside their nearest code; the model is in {output}")


@app.command(name="cold-start")
def cold_start(
    recipe: RecipeArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run folder (default: runs/<recipe name>-cold-start).")] = None,
    share: Annotated[float, typer.Option(help="Share of the items that are held out of training.")] = 0.05,
    seed: Seed = None,
    assignments: Assignments = None,
) -> None:
    """Hold items out of training, add them afterwards without retraining, and measure who finds them at which price."""
    from .training.cold_start import ColdStartConfig, format_cold_start, run_cold_start

    settings = _recipe(recipe, assignments, seed)
    folder = output or Path("runs") / f"{settings.name}-cold-start"
    config = ColdStartConfig(share=share, seed=settings.seed)
    typer.echo(format_cold_start(run_cold_start(settings, folder, config, command=_command())))
    typer.echo(f"\neverything is in {folder}")


@app.command()
def finetune(
    recipe: RecipeArgument,
    dataset: Dataset,
    tokenizer: Annotated[Path, typer.Option(help="Folder written by `cemg tokenize`.")],
    output: Output,
    seed: Seed = None,
    assignments: Assignments = None,
) -> None:
    """Train the generator; write the model folder. Run again to resume. Several processes: `accelerate launch training/finetune.py`."""
    from .training.finetune import finetune as finetune_stage

    settings = _recipe(recipe, assignments, seed)
    finetune_stage(settings.finetune, dataset, tokenizer, output, settings.seed, settings.streams)


@app.command()
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
    from .evaluation.runs import METRICS_NAME
    from .training.evaluate import evaluate as evaluate_stage

    settings = _recipe(recipe, assignments, seed)
    hidden = [name.strip() for name in without_streams.split(",") if name.strip()]
    evaluate_stage(settings.evaluate, dataset, model, output, command=_command(), seed=settings.seed, without_streams=hidden)
    _show(json.loads((output / METRICS_NAME).read_text()), output)


@app.command()
def compare(
    places: Annotated[list[str], typer.Argument(help="Run folders or files of results; NAME=PLACE gives a run a name of its own.")],
    output: Output = Path("comparison"),
    metric: Annotated[str, typer.Option(help="What the systems are tested by: hr@K, ndcg@K or mrr@K.")] = "ndcg@10",
    slice_name: Annotated[
        str | None, typer.Option("--slice", help="The cases they are tested on (default: test, and test_excluding_history).")
    ] = None,
) -> None:
    """Compare systems on the same test cases: intervals, paired tests, beyond accuracy; write compare.json, compare.md and compare.png."""
    from .evaluation.comparison_report import write_comparison

    typer.echo(write_comparison(places, output, metric, slice_name, command=_command()))
    typer.echo(f"everything is in {output}")


@app.command()
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
    from .training.studies import Study, StudyConfig

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
    asked = Study(config, _command())
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


@app.command()
def recommend(
    model: Annotated[str, typer.Argument(help="Model folder or Hub id.")],
    history: Annotated[list[str] | None, typer.Argument(help="Item ids of one user, oldest first. None: a new user.")] = None,
    histories: Annotated[Path | None, typer.Option(help="Instead of item ids: Parquet file of users, or a folder of them.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of Parquet files to write, with --histories.")] = None,
    k: Annotated[int, typer.Option("-k", help="Items to recommend.")] = 10,
    exclude_history: Annotated[bool, typer.Option(help="Leave out the items of the history.")] = False,
    num_beams: Annotated[int | None, typer.Option(help="Beams of the search, at least k (default: max(k, 20)).")] = None,
    dtype: Annotated[str, typer.Option(help="Precision of the network: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<number>.")] = "auto",
    new_item_boost: Annotated[
        float | None, typer.Option(help="Search items added after training by themselves, and add this to their scores.")
    ] = None,
    new_item_dense: Annotated[float, typer.Option(help="Weight of their content's similarity to the history; needs the boost.")] = 0.0,
    new_item_likelihood: Annotated[float, typer.Option(help="Weight of Σ log p in their scores; needs the boost.")] = 1.0,
    skip_unknown: Annotated[bool, typer.Option("--skip-unknown", help="Leave unknown item ids out of the history.")] = False,
    user_column: Annotated[str | None, typer.Option(help="Column of the user ids in --histories (default: user_id).")] = None,
    history_column: Annotated[str | None, typer.Option(help="Column of the lists of item ids, oldest first (default: history).")] = None,
    rows_per_part: Annotated[int | None, typer.Option(help="Users per output file (default: 16384).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Users of --histories per forward pass (default: 128).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over where --output holds other recommendations.")] = False,
) -> None:
    """Recommend the next items after a history: rank, item id and score, Σ log p; or to all users of a file. Also by SASRec or GRU4Rec.

    A run over a file resumes what was killed. Several processes: `torchrun --nproc_per_node 2 -m cemg_hf.cli recommend …`.
    """
    shared = {"k": k, "exclude_history": exclude_history, "num_beams": num_beams, "on_unknown": "skip" if skip_unknown else "error"}
    new_items = {"new_item_boost": new_item_boost, "new_item_dense": new_item_dense, "new_item_likelihood": new_item_likelihood}
    of_files = {"user_column": user_column, "history_column": history_column, "rows_per_part": rows_per_part, "batch_size": batch_size}
    of_files = {name: value for name, value in of_files.items() if value is not None}
    if histories is None:
        stray = [_option(name) for name in of_files] + ["--output"] * (output is not None) + ["--overwrite"] * overwrite
        if stray:
            raise CEMGError(f"{stray[0]}: is for files of users; give --histories too, or leave it out")
        _recommend_to_one(model, history or [], dtype, device, shared | new_items)
        return
    if history:
        raise CEMGError(f"give either item ids ({shlex.join(history)}) or --histories, not both")
    if output is None:
        raise CEMGError("--histories: name the folder to write with --output")
    if new_items != {"new_item_boost": None, "new_item_dense": 0.0, "new_item_likelihood": 1.0}:
        raise CEMGError("--new-item-…: these options are for a single history; leave them out, or give item ids instead of --histories")
    _recommend_to_files(model, histories, output, overwrite, shared | of_files | {"dtype": dtype, "device": device})


def _recommend_to_one(model: str, history: list[str], dtype: str, device: str, options: dict[str, Any]) -> None:
    from .serving.single import recommend_one

    found = recommend_one(model, history, device, dtype, options)
    for place, (item_id, score) in enumerate(found, start=1):
        typer.echo(f"{place:3d}  {item_id}  {score:.4f}")


def _recommend_to_files(model: str, histories: Path, output: Path, overwrite: bool, options: dict[str, Any]) -> None:
    from accelerate import PartialState

    from .serving.batch import BatchConfig, recommend_files

    report = recommend_files(model, histories, output, BatchConfig(**options), overwrite=overwrite)
    if PartialState().is_main_process:
        typer.echo(f"{report}; in {output}")
    PartialState().destroy_process_group()


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Model folder or Hub id.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 chooses a free one.")] = 8000,
    device: Annotated[str, typer.Option(help="auto (the GPU where there is one), cpu, cuda, cuda:1 …")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    items: Annotated[str | None, typer.Option(help="Table with the items' titles, which then stand in the answers.")] = None,
    admin_token: Annotated[
        str | None, typer.Option(envvar="CEMG_ADMIN_TOKEN", help="Bearer token for changes of the catalogue; none: no such routes.")
    ] = None,
    max_batch_size: Annotated[int, _serving("max_batch_size")] = ServingConfig.max_batch_size,
    max_wait_ms: Annotated[float, _serving("max_wait_ms")] = ServingConfig.max_wait_ms,
    queue_size: Annotated[int, _serving("queue_size")] = ServingConfig.queue_size,
    deadline_seconds: Annotated[float, _serving("deadline_seconds")] = ServingConfig.deadline_seconds,
    drain_seconds: Annotated[float, _serving("drain_seconds")] = ServingConfig.drain_seconds,
    max_history: Annotated[int, _serving("max_history")] = ServingConfig.max_history,
    max_k: Annotated[int, _serving("max_k")] = ServingConfig.max_k,
    max_beams: Annotated[int, _serving("max_beams")] = ServingConfig.max_beams,
    max_filter: Annotated[int, _serving("max_filter")] = ServingConfig.max_filter,
    max_requests: Annotated[int, _serving("max_requests")] = ServingConfig.max_requests,
    max_body_mb: Annotated[float, _serving("max_body_mb")] = ServingConfig.max_body_mb,
    new_item_boost: Annotated[float | None, _serving("new_item_boost")] = ServingConfig.new_item_boost,
    new_item_dense: Annotated[float, _serving("new_item_dense")] = ServingConfig.new_item_dense,
    new_item_likelihood: Annotated[float, _serving("new_item_likelihood")] = ServingConfig.new_item_likelihood,
) -> None:
    """Answer recommendations over HTTP: batched, with health, metrics, and a catalogue that changes. Also by SASRec or GRU4Rec."""
    try:
        from .serving.server import listen
        from .serving.server import serve as serve_requests
        from .serving.service import RecommendService
    except ModuleNotFoundError as error:
        raise CEMGError(f"`cemg serve` needs {error.name}, which is not installed; pip install 'cemg-hf[serve]'") from error
    from .serving.loading import load_recommender, load_titles

    config = ServingConfig(
        max_batch_size=max_batch_size,
        max_wait_ms=max_wait_ms,
        queue_size=queue_size,
        deadline_seconds=deadline_seconds,
        drain_seconds=drain_seconds,
        max_history=max_history,
        max_k=max_k,
        max_beams=max_beams,
        max_filter=max_filter,
        max_requests=max_requests,
        max_body_mb=max_body_mb,
        new_item_boost=new_item_boost,
        new_item_dense=new_item_dense,
        new_item_likelihood=new_item_likelihood,
    )
    service = RecommendService(
        lambda: load_recommender(model, device, dtype),
        config,
        folder=Path(model) if Path(model).is_dir() else None,
        load_titles=lambda: load_titles(items),
    )
    listening = listen(host, port)
    typer.echo(f"listening on http://{host}:{listening.getsockname()[1]} (the API is described at /docs)")
    serve_requests(service, listening, admin_token)


@app.command()
def demo(
    model: Annotated[str, typer.Argument(help="Model folder or Hub id.")],
    second: Annotated[str | None, typer.Argument(help="Another one, to compare with.")] = None,
    items: Annotated[str | None, typer.Option(help="Items with titles, categories, pictures (default: those of the data set).")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Data set folder or Hub id: the real users (default: the folder `dataset` beside the model).")
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(help="Features folder, for α and new items; once per model (default: `features` beside the model)."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine (default: 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (default: the first free one from 7860).")] = None,
    share: Annotated[bool, typer.Option(help="Also give a public link, through gradio.live.")] = False,
    device: Annotated[str, typer.Option(help="auto (the GPU where there is one), cpu, cuda, cuda:1 …")] = "cpu",
    space: Annotated[
        Path | None, typer.Option("--export-space", metavar="FOLDER", help="Write the demo as a Space of the Hub instead of showing it.")
    ] = None,
) -> None:
    """Click through recommendations: shoppers, codes, what the decoder looked at, items of your own, two models side by side."""
    try:
        from .demo.app import launch
        from .demo.loading import open_demo
        from .demo.space import export_space
    except ModuleNotFoundError as error:
        raise CEMGError(f"`cemg demo` needs {error.name}, which is not installed; pip install 'cemg-hf[demo]'") from error

    models = [model] if second is None else [model, second]
    if space is not None:
        if items is not None:
            raise CEMGError(
                "--items: a Space shows the items of a data set on the Hub; name that with --dataset, or leave --export-space out"
            )
        title = title or f"Next items by {' and '.join(name.rsplit('/', 1)[-1] for name in models)}"
        typer.echo(f"{export_space(space, models, title=title, dataset=dataset, features=features or ())} is ready to be pushed")
        return
    engine = open_demo(models, items=items, dataset=dataset, features=features or (), device=device)
    launch(engine, title or f"Next items by {' and '.join(shown.name for shown in engine.models)}", host=host, port=port, share=share)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder, finished by `cemg run`.")],
    output: Output,
    name: Annotated[
        str | None, typer.Option(help="What the card's example loads, such as org/cemg-beauty (default: the folder's name).")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Precision of the weights: bfloat16, float16 or float32.")] = "bfloat16",
    comparison: Annotated[Path | None, typer.Option(help="compare.json of `cemg compare`: other systems, shown in the card.")] = None,
    dataset_repo: Annotated[str | None, typer.Option(help="Hub id of the published data set; also writes .eval_results/.")] = None,
) -> None:
    """Write the model of a run as it is published: half precision, tokenizer, code, and a card made of the run's own results."""
    from .hub.export import export_model

    folder = export_model(run, output, name=name, dtype=dtype, comparison=comparison, dataset_repo=dataset_repo)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    typer.echo(f"{folder}: {size / 1e6:.1f} MB; AutoModel.from_pretrained({str(folder)!r}) loads it")


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(help="Run folder, finished by `cemg run`.")],
    repo: Annotated[str, typer.Option(help="Repository of the model, such as org/cemg-beauty.")],
    dataset_repo: Annotated[str | None, typer.Option(help="Repository of the data set (default: it is not published).")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repositories private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch of the model's repository (default: main); made if missing.")] = None,
    no_item_texts: Annotated[bool, typer.Option("--no-item-texts", help="Publish the items' ids without their texts and images.")] = False,
    dtype: Annotated[str, typer.Option(help="Precision of the weights: bfloat16, float16 or float32.")] = "bfloat16",
    comparison: Annotated[str | None, typer.Option(help="compare.json of `cemg compare`: other systems, shown in the card.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List files, sizes and what would be refused (exit status 1); nothing is sent.")
    ] = False,
) -> None:
    """Push a run to the Hub: model with tokenizer, code and card, and its data set, each in one commit. Run again to resume.

    Who you are is what `hf auth login` or HF_TOKEN says.
    """
    from .hub.publish import PublishConfig
    from .hub.publish import dry_run as list_contents
    from .hub.publish import publish as publish_run
    from .settings import from_mapping

    given = {"repo": repo, "dataset_repo": dataset_repo, "private": private, "revision": revision, "item_texts": not no_item_texts}
    config = from_mapping(PublishConfig, given | {"dtype": dtype, "comparison": comparison}, "cemg publish")
    if dry_run:
        preview = list_contents(run, config)
        typer.echo(preview.text)
        raise typer.Exit(int(bool(preview.refused)))
    for pushed in publish_run(run, config):
        state = f"commit {pushed.commit[:10]}" if pushed.changed else f"nothing to change since commit {pushed.commit[:10]}"
        typer.echo(f"{pushed.kind} {pushed.repo}: {state}; {pushed.url}")


@app.command()
def recipes() -> None:
    """List the recipes that ship with the package, and the systems that `cemg run --system` trains on any of them."""
    from .recipes import load_recipe, recipe_names, system_names

    for name in recipe_names():
        typer.echo(f"{name:16s} {load_recipe(name).description}")
    typer.echo(f"\nsystems: {', '.join(system_names())}")


def _show(result: dict[str, Any], folder: Path) -> None:
    from .evaluation.report import format_table

    shown = ("test", "test_excluding_history", "test_cold")
    metrics = {system: {name: slices[name] for name in shown if name in slices} for system, slices in result["metrics"].items()}
    typer.echo(format_table(metrics))
    typer.echo(f"\n{result['seconds']:.0f} s in all; everything is in {folder}")


def _example(folder: Path) -> None:
    """One real user of the run: what she bought, and what the model recommends."""
    from .data import PreparedDataset
    from .models.cemg import CEMGForConditionalGeneration

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


def main() -> None:
    """Entry point: errors a user can mend are one line, without a traceback."""
    try:
        app()
    except CEMGError as error:
        typer.echo(f"error: {' '.join(str(error).splitlines())}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
