"""What every item encoder has in common: raw vectors with a mask, a description, and where its weights are looked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import torch

from ..errors import CEMGError
from .projection import ROWS_AT_ONCE
from .store import scratch_array


@dataclass(frozen=True)
class RawFeatures:
    """One modality of N items before projection.

    `vectors` (N, D) float32 has zero rows where `mask` (N,) is False; the mask, not the zeros, says that an item lacks the modality.
    """

    vectors: np.ndarray
    mask: np.ndarray
    unreadable: Mapping[int, str] = field(
        default_factory=dict, metadata={"help": "Row and reason of content that is there but cannot be read."}
    )

    @classmethod
    def scattered(cls, n_items: int, rows: np.ndarray, vectors: np.ndarray, unreadable: Mapping[int, str] | None = None) -> RawFeatures:
        """Features of `n_items` items of which only `rows` have `vectors` (len(rows), D); large ones go to a temporary file."""
        full = scratch_array((n_items, vectors.shape[1]))
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            full[rows[part]] = vectors[part]
        mask = np.zeros(n_items, dtype=bool)
        mask[rows] = True
        return cls(full, mask, dict(unreadable or {}))


class ItemEncoder(Protocol):
    """Turns the content of items (rows of an items table) into raw vectors."""

    modality: str
    learns: bool
    """Whether `fit` must come before `encode`, and `save` writes files."""

    @property
    def dimension(self) -> int:
        """D, the width of the raw vectors."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything the raw vectors depend on besides the items: weights and settings."""
        ...

    def fit(self, items: pl.DataFrame, seed: int) -> None:
        """Learn what the encoder learns from the catalogue (nothing, for pretrained ones)."""
        ...

    def encode(self, items: pl.DataFrame, base: Path | None = None) -> RawFeatures:
        """Raw vectors of the items; relative image paths are taken from `base`."""
        ...

    def describe(self) -> dict[str, Any]:
        """Kind, name, settings, dimension, fingerprint and the names of the files `save` writes, as JSON values."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was learned from the catalogue into `folder` (nothing, for pretrained ones)."""
        ...


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise CEMGError(f"device = {name!r}: not a torch device; use auto, cpu or cuda") from error
