"""The `tokenize` stage: features → fused vectors → RQ-VAE → one unique code per item, as a `CEMGTokenizer` folder."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ..artefacts import Manifest, fingerprint_path, is_current, write_folder, write_json
from ..features.store import FeatureStore
from ..models.cemg import CEMGTokenizer
from .code_assignment import assign_unique_codes
from .tokenizer_training import TokenizerTrainingConfig, train_rqvae

logger = logging.getLogger(__name__)

REPORT_NAME = "tokenizer_report.json"


def tokenize(config: TokenizerTrainingConfig, features: str | Path, output: str | Path, seed: int = 42) -> Path:
    """Train the RQ-VAE on a feature folder and write the item tokenizer and its report; skipped when that is current.

    Args:
        config: settings of fusion, RQ-VAE and training.
        features: folder written by `encode`.
        output: tokenizer folder to write.
        seed: seed of initialisation, k-means and sample order.
    """
    output = Path(output)
    manifest = Manifest("tokenize", asdict(config), {"features": fingerprint_path(features)}, seed)
    if is_current(output, manifest):
        logger.info("tokenize: %s is up to date", output)
        return output
    started = time.perf_counter()
    store = FeatureStore.load(features)
    vectors = {name: modality.vectors for name, modality in store.modalities.items()}
    masks = {name: modality.mask for name, modality in store.modalities.items()}
    bare = ~np.any(np.stack(list(masks.values())), axis=0)
    if bare.any():
        first = ", ".join(store.item_ids[index] for index in np.flatnonzero(bare)[:3])
        logger.warning(
            "tokenize: %d items have neither content nor training interactions (%s …); their codes say nothing", bare.sum(), first
        )
    rqvae, report = train_rqvae(vectors, masks, config, seed)
    tensors = {name: torch.from_numpy(array) for name, array in vectors.items()}
    with torch.inference_mode():
        latent = rqvae.encode(tensors, {name: torch.from_numpy(mask) for name, mask in masks.items()})
        nearest = rqvae.quantise(latent).codes
    codes, assignment = assign_unique_codes(nearest.numpy(), latent.numpy(), rqvae.codebooks.detach().numpy())
    report |= asdict(assignment) | {"items": len(store.item_ids), "items_without_any_modality": int(bare.sum())}
    tokenizer = CEMGTokenizer(
        item_ids=store.item_ids,
        item_codes=torch.from_numpy(codes),
        num_levels=config.num_levels,
        codebook_size=config.codebook_size,
        rqvae=rqvae,
        encoders={name: dict(modality.encoder) for name, modality in store.modalities.items()},
        projections={
            name: {part: torch.from_numpy(np.array(getattr(modality.projection, part))) for part in ("mean", "components", "scale")}
            for name, modality in store.modalities.items()
        },
    )
    with write_folder(output, manifest, started) as scratch:
        tokenizer.save_pretrained(scratch)
        write_json(scratch / REPORT_NAME, report)
    return output
