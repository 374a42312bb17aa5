"""Commands on the codes of items: what they are worth, what they mean, codes for new items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared import Output


def inspect(
    tokenizer: Annotated[Path, typer.Argument(help="Folder written by `cemg tokenize`, or a model folder.")],
    features: Annotated[Path | None, typer.Option(help="Its features (default: `features` beside it).")] = None,
    dataset: Annotated[Path | None, typer.Option(help="Its data set, for categories and the tree (default: `dataset` beside it).")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write (default: `inspection` beside it).")] = None,
    tree: Annotated[bool, typer.Option(help="Also write tree.html, the catalogue to browse by its codes.")] = True,
) -> None:
    """Measure an item tokenizer: codebook use, collisions, neighbours, purity, α; JSON, a page of plots and a browsable tree."""
    from ..training.inspect import format_inspection, inspect_tokenizer

    typer.echo(format_inspection(inspect_tokenizer(tokenizer, features=features, dataset=dataset, output=output, tree=tree)))


def describe(
    tokenizer: Annotated[Path, typer.Argument(help="Folder written by `cemg tokenize`, or a model folder.")],
    codes: Annotated[str, typer.Argument(help='The branch, such as "<a_12><b_7>"; "" is the whole catalogue.')] = "",
    dataset: Annotated[Path | None, typer.Option(help="Its data set, for words and titles (default: `dataset` beside it).")] = None,
) -> None:
    """Say what a code means: typical items, words and categories of a branch, and its share of the catalogue."""
    from ..training.inspect import describe_codes

    typer.echo(str(describe_codes(tokenizer, codes, dataset=dataset)))


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
    from ..training.new_items import add_items_to_model

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
