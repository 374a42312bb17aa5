from __future__ import annotations

from pathlib import Path

import pytest

from cemg_hf.models.rq_dino import RQDinoConfig


def test_settings_survive_saving(tmp_path: Path) -> None:
    config = RQDinoConfig(backbone="vit", backbone_config={"hidden_size": 12}, image_size=48, latent_dim=6, num_levels=3, codebook_size=5)
    config.save_pretrained(tmp_path)
    loaded = RQDinoConfig.from_pretrained(tmp_path)
    for name in ("backbone", "backbone_config", "image_size", "latent_dim", "num_levels", "codebook_size", "pixel_mean", "pixel_std"):
        assert getattr(loaded, name) == getattr(config, name), name


@pytest.mark.parametrize("name", ["image_size", "latent_dim", "num_levels", "codebook_size"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: 0 is not a positive integer"):
        RQDinoConfig(**{name: 0})
