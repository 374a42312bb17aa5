"""The `tokenize` stage: features → fused vectors → RQ-VAE → one unique code per item, as a `CEMGTokenizer` folder."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ..artefacts import Manifest, fingerprint_path, is_current, one_writer, write_folder, write_json
from ..data import PreparedDataset
from ..errors import CEMGError
from ..features.store import FeatureStore
from ..models.cemg import CEMGTokenizer
from ..models.cemg.assignment_cemg import assign_unique_codes, collision_rate
from .epoch_checkpoint import EpochCheckpoint
from .fusion_training import next_item_pairs
from .identifiers import identifier_report, neighbouring_codes, save_identifiers
from .loading import open_tokenizer
from .quantise import FeatureBatches, content_vectors, projection_tensors, quantise
from .retraining import align_to_tokenizer, kept_codes
from .streams import REPORT_NAME, StreamsConfig, tokenize_streams
from .tokenizer_config import TokenizerTrainingConfig
from .tokenizer_training import train_with_neighbours

logger = logging.getLogger(__name__)

QUIET_BELOW = 200_000  # items; smaller catalogues pass in seconds


@one_writer
def tokenize(
    config: TokenizerTrainingConfig,
    features: str | Path,
    output: str | Path,
    seed: int = 42,
    dataset: str | Path | None = None,
    streams: StreamsConfig | None = None,
) -> Path:
    """Train the RQ-VAE on a feature folder and write the item tokenizer and its report; skipped when that is current.

    Args:
        config: settings of fusion, RQ-VAE and training.
        features: folder written by `encode`.
        output: tokenizer folder to write.
        seed: seed of initialisation, k-means and sample order.
        dataset: folder written by `prepare`; its training interactions teach the fusion. None: it learns from reconstruction alone.
        streams: one code per modality in the place of one that fuses them all (MSCGRec; see `tokenize_streams`).

    Raises:
        CEMGError: features, data set or the tokenizer to start from that do not belong together, or settings that do not fit them.
    """
    if streams is not None:
        return tokenize_streams(streams, config, features, output, seed)
    output = Path(output)
    inputs = {"features": fingerprint_path(features)}
    inputs |= {"dataset": fingerprint_path(dataset)} if dataset is not None else {}
    if config.start_from and Path(config.start_from).resolve() == output.resolve():
        raise CEMGError(f"start_from: {output} is the folder to write; write the new tokenizer somewhere else")
    inputs |= {"start_from": fingerprint_path(config.start_from)} if config.start_from else {}
    manifest = Manifest("tokenize", asdict(config), inputs, seed)
    if is_current(output, manifest):
        logger.info("tokenize: %s is up to date", output)
        return output
    work = output.with_name(f".{output.name}.training")
    started = time.perf_counter()
    store = FeatureStore.load(features)
    vectors = {name: modality.vectors for name, modality in store.modalities.items()}
    masks = {name: np.asarray(modality.mask) for name, modality in store.modalities.items()}
    projections = projection_tensors(store, list(store.modalities))
    before = open_tokenizer(config.start_from) if config.start_from else None
    if before is not None:
        aligned, turned = align_to_tokenizer(before, store)
        vectors, projections = vectors | aligned, projections | turned
    rqvae, neighbours, report = train_with_neighbours(
        vectors,
        masks,
        config,
        seed,
        pairs=_pairs(config, dataset, store),
        start=before.rqvae if before is not None else None,
        checkpoint=EpochCheckpoint(work / "rqvae.safetensors", manifest),
    )
    used = list(rqvae.config.modality_dims)
    bare = ~np.any(np.stack([masks[name] for name in used]), axis=0)
    if bare.any():
        first = ", ".join(store.item_ids[index] for index in np.flatnonzero(bare)[:3])
        logger.warning("tokenize: %d items have none of %s (%s …); their codes say nothing", bare.sum(), ", ".join(used), first)
    items = FeatureBatches({name: vectors[name] for name in used}, masks)
    found = quantise(rqvae, items, progress=len(store.item_ids) > QUIET_BELOW)
    assert found.latent is not None
    codes, assignment = assign_unique_codes(found.codes, found.latent, rqvae.codebooks)
    report |= asdict(assignment) | {"items": len(store.item_ids), "items_without_any_modality": int(bare.sum())}
    report["collision_rate_before_last_level"] = collision_rate(found.codes[:, :-1])  # as of every code stream
    identifiers = torch.cat([codes.unsqueeze(0), neighbouring_codes(neighbours, items)]) if neighbours else None
    if identifiers is not None:
        report["identifiers"] = identifier_report(identifiers)
    if before is not None:
        report["kept_codes"] = kept_codes(before, store.item_ids, codes)
    tokenizer = CEMGTokenizer(
        item_ids=store.item_ids,
        item_codes=codes,
        num_levels=config.num_levels,
        codebook_size=config.codebook_size,
        rqvae=rqvae,
        encoders={name: dict(store.modalities[name].encoder) for name in used},
        projections={name: projections[name] for name in used},
        item_vectors=content_vectors(rqvae, items),
    )
    with write_folder(output, manifest, started) as scratch:
        tokenizer.save_pretrained(scratch)
        if identifiers is not None:
            save_identifiers(scratch, identifiers)
        write_json(scratch / REPORT_NAME, report)
    shutil.rmtree(work, ignore_errors=True)
    return output


def _pairs(config: TokenizerTrainingConfig, dataset: str | Path | None, store: FeatureStore) -> np.ndarray | None:
    """Pairs of items that follow each other in training sequences, or None where nothing is to be learned from them."""
    if dataset is None or not config.next_item.epochs:
        return None
    data = PreparedDataset.load(dataset)
    if list(data.item_ids) != list(store.item_ids):
        raise CEMGError(f"{dataset}: not the data set these features were made of (other items); run `cemg encode` on it")
    return next_item_pairs(data.train_sequences(), config.next_item.window)
