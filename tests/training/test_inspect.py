"""Inspection of item tokenizers, from folders to the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from cemg_hf.artefacts import fingerprint_path
from cemg_hf.errors import CEMGError
from cemg_hf.features.projection import Projection
from cemg_hf.features.store import FeatureStore, ModalityFeatures
from cemg_hf.models.cemg import CEMGRQVAE, CEMGRQVAEConfig, CEMGTokenizer
from cemg_hf.models.cemg.assignment_cemg import assign_unique_codes, collision_rate
from cemg_hf.training.inspect import format_inspection, inspect_tokenizer
from cemg_hf.training.tokenizer_report import tokenizer_report

ITEMS, LEVELS, SIZE = 150, 3, 8
DIMENSIONS = {"image": 10, "text": 12, "collaborative": 6}


def store(seed: int = 0) -> FeatureStore:
    """Items of 8 groups that show in all three modalities; a tenth of each modality is missing."""
    generator = np.random.default_rng(seed)
    groups = np.arange(ITEMS) % 8
    modalities = {}
    for name, size in DIMENSIONS.items():
        raw = 2 * generator.normal(size=(8, size))[groups] + 0.5 * generator.normal(size=(ITEMS, size))
        mask = generator.random(ITEMS) > 0.1
        projection, _ = Projection.fit(raw.astype(np.float32), mask, size)
        vectors = projection.transform(raw.astype(np.float32), mask)
        encoder = {"kind": name, "fingerprint": f"{name}-{seed}"}
        modalities[name] = ModalityFeatures(vectors, mask, projection, encoder)
    return FeatureStore([f"item {row}" for row in range(ITEMS)], modalities)


def arrays(features: FeatureStore) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return {k: v.vectors for k, v in features.modalities.items()}, {k: v.mask for k, v in features.modalities.items()}


def network(features: FeatureStore) -> CEMGRQVAE:
    """PCA and residuals of items as codes: reads the data well enough to be measured, in no time."""
    vectors, masks = arrays(features)
    inputs = {k: torch.from_numpy(v) for k, v in vectors.items()}, {k: torch.from_numpy(v) for k, v in masks.items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CEMGRQVAEConfig(DIMENSIONS, dimension=16, num_levels=LEVELS, codebook_size=SIZE, hidden_dims=[8], latent_dim=6)
        model = CEMGRQVAE(config).eval()
        with torch.no_grad():
            x = model.fuse(*inputs).x
            model.initialise_linear(torch.linalg.svd(x - x.mean(0)).Vh[:6], x.mean(0), scale=0.5)
            residual = model.encode(*inputs)
            for level in range(LEVELS):
                model.set_codes(level, residual[torch.randperm(ITEMS)[:SIZE]])
                residual = model.quantise(model.encode(*inputs)).residuals[:, level] - _chosen(model, inputs, level)
    return model


def _chosen(model: CEMGRQVAE, inputs: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]], level: int) -> torch.Tensor:
    return model.codebooks[level, model.quantise(model.encode(*inputs)).codes[:, level]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with features, dataset and tokenizer."""
    features = store()
    features.save(tmp_path / "features")
    model = network(features)
    vectors, masks = arrays(features)
    inputs = {k: torch.from_numpy(v) for k, v in vectors.items()}, {k: torch.from_numpy(v) for k, v in masks.items()}
    with torch.no_grad():
        latent = model.encode(*inputs)
        codes, _ = assign_unique_codes(model.quantise(latent).codes, latent, model.codebooks)
    tokenizer(features, codes, model).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "dataset").mkdir()
    categories = [["Shop", f"kind {row % 8}"] if row % 10 else [] for row in range(ITEMS)]
    pl.DataFrame({"item_id": features.item_ids, "categories": categories}).write_parquet(tmp_path / "dataset" / "items.parquet")
    pl.DataFrame({"user_id": ["a", "a"], "item_id": features.item_ids[:2], "timestamp": [1, 2]}).write_parquet(
        tmp_path / "dataset" / "interactions.parquet"
    )
    return tmp_path


@pytest.fixture
def unplotted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures without their page, which takes longest; `test_the_report_says_what_the_parts_say` draws it."""
    monkeypatch.setattr("cemg_hf.training.inspect.plot_codes", lambda *_: None)


def tokenizer(
    features: FeatureStore, codes: torch.Tensor, model: CEMGRQVAE | None, projections: dict[str, dict[str, torch.Tensor]] | None = None
) -> CEMGTokenizer:
    parts = {
        name: {part: torch.from_numpy(np.array(getattr(block.projection, part))) for part in ("mean", "components", "scale")}
        for name, block in features.modalities.items()
    }
    return CEMGTokenizer(
        item_ids=features.item_ids,
        item_codes=codes,
        num_levels=LEVELS,
        codebook_size=SIZE,
        rqvae=model,
        projections=(projections or parts) if model is not None else None,
        encoders={name: dict(block.encoder) for name, block in features.modalities.items()} if model is not None else None,
    )


def loaded(folder: Path) -> CEMGTokenizer:
    found: CEMGTokenizer = CEMGTokenizer.from_pretrained(folder)
    return found


def test_the_report_says_what_the_parts_say(run: Path) -> None:
    before = fingerprint_path(run / "tokenizer")
    report = inspect_tokenizer(run / "tokenizer")
    assert sorted(path.name for path in (run / "inspection").iterdir()) == ["inspection.json", "inspection.png"]
    assert fingerprint_path(run / "tokenizer") == before
    written = json.loads((run / "inspection" / "inspection.json").read_text())
    assert written["metrics"] == json.loads(json.dumps(report["metrics"]))
    assert written["seeds"] == [0]

    metrics = report["metrics"]["tokenizer"]
    features, kept = store(), loaded(run / "tokenizer")
    vectors, masks = arrays(features)
    assert kept.rqvae is not None
    expected = tokenizer_report(kept.rqvae, vectors, masks)
    for level, other in zip(metrics["levels"], expected["levels"], strict=True):
        assert level["used_codes"] == pytest.approx(other["used_codes"])
        assert level["perplexity"] == pytest.approx(other["perplexity"])
    nearest = kept.rqvae.encode_codes(
        {k: torch.from_numpy(v) for k, v in vectors.items()}, {k: torch.from_numpy(v) for k, v in masks.items()}
    )
    assert metrics["collision_rate_before"] == pytest.approx(collision_rate(nearest)) == pytest.approx(expected["collision_rate"])
    assert metrics["collision_rate_before"] > 0
    assert metrics["collision_rate_after"] == 0
    assert metrics["moved"] == int((nearest != kept.item_codes).any(1).sum()) > 0
    assert metrics["spilled"] <= metrics["moved"]

    errors = metrics["reconstruction_by_level"]
    assert errors[-1] == pytest.approx(metrics["reconstruction_error"]) == pytest.approx(expected["reconstruction_error"])
    assert metrics["autoencoder_error"] < errors[-1] < errors[0]
    assert len(metrics["residual_share"]) == LEVELS
    assert metrics["residual_share"][0] < 1
    assert sum(metrics["alpha_histogram"]["counts"]) == metrics["alpha"]["items_with_both"] > 0

    spaces = metrics["neighbour_preservation"]
    assert list(spaces) == ["fused", "image", "text", "collaborative"]
    assert spaces["image"]["items"] == int(masks["image"].sum())
    assert spaces["fused"]["depths"][0]["lift"] > 2  # groups are in the vectors and in the codes
    assert metrics["categories"] == 8
    assert metrics["category_purity"][0]["purity"] > 1.5 * metrics["category_purity"][0]["chance"]
    assert set(metrics["modality_contribution"]) == set(DIMENSIONS)


@pytest.mark.usefixtures("unplotted")
def test_masking_a_modality_counts_items_that_keep_another(run: Path) -> None:
    metrics = inspect_tokenizer(run / "tokenizer")["metrics"]["tokenizer"]
    _, masks = arrays(store())
    for name, row in metrics["modality_contribution"].items():
        others = np.any([mask for other, mask in masks.items() if other != name], axis=0)
        assert row["items"] == int((masks[name] & others).sum())
        assert row["first_code_changed"] <= row["any_code_changed"]
        assert row["any_code_changed"] > 0


@pytest.mark.usefixtures("unplotted")
def test_the_same_seed_gives_the_same_figures(run: Path) -> None:
    first = inspect_tokenizer(run / "tokenizer", output=run / "one", seed=3)
    assert inspect_tokenizer(run / "tokenizer", output=run / "two", seed=3)["metrics"] == first["metrics"]


@pytest.mark.usefixtures("unplotted")
def test_a_tokenizer_alone_tells_what_its_codes_tell(run: Path, tmp_path: Path) -> None:
    alone = run / "tokenizer"
    elsewhere = tmp_path / "elsewhere" / "tokenizer"
    elsewhere.parent.mkdir()
    alone.rename(elsewhere)
    report = inspect_tokenizer(elsewhere)
    metrics = report["metrics"]["tokenizer"]
    assert metrics["assignment"] == "resolved"
    assert metrics["collision_rate_before"] is None
    assert metrics["levels"] == metrics["resolved"]["levels"]
    assert not metrics.keys() & {"reconstruction_error", "neighbour_preservation", "category_purity"}
    assert "not measured → 0.00%" in format_inspection(report)
    named = inspect_tokenizer(elsewhere, features=run / "features", dataset=run / "dataset")["metrics"]["tokenizer"]
    assert named["assignment"] == "nearest"
    assert "category_purity" in named


@pytest.mark.usefixtures("unplotted")
def test_codes_without_a_network_have_neighbours_but_no_reconstruction(run: Path) -> None:
    kept = loaded(run / "tokenizer")
    tokenizer(store(), kept.item_codes, None).save_pretrained(run / "codes")
    report = inspect_tokenizer(run / "codes")
    metrics = report["metrics"]["tokenizer"]
    assert list(metrics["neighbour_preservation"]) == list(DIMENSIONS)
    assert "reconstruction_error" not in metrics
    assert "neighbours in" in format_inspection(report)


@pytest.mark.usefixtures("unplotted")
def test_the_table_shows_every_part(run: Path) -> None:
    report = inspect_tokenizer(run / "tokenizer")
    text = format_inspection(report)
    metrics = report["metrics"]["tokenizer"]
    for part in ("150 items", "perplexity", "PCA of the same size", "α image", "without text", "neighbours in", "8 categories"):
        assert part in text
    assert f"{metrics['reconstruction_error']:.4f}" in text
    assert not any(line != line.rstrip() for line in text.splitlines())


@pytest.mark.usefixtures("unplotted")
def test_items_in_another_order_change_nothing(run: Path) -> None:
    expected = inspect_tokenizer(run / "tokenizer")["metrics"]["tokenizer"]
    features = store()
    order = np.random.default_rng(1).permutation(ITEMS)
    blocks = {
        name: ModalityFeatures(block.vectors[order], block.mask[order], block.projection, block.encoder)
        for name, block in features.modalities.items()
    }
    FeatureStore([features.item_ids[row] for row in order], blocks).save(run / "shuffled")
    found = inspect_tokenizer(run / "tokenizer", features=run / "shuffled")["metrics"]["tokenizer"]
    assert found == expected


@pytest.mark.usefixtures("unplotted")
def test_a_tokenizer_with_projections_of_its_own_gets_vectors_through_them(run: Path) -> None:
    """As after retraining from older codes: the network's inputs are turned against the store's."""
    expected = inspect_tokenizer(run / "tokenizer")["metrics"]["tokenizer"]
    features, kept = store(), loaded(run / "tokenizer")
    turn = {name: np.linalg.qr(np.random.default_rng(5).normal(size=(size, size)))[0] for name, size in DIMENSIONS.items()}
    blocks = {}
    for name, block in features.modalities.items():
        components = (turn[name].T @ block.projection.components).astype(np.float32)
        vectors = (block.vectors @ turn[name]).astype(np.float32)
        blocks[name] = ModalityFeatures(
            vectors, block.mask, Projection(block.projection.mean, components, block.projection.scale), block.encoder
        )
    FeatureStore(features.item_ids, blocks).save(run / "turned")
    found = inspect_tokenizer(run / "tokenizer", features=run / "turned")["metrics"]["tokenizer"]
    assert kept.rqvae is not None
    assert found["reconstruction_error"] == pytest.approx(expected["reconstruction_error"], rel=1e-3)
    assert found["moved"] == pytest.approx(expected["moved"], abs=2)


@pytest.mark.usefixtures("unplotted")
def test_folders_that_do_not_fit_are_refused(run: Path) -> None:
    folder = run / "tokenizer"
    with pytest.raises(CEMGError, match="not a tokenizer folder"):
        inspect_tokenizer(run / "features")
    with pytest.raises(CEMGError, match="not a tokenizer folder"):
        inspect_tokenizer(run / "nowhere")
    with pytest.raises(CEMGError, match="not a feature folder"):
        inspect_tokenizer(folder, features=run / "dataset")
    with pytest.raises(CEMGError, match="not a prepared dataset"):
        inspect_tokenizer(folder, dataset=run / "features")
    for output in (folder, folder / "inspection"):
        with pytest.raises(CEMGError, match="inside the tokenizer folder"):
            inspect_tokenizer(folder, output=output)
    assert not (run / "inspection").exists()

    features = store()
    FeatureStore([*features.item_ids[:-1], "stranger"], features.modalities).save(run / "others")
    with pytest.raises(CEMGError, match="no features of 1 of the tokenizer's 150 items"):
        inspect_tokenizer(folder, features=run / "others")
    FeatureStore(features.item_ids, {k: v for k, v in features.modalities.items() if k != "text"}).save(run / "textless")
    with pytest.raises(CEMGError, match="no text features"):
        inspect_tokenizer(folder, features=run / "textless")
    store(seed=1).save(run / "reencoded")
    with pytest.raises(CEMGError, match="features of another encoder"):
        inspect_tokenizer(folder, features=run / "reencoded")
    text = features.modalities["text"]
    small = Projection(text.projection.mean[:5], text.projection.components[:4, :5], text.projection.scale)
    blocks = {**features.modalities, "text": ModalityFeatures(text.vectors[:, :4], text.mask, small, text.encoder)}
    FeatureStore(features.item_ids, blocks).save(run / "narrow")
    with pytest.raises(CEMGError, match="text features have 4 dimensions, the tokenizer takes 12"):
        inspect_tokenizer(folder, features=run / "narrow")
    pl.DataFrame({"item_id": ["stranger"], "categories": [["Shop"]]}).write_parquet(run / "dataset" / "items.parquet")
    pl.DataFrame({"user_id": ["a"], "item_id": ["stranger"], "timestamp": [1]}).write_parquet(run / "dataset" / "interactions.parquet")
    with pytest.raises(CEMGError, match="none of the tokenizer's items"):
        inspect_tokenizer(folder)
    (folder / "item_codes.safetensors").write_bytes(b"broken")
    with pytest.raises(CEMGError, match="not a tokenizer that this version reads"):
        inspect_tokenizer(folder)
