"""A model as the demo uses it: with the fusion weights of its items and, where its features are at hand, the encoders for new ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import torch

from ..errors import CEMGError
from ..features.encoder import ItemEncoder
from ..features.items import content_encoders, encode_with
from ..features.store import ENCODERS_NAME, FeatureStore
from ..models.cemg import CEMGForConditionalGeneration, CEMGTokenizer
from ..serving.loading import load_model
from ..training.new_items import add_encoded_items

BATCH = 4096

Alpha = tuple[float, float]
"""Weights of image and text in an item's content (eq. 2); 0 for a modality that the item lacks."""


class DemoModel:
    """A recommender and what explains it.

    Args:
        name: what it is called on the page.
        model: with its catalogue; it attends eagerly from now on.
        features: folder written by `encode` for it. None: α is not known and new items cannot be coded.

    Raises:
        CEMGError: features of another model.
    """

    def __init__(self, name: str, model: CEMGForConditionalGeneration, features: Path | None = None) -> None:
        assert model.tokenizer is not None
        model.set_attn_implementation("eager")
        self.name = name
        self.model = model
        self.features = features
        self._store = None if features is None else FeatureStore.load(features)
        self._encoders: dict[str, ItemEncoder] = {}
        self.alpha: Mapping[str, Alpha] = self._catalogue_alpha()
        """Item id -> α, of the items whose features are known and that have content."""
        self.known = frozenset(model.tokenizer.item_ids)

    @classmethod
    def load(cls, source: str, features: Path | None = None, device: str = "cpu") -> DemoModel:
        """The model of a folder or Hub id; `features` None is the folder `features` beside the model, if there is one.

        Raises:
            CEMGError: see `open_model`.
        """
        folder = Path(source).resolve()
        beside = folder.parent / "features"
        if features is None and folder.is_dir() and (beside / ENCODERS_NAME).is_file():
            features = beside
        name = folder.parent.name if folder.is_dir() and folder.name == "model" else source.rstrip("/").rsplit("/", 1)[-1]
        return cls(name, load_model(source, device), features)

    @property
    def tokenizer(self) -> CEMGTokenizer:
        assert self.model.tokenizer is not None
        return self.model.tokenizer

    @property
    def dense_weight(self) -> float | None:
        """The weight that its dense tower has by default; None without a tower."""
        return None if self.model.dense is None else float(self.model.config.dense_weight)

    def with_item(self, item_id: str, content: pl.DataFrame) -> DemoModel:
        """This model with one more item in its catalogue. Weights are shared, and the model it is made from stays as it is.

        Args:
            item_id: id that the catalogue lacks.
            content: one row with the columns of an items table.

        Raises:
            CEMGError: no features folder, encoders that are not at hand, or an item without content that can be read.
        """
        if self.features is None or self._store is None:
            raise CEMGError(f"{self.name}: the encoders that made its features are not here; start the demo with --features FOLDER")
        if not self._encoders:
            self._encoders.update(content_encoders(self.features, device="cpu"))  # into the mapping that all views share
        encoded = encode_with(self._encoders, content)
        tokenizer = copy.copy(self.tokenizer)  # shallow: a tokenizer replaces its catalogue as a whole
        add_encoded_items(tokenizer, [item_id], encoded, "predicted")
        view = copy.copy(self)
        view.model = copy.copy(self.model)  # shallow too: the modules are the same, the attribute `tokenizer` is the view's own
        view.model.set_tokenizer(tokenizer)
        view.known = self.known | {item_id}
        vectors = {name: self._store.modalities[name].projection.transform(*raw) for name, raw in encoded.items()}
        masks = {name: mask for name, (_, mask) in encoded.items()}
        view.alpha = {**self.alpha, **self._alpha([item_id], vectors, masks, predicted=True)}
        return view

    def _catalogue_alpha(self) -> dict[str, Alpha]:
        store, network = self._store, self.tokenizer.rqvae
        if store is None or network is None:
            return {}
        lacking = next((name for name in network.config.modality_dims if name not in store.modalities), None)
        wrong = lacking or next(
            (name for name, size in network.config.modality_dims.items() if store.modalities[name].dimension != size), None
        )
        if wrong is not None:
            raise CEMGError(f"{self.features}: its {wrong} features are not those of {self.name}; give the folder the model was made from")
        found: dict[str, Alpha] = {}
        for start in range(0, len(store.item_ids), BATCH):
            rows = slice(start, start + BATCH)
            vectors = {name: np.asarray(block.vectors[rows], dtype=np.float32) for name, block in store.modalities.items()}
            masks = {name: block.mask[rows] for name, block in store.modalities.items()}
            found |= self._alpha(store.item_ids[rows], vectors, masks)
        return found

    @torch.inference_mode()
    def _alpha(
        self, item_ids: list[str], vectors: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray], predicted: bool = False
    ) -> dict[str, Alpha]:
        """α of items by their projected vectors; `predicted`: what nobody bought yet gets its e^c from its content, as in `add_items`."""
        network = self.tokenizer.rqvae
        if network is None:  # code streams fuse nothing
            return {}
        used = [name for name in vectors if name in network.config.modality_dims]
        features = {name: torch.from_numpy(np.array(vectors[name], dtype=np.float32)) for name in used}
        given = {name: torch.from_numpy(np.asarray(masks[name])) for name in used}
        if predicted:
            features, given = network.fill_collaborative(features, given)
        alpha = network.fuse(features, given).alpha.cpu()
        return {item_id: (row[0], row[1]) for item_id, row in zip(item_ids, alpha.tolist(), strict=True) if sum(row) > 0}
