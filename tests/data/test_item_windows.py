"""Batches for networks over whole items hold the samples of the windows, each target once, with the history it is promised."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cemg_hf.data.collators import TrainingWindows, WindowCollator
from cemg_hf.data.item_windows import ItemWindowCollator
from cemg_hf.data.ragged import Ragged

SEQUENCES = st.lists(st.lists(st.integers(0, 9), max_size=14), min_size=1, max_size=6).filter(any)


def samples(tensors: dict[str, torch.Tensor]) -> list[tuple[list[int], int]]:
    """(history, target) of every label in a batch, as a network reads them: the label at t follows the first t items."""
    found = []
    for items, labels in zip(tensors["items"].tolist(), tensors["labels"].tolist(), strict=True):
        for t, target in enumerate(labels):
            if target != -100:
                assert -1 not in items[:t]
                found.append((items[:t], target))
    return found


@settings(max_examples=80, deadline=None)
@given(SEQUENCES, st.integers(1, 5), st.data())
def test_every_item_is_a_target_once_after_the_items_before_it(sequences, max_history, data):
    stride = data.draw(st.none() | st.integers(1, max_history + 1))
    windows = TrainingWindows(Ragged.from_lists(sequences), max_history, True, stride)
    tensors = ItemWindowCollator(windows)(list(range(len(windows))))
    items, labels = tensors["items"], tensors["labels"]
    assert items.dtype == labels.dtype == torch.int64
    assert labels.shape == (len(windows), items.shape[1] + 1)
    assert items.shape[1] <= max_history
    present = items >= 0
    assert (present[:, 1:] <= present[:, :-1]).all()  # padding at the end
    found = samples(tensors)
    assert len(found) == windows.num_targets == sum(map(len, sequences))
    least = max_history + 1 - (max(1, max_history // 2) if stride is None else stride)
    expected = [(row[:t], target) for row in sequences for t, target in enumerate(row)]
    for (history, target), (before, item) in zip(found, expected, strict=True):  # windows stand in the order of users and items
        assert target == item
        assert history == before[len(before) - len(history) :]
        assert len(history) >= min(len(before), least)


def test_the_samples_are_those_the_generator_trains_on():
    rng = np.random.default_rng(0)
    windows = TrainingWindows(Ragged.from_lists([rng.integers(0, 9, size).tolist() for size in (0, 1, 3, 6, 13)]), 5, True)
    batch = list(range(len(windows)))
    codes = WindowCollator(windows, 3 + torch.arange(9).unsqueeze(1), 2, True, with_items=True)(batch)
    found = ItemWindowCollator(windows)(batch)
    assert torch.equal(found["labels"], codes["labels"].where(codes["labels"] == -100, codes["labels"] - 3))
    history = codes["input_ids"][:, 1:].masked_fill(codes["attention_mask"][:, 1:] == 0, 2) - 3
    assert torch.equal(found["items"], history)
    assert torch.equal(codes["items"][:, :-1].where(found["items"] >= 0, -1), found["items"])


def test_a_window_of_one_item_has_an_empty_history():
    tensors = ItemWindowCollator(TrainingWindows(Ragged.from_lists([[7]]), 5, True))([0])
    assert tensors["items"].shape == (1, 0)
    assert tensors["labels"].tolist() == [[7]]
