from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cemg_hf.models.rq_dino import RQDinoConfig, RQDinoModel

TINY = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}


def build(**settings: object) -> RQDinoModel:
    torch.manual_seed(0)
    values = {"backbone": "resnet", "backbone_config": TINY, "image_size": 16, "latent_dim": 6, "num_levels": 3, "codebook_size": 5}
    return RQDinoModel(RQDinoConfig(**values | settings)).eval()


def pictures(side: int = 16) -> torch.Tensor:
    return torch.randint(256, (7, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_codes_are_those_of_the_nearest_code_vectors() -> None:
    model = build()
    found = model(pictures())
    residual = found.latent
    for level, column in enumerate(found.codes.T):
        distances = torch.cdist(residual, model.quantiser.codebooks[level])
        assert torch.equal(column, distances.argmin(1))
        residual = residual - model.quantiser.codebooks[level][column]
    torch.testing.assert_close(found.quantised, found.latent - residual)


@torch.no_grad()
def test_latent_vectors_have_one_scale() -> None:
    latent = build()(pictures()).latent
    torch.testing.assert_close(latent.mean(1), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(latent.square().mean(1), torch.ones(7), atol=1e-2, rtol=0)


@torch.no_grad()
def test_bytes_and_floats_are_the_same_picture() -> None:
    model = build()
    torch.testing.assert_close(model(pictures()).latent, model(pictures().float() / 255).latent)
    assert model.preprocess(pictures(40)).shape == (7, 3, 16, 16)
    black = model.preprocess(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))[0, :, 0, 0]
    torch.testing.assert_close(black, -torch.tensor(model.config.pixel_mean) / torch.tensor(model.config.pixel_std))


@torch.no_grad()
def test_codes_do_not_depend_on_autocast_but_for_the_latents() -> None:
    model = build()
    latent = 100 + torch.randn(50, 6)  # half precision cannot tell these apart
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model.quantise(latent).codes
    assert torch.equal(inside, model.quantise(latent).codes)


@pytest.mark.parametrize(("backbone", "settings"), [("resnet", TINY), ("shufflenet_v2_x0_5", {})])
@torch.no_grad()
def test_saved_and_loaded_it_says_the_same(tmp_path: Path, backbone: str, settings: dict[str, object]) -> None:
    model = build(backbone=backbone, backbone_config=settings, image_size=32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    model.save_pretrained(tmp_path)
    loaded = RQDinoModel.from_pretrained(tmp_path).eval()
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    expected, found = model(pictures()), loaded(pictures())
    torch.testing.assert_close(found.latent, expected.latent)
    assert torch.equal(found.codes, expected.codes)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, msg=name)
