from __future__ import annotations

import numpy as np
import torch

from cemg_hf.data.ragged import Ragged
from cemg_hf.models.cemg.modeling_rqvae import CEMGRQVAEConfig, GuidedFusion
from cemg_hf.training.fusion_training import NextItemConfig, next_item_pairs, train_fusion
from cemg_hf.training.quantise import FeatureBatches


def test_pairs_stay_inside_a_sequence_and_a_window_and_never_repeat_an_item() -> None:
    pairs = next_item_pairs(Ragged.from_lists([[0, 1, 1, 2], [3], [], [4, 5]]), window=2)
    assert sorted(map(tuple, pairs.tolist())) == [(0, 1), (0, 1), (1, 2), (1, 2), (4, 5)]
    assert next_item_pairs(Ragged.from_lists([]), window=3).shape == (0, 2)


def world(count: int = 400) -> tuple[GuidedFusion, FeatureBatches, np.ndarray, np.ndarray]:
    """Items follow items of their own kind. Kinds of the first half of the items show in the image, of the second in the text; the
    other modality is noise, and the collaborative vector says which half an item belongs to."""
    rng = np.random.default_rng(0)
    kinds, half = rng.integers(0, 10, count), np.arange(count) >= count // 2
    signal = rng.normal(size=(10, 8))[kinds]
    noise = rng.normal(size=(2, count, 8))
    vectors = {
        "image": np.where(half[:, None], noise[0], signal).astype(np.float32),
        "text": np.where(half[:, None], signal, noise[1]).astype(np.float32),
        "collaborative": np.where(half[:, None], 1.0, -1.0).astype(np.float32) * np.ones((count, 4), dtype=np.float32),
    }
    masks = {name: np.ones(count, dtype=bool) for name in vectors}
    pairs = np.stack([rng.integers(0, count, 40_000), rng.integers(0, count, 40_000)], axis=1)
    pairs = pairs[(kinds[pairs[:, 0]] == kinds[pairs[:, 1]]) & (half[pairs[:, 0]] == half[pairs[:, 1]]) & (pairs[:, 0] != pairs[:, 1])]
    torch.manual_seed(0)
    fusion = GuidedFusion(CEMGRQVAEConfig(modality_dims={name: value.shape[1] for name, value in vectors.items()}, dimension=16))
    return fusion, FeatureBatches(vectors, masks), pairs, half


def test_attention_learns_which_modality_tells_the_next_item() -> None:
    fusion, data, pairs, half = world()
    everything = data.batch(torch.arange(len(data)))
    before = fusion(*everything).alpha
    report = train_fusion(fusion, data, pairs, NextItemConfig(epochs=20, learning_rate=3e-3, batch_size=256, train_projections=False))
    after = fusion(*everything).alpha
    rows = torch.from_numpy(half)
    assert report["loss"][-1] < report["loss"][0]
    assert (before[rows, 1].mean() - before[~rows, 1].mean()).abs() < 0.2
    assert after[rows, 1].mean() > 0.6
    assert after[~rows, 0].mean() > 0.6
    assert not any(parameter.requires_grad for name, parameter in fusion.named_parameters() if not name.startswith("missing"))


def test_nothing_to_learn_from_leaves_the_fusion_as_it_was() -> None:
    fusion, data, pairs, _ = world(60)
    before = {name: value.clone() for name, value in fusion.state_dict().items()}
    assert train_fusion(fusion, data, pairs[:0], NextItemConfig()) == {"pairs": 0, "loss": []}
    assert train_fusion(fusion, data, pairs, NextItemConfig(epochs=0))["loss"] == []
    assert all(torch.equal(value, before[name]) for name, value in fusion.state_dict().items())


def test_items_without_content_do_not_take_part() -> None:
    fusion, data, pairs, _ = world(60)
    for name in ("image", "text"):
        data.masks[name][:] = False
    assert train_fusion(fusion, data, pairs, NextItemConfig())["pairs"] == 0
