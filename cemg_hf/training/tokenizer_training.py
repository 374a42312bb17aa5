"""Training of the item tokenizer: fusion, autoencoder, codebooks, content head. tokenizer_selection.py says which checkpoint is kept.

Order: the fusion learns from the next item (fusion_training.py) and is frozen; PCA starts the autoencoder, k-means the codebooks;
then eq. 4 with moving averages and revival of dead codes; at last the content head for new items.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import CEMGError
from ..models.cemg.modeling_rqvae import CEMGRQVAE, COLLABORATIVE, CEMGRQVAEOutput
from .cluster_diversity import ClusterDiversity
from .codebooks import MovingAverageCodebooks, initialise_autoencoder, initialise_codebooks
from .content_head import train_content_head
from .epoch_checkpoint import EpochCheckpoint, State
from .fusion_training import train_fusion
from .modality_dropout import hide_one
from .quantise import FeatureBatches, quantise
from .tokenizer_checkpoint import TokenizerRun
from .tokenizer_config import TokenizerTrainingConfig
from .tokenizer_report import tokenizer_report
from .tokenizer_selection import Selection

logger = logging.getLogger(__name__)

ITEMS_PER_CODE = 20
ALIGNMENT_TEMPERATURE = 0.1
ROWS_AT_ONCE = 65_536


def train_rqvae(
    vectors: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
    config: TokenizerTrainingConfig | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    *,
    pairs: np.ndarray | None = None,
    start: CEMGRQVAE | None = None,
    checkpoint: EpochCheckpoint | None = None,
) -> tuple[CEMGRQVAE, dict[str, Any]]:
    """Train fusion, RQ-VAE and content head on all items.

    Arguments, results and errors are those of `train_with_neighbours`, without the neighbours.
    """
    model, _, report = train_with_neighbours(vectors, masks, config, seed, device, pairs=pairs, start=start, checkpoint=checkpoint)
    return model, report


def train_with_neighbours(
    vectors: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
    config: TokenizerTrainingConfig | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    *,
    pairs: np.ndarray | None = None,
    start: CEMGRQVAE | None = None,
    checkpoint: EpochCheckpoint | None = None,
) -> tuple[CEMGRQVAE, list[CEMGRQVAE], dict[str, Any]]:
    """Train fusion, RQ-VAE and content head on all items.

    Args:
        vectors: modality -> (N, d_m) float array (memory-mapped ones are read a batch at a time), centred, with mean squared row norm
            d_m over the rows present. `config.modalities` says which of them the codes are made of.
        masks: modality -> (N,) bool, True where the vector is real.
        config: settings; the defaults where None.
        seed: of every random choice. The caller's random state is left as it was.
        device: "cuda" where there is one, else "cpu", where None.
        pairs: (P, 2) item rows of training interactions that follow each other (`next_item_pairs`); without them the fusion learns
            from reconstruction alone.
        start: model to continue from: its fusion stays as it is, autoencoder and codebooks go on from where they are.
        checkpoint: where a training of the RQ-VAE that was stopped goes on, to end the same; without it, the time is not asked for.

    Returns:
        The model in eval mode on the CPU, `config.identifiers` − 1 others of the same training (fewer where it stopped before), and a
        JSON-able report (see `tokenizer_report`) with `history`, `fusion`, `content_head` and
        `seconds`.

    Raises:
        CEMGError: empty or inconsistent arrays, vectors that are not finite, more items than codes, or a `start` of another shape.
        OutOfTime: the `time_limit` around this call has passed after an epoch, with the checkpoint written.
    """
    config = config or TokenizerTrainingConfig()
    _check(vectors, masks, config)
    used = {name: values for name, values in vectors.items() if not config.modalities or name in config.modalities}
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found = checkpoint.load() if checkpoint is not None else None
    started = time.perf_counter() - (0 if found is None else found.values["seconds"])
    with seeded(seed, device):
        data = FeatureBatches(used, {name: masks[name] for name in used}, device)
        model = CEMGRQVAE(config.model_config({name: values.shape[1] for name, values in used.items()})).to(device)
        model.fusion.projections.requires_grad_(False)
        learned: dict[str, Any] = {}
        if start is not None:
            _continue_from(model, start)
        elif found is None and pairs is not None and config.next_item.epochs:
            learned["fusion"] = train_fusion(model.fusion, data, pairs, config.next_item)
        if found is not None:
            learned |= found.values["learned"]
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in found.values["trained"])
        aligned = _Alignment(model, vectors, masks, device) if config.lambda_align else None
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

        def keep(run: TokenizerRun) -> None:
            if checkpoint is None:
                return

            def state() -> State:
                tensors, values = run.state()
                about = {"learned": learned, "trained": trained, "seconds": time.perf_counter() - started}
                return State(tensors, values | about)

            if run.finished:
                checkpoint.save(state())
            else:
                checkpoint.between_epochs(state)

        selection = _train(model, data, config, aligned, start is None, found, keep)
        if model.content_head is not None and start is None:
            learned["content_head"] = train_content_head(model.content_head, data)
        if model.config.content_vector_dim and start is None:
            learned["content_vectors"] = _fit_content_basis(model, data, config.sample_items)
        model.requires_grad_(True)
    model = model.cpu().eval()
    neighbours = [_with_weights(model, weights) for weights in selection.neighbours]
    if len(neighbours) < config.identifiers - 1:
        logger.warning(
            "identifiers: training stopped after %d evaluations, so there are %d of %d",
            len(selection.history),
            1 + len(neighbours),
            config.identifiers,
        )
    seconds = round(time.perf_counter() - started, 2)
    return model, neighbours, {**tokenizer_report(model, used, masks), **learned, "history": selection.history, "seconds": seconds}


class _Alignment(nn.Module):
    """LETTER's collaborative alignment: the quantised vector of an item picks out its collaborative vector among the batch's.

    The map from code space to collaborative space serves training only and is not kept.
    """

    def __init__(self, model: CEMGRQVAE, vectors: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray], device: torch.device) -> None:
        super().__init__()
        if COLLABORATIVE not in vectors:
            raise CEMGError("lambda_align: the features hold no collaborative vectors to align with; encode them, or set it to 0")
        self.targets = FeatureBatches({COLLABORATIVE: vectors[COLLABORATIVE]}, {COLLABORATIVE: masks[COLLABORATIVE]}, device)
        self.map = nn.Linear(model.config.latent_dim, vectors[COLLABORATIVE].shape[1]).to(device)

    def forward(self, rows: Tensor, quantised: Tensor) -> Tensor:
        features, masks = self.targets.batch(rows)
        known = masks[COLLABORATIVE]
        if not bool(known.any()):
            return quantised.sum() * 0
        scores = F.normalize(self.map(quantised[known]), dim=1) @ F.normalize(features[COLLABORATIVE][known], dim=1).T
        return F.cross_entropy(scores / ALIGNMENT_TEMPERATURE, torch.arange(len(scores), device=scores.device))


def _train(
    model: CEMGRQVAE,
    data: FeatureBatches,
    config: TokenizerTrainingConfig,
    aligned: _Alignment | None,
    fresh: bool,
    found: State | None,
    keep: Callable[[TokenizerRun], None],
) -> Selection:
    """Leave the selected checkpoint in `model`; return how it was selected.

    Goes on from `found`. Between epochs and at the end `keep` is told how things stand; it may end the training by an error.
    """
    per_epoch = min(len(data), config.sample_items)
    batch_size = max(1, min(config.batch_size, math.ceil(per_epoch / 8)))
    warmup_epochs = config.warmup_epochs if fresh and config.epochs else 0
    steps = math.ceil(per_epoch / batch_size) * (warmup_epochs + config.epochs)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        trained + (list(aligned.parameters()) if aligned is not None else []), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _learning_rate_factor(step, max(1, steps)))
    sample = data.sample(per_epoch)  # what PCA, k-means and the revival of codes see
    selection = Selection(config.patience, config.identifiers - 1)
    run = TokenizerRun(model, aligned, optimiser, scheduler, selection, sample)
    if found is not None:
        run.restore(found, MovingAverageCodebooks(model, config.codebook_decay, batch_size))
    elif fresh:
        initialise_autoencoder(model, _of_sample(model, data, sample, latent=False))
    clusters = ClusterDiversity(config.diversity_clusters) if config.diversity == "clusters" and config.lambda_div else None
    total = warmup_epochs + config.epochs
    progress = tqdm(range(total if run.finished else run.epoch, total), initial=run.epoch, total=total, desc="RQ-VAE", unit="epoch")

    def begin_quantisation(epoch: int) -> MovingAverageCodebooks:
        if fresh:
            initialise_codebooks(model, _of_sample(model, data, run.sample))
        # The k-means start knows nothing of alignment or of missing modalities: it is a candidate where reconstruction is the only aim.
        if not config.epochs or (aligned is None and not config.modality_dropout):
            selection.offer(model, epoch, quantise(model, data, keep_latent=False).metrics)
        return MovingAverageCodebooks(model, config.codebook_decay, batch_size)

    for epoch in progress:
        if run.averages is None and epoch >= warmup_epochs:
            run.averages = begin_quantisation(epoch)
        model.train()
        alignment = torch.zeros((), device=data.device)
        if clusters is not None and run.averages is not None:
            clusters.fit(model.codebooks)
        for rows in torch.randperm(len(data))[:per_epoch].to(data.device).split(batch_size):
            features, masks = data.batch(rows)
            output: CEMGRQVAEOutput | None = None
            if run.averages is None:
                loss = model.warmup_loss(features, masks)
            else:
                output = model(features, masks, hide_one(masks, config.modality_dropout) if config.modality_dropout else None)
                loss = output.loss
                if aligned is not None:
                    extra = config.lambda_align * aligned(rows, output.quantised)
                    loss = loss + extra
                    alignment += extra.detach() * len(rows) / per_epoch
                if clusters is not None:
                    loss = loss + config.lambda_div * clusters.loss(output.codes, output.residuals, model.codebooks)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            scheduler.step()
            if run.averages is not None and output is not None:
                run.averages.update(output.codes, output.residuals)
        run.epoch = epoch + 1
        if run.averages is None:
            keep(run)
            continue
        last = run.epoch == total
        # Codes moved at the very end would stay where they were drawn, untrained.
        if not last:
            run.averages.revive(_of_sample(model, data, run.sample))
        if last or (epoch + 1 - warmup_epochs) % config.evaluation_interval == 0:
            metrics = quantise(model, data, keep_latent=False).metrics | ({"alignment": alignment.item()} if aligned is not None else {})
            progress.set_postfix(error=f"{metrics['reconstruction_error']:.4f}", collisions=f"{metrics['collision_rate']:.4f}")
            if selection.offer(model, epoch + 1, metrics):
                break
        if not last:
            keep(run)
    if run.averages is None:
        run.averages = begin_quantisation(warmup_epochs)
    if not run.finished:
        run.finished = True
        keep(run)
    selection.restore(model)
    return selection


@torch.no_grad()
def _fit_content_basis(model: CEMGRQVAE, data: FeatureBatches, sample_items: int) -> dict[str, Any]:
    """Point the content basis where the content halves of x lie; which share of their squared length it keeps."""
    fused = [model.fuse(*data.batch(rows)) for rows in data.sample(sample_items).split(ROWS_AT_ONCE)]
    halves = torch.cat([part.x[part.present[:, 0], : model.config.dimension] for part in fused])
    halves = F.normalize(halves, dim=1)
    # In double precision: the many zero eigenvalues of axes that no modality uses keep the single-precision solver from converging.
    values, directions = torch.linalg.eigh((halves.T @ halves).double())
    kept = model.config.content_vector_dim
    model.content_basis.copy_(directions[:, -kept:])
    return {"dimension": kept, "kept": (values[-kept:].sum() / values.sum().clamp_min(1e-12)).item()}


@torch.no_grad()
def _of_sample(model: CEMGRQVAE, data: FeatureBatches, sample: Tensor, latent: bool = True) -> Tensor:
    """z (n, D) of the sampled items, or their x (n, 2d)."""
    was_training = model.training
    model.eval()
    parts = [model.fuse(*data.batch(rows)).x for rows in sample.split(8192)]
    found = torch.cat([model.encoder(x) if latent else x for x in parts])
    model.train(was_training)
    return found


def _continue_from(model: CEMGRQVAE, start: CEMGRQVAE) -> None:
    """Take over the weights of `start`; its fusion is frozen."""
    mine, theirs = model.config.to_dict(), start.config.to_dict()
    shape = (
        "modality_dims",
        "dimension",
        "num_levels",
        "codebook_size",
        "hidden_dims",
        "latent_dim",
        "fusion",
        "content_head_dim",
        "collaborative_weight",
        "unit_rows",
        "content_vector_dim",
    )
    for name in shape:
        if mine[name] != theirs[name]:
            raise CEMGError(f"start_from: {name} is {theirs[name]} in the old tokenizer, {mine[name]} here; keep it, or train afresh")
    model.load_state_dict(start.state_dict())
    model.fusion.requires_grad_(False)


def _with_weights(model: CEMGRQVAE, weights: dict[str, Tensor]) -> CEMGRQVAE:
    """A copy of `model` with other weights."""
    other = CEMGRQVAE(model.config).eval()
    other.load_state_dict(weights)
    return other


def _learning_rate_factor(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / max(1, round(0.05 * steps))) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's random state set to `seed` inside the block, the caller's afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _check(vectors: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray], config: TokenizerTrainingConfig) -> None:
    """Raise CEMGError for arrays that do not fit; log a warning where the codebooks are too large for the items."""
    if not vectors:
        raise CEMGError("vectors: no modality given; encode at least one of image, text, collaborative")
    absent = [name for name in config.modalities if name not in vectors]
    if absent:
        raise CEMGError(f"modalities: the features hold no {absent[0]} vectors, only {', '.join(vectors)}; encode them, or leave it out")
    count = len(next(iter(vectors.values())))
    if not count:
        raise CEMGError("vectors: no items; prepare a dataset with at least one item")
    for name, values in vectors.items():
        if values.ndim != 2 or len(values) != count:
            raise CEMGError(f"vectors[{name}]: shape {values.shape}, expected ({count}, dimension)")
        if name not in masks or np.shape(masks[name]) != (count,):
            raise CEMGError(f"masks[{name}]: missing or not of shape ({count},)")
        finite = np.concatenate([np.isfinite(values[first : first + ROWS_AT_ONCE]).all(axis=1) for first in range(0, count, ROWS_AT_ONCE)])
        bad = np.asarray(masks[name], dtype=bool) & ~finite
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
