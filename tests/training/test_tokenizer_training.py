from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from tokenizer_samples import settings, shop

from cemg_hf.errors import CEMGError
from cemg_hf.models.cemg.assignment_cemg import AssignmentReport, assign_unique_codes
from cemg_hf.models.cemg.modeling_rqvae import CEMGRQVAE
from cemg_hf.training.tokenizer_report import tokenizer_report
from cemg_hf.training.tokenizer_training import train_rqvae


@torch.no_grad()
def unique_codes(model: CEMGRQVAE, vectors: dict[str, np.ndarray], masks: dict[str, np.ndarray]) -> tuple[torch.Tensor, AssignmentReport]:
    latent = model.encode({k: torch.from_numpy(v) for k, v in vectors.items()}, {k: torch.from_numpy(v) for k, v in masks.items()})
    return assign_unique_codes(model.quantise(latent).codes, latent, model.codebooks)


def test_training_lowers_the_loss_and_uses_the_codebooks() -> None:
    vectors, masks, groups = shop()
    _, start = train_rqvae(
        vectors, masks, settings(fusion="equal", epochs=1, warmup_epochs=0, learning_rate=1e-9, codebook_decay=0.999), seed=3
    )
    trained, _ = train_rqvae(vectors, masks, settings(fusion="equal", epochs=200, patience=0), seed=3)
    assert trained.config.fusion == "equal"
    equal = tokenizer_report(trained, vectors, masks)
    assert equal["reconstruction_error"] < 0.95 * start["reconstruction_error"]
    assert equal["alpha"]["text"]["std"] == 0
    model, report = train_rqvae(vectors, masks, settings(epochs=200, patience=0), seed=3)
    assert not model.training
    assert report["reconstruction_error"] < report["history"][0]["reconstruction_error"]
    assert report["alpha"]["text"]["std"] > 0
    assert all(level["used_codes"] >= 0.95 and 1 <= level["perplexity"] <= 8 for level in report["levels"])
    assert report["reconstruction_error"] == pytest.approx(tokenizer_report(model, vectors, masks)["reconstruction_error"])
    assert 0 < report["pca_error"] < report["reconstruction_error"]
    assert report["alpha"]["items_with_both"] == (masks["image"] & masks["text"]).sum()
    assert report["alpha"]["image"]["mean"] + report["alpha"]["text"]["mean"] == pytest.approx(1)
    json.dumps(report)
    codes = model.encode_codes(
        {k: torch.from_numpy(v) for k, v in vectors.items()}, {k: torch.from_numpy(v) for k, v in masks.items()}
    ).numpy()
    full = masks["image"] & masks["text"] & masks["collaborative"]
    same_group = groups[full][:, None] == groups[full]
    same_code = codes[full, 0][:, None] == codes[full, 0]
    assert same_code[same_group].mean() > 5 * same_code[~same_group].mean()


def test_equal_seeds_give_bit_equal_models_and_leave_the_callers_random_state() -> None:
    vectors, masks, _ = shop()
    state = torch.get_rng_state()
    first, _ = train_rqvae(vectors, masks, settings(), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    second, _ = train_rqvae(vectors, masks, settings(), seed=1)
    other, _ = train_rqvae(vectors, masks, settings(), seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert not torch.equal(first.codebooks, other.codebooks)


@pytest.mark.parametrize("kept", [("text",), ("collaborative",), ("image", "text"), ("text", "collaborative")])
def test_any_set_of_modalities_trains_and_yields_unique_codes(kept: tuple[str, ...]) -> None:
    vectors, masks, _ = shop(120)
    vectors, masks = {k: vectors[k] for k in kept}, {k: masks[k] for k in kept}
    model, report = train_rqvae(vectors, masks, settings(epochs=4), seed=0)
    codes, assignment = unique_codes(model, vectors, masks)
    assert codes.shape == (120, 3)
    assert len(np.unique(codes, axis=0)) == 120
    assert assignment.collision_rate_before == pytest.approx(report["collision_rate"])
    assert np.isfinite(report["reconstruction_error"])


def test_more_codes_than_distinct_items_is_a_warning_not_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    vectors, masks, _ = shop(6)
    vectors = {name: np.repeat(values, 5, axis=0) for name, values in vectors.items()}
    masks = {name: np.repeat(mask, 5) for name, mask in masks.items()}
    with caplog.at_level(logging.WARNING):
        model, report = train_rqvae(vectors, masks, settings(epochs=2), seed=0)
    assert "codebook_size 8 is large for 30 items" in caplog.text
    assert ": 2 fits" in caplog.text
    assert report["collision_rate"] == 1.0
    codes, assignment = unique_codes(model, vectors, masks)
    assert len(np.unique(codes, axis=0)) == 30
    assert assignment.collision_rate_after == 0


def test_bad_input_is_named() -> None:
    vectors, masks, _ = shop(40)
    with pytest.raises(CEMGError, match="no modality given"):
        train_rqvae({}, {}, settings())
    with pytest.raises(CEMGError, match=r"vectors\[text\]: shape \(39, 16\)"):
        train_rqvae({**vectors, "text": vectors["text"][1:]}, masks, settings())
    with pytest.raises(CEMGError, match=r"masks\[image\]: missing"):
        train_rqvae(vectors, {k: v for k, v in masks.items() if k != "image"}, settings())
    broken = vectors["text"].copy()
    row = int(np.flatnonzero(masks["text"])[3])
    broken[row, 0] = np.nan
    with pytest.raises(CEMGError, match=rf"vectors\[text\]: row {row} is not finite"):
        train_rqvae({**vectors, "text": broken}, masks, settings())
    with pytest.raises(CEMGError, match=r"40 items do not fit into 2\^3"):
        train_rqvae(vectors, masks, settings(codebook_size=2))
    with pytest.raises(CEMGError, match=r"modality_dims: \['audio'\]"):
        train_rqvae({"audio": vectors["text"]}, {"audio": masks["text"]}, settings())
    with pytest.raises(CEMGError, match="no image vectors, only text"):
        train_rqvae({"text": vectors["text"]}, masks, settings(modalities=["image"]))
    with pytest.raises(CEMGError, match="lambda_align: the features hold no collaborative vectors"):
        train_rqvae({"text": vectors["text"]}, masks, settings(lambda_align=0.1))


def test_epochs_0_is_residual_k_means_on_pca() -> None:
    vectors, masks, _ = shop()
    model, report = train_rqvae(vectors, masks, settings(epochs=0, warmup_epochs=0), seed=1)
    assert [entry["epoch"] for entry in report["history"]] == [0]
    features, given = ({name: torch.from_numpy(value) for name, value in part.items()} for part in (vectors, masks))
    latent = model.encode(features, given)
    x = model.fuse(features, given).x
    # Without a step of training the encoder is linear: PCA up to one scale, so distances between items are those of their components.
    components = torch.pca_lowrank(x, q=model.config.latent_dim, niter=8)[2]
    projected = (x - x.mean(0)) @ components
    ratio = torch.pdist(latent) / torch.pdist(projected)
    assert ratio.std() / ratio.mean() < 0.02
    assert all(level["used_codes"] == 1 for level in report["levels"])


def test_text_alone_is_tigers_tokenizer_and_alignment_brings_it_towards_the_collaborative_vectors() -> None:
    vectors, masks, _ = shop(400)
    rng = np.random.default_rng(0)
    # Text says little about who buys together with what: only its last entries do.
    vectors["text"][:, -3:] += 0.3 * vectors["collaborative"][:, :3]
    vectors["text"][:, :8] = rng.normal(size=(400, 8)).astype(np.float32)
    reports = {}
    for weight in (0.0, 1.0):
        model, _ = train_rqvae(vectors, masks, settings(modalities=["text"], lambda_align=weight, epochs=60, patience=0), seed=0)
        assert list(model.config.modality_dims) == ["text"]
        quantised = model.quantise(model.encode({"text": torch.from_numpy(vectors["text"])})).quantised.numpy()
        known = masks["collaborative"] & masks["text"]
        design = np.c_[quantised[known], np.ones(known.sum())]
        target = vectors["collaborative"][known]
        fit = design @ np.linalg.lstsq(design, target, rcond=None)[0]
        reports[weight] = 1 - np.square(target - fit).sum() / np.square(target - target.mean(0)).sum()
    assert reports[1.0] > reports[0.0] + 0.02


def test_modality_dropout_makes_codes_survive_a_missing_modality() -> None:
    vectors, masks, _ = shop(400)
    whole = {name: np.ones(400, dtype=bool) for name in masks}
    kept = {}
    for share in (0.0, 0.5):
        model, _ = train_rqvae(vectors, masks, settings(modality_dropout=share, epochs=60), seed=0)
        features = {name: torch.from_numpy(value) for name, value in vectors.items()}
        full = model.encode_codes(features, {name: torch.from_numpy(mask) for name, mask in masks.items()})
        less = model.encode_codes(features, {name: torch.from_numpy(mask & (name != "text")) for name, mask in masks.items()})
        several = torch.from_numpy((masks["text"] & (masks["image"] | masks["collaborative"])) & whole["text"])
        kept[share] = (full[several] == less[several]).double().mean().item()
    assert kept[0.5] > kept[0.0]


def test_training_goes_on_from_an_older_model_and_keeps_most_codes() -> None:
    vectors, masks, _ = shop(400)
    model, _ = train_rqvae(vectors, masks, settings(epochs=40), seed=0)
    features, given = ({name: torch.from_numpy(value) for name, value in part.items()} for part in (vectors, masks))
    before = model.encode_codes(features, given)
    continued, _ = train_rqvae(vectors, masks, settings(epochs=5, learning_rate=1e-4), seed=1, start=model)
    afresh, _ = train_rqvae(vectors, masks, settings(epochs=40), seed=1)
    same = (continued.encode_codes(features, given) == before).all(1).double().mean()
    assert same > 0.5
    assert same > 5 * (afresh.encode_codes(features, given) == before).all(1).double().mean()
    with pytest.raises(CEMGError, match="start_from: dimension is 16 in the old tokenizer, 32 here"):
        train_rqvae(vectors, masks, settings(dimension=32), seed=1, start=model)
