"""Draws that depend on seed, epoch and window alone; what they leave of histories and targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from cemg_hf.data.augmentation import Augmentation, uniform
from cemg_hf.data.collators import TrainingWindows, WindowCollator
from cemg_hf.data.ragged import Ragged
from cemg_hf.training.sampler import GlobalBatchSampler

NUM_LEVELS, START, NUM_ITEMS = 2, 500, 120


def identifier_sets(count: int) -> Tensor:
    """(E, N, M) tokens, all different, so that a token tells its set and its item."""
    return 501 + torch.arange(count * NUM_ITEMS * NUM_LEVELS).view(count, NUM_ITEMS, NUM_LEVELS)


def training_windows(item_causal: bool, seed: int = 0) -> TrainingWindows:
    lengths = np.random.default_rng(seed).integers(1, 12, 10)
    return TrainingWindows(Ragged.from_lengths(np.arange(lengths.sum()), lengths), 6, item_causal)


def test_uniform_numbers_are_uniform_and_their_own_at_every_key():
    drawn = uniform(3, np.arange(400)[:, None], np.arange(50))
    assert drawn.shape == (400, 50)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert len(np.unique(drawn)) == drawn.size
    assert np.abs(np.histogram(drawn, 20, (0, 1))[0] / drawn.size - 0.05).max() < 0.006
    for rows, columns in (
        (drawn[1:], drawn[:-1]),
        (drawn[:, 1:], drawn[:, :-1]),
        (drawn, uniform(4, np.arange(400)[:, None], np.arange(50))),
    ):
        assert abs(np.corrcoef(rows.ravel(), columns.ravel())[0, 1]) < 0.03
    assert uniform(3, 7, 9)[0] == drawn[7, 9]
    assert uniform(-1, 2)[0] != uniform(1, 2)[0]


@settings(max_examples=60, deadline=None)
@given(st.booleans(), st.sampled_from([0.0, 0.2, 0.7, 0.99]), st.sampled_from([1, 3]), st.integers(0, 50), st.integers(0, 9))
def test_targets_stay_and_see_what_is_left_of_the_items_before_them(item_causal, share, count, seed, epoch):
    windows, tokens = training_windows(item_causal, seed), identifier_sets(count)
    augmentation = Augmentation(seed, share, count)
    augmentation.set_epoch(epoch)
    plain = WindowCollator(windows, tokens[0], START, item_causal)
    augmented = WindowCollator(windows, tokens, START, item_causal, augmentation)
    every = list(range(len(windows)))
    for batch in (every[:5], every[5:]):
        before, after = plain(batch), augmented(batch)
        chosen = augmentation.identifiers(batch)
        left_out = augmentation.left_out(batch, (before["input_ids"].shape[1] - 1) // NUM_LEVELS)
        assert ("seen_items" in after) is (item_causal and share > 0)
        for row, which in enumerate(chosen.tolist()):
            shift = which * NUM_ITEMS * NUM_LEVELS
            labels = before["labels"][row]
            assert torch.equal(after["labels"][row], torch.where(labels == -100, labels, labels + shift))
            history = before["input_ids"][row, 1:].view(-1, NUM_LEVELS)
            real = before["attention_mask"][row, 1:].view(-1, NUM_LEVELS)[:, 0].bool()
            kept = real & ~left_out[row]
            length = int(after["attention_mask"][row].sum())
            assert (after["attention_mask"][row, :length] == 1).all()
            assert after["input_ids"][row, 0] == START
            assert after["input_ids"][row, 1:length].tolist() == (history[kept] + shift).flatten().tolist()
            assert (after["input_ids"][row, length:] == 0).all()
            if "seen_items" in after:
                assert after["seen_items"][row].tolist() == [int(kept[:t].sum()) for t in range(labels.numel() // NUM_LEVELS)]


def test_the_share_left_out_and_the_sets_drawn_are_those_asked_for():
    augmentation = Augmentation(1, 0.3, 4)
    windows = range(5000)
    assert float(augmentation.left_out(windows, 8).double().mean()) == pytest.approx(0.3, abs=0.01)
    assert torch.bincount(augmentation.identifiers(windows)).tolist() == pytest.approx([1250] * 4, abs=120)


def batches(windows: TrainingWindows, first_step: int, epochs: list[int], workers: int = 0) -> list[dict[str, Tensor]]:
    """The batches of epochs as the training loop loads them, the first from a step on, in a process of its own making."""
    augmentation = Augmentation(3, 0.4, 2)
    sampler = GlobalBatchSampler(len(windows), 4, 3, lengths=windows.size)
    collate = WindowCollator(windows, identifier_sets(2), START, True, augmentation)
    loader = DataLoader(windows, batch_sampler=sampler, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0)
    found = []
    for epoch in epochs:
        sampler.set_position(epoch, first_step)
        augmentation.set_epoch(epoch)
        found += list(loader)
        first_step = 0
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_runs_load_bit_identical_batches(workers):
    windows = training_windows(item_causal=True)
    whole = batches(windows, 0, [0, 1, 2])
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002 - whatever the global states are
    resumed = batches(windows, 1, [1, 2], workers)
    steps = len(whole) // 3
    assert len(resumed) == 2 * steps - 1
    for expected, found in zip(whole[steps + 1 :], resumed, strict=True):
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    first, second = (torch.cat([batch["input_ids"].flatten() for batch in part]) for part in (whole[:steps], whole[steps : 2 * steps]))
    assert not torch.equal(first, second)


def test_a_window_is_drawn_alike_in_any_batch():
    windows = training_windows(item_causal=True)
    augmentation = Augmentation(3, 0.4, 3)
    together = augmentation.left_out([5, 2, 9], 6)
    assert torch.equal(together[1:2, :4], augmentation.left_out([2], 4))
    assert torch.equal(augmentation.identifiers([5, 2, 9])[1:2], augmentation.identifiers([2]))
    assert len(windows) > 9


def test_an_augmentation_without_effect_changes_nothing():
    windows = training_windows(item_causal=True)
    plain = WindowCollator(windows, identifier_sets(1)[0], START, True)(range(len(windows)))
    other = WindowCollator(windows, identifier_sets(1), START, True, Augmentation(0))(range(len(windows)))
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_impossible_augmentations_are_refused():
    with pytest.raises(ValueError, match="item_dropout"):
        Augmentation(0, 1.0)
    with pytest.raises(ValueError, match="num_identifiers"):
        Augmentation(0, 0.1, 0)
    with pytest.raises(ValueError, match="draws from 2 identifier sets, item_tokens hold 3"):
        WindowCollator(training_windows(True), identifier_sets(3), START, True, Augmentation(0, 0.0, 2))


# ---- code streams -----------------------------------------------------------------------------------------------------------------


def test_streams_are_hidden_at_their_share_and_never_all_of_an_item() -> None:
    drawn = Augmentation(3, stream_dropout=0.4)
    given = torch.ones(400, 9, 3, dtype=torch.bool)
    hidden = drawn.hidden_streams(range(400), given)
    assert hidden.shape == (400, 9, 3)
    assert not hidden.all(dim=2).any()
    assert abs(hidden.double().mean().item() - (0.4 - 0.4**3)) < 0.02
    assert torch.equal(drawn.hidden_streams([7], given[:1])[0], hidden[7])
    drawn.set_epoch(1)
    assert not torch.equal(drawn.hidden_streams(range(400), given), hidden)
    with pytest.raises(ValueError, match="stream_dropout: must lie in"):
        Augmentation(0, stream_dropout=1.0)


def test_an_item_that_lacks_streams_shows_one_of_those_it_has() -> None:
    windows = training_windows(True)
    count, streams, levels = int(windows.items.max()) + 1, 3, 2
    have = torch.rand(count, streams, generator=torch.Generator().manual_seed(0)) < 0.5
    assert not have.any(dim=1).all(), "some items have no stream at all"
    codes, missing = 100 + torch.arange(count * streams * levels).view(count, streams, levels), torch.tensor([10, 11, 12])
    tokens = torch.where(have.unsqueeze(-1), codes, missing.unsqueeze(-1)).flatten(1)
    drawn = Augmentation(1, stream_dropout=0.6)
    collate = WindowCollator(windows, codes[:, 0], 5, True, drawn, True, history_tokens=tokens, missing_tokens=missing)
    hidden = torch.tensor(False)
    for epoch in range(10):
        drawn.set_epoch(epoch)
        batch = collate(range(len(windows)))
        items, real = batch["items"][:, :-1], batch["attention_mask"][:, 1 :: streams * levels].bool()
        shown = (batch["input_ids"][:, 1:].unflatten(1, (-1, streams, levels)) != missing.view(-1, 1)).any(dim=-1)
        assert torch.equal(shown.any(dim=2)[real], have[items[real]].any(dim=1))
        hidden = hidden | (have[items[real]] & ~shown[real]).any()
    assert hidden


@pytest.mark.parametrize("item_causal", [True, False])
@pytest.mark.parametrize("item_dropout", [0.0, 0.4])
def test_histories_show_all_streams_but_the_hidden_ones_and_targets_their_own(item_causal: bool, item_dropout: float) -> None:
    windows = training_windows(item_causal)
    count, streams, levels = int(windows.items.max()) + 1, 3, 2
    blocks = 100 + torch.arange(count * streams * levels).view(count, streams, levels)
    missing, targets = torch.tensor([10, 11, 12]), 9000 + torch.arange(count * levels).view(count, levels)
    augmentation = Augmentation(1, item_dropout, stream_dropout=0.5)
    plain, shown = (
        WindowCollator(windows, targets, 5, item_causal, drawn, history_tokens=blocks.flatten(1), missing_tokens=missing)
        for drawn in (Augmentation(1, item_dropout), augmentation)
    )
    batch = list(range(min(6, len(windows))))
    one, other = plain(batch), shown(batch)
    assert one.keys() == other.keys()
    for name in one.keys() - {"input_ids"}:
        assert torch.equal(one[name], other[name])
    assert other["labels"].max() >= 9000
    tokens, seen = (given["input_ids"][:, 1:].unflatten(1, (-1, streams, levels)) for given in (one, other))
    gone = seen == missing.view(-1, 1)
    assert gone.any()
    assert torch.equal(gone.all(-1), gone.any(-1)), "a stream is hidden whole"
    assert torch.equal(torch.where(gone, tokens, seen), tokens)
    assert one["attention_mask"].shape[1] == 1 + tokens.shape[1] * streams * levels
    with pytest.raises(ValueError, match="give history_tokens and missing_tokens"):
        WindowCollator(windows, targets, 5, item_causal, augmentation)
