from __future__ import annotations

import pytest

from cemg_hf.errors import CEMGError
from cemg_hf.training.fusion_training import NextItemConfig
from cemg_hf.training.tokenizer_config import TokenizerTrainingConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"codebook_decay": 1.0}, "codebook_decay: 1.0 is outside"),
        ({"modality_dropout": -0.1}, "modality_dropout: -0.1 is outside"),
        ({"modalities": ["audio"]}, r"modalities = \['audio'\]: name some of image, text, collaborative"),
        ({"modalities": ["text", "text"]}, "each once"),
        ({"batch_size": 0}, "batch_size: 0 is not a positive integer"),
        ({"epochs": -1}, "epochs: -1 is negative"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0 is not positive"),
    ],
)
def test_settings_that_cannot_work_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(CEMGError, match=message):
        TokenizerTrainingConfig(**values)


def test_settings_of_the_contrast_are_checked_too() -> None:
    with pytest.raises(CEMGError, match=r"next_item\.window: 0"):
        NextItemConfig(window=0)
    with pytest.raises(CEMGError, match=r"next_item\.temperature: 0\.0 is not positive"):
        NextItemConfig(temperature=0.0)


def test_the_networks_settings_are_those_of_the_training() -> None:
    config = TokenizerTrainingConfig(dimension=8, codebook_size=4, unit_rows=False, content_head_dim=3).model_config({"text": 5})
    assert (config.dimension, config.codebook_size, config.unit_rows, config.content_head_dim) == (8, 4, False, 3)
    with pytest.raises(CEMGError, match="modality_dims"):
        TokenizerTrainingConfig().model_config({})
