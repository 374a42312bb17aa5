from __future__ import annotations

import torch
from tokenizer_samples import settings, shop

from cemg_hf.models.cemg.modeling_rqvae import CEMGRQVAE
from cemg_hf.training.codebooks import MovingAverageCodebooks, initialise_codebooks


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
    initialise_codebooks(model, model.encode(features, given).detach())
    levels = error()
    assert levels[-1] < 0.5 * random_error
    assert levels == sorted(levels, reverse=True)


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
    averages = MovingAverageCodebooks(model, 0.5, 100)
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
    averages = MovingAverageCodebooks(model, 0.8, 100)
    for _ in range(80):
        found = model.quantise(latent)
        averages.update(found.codes, found.residuals)
    torch.testing.assert_close(model.codebooks[0], torch.stack([latent[:50].mean(0), latent[50:].mean(0)]), atol=1e-3, rtol=1e-3)
    assert averages.revive(latent) == 0
