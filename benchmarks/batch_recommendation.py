"""What recommending to a file of users costs: users per second, and memory, which must not grow with the number of users.

A random catalogue and a small untrained network (the cost of a search does not depend on what the weights say); histories of 0 … 40 items
drawn by popularity. Every file goes through `cemg recommend --histories` in a process of its own, with the operating system's peak of its
resident memory, libraries and model included. The file is one row group, the worst case for a reader.

    OMP_NUM_THREADS=2 python benchmarks/batch_recommendation.py --users 10000 100000
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cemg_hf import CEMGConfig, CEMGForConditionalGeneration, CEMGTokenizer
from cemg_hf.artefacts import result_envelope, write_json
from cemg_hf.errors import CEMGError

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "batch_recommendation.json"
LEVELS, CODES = 4, 256
LONGEST = 40
NETWORK: dict[str, Any] = {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}

Measured = dict[str, Any]


def main() -> None:
    arguments = parse_arguments()
    started = time.perf_counter()
    metrics = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        save_model(folder / "model", arguments.items, arguments.seed)
        for users in arguments.users:
            write_users(folder / f"{users}.parquet", users, arguments.items, arguments.seed)
            found = recommend(folder / "model", folder / f"{users}.parquet", arguments)
            metrics[f"{users} users"] = {"users": users, **found, "users_per_second": users / found["seconds"]}
            rate, memory = metrics[f"{users} users"]["users_per_second"], found["peak_resident_mb"]
            print(f"{users:12,} users  {found['seconds']:8.1f} s  {rate:8,.0f} users/s  {memory:6.0f} MB", flush=True)
    envelope = result_envelope(
        metrics,
        command=f"python {shlex.join(sys.argv)}",
        seeds=[arguments.seed],
        seconds=time.perf_counter() - started,
        settings={
            "items": arguments.items,
            "num_levels": LEVELS,
            "codebook_size": CODES,
            "network": NETWORK,
            "longest_history": LONGEST,
            "threads": torch.get_num_threads(),
            **{name: getattr(arguments, name) for name in ("k", "num_beams", "batch_size", "rows_per_part", "dtype", "device")},
        },
    )
    write_json(arguments.output, envelope)
    print(f"written to {arguments.output}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--users", type=int, nargs="+", default=[10_000, 100_000], help="sizes of the files")
    parser.add_argument("--items", type=int, default=10_000, help="size of the catalogue")
    parser.add_argument("-k", type=int, default=10, help="items per user")
    parser.add_argument("--num-beams", type=int, default=20, help="beams of the search")
    parser.add_argument("--batch-size", type=int, default=128, help="users per forward pass")
    parser.add_argument("--rows-per-part", type=int, default=2048, help="users per output file")
    parser.add_argument("--dtype", default="float32", help="precision of the network")
    parser.add_argument("--device", default="auto", help="as for `cemg recommend`")
    parser.add_argument("--seed", type=int, default=0, help="seed of codes, weights and histories")
    parser.add_argument("--folder", type=Path, help="where the temporary files go")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="where the result JSON goes")
    return parser.parse_args()


def save_model(folder: Path, items: int, seed: int) -> None:
    """An untrained generator over a random catalogue."""
    torch.manual_seed(seed)
    drawn = np.random.default_rng(seed).choice(CODES**LEVELS, items, replace=False)
    codes = torch.from_numpy(np.stack([drawn // CODES**level % CODES for level in range(LEVELS)], axis=1))
    ids = [item_id(row) for row in range(items)]
    tokenizer = CEMGTokenizer(item_ids=ids, item_codes=codes, num_levels=LEVELS, codebook_size=CODES)
    model = CEMGForConditionalGeneration(CEMGConfig(**NETWORK, **tokenizer.geometry()))
    model.set_tokenizer(tokenizer)
    model.save_pretrained(folder)


def write_users(path: Path, users: int, items: int, seed: int) -> None:
    """Histories of 0 … LONGEST items, item n as popular as 1 / n."""
    generator = np.random.default_rng((seed, users))
    lengths = generator.integers(0, LONGEST + 1, users)
    popularity = np.cumsum(1 / np.arange(1, items + 1))
    bought = np.searchsorted(popularity, generator.random(int(lengths.sum())) * popularity[-1])
    values = pa.array([item_id(row) for row in range(items)]).take(pa.array(bought))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    table = pa.table({"user_id": pa.array(np.arange(users)), "history": pa.ListArray.from_arrays(offsets, values)})
    pq.write_table(table, path, row_group_size=users)


def item_id(row: int) -> str:
    """Ten characters, as Amazon's."""
    return f"B{row:09d}"


def recommend(model: Path, users: Path, arguments: argparse.Namespace) -> Measured:
    """One run as a user starts it; wall time with loading and checking, and the peak of its memory."""
    output = users.with_name(f"{users.stem}.recs")
    names = ("num_beams", "batch_size", "rows_per_part", "dtype", "device")
    options = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(arguments, name)))]
    command = [sys.executable, "-m", "cemg_hf.cli", "recommend", str(model), "--histories", str(users), "--output", str(output)]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "-k", str(arguments.k), *options], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise CEMGError(f"`cemg recommend` ended with status {process.returncode}; its message is above")
    written = sum(pq.read_metadata(part).num_rows for part in output.glob("*.parquet"))
    if written != pq.read_metadata(users).num_rows:
        raise CEMGError(f"{output}: holds {written} users, not all of {users}")
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_resident_mb": usage.ru_maxrss * 1024 / 1e6}


if __name__ == "__main__":
    try:
        main()
    except CEMGError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
