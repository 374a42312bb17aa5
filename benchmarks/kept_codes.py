"""How many items keep their codes when a tokenizer is trained on newer data: continued from the one in use, or afresh.

cemg run movielens-100k --interactions older.parquet --until tokenize --output runs/older
cemg run movielens-100k --until tokenize --output runs/newer --set tokenize.start_from=runs/older/tokenizer
python benchmarks/kept_codes.py --before runs/older/tokenizer --after continued=runs/newer/tokenizer
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from cemg_hf.artefacts import MANIFEST_NAME, result_envelope, write_json
from cemg_hf.errors import CEMGError
from cemg_hf.training.loading import open_tokenizer
from cemg_hf.training.retraining import kept_codes

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "kept_codes.json"
COLUMNS = {
    "items in both": "items",
    "first code kept": "depths.0.kept",
    "first two": "depths.1.kept",
    "first three": "depths.2.kept",
    "whole code": "depths.3.kept",
    "error": "reconstruction_error",
    "collisions before resolution": "collision_rate_before",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="tokenizer folder of the older data")
    parser.add_argument("--after", action="append", required=True, metavar="NAME=FOLDER", help="tokenizer folder of the newer; repeatable")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    arguments = parser.parse_args()
    started = time.perf_counter()
    before = open_tokenizer(arguments.before)
    metrics: dict[str, Any] = {}
    for entry in arguments.after:
        name, sign, folder = entry.partition("=")
        if not sign:
            raise CEMGError(f"--after {entry}: expected NAME=FOLDER")
        after = open_tokenizer(folder)
        report = json.loads((Path(folder) / "tokenizer_report.json").read_text(encoding="utf-8"))
        metrics[name] = kept_codes(before, after.item_ids, after.item_codes)
        metrics[name] |= {key: report[key] for key in ("reconstruction_error", "collision_rate_before")}
    seed = json.loads((arguments.before / MANIFEST_NAME).read_text(encoding="utf-8"))["seed"]
    command, seconds = shlex.join(["python", *sys.argv]), time.perf_counter() - started
    write_json(arguments.output, result_envelope(metrics, command=command, seeds=[seed], seconds=seconds, columns=COLUMNS))


if __name__ == "__main__":
    main()
