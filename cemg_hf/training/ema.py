"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """θ̄ ← β_t θ̄ + (1 − β_t) θ after every step, with β_t = min(β, (1 + t) / (10 + t)) so that the initial weights are soon forgotten.

    Args:
        model: the model whose trainable parameters are averaged.
        decay: β in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.names, self.parameters = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad), strict=True)
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self.averages, list(self.parameters), step)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Make the averages the model's weights."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.copy_(average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averages inside the block and its own weights, bit for bit, after it."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, weights in zip(self.parameters, own, strict=True):
                    parameter.copy_(weights)

    def save(self, path: Path) -> None:
        save_file(dict(zip(self.names, self.averages, strict=True)), path)

    def load(self, path: Path) -> None:
        stored = load_file(path)
        for name, average in zip(self.names, self.averages, strict=True):
            average.copy_(stored[name])
