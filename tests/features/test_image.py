from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from feature_samples import item_table, jpeg
from PIL import Image
from safetensors.torch import load_file
from torchvision import models

from cemg_hf.errors import CEMGError
from cemg_hf.features.image import COLOUR_GRADIENT, ImageConfig, VGGImageEncoder
from cemg_hf.features.pictures import image_sources, open_image

TRUNCATED = jpeg(9)[: len(jpeg(9)) // 2]


def encoder(weights: Path, cache: Path, **settings: Any) -> VGGImageEncoder:
    chosen = {"encoder": "vgg11", "layer": "conv", "size": 32, "batch_size": 2, "device": "cpu"} | settings
    return VGGImageEncoder(ImageConfig(weights=str(weights), **chosen), cache)


def features(weights: Path, content: bytes) -> torch.Tensor:
    """Last feature map (C, H, W) straight from torchvision."""
    network = models.vgg11(weights=None, init_weights=False).eval()
    state = load_file(weights) if weights.suffix == ".safetensors" else torch.load(weights, weights_only=True)
    network.features.load_state_dict(
        {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}
    )
    preset = models.VGG11_Weights.IMAGENET1K_V1.transforms(crop_size=32, resize_size=37)
    with torch.inference_mode():
        return network.features(preset(open_image(content)).unsqueeze(0))[0]


def test_conv_vectors_are_the_averaged_feature_map(vgg_weights: Path, tmp_path: Path) -> None:
    images = [jpeg(1), None, jpeg(2), jpeg(1), jpeg(3)]
    raw = encoder(vgg_weights, tmp_path).encode(item_table(["x"] * 5, images))
    assert raw.vectors.shape == (5, 512)
    assert raw.mask.tolist() == [True, False, True, True, True]
    assert not raw.vectors[1].any()
    np.testing.assert_array_equal(raw.vectors[0], raw.vectors[3])
    for row in (0, 2, 4):
        np.testing.assert_allclose(raw.vectors[row], features(vgg_weights, images[row]).mean((1, 2)).numpy(), rtol=1e-4, atol=1e-5)


def test_fc7_is_the_second_fully_connected_layer_after_relu(vgg_weights: Path, tmp_path: Path) -> None:
    # Weights of rank one: every output is a scaled sum of the inputs, small on disk and easy to compute by hand.
    torch.manual_seed(1)
    first, second = torch.randn(4096, 1) / 100, torch.randn(4096, 1) / 100
    state = load_file(vgg_weights) | {
        "classifier.0.weight": first.expand(4096, 25088),
        "classifier.0.bias": torch.randn(4096),
        "classifier.3.weight": second.expand(4096, 4096),
        "classifier.3.bias": torch.randn(4096),
    }
    path = tmp_path / "vgg11.pth"
    torch.save(state, path)
    raw = encoder(path, tmp_path, layer="fc7").encode(item_table(["x"], [jpeg(1)]))
    pooled = torch.nn.functional.adaptive_avg_pool2d(features(path, jpeg(1)), 7).sum()
    hidden = torch.relu(first[:, 0] * pooled + state["classifier.0.bias"]).sum()
    expected = torch.relu(second[:, 0] * hidden + state["classifier.3.bias"])
    np.testing.assert_allclose(raw.vectors[0], expected.numpy(), rtol=1e-3, atol=1e-3)


def test_unreadable_images_are_reported_and_masked(vgg_weights: Path, tmp_path: Path) -> None:
    images = [jpeg(1), TRUNCATED, b"not a picture", None, TRUNCATED, jpeg(2)]
    raw = encoder(vgg_weights, tmp_path).encode(item_table(["x"] * 6, images))
    assert raw.mask.tolist() == [True, False, False, False, False, True]
    assert sorted(raw.unreadable) == [1, 2, 4]
    assert "truncated" in raw.unreadable[1].lower()
    assert raw.unreadable[4] == raw.unreadable[1]
    assert not raw.vectors[~raw.mask].any()


def test_only_unreadable_images(vgg_weights: Path, tmp_path: Path) -> None:
    raw = encoder(vgg_weights, tmp_path).encode(item_table(["x"] * 2, [TRUNCATED, b"no"]))
    assert raw.vectors.shape == (2, 512)
    assert not raw.mask.any()
    assert len(raw.unreadable) == 2


def test_cached_images_need_no_network_even_beside_unreadable_ones(
    vgg_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = item_table(["x"] * 4, [jpeg(1), TRUNCATED, jpeg(2), jpeg(3)])
    first = encoder(vgg_weights, tmp_path).encode(items)
    monkeypatch.setattr(VGGImageEncoder, "_load", lambda _: pytest.fail("the network was loaded"))
    second = encoder(vgg_weights, tmp_path).encode(items)
    np.testing.assert_array_equal(first.vectors, second.vectors)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert first.unreadable == second.unreadable


def test_paths_are_taken_from_the_base_and_missing_files_reported(vgg_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    items = pl.DataFrame({"item_id": ["a", "b", "c"], "image": ["a.jpg", "gone.jpg", None]})
    raw = encoder(vgg_weights, tmp_path).encode(items, tmp_path)
    assert raw.mask.tolist() == [True, False, False]
    assert list(raw.unreadable) == [1]
    bytes_raw = encoder(vgg_weights, tmp_path).encode(item_table(["x"], [jpeg(1)]))
    np.testing.assert_array_equal(raw.vectors[0], bytes_raw.vectors[0])


def test_sources_of_every_column_type() -> None:
    data = jpeg(1)
    assert image_sources(pl.DataFrame({"image": [data, None, b""]})) == [data, None, None]
    assert image_sources(pl.DataFrame({"image": [{"bytes": None, "path": "p"}, None]}), Path("base")) == [Path("base/p"), None]
    assert image_sources(pl.DataFrame({"item_id": ["a"]})) == [None]
    with pytest.raises(CEMGError, match="column image"):
        image_sources(pl.DataFrame({"image": [1]}))


def test_transparent_parts_are_white() -> None:
    buffer = BytesIO()
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(buffer, "PNG")
    assert open_image(buffer.getvalue()).getpixel((0, 0)) == (255, 255, 255)


def test_convolutions_alone_have_no_fc7(vgg_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"set image\.layer to 'conv'"):
        encoder(vgg_weights, tmp_path, layer="fc7").encode(item_table(["x"], [jpeg(1)]))


def test_weights_of_another_network(vgg_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"features\.\d+\.weight is missing or has another shape"):
        encoder(vgg_weights, tmp_path, encoder="vgg16").encode(item_table(["x"], [jpeg(1)]))


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_broken_weights_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"nothing of use")
    with pytest.raises(CEMGError, match=name):
        encoder(tmp_path / name, tmp_path).encode(item_table(["x"], [jpeg(1)]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "resnet50"}, "image.encoder = 'resnet50'"),
        ({"layer": "fc6"}, "image.layer = 'fc6'"),
        ({"weights": "/no/such.pth"}, "no file /no/such.pth"),
        ({"weights": "$NO_SUCH_VARIABLE/vgg.pth"}, "NO_SUCH_VARIABLE is not set"),
        ({"size": 8}, "image.size = 8"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=message):
        VGGImageEncoder(ImageConfig(**settings), tmp_path)


def test_a_folder_of_the_name_of_a_network_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("vgg16", COLOUR_GRADIENT, "mine"):
        (tmp_path / name).mkdir()
        assert ImageConfig(encoder=name).is_folder == (name == "mine")
    monkeypatch.chdir("/")  # from where the folder is not seen, as when features are read on another machine
    assert ImageConfig(encoder="mine").is_folder
    with pytest.raises(CEMGError, match="choose one of"):
        ImageConfig(encoder="mine").check()
