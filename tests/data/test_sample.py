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


def gain(results: dict[str, float], without: str) -> float:
    """Relative improvement of all three signals over the two that are left `without` one."""
    return results["+".join(SIGNALS)] / results["+".join(name for name in SIGNALS if name != without)] - 1


@pytest.fixture(scope="module")
def descriptors(shop: Path) -> dict[str, np.ndarray]:
    items = pl.read_parquet(shop / "items.parquet")
    return {"image": image_descriptors(items), "text": text_descriptors(items)}


# --- files ---


def test_same_seed_same_bytes_and_another_seed_replaces_them(shop: Path, tmp_path: Path) -> None:
    make_sample(tmp_path / "again", seed=0)
    written = {name: fingerprint((shop / name).read_bytes()) for name in FILES}
    assert written == {name: fingerprint((tmp_path / "again" / name).read_bytes()) for name in FILES}
    make_sample(tmp_path / "again", seed=1)
    assert all(fingerprint((tmp_path / "again" / name).read_bytes()) != written[name] for name in FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_files_open_with_datasets(shop: Path) -> None:
    items = load_dataset("parquet", data_files=str(shop / "items.parquet"), split="train", cache_dir=str(shop.parent / "cache"))
    assert items.column_names == ["item_id", "title", "brand", "categories", "description", "image"]
    first = items[0]
    assert first["image"].size == (96, 96)
    assert len(first["categories"]) == 3
    log = pl.read_parquet(shop / "interactions.parquet")
    assert log.schema == {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    assert log["timestamp"].is_sorted()


def test_finished_folder_is_left_alone(shop: Path) -> None:
    written = (shop / MANIFEST_NAME).stat().st_mtime_ns
    make_sample(shop, seed=0)
    assert (shop / MANIFEST_NAME).stat().st_mtime_ns == written


def test_other_peoples_files_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(CEMGError, match="holds other files"):
        make_sample(tmp_path)
    with pytest.raises(CEMGError, match="is a file"):
        make_sample(tmp_path / "thesis.txt")
    with pytest.raises(CEMGError, match="seed"):
        make_sample(tmp_path / "new", seed=-1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# --- catalogue ---


def test_attributes_are_independent_and_balanced() -> None:
    attributes = hidden_attributes(seed=0)
    columns = list(vars(attributes).values())
    assert all(np.ptp(np.bincount(column)) <= 1 for column in columns)
    for n, first in enumerate(columns):
        for second in columns[n + 1 :]:
            table = one_hot(first).T @ one_hot(second)
            expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
            assert ((table - expected) ** 2 / expected).sum() < (table.shape[0] - 1) * (table.shape[1] - 1) * 1.8 + 12


def test_texts_are_varied_and_silent_about_the_look(shop: Path) -> None:
    items = pl.read_parquet(shop / "items.parquet")
    texts = items.select(pl.concat_str("title", "brand", pl.col("categories").list.join(" "), "description", separator=" ")).to_series()
    words = set(re.findall(r"[a-z]+", " ".join(texts).lower()))
    colours = "red orange yellow green blue purple violet pink brown grey gray black white beige colour color coloured colourful"
    looks = "plain striped stripe dotted dot polka checked checked gingham plaid zigzag pattern patterned print"
    assert not words & {*PALETTES, *PATTERNS, *colours.split(), *looks.split()}
    assert items["description"].n_unique() > 0.98 * len(items)
    assert items["title"].n_unique() > 0.9 * len(items)


def test_pictures_show_palette_and_texts_tell_theme_and_nothing_crosses(descriptors: dict[str, np.ndarray]) -> None:
    attributes = hidden_attributes(seed=0)

    def neighbour_agreement(name: str, values: np.ndarray) -> float:
        """Share of items whose nearest other item has the same value, over what chance gives."""
        unit = descriptors[name] / np.linalg.norm(descriptors[name], axis=1, keepdims=True)
        similarity = unit @ unit.T
        np.fill_diagonal(similarity, -np.inf)
        return float((values[similarity.argmax(1)] == values).mean() * (values.max() + 1))

    assert neighbour_agreement("image", attributes.palette) > 8
    assert neighbour_agreement("image", attributes.pattern) > 2
    assert neighbour_agreement("text", attributes.theme) > 8
    assert neighbour_agreement("text", attributes.making) > 2.5
    for name, hidden in (("image", ("theme", "making", "community")), ("text", ("palette", "pattern", "community"))):
        for attribute in hidden:
            assert neighbour_agreement(name, getattr(attributes, attribute)) < 1.6, (name, attribute)


# --- behaviour ---


def test_everyone_and_everything_survives_a_5_core_without_repeats(shop: Path) -> None:
    log = pl.read_parquet(shop / "interactions.parquet")
    assert log.select("user_id", "item_id").is_unique().all()
    assert log["user_id"].value_counts()["count"].min() >= 8
    assert log["item_id"].value_counts()["count"].min() >= 5
    assert log["user_id"].n_unique() == Behaviour().users
    assert log["item_id"].n_unique() == Behaviour().items
    assert log.select("user_id", "timestamp").is_unique().all()


def test_popularity_has_a_long_tail(shop: Path) -> None:
    counts = pl.read_parquet(shop / "interactions.parquet")["item_id"].value_counts()["count"].to_numpy()
    assert (counts <= 17).mean() > 0.25
    top_tenth = np.sort(counts)[::-1][: len(counts) // 10].sum() / counts.sum()
    assert 0.18 < top_tenth < 0.4


def test_each_signal_adds_to_the_other_two(shop: Path, descriptors: dict[str, np.ndarray]) -> None:
    results = probe(*histories_of(shop), descriptors)
    assert results["+".join(SIGNALS)] > 5 * results["popularity"], results
    assert all(gain(results, name) > 0.04 for name in SIGNALS), results


def test_noise_in_place_of_pictures_does_not_help(shop: Path, descriptors: dict[str, np.ndarray]) -> None:
    noise = np.random.default_rng(1).normal(size=descriptors["image"].shape)
    results = probe(*histories_of(shop), {**descriptors, "image": noise})
    assert gain(results, "image") < 0.02, results


@pytest.mark.slow
def test_each_signal_adds_over_five_shops(tmp_path: Path) -> None:
    real, true = [], []
    for seed in range(5):
        make_sample(tmp_path / str(seed), seed)
        items = pl.read_parquet(tmp_path / str(seed) / "items.parquet")
        attributes, (histories, lengths) = hidden_attributes(seed), histories_of(tmp_path / str(seed))
        assert np.bincount(histories[histories >= 0]).min() >= 5
        look = np.hstack([one_hot(attributes.palette), 0.7 * one_hot(attributes.pattern)])
        words = np.hstack([one_hot(attributes.theme), 0.7 * one_hot(attributes.making)])
        true.append(probe(histories, lengths, {"image": look, "text": words}))
        real.append(probe(histories, lengths, {"image": image_descriptors(items), "text": text_descriptors(items)}))
    for results in (real, true):
        assert all(r["+".join(SIGNALS)] > 5 * r["popularity"] for r in results), results
        for name in SIGNALS:
            gains = [gain(r, name) for r in results]
            assert min(gains) > 0.03, (name, gains)
            assert np.mean(gains) > 0.08, (name, gains)
