"""`cemg …`: the stages as commands. Thin: every command builds settings and calls the package, and imports it when it is called."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from ..errors import CEMGError
from .data_commands import convert, download_images, prepare
from .hub_commands import export, publish
from .item_commands import add_items, describe, inspect
from .serving_commands import demo, recommend, serve
from .study_commands import cold_start, compare, evaluate, study
from .training_commands import encode, finetune, quickstart, recipes, rq_dino, run, tokenize

COMMANDS: Mapping[str, Callable[..., None]] = {
    "run": run,
    "quickstart": quickstart,
    "convert": convert,
    "download-images": download_images,
    "prepare": prepare,
    "encode": encode,
    "tokenize": tokenize,
    "rq-dino": rq_dino,
    "inspect": inspect,
    "describe": describe,
    "add-items": add_items,
    "cold-start": cold_start,
    "finetune": finetune,
    "evaluate": evaluate,
    "compare": compare,
    "study": study,
    "recommend": recommend,
    "serve": serve,
    "demo": demo,
    "export": export,
    "publish": publish,
    "recipes": recipes,
}
"""Every command, in the order of `cemg --help`."""

app = typer.Typer(
    name="cemg",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Multimodal generative recommendation: raw interactions and items in, a recommender for the Hugging Face Hub out.",
)
for name, command in COMMANDS.items():
    app.command(name)(command)


@app.callback()
def _logging(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also show what libraries log.")] = False) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("cemg_hf").setLevel(logging.INFO)
    if not verbose:  # torch-geometric says this of itself at every import
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)


def main() -> None:
    """Entry point: errors a user can mend are one line, without a traceback."""
    try:
        app()
    except CEMGError as error:
        typer.echo(f"error: {' '.join(str(error).splitlines())}", err=True)
        raise SystemExit(2) from None
