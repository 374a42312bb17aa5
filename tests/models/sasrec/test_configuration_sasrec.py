from __future__ import annotations

from dataclasses import asdict, fields

import pytest

from cemg_hf.models.cemg import DenseSettings
from cemg_hf.models.sasrec import SASRecConfig


def test_defaults_are_those_of_the_tower_and_every_setting_is_there() -> None:
    assert SASRecConfig().network() == DenseSettings()
    changed = {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "feed_forward": 2, "layer": "ligr", "dropout": 0.4, "max_history": 9}
    changed |= {"loss": "full", "num_negatives": 7, "label_smoothing": 0.1, "content_dim": 5, "id_dropout": 0.3, "cosine_scale": 16.0}
    assert set(changed) == {entry.name for entry in fields(DenseSettings)}
    assert asdict(SASRecConfig(**changed).network()) == changed


def test_saved_and_loaded_config_is_the_same(tmp_path) -> None:
    config = SASRecConfig(num_items=9, layer="ligr", dropout=0.4)
    config.save_pretrained(tmp_path)
    loaded = SASRecConfig.from_pretrained(tmp_path)
    assert (loaded.num_items, loaded.network()) == (9, config.network())


@pytest.mark.parametrize("wrong", [{"layer": "mamba"}, {"loss": "hinge"}, {"hidden_size": 9}, {"max_history": 0}], ids=str)
def test_impossible_settings_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SASRecConfig(**wrong)
