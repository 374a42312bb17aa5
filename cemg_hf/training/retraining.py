"""Training a tokenizer on newer data from the one in use, so that items keep the codes the generator knows.

Content needs nothing but the old PCA. Collaborative vectors of a new LightGCN are turned any way round: what the old tokenizer
remembers of them (the collaborative half of x̂, decoded from its codes) shows the rotation back, by orthogonal Procrustes over the
items both know.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CEMGError
from ..evaluation.codes import code_agreement
from ..features.projection import ROWS_AT_ONCE, Projection
from ..features.store import FeatureStore, ModalityFeatures, scratch_array
from ..models.cemg import CEMGTokenizer
from ..models.cemg.modeling_rqvae import COLLABORATIVE

logger = logging.getLogger(__name__)


def align_to_tokenizer(before: CEMGTokenizer, store: FeatureStore) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Tensor]]]:
    """Vectors of `store` in the coordinates of the old tokenizer's inputs, and the projections that lead there from raw vectors.

    Raises:
        CEMGError: the old tokenizer has no RQ-VAE, modalities or encoders differ, or no items are shared.
    """
    if before.rqvae is None:
        raise CEMGError("start_from: that tokenizer ships no RQ-VAE to continue from; train afresh")
    vectors, projections = {}, {}
    for name, dimension in before.rqvae.config.modality_dims.items():
        if name not in store.modalities:
            raise CEMGError(f"start_from: the old tokenizer uses {name} vectors, the features hold none; encode them")
        modality, known = store.modalities[name], before.projections[name]
        if modality.projection.components.shape[1] != known["components"].shape[1]:
            raise CEMGError(
                f"start_from: raw {name} vectors have {modality.projection.components.shape[1]} entries, those of the old tokenizer "
                f"{known['components'].shape[1]}; encode with the same encoder"
            )
        if name == COLLABORATIVE:
            vectors[name], projections[name] = _rotated(before, store.item_ids, modality, dimension)
            continue
        old, new = before.encoders[name].get("fingerprint"), modality.encoder.get("fingerprint")
        if old != new:
            raise CEMGError(
                f"start_from: the {name} encoder is not the one of the old tokenizer; encode with that one (TF-IDF, which learns from "
                "the catalogue, never is the same), or train afresh"
            )
        projections[name] = dict(known)
        vectors[name] = _reprojected(modality, Projection(*(known[part].numpy() for part in ("mean", "components", "scale"))))
    return vectors, projections


def _reprojected(modality: ModalityFeatures, projection: Projection) -> np.ndarray:
    """(N, d) vectors of the modality by another projection of the same raw vectors, of which a block at a time is made."""
    own, mask = modality.projection, np.asarray(modality.mask)
    found = scratch_array((len(mask), projection.dimension))
    for start in range(0, len(mask), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        found[part] = projection.transform(modality.vectors[part] / own.scale @ own.components + own.mean, mask[part])
    return found


@torch.no_grad()
def _rotated(
    before: CEMGTokenizer, item_ids: list[str], modality: ModalityFeatures, dimension: int
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Collaborative vectors turned towards what the old codes remember of them, and the projection that includes the turn."""
    rqvae = before.rqvae
    assert rqvae is not None
    place = {item_id: row for row, item_id in enumerate(before.item_ids)}
    mask = np.asarray(modality.mask)
    shared = [(row, place[item_id]) for row, item_id in enumerate(item_ids) if mask[row] and item_id in place]
    if not shared:
        raise CEMGError("start_from: no item with interactions is known to the old tokenizer; train afresh")
    rows, old_rows = (np.array(side) for side in zip(*shared, strict=True))
    levels = torch.arange(before.num_levels)
    projection_weight = rqvae.fusion.projections[COLLABORATIVE].get_parameter("weight")
    quantised = rqvae.codebooks[levels, before.item_codes[old_rows]].sum(1)
    remembered = rqvae.decode(quantised)[:, rqvae.config.dimension :] @ projection_weight
    own = np.asarray(modality.vectors[:])
    if own.shape[1] < dimension:  # fewer components than before: the missing ones are empty
        own = np.pad(own, ((0, 0), (0, dimension - own.shape[1])))
    left, _, right = np.linalg.svd(own[rows].T @ remembered.numpy(), full_matrices=False)
    turn = left @ right
    components = np.pad(modality.projection.components, ((0, own.shape[1] - len(modality.projection.components)), (0, 0)))
    projection = {
        "mean": torch.from_numpy(np.array(modality.projection.mean)),
        "components": torch.from_numpy(np.ascontiguousarray(turn.T @ components).astype(np.float32)),
        "scale": torch.from_numpy(np.array(modality.projection.scale)),
    }
    return (own @ turn).astype(np.float32), projection


def kept_codes(before: CEMGTokenizer, item_ids: list[str], codes: Tensor) -> dict[str, Any]:
    """How many of the items both tokenizers know keep their code, and the first 1 … M−1 codes of it; see `code_agreement`."""
    place: Mapping[str, int] = {item_id: row for row, item_id in enumerate(before.item_ids)}
    shared = torch.tensor([(row, place[item_id]) for row, item_id in enumerate(item_ids) if item_id in place], dtype=torch.int64)
    if not len(shared):
        return {"items": 0, "depths": []}
    kept = code_agreement(before.item_codes[shared[:, 1]].numpy(), codes[shared[:, 0]].numpy())
    logger.info("tokenize: %.1f %% of %d known items keep their code", 100 * kept["depths"][-1]["kept"], kept["items"])
    return kept
