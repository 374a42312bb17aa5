"""What a trained system holds in memory, and what a request takes on top of that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ..data import PreparedDataset
from ..errors import CEMGError
from .evaluate import load_generator
from .latency import answers
from .measurement import measured_once, measurement_manifest
from .sequential import NetworkRanker

if TYPE_CHECKING:
    from ..recipes import Recipe

logger = logging.getLogger(__name__)

ALLOCATION = "[memory]"
"""Name that torch's profiler gives to what its allocators hand out and take back."""


@dataclass(frozen=True)
class FootprintConfig:
    """Which requests are looked at."""

    batch_sizes: tuple[int, ...] = field(default=(1, 64), metadata={"help": "Users who are answered at once."})
    k: int = field(default=10, metadata={"help": "Items per list, those of the history left out."})


def measure_footprint(recipe: Recipe, folders: Mapping[str, Path], output: Path, config: FootprintConfig | None = None) -> dict[str, int]:
    """Parameters and bytes of a trained network; read from `output` where they were measured on this machine already.

    Args:
        recipe: the experiment, a generator's or that of a network over whole items.
        folders: stage → folder of its finished run.
        output: folder to write.
        config: which requests (default: `FootprintConfig()`).

    Returns: `parameters` (a number); `weights_bytes`, parameters and buffers; `index_bytes`, what the search goes over beside them: the
    trie of codes and the tokens of items, or the vectors of all items for exact search; "batch_<size>_bytes", the most that the tensors
    of one request of so many users hold at once, over what was held before.

    Raises:
        CEMGError: a system without a network.
        NothingToMeasure: the run's data set or model is missing.
        OutOfTime: it was not measured yet, and the time of this call is used up.
    """
    config = FootprintConfig() if config is None else config

    def measure() -> dict[str, int]:
        data = PreparedDataset.load(folders["prepare"])
        cases = data.evaluation_cases("test")
        network, index = _parts(recipe, folders, data)
        held = [*network.parameters(), *network.buffers()]
        found = {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "weights_bytes": sum(tensor.nbytes for tensor in held),
            "index_bytes": index,
        }
        answer = answers(recipe, folders, data, cases, config.k)
        generator = np.random.default_rng(recipe.seed)
        for size in config.batch_sizes:
            rows = generator.choice(len(cases), min(size, len(cases)), replace=False)
            answer(rows)  # what is made once and kept is no part of a request
            found[f"batch_{size}_bytes"] = peak_bytes(partial(answer, rows))
        logger.info("footprint of %s: %s", recipe.system, found)
        return found

    settings = asdict(config) | {"num_beams": recipe.evaluate.num_beams}
    return measured_once(output, measurement_manifest("footprint", recipe, folders, settings), measure)


def _parts(recipe: Recipe, folders: Mapping[str, Path], data: PreparedDataset) -> tuple[nn.Module, int]:
    """The network and the bytes of its index."""
    if recipe.family == "cemg":
        model = load_generator(folders["finetune"], data)
        assert model.tokenizer is not None
        tokens = {model.tokenizer.item_tokens, model.tokenizer.history_tokens}  # one tensor, unless histories show several streams
        return model, model.trie.nbytes + sum(tensor.nbytes for tensor in tokens)
    if recipe.family != "sequential":
        raise CEMGError(f"{recipe.system}: has no network whose memory could be measured; choose cemg, mscgrec, tiger, letter or sasrec")
    network = NetworkRanker.load(folders["train"], data).model
    with torch.inference_mode():
        return network, network.item_vectors().nbytes


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most that tensors made in `call` hold at once, in bytes, on the device in use: a GPU's where there is one, else the CPU's."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    # The process's own peak says little: its allocator keeps what was freed, and the libraries are most of it.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == ALLOCATION]
    return max(accumulate((event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())), initial=0))
