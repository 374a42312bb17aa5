"""Pictures of items, and pretrained networks that encode them: what these have in common, and torchvision's VGG."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torchvision import models
from tqdm import tqdm

from ..artefacts import fingerprint, fingerprint_path
from ..errors import CEMGError
from ..settings import expand_path
from .cache import Batches, VectorCache, default_cache_folder
from .encoder import RawFeatures, resolve_device
from .pictures import decode_ahead, image_sources, picture_keys

COLOUR_GRADIENT = "colour-gradient"
NETWORKS = tuple(models.list_models(include="vgg*"))
LAYERS = {"fc7": 4096, "conv": 512}
CODE_VERSION = "1"  # raise when the same weights and settings start to give other vectors
IMAGENET_RESIZE = 256 / 224  # the shorter side is resized to this multiple of the crop
SMALLEST_SIZE = 32  # five poolings leave nothing of less


@dataclass
class ImageConfig:
    """How item pictures become raw vectors."""

    encoder: str = field(
        default="vgg16",
        metadata={
            "help": f'One of torchvision\'s {", ".join(NETWORKS)}; "{COLOUR_GRADIENT}", without a download; or a folder of `cemg rq-dino`.'
        },
    )
    weights: str = field(
        default="DEFAULT",
        metadata={
            "help": "Name of torchvision weights (downloaded), or a local .safetensors or .pth state dict (`~`, `$VARIABLES` allowed)."
        },
    )
    layer: str = field(
        default="fc7",
        metadata={
            "help": '"fc7": second fully connected layer after ReLU, 4096-d (the paper); "conv": average of the last feature map, 512-d.'
        },
    )
    size: int = field(default=224, metadata={"help": "Side of the square crop that VGG sees, in pixels."})
    batch_size: int = field(default=16, metadata={"help": "Images per forward pass."})
    workers: int = field(default=2, metadata={"help": "Threads that read and decode images while the network runs."})
    device: str = field(default="auto", metadata={"help": 'Where VGG runs: "auto", "cpu", "cuda", "cuda:1" …'})

    @property
    def is_folder(self) -> bool:
        """Whether the encoder is a network of the user's own rather than one known by name, whether or not its folder lies here."""
        return self.encoder not in (*NETWORKS, COLOUR_GRADIENT)

    def check(self) -> None:
        """Raise CEMGError for a setting that cannot work."""
        if self.is_folder and "/" not in self.encoder and not Path(self.encoder).is_dir():
            raise CEMGError(
                f"image.encoder = {self.encoder!r}: choose one of {', '.join((*NETWORKS, COLOUR_GRADIENT))}, or a folder of `cemg rq-dino`"
            )
        if self.layer not in LAYERS:
            raise CEMGError(f"image.layer = {self.layer!r}: choose one of {', '.join(LAYERS)}")
        if self.size < SMALLEST_SIZE:
            raise CEMGError(f"image.size = {self.size}: must be at least {SMALLEST_SIZE} pixels")
        for name in ("batch_size", "workers"):
            if getattr(self, name) < 1:
                raise CEMGError(f"image.{name} = {getattr(self, name)}: must be at least 1")


class PretrainedImageEncoder:
    """A network whose weights do not depend on the catalogue, its vectors cached by content.

    Subclasses give `dimension`, `fingerprint` and `describe`, what a picture becomes before the network (`transform`), and the network.
    """

    modality = "image"
    learns = False
    config: ImageConfig
    cache_folder: Path

    @property
    def dimension(self) -> int:
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        raise NotImplementedError

    def transform(self, image: Image.Image) -> torch.Tensor:
        """What the network reads of one picture."""
        raise NotImplementedError

    def _load(self) -> torch.nn.Module:
        """The network, from a batch of what `transform` returns to vectors."""
        raise NotImplementedError

    def fit(self, items: pl.DataFrame, seed: int) -> None:
        """Nothing to learn: the weights are pretrained."""

    def save(self, folder: Path) -> None:
        """Nothing to write: the weights are where they came from."""

    def encode(self, items: pl.DataFrame, base: Path | None = None) -> RawFeatures:
        """Raw vectors (N, D); items without a picture, or with one that cannot be read, are masked."""
        sources = image_sources(items, base)
        unreadable: dict[int, str] = {}
        rows, keys = picture_keys(sources, self.config.workers, unreadable)

        def compute(batches: Batches) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            # The cache counts only the rows that have content.
            for done, vectors in self._compute(sources, [rows[batch] for batch in batches], unreadable):
                yield np.searchsorted(rows, done), vectors

        cache = VectorCache(self.cache_folder / self.fingerprint)
        vectors, known = cache.fill(keys, np.zeros(len(rows)), self.config.batch_size, self.dimension, compute)
        reasons = {keys[place]: unreadable[int(row)] for place, row in enumerate(rows) if int(row) in unreadable}
        unreadable.update({int(row): reasons[key] for row, key in zip(rows[~known], keys[~known], strict=True)})
        return RawFeatures.scattered(
            items.height, rows[known], vectors if known.all() else vectors[known], dict(sorted(unreadable.items()))
        )

    def _compute(
        self, sources: Sequence[bytes | Path | None], batches: Batches, unreadable: dict[int, str]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if not batches:
            return
        device = resolve_device(self.config.device)
        network: torch.nn.Module | None = None
        with tqdm(total=sum(map(len, batches)), desc=f"image {self.config.encoder}", unit="item") as bar:
            ready = decode_ahead(sources, batches, self.transform, self.config.workers, unreadable)
            for batch, (rows, decoded) in zip(batches, ready, strict=True):
                if decoded:
                    if network is None:
                        # Channels last is the layout convolutions are fastest in (a fifth on a CPU); the values stay the same.
                        network = self._load().to(device).to(memory_format=torch.channels_last).eval()
                    with torch.inference_mode():
                        pixels = torch.stack(decoded).to(device, memory_format=torch.channels_last)
                        yield rows, network(pixels).float().cpu().numpy()
                bar.update(len(batch))


class VGGImageEncoder(PretrainedImageEncoder):
    """A torchvision VGG network."""

    def __init__(self, config: ImageConfig, cache_folder: Path | None = None) -> None:
        """Finds the weights; they are loaded when an image has to be encoded."""
        config.check()
        self.config = config
        self.cache_folder = cache_folder or default_cache_folder()
        known = models.get_model_weights(config.encoder)
        self.published = known[config.weights] if config.weights in known.__members__ else None
        self.weights_file = None if self.published is not None else Path(expand_path(config.weights, "image.weights"))
        if self.weights_file is not None and not self.weights_file.is_file():
            names = ", ".join(known.__members__)
            raise CEMGError(
                f"image.weights = {config.weights!r}: no file {self.weights_file}; give a state dict, one of {names}, "
                f'or set image.encoder to "{COLOUR_GRADIENT}" to work without weights'
            )
        preset = self.published or known["DEFAULT"]
        self.preset = preset.transforms(crop_size=config.size, resize_size=round(config.size * IMAGENET_RESIZE))

    @property
    def dimension(self) -> int:
        return LAYERS[self.config.layer]

    @cached_property
    def fingerprint(self) -> str:
        weights = self.published.url if self.published is not None else fingerprint_path(self.weights_file or "")
        return fingerprint("image", CODE_VERSION, self.config.encoder, weights, self.config.layer, str(self.config.size))

    def describe(self) -> dict[str, Any]:
        names = ("encoder", "weights", "layer", "size")
        return {
            "modality": self.modality,
            "kind": "torchvision",
            "name": f"{self.config.encoder} ({self.config.layer})",
            "settings": {name: getattr(self.config, name) for name in names},
            "dimension": self.dimension,
            "fingerprint": self.fingerprint,
            "files": [],
        }

    def transform(self, image: Image.Image) -> torch.Tensor:
        return self.preset(image)

    def _load(self) -> torch.nn.Module:
        """The part of the network up to the chosen layer."""
        state = self._state()
        # No memory for weights before they are read, and none for the layers behind the chosen one.
        with torch.device("meta"):
            network = models.get_model(self.config.encoder, weights=None, init_weights=False)
        layers: dict[str, torch.nn.Module] = {"features": network.features}
        if self.config.layer == "fc7":
            layers |= {"avgpool": network.avgpool, "flatten": torch.nn.Flatten(), "classifier": network.classifier[:5]}
            if not any(name.startswith("classifier.") for name in state) or bool(state["classifier.3.weight"].isnan().any()):
                raise CEMGError(f"image.layer = 'fc7': {self.config.weights} holds only convolutions; set image.layer to 'conv'")
        else:
            layers |= {"pool": torch.nn.AdaptiveAvgPool2d(1), "flatten": torch.nn.Flatten()}
        encoder = torch.nn.Sequential()
        for name, layer in layers.items():
            encoder.add_module(name, layer)
        wanted = encoder.state_dict()
        wrong = [name for name, value in wanted.items() if name not in state or state[name].shape != value.shape]
        if wrong:
            raise CEMGError(
                f"image.weights = {self.config.weights!r}: {wrong[0]} is missing or has another shape than in {self.config.encoder}; "
                "give the state dict of that network under torchvision's names"
            )
        floats = {name: state[name].float() if state[name].is_floating_point() else state[name] for name in wanted}
        encoder.load_state_dict(floats, assign=True)
        return encoder

    def _state(self) -> dict[str, torch.Tensor]:
        if self.weights_file is None:
            assert self.published is not None
            try:
                return dict(self.published.get_state_dict(progress=True, check_hash=True))
            except OSError as error:
                raise CEMGError(
                    f"image.weights = {self.config.weights!r}: download from {self.published.url} failed ({error}); give a local file, "
                    f'or set image.encoder to "{COLOUR_GRADIENT}"'
                ) from error
        try:
            if self.weights_file.suffix == ".safetensors":
                return load_file(self.weights_file)
            state = torch.load(self.weights_file, map_location="cpu", weights_only=True)
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CEMGError(
                f"image.weights: {self.weights_file} is no safetensors file and no .pth of plain tensors; save the state dict again"
            ) from error
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise CEMGError(f"image.weights: {self.weights_file} is not a state dict; save model.state_dict() to it")
        return state
