from __future__ import annotations

import pytest
import torch

from cemg_hf.models.mmgrec import assign_rec_ids


def assigned(items: int, size: int, values: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Semantic tokens 0 … values − 1 on two levels, popularity, Rec-IDs and how many items left their tuple."""
    generator = torch.Generator().manual_seed(seed)
    semantic = torch.randint(values, (items, 2), generator=generator)
    popularity = torch.randint(20, (items,), generator=generator)
    latent, codebooks = torch.randn(items, 4, generator=generator), torch.randn(2, size, 4, generator=generator)
    codes, report = assign_rec_ids(semantic, latent, codebooks, popularity)
    return semantic, popularity, codes, report.spilled


@pytest.mark.parametrize(("items", "size", "values"), [(200, 64, 2), (200, 8, 8), (500, 8, 1), (1, 2, 1)])
def test_all_rec_ids_differ_and_lie_within_the_codebooks(items: int, size: int, values: int) -> None:
    codes = assigned(items, size, values)[2]
    assert codes.shape == (items, 3)
    assert len(torch.unique(codes, dim=0)) == items
    assert 0 <= int(codes.min()) <= int(codes.max()) < size


@pytest.mark.parametrize("seed", range(3))
def test_the_last_token_is_the_rank_by_popularity_among_equal_tokens(seed: int) -> None:
    semantic, popularity, codes, spilled = assigned(150, 64, 3, seed)
    assert spilled == 0
    torch.testing.assert_close(codes[:, :2], semantic)
    for first, second in torch.unique(semantic, dim=0).tolist():
        group = ((semantic[:, 0] == first) & (semantic[:, 1] == second)).nonzero().flatten().tolist()
        expected = sorted(group, key=lambda item: (-int(popularity[item]), item))
        assert [int(codes[item, 2]) for item in expected] == list(range(len(group)))


def test_a_full_tuple_spills_to_others_and_popularity_still_orders_the_last_token() -> None:
    semantic, popularity, codes, spilled = assigned(100, 8, 1)
    assert spilled == 100 - 8
    assert int(((codes[:, :2] == semantic).all(1)).sum()) == 8
    for pair in torch.unique(codes[:, :2], dim=0):
        group = (codes[:, :2] == pair).all(1)
        ordered = popularity[group][codes[group, 2].argsort()]
        assert (ordered.diff() <= 0).all()


def test_more_items_than_rec_ids() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        assigned(9, 2, 2)
