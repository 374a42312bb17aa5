from __future__ import annotations

from typing import Any

import pytest
import torch

from cemg_hf.models.rq_dino.backbones_rq_dino import build_backbone

SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16, "image_size": 32, "patch_size": 8}


@pytest.mark.parametrize(
    ("name", "settings", "width"),
    [
        ("shufflenet_v2_x0_5", {}, 1024),
        ("mobilenet_v3_small", {}, 1024),
        ("vit", SMALL, 16),
        ("dinov2", {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "image_size": 32, "patch_size": 8}, 16),
        ("convnext", {"hidden_sizes": [4, 6], "depths": [1, 1], "num_stages": 2}, 6),
        ("swin", {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": 32, "patch_size": 4, "window_size": 4}, 16),
        ("resnet", {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}, 8),
    ],
)
def test_pictures_of_two_sizes_become_vectors(name: str, settings: dict[str, Any], width: int) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, settings).eval()
    assert backbone.dimension == width
    for side in (32, 48):
        with torch.no_grad():
            vectors = backbone(torch.rand(3, 3, side, side))
        assert vectors.shape == (3, width)
        assert bool(vectors.isfinite().all())
        assert (vectors[0] - vectors[1]).abs().max() > 0


def test_vgg_is_its_convolutions() -> None:
    backbone = build_backbone("vgg11", {}).eval()
    assert backbone.dimension == 512
    assert {name.split(".")[1] for name, _ in backbone.named_parameters()} == {"features"}
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(picture), backbone.network.features(picture).mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet81", {}, r"'resnet81' is neither .*; did you mean"),
        ("???", {}, r"such names are resnet18, vit"),
        ("resnet18", {"hidden_size": 3}, "takes no settings, got hidden_size"),
        ("squeezenet1_1", {}, "no linear classifier"),
        ("bert", {"num_hidden_layers": 1, "hidden_size": 12, "intermediate_size": 8}, "no network from pictures"),
    ],
)
def test_what_is_no_backbone_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(name, settings)
