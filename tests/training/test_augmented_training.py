"""A generator trained on augmented windows: killed and resumed, or cut into micro-batches, it learns from the very same batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from generator_samples import generator, item_tokenizer
from torch import Tensor

from cemg_hf import CEMGForConditionalGeneration
from cemg_hf.data.augmentation import Augmentation
from cemg_hf.data.collators import TrainingWindows, WindowCollator
from cemg_hf.data.ragged import Ragged
from cemg_hf.models.cemg import Objective
from cemg_hf.training.loop import LoopConfig, train

TOKENIZER = item_tokenizer(60)
LENGTHS = np.random.default_rng(0).integers(2, 12, 20)
SEQUENCES = Ragged.from_lengths(np.random.default_rng(1).integers(0, 60, LENGTHS.sum()), LENGTHS)


class Killed(Exception):
    pass


class Recording(WindowCollator):
    """Keeps what it made, and fails at the n-th batch."""

    def __init__(self, *arguments: object, at: int | None = None) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.at, self.made = at, []

    def __call__(self, batch: list[int]) -> dict[str, Tensor]:
        if len(self.made) == self.at:
            raise Killed
        self.made.append(super().__call__(batch))
        return self.made[-1]


def trained(folder: Path, item_causal: bool, at: int | None = None, **settings: object) -> tuple[CEMGForConditionalGeneration, Recording]:
    model = generator(TOKENIZER, item_causal=item_causal, dropout_rate=0.1).train()
    model.objective = Objective(label_smoothing=0.1, temperature=0.8)
    windows = TrainingWindows(SEQUENCES, model.config.max_history, item_causal)
    other = TOKENIZER.item_codes.roll(1, dims=0)
    tokens = torch.stack([TOKENIZER.item_tokens, TOKENIZER.item_tokens + other - TOKENIZER.item_codes])
    augmentation = Augmentation(7, 0.3, 2)
    collate = Recording(windows, tokens, model.config.bos_token_id, item_causal, augmentation, at=at)
    config = LoopConfig(**{"epochs": 3, "batch_size": len(windows) // 3, "checkpoint_every_s": 0.0, **settings})
    options = {"lengths": windows.size, "folder": folder, "seed": 7, "on_epoch": augmentation.set_epoch}
    train(model, config=config, dataset=windows, collate_fn=collate, **options)
    return model, collate


@pytest.mark.parametrize("item_causal", [True, False], ids=["item-causal", "bidirectional"])
@pytest.mark.parametrize("at", [2, 5])
def test_resumed_training_sees_the_same_batches_and_ends_with_the_same_weights(tmp_path: Path, item_causal: bool, at: int) -> None:
    model, whole = trained(tmp_path / "whole", item_causal)
    with pytest.raises(Killed):
        trained(tmp_path / "killed", item_causal, at)
    torch.manual_seed(99)
    resumed, rest = trained(tmp_path / "killed", item_causal)
    assert 0 < len(rest.made) < len(whole.made)
    for expected, found in zip(whole.made[-len(rest.made) :], rest.made, strict=True):
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    for (name, expected), found in zip(model.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(expected, found), name


def test_micro_batches_draw_what_the_whole_batch_draws(tmp_path: Path) -> None:
    def rows(collate: Recording) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Histories and targets without their padding, in any order."""
        return sorted(
            (tuple(ids[mask == 1].tolist()), tuple(labels[labels != -100].tolist()))
            for batch in collate.made
            for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
        )

    _, whole = trained(tmp_path / "whole", True)
    _, cut = trained(tmp_path / "cut", True, gradient_accumulation_steps=2)
    assert len(cut.made) > len(whole.made)
    assert rows(cut) == rows(whole)
