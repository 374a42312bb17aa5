"""Training windows: every item a target once, with the history it is promised; batches as the model takes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cemg_hf.data.collators import TrainingWindows, WindowCollator
from cemg_hf.data.ragged import Ragged

NUM_LEVELS, START, PAD = 2, 500, 0


def item_tokens(num_items: int) -> torch.Tensor:
    return 501 + torch.arange(num_items * NUM_LEVELS).view(num_items, NUM_LEVELS)


def collated_samples(windows: TrainingWindows, item_causal: bool, batch: list[int]) -> list[tuple[list[int], int]]:
    """(history, target) of every target in a batch, read back from the tensors as the model reads them."""
    tokens = item_tokens(int(windows.items.max(initial=0)) + 1)
    item_of = {tuple(row): item for item, row in enumerate(tokens.tolist())}
    tensors = WindowCollator(windows, tokens, START, item_causal)(batch)
    inputs, mask, labels = (tensors[name] for name in ("input_ids", "attention_mask", "labels"))
    assert inputs.dtype == mask.dtype == labels.dtype == torch.int64
    assert inputs.shape == mask.shape
    assert (inputs[:, 0] == START).all()
    assert (mask[:, 0] == 1).all()
    assert (inputs[mask == 0] == PAD).all()
    samples = []
    for row in range(len(batch)):
        length = int(mask[row].sum())
        assert (mask[row, :length] == 1).all()
        history = [item_of[tuple(pair)] for pair in inputs[row, 1:length].view(-1, NUM_LEVELS).tolist()]
        for t, block in enumerate(labels[row].view(-1, NUM_LEVELS).tolist()):
            if block == [-100] * NUM_LEVELS:
                continue
            samples.append((history[:t] if item_causal else history, item_of[tuple(block)]))
    return samples


@st.composite
def settings_of_windows(draw) -> tuple[list[int], int, int, bool]:
    max_history = draw(st.integers(1, 8))
    lengths = draw(st.lists(st.integers(0, 30), min_size=1, max_size=4).filter(any))
    return lengths, max_history, draw(st.integers(1, max_history + 1)), draw(st.booleans())


@settings(max_examples=60, deadline=None)
@given(settings_of_windows())
def test_every_item_is_a_target_once_and_sees_the_history_it_is_promised(given_settings):
    lengths, max_history, stride, item_causal = given_settings
    # All items differ, so that a target tells its user and position.
    sequences = Ragged.from_lengths(np.arange(sum(lengths)), np.array(lengths))
    windows = TrainingWindows(sequences, max_history, item_causal, stride)
    assert windows.num_targets == sum(lengths)
    assert (windows.size <= max_history + 1).all()
    order = np.random.default_rng(0).permutation(len(windows)).tolist()
    samples = [sample for first in range(0, len(order), 3) for sample in collated_samples(windows, item_causal, order[first : first + 3])]
    assert sorted(target for _, target in samples) == list(range(sum(lengths)))
    for history, target in samples:
        position = target - int(sequences.offsets[sequences.rows[target]])
        assert history == list(range(target - len(history), target))  # the items just before, nothing else
        assert len(history) <= position
        promised = min(position, max_history + 1 - stride) if item_causal else min(position, max_history)
        assert promised <= len(history) <= max_history


def test_a_long_history_costs_few_windows():
    sequences = Ragged.from_lists([range(100)])
    assert len(TrainingWindows(sequences, 20, item_causal=True)) == 1 + 8  # 21 targets, then 10 at a time
    assert len(TrainingWindows(sequences, 20, item_causal=False)) == 100


def test_users_without_items_have_no_windows():
    for item_causal in (True, False):
        assert len(TrainingWindows(Ragged.from_lists([[], []]), 5, item_causal)) == 0
        assert TrainingWindows(Ragged.from_lists([[], [3]]), 5, item_causal).num_targets == 1


@pytest.mark.parametrize("stride", [0, 7])
def test_a_stride_that_would_lose_targets_is_refused(stride):
    with pytest.raises(ValueError, match="stride must lie in 1 … max_history \\+ 1 = 6"):
        TrainingWindows(Ragged.from_lists([[1, 2]]), 5, True, stride)


def test_collated_batch_in_full():
    windows = TrainingWindows(Ragged.from_lists([[0, 1, 2], [3]]), max_history=4, item_causal=True)
    batch = WindowCollator(windows, item_tokens(4), START, item_causal=True)([0, 1])
    assert batch["input_ids"].tolist() == [[START, 501, 502, 503, 504], [START, PAD, PAD, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[501, 502, 503, 504, 505, 506], [507, 508, -100, -100, -100, -100]]


def test_padding_to_a_multiple_adds_nothing_but_padding():
    windows = TrainingWindows(Ragged.from_lists([[0, 1, 2], [3]]), max_history=4, item_causal=True)
    plain = WindowCollator(windows, item_tokens(4), START, item_causal=True)([0, 1])
    padded = WindowCollator(windows, item_tokens(4), START, item_causal=True, pad_to_multiple_of=4)([0, 1])
    assert padded["input_ids"].shape == padded["attention_mask"].shape == (2, 8)  # <s> and two items of two codes are 5
    for name in ("input_ids", "attention_mask"):
        assert padded[name][:, :5].equal(plain[name])
        assert not padded[name][:, 5:].any()
    assert padded["labels"].equal(plain["labels"])
