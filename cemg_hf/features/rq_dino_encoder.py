"""An RQ-DINO network as the image encoder of the `encode` stage: its latent vectors, before they are quantised."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..artefacts import fingerprint
from ..errors import CEMGError
from ..models.rq_dino import RQDinoConfig, RQDinoModel
from ..settings import expand_path
from .cache import default_cache_folder
from .image import ImageConfig, PretrainedImageEncoder

CODE_VERSION = "1"  # raise when the same weights and settings start to give other vectors
CONFIG_NAME = "config.json"
WEIGHTS = "model*.safetensors"


class RQDinoImageEncoder(PretrainedImageEncoder):
    """A folder written by `cemg rq-dino`; of the settings, `batch_size`, `workers` and `device` count."""

    def __init__(self, config: ImageConfig, cache_folder: Path | None = None) -> None:
        """Reads the configuration; the weights are loaded when an image has to be encoded."""
        self.config = config
        self.cache_folder = cache_folder or default_cache_folder()
        self.folder = Path(expand_path(config.encoder, "image.encoder"))
        try:
            self.network_config = RQDinoConfig.from_pretrained(self.folder)
        except (OSError, ValueError) as error:
            raise CEMGError(f"image.encoder = {config.encoder!r}: {self.folder / CONFIG_NAME} cannot be read ({error})") from error
        if self.network_config.model_type != RQDinoConfig.model_type or not any(self.folder.glob(WEIGHTS)):
            raise CEMGError(f"image.encoder = {config.encoder!r}: holds no model of `cemg rq-dino`; train one, or name a VGG network")

    @property
    def dimension(self) -> int:
        return self.network_config.latent_dim

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint("image", "rq-dino", CODE_VERSION, self.folder / CONFIG_NAME, *sorted(self.folder.glob(WEIGHTS)))

    def describe(self) -> dict[str, Any]:
        return {
            "modality": self.modality,
            "kind": "rq-dino",
            "name": f"RQ-DINO ({self.network_config.backbone})",
            "settings": {"encoder": self.config.encoder},
            "dimension": self.dimension,
            "fingerprint": self.fingerprint,
            "files": [],
        }

    def transform(self, image: Image.Image) -> Tensor:
        """(3, S, S) uint8: the whole picture, squeezed as in training."""
        side = (self.network_config.image_size,) * 2
        square = image.resize(side, Image.Resampling.BICUBIC, reducing_gap=3.0)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)

    def _load(self) -> nn.Module:
        return _Latent(RQDinoModel.from_pretrained(self.folder))


class _Latent(nn.Module):
    """The network reduced to its vectors."""

    def __init__(self, model: RQDinoModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.encoder(self.model.preprocess(pixels))
