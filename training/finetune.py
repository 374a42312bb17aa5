"""Train the generator of a run, on one process or many.

    accelerate launch training/finetune.py --config sample
    accelerate launch --num_processes 2 training/finetune.py --config recipe.yaml --output runs/shop --set finetune.loop.epochs=50
    torchrun --nproc_per_node 2 training/finetune.py --config sample     # several processes without a GPU

The run folder holds what `cemg run` makes; stages that come before and are missing are run first, by the main process.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from cemg_hf import CEMGError
from cemg_hf.recipes import load_recipe
from cemg_hf.training.finetune import LoraSettings, finetune
from cemg_hf.training.pipeline import STAGES, run

EARLIER_STAGES_TIMEOUT = timedelta(hours=12)
"""How long the other processes wait while the main one encodes and tokenizes."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the generator of a run, on one process or many (accelerate launch).")
    parser.add_argument("--config", required=True, help="name of a shipped recipe, or path of a YAML file")
    parser.add_argument("--output", "-o", type=Path, help="run folder (default: runs/<recipe name>)")
    parser.add_argument("--lora", action="store_true", help="train low-rank adapters (needs finetune.generator.init_from)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="SECTION.KEY=VALUE", help="change settings; repeatable")
    parser.add_argument("--seed", type=int, help="seed (default: the recipe's)")
    return parser.parse_args()


def process_state() -> PartialState:
    """This process among the others; they talk over gloo where there is no GPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    # Unless told to use the CPU, Accelerate takes several processes without a GPU for as many independent runs.
    several_on_cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and (accelerator is None or accelerator.type == "mps")
    return PartialState(cpu=several_on_cpu, timeout=EARLIER_STAGES_TIMEOUT)


def main() -> None:
    arguments = parse_arguments()
    state = process_state()
    level = logging.WARNING if state.is_main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if state.is_main_process:
        logging.getLogger("cemg_hf").setLevel(logging.INFO)
    recipe = load_recipe(arguments.config, arguments.set, {} if arguments.seed is None else {"seed": arguments.seed})
    if arguments.lora and recipe.finetune.lora is None:
        recipe.finetune.lora = LoraSettings()
    folder = arguments.output or Path("runs") / recipe.name
    with state.main_process_first():
        if state.is_main_process:
            run(recipe, folder, until="tokenize")
    finetune(
        recipe.finetune, folder / STAGES["prepare"], folder / STAGES["tokenize"], folder / STAGES["finetune"], recipe.seed, recipe.streams
    )


if __name__ == "__main__":
    try:
        main()
    except CEMGError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(2)
