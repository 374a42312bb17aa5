"""A tokenizer whose training is stopped after every epoch comes out as one that is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizer_samples import settings, shop

from cemg_hf.artefacts import Manifest
from cemg_hf.training import epoch_checkpoint, tokenizer_training
from cemg_hf.training.deadline import OutOfTime
from cemg_hf.training.epoch_checkpoint import EpochCheckpoint
from cemg_hf.training.fusion_training import NextItemConfig
from cemg_hf.training.tokenizer_training import train_with_neighbours

MANIFEST = Manifest("tokenize", {}, {}, 0)


@pytest.mark.parametrize(
    "chosen",
    [
        {"warmup_epochs": 2, "next_item": NextItemConfig(epochs=2), "content_vector_dim": 4},
        {"identifiers": 3, "modality_dropout": 0.3, "sample_items": 100},
        {"lambda_align": 0.1, "diversity": "clusters", "lambda_div": 0.1, "diversity_clusters": 2},
        {"patience": 1, "evaluation_interval": 1, "learning_rate": 1e-9, "codebook_decay": 0.999},
        {"epochs": 0},
    ],
)
def test_stopped_after_every_epoch_it_ends_the_same(chosen: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, masks, _ = shop()
    pairs = np.random.default_rng(0).integers(0, 240, (500, 2))
    config = settings(**{"epochs": 7, "warmup_epochs": 1, "evaluation_interval": 2} | chosen)
    expected, neighbours, report = train_with_neighbours(vectors, masks, config, 1, pairs=pairs)
    checkpoint = tmp_path / "rqvae.safetensors"
    monkeypatch.setattr(epoch_checkpoint, "time_is_up", lambda: True)
    stops = 0
    while True:
        torch.manual_seed(stops)  # whatever the caller's random state is
        try:
            found, others, again = train_with_neighbours(
                vectors, masks, config, 1, pairs=pairs, checkpoint=EpochCheckpoint(checkpoint, MANIFEST)
            )
            break
        except OutOfTime:
            stops += 1
    epochs = report["history"][-1]["epoch"] if "patience" in chosen else config.warmup_epochs * bool(config.epochs) + config.epochs
    assert stops == max(0, epochs - 1)
    assert again | {"seconds": 0} == report | {"seconds": 0}
    assert len(others) == len(neighbours) == config.identifiers - 1
    for one, other in zip([expected, *neighbours], [found, *others], strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
    # A finished training is not repeated, whatever comes after it in the stage.
    monkeypatch.setattr(tokenizer_training, "train_fusion", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(tokenizer_training, "initialise_codebooks", lambda *_: pytest.fail("trained again"))
    last, *_ = train_with_neighbours(vectors, masks, config, 1, pairs=pairs, checkpoint=EpochCheckpoint(checkpoint, MANIFEST))
    assert all(torch.equal(last.state_dict()[name], value) for name, value in expected.state_dict().items())
