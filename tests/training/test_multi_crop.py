from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from cemg_hf.errors import CEMGError
from cemg_hf.training.multi_crop import CropConfig, MultiCrop, adjust_colours, blur, crop, random_boxes, turn_hue


def pixels(count: int = 5, side: int = 40) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def test_crops_have_the_sizes_asked_for_and_lie_in_the_unit_range() -> None:
    crops = MultiCrop(CropConfig(size=24, local_size=10, local_crops=3))
    views, local = crops((pixels() * 255).byte(), torch.full((5,), 0.7))
    assert views.shape == (2, 5, 3, 24, 24)
    assert local.shape == (3, 5, 3, 10, 10)
    assert min(views.min(), local.min()) >= 0
    assert max(views.max(), local.max()) <= 1


def test_every_picture_has_draws_of_its_own() -> None:
    torch.manual_seed(0)
    same = (pixels(1) * 255).byte().expand(6, -1, -1, -1)
    views, local = MultiCrop(CropConfig(size=16, local_size=16, local_crops=1))(same, torch.ones(6))
    seen = torch.cat([*views, *local]).flatten(1)
    assert torch.cdist(seen, seen).add(torch.eye(len(seen))).min() > 1e-3


def test_no_local_crops_are_none() -> None:
    assert MultiCrop(CropConfig(size=16, local_crops=0))((pixels() * 255).byte(), torch.ones(5))[1].shape == (0, 5, 3, 32, 32)


def test_a_crop_is_that_of_torchvision() -> None:
    pictures = pixels(3)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.5, 0.25], [0.1, 0.2, 0.3, 0.4]])
    found = crop(pictures, boxes, torch.tensor([False, True, False]), 20)
    for row, (left, top, width, height) in enumerate((boxes * 40).int().tolist()):
        expected = transforms.resized_crop(pictures[row], top, left, height, width, [20, 20], antialias=False)
        if row == 1:
            expected = transforms.horizontal_flip(expected)
        # At the very edge of a box this one looks beyond it, where torchvision repeats the border.
        torch.testing.assert_close(found[row, :, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-4, rtol=1e-4)


def test_boxes_lie_in_the_picture_and_cover_the_share_asked_for() -> None:
    torch.manual_seed(0)
    aspect = torch.full((4000,), 2 / 3)
    left, top, width, height = random_boxes(aspect, [0.1, 0.4]).unbind(1)
    assert min(left.min(), top.min()) >= 0
    assert max((left + width).max(), (top + height).max()) <= 1 + 1e-6
    assert (width * height).min() >= 0.1 - 1e-6
    assert (width * height).max() <= 0.4 + 1e-6
    ratio = (width / height * aspect)[(width < 1) & (height < 1)]  # as it looks
    assert ratio.min() >= 3 / 4 - 1e-4
    assert ratio.max() <= 4 / 3 + 1e-4


def test_colours_change_as_by_torchvision() -> None:
    pictures = pixels(2)
    factors = {"brightness": torch.tensor([0.7, 1.3]), "contrast": torch.tensor([1.2, 0.6]), "saturation": torch.tensor([0.0, 1.9])}
    found = adjust_colours(pictures, **factors)
    for row in range(2):
        expected = pictures[row]
        for name in ("brightness", "contrast", "saturation"):
            expected = getattr(transforms, f"adjust_{name}")(expected, float(factors[name][row]))
        torch.testing.assert_close(found[row], expected, atol=2e-3, rtol=0)


def test_hue_turns_once_around_and_leaves_grey_alone() -> None:
    pictures = 0.5 + 0.1 * (pixels(3) - 0.5)
    torch.testing.assert_close(turn_hue(pictures, torch.tensor([0.0, 1.0, -1.0])), pictures, atol=1e-5, rtol=0)
    grey = pictures[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(turn_hue(grey, torch.tensor([0.1, 0.3, 0.5])), grey, atol=2e-3, rtol=0)
    third = torch.tensor([[0.6, 0.4, 0.4]])[..., None, None]
    turned = turn_hue(third, torch.tensor([1 / 3])).flatten()
    assert turned.argmax() != 0


@pytest.mark.parametrize("sigma", [0.4, 1.1])
def test_blur_is_torchvisions_gaussian(sigma: float) -> None:
    pictures = pixels(2, side=16)
    radius = math.ceil(3 * sigma)
    found = blur(pictures, torch.tensor([sigma, 1e-6]), radius)
    torch.testing.assert_close(found[0], transforms.gaussian_blur(pictures[0], [2 * radius + 1] * 2, [sigma, sigma]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], pictures[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 4}, r"crops\.size = 4: must be at least 8 pixels"),
        ({"local_size": 2}, r"crops\.local_size = 2"),
        ({"local_crops": -1}, r"crops\.local_crops"),
        ({"global_scale": [0.0, 1.0]}, r"crops\.global_scale"),
        ({"local_scale": [0.5]}, r"crops\.local_scale"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CEMGError, match=message):
        CropConfig(**settings)
