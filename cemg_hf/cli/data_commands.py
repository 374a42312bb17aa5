"""Commands that make data sets."""

from __future__ import annotations

from typing import Annotated

import typer

from .shared import Assignments, Output, RecipeArgument, Seed, settings_of


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
    from ..data.convert import ConvertConfig
    from ..data.convert import convert as convert_stage
    from ..data.download import DownloadConfig
    from ..settings import from_mapping

    given = {"format": published, "reviews": reviews, "metadata": metadata, "min_interactions": min_interactions, "expect": expect}
    given |= {"from_date": from_date, "to_date": to_date, "images": images, "missing_images": missing_images}
    download = DownloadConfig(longest_side=longest_side, requests_per_second=requests_per_second)
    typer.echo(convert_stage(from_mapping(ConvertConfig, given, "cemg convert"), output, download))


def download_images(
    items: Annotated[str, typer.Argument(help="Table of item_id and the URL of the picture, in any format that `cemg run` reads.")],
    output: Output,
    url_column: Annotated[str, typer.Option(help="Column of the URLs.")] = "image_url",
    longest_side: Annotated[int | None, typer.Option(help="Shrink pictures to this many pixels.")] = None,
    requests_per_second: Annotated[float, typer.Option(help="Downloads per second and host; 0: no limit.")] = 20.0,
) -> None:
    """Download the items' pictures into a folder for `cemg run --images`; run again, only what is missing is asked for."""
    from ..data.download import DownloadConfig, download_table

    config = DownloadConfig(longest_side=longest_side, requests_per_second=requests_per_second)
    counts = download_table(items, output, url_column, config)
    typer.echo(", ".join(f"{count:,} {status}" for status, count in counts.items()) + f"; in {output}")


def prepare(recipe: RecipeArgument, output: Output, seed: Seed = None, assignments: Assignments = None) -> None:
    """Read, check and filter raw data; write the data set folder that `load_dataset` opens."""
    from ..data.prepare import prepare as prepare_stage

    settings = settings_of(recipe, assignments, seed)
    prepare_stage(settings.prepare, output, settings.seed)
