"""Encoders that need no download: TF-IDF with truncated SVD for text, colour histograms with oriented gradients for images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image
from safetensors.numpy import load_file, save_file
from skimage.color import rgb2lab
from skimage.feature import hog
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm import tqdm

from ..artefacts import fingerprint, write_json
from ..errors import CEMGError
from .encoder import RawFeatures
from .image import COLOUR_GRADIENT, ImageConfig
from .pictures import decode_ahead, image_sources
from .text import TFIDF, TextConfig, item_texts

CODE_VERSION = "1"  # raise when the same content and settings start to give other vectors
VOCABULARY_NAME = "text_encoder.json"
WEIGHTS_NAME = "text_encoder.safetensors"
SMALL_CATALOGUE = 200  # below it, words that occur in one text only are kept

SIDE = 64  # pixels
CELL = 16  # pixels
ORIENTATIONS = 9
LAB_BINS = (4, 6, 6)
LAB_RANGE = np.array([[0.0, 100.0], [-80.0, 80.0], [-80.0, 80.0]], dtype=np.float32)
LAYOUT = 4  # mean colours on a LAYOUT × LAYOUT grid


class TfidfTextEncoder:
    """TF-IDF over words and word pairs, reduced by truncated SVD (latent semantic analysis), fitted to the catalogue's texts."""

    modality = "text"
    learns = True

    def __init__(self, config: TextConfig) -> None:
        config.check()
        self.config = config
        self._vectorizer: TfidfVectorizer | None = None
        self._components = np.zeros((0, 0), dtype=np.float32)

    @property
    def dimension(self) -> int:
        return self._components.shape[0]

    @property
    def fingerprint(self) -> str:
        vectorizer = self._fitted()
        terms = json.dumps(vectorizer.get_feature_names_out().tolist())
        return fingerprint("text", TFIDF, CODE_VERSION, terms, vectorizer.idf_.tobytes(), self._components.tobytes())

    def fit(self, items: pl.DataFrame, seed: int) -> None:
        """Learn vocabulary, inverse document frequencies and SVD from all texts (nothing where there is none).

        Errors: CEMGError when no text holds a word.
        """
        texts = item_texts(items).drop_nulls().to_list()
        if not texts:
            return
        self._vectorizer = _vectorizer(max_features=self.config.max_terms, min_df=1 if len(texts) < SMALL_CATALOGUE else 2)
        try:
            weights = self._vectorizer.fit_transform(texts)
        except ValueError as error:
            raise CEMGError(
                f"text.encoder = {TFIDF!r}: {len(texts)} texts share no words of two letters or more; use a transformers encoder"
            ) from error
        # A randomised SVD of rank r needs a matrix with more than r rows and columns.
        rank = max(1, min(self.config.components, weights.shape[0] - 1, weights.shape[1] - 1))
        svd = TruncatedSVD(rank, algorithm="randomized", n_iter=7, random_state=seed).fit(weights)
        self._components = np.ascontiguousarray(svd.components_, dtype=np.float32)

    def encode(self, items: pl.DataFrame, base: Path | None = None) -> RawFeatures:
        """Raw vectors (N, D); items without text, or without a single known word, are masked."""
        texts = item_texts(items)
        rows = texts.is_not_null().arg_true().to_numpy().astype(np.int64)
        if not len(rows):
            return RawFeatures.scattered(items.height, rows, np.empty((0, self.dimension), dtype=np.float32))
        weights = self._fitted().transform(texts.drop_nulls().to_list())
        known = np.diff(weights.indptr) > 0
        return RawFeatures.scattered(items.height, rows[known], np.asarray(weights[known] @ self._components.T))

    def describe(self) -> dict[str, Any]:
        names = ("encoder", "components", "max_terms")
        return {
            "modality": self.modality,
            "kind": TFIDF,
            "name": "TF-IDF + truncated SVD",
            "settings": {name: getattr(self.config, name) for name in names},
            "dimension": self.dimension,
            "fingerprint": self.fingerprint,
            "files": [VOCABULARY_NAME, WEIGHTS_NAME],
        }

    def save(self, folder: Path) -> None:
        """Write `text_encoder.json` (the terms in column order) and `text_encoder.safetensors` (idf, components)."""
        vectorizer = self._fitted()
        write_json(folder / VOCABULARY_NAME, {"terms": vectorizer.get_feature_names_out().tolist()})
        save_file({"idf": np.ascontiguousarray(vectorizer.idf_), "components": self._components}, folder / WEIGHTS_NAME)

    @classmethod
    def load(cls, config: TextConfig, folder: Path) -> TfidfTextEncoder:
        """The encoder that `save` wrote into `folder`."""
        for name in (VOCABULARY_NAME, WEIGHTS_NAME):
            if not (folder / name).is_file():
                raise CEMGError(f"{folder / name}: no such file; the TF-IDF encoder's files must lie beside encoders.json")
        encoder = cls(config)
        terms = json.loads((folder / VOCABULARY_NAME).read_text())["terms"]
        arrays = load_file(folder / WEIGHTS_NAME)
        encoder._vectorizer = _vectorizer(vocabulary={term: column for column, term in enumerate(terms)})
        encoder._vectorizer.idf_ = arrays["idf"]
        encoder._components = arrays["components"]
        return encoder

    def _fitted(self) -> TfidfVectorizer:
        if self._vectorizer is None:
            raise CEMGError("the TF-IDF encoder has not been fitted; call fit(items, seed) first")
        return self._vectorizer


def _vectorizer(**settings: Any) -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode", dtype=np.float32, **settings)


class ColourGradientImageEncoder:
    """Soft-binned CIELAB histogram, mean colours on a coarse grid, and histograms of oriented gradients; each block of unit length."""

    modality = "image"
    learns = False

    def __init__(self, config: ImageConfig) -> None:
        config.check()
        self.config = config

    @property
    def dimension(self) -> int:
        blocks = SIDE // CELL - 1
        return int(np.prod(LAB_BINS)) + LAYOUT * LAYOUT * 3 + blocks * blocks * 4 * ORIENTATIONS

    @property
    def fingerprint(self) -> str:
        settings = (SIDE, CELL, ORIENTATIONS, LAB_BINS, LAB_RANGE.tolist(), LAYOUT)
        return fingerprint("image", COLOUR_GRADIENT, CODE_VERSION, json.dumps(settings))

    def fit(self, items: pl.DataFrame, seed: int) -> None:
        """Nothing to learn."""

    def encode(self, items: pl.DataFrame, base: Path | None = None) -> RawFeatures:
        """Raw vectors (N, D); items without a picture, or with one that cannot be read, are masked."""
        sources = image_sources(items, base)
        rows = np.array([row for row, source in enumerate(sources) if source is not None], dtype=np.int64)
        batches = [rows[start : start + self.config.batch_size] for start in range(0, len(rows), self.config.batch_size)]
        unreadable: dict[int, str] = {}
        done, vectors = [np.empty(0, dtype=np.int64)], [np.empty((0, self.dimension), dtype=np.float32)]
        with tqdm(total=len(rows), desc=f"image {COLOUR_GRADIENT}", unit="item") as bar:
            ready = decode_ahead(sources, batches, describe_image, self.config.workers, unreadable)
            for batch, (read, descriptors) in zip(batches, ready, strict=True):
                if descriptors:
                    done.append(read)
                    vectors.append(np.stack(descriptors))
                bar.update(len(batch))
        return RawFeatures.scattered(items.height, np.concatenate(done), np.concatenate(vectors), unreadable)

    def describe(self) -> dict[str, Any]:
        return {
            "modality": self.modality,
            "kind": COLOUR_GRADIENT,
            "name": "colour histogram + oriented gradients",
            "settings": {"encoder": self.config.encoder},
            "dimension": self.dimension,
            "fingerprint": self.fingerprint,
            "files": [],
        }

    def save(self, folder: Path) -> None:
        """Nothing to write: the settings are constants."""


def describe_image(image: Image.Image) -> np.ndarray:
    """Colour, layout and gradient descriptor (D,) float32 of an RGB picture."""
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0), dtype=np.uint8)
    lab = rgb2lab(pixels.astype(np.float32) / 255.0).astype(np.float32)
    unit = (lab - LAB_RANGE[:, 0]) / (LAB_RANGE[:, 1] - LAB_RANGE[:, 0])
    # The square root (Hellinger) keeps a large background from drowning the product's own colours.
    colour = np.sqrt(soft_histogram(unit.reshape(-1, 3), LAB_BINS))
    cell = SIDE // LAYOUT
    layout = unit.reshape(LAYOUT, cell, LAYOUT, cell, 3).mean(axis=(1, 3)).ravel()
    gradients = hog(
        pixels, orientations=ORIENTATIONS, pixels_per_cell=(CELL, CELL), cells_per_block=(2, 2), block_norm="L2-Hys", channel_axis=-1
    )
    return np.concatenate([_unit_length(colour), _unit_length(layout), _unit_length(gradients)]).astype(np.float32)


def soft_histogram(unit: np.ndarray, bins: tuple[int, int, int]) -> np.ndarray:
    """Joint histogram (Π bins,) of values (n, 3) in [0, 1]; each value is shared linearly by the bins beside it; sums to one."""
    counts = np.asarray(bins)
    position = np.clip(unit, 0.0, 1.0) * (counts - 1)
    lower = np.minimum(position.astype(np.int64), counts - 2)
    share = position - lower
    histogram = np.zeros(int(counts.prod()))
    for corner in np.ndindex(2, 2, 2):
        offset = np.asarray(corner)
        weight = np.where(offset == 1, share, 1.0 - share).prod(axis=1)
        index = np.ravel_multi_index(tuple((lower + offset).T), bins)
        histogram += np.bincount(index, weights=weight, minlength=len(histogram))
    return histogram / len(unit)


def _unit_length(block: np.ndarray) -> np.ndarray:
    norm = float(np.linalg.norm(block))
    return block / norm if norm > 0 else block
