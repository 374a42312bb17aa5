"""How fast LightGCN propagates over an edge index, over a CSR adjacency, and over the adjacency that the package trains with.

Forward and backward of all layers, the same embeddings and the same upstream gradient for every variant, outputs and gradients
verified equal before anything is timed. Variants take turns in every repetition, so that a busy machine slows all of them alike.

    python benchmarks/lightgcn_propagation.py --interactions ../shared/data/beauty/interactions.parquet

Without `--interactions` the graph is random: uniform users, items with Zipf-like popularity, the size of Amazon Beauty.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch_geometric.nn.models import LightGCN

from cemg_hf.artefacts import result_envelope, write_json
from cemg_hf.errors import CEMGError
from cemg_hf.training.collaborative import IntArray, SymmetricLightGCN, normalized_adjacency

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "lightgcn_propagation.json"
TOLERANCE = 1e-5


def main() -> None:
    arguments = parse_arguments()
    started = time.perf_counter()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    torch.manual_seed(arguments.seed)
    users, items, num_users, num_items = load_graph(arguments)
    variants = build_variants(users, items, num_users, num_items, arguments.dimension, arguments.layers, device)
    upstream = torch.randn(num_users + num_items, arguments.dimension, device=device)
    differences = verify(variants, upstream)
    seconds = measure(variants, upstream, arguments.repetitions, device)

    median = {name: statistics.median(values) for name, values in seconds.items()}
    metrics = {
        name: {
            "seconds_per_step": median[name],
            "fastest_seconds": min(seconds[name]),
            "speedup_over_edge_index": median["edge_index"] / median[name],
            **differences[name],
        }
        for name in seconds
    }
    graph = {"users": num_users, "items": num_items, "edges": len(users), "source": arguments.interactions or "random"}
    envelope = result_envelope(
        metrics,
        command=f"python {shlex.join(sys.argv)}",
        seeds=[arguments.seed],
        seconds=time.perf_counter() - started,
        graph=graph,
        settings={
            "dimension": arguments.dimension,
            "layers": arguments.layers,
            "repetitions": arguments.repetitions,
            "threads": torch.get_num_threads(),
            "device": arguments.device,
        },
    )
    write_json(arguments.output, envelope)
    print(f"{graph['edges']:,} edges, {arguments.layers} layers, dimension {arguments.dimension}, {torch.get_num_threads()} thread(s)")
    for name, values in metrics.items():
        print(f"{name:>14}  {1000 * values['seconds_per_step']:8.1f} ms  {values['speedup_over_edge_index']:5.1f}×")
    print(f"written to {arguments.output}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--interactions", help="Parquet file with the columns user_id and item_id; default: a random graph")
    parser.add_argument("--users", type=positive, default=22_363, help="users of the random graph")
    parser.add_argument("--items", type=positive, default=12_101, help="items of the random graph")
    parser.add_argument("--pairs", type=positive, default=154_000, help="interactions of the random graph, before repeats are dropped")
    parser.add_argument("--dimension", type=positive, default=64, help="size of the embeddings")
    parser.add_argument("--layers", type=positive, default=3, help="propagation layers")
    parser.add_argument("--repetitions", type=positive, default=7, help="timed steps of each variant, after one for warming up")
    parser.add_argument("--threads", type=positive, help="torch threads; default: torch's own choice")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--seed", type=int, default=0, help="seed of the embeddings and of the random graph")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="where the result JSON goes")
    return parser.parse_args()


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def load_graph(arguments: argparse.Namespace) -> tuple[IntArray, IntArray, int, int]:
    """Distinct (user, item) pairs (pairs,) and the numbers of users and items."""
    if arguments.interactions is None:
        generator = np.random.default_rng(arguments.seed)
        popularity = 1.0 / np.arange(10, 10 + arguments.items) ** 0.8
        drawn_users = generator.integers(0, arguments.users, arguments.pairs)
        drawn_items = generator.choice(arguments.items, arguments.pairs, p=popularity / popularity.sum())
        num_users, num_items = arguments.users, arguments.items
    else:
        try:
            table = pl.read_parquet(arguments.interactions, columns=["user_id", "item_id"])
        except (OSError, pl.exceptions.PolarsError) as error:
            raise CEMGError(f"{arguments.interactions}: {str(error).splitlines()[0]}; give a Parquet file of user_id, item_id") from error
        codes = table.select(pl.all().rank("dense").cast(pl.Int64) - 1)
        drawn_users, drawn_items = codes["user_id"].to_numpy(), codes["item_id"].to_numpy()
        num_users, num_items = int(drawn_users.max()) + 1, int(drawn_items.max()) + 1
    users, items = np.divmod(np.unique(drawn_users * num_items + drawn_items), num_items)
    return users, items, num_users, num_items


Variant = tuple[LightGCN, Tensor]


def build_variants(
    users: IntArray, items: IntArray, num_users: int, num_items: int, dimension: int, layers: int, device: torch.device
) -> dict[str, Variant]:
    """Network and graph of each variant, all with the same embeddings.

    edge_index: torch-geometric's message passing, normalised in every layer. csr: its sparse path over the pre-normalised adjacency.
    symmetric_csr: the same adjacency with the package's own backward and CPU kernel.
    """
    nodes = num_users + num_items
    pairs = torch.from_numpy(np.stack([users, items + num_users]))
    edge_index = torch.cat([pairs, pairs.flip(0)], dim=1).to(device)
    adjacency = normalized_adjacency(users, items, num_users, num_items).to(device)
    variants: dict[str, Variant] = {
        "edge_index": (LightGCN(nodes, dimension, layers).to(device), edge_index),
        "csr": (LightGCN(nodes, dimension, layers, normalize=False).to(device), adjacency),
        "symmetric_csr": (SymmetricLightGCN(nodes, dimension, layers).to(device), adjacency),
    }
    weights = torch.randn(nodes, dimension, device=device)
    for model, _ in variants.values():
        model.embedding.weight.data.copy_(weights)
    return variants


def step(variant: Variant, upstream: Tensor) -> Tensor:
    """Forward and backward of all layers; the output (nodes, dimension)."""
    model, graph = variant
    model.embedding.weight.grad = None
    output = model.get_embedding(graph)
    output.backward(upstream)
    return output.detach()


def verify(variants: dict[str, Variant], upstream: Tensor) -> dict[str, dict[str, float]]:
    """Largest differences of outputs and gradients from those of edge_index; an error beyond the tolerance."""
    expected = step(variants["edge_index"], upstream)
    expected_gradient = variants["edge_index"][0].embedding.weight.grad
    differences: dict[str, dict[str, float]] = {}
    for name, variant in variants.items():
        output = step(variant, upstream)
        gradient = variant[0].embedding.weight.grad
        found = {
            "largest_output_difference": float((output - expected).abs().max()),
            "largest_gradient_difference": float((gradient - expected_gradient).abs().max()),
        }
        if max(found.values()) > TOLERANCE:
            raise CEMGError(f"{name}: differs from edge_index by {max(found.values()):.1e}, more than {TOLERANCE:.0e}")
        differences[name] = found
    return differences


def measure(variants: dict[str, Variant], upstream: Tensor, repetitions: int, device: torch.device) -> dict[str, list[float]]:
    """Wall seconds of every step of each variant."""
    synchronize: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repetitions):
        for name, variant in variants.items():
            synchronize()
            started = time.perf_counter()
            step(variant, upstream)
            synchronize()
            seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    try:
        main()
    except CEMGError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
