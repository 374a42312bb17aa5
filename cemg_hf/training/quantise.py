"""All items through a frozen RQ-VAE, a batch of rows at a time: nearest codes, latents, and the figures a tokenizer is judged by.

Nothing of the size N × d is held in memory. Features are read by rows from where they lie. Sums of errors and variances run in double
precision. Of the N × D latents, which the resolution of collisions reads here and there, those of a large catalogue go to a temporary
file in single precision: a second pass for the items that collide would cost the whole forward pass again, and half precision would
reorder near code vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import CEMGError
from ..evaluation.codes import code_usage
from ..features.store import FeatureStore, scratch_array
from ..models.cemg.assignment_cemg import collision_rate
from ..models.cemg.modeling_rqvae import CEMGRQVAE, CONTENT_MODALITIES, FusionOutput

RESIDENT_BYTES = 2**29
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Batch = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Modality -> features (B, d_m) float32, and modality -> mask (B,) bool."""


class FeatureBatches:
    """Rows of the features of N items, as tensors on a device.

    Features of up to `resident_bytes` in all are put on the device once; larger ones stay where they are (a memory map on disk, an array
    in memory) and only the rows asked for are read.

    Args:
        vectors: modality -> (N, d_m) float array or memory map.
        masks: modality -> (N,) bool, True where the vector is real.
        device: where batches go.
        resident_bytes: bound on what is kept on the device, counted in single precision.

    Raises:
        CEMGError: no modality, no items, or shapes that do not belong together.
    """

    def __init__(
        self,
        vectors: Mapping[str, np.ndarray],
        masks: Mapping[str, np.ndarray],
        device: str | torch.device = "cpu",
        resident_bytes: int = RESIDENT_BYTES,
    ) -> None:
        if not vectors:
            raise CEMGError("vectors: no modality given; encode at least one of image, text, collaborative")
        self.device = torch.device(device)
        self._count = len(next(iter(vectors.values())))
        for name, values in vectors.items():
            if values.ndim != 2 or len(values) != self._count:
                raise CEMGError(f"vectors[{name}]: shape {values.shape}, expected ({self._count}, dimension)")
            if name not in masks or np.shape(masks[name]) != (self._count,):
                raise CEMGError(f"masks[{name}]: missing or not of shape ({self._count},)")
        self.dimensions = {name: int(values.shape[1]) for name, values in vectors.items()}
        self.masks = {name: torch.tensor(np.asarray(masks[name]), dtype=torch.bool, device=self.device) for name in vectors}
        self.resident = 4 * self._count * sum(self.dimensions.values()) <= resident_bytes
        self._arrays: dict[str, np.ndarray] = {} if self.resident else dict(vectors)
        self._tensors = {name: _to_device(values[:], self.device) for name, values in vectors.items()} if self.resident else {}

    @classmethod
    def from_store(cls, store: FeatureStore, names: Iterable[str] | None = None, resident_bytes: int = RESIDENT_BYTES) -> FeatureBatches:
        """Modalities of a store, on the CPU: those of `names`, all where None."""
        chosen = {name: store.modalities[name] for name in (store.modalities if names is None else names)}
        vectors, masks = ({name: getattr(one, part) for name, one in chosen.items()} for part in ("vectors", "mask"))
        return cls(vectors, masks, resident_bytes=resident_bytes)

    def __len__(self) -> int:
        """N."""
        return self._count

    def batch(self, rows: Tensor | slice) -> Batch:
        """Features and masks of `rows`, in their order: row numbers (B,), repeats allowed, or a slice."""
        masks = {name: mask[rows] for name, mask in self.masks.items()}
        if self.resident:
            return {name: values[rows] for name, values in self._tensors.items()}, masks
        if isinstance(rows, slice):
            return {name: _to_device(values[rows], self.device) for name, values in self._arrays.items()}, masks
        # In the order of the file, every row once; then as asked for.
        ordered, inverse = np.unique(rows.cpu().numpy(), return_inverse=True)
        place = torch.from_numpy(inverse).to(self.device)
        return {name: _to_device(values[ordered], self.device)[place] for name, values in self._arrays.items()}, masks

    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        """Sorted numbers (min(size, N),) of rows drawn without replacement; all rows, nothing drawn, where size ≥ N.

        `generator` is one of the CPU; torch's global one where None.
        """
        if size >= self._count:
            return torch.arange(self._count, device=self.device)
        return torch.randperm(self._count, generator=generator)[:size].sort().values.to(self.device)


def projection_tensors(store: FeatureStore, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Modality -> the parts of the PCA that leads from raw vectors to those of the store, as a tokenizer carries them."""
    parts = ("mean", "components", "scale")
    return {name: {part: torch.from_numpy(np.array(getattr(store.modalities[name].projection, part))) for part in parts} for name in names}


@dataclass(frozen=True)
class Quantised:
    """Every item through the frozen model, on the CPU. `latent` is None where it was not kept."""

    codes: Tensor = field(metadata={"help": "(N, M) int64, nearest codes; they may collide."})
    latent: Tensor | None = field(metadata={"help": "(N, D) float32 encoder outputs z; a memory map of a temporary file when large."})
    alpha: Tensor = field(metadata={"help": "(N, 2) float32 weights of image and text, 0 where absent."})
    squared_error: float = field(metadata={"help": "Reconstruction loss over all items."})
    variance: float = field(metadata={"help": "Reconstruction loss of predicting every half of x by its mean over the items that have it."})
    metrics: dict[str, Any] = field(
        metadata={"help": "reconstruction_error (a share of the variance), levels (used_codes, perplexity of each), collision_rate."}
    )


@torch.no_grad()
def quantise(
    rqvae: CEMGRQVAE, items: FeatureBatches, *, batch_size: int = 8192, keep_latent: bool = True, progress: bool = False
) -> Quantised:
    """Nearest-code assignment of all items by the model as it is, and the figures checkpoints are chosen by.

    Args:
        rqvae: on the device of `items`; works in eval mode and is left in the mode it was in.
        items: the features of N items.
        batch_size: rows held at once.
        keep_latent: False saves the N × D latents, which only the resolution of collisions needs.
        progress: show a bar.

    Raises:
        CEMGError: values that are not finite, or features that the model was not built for.
    """
    if batch_size < 1:
        raise CEMGError(f"batch_size: {batch_size} is not a positive integer")
    config, count = rqvae.config, len(items)
    if items.dimensions != {name: config.modality_dims.get(name) for name in items.dimensions}:
        raise CEMGError(
            f"features: dimensions {items.dimensions}, the RQ-VAE was built for {config.modality_dims}; encode or tokenize again"
        )
    codes = torch.empty(count, config.num_levels, dtype=torch.int64)
    alpha = torch.empty(count, len(CONTENT_MODALITIES))
    latents = torch.from_numpy(scratch_array((count, config.latent_dim))) if keep_latent else None
    errors, halves = _Errors(), _Variance()
    was_training = rqvae.training
    rqvae.eval()
    try:
        with tqdm(total=count, desc="quantise", unit="item", unit_scale=True, disable=not progress) as bar:
            for start in range(0, count, batch_size):
                rows = slice(start, min(start + batch_size, count))
                features, masks = items.batch(rows)
                fused = rqvae.fuse(features, masks)
                latent = rqvae.encoder(fused.x)
                if not bool(torch.isfinite(latent).all()):
                    raise CEMGError(_what_is_not_finite(features, masks, start))
                found = rqvae.quantise(latent)
                errors.add(rqvae.decode(found.quantised), fused)
                halves.add(fused)
                codes[rows], alpha[rows] = found.codes.cpu(), fused.alpha.float().cpu()
                if latents is not None:
                    latents[rows] = latent.cpu()
                bar.update(rows.stop - rows.start)
    finally:
        rqvae.train(was_training)
    squared_error, variance = errors.mean(), halves.mean()
    metrics = {
        "reconstruction_error": squared_error / max(variance, 1e-12),
        "levels": [level_report(column, config.codebook_size) for column in codes.T],
        "collision_rate": collision_rate(codes),
    }
    return Quantised(codes, latents, alpha, squared_error, variance, metrics)


@torch.no_grad()
def content_vectors(rqvae: CEMGRQVAE, items: FeatureBatches, batch_size: int = 8192) -> Tensor | None:
    """(N, V) float16 content vectors of all items on the CPU; None where the model makes none."""
    if not rqvae.config.content_vector_dim:
        return None
    starts = range(0, len(items), batch_size)
    return torch.cat([rqvae.content_vectors(*items.batch(slice(start, start + batch_size))).half().cpu() for start in starts])


def level_report(codes: Tensor, size: int) -> dict[str, float]:
    """Share of a level's `size` codes that occur in codes (N,), and their perplexity; 1 of no codes."""
    return code_usage(torch.bincount(codes, minlength=size).cpu().numpy())


def alpha_report(alpha: Tensor) -> dict[str, Any]:
    """Spread of α (N, 2) over the items that have both content modalities; only their number where there are none."""
    both = alpha[(alpha > 0).all(1)].double().numpy()
    report: dict[str, Any] = {"items_with_both": len(both)}
    if len(both):
        for values, name in zip(both.T, CONTENT_MODALITIES, strict=True):
            quantiles = {f"{point:.2f}": float(value) for point, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}
            report[name] = {"mean": float(values.mean()), "std": float(values.std()), "quantiles": quantiles}
    return report


class _Errors:
    """`reconstruction_loss` over batches."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, reconstructed: Tensor, fused: FusionOutput) -> None:
        halves = (reconstructed - fused.x).square_().unflatten(1, (2, -1)).mean(2)
        self.total += float((halves * fused.present).cpu().double().sum())
        self.count += int(fused.present.sum())

    def mean(self) -> float:
        return self.total / max(self.count, 1)


class _Variance:
    """Mean squared distance of the halves of x from their own means, over batches (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.counts = [0, 0]
        self.means: list[Tensor] = []
        self.squares: list[Tensor] = []

    def add(self, fused: FusionOutput) -> None:
        width = fused.x.shape[1] // 2
        if not self.means:
            self.means = [torch.zeros(width, dtype=torch.float64) for _ in self.counts]
            self.squares = [torch.zeros(width, dtype=torch.float64) for _ in self.counts]
        for half, (values, given) in enumerate(zip(fused.x.split(width, dim=1), fused.present.T, strict=True)):
            size = int(given.sum())
            if not size:
                continue
            weight = given.to(values.dtype)[:, None]
            mean = (values * weight).sum(0) / size
            squares = ((values - mean) * weight).square_().sum(0).cpu().double()
            total, shift = self.counts[half] + size, mean.cpu().double() - self.means[half]
            self.means[half] += shift * (size / total)
            self.squares[half] += squares + shift.square() * (self.counts[half] * size / total)
            self.counts[half] = total

    def mean(self) -> float:
        return sum(float(squares.mean()) for squares in self.squares) / max(sum(self.counts), 1)


def _to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """float32 on the device; half precision travels as it is. A copy, unless `values` is a writable float32 array and stays on the CPU."""
    if values.dtype not in (np.float32, np.float16):
        values = values.astype(np.float32)
    if not values.flags.writeable:
        values = np.array(values)
    return torch.from_numpy(np.ascontiguousarray(values)).to(device).float()


def _what_is_not_finite(features: Mapping[str, Tensor], masks: Mapping[str, Tensor], start: int) -> str:
    for name, values in features.items():
        bad = (masks[name] & ~torch.isfinite(values).all(1)).nonzero()
        if len(bad):
            return f"vectors[{name}]: row {start + int(bad[0])} is not finite; mask it or encode it again"
    return "rqvae: its latents are not finite although the features are; train it again with a lower learning_rate"
