from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch

from cemg_hf.errors import CEMGError
from cemg_hf.models.cemg.modeling_rqvae import CEMGRQVAE
from cemg_hf.training.code_assignment import AssignmentReport, assign_unique_codes
from cemg_hf.training.tokenizer_training import (
    TokenizerTrainingConfig,
    _MovingAverageCodebooks,
    _Selection,
    initialise_codebooks,
    tokenizer_report,
    train_rqvae,
)


def shop(count: int = 240, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Items of 8 groups that show in all three modalities; a tenth of each modality is missing."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 8, count)
    vectors, masks = {}, {}
    for name, size in {"image": 10, "text": 16, "collaborative": 6}.items():
        values = 2 * rng.normal(size=(8, size))[groups] + 0.5 * rng.normal(size=(count, size))
        mask = rng.random(count) > 0.1
        values -= values[mask].mean(0)
        values *= np.sqrt(size / np.square(values[mask]).sum(1).mean())
        vectors[name] = np.where(mask[:, None], values, 0).astype(np.float32)
        masks[name] = mask
    return vectors, masks, groups


def settings(**values: object) -> TokenizerTrainingConfig:
    given = {
        "dimension": 16,
        "num_levels": 3,
        "codebook_size": 8,
        "hidden_dims": [32],
        "latent_dim": 8,
        "epochs": 12,
        "evaluation_interval": 3,
    }
    return TokenizerTrainingConfig(**{**given, **values})


@torch.no_grad()
def unique_codes(model: CEMGRQVAE, vectors: dict[str, np.ndarray], masks: dict[str, np.ndarray]) -> tuple[np.ndarray, AssignmentReport]:
    latent = model.encode({k: torch.from_numpy(v) for k, v in vectors.items()}, {k: torch.from_numpy(v) for k, v in masks.items()})
    return assign_unique_codes(model.quantise(latent).codes.numpy(), latent.numpy(), model.codebooks.numpy())


def test_training_lowers_the_loss_and_uses_the_codebooks() -> None:
    vectors, masks, groups = shop()
    _, start = train_rqvae(
        vectors, masks, settings(fusion="equal", epochs=1, warmup_epochs=0, learning_rate=1e-9, codebook_decay=0.999), seed=3
    )
    trained, _ = train_rqvae(vectors, masks, settings(fusion="equal", epochs=200), seed=3)
    assert trained.config.fusion == "equal"
    equal = tokenizer_report(trained, vectors, masks)
    assert equal["reconstruction_error"] < 0.95 * start["reconstruction_error"]
    assert equal["alpha"]["text"]["std"] == 0
    model, report = train_rqvae(vectors, masks, settings(epochs=200), seed=3)
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


def test_k_means_initialisation_lowers_the_quantisation_error() -> None:
    vectors, masks, _ = shop()
    features, given = {k: torch.from_numpy(v) for k, v in vectors.items()}, {k: torch.from_numpy(v) for k, v in masks.items()}
    torch.manual_seed(0)
    model = CEMGRQVAE(settings().model_config({k: v.shape[1] for k, v in vectors.items()})).eval()

    def error() -> list[float]:
        found = model.quantise(model.encode(features, given))
        left = torch.cat([found.residuals, (found.residuals[:, -1] - model.codebooks[-1, found.codes[:, -1]])[:, None]], 1)
        return left.square().sum(2).mean(0).tolist()

    random_error = error()[-1]
    initialise_codebooks(model, features, given)
    levels = error()
    assert levels[-1] < 0.5 * random_error
    assert levels == sorted(levels, reverse=True)


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


def planted_model(codes: int) -> tuple[CEMGRQVAE, torch.Tensor]:
    """Two clusters of latent vectors and a codebook that has all but one code far away."""
    torch.manual_seed(0)
    config = settings(num_levels=1, codebook_size=codes, latent_dim=2)
    model = CEMGRQVAE(config.model_config({"text": 4}))
    latent = torch.cat([torch.randn(50, 2) - 10, torch.randn(50, 2) + 10])
    model.set_codes(0, torch.tensor([[-10.0, -10.0], *[[1000.0 + i, 1000.0] for i in range(codes - 1)]]))
    return model, latent


def test_dead_codes_are_revived_where_the_error_is() -> None:
    model, latent = planted_model(4)
    assert len(model.quantise(latent).codes.unique()) == 1
    averages = _MovingAverageCodebooks(model, 0.5, 100)
    for _ in range(6):
        found = model.quantise(latent)
        averages.update(found.codes, found.residuals)
        averages.revive(latent)
    averages.update(*[getattr(model.quantise(latent), name) for name in ("codes", "residuals")])
    found = model.quantise(latent)
    assert len(found.codes.unique()) >= 3
    assert not set(found.codes[:50, 0].tolist()) & set(found.codes[50:, 0].tolist())
    assert (latent - found.quantised).square().sum(1).mean() < 2


def test_moving_average_converges_to_the_mean_of_the_items_of_a_code() -> None:
    model, latent = planted_model(2)
    model.set_codes(0, torch.tensor([[-8.0, -8.0], [8.0, 8.0]]))
    averages = _MovingAverageCodebooks(model, 0.8, 100)
    for _ in range(80):
        found = model.quantise(latent)
        averages.update(found.codes, found.residuals)
    torch.testing.assert_close(model.codebooks[0], torch.stack([latent[:50].mean(0), latent[50:].mean(0)]), atol=1e-3, rtol=1e-3)
    assert averages.revive(latent) == 0


def test_selection_is_by_error_then_perplexity_then_collisions() -> None:
    model, _ = planted_model(2)

    def kept(*offers: tuple[float, float, float], patience: int = 0) -> tuple[float, list[bool]]:
        selection, stops = _Selection(patience), []
        for number, (error, perplexity, collisions) in enumerate(offers):
            model.codebooks.fill_(number)
            metrics = {"reconstruction_error": error, "levels": [{"perplexity": perplexity}], "collision_rate": collisions}
            stops.append(selection.offer(model, number, metrics))
        selection.restore(model)
        return model.codebooks[0, 0, 0].item(), stops

    assert kept((1.0, 9, 0), (0.5, 2, 0.5))[0] == 1  # error first
    assert kept((0.500, 5, 0), (0.504, 7, 0.9))[0] == 1  # within tolerance: perplexity
    assert kept((0.500, 5, 0.2), (0.499, 5, 0.1), (0.498, 5, 0.3))[0] == 1  # then collisions
    assert kept((0.500, 5, 0), (0.5049, 6, 0), (0.5098, 7, 0))[0] == 1  # the tolerance does not creep
    assert kept((1.0, 5, 0), (1.1, 5, 0), (0.9, 5, 0), (0.91, 5, 0), (0.92, 5, 0), patience=2)[1] == [False, False, False, False, True]


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
    with pytest.raises(CEMGError, match="codebook_decay"):
        settings(codebook_decay=1.0)
