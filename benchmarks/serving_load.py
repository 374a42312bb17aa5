"""`cemg serve` under load: throughput and latency against the number of clients, and whether anything is lost while it changes and stops.

The service is a process of its own and so are its clients, each of which sends its next request when the last one is answered. First with
batches and without, then with a catalogue that is replaced every half second, and a SIGTERM in the middle of that.

    python benchmarks/serving_load.py --model runs/beauty/model
    python benchmarks/serving_load.py --model runs/beauty-sasrec/model --output sasrec_load.json

Without `--model` the model is random: the package's default network, a catalogue of 10,000 items with random codes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import aiohttp
import numpy as np
import torch

from cemg_hf import CEMGConfig, CEMGForConditionalGeneration, CEMGTokenizer
from cemg_hf.artefacts import result_envelope, write_json
from cemg_hf.errors import CEMGError
from cemg_hf.evaluation.report import COLOURS
from cemg_hf.models.next_item import ITEM_IDS_FILE

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "serving_load.json"
COLUMNS = {
    "requests per second": "per_second",
    "p50 ms": "p50_ms",
    "p99 ms": "p99_ms",
    "batch": "mean_batch",
    "answered": "answered",
    "refused": "refused",
    "lost": "lost",
    "catalogues": "catalogues",
}
TOKEN = "benchmark"
HISTORIES = 2000
PATIENCE = 120.0
WARM_UP = 1.0


class Load(NamedTuple):
    """What the clients saw.

    seconds: of every request answered in the `measured` seconds after the warm-up. statuses: of all answers. lost: requests that were
    sent and never answered. turned_away: connections that were not accepted.
    """

    seconds: list[float]
    measured: float
    statuses: dict[int, int]
    lost: int
    turned_away: int
    catalogues: list[str]


def main() -> None:
    arguments = parse_arguments()
    started = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(1, mp_context=context) as pool:
        model = arguments.model or random_model(Path(scratch) / "model", arguments.items, arguments.seed)
        gone, histories = prepare(model, arguments.seed)
        metrics: dict[str, dict[str, Any]] = {}
        for name, options in {"batched": [], "one by one": ["--max-batch-size", "1"]}.items():
            with service(model, options) as (process, address):
                for clients in arguments.clients:
                    metrics[row_name(name, clients)] = measure(pool, address, histories, clients, arguments.seconds)
                stop(process)
        name = row_name(f"catalogue replaced every {arguments.reload_every:g} s, then SIGTERM", arguments.clients[-1])
        metrics[name] = disturb(pool, model, gone, histories, arguments.clients[-1], arguments.seconds, arguments.reload_every)
    threads = os.environ.get("OMP_NUM_THREADS", "torch's choice")
    envelope = result_envelope(
        metrics,
        command=f"python {shlex.join(sys.argv)}",
        seeds=[arguments.seed],
        seconds=time.perf_counter() - started,
        columns=COLUMNS,
        settings={"model": str(arguments.model or "random"), "seconds_per_row": arguments.seconds, "threads": threads, "k": 10},
    )
    write_json(arguments.output, envelope)
    plot(metrics, arguments.clients, arguments.output.with_suffix(".png"))
    for row, values in metrics.items():
        shown = "  ".join(f"{title} {values[key]}" for title, key in COLUMNS.items())
        print(f"{row}: {shown}")
    print(f"written to {arguments.output}")
    if metrics[name]["lost"] or metrics[name]["exit_status"]:
        raise CEMGError(f"{metrics[name]['lost']} requests were lost, and the service ended with status {metrics[name]['exit_status']}")


def row_name(variant: str, clients: int) -> str:
    return f"{variant}, {clients} client{'s' * (clients > 1)}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="model folder; default: a random model")
    parser.add_argument("--items", type=int, default=10_000, help="items of the random model's catalogue")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64], help="numbers of clients")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured seconds of each row")
    parser.add_argument("--reload-every", type=float, default=0.5, help="seconds between two catalogues")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random model and of the histories")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="where the result JSON goes; the plot goes beside it")
    return parser.parse_args()


def random_model(folder: Path, items: int, seed: int) -> Path:
    """The package's default network, untrained, over items with random codes."""
    torch.manual_seed(seed)
    codes = torch.randint(0, 256, (2 * items, 4)).unique(dim=0)
    codes = codes[torch.randperm(len(codes))[:items]]
    tokenizer = CEMGTokenizer(item_ids=[f"item-{row:06d}" for row in range(items)], item_codes=codes, num_levels=4, codebook_size=256)
    model = CEMGForConditionalGeneration(CEMGConfig(**tokenizer.geometry()))
    model.set_tokenizer(tokenizer)
    model.save_pretrained(folder)
    return folder


def prepare(model: Path, seed: int) -> tuple[list[str], list[list[str]]]:
    """A hundredth of the items, which will come and go, and histories of 1 to 20 of the others."""
    catalogue = model / ITEM_IDS_FILE  # either kind of model has it
    if not catalogue.is_file():
        raise CEMGError(f"{catalogue}: no such file; name a model folder with --model")
    ids = np.array(json.loads(catalogue.read_text(encoding="utf-8")))
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(ids))
    gone, kept = np.split(order, [max(1, len(ids) // 100)])
    lengths = generator.integers(1, 21, HISTORIES)
    return ids[gone].tolist(), [ids[generator.choice(kept, length)].tolist() for length in lengths]


@contextmanager
def service(model: Path, options: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves, ready, and its address."""
    command = [sys.executable, "-m", "cemg_hf.cli", "serve", str(model), "--port", "0", *options]
    environment = {**os.environ, "CEMG_ADMIN_TOKEN": TOKEN, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"http://[\d.:]+", said)
            if found is None:
                raise CEMGError(f"the service did not start; it said {said.strip()!r}")
            asyncio.run(until_ready(found[0]))
            yield process, found[0]
        finally:
            process.kill()


async def until_ready(address: str) -> None:
    async with asyncio.timeout(PATIENCE), aiohttp.ClientSession(address) as session:
        while True:
            async with session.get("/health/ready") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.1)


def stop(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(PATIENCE)


def measure(pool: ProcessPoolExecutor, address: str, histories: list[list[str]], clients: int, seconds: float) -> dict[str, Any]:
    """One row: closed-loop clients in a process of their own, on a service that nothing disturbs."""
    batches, batched = batch_counts(address)
    load = pool.submit(generate, address, histories, clients, seconds).result()
    more_batches, more_batched = batch_counts(address)
    return summarise(load) | {"mean_batch": round((more_batched - batched) / (more_batches - batches), 2)}


def disturb(
    pool: ProcessPoolExecutor, model: Path, gone: list[str], histories: list[list[str]], clients: int, seconds: float, every: float
) -> dict[str, Any]:
    """The row in which catalogues come and go for `seconds`, and the service is told to stop while all clients are asking."""
    with service(model, []) as (process, address):
        load: Future[Load] = pool.submit(generate, address, histories, clients, None)
        while not batch_counts(address)[0] and not load.done():  # the clients are on their way
            time.sleep(0.05)
        changes = asyncio.run(replace_catalogues(address, gone, seconds + WARM_UP, every))
        batches, batched = batch_counts(address)
        status = stop(process)
        return summarise(load.result()) | {"mean_batch": round(batched / batches, 2), "changes": changes, "exit_status": status}


async def replace_catalogues(address: str, gone: list[str], seconds: float, every: float) -> int:
    """Number of changes in `seconds`: items go, then the model's folder is read again, and so on."""
    changes: list[tuple[str, str, Any]] = [("DELETE", "/catalogue/items", {"item_ids": gone}), ("POST", "/catalogue/reload", None)]
    headers = {"Authorization": f"Bearer {TOKEN}"}
    until, count = time.monotonic() + seconds, 0
    async with aiohttp.ClientSession(address, headers=headers, raise_for_status=True) as session:
        while time.monotonic() < until:
            method, path, body = changes[count % 2]
            async with session.request(method, path, json=body):
                count += 1
            await asyncio.sleep(every)
    return count


def batch_counts(address: str) -> tuple[float, float]:
    """Passes of the model so far, and histories in them."""
    with urlopen(f"{address}/metrics") as response:
        text = response.read().decode()
    found = [re.search(rf"^cemg_batch_size_{name} (\S+)", text, re.MULTILINE) for name in ("count", "sum")]
    count, total = (float(match[1]) if match else 0.0 for match in found)
    return count, total


def generate(address: str, histories: list[list[str]], clients: int, seconds: float | None) -> Load:
    """Clients that ask one request after the other: for `seconds` after the warm-up, or until the service says that it stops."""
    return asyncio.run(_generate(address, histories, clients, seconds))


async def _generate(address: str, histories: list[list[str]], clients: int, seconds: float | None) -> Load:
    begin = time.perf_counter() + WARM_UP
    end = float("inf") if seconds is None else begin + seconds
    statuses: Counter[int] = Counter()
    failures: Counter[str] = Counter()
    catalogues: set[str] = set()
    answered: list[tuple[float, float]] = []

    async def ask(session: aiohttp.ClientSession, first: int) -> None:
        row = first
        while time.perf_counter() < end:
            row += clients
            started = time.perf_counter()
            try:
                async with session.post("/recommend", json={"history": histories[row % len(histories)]}) as response:
                    statuses[response.status] += 1
                    content = await response.json()
            except aiohttp.ClientConnectorError:
                failures["turned away"] += 1
                return
            except (aiohttp.ClientError, TimeoutError):
                failures["lost"] += 1
                return
            if response.status == 503:
                return
            if response.status == 200:
                answered.append((started, time.perf_counter()))
                catalogues.add(content["catalogue"])

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(address, connector=connector, timeout=aiohttp.ClientTimeout(PATIENCE)) as session:
        await asyncio.gather(*(ask(session, client) for client in range(clients)))
    last = min(end, max(stop for _, stop in answered))
    seconds_each = [
        stop - start for start, stop in answered if begin <= stop <= last
    ]  # by their end: they may take longer than the warm-up
    return Load(seconds_each, last - begin, dict(statuses), failures["lost"], failures["turned away"], sorted(catalogues))


def summarise(load: Load) -> dict[str, Any]:
    milliseconds = 1000 * np.array(load.seconds)
    return {
        "per_second": round(len(load.seconds) / load.measured, 1),
        "p50_ms": round(float(np.percentile(milliseconds, 50)), 1),
        "p99_ms": round(float(np.percentile(milliseconds, 99)), 1),
        "answered": load.statuses.get(200, 0),
        "refused": sum(count for status, count in load.statuses.items() if status in (429, 503)) + load.turned_away,
        "errors": sum(count for status, count in load.statuses.items() if status not in (200, 429, 503)),
        "lost": load.lost,
        "catalogues": len(load.catalogues),
    }


def plot(metrics: dict[str, dict[str, Any]], clients: list[int], path: Path) -> None:
    """Throughput, and median and 99th percentile of the latency, against the number of clients."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    for name, colour in zip(("batched", "one by one"), COLOURS, strict=False):
        rows = [metrics[row_name(name, count)] for count in clients]
        left.plot(clients, [row["per_second"] for row in rows], "o-", color=colour, label=name)
        right.plot(clients, [row["p50_ms"] for row in rows], "o-", color=colour, label=f"{name}, p50")
        right.plot(clients, [row["p99_ms"] for row in rows], "o--", color=colour, label=f"{name}, p99")
    for panel, title in ((left, "requests per second"), (right, "milliseconds per request")):
        panel.set_xscale("log", base=2)
        panel.set_xticks(clients, [str(count) for count in clients])
        panel.set_xlabel("clients that ask at the same time")
        panel.set_title(title, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
        panel.legend(frameon=False, fontsize=8, handlelength=4)
    left.set_ylim(bottom=0)
    right.set_yscale("log")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.partial")
    figure.savefig(scratch, format="png")
    scratch.replace(path)


if __name__ == "__main__":
    try:
        main()
    except CEMGError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
