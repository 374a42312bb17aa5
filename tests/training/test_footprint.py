"""Memory is counted as the tensors hold it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_samples import save_model, write_shop
from stream_samples import stream_generator

from cemg_hf.errors import CEMGError
from cemg_hf.recipes import load_recipe
from cemg_hf.training import footprint
from cemg_hf.training.footprint import measure_footprint, peak_bytes
from cemg_hf.training.pipeline import FOLDERS, run


def test_the_peak_is_of_what_is_held_at_once() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def request() -> None:
        for _ in range(5):
            first = torch.ones(1000, device=device)
            second = first + 1
            del first, second

    assert 8000 <= peak_bytes(request) < 9000
    assert peak_bytes(lambda: None) == 0


def test_the_index_of_codes_is_the_trie_and_the_tokens_of_items(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tokens of histories count where they are others than those that are written: with several code streams."""
    fused, streams = save_model(tmp_path / "model", [f"item-{row}" for row in range(20)]), stream_generator()
    assert streams.tokenizer is not None
    tokens = {fused: 8 * 20 * 4, streams: streams.tokenizer.item_tokens.nbytes + streams.tokenizer.history_tokens.nbytes}
    for model, expected in tokens.items():
        monkeypatch.setattr(footprint, "load_generator", lambda *_, model=model: model)
        assert footprint._parts(load_recipe("sample"), {"finetune": tmp_path}, None) == (model, model.trie.nbytes + expected)


def test_a_system_without_a_network_has_no_footprint(tmp_path: Path) -> None:
    recipe = load_recipe(write_shop(tmp_path / "shop"), ["evaluate.resamples=20"], system="popularity")
    run(recipe, tmp_path / "run")
    folders = {stage: tmp_path / "run" / name for stage, name in FOLDERS.items()}
    with pytest.raises(CEMGError, match="popularity: has no network"):
        measure_footprint(recipe, folders, tmp_path / "footprint")
    assert not (tmp_path / "footprint").exists()
