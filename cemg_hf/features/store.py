"""The folder that `encode` hands to `tokenize`: vectors, masks, projections and the encoders' descriptions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..artefacts import write_json
from ..errors import CEMGError
from .projection import Projection

MODALITIES = ("image", "text", "collaborative")
ARRAYS_NAME = "features.safetensors"
ITEM_IDS_NAME = "item_ids.json"
ENCODERS_NAME = "encoders.json"


@dataclass(frozen=True)
class ModalityFeatures:
    """One modality of the catalogue: `vectors` (N, d_m) float32, zero rows where `mask` (N,) bool is False."""

    vectors: np.ndarray
    mask: np.ndarray
    projection: Projection
    encoder: Mapping[str, Any]

    @property
    def dimension(self) -> int:
        """d_m, the width of the block."""
        return self.vectors.shape[1]


@dataclass(frozen=True)
class FeatureStore:
    """Features of N items in catalogue order; modalities that no item has are absent.

    Files: `features.safetensors` (per modality `<name>.vectors`, `.mask`, `.mean`, `.components`, `.scale`), `item_ids.json` (list),
    `encoders.json` (per modality: kind, name, settings, dimension, fingerprint, files) and the files of encoders fitted to the catalogue.
    """

    item_ids: list[str]
    modalities: Mapping[str, ModalityFeatures]

    def save(self, folder: str | Path) -> None:
        """Write the three files into `folder` (a stage writes into its scratch folder, which then replaces the old one at once)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            f"{name}.{part}": array
            for name, features in self.modalities.items()
            for part, array in (
                ("vectors", features.vectors),
                ("mask", features.mask),
                ("mean", features.projection.mean),
                ("components", features.projection.components),
                ("scale", features.projection.scale),
            )
        }
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, folder / ARRAYS_NAME)
        write_json(folder / ITEM_IDS_NAME, self.item_ids)
        write_json(folder / ENCODERS_NAME, {name: dict(features.encoder) for name, features in self.modalities.items()})

    @classmethod
    def load(cls, folder: str | Path) -> FeatureStore:
        """The store written by `save`.

        Errors: CEMGError for missing files, or arrays that do not belong to the item ids.
        """
        folder = Path(folder)
        for name in (ARRAYS_NAME, ITEM_IDS_NAME, ENCODERS_NAME):
            if not (folder / name).is_file():
                raise CEMGError(f"{folder}: not a feature folder ({name} is missing); write one with `cemg encode`")
        try:
            arrays = load_file(folder / ARRAYS_NAME)
        except SafetensorError as error:
            raise CEMGError(f"{folder / ARRAYS_NAME}: not a safetensors file ({error}); run `cemg encode` again") from error
        item_ids = json.loads((folder / ITEM_IDS_NAME).read_text())
        encoders = load_descriptions(folder)
        modalities = {}
        for name, encoder in encoders.items():
            try:
                vectors, mask, mean, components, scale = (
                    arrays[f"{name}.{part}"] for part in ("vectors", "mask", "mean", "components", "scale")
                )
            except KeyError as error:
                raise CEMGError(f"{folder / ARRAYS_NAME}: array {error} is missing; run `cemg encode` again") from error
            if len(vectors) != len(item_ids) or len(mask) != len(item_ids):
                raise CEMGError(f"{folder}: {len(vectors)} {name} vectors for {len(item_ids)} item ids; run `cemg encode` again")
            modalities[name] = ModalityFeatures(vectors, mask, Projection(mean, components, scale), encoder)
        return cls(item_ids, modalities)


def load_descriptions(folder: str | Path) -> dict[str, dict[str, Any]]:
    """`encoders.json` of a feature folder, or of any folder that ships it."""
    path = Path(folder) / ENCODERS_NAME
    if not path.is_file():
        raise CEMGError(f"{path}: no such file; give a folder written by `cemg encode`, or one that ships its encoder files")
    descriptions: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return descriptions
