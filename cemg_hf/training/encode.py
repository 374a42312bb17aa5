"""The `encode` stage: dataset folder → feature folder with image, text and collaborative vectors of every item."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..artefacts import Manifest, fingerprint, fingerprint_path, is_current, one_writer, write_folder, write_json
from ..data import PreparedDataset
from ..errors import CEMGError
from ..features.encoder import ItemEncoder, RawFeatures
from ..features.image import ImageConfig
from ..features.items import image_encoder, text_encoder
from ..features.projection import Projection, can_fit
from ..features.store import MODALITIES, FeatureBlocks, write_features
from ..features.text import TextConfig
from ..models.cemg.modeling_rqvae import COLLABORATIVE
from .collaborative import CollaborativeConfig, train_collaborative
from .epoch_checkpoint import EpochCheckpoint
from .loading import NETWORKS
from .sequential import REPORT_NAME as TRAINING_REPORT_NAME
from .sequential import SequentialConfig, train_sequential

logger = logging.getLogger(__name__)

REPORT_NAME = "report.json"
LISTED_ITEMS = 5


@dataclass
class EncodeConfig:
    """Settings of the `encode` stage."""

    modalities: list[str] = field(
        default_factory=lambda: list(MODALITIES), metadata={"help": "Which of image, text and collaborative the items are described by."}
    )
    dimension: int = field(default=768, metadata={"help": "d: PCA keeps min(d, raw dimension, items − 1) components of each modality."})
    text: TextConfig = field(default_factory=TextConfig, metadata={"help": "Text encoder."})
    image: ImageConfig = field(default_factory=ImageConfig, metadata={"help": "Image encoder."})
    collaborative: CollaborativeConfig = field(default_factory=CollaborativeConfig, metadata={"help": "LightGCN on training interactions."})
    sequential: SequentialConfig | None = field(
        default=None, metadata={"help": "A network over whole items, whose item vectors stand in the place of LightGCN's (MSCGRec)."}
    )

    def check(self) -> None:
        """Raise CEMGError for a setting that cannot work."""
        unknown = [name for name in self.modalities if name not in MODALITIES]
        if unknown or not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise CEMGError(f"modalities = {self.modalities}: name one or more of {', '.join(MODALITIES)}, each once")
        if self.dimension < 1:
            raise CEMGError(f"dimension = {self.dimension}: must be at least 1")
        if self.sequential is not None and self.sequential.content:
            raise CEMGError("encode.sequential.content: collaborative vectors are of interactions alone; leave it out")


@one_writer
def encode(config: EncodeConfig, dataset: str | Path, output: str | Path, seed: int, cache_folder: str | Path | None = None) -> Path:
    """Encode the items of the prepared `dataset` into the feature folder `output`; skipped when that is current.

    Writes a `FeatureStore`, the files of encoders fitted to the catalogue, and `report.json`. Raw vectors of pretrained encoders are cached
    in `cache_folder` (default: `$CEMG_CACHE` or ~/.cache/cemg_hf/features). A modality that fewer than two items have, or in which they do
    not differ, is left out with a log line. Errors: CEMGError for settings, missing weights, or when no modality is left; OutOfTime.
    """
    config.check()
    dataset, output = Path(dataset), Path(output)
    prepared = PreparedDataset.load(dataset)
    encoders = _encoders(config, Path(cache_folder) if cache_folder is not None else None)
    pretrained = {f"{name}_encoder": encoder.fingerprint for name, encoder in encoders.items() if not encoder.learns}
    settings = {name: value for name, value in asdict(config).items() if name not in MODALITIES or name in config.modalities}
    # Of LightGCN and the network in its place, the settings of the one that is trained decide.
    if config.sequential is None or COLLABORATIVE not in config.modalities:
        del settings["sequential"]
    else:
        del settings[COLLABORATIVE]
    manifest = Manifest("encode", settings, {"dataset": fingerprint_path(dataset), **pretrained}, seed)
    if is_current(output, manifest):
        logger.info("encode: %s is current, skipped", output)
        return output
    work = output.with_name(f".{output.name}.training")
    with write_folder(output, manifest) as scratch:
        features, report = _encode(config, prepared, encoders, manifest, work)
        write_features(scratch, prepared.item_ids, features)
        for name in features:
            if name in encoders:
                encoders[name].save(scratch)
        write_json(scratch / REPORT_NAME, report)
    shutil.rmtree(work, ignore_errors=True)
    used = ", ".join(f"{name} by {entry.encoder['name']} ({entry.dimension}-d)" for name, entry in features.items())
    logger.info("encode: %d items, %s → %s", len(prepared.item_ids), used, output)
    return output


def _encoders(config: EncodeConfig, cache_folder: Path | None) -> dict[str, ItemEncoder]:
    encoders: dict[str, ItemEncoder] = {}
    if "image" in config.modalities:
        encoders["image"] = image_encoder(config.image, cache_folder)
    if "text" in config.modalities:
        encoders["text"] = text_encoder(config.text, cache_folder)
    return encoders


def _encode(
    config: EncodeConfig, prepared: PreparedDataset, encoders: Mapping[str, ItemEncoder], manifest: Manifest, work: Path
) -> tuple[dict[str, FeatureBlocks], dict[str, Any]]:
    """Features per modality that has any, projected as they are written, and the report on all of them."""
    items = prepared.items_table()
    features: dict[str, FeatureBlocks] = {}
    report: dict[str, Any] = {}
    content = np.zeros(len(prepared.item_ids), dtype=bool)
    for name in config.modalities:
        started = time.perf_counter()
        extra: dict[str, Any] = {}
        if name == COLLABORATIVE:
            raw, extra["training"] = _collaborative_vectors(config, prepared, manifest, work)
        else:
            encoder = encoders[name]
            if encoder.learns:
                encoder.fit(items, manifest.seed)
            raw = encoder.encode(items, prepared.folder)
            content |= raw.mask
        entry = {
            "present": int(raw.mask.sum()),
            "masked": int((~raw.mask).sum()),
            "unreadable": len(raw.unreadable),
            "unreadable_items": {prepared.item_ids[row]: reason for row, reason in list(raw.unreadable.items())[:LISTED_ITEMS]},
            **extra,
        }
        report[name] = entry
        if can_fit(raw.vectors, raw.mask):
            projection, kept = Projection.fit(raw.vectors, raw.mask, config.dimension)
            description = encoders[name].describe() if name in encoders else _collaborative_description(config, raw)
            blocks = projection.transform_blocks(raw.vectors, raw.mask)
            features[name] = FeatureBlocks(blocks, projection.dimension, raw.mask, projection, description)
            entry |= {
                "used": True,
                "encoder": description["name"],
                "fingerprint": description["fingerprint"],
                "raw_dimension": raw.vectors.shape[1],
                "dimension": projection.dimension,
                "explained_variance": kept,
            }
        else:
            entry["used"] = False
            logger.info(
                "encode: %s is left out: %d of %d items have it, and two that differ are needed", name, entry["present"], items.height
            )
        entry["seconds"] = round(time.perf_counter() - started, 2)
        if raw.unreadable:
            row, reason = next(iter(raw.unreadable.items()))
            first = prepared.item_ids[row]
            logger.warning("encode: %d items have an unreadable image and are masked (first: %s, %s)", len(raw.unreadable), first, reason)
    if not features:
        raise CEMGError(
            f"{prepared.folder}: no two items have {' or '.join(config.modalities)} that differ; add texts, images or modalities"
        )
    bare = np.flatnonzero(~content)
    if encoders and len(bare):
        logger.warning("encode: %d items have neither text nor image (first: %s)", len(bare), prepared.item_ids[bare[0]])
    listed = [prepared.item_ids[row] for row in bare[:LISTED_ITEMS]]
    return features, {
        "items": items.height,
        "modalities": report,
        "items_without_content": len(bare),
        "first_items_without_content": listed,
    }


def _collaborative_vectors(
    config: EncodeConfig, prepared: PreparedDataset, manifest: Manifest, work: Path
) -> tuple[RawFeatures, dict[str, Any]]:
    """(N, d) vectors of items with training interactions and what their training reports; a killed one goes on from `work`."""
    if config.sequential is None:
        checkpoint = EpochCheckpoint(work / "lightgcn.safetensors", manifest)
        result = train_collaborative(prepared, config.collaborative, manifest.seed, checkpoint)
        return RawFeatures(result.item_embeddings, result.mask), result.report
    folder = train_sequential(config.sequential, prepared.folder, work / config.sequential.network, manifest.seed)
    model = NETWORKS[config.sequential.network].from_pretrained(folder)
    with torch.inference_mode():
        vectors = model.eval().item_vectors().float().numpy()
    report = json.loads((folder / TRAINING_REPORT_NAME).read_text(encoding="utf-8"))
    mask = prepared.train_item_counts() > 0
    return RawFeatures(vectors * mask[:, None], mask), report


def _collaborative_description(config: EncodeConfig, raw: RawFeatures) -> dict[str, Any]:
    """Collaborative vectors come from interactions, not content: they are known by their own bytes."""
    return {
        "modality": COLLABORATIVE,
        "kind": "lightgcn" if config.sequential is None else config.sequential.network,
        "name": "LightGCN" if config.sequential is None else NETWORKS[config.sequential.network].__name__,
        "settings": asdict(config.collaborative if config.sequential is None else config.sequential),
        "dimension": raw.vectors.shape[1],
        "fingerprint": fingerprint(raw.vectors.tobytes(), raw.mask.tobytes()),
        "files": [],
    }
