"""Settings of the service: how requests are batched, how long they wait, how large they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from ..errors import CEMGError

AT_LEAST_ZERO = ("max_wait_ms", "drain_seconds", "new_item_dense", "new_item_likelihood")


@dataclass(frozen=True)
class ServingConfig:
    """Settings of the service."""

    max_batch_size: int = field(default=64, metadata={"help": "Most histories in one pass of the model."})
    max_wait_ms: float = field(default=2.0, metadata={"help": "How long an idle model waits for a batch to fill, in milliseconds."})
    queue_size: int = field(default=1024, metadata={"help": "Most histories that wait for the model; more are answered 429."})
    deadline_seconds: float = field(default=10.0, metadata={"help": "A request that has no answer by then gets 504."})
    drain_seconds: float = field(
        default=1.0, metadata={"help": "From SIGTERM on, how long new requests are answered 503 before the port closes."}
    )
    max_history: int = field(default=1000, metadata={"help": "Most item ids in a history."})
    max_k: int = field(default=100, metadata={"help": "Longest list of recommendations."})
    max_beams: int = field(default=200, metadata={"help": "Most beams a request may ask for."})
    max_filter: int = field(default=10_000, metadata={"help": "Most item ids in allowed_items and in denied_items."})
    max_requests: int = field(default=256, metadata={"help": "Most requests in one call of /recommend/batch."})
    max_body_mb: float = field(default=16.0, metadata={"help": "Largest body of a request, in megabytes."})
    new_item_boost: float | None = field(default=None, metadata={"help": "As in `cemg recommend`, for all requests."})
    new_item_dense: float = field(default=0.0, metadata={"help": "As in `cemg recommend`, for all requests; needs the boost."})
    new_item_likelihood: float = field(default=1.0, metadata={"help": "As in `cemg recommend`, for all requests; needs the boost."})

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is None:
                continue
            if not math.isfinite(value):
                raise CEMGError(f"{entry.name}: must be a finite number, got {value}")
            if entry.name in AT_LEAST_ZERO and value < 0:
                raise CEMGError(f"{entry.name}: must be at least 0, got {value}")
            if entry.name not in (*AT_LEAST_ZERO, "new_item_boost") and value <= 0:
                raise CEMGError(f"{entry.name}: must be greater than 0, got {value}")
        if self.max_requests > self.queue_size:
            raise CEMGError(f"max_requests: {self.max_requests} requests of one call never fit a queue_size of {self.queue_size}")
        if self.max_beams < self.max_k:
            raise CEMGError(f"max_beams: {self.max_beams} beams cannot fill lists of max_k={self.max_k}; allow at least as many")
        if self.new_item_boost is None and (self.new_item_dense or self.new_item_likelihood != 1):
            raise CEMGError("new_item_dense and new_item_likelihood need new_item_boost; give it a number, 0 for no bonus")
