from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cemg_hf.errors import CEMGError
from cemg_hf.training.rq_dino_codes import PictureCodes


def sample() -> PictureCodes:
    torch.manual_seed(0)
    mask = torch.tensor([True, False, True])
    return PictureCodes(
        ["a", "b", "c"], torch.randint(5, (3, 2)) * mask[:, None], torch.randn(3, 4) * mask[:, None], mask, torch.randn(2, 5, 4)
    )


def test_saved_and_loaded_they_are_the_same(tmp_path: Path) -> None:
    coded = sample()
    coded.save(tmp_path)
    loaded = PictureCodes.load(tmp_path)
    assert loaded.item_ids == coded.item_ids
    for name in ("codes", "latent", "mask", "codebooks"):
        assert torch.equal(getattr(loaded, name), getattr(coded, name))


def test_items_keep_their_codes_in_any_order_and_strangers_have_none() -> None:
    coded = sample()
    found = coded.of_items(["c", "stranger", "b", "a"])
    assert found.mask.tolist() == [True, False, False, True]
    assert torch.equal(found.codes[[0, 3]], coded.codes[[2, 0]])
    assert torch.equal(found.latent[[0, 3]], coded.latent[[2, 0]])
    assert not found.codes[1:3].any()


def test_other_folders_and_catalogues_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"codes\.safetensors is missing; give a folder written by `cemg rq-dino`"):
        PictureCodes.load(tmp_path)
    with pytest.raises(CEMGError, match=r"none of the 2 items has one \(theirs begin with b, the coded ones with a\)"):
        sample().of_items(["b", "z"])
