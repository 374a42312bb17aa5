"""What training on the validation items too is worth: SASRec on all but each user's last item, measured on that item.

The protocol of this project trains on all but the last two items, and the validation item is only read at test time. Some published
figures come from models that were fitted once more, with the validation items among the training interactions.

    python benchmarks/refit_on_validation.py --run runs/beauty-sasrec --output benchmarks/results/refit_on_validation.json

RUN is a finished run of a `sequential` system without content: its settings are taken, its best epoch is where the second fit stops.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

import yaml
from accelerate.utils import set_seed

from cemg_hf.artefacts import result_envelope, write_json
from cemg_hf.data import PreparedDataset
from cemg_hf.data.collators import TrainingWindows
from cemg_hf.data.item_windows import ItemWindowCollator
from cemg_hf.evaluation.metrics import ranking_metrics
from cemg_hf.recipes import load_recipe
from cemg_hf.training.dropout import use_byte_dropout
from cemg_hf.training.loop import train
from cemg_hf.training.sequential import NetworkRanker, build_network


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit SASRec with the validation items among the training interactions.")
    parser.add_argument("--run", type=Path, required=True, help="run folder of SASRec or GRU4Rec")
    parser.add_argument("--output", type=Path, required=True, help="results file to write")
    arguments = parser.parse_args()
    started = time.perf_counter()
    recipe = load_recipe(arguments.run / "recipe.yaml")
    data = PreparedDataset.load(arguments.run / "dataset")
    report = json.loads((arguments.run / "model" / "training_report.json").read_text())
    cases = data.evaluation_cases("test")
    set_seed(recipe.seed)
    model = build_network(recipe.sequential, data)
    use_byte_dropout(model)
    # The test cases' histories are all but the last item of every user: training and validation.
    windows = TrainingWindows(cases.histories, model.config.max_history, True, recipe.sequential.window_stride)
    recipe.sequential.loop.max_steps = round(report["best_epoch"] / recipe.sequential.loop.epochs * report["steps"])
    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            config=recipe.sequential.loop,
            dataset=windows,
            collate_fn=ItemWindowCollator(windows),
            lengths=windows.size,
            folder=folder,
            seed=recipe.seed,
        )
    rank = NetworkRanker(model)
    measured = {}
    for name, excluded in (("test", False), ("test_excluding_history", True)):
        ranked, _ = rank(cases, 20, exclude_history=excluded)
        measured[name] = ranking_metrics(ranked, cases.targets) | {"n": len(cases)}
    before = json.loads((arguments.run / "metrics.json").read_text())["metrics"][recipe.system]
    metrics = {
        f"{recipe.system}, trained without validation items": {
            name: {key: before[name][key] for key in values} for name, values in measured.items()
        },
        f"{recipe.system}, trained with validation items": measured,
    }
    command = shlex.join(["python", *sys.argv])
    seconds = time.perf_counter() - started
    write_json(arguments.output, result_envelope(metrics, command=command, seeds=[recipe.seed], seconds=seconds))
    print(yaml.safe_dump(metrics, sort_keys=False))


if __name__ == "__main__":
    main()
