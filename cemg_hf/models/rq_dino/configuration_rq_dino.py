"""Configuration of RQ-DINO."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from transformers import PreTrainedConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class RQDinoConfig(PreTrainedConfig):
    """Settings of [`RQDinoModel`].

    Args:
        backbone (`str`): a torchvision classification network such as resnet18, or a transformers model type such as vit.
        backbone_config (`dict`): the configuration of a transformers backbone; empty for torchvision.
        image_size (`int`): side of the square that the whole picture is brought to, in pixels.
        latent_dim (`int`): D, dimension of z and of the code vectors.
        num_levels (`int`): M, codes per picture.
        codebook_size (`int`): K, codes per level.
        pixel_mean (`list`): of the three channels, subtracted from pixels in [0, 1].
        pixel_std (`list`): of the three channels, what the difference is divided by.
    """

    model_type = "rq_dino"

    backbone: str = "resnet18"
    backbone_config: dict[str, Any] = field(default_factory=dict)
    image_size: int = 64
    latent_dim: int = 128
    num_levels: int = 4
    codebook_size: int = 256
    pixel_mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    pixel_std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("image_size", "latent_dim", "num_levels", "codebook_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not a positive integer")
        super().__post_init__(**kwargs)
