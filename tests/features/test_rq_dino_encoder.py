from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from feature_samples import item_table, jpeg

from cemg_hf.errors import CEMGError
from cemg_hf.features.image import ImageConfig
from cemg_hf.features.items import image_encoder, load_encoder
from cemg_hf.features.pictures import open_image
from cemg_hf.features.rq_dino_encoder import RQDinoImageEncoder
from cemg_hf.models.rq_dino import RQDinoConfig, RQDinoModel

TINY = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}


def write_model(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = RQDinoConfig(backbone="resnet", backbone_config=TINY, image_size=16, latent_dim=6, num_levels=2, codebook_size=4)
    RQDinoModel(config).save_pretrained(folder)
    return folder


def test_vectors_are_the_networks_latents(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    encoder = image_encoder(ImageConfig(encoder=str(folder), batch_size=2, device="cpu"), tmp_path / "cache")
    assert isinstance(encoder, RQDinoImageEncoder)
    raw = encoder.encode(item_table(["x"] * 4, [jpeg(1), None, jpeg(2), b"no picture"]))
    assert raw.vectors.shape == (4, 6) == (4, encoder.dimension)
    assert raw.mask.tolist() == [True, False, True, False]
    assert list(raw.unreadable) == [3]
    model = RQDinoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = model(torch.stack([encoder.transform(open_image(jpeg(seed))) for seed in (1, 2)])).latent
    np.testing.assert_allclose(raw.vectors[[0, 2]], expected.numpy(), atol=1e-5)


def test_its_description_finds_it_again_and_other_weights_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    description = image_encoder(ImageConfig(encoder=str(folder)), tmp_path / "cache").describe()
    assert load_encoder(description, tmp_path, cache_folder=tmp_path / "cache").fingerprint == description["fingerprint"]
    moved = folder.rename(tmp_path / "moved")
    assert load_encoder(description, tmp_path, source=str(moved), cache_folder=tmp_path / "cache").dimension == 6
    other = write_model(tmp_path / "other", seed=1)
    with pytest.raises(CEMGError, match="not the weights and settings"):
        load_encoder(description, tmp_path, source=str(other), cache_folder=tmp_path / "cache")


def test_what_is_no_such_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"config\.json cannot be read"):
        image_encoder(ImageConfig(encoder=str(tmp_path / "nothing")), tmp_path / "cache")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CEMGError, match=r"holds no model of `cemg rq-dino`"):
        image_encoder(ImageConfig(encoder=str(tmp_path)), tmp_path / "cache")
