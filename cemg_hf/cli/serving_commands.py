"""Commands that answer: for one history, for files of users, over HTTP, on a page."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import CEMGError
from ..serving.config import ServingConfig


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
    """Recommend the next items after a history: rank, item id and score; or to all users of a file. Also by SASRec or GRU4Rec.

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
    from ..serving.single import recommend_one

    found = recommend_one(model, history, device, dtype, options)
    for place, (item_id, score) in enumerate(found, start=1):
        typer.echo(f"{place:3d}  {item_id}  {score:.4f}")


def _recommend_to_files(model: str, histories: Path, output: Path, overwrite: bool, options: dict[str, Any]) -> None:
    from accelerate import PartialState

    from ..serving.batch import BatchConfig, recommend_files

    report = recommend_files(model, histories, output, BatchConfig(**options), overwrite=overwrite)
    if PartialState().is_main_process:
        typer.echo(f"{report}; in {output}")
    PartialState().destroy_process_group()


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _serving(name: str) -> Any:
    """The option of a setting of the service."""
    return typer.Option(help=ServingConfig.__dataclass_fields__[name].metadata["help"])


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
        from ..serving.server import listen
        from ..serving.server import serve as serve_requests
        from ..serving.service import RecommendService
    except ModuleNotFoundError as error:
        raise CEMGError(f"`cemg serve` needs {error.name}, which is not installed; pip install 'cemg-hf[serve]'") from error
    from ..serving.loading import load_recommender, load_titles

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
        from ..demo.app import launch
        from ..demo.loading import open_demo
        from ..demo.space import export_space
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
