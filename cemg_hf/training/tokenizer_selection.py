"""Which checkpoint of a tokenizer is kept, and when its training stops.

Every `evaluation_interval` epochs all items are coded with their nearest codes. Of the checkpoints whose
reconstruction error (with alignment: plus its weighted loss) is within `SELECTION_TOLERANCE` of the lowest seen, the one with the
highest mean perplexity per level is kept; equal perplexities are decided by the lower collision rate. One checkpoint is kept at a
time: a newcomer is compared with it, and takes its place where that one fell out of tolerance. Training stops after
`patience` evaluations in a row that did not change the checkpoint kept. All items are training items: the tokenizer codes a known
catalogue, and validation or test *interactions* never reach it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..models.cemg.modeling_rqvae import CEMGRQVAE
from .epoch_checkpoint import State, prefixed, under

SELECTION_TOLERANCE = 0.01


class Selection:
    """The checkpoint rule and early stopping.

    `neighbours` are the weights of the `num_neighbours` checkpoints evaluated just before the one kept, the latest last, and where
    there are fewer, of those just after it.
    """

    def __init__(self, patience: int, num_neighbours: int = 0) -> None:
        self.patience = patience
        self.num_neighbours = num_neighbours
        self.neighbours: list[dict[str, Tensor]] = []
        self.recent: deque[dict[str, Tensor]] = deque(maxlen=num_neighbours)
        self.history: list[dict[str, Any]] = []
        self.lowest = math.inf
        self.waited = 0
        self.kept: tuple[float, tuple[float, float]] | None = None
        self.state: dict[str, Tensor] = {}

    def offer(self, model: CEMGRQVAE, epoch: int, metrics: dict[str, Any]) -> bool:
        """Consider the model as it is; True when training should stop."""
        self.history.append({"epoch": epoch, **metrics})
        error = metrics["reconstruction_error"] + metrics.get("alignment", 0.0)
        self.lowest = min(self.lowest, error)
        self.waited += 1
        limit = self.lowest * (1 + SELECTION_TOLERANCE)
        quality = (float(np.mean([level["perplexity"] for level in metrics["levels"]])), -metrics["collision_rate"])
        if self.kept is None or self.kept[0] > limit or (error <= limit and quality > self.kept[1]):
            self.kept, self.waited = (error, quality), 0
            self.state, self.neighbours = _weights(model), list(self.recent)
        elif len(self.neighbours) < self.num_neighbours:
            self.neighbours.append(_weights(model))
        if self.num_neighbours:
            self.recent.append(_weights(model))
        return bool(self.patience) and self.waited >= self.patience

    def restore(self, model: CEMGRQVAE) -> None:
        model.load_state_dict(self.state)

    def as_state(self) -> State:
        """Everything offered so far counts for, for `from_state`."""
        tensors = prefixed("kept", self.state)
        for name, weights in {"neighbours": self.neighbours, "recent": self.recent}.items():
            for number, one in enumerate(weights):
                tensors |= prefixed(f"{name}.{number}", one)
        values = {"history": self.history, "lowest": self.lowest, "waited": self.waited, "kept": self.kept}
        return State(tensors, values | {"neighbours": len(self.neighbours), "recent": len(self.recent)})

    def from_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Stand where the selection stood that gave these."""
        self.state = under("kept", tensors)
        self.neighbours = [under(f"neighbours.{number}", tensors) for number in range(values["neighbours"])]
        self.recent.extend(under(f"recent.{number}", tensors) for number in range(values["recent"]))
        self.history, self.lowest, self.waited = list(values["history"]), values["lowest"], values["waited"]
        self.kept = None if values["kept"] is None else (values["kept"][0], tuple(values["kept"][1]))


def _weights(model: CEMGRQVAE) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
