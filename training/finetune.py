"""Train the generator of a run, on one process or many.

    accelerate launch training/finetune.py --config sample
    accelerate launch --num_processes 2 training/finetune.py --config recipe.yaml --run runs/shop --set finetune.loop.epochs=50

The run folder holds what `cemg run` makes; stages that come before and are missing are run first, by the main process.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from transformers import HfArgumentParser

from cemg_hf import CEMGError
from cemg_hf.recipes import load_recipe
from cemg_hf.training.finetune import LoraSettings, finetune
from cemg_hf.training.pipeline import STAGES, run


@dataclass
class Arguments:
    """What to train and where."""

    config: str = field(metadata={"help": "Name of a shipped recipe, or path of a YAML file."})
    run: str | None = field(default=None, metadata={"help": "Run folder (default: runs/<recipe name>)."})
    lora: bool = field(default=False, metadata={"help": "Train low-rank adapters (needs finetune.generator.init_from)."})
    set: list[str] = field(default_factory=list, metadata={"help": "section.key=value changes to the recipe."})
    seed: int | None = field(default=None, metadata={"help": "Seed (default: the recipe's)."})


def main() -> None:
    arguments = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
    state = PartialState()
    logging.basicConfig(level=logging.INFO if state.is_main_process else logging.ERROR, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    overrides = {} if arguments.seed is None else {"seed": arguments.seed}
    recipe = load_recipe(arguments.config, arguments.set, overrides)
    if arguments.lora and recipe.finetune.lora is None:
        recipe.finetune.lora = LoraSettings()
    folder = Path(arguments.run or Path("runs") / recipe.name)
    with state.main_process_first():
        if state.is_main_process:
            run(recipe, folder, until="tokenize")
    finetune(recipe.finetune, folder / STAGES["prepare"], folder / STAGES["tokenize"], folder / STAGES["finetune"], recipe.seed)


if __name__ == "__main__":
    try:
        main()
    except CEMGError as error:
        sys.exit(f"error: {error}")
