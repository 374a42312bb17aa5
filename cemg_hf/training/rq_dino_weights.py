"""Where a backbone of RQ-DINO starts from: random weights, published ones, or those in a local file or folder."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

from ..errors import CEMGError
from ..models.rq_dino.backbones_rq_dino import TORCHVISION
from ..settings import expand_path


def is_pretrained(name: str) -> bool:
    """Whether a backbone is a folder or Hub id of transformers, with weights, rather than a kind of network known by name."""
    return name not in TORCHVISION and name not in CONFIG_MAPPING and ("/" in name or Path(name).is_dir())


def named_backbone(name: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A backbone as `RQDinoConfig` names it: that of a folder or Hub id by its model type and configuration.

    Raises:
        CEMGError: no such folder or repository, settings for a network that brings its own, or settings that it does not have.
    """
    if not is_pretrained(name):
        if settings and name in CONFIG_MAPPING:
            known = AutoConfig.for_model(name).to_dict()
            unknown = sorted(settings.keys() - known.keys())
            if unknown:  # transformers would take them and do nothing
                near = get_close_matches(unknown[0], known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"see the configuration of {name} in transformers"
                raise CEMGError(f"backbone_settings: {name} has no {unknown[0]!r}; {hint}")
        return name, settings
    if settings:
        raise CEMGError(f"backbone_settings: {name} brings its own configuration; leave them out")
    try:
        config = AutoConfig.from_pretrained(_place(name))
    except (OSError, ValueError) as error:
        raise CEMGError(f"backbone = {name!r}: no model of transformers there ({' '.join(str(error).split())[:200]})") from error
    about_the_file = ("model_type", "architectures", "transformers_version", "dtype")
    return str(config.model_type), {key: value for key, value in config.to_diff_dict().items() if key not in about_the_file}


def load_start(network: nn.Module, backbone: str, weights: str | None) -> None:
    """Load the weights that a backbone starts from into `network`; without any it stays as it is.

    Raises:
        CEMGError: weights for a transformers model, no such weights, or weights of another network.
    """
    if is_pretrained(backbone):
        if weights is not None:
            raise CEMGError(f"weights = {weights!r}: {backbone} brings its own; leave it out")
        _load(network, dict(AutoModel.from_pretrained(_place(backbone)).state_dict()), backbone)
        return
    if weights is None:
        return
    if backbone not in TORCHVISION:
        raise CEMGError(f"weights = {weights!r}: are for torchvision's networks; for transformers, give folder or Hub id as backbone")
    known = models.get_model_weights(backbone)
    if weights in known.__members__:
        try:
            _load(network, dict(known[weights].get_state_dict(progress=True, check_hash=True)), weights)
        except OSError as error:
            raise CEMGError(f"weights = {weights!r}: download from {known[weights].url} failed ({error}); give a local file") from error
        return
    path = Path(expand_path(weights, "weights"))
    if not path.is_file():
        raise CEMGError(f"weights = {weights!r}: no file {path}; give a state dict (.safetensors) or one of {', '.join(known.__members__)}")
    try:
        _load(network, load_file(path), str(path))
    except SafetensorError as error:
        raise CEMGError(f"weights: {path} is no safetensors file ({error}); save the state dict as one") from error


def _load(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """The part of a state dict that the network has; what it lacks (a classifier) is left out."""
    wanted = network.state_dict()
    wrong = [name for name, value in wanted.items() if name not in state or state[name].shape != value.shape]
    if wrong:
        raise CEMGError(f"{source}: {wrong[0]} is missing or has another shape than in the backbone; give the weights of that network")
    network.load_state_dict({name: state[name].to(value) for name, value in wanted.items()})


def _place(name: str) -> str:
    return expand_path(name, "backbone")
