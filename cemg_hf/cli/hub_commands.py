"""Commands that write and push what is published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared import Output


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
    from ..hub.export import export_model

    folder = export_model(run, output, name=name, dtype=dtype, comparison=comparison, dataset_repo=dataset_repo)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    typer.echo(f"{folder}: {size / 1e6:.1f} MB; AutoModel.from_pretrained({str(folder)!r}) loads it")


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
    from ..hub.publish import PublishConfig
    from ..hub.publish import dry_run as list_contents
    from ..hub.publish import publish as publish_run
    from ..settings import from_mapping

    given = {"repo": repo, "dataset_repo": dataset_repo, "private": private, "revision": revision, "item_texts": not no_item_texts}
    config = from_mapping(PublishConfig, given | {"dtype": dtype, "comparison": comparison}, "cemg publish")
    if dry_run:
        preview = list_contents(run, config)
        typer.echo(preview.text)
        raise typer.Exit(int(bool(preview.refused)))
    for pushed in publish_run(run, config):
        state = f"commit {pushed.commit[:10]}" if pushed.changed else f"nothing to change since commit {pushed.commit[:10]}"
        typer.echo(f"{pushed.kind} {pushed.repo}: {state}; {pushed.url}")
