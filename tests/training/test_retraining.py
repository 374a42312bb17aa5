from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizer_samples import settings, shop

from cemg_hf.errors import CEMGError
from cemg_hf.features.projection import Projection
from cemg_hf.features.store import FeatureStore, ModalityFeatures
from cemg_hf.models.cemg import CEMGTokenizer
from cemg_hf.models.cemg.assignment_cemg import assign_unique_codes
from cemg_hf.training import retraining
from cemg_hf.training.retraining import align_to_tokenizer, kept_codes
from cemg_hf.training.tokenizer_training import train_rqvae

COUNT = 300


def store(turn: np.ndarray, items: int = COUNT, encoder: str = "one") -> FeatureStore:
    """Features of the first `items` items of one catalogue; the raw collaborative vectors are turned, as another training would."""
    vectors, masks, _ = shop(COUNT)
    vectors["collaborative"] = np.where(masks["collaborative"][:, None], vectors["collaborative"] @ turn, 0)
    modalities = {}
    for name, raw in vectors.items():
        raw, mask = raw[:items].astype(np.float32), masks[name][:items]
        projection, _ = Projection.fit(raw, mask, 16)
        modalities[name] = ModalityFeatures(projection.transform(raw, mask), mask, projection, {"fingerprint": encoder})
    return FeatureStore([f"item-{row}" for row in range(items)], modalities)


def trained(features: FeatureStore) -> CEMGTokenizer:
    vectors = {name: modality.vectors for name, modality in features.modalities.items()}
    masks = {name: modality.mask for name, modality in features.modalities.items()}
    model, _ = train_rqvae(vectors, masks, settings(epochs=30, codebook_size=16), seed=0)
    latent = model.encode({k: torch.from_numpy(v) for k, v in vectors.items()}, {k: torch.from_numpy(v) for k, v in masks.items()}).detach()
    codes, _ = assign_unique_codes(model.quantise(latent).codes, latent, model.codebooks)
    projections = {
        name: {part: torch.from_numpy(np.array(getattr(modality.projection, part))) for part in ("mean", "components", "scale")}
        for name, modality in features.modalities.items()
    }
    return CEMGTokenizer(
        item_ids=features.item_ids,
        item_codes=codes,
        num_levels=3,
        codebook_size=16,
        rqvae=model,
        encoders={name: dict(modality.encoder) for name, modality in features.modalities.items()},
        projections=projections,
    )


def turned(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))[0]


def test_newer_features_meet_the_old_coordinates_so_that_most_items_keep_their_codes() -> None:
    before = trained(store(np.eye(6), items=250))
    newer = store(turned(1))
    assert before.rqvae is not None
    aligned, projections = align_to_tokenizer(before, newer)
    masks = {name: torch.from_numpy(modality.mask) for name, modality in newer.modalities.items()}

    def nearest(vectors: dict[str, np.ndarray]) -> torch.Tensor:
        return before.rqvae.encode_codes({name: torch.from_numpy(np.array(values)) for name, values in vectors.items()}, masks)

    kept = kept_codes(before, newer.item_ids, nearest(aligned))
    unaligned = kept_codes(before, newer.item_ids, nearest({name: modality.vectors for name, modality in newer.modalities.items()}))
    shares, lost = ([depth["kept"] for depth in report["depths"]] for report in (kept, unaligned))
    assert kept["items"] == 250
    assert shares[-1] > 0.4
    assert shares[-1] > 2 * lost[-1]
    assert shares == sorted(shares, reverse=True)
    # The projections that go with the new tokenizer lead from raw vectors to the same places.
    for name, modality in newer.modalities.items():
        raw = modality.vectors / modality.projection.scale @ modality.projection.components + modality.projection.mean
        parts = {key: value.numpy() for key, value in projections[name].items()}
        again = (raw - parts["mean"]) @ parts["components"].T * parts["scale"]
        np.testing.assert_allclose(again[modality.mask], aligned[name][modality.mask], atol=1e-3)


def test_raw_vectors_are_made_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    features = store(np.eye(6))
    before = trained(features)
    whole, _ = align_to_tokenizer(before, features)
    rows: list[int] = []
    transform = Projection.transform

    def counted(self: Projection, vectors: np.ndarray, mask: np.ndarray) -> np.ndarray:
        rows.append(len(vectors))
        return transform(self, vectors, mask)

    monkeypatch.setattr(Projection, "transform", counted)
    monkeypatch.setattr(retraining, "ROWS_AT_ONCE", 70, raising=False)
    parts, _ = align_to_tokenizer(before, features)
    assert rows == [70, 70, 70, 70, 20] * 2  # image and text
    for name, expected in whole.items():
        np.testing.assert_allclose(parts[name], expected, atol=1e-5)
    np.testing.assert_allclose(whole["text"], features.modalities["text"].vectors, atol=1e-4)  # the same projection: there and back


def test_what_does_not_belong_together_is_refused() -> None:
    features = store(np.eye(6))
    before = trained(features)
    with pytest.raises(CEMGError, match="the image encoder is not the one of the old tokenizer"):
        align_to_tokenizer(before, store(np.eye(6), encoder="another"))
    without = FeatureStore(features.item_ids, {name: value for name, value in features.modalities.items() if name != "text"})
    with pytest.raises(CEMGError, match="uses text vectors, the features hold none"):
        align_to_tokenizer(before, without)
    strangers = FeatureStore([f"other-{row}" for row in range(COUNT)], features.modalities)
    with pytest.raises(CEMGError, match="no item with interactions is known"):
        align_to_tokenizer(before, strangers)
    bare = CEMGTokenizer(item_ids=before.item_ids, item_codes=before.item_codes, num_levels=3, codebook_size=16)
    with pytest.raises(CEMGError, match="ships no RQ-VAE"):
        align_to_tokenizer(bare, features)
