"""RQ-DINO as it is used: a picture becomes a latent vector and M codes. How it is trained stands in training/self_distillation.py.

What is quantised is a projection of the backbone's features that is normalised over its D entries (zero mean, unit variance): without a
fixed scale the network could lower the commitment loss by shrinking what it says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..cemg.modeling_rqvae import QuantiserOutput, ResidualQuantiser
from .backbones_rq_dino import build_backbone
from .configuration_rq_dino import RQDinoConfig


@dataclass
class RQDinoOutput(ModelOutput):
    """latent (B, D): z before quantisation; codes (B, M) int64; quantised (B, D): sum of the chosen code vectors."""

    latent: Tensor | None = None
    codes: Tensor | None = None
    quantised: Tensor | None = None


class PictureEncoder(nn.Module):
    """Backbone, projection and normalisation: normalised pixels (B, 3, H, W) → z (B, D) float32."""

    def __init__(self, config: RQDinoConfig) -> None:
        super().__init__()
        self.backbone = build_backbone(config.backbone, config.backbone_config)
        self.projection = nn.Linear(self.backbone.dimension, config.latent_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.project(self.backbone(pixels))

    def project(self, features: Tensor) -> Tensor:
        """z (B, D) float32 of the backbone's features (B, F)."""
        projected = self.projection(features)
        return functional.layer_norm(projected.float(), projected.shape[-1:])


class RQDinoModel(PreTrainedModel):
    """Pictures to latent vectors and residual codes; loaded with `from_pretrained`."""

    config_class = RQDinoConfig
    config: RQDinoConfig
    main_input_name = "pixel_values"
    base_model_prefix = "rq_dino"

    def __init__(self, config: RQDinoConfig) -> None:
        super().__init__(config)
        self.encoder = PictureEncoder(config)
        self.quantiser = ResidualQuantiser()
        self.quantiser.add_codebooks(config.num_levels, config.codebook_size, config.latent_dim)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: backbones begin as their libraries begin them, and codebooks by k-means."""

    def preprocess(self, pixels: Tensor) -> Tensor:
        """Whole pictures (B, 3, H, W), uint8 or floats in [0, 1], as the network sees them: (B, 3, S, S) with S = `image_size`."""
        side = [self.config.image_size, self.config.image_size]
        if list(pixels.shape[-2:]) != side:
            pixels = transforms.resize(pixels, side, antialias=True)
        return self.normalise(transforms.to_dtype(pixels, torch.float32, scale=True))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Float pixels in [0, 1] with mean and standard deviation of the channels taken out."""
        return transforms.normalize(pixels, self.config.pixel_mean, self.config.pixel_std)

    def quantise(self, latent: Tensor) -> QuantiserOutput:
        """Residual quantisation of z (B, D), in single precision: half of it would reorder near code vectors."""
        with torch.autocast(latent.device.type, enabled=False):
            return self.quantiser.quantise(latent.float())

    def forward(self, pixel_values: Tensor, return_dict: bool | None = None) -> RQDinoOutput:
        """Latent vectors and nearest codes of whole pictures.

        Args:
            pixel_values: (B, 3, H, W), uint8 or floats in [0, 1]; resized to a square, not cropped.
            return_dict: accepted for callers that pass it to every model; the output is always a `RQDinoOutput`.
        """
        latent = self.encoder(self.preprocess(pixel_values))
        found = self.quantise(latent)
        return RQDinoOutput(latent=latent, codes=found.codes, quantised=found.quantised)
