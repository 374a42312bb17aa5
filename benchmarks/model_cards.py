"""Make the cards in model_cards/ from the results in benchmarks/results.

A data set whose results are there gets `model_cards/cemg-NAME/README.md`; one whose run folder is given gets the whole folder that is
published, as `cemg export` writes it, the results beside its own figures and, from `published-NAME.json`, what that folder itself reaches.
A folder with a model in it is left alone without its run.

    python benchmarks/model_cards.py                                   every card that can be made of results alone
    python benchmarks/model_cards.py --run beauty=runs/beauty          the model folder of Beauty
    python benchmarks/model_cards.py --check                           write nothing; exit status 1 when a card is stale
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from cemg_hf.artefacts import write_text
from cemg_hf.errors import CEMGError
from cemg_hf.hub.export import export_model, read_results
from cemg_hf.hub.model_card import CardModel, model_card
from cemg_hf.recipes import load_recipe

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CARDS = ROOT / "model_cards"

EXAMPLES = {
    "beauty": ("B004756YJA", "B004ZT0SSG"),
    "sports": ("1881509818", "B0048KGFHU"),
    "yelp": ("5eV8oUGdBXylwB7HeaDFOA", "GKC6EYmFFOU245qBtVxetw"),
    "movielens-100k": ("1", "50"),
    "sample": ("item-0012", "item-0345"),
}
"""Data sets with a card, and two items of each for its example."""

NOTICE = (
    "**This folder holds the card alone.** `cemg run {name} && cemg export runs/{name} --output cemg-{name}` trains the model and writes "
    "the folder that the examples load."
)


def card_alone(name: str, results: Path) -> str:
    """README.md of a data set from its results file and its recipe, without a run."""
    result = read_results(results / f"{name}.json")
    items = result.get("tokenizer", {}).get("items")
    about = CardModel(f"cemg-{name}", asdict(load_recipe(name)), EXAMPLES[name], items=items, notice=NOTICE.format(name=name))
    return model_card(about, result)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the cards in model_cards/ from benchmarks/results.")
    parser.add_argument("--run", action="append", default=[], metavar="NAME=FOLDER", help="run folder whose model is written; repeatable")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 when a card is stale")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--cards", type=Path, default=CARDS, help="folder of the cards")
    arguments = parser.parse_args()
    runs = dict(run.partition("=")[::2] for run in arguments.run)
    unknown = set(runs) - set(EXAMPLES)
    if unknown:
        raise CEMGError(f"--run: {sorted(unknown)[0]!r} is no data set with a card; choose one of {', '.join(EXAMPLES)}")
    stale = []
    for name in EXAMPLES:
        folder = arguments.cards / f"cemg-{name}"
        if name in runs and not arguments.check:
            found = {"comparison": arguments.results / f"{name}.json", "published": arguments.results / f"published-{name}.json"}
            given = {part: path for part, path in found.items() if path.is_file()}
            export_model(runs[name], folder, name=f"model_cards/cemg-{name}", **given)
            print(f"{folder}: the model of {runs[name]}")
        elif (folder / "config.json").is_file():
            print(f"{folder}: holds a model; give its run to write it again")
        elif not (arguments.results / f"{name}.json").is_file():
            print(f"{folder}: not measured yet, {arguments.results / f'{name}.json'} is missing")
        else:
            card, path = card_alone(name, arguments.results), folder / "README.md"
            if not arguments.check:
                write_text(path, card)
                print(path)
            elif not path.is_file() or path.read_text(encoding="utf-8") != card:
                stale.append(path)
    for path in stale:
        print(f"{path} is stale: run `python benchmarks/model_cards.py`", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CEMGError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
