"""Multi-crop augmentation of DINO (arXiv 2104.14294) on the device: whole batches of pictures, a draw of its own for every crop.

A random transform of torchvision draws once for the batch it is given, so what is drawn per picture is done here with factors per
picture; what is the same for all uses torchvision's v2 functions. Boxes, flips and colour factors have the distributions of
torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale, GaussianBlur and RandomSolarize, but for two: a box
that would not fit into the picture is clipped to it (torchvision draws again), and hue is turned in YIQ space, which is linear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from ..errors import CEMGError

RATIO = (3 / 4, 4 / 3)
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2}
HUE = 0.1  # of a full turn, either way
JITTER_SHARE, GREY_SHARE, FLIP_SHARE = 0.8, 0.2, 0.5
BLUR_SIGMA = (0.1, 2.0)
BLUR_SIZE = 224  # pixels of the crops that DINO's sigmas are meant for
SOLARISE_FROM = 0.5
RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass
class CropConfig:
    """Sizes and scales of the crops."""

    size: int = field(default=64, metadata={"help": "Side of the two global crops, and of whole pictures when they are coded, in pixels."})
    local_size: int = field(
        default=32, metadata={"help": "Side of the local crops; backbones of one input size need that of the global ones."}
    )
    local_crops: int = field(default=4, metadata={"help": "Local crops per picture, which only the student sees."})
    global_scale: list[float] = field(default_factory=lambda: [0.4, 1.0], metadata={"help": "Share of the picture in a global crop."})
    local_scale: list[float] = field(default_factory=lambda: [0.05, 0.4], metadata={"help": "Share of the picture in a local crop."})

    def __post_init__(self) -> None:
        for name in ("size", "local_size"):
            if getattr(self, name) < 8:
                raise CEMGError(f"crops.{name} = {getattr(self, name)}: must be at least 8 pixels")
        if self.local_crops < 0:
            raise CEMGError(f"crops.local_crops = {self.local_crops}: must be at least 0")
        for name in ("global_scale", "local_scale"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= 1:
                raise CEMGError(f"crops.{name} = {bounds}: expected two shares [least, most] of the picture in (0, 1]")


class MultiCrop:
    """Two global and some local crops of every picture."""

    def __init__(self, config: CropConfig) -> None:
        self.config = config

    def __call__(self, pixels: Tensor, aspect: Tensor) -> tuple[Tensor, Tensor]:
        """Crops of squeezed pictures, colours changed, not yet normalised.

        Args:
            pixels: (B, 3, S, S) uint8, pictures squeezed to squares.
            aspect: (B,) width / height before squeezing; crops are square in the picture as it was.

        Returns:
            Global crops (2, B, 3, size, size) and local ones (L, B, 3, local_size, local_size), floats in [0, 1].
        """
        config, count = self.config, len(pixels)
        pictures = transforms.to_dtype(pixels, torch.float32, scale=True)
        views = [
            _crops(pictures, aspect, config.size, config.global_scale, blur_share=1.0, solarise_share=0.0),
            _crops(pictures, aspect, config.size, config.global_scale, blur_share=0.1, solarise_share=0.2),
        ]
        local = pictures.new_empty(config.local_crops, count, 3, config.local_size, config.local_size)
        for index in range(config.local_crops):
            local[index] = _crops(pictures, aspect, config.local_size, config.local_scale, blur_share=0.5, solarise_share=0.0)
        return torch.stack(views), local


def _crops(pictures: Tensor, aspect: Tensor, size: int, scale: list[float], blur_share: float, solarise_share: float) -> Tensor:
    """One crop (B, 3, size, size) of each picture."""
    count, device = len(pictures), pictures.device
    cropped = crop(pictures, random_boxes(aspect, scale), _chosen(count, FLIP_SHARE, device), size)
    return random_blur(random_colours(cropped, solarise_share), blur_share)


def random_boxes(aspect: Tensor, scale: list[float]) -> Tensor:
    """Boxes (B, 4) left, top, width, height in [0, 1] of the picture's sides: area uniform in `scale`, log of the ratio uniform."""
    share = torch.empty_like(aspect).uniform_(scale[0], scale[1])
    ratio = torch.empty_like(aspect).uniform_(math.log(RATIO[0]), math.log(RATIO[1])).exp()
    width = (share * ratio / aspect).sqrt().clamp(max=1)
    height = (share * aspect / ratio).sqrt().clamp(max=1)
    return torch.stack([torch.rand_like(width) * (1 - width), torch.rand_like(height) * (1 - height), width, height], dim=1)


def crop(pictures: Tensor, boxes: Tensor, flipped: Tensor, size: int) -> Tensor:
    """The boxes (B, 4) of pictures (B, 3, H, W), those of `flipped` (B,) bool mirrored, as squares (B, 3, size, size)."""
    left, top, width, height = boxes.unbind(1)
    zero = torch.zeros_like(left)
    mirror = torch.where(flipped, -1.0, 1.0)
    # From crop to picture, both in [−1, 1].
    across = torch.stack([mirror * width, zero, 2 * left + width - 1], dim=1)
    down = torch.stack([zero, height, 2 * top + height - 1], dim=1)
    grid = functional.affine_grid(torch.stack([across, down], dim=1), [len(pictures), 3, size, size], align_corners=False)
    return functional.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def random_colours(crops: Tensor, solarise_share: float) -> Tensor:
    """Jitter, grey and solarisation, each with factors and a decision per crop."""
    count, device = len(crops), crops.device
    factors = {name: _factors(count, spread, device) for name, spread in JITTER.items()}
    turns = torch.empty(count, device=device).uniform_(-HUE, HUE)
    jittered = turn_hue(adjust_colours(crops, **factors), turns)
    crops = torch.where(_chosen(count, JITTER_SHARE, device)[:, None, None, None], jittered, crops)
    grey = transforms.rgb_to_grayscale(crops, num_output_channels=3)
    crops = torch.where(_chosen(count, GREY_SHARE, device)[:, None, None, None], grey, crops)
    if not solarise_share:
        return crops
    solarised = transforms.solarize(crops, SOLARISE_FROM)
    return torch.where(_chosen(count, solarise_share, device)[:, None, None, None], solarised, crops)


def adjust_colours(crops: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """torchvision's `adjust_brightness`, `adjust_contrast` and `adjust_saturation` in that order, with a factor (B,) per picture."""
    crops = (crops * brightness[:, None, None, None]).clamp(0, 1)
    mean = transforms.rgb_to_grayscale(crops).mean((1, 2, 3), keepdim=True)
    crops = mean.lerp(crops, contrast[:, None, None, None]).clamp(0, 1)
    return transforms.rgb_to_grayscale(crops).lerp(crops, saturation[:, None, None, None]).clamp(0, 1)


def turn_hue(crops: Tensor, turns: Tensor) -> Tensor:
    """Chroma rotated by `turns` (B,) of a full circle; luma stays, up to the limits of the range."""
    forward = torch.tensor(RGB_TO_YIQ, device=crops.device)
    angle = 2 * math.pi * turns
    turn = torch.zeros(len(turns), 3, 3, device=crops.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    matrix = torch.linalg.inv(forward) @ turn @ forward
    return torch.einsum("bij,bjhw->bihw", matrix, crops).clamp(0, 1)


def random_blur(crops: Tensor, share: float) -> Tensor:
    """A Gaussian blur of a share of the crops, each with a standard deviation of its own, scaled to the size of the crop."""
    count, side = len(crops), crops.shape[-1]
    sigma = torch.empty(count, device=crops.device).uniform_(*BLUR_SIGMA) * side / BLUR_SIZE
    chosen = _chosen(count, share, crops.device)
    return torch.where(chosen[:, None, None, None], blur(crops, sigma, radius=math.ceil(3 * BLUR_SIGMA[1] * side / BLUR_SIZE)), crops)


def blur(crops: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of (B, C, H, W) with a standard deviation (B,) per picture, in pixels; the edge is reflected."""
    count, channels = crops.shape[:2]
    offsets = torch.arange(-radius, radius + 1, device=crops.device, dtype=crops.dtype)
    kernel = (-0.5 * (offsets / sigma.clamp_min(1e-3)[:, None]).square()).softmax(1).repeat_interleave(channels, 0)
    padded = functional.pad(crops, [radius] * 4, mode="reflect").flatten(0, 1).unsqueeze(0)
    padded = functional.conv2d(padded, kernel[:, None, None, :], groups=count * channels)
    return functional.conv2d(padded, kernel[:, None, :, None], groups=count * channels).view_as(crops)


def _factors(count: int, spread: float, device: torch.device) -> Tensor:
    return torch.empty(count, device=device).uniform_(1 - spread, 1 + spread)


def _chosen(count: int, share: float, device: torch.device) -> Tensor:
    return torch.rand(count, device=device) < share
