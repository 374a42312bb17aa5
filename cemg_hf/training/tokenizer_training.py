"""Training of the RQ-VAE: PCA start, k-means codebooks, moving-average updates, revival of dead codes, choice of the checkpoint.

Checkpoint rule. Every `evaluation_interval` epochs all items are coded with their nearest codes. Of the checkpoints whose
reconstruction error is within `SELECTION_TOLERANCE` of the lowest seen, the one with the highest mean perplexity per level is kept;
equal perplexities are decided by the lower collision rate. All items are training items: the tokenizer codes a known catalogue,
and validation or test *interactions* never reach it.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import CEMGError
from ..models.cemg.modeling_rqvae import (
    CEMGRQVAE,
    CONTENT_MODALITIES,
    CEMGRQVAEConfig,
    reconstruction_loss,
    squared_distances,
)
from .code_assignment import collision_rate

logger = logging.getLogger(__name__)

SELECTION_TOLERANCE = 0.01
ITEMS_PER_CODE = 20
KMEANS_ITERATIONS = 30


@dataclass
class TokenizerTrainingConfig:
    """Settings of the RQ-VAE and of its training; defaults of the paper where it gives them."""

    dimension: int = field(default=768, metadata={"help": "d: the dimension every modality is projected to."})
    num_levels: int = field(default=4, metadata={"help": "M: codes per item."})
    codebook_size: int = field(default=512, metadata={"help": "K: codes per level; with fewer than 20·K items choose a smaller K."})
    collaborative_weight: float = field(
        default=1.0, metadata={"help": "Factor on the collaborative half of x; below 1 the codes follow content more closely."}
    )
    lambda_quant: float = field(default=0.25, metadata={"help": "λ_q: weight of the quantisation loss."})
    lambda_div: float = field(default=0.01, metadata={"help": "λ_d: weight of the diversity loss."})
    commitment: float = field(default=0.25, metadata={"help": "β: weight of the commitment term inside the quantisation loss."})
    hidden_dims: list[int] = field(
        default_factory=lambda: [512], metadata={"help": "Hidden layer sizes of the encoder; the decoder mirrors them."}
    )
    latent_dim: int = field(default=128, metadata={"help": "Dimension of z and of the code vectors."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout after each hidden layer."})
    fusion: str = field(default="guided", metadata={"help": "guided (eq. 2) or equal (mean of the content modalities present)."})
    train_projections: bool = field(
        default=False, metadata={"help": "Also train the projections d_m → d; otherwise they stay the isometries they start as."}
    )
    epochs: int = field(default=30, metadata={"help": "Passes over the items with quantisation."})
    warmup_epochs: int = field(
        default=2, metadata={"help": "Passes of the autoencoder without quantisation before k-means sets the codebooks."}
    )
    batch_size: int = field(default=512, metadata={"help": "Items per step; at most an eighth of the items."})
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Peak learning rate of AdamW; 5 % linear warm-up, then cosine decay to 0."}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of AdamW."})
    codebook_decay: float = field(default=0.98, metadata={"help": "Decay per step of the moving averages behind the code vectors."})
    evaluation_interval: int = field(
        default=5, metadata={"help": "Epochs between evaluations of reconstruction, codebook use and collisions."}
    )
    patience: int = field(
        default=0,
        metadata={"help": "Stop after this many evaluations in a row without a lower reconstruction error; 0: never (most is won late)."},
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluation_interval"):
            if getattr(self, name) < 1:
                raise CEMGError(f"{name}: {getattr(self, name)} is not a positive integer")
        for name in ("warmup_epochs", "patience", "lambda_quant", "lambda_div", "commitment", "weight_decay"):
            if getattr(self, name) < 0:
                raise CEMGError(f"{name}: {getattr(self, name)} is negative")
        if not 0 <= self.codebook_decay < 1:
            raise CEMGError(f"codebook_decay: {self.codebook_decay} is outside [0, 1)")
        if not self.learning_rate > 0:
            raise CEMGError(f"learning_rate: {self.learning_rate} is not positive")

    def model_config(self, modality_dims: Mapping[str, int]) -> CEMGRQVAEConfig:
        """The RQ-VAE's own configuration for modalities of these input dimensions."""
        shared = {entry.name for entry in fields(CEMGRQVAEConfig)} & {entry.name for entry in fields(self)}
        try:
            return CEMGRQVAEConfig(modality_dims=dict(modality_dims), **{name: getattr(self, name) for name in sorted(shared)})
        except ValueError as error:
            raise CEMGError(str(error)) from error


def train_rqvae(
    vectors: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
    config: TokenizerTrainingConfig | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> tuple[CEMGRQVAE, dict[str, Any]]:
    """Train the RQ-VAE on all items.

    Args:
        vectors: modality -> (N, d_m) float array, centred, with mean squared row norm d_m over the rows present.
        masks: modality -> (N,) bool, True where the vector is real.
        config: settings; the defaults where None.
        seed: of every random choice. The caller's random state is left as it was.
        device: "cuda" where there is one, else "cpu", where None.

    Returns:
        The model in eval mode on the CPU, and a JSON-able report (see `tokenizer_report`) with `history` and `seconds`.

    Raises:
        CEMGError: empty or inconsistent arrays, vectors that are not finite, or more items than codes.
    """
    config = config or TokenizerTrainingConfig()
    count = _check(vectors, masks, config)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    started = time.perf_counter()
    with _seeded(seed, device):
        model = CEMGRQVAE(config.model_config({name: values.shape[1] for name, values in vectors.items()})).to(device)
        model.fusion.projections.requires_grad_(config.train_projections)
        data = _Items(vectors, masks, device)
        history = _train(model, data, count, config)
    model = model.cpu().eval()
    report = {**tokenizer_report(model, vectors, masks), "history": history, "seconds": round(time.perf_counter() - started, 2)}
    return model, report


def tokenizer_report(model: CEMGRQVAE, vectors: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Quality of a frozen RQ-VAE on all items.

    `levels`: per level `used_codes` (share of K) and `perplexity`; `collision_rate`; `reconstruction_error` as a share of the
    variance of x, beside `pca_error` of PCA to the same latent size without quantisation; `alpha`: mean, standard deviation and
    quantiles of the weight of each content modality over the items that have both.
    """
    data = _Items(vectors, masks, model.codebooks.device)
    found, metrics = _quantise_all(model.eval(), data)
    return {
        **metrics,
        "pca_error": _pca_error(found.x, found.present, model.config.latent_dim),
        "alpha": _alpha_report(found.alpha),
        "items": len(found.codes),
        "config": model.config.to_dict(),
    }


@dataclass
class _Items:
    """All items on the training device."""

    features: dict[str, Tensor]
    masks: dict[str, Tensor]

    def __init__(self, vectors: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray], device: torch.device) -> None:
        self.features = {name: torch.as_tensor(np.asarray(values, dtype=np.float32), device=device) for name, values in vectors.items()}
        self.masks = {name: torch.as_tensor(np.asarray(masks[name], dtype=bool), device=device) for name in vectors}

    def batch(self, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {name: values[rows] for name, values in self.features.items()}, {name: mask[rows] for name, mask in self.masks.items()}


@dataclass
class _Quantised:
    """Every item through the frozen model, on the CPU."""

    x: Tensor
    present: Tensor
    alpha: Tensor
    latent: Tensor
    codes: Tensor


class _MovingAverageCodebooks:
    """Code vectors as moving averages of the residuals they code (van den Oord et al. 2017, appendix A.1)."""

    def __init__(self, model: CEMGRQVAE, decay: float, items_per_batch: int) -> None:
        self.model, self.decay = model, decay
        size = model.codebooks.shape[1]
        self.start_count = items_per_batch / size
        self.counts = torch.full(model.codebooks.shape[:2], self.start_count, device=model.codebooks.device)
        self.sums = model.codebooks * self.start_count
        self.used = torch.zeros_like(self.counts)

    @torch.no_grad()
    def update(self, codes: Tensor, residuals: Tensor) -> None:
        """One step with codes (B, M) and residuals (B, M, D)."""
        levels, size, dimension = self.sums.shape
        flat = (codes + torch.arange(levels, device=codes.device) * size).ravel()
        counts = torch.bincount(flat, minlength=levels * size).to(self.counts).view(levels, size)
        sums = torch.zeros(levels * size, dimension, device=codes.device).index_add_(0, flat, residuals.detach().flatten(0, 1))
        self.used += counts
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums.view_as(self.sums), 1 - self.decay)
        self.model.codebooks.copy_(self.sums / self.counts.clamp_min(1e-6)[..., None])

    @torch.no_grad()
    def revive(self, latent: Tensor) -> int:
        """Move the codes that no item took since the last call to residuals drawn by their quantisation error; how many were moved.

        Levels follow each other, so that a level sees the residuals that the codes moved above it leave.
        """
        residual, revived = latent, 0
        for level, used in enumerate(self.used):
            codebook = self.model.codebooks[level]
            error = squared_distances(residual, codebook).amin(1).clamp_min(0)
            dead = (used == 0).nonzero().ravel()[: int((error > 0).sum())]
            if len(dead):
                drawn = residual[torch.multinomial(error.cpu(), len(dead)).to(residual.device)]
                self.model.set_codes(level, drawn, dead)
                self.counts[level, dead] = self.start_count
                self.sums[level, dead] = drawn * self.start_count
                revived += len(dead)
            residual = residual - self.model.codebooks[level][squared_distances(residual, self.model.codebooks[level]).argmin(1)]
        self.used.zero_()
        return revived


def _train(model: CEMGRQVAE, data: _Items, count: int, config: TokenizerTrainingConfig) -> list[dict[str, Any]]:
    """Leave the selected checkpoint in `model`; return the evaluations."""
    batch_size = max(1, min(config.batch_size, math.ceil(count / 8)))
    steps = math.ceil(count / batch_size) * (config.warmup_epochs + config.epochs)
    optimiser = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _learning_rate_factor(step, steps))
    _initialise_autoencoder(model, data)
    codebooks: _MovingAverageCodebooks | None = None
    selection = _Selection(config.patience)
    progress = tqdm(range(config.warmup_epochs + config.epochs), desc="RQ-VAE", unit="epoch")
    for epoch in progress:
        if codebooks is None and epoch >= config.warmup_epochs:
            initialise_codebooks(model, data.features, data.masks)
            codebooks = _MovingAverageCodebooks(model, config.codebook_decay, batch_size)
            selection.offer(model, epoch, _quantise_all(model.eval(), data)[1])
        model.train()
        for rows in torch.randperm(count).split(batch_size):
            features, masks = data.batch(rows.to(model.codebooks.device))
            output = None if codebooks is None else model(features, masks)
            optimiser.zero_grad(set_to_none=True)
            (model.warmup_loss(features, masks) if output is None else output.loss).backward()
            optimiser.step()
            scheduler.step()
            if codebooks is not None and output is not None:
                codebooks.update(output.codes, output.residuals)
        if codebooks is None:
            continue
        last = epoch + 1 == config.warmup_epochs + config.epochs
        # Codes moved at the very end would stay where they were drawn, untrained.
        if not last:
            codebooks.revive(_latent_of_all(model.eval(), data))
        if last or (epoch + 1 - config.warmup_epochs) % config.evaluation_interval == 0:
            metrics = _quantise_all(model.eval(), data)[1]
            progress.set_postfix(error=f"{metrics['reconstruction_error']:.4f}", collisions=f"{metrics['collision_rate']:.4f}")
            if selection.offer(model, epoch + 1, metrics):
                break
    selection.restore(model)
    return selection.history


class _Selection:
    """The checkpoint rule of the module's docstring, and early stopping."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.history: list[dict[str, Any]] = []
        self.lowest = math.inf
        self.waited = 0
        self.kept: tuple[float, tuple[float, float]] | None = None
        self.state: dict[str, Tensor] = {}

    def offer(self, model: CEMGRQVAE, epoch: int, metrics: dict[str, Any]) -> bool:
        """Consider the model as it is; True when training should stop."""
        self.history.append({"epoch": epoch, **metrics})
        error = metrics["reconstruction_error"]
        self.waited = 0 if error < self.lowest else self.waited + 1
        self.lowest = min(self.lowest, error)
        limit = self.lowest * (1 + SELECTION_TOLERANCE)
        quality = (float(np.mean([level["perplexity"] for level in metrics["levels"]])), -metrics["collision_rate"])
        if self.kept is None or self.kept[0] > limit or (error <= limit and quality > self.kept[1]):
            self.kept = (error, quality)
            self.state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        return bool(self.patience) and self.waited >= self.patience

    def restore(self, model: CEMGRQVAE) -> None:
        model.load_state_dict(self.state)


def initialise_codebooks(model: CEMGRQVAE, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set every level's codebook to the k-means centroids of the residuals the levels above leave."""
    with torch.no_grad():
        was_training = model.training
        residual = model.eval().encode(features, masks)
        model.train(was_training)
        for level in range(model.config.num_levels):
            model.set_codes(level, torch.from_numpy(_centroids(residual.cpu().numpy(), model.config.codebook_size)))
            residual = residual - model.codebooks[level][squared_distances(residual, model.codebooks[level]).argmin(1)]


def _centroids(points: np.ndarray, size: int) -> np.ndarray:
    """(size, D) k-means centroids; with fewer distinct points than `size` the rest are jittered copies of points."""
    state = int(torch.randint(2**31 - 1, (1,)))
    distinct = np.unique(points, axis=0)
    if len(distinct) <= size:
        generator = np.random.default_rng(state)
        copies = distinct[generator.integers(0, len(distinct), size - len(distinct))]
        jitter = 0.01 * points.std() * generator.standard_normal(copies.shape)
        return np.concatenate([distinct, copies + jitter]).astype(points.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(size, n_init=1, max_iter=KMEANS_ITERATIONS, random_state=state).fit(points).cluster_centers_.astype(points.dtype)


@torch.no_grad()
def _initialise_autoencoder(model: CEMGRQVAE, data: _Items) -> None:
    """PCA of x on the linear path, scaled so that z has unit mean variance."""
    x = model.fuse(data.features, data.masks).x
    mean = x.mean(0)
    size = min(model.config.latent_dim, *x.shape)
    _, _, directions = torch.svd_lowrank(x - mean, q=min(size + 8, *x.shape), niter=4)
    components = directions[:, :size].T
    spread = ((x - mean) @ components.T).square().mean().sqrt().item()
    model.initialise_linear(components, mean, scale=1 / max(spread, 1e-6))


@torch.no_grad()
def _latent_of_all(model: CEMGRQVAE, data: _Items) -> Tensor:
    return model.encode(data.features, data.masks)


@torch.no_grad()
def _quantise_all(model: CEMGRQVAE, data: _Items) -> tuple[_Quantised, dict[str, Any]]:
    """Nearest-code assignment of all items by the frozen model, and the figures checkpoints are chosen by."""
    fused = model.fuse(data.features, data.masks)
    latent = model.encoder(fused.x)
    found = model.quantise(latent)
    error = reconstruction_loss(model.decode(found.quantised), fused.x, fused.present).item()
    codes = found.codes.cpu()
    metrics = {
        "reconstruction_error": error / max(_variance(fused.x, fused.present), 1e-12),
        "levels": [_level_report(codes[:, level], model.config.codebook_size) for level in range(model.config.num_levels)],
        "collision_rate": collision_rate(codes.numpy()),
    }
    return _Quantised(fused.x.cpu(), fused.present.cpu(), fused.alpha.cpu(), latent.cpu(), codes), metrics


def _variance(x: Tensor, present: Tensor) -> float:
    """Reconstruction loss of predicting every half of x by its mean over the items that have it."""
    weights = present.to(x.dtype).repeat_interleave(x.shape[1] // 2, dim=1)
    mean = (x * weights).sum(0) / weights.sum(0).clamp_min(1)
    return reconstruction_loss(mean.expand_as(x), x, present).item()


def _pca_error(x: Tensor, present: Tensor, size: int) -> float:
    """Share of the variance of x that PCA to `size` dimensions (no quantisation) loses, over items with both halves where there are any."""
    complete = present.all(1)
    x = x[complete] if complete.any() else x[:, present.any(0).repeat_interleave(x.shape[1] // 2)]
    centred = x - x.mean(0)
    kept = min(size, *centred.shape)
    with _seeded(0, x.device):
        _, values, _ = torch.svd_lowrank(centred, q=min(kept + 8, *centred.shape), niter=2)
    return max(0.0, 1 - (values[:kept].square().sum() / centred.square().sum().clamp_min(1e-12)).item())


def _level_report(codes: Tensor, size: int) -> dict[str, float]:
    share = torch.bincount(codes, minlength=size).double() / max(len(codes), 1)
    entropy = -(share * share.clamp_min(1e-300).log()).sum()
    return {"used_codes": float((share > 0).double().mean()), "perplexity": float(entropy.exp())}


def _alpha_report(alpha: Tensor) -> dict[str, Any]:
    """Spread of α over the items that have both content modalities; only their number where there are none."""
    both = alpha[(alpha > 0).all(1)].double()
    report: dict[str, Any] = {"items_with_both": len(both)}
    if len(both):
        for index, name in enumerate(CONTENT_MODALITIES):
            values = both[:, index]
            points = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=values.dtype)
            quantiles = {f"{point:.2f}": float(value) for point, value in zip(points, values.quantile(points), strict=True)}
            report[name] = {"mean": float(values.mean()), "std": float(values.std(correction=0)), "quantiles": quantiles}
    return report


def _learning_rate_factor(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / max(1, round(0.05 * steps))) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's random state set to `seed` inside the block, the caller's afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _check(vectors: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray], config: TokenizerTrainingConfig) -> int:
    """Number of items, after checking the arrays; logs a warning where the codebooks are too large for them."""
    if not vectors:
        raise CEMGError("vectors: no modality given; encode at least one of image, text, collaborative")
    count = len(next(iter(vectors.values())))
    if not count:
        raise CEMGError("vectors: no items; prepare a dataset with at least one item")
    for name, values in vectors.items():
        if values.ndim != 2 or len(values) != count:
            raise CEMGError(f"vectors[{name}]: shape {values.shape}, expected ({count}, dimension)")
        if name not in masks or np.shape(masks[name]) != (count,):
            raise CEMGError(f"masks[{name}]: missing or not of shape ({count},)")
        bad = np.asarray(masks[name], dtype=bool) & ~np.isfinite(values).all(axis=1)
        if bad.any():
            raise CEMGError(f"vectors[{name}]: row {int(np.flatnonzero(bad)[0])} is not finite; mask it or encode it again")
    if count > config.codebook_size**config.num_levels:
        raise CEMGError(
            f"{count} items do not fit into {config.codebook_size}^{config.num_levels} codes: raise codebook_size or num_levels"
        )
    if count < ITEMS_PER_CODE * config.codebook_size:
        fitting = 2 ** int(math.log2(max(2, count / ITEMS_PER_CODE)))
        logger.warning(
            "codebook_size %d is large for %d items (fewer than %d per code): %d fits", config.codebook_size, count, ITEMS_PER_CODE, fitting
        )
    return count
