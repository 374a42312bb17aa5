"""Networks from pictures to vectors: any classification network of torchvision without its classifier, any image model of transformers."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import Any

import torchvision
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

TORCHVISION = tuple(torchvision.models.list_models(module=torchvision.models))
VGG = tuple(name for name in TORCHVISION if name.startswith("vgg"))


class TorchvisionBackbone(nn.Module):
    """What a classification network hands to its last linear layer, (B, F).

    Of a VGG network only the convolutions, averaged over the picture: its fully connected layers are nine tenths of its weights.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        network = torchvision.models.get_model(name, weights=None)
        if name in VGG:
            self.network = nn.Sequential()
            self.network.add_module("features", network.features)
            self.network.add_module("pool", nn.AdaptiveAvgPool2d(1))
            self.network.add_module("flatten", nn.Flatten())
            self.dimension = 512
            return
        linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError(f"backbone: {name!r} has no linear classifier to take away; choose another network, such as resnet18")
        owner, _, last = linear[-1].rpartition(".")
        parent = network.get_submodule(owner)
        self.dimension = parent.get_submodule(last).in_features
        parent.register_module(last, nn.Identity())
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, F) of (B, 3, H, W)."""
        return self.network(pixels)


class TransformersBackbone(nn.Module):
    """The pooled output of an image model, or the mean over its positions where it pools nothing, (B, F)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.network = AutoModel.from_config(config)
        settings = config.to_dict()
        if not (settings.get("hidden_sizes") or settings.get("hidden_size")) or self.network.main_input_name != "pixel_values":
            raise ValueError(f"backbone: {config.model_type!r} is no network from pictures to vectors; choose one such as vit or dinov2")
        self.dimension = int((settings.get("hidden_sizes") or [settings["hidden_size"]])[-1])
        # ViT and its kin read pictures of another size than the configured one only when told to.
        told = "interpolate_pos_encoding" in inspect.signature(self.network.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if told else {}

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, F) of (B, 3, H, W)."""
        output = self.network(pixels, **self.options)
        pooled = output.get("pooler_output")
        if pooled is not None:
            return pooled.flatten(1)
        hidden = output["last_hidden_state"]
        return hidden.mean((2, 3)) if hidden.ndim == 4 else hidden.mean(1)


def build_backbone(name: str, settings: dict[str, Any]) -> TorchvisionBackbone | TransformersBackbone:
    """A backbone with random weights.

    Raises:
        ValueError: a name that neither library knows, with the nearest ones, or settings that the model refuses.
    """
    if name in TORCHVISION:
        if settings:
            raise ValueError(f"backbone: {name!r} of torchvision takes no settings, got {', '.join(settings)}; leave them out")
        return TorchvisionBackbone(name)
    if name not in CONFIG_MAPPING:
        known = [*TORCHVISION, *CONFIG_MAPPING.keys()]
        near = get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "such names are resnet18, vit"
        raise ValueError(f"backbone: {name!r} is neither a network of torchvision nor a model type of transformers; {hint}")
    return TransformersBackbone(AutoConfig.for_model(name, **settings))
