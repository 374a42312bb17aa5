"""The sample shop: reproducible files, honest pictures and texts, and a next item that depends on all three signals."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from datasets import load_dataset
from PIL import Image
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds
from skimage.feature import hog
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from cemg_hf.artefacts import MANIFEST_NAME, fingerprint
from cemg_hf.data.sample import make_sample
from cemg_hf.data.sample.behaviour import Behaviour
from cemg_hf.data.sample.catalogue import Attributes, draw_attributes
from cemg_hf.data.sample.drawing import PALETTES, PATTERNS
from cemg_hf.errors import CEMGError

FILES = ("interactions.parquet", "items.parquet")
SIGNALS = ("image", "text", "collaborative")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "shop"
    make_sample(folder, seed=0)
    return folder


def hidden_attributes(seed: int) -> Attributes:
    """The attributes behind `make_sample(…, seed)`, from the same random stream."""
    return draw_attributes(Behaviour().items, Behaviour().communities, np.random.default_rng(np.random.SeedSequence(seed).spawn(4)[0]))


def one_hot(values: np.ndarray) -> np.ndarray:
    return np.eye(values.max() + 1)[values]


# --- the probe: next-item ranking by mean-of-history profiles, one per signal, summed with fitted weights ---


def image_descriptors(items: pl.DataFrame) -> np.ndarray:
    """Colour histogram and HOG, each reduced by PCA, (N, d)."""
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in items["image"].struct.field("bytes")])
    bins = (pixels // 43).astype(np.int64) @ np.array([36, 6, 1])
    colours = np.stack([np.bincount(row, minlength=216) for row in bins.reshape(len(bins), -1)])
    colours = colours * (colours < 0.5 * bins[0].size)  # the background says nothing about the product
    edges = np.stack([hog(picture, pixels_per_cell=(16, 16), cells_per_block=(1, 1), channel_axis=-1) for picture in pixels])
    blocks = [PCA(32, random_state=0).fit_transform(block) for block in (np.sqrt(colours), edges)]
    return np.hstack([weight * block / np.linalg.norm(block, axis=1).mean() for weight, block in zip((1.0, 0.5), blocks, strict=True)])


def text_descriptors(items: pl.DataFrame) -> np.ndarray:
    """TF-IDF reduced by truncated SVD, (N, d)."""
    texts = items.select(pl.concat_str("title", pl.col("categories").list.join(" "), "description", separator=" ")).to_series()
    tfidf = TfidfVectorizer(sublinear_tf=True, min_df=2, stop_words="english").fit_transform(texts)
    return TruncatedSVD(48, random_state=0).fit_transform(tfidf)


def histories_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Item indices per user in time order, padded with -1 to (users, longest), and lengths."""
    log = pl.read_parquet(folder / "interactions.parquet").sort("user_id", "timestamp", maintain_order=True)
    item = log["item_id"].str.slice(-4).cast(pl.Int64).to_numpy()
    user = log["user_id"].rle_id().to_numpy()
    lengths = np.bincount(user)
    padded = np.full((len(lengths), lengths.max()), -1)
    padded[np.arange(lengths.max()) < lengths[:, None]] = item
    return padded, lengths


def signal_scores(histories: np.ndarray, content: dict[str, np.ndarray], rank: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Score of every item for every user by each signal, z-scored over items, and which items the user already has."""
    users, steps = np.nonzero(histories >= 0)
    items = len(next(iter(content.values())))
    owned = csr_matrix((np.ones(len(users)), (users, histories[users, steps])), shape=(len(histories), items))
    sales = np.asarray(owned.sum(0)).ravel()
    profile_weights = owned.multiply(1 / np.asarray(owned.sum(1))).tocsr()
    normalised = profile_weights.sqrt().multiply(1 / np.sqrt(np.maximum(sales, 1))).tocsr()
    _, singular, right = svds(normalised, k=rank, v0=np.ones(items))
    scores = {"popularity": np.tile(np.log1p(sales), (len(histories), 1))}
    for name, features in {**content, "collaborative": right.T * np.sqrt(singular)}.items():
        centred = features - features.mean(0) * (name != "collaborative")
        centred = centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-9)
        scores[name] = (profile_weights @ centred) @ centred.T
    scores = {name: (s - s.mean(1, keepdims=True)) / (s.std(1, keepdims=True) + 1e-9) for name, s in scores.items()}
    return scores, owned.toarray() > 0


def fit_weights(scores: np.ndarray, owned: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Weights of a softmax over the weighted sum of scores (signals, users, items), by maximum likelihood."""
    rows = np.arange(len(targets))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = np.where(owned, -np.inf, np.tensordot(weights, scores, 1))
        odds = np.exp(logits - logits.max(1, keepdims=True))
        chance = odds / odds.sum(1, keepdims=True)
        gradient = np.einsum("sui,ui->s", scores, chance) / len(targets) - scores[:, rows, targets].mean(1)
        return float(-np.log(chance[rows, targets] + 1e-12).mean()), gradient

    return minimize(loss, np.full(len(scores), 0.5), jac=True, method="L-BFGS-B", options={"maxiter": 12}).x


def probe(histories: np.ndarray, lengths: np.ndarray, content: dict[str, np.ndarray], rank: int = 24) -> dict[str, float]:
    """Validation HR@10 of popularity and of every combination of signals (popularity is always among the scores).

    Weights are fitted one step earlier, on the last training item given everything before it.
    """
    steps, rows = np.arange(histories.shape[1]), np.arange(len(histories))
    held_back = {back: np.where(steps < (lengths - back)[:, None], histories, -1) for back in (3, 2)}
    fitting, fitting_owned = signal_scores(held_back[3], content, rank)
    ranking, owned = signal_scores(held_back[2], content, rank)
    earlier, targets = histories[rows, lengths - 3], histories[rows, lengths - 2]
    names = [*content, "collaborative"]
    results = {}
    for mask in range(2 ** len(names)):
        used = [name for bit, name in enumerate(names) if mask >> bit & 1]
        columns = ["popularity", *used]
        weights = fit_weights(np.stack([fitting[c] for c in columns]), fitting_owned, earlier)
        total = np.where(owned, -np.inf, np.tensordot(weights, np.stack([ranking[c] for c in columns]), 1))
        results["+".join(used) or "popularity"] = float(((total > total[rows, targets][:, None]).sum(1) < 10).mean())
    return results
