"""The package's constrained beam search against what else one could decode with: same model, inputs, dtype, threads and batch.

Against transformers' `generate` with the package's vectorised logits processor, and with transformers' own prefix processor over nested
dictionaries, as most published code does it. In single precision all must write the same lists (but for items whose scores are
equal to 1e-4), or nothing is reported. Variants take turns in every repetition, so that a busy machine slows all of them alike.

    OMP_NUM_THREADS=2 python benchmarks/constrained_decoding.py

`flop_share` says how far from the machine's limit a search is: the floating point operations of its matrix products per second, as a
share of what one large matrix product reaches in the same run.
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
from bars import draw_bars
from random_generators import NETWORK, random_codes, random_generator, random_histories
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import BatchEncoding, LogitsProcessor
from transformers import PrefixConstrainedLogitsProcessor as TransformersPrefixProcessor

from cemg_hf import CEMGConfig, CEMGForConditionalGeneration
from cemg_hf.artefacts import result_envelope, write_json
from cemg_hf.errors import CEMGError

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "constrained_decoding.json"
SEARCH, PROCESSOR, NESTED = "cemg", "generate, vectorised processor", "generate, prefix function over dictionaries"
COLUMNS = {
    "ms per batch": "ms",
    "users/s": "users_per_second",
    "times as fast as generate": "speedup",
    "same lists": "same_lists",
    "largest score difference": "score_difference",
    "GFLOP": "gflop",
    "share of peak FLOP/s": "flop_share",
}
TOLERANCE = 1e-4  # between sums of log-probabilities in single precision
Lists = tuple[Tensor, Tensor]
"""Items (B, W) and scores (B, W)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--codebook-size", type=int, default=256)
    parser.add_argument("--users", type=int, default=32, help="batch size")
    parser.add_argument("--beams", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--slow-repetitions", type=int, default=1, help="of the prefix function, which is slow")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    arguments = parser.parse_args()
    started = time.perf_counter()
    dtype = getattr(torch, arguments.dtype)
    model = random_generator(
        random_codes(arguments.items, arguments.codebook_size, arguments.seed), arguments.codebook_size, arguments.seed
    )
    model = model.to(dtype).to(arguments.device)
    inputs = random_histories(model, arguments.users, arguments.seed)
    peak = peak_flops(dtype, arguments.device)
    metrics: dict[str, Any] = {}
    for beams in arguments.beams:
        for name, values in compare(model, inputs, beams, arguments, peak).items():
            metrics[f"{beams} beams, {name}"] = values
            print(f"{beams} beams, {name}: {values}", flush=True)
    envelope = result_envelope(
        metrics,
        command=shlex.join(["python", *sys.argv]),
        seeds=[arguments.seed],
        seconds=time.perf_counter() - started,
        columns=COLUMNS,
        network=NETWORK,
        peak_gflops=peak / 1e9,
        threads=torch.get_num_threads(),
        settings={key: str(value) for key, value in vars(arguments).items()},
    )
    write_json(arguments.output, envelope)
    panels: dict[str, list[tuple[str, float]]] = {}
    for name, values in metrics.items():
        beams_label, _, variant = name.partition(", ")
        panels.setdefault(beams_label, []).append((variant, values["ms"]))
    draw_bars(arguments.output.with_suffix(".png"), panels, "ms per batch", "ms")


def compare(
    model: CEMGForConditionalGeneration, inputs: BatchEncoding, beams: int, arguments: argparse.Namespace, peak: float
) -> dict[str, dict[str, Any]]:
    """Every variant at one number of beams: verified against the package's search, then timed."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    allowed_tokens = nested_dictionary_function(tokenizer.item_tokens)
    variants: dict[str, Callable[[], Lists]] = {
        SEARCH: lambda: model.rank(inputs["input_ids"], inputs["attention_mask"], beams),
        PROCESSOR: lambda: generate(model, inputs, beams, logits_processor=[model.prefix_constraint()]),
        NESTED: lambda: generate(
            model, inputs, beams, logits_processor=[LevelSoftmax(model.config), TransformersPrefixProcessor(allowed_tokens, beams)]
        ),
    }
    found = {name: run() for name, run in variants.items()}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(arguments.repetitions):
        for name, run in variants.items():
            if name == NESTED and repetition >= arguments.slow_repetitions:
                continue
            seconds[name].append(timed(run, arguments.device))
    with FlopCounterMode(display=False) as counter:
        variants[SEARCH]()
    results: dict[str, dict[str, Any]] = {}
    for name, values in seconds.items():
        median = statistics.median(values)
        items, scores = found[name]
        results[name] = {
            "ms": 1e3 * median,
            "users_per_second": len(items) / median,
            "speedup": statistics.median(seconds[PROCESSOR]) / median,
            "same_lists": float((items == found[SEARCH][0]).all(1).double().mean()),
            "score_difference": float((scores - found[SEARCH][1]).abs().max()),
            "all_seconds": values,
        }
    if arguments.dtype == "float32":
        for name, result in results.items():
            if not equal_but_for_ties(found[name], found[SEARCH]):
                raise CEMGError(f"{beams} beams, {name}: other lists than the package's ({result})")
    flops = counter.get_total_flops()
    results[SEARCH] |= {"gflop": flops / 1e9, "flop_share": flops / statistics.median(seconds[SEARCH]) / peak}
    return results


def equal_but_for_ties(mine: Lists, other: Lists) -> bool:
    """Whether two searches found the same scores and, up to the order of items whose scores are closer than single precision tells, the
    same items; at the end of a list such an item may miss.
    """
    items, scores = mine
    missing = ~(items.unsqueeze(2) == other[0].unsqueeze(1)).any(2)
    clear = scores > scores[:, -1:] + TOLERANCE
    return bool((scores - other[1]).abs().max() <= TOLERANCE) and not bool((missing & clear).any())


def generate(model: CEMGForConditionalGeneration, inputs: BatchEncoding, beams: int, **constraint: Any) -> Lists:
    """transformers' own beam search, as items and Σ log p."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    out = model.generate(
        **inputs, num_beams=beams, num_return_sequences=beams, return_dict_in_generate=True, output_scores=True, **constraint
    )
    config = model.config
    starts = config.first_code_id + config.codebook_size * torch.arange(config.num_levels, device=out.sequences.device)
    items = model.trie.leaf_items[model.trie.walk(out.sequences[:, 1:] - starts)]
    return items.view(-1, beams).long(), out.sequences_scores.view(-1, beams)


class LevelSoftmax(LogitsProcessor):
    """log p over the K codes of the level, as the package scores; the prefix function masks what comes of it."""

    def __init__(self, config: CEMGConfig) -> None:
        self.config = config

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        first = self.config.first_code_id + (input_ids.shape[1] - 1) * self.config.codebook_size
        scores = scores.float().clone()
        level = slice(first, first + self.config.codebook_size)
        scores[:, level] = scores[:, level].log_softmax(-1)
        return scores


def nested_dictionary_function(item_tokens: Tensor) -> Callable[[int, Tensor], list[int]]:
    """A `prefix_allowed_tokens_fn` over a trie of dictionaries."""
    root: dict[int, Any] = {}
    for row in item_tokens.tolist():
        node = root
        for token in row:
            node = node.setdefault(token, {})

    def allowed(_: int, written: Tensor) -> list[int]:
        node = root
        for token in written[1:].tolist():
            node = node.get(token, {})
        return list(node) or [1]  # transformers wants one token at least; a beam that left the catalogue is at −inf already

    return allowed


def timed(run: Callable[[], object], device: str) -> float:
    synchronise(device)
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def peak_flops(dtype: torch.dtype, device: str, size: int = 2048, repetitions: int = 8) -> float:
    """Floating point operations per second of the best of some large matrix products."""
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    fastest = min(timed(lambda: left @ right, device) for _ in range(repetitions))
    return 2 * size**3 / fastest


if __name__ == "__main__":
    main()
