"""What the size of the catalogue costs the constrained search: random unique codes, 10 thousand to 10 million items.

Per catalogue: seconds to build the trie, its bytes per item, the time of everything in a search that is not the network (trie, masks,
softmax, choice of beams; measured with the network's logits given), its share of a whole search, and users per second end to end. Of that
share the mask is a part. "skewed" codes are drawn by Zipf's law on every level, so that nodes have very unequal numbers of children and
the padding is longer; real catalogues lie between the two.

    OMP_NUM_THREADS=2 python benchmarks/catalogue_scale.py
    OMP_NUM_THREADS=2 python benchmarks/catalogue_scale.py --static /path/to/static-constraint-decoding

With `--static`, a checkout of github.com/youtube/static-constraint-decoding (STATIC, arXiv 2602.22647), its index is built and its PyTorch
search runs on the same logits in turns with the package's; both must write the same codes.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from constrained_decoding import timed
from random_generators import LEVELS, NETWORK, random_codes, random_generator, random_histories
from torch import Tensor, nn

from cemg_hf import CEMGForConditionalGeneration, ItemTrie, constrained_beam_search
from cemg_hf.artefacts import result_envelope, write_json
from cemg_hf.errors import CEMGError

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "catalogue_scale.json"
COLUMNS = {
    "build, s": "build_seconds",
    "bytes per item": "bytes_per_item",
    "all but the network, ms": "selection_ms",
    "share of a search": "selection_share",
    "search, ms": "search_ms",
    "users/s": "users_per_second",
    "STATIC, ms": "static_ms",
    "STATIC build, s": "static_build_seconds",
    "STATIC bytes per item": "static_bytes_per_item",
}
SMALL = 1000  # items of the catalogue that lends its model: the network does not depend on the catalogue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--skewed-items", type=int, nargs="*", default=[100_000])
    parser.add_argument("--codebook-size", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--users", type=int, default=32, help="batch size")
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--static", type=Path, help="checkout of youtube/static-constraint-decoding")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    arguments = parser.parse_args()
    if arguments.static:
        sys.path.insert(0, str(arguments.static))
    started = time.perf_counter()
    metrics = {}
    for size in arguments.codebook_size:
        model = random_generator(random_codes(SMALL, size, arguments.seed), size, arguments.seed).to(arguments.device)
        for items, skewed in [*((items, False) for items in arguments.items), *((items, True) for items in arguments.skewed_items)]:
            name = f"{items:,} items, K {size}{', skewed' * skewed}"
            metrics[name] = measure(model, items, skewed, arguments)
            print(f"{name}: {metrics[name]}", flush=True)
    envelope = result_envelope(
        metrics,
        command=shlex.join(["python", *sys.argv]),
        seeds=[arguments.seed],
        seconds=time.perf_counter() - started,
        columns=COLUMNS,
        network=NETWORK,
        threads=torch.get_num_threads(),
        users=arguments.users,
        beams=arguments.beams,
    )
    write_json(arguments.output, envelope)
    plot(metrics, arguments.output.with_suffix(".png"), arguments.beams)


@torch.inference_mode()
def measure(model: CEMGForConditionalGeneration, items: int, skewed: bool, arguments: argparse.Namespace) -> dict[str, Any]:
    """One catalogue."""
    size, users, beams, device = model.config.codebook_size, arguments.users, arguments.beams, arguments.device
    codes = random_codes(items, size, arguments.seed, skewed=skewed)
    started = time.perf_counter()
    trie = ItemTrie(codes, size)
    built = time.perf_counter() - started
    trie = trie.to(device)
    inputs = random_histories(model, users, arguments.seed)
    logits = GivenLogits(users, min(beams, trie.num_nodes(1)), beams, size, device)
    variants: dict[str, Callable[[], Any]] = {
        "search": lambda: model.rank(inputs["input_ids"], inputs["attention_mask"], beams, trie=trie),
        "selection": lambda: constrained_beam_search(logits.next_level, trie, users, beams),
    }
    static = StaticSearch(codes, logits, arguments) if arguments.static else None
    if static is not None:
        variants["static"] = static.search
        expected = static.search().cpu()
        found = codes[variants["selection"]()[0].cpu()]
        same = [keys_of(codes, size).sort(1).values for codes in (found, expected)]
        if not torch.equal(*same):
            raise CEMGError(f"{items} items, K {size}: STATIC writes other items than the package")
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():  # warms up
        run()
    for _ in range(arguments.repetitions):
        for name, run in variants.items():
            seconds[name].append(timed(run, device))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "build_seconds": built,
        "bytes_per_item": trie.nbytes / items,
        "selection_ms": 1e3 * median["selection"],
        "selection_share": median["selection"] / median["search"],
        "search_ms": 1e3 * median["search"],
        "users_per_second": users / median["search"],
        "max_children": trie.max_children,
    }
    if static is not None:
        result |= {
            "static_ms": 1e3 * median["static"],
            "static_build_seconds": static.built,
            "static_bytes_per_item": static.nbytes / items,
        }
    return result


def keys_of(codes: Tensor, size: int) -> Tensor:
    """(B, W) one number per item of codes (B, W, M)."""
    return (codes.long() * size ** torch.arange(codes.shape[-1] - 1, -1, -1)).sum(-1)


class GivenLogits(nn.Module):
    """Logits that cost nothing: (B, 1, K) for the first level, then (B, W, K), the same in every search."""

    def __init__(self, users: int, first: int, beams: int, size: int, device: str) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.tables = [torch.randn(users, width, size, generator=draw).to(device) for width in (1, first, *[beams] * (LEVELS - 2))]
        self.calls = 0

    def next_level(self, level: int, parents: Tensor, codes: Tensor) -> Tensor:
        return self.tables[level]

    def forward(self, tokens: Tensor) -> Tensor:
        """As STATIC asks for them: (B · W, 1, K)."""
        logits = self.tables[self.calls % LEVELS]
        self.calls += 1
        return logits.flatten(0, 1).unsqueeze(1)


class StaticSearch:
    """STATIC's index and PyTorch search, two dense levels, on given logits."""

    def __init__(self, codes: Tensor, logits: GivenLogits, arguments: argparse.Namespace) -> None:
        from static_decoding.csr_utils import build_static_index
        from static_decoding.decoding_pt import sparse_transition_torch

        size = logits.tables[0].shape[-1]
        started = time.perf_counter()
        key = torch.zeros(len(codes), dtype=torch.int64)
        for column in codes.T:
            key = key * size + column
        index = build_static_index(codes[key.argsort()].numpy(), size, 2)
        self.built = time.perf_counter() - started
        packed, pointers, branches, start, dense, states = index
        self.nbytes = sum(array.nbytes for array in (packed, pointers, start, dense, states))
        tensors = [torch.from_numpy(array).to(arguments.device) for array in (packed, pointers, start, dense, states)]
        self.arguments = (logits, arguments.users, arguments.beams, min(arguments.beams, size), 0, LEVELS, size, branches, *tensors)
        self.device = torch.device(arguments.device)
        self.run = sparse_transition_torch

    def search(self) -> Tensor:
        return self.run(*self.arguments, self.device)


def plot(metrics: dict[str, dict[str, Any]], path: Path, beams: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {"build_seconds": "seconds to build", "bytes_per_item": "bytes per item", "search_ms": f"ms per search, {beams} beams"}
    figure, axes = pyplot.subplots(1, len(panels), figsize=(11, 3.4), layout="constrained")
    groups: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for name, values in metrics.items():
        if name.endswith("skewed"):
            continue
        items, _, size = name.partition(" items, ")
        groups.setdefault(size, []).append((int(items.replace(",", "")), values))
    for panel, (key, label) in zip(axes, panels.items(), strict=True):
        for colour, (size, rows) in zip(("#2a6f97", "#c8553d"), groups.items(), strict=False):
            counts = [count for count, _ in rows]
            panel.plot(counts, [values[key] for _, values in rows], marker="o", color=colour, label=size)
            if key == "search_ms":
                selection = [values["selection_ms"] for _, values in rows]
                panel.plot(counts, selection, marker=".", linestyle=":", color=colour, label=f"{size}, without the network")
        panel.set_xscale("log")
        panel.set_xlabel("items")
        panel.set_title(label, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes[1:]:
        panel.set_ylim(bottom=0)
    axes[0].set_yscale("log")
    axes[-1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
