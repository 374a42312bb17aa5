"""Several identifiers per item: which checkpoints they come from, what is written, and who reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_samples import write_shop
from safetensors.torch import load_file
from tokenizer_samples import settings, shop

from cemg_hf.errors import CEMGError
from cemg_hf.models.cemg.modeling_rqvae import CEMGRQVAE
from cemg_hf.recipes import load_recipe
from cemg_hf.training.finetune import finetune
from cemg_hf.training.identifiers import IDENTIFIERS_NAME, load_identifiers, save_identifiers
from cemg_hf.training.loading import open_model, open_tokenizer
from cemg_hf.training.pipeline import run
from cemg_hf.training.tokenize import tokenize
from cemg_hf.training.tokenizer_selection import Selection
from cemg_hf.training.tokenizer_training import train_rqvae, train_with_neighbours


def test_neighbours_are_the_checkpoints_before_the_one_kept_or_after_it() -> None:
    model = CEMGRQVAE(settings(num_levels=1, codebook_size=2, latent_dim=2).model_config({"text": 4}))

    def neighbours(errors: list[float], number: int) -> list[float]:
        selection = Selection(0, number)
        for epoch, error in enumerate(errors):
            model.codebooks.fill_(epoch)
            selection.offer(model, epoch, {"reconstruction_error": error, "levels": [{"perplexity": 1.0}], "collision_rate": 0.0})
        return [weights["codebooks"][0, 0, 0].item() for weights in selection.neighbours]

    assert neighbours([5, 4, 3, 2, 1], 2) == [2, 3]
    assert neighbours([5, 1, 9, 9, 9], 2) == [0, 2]
    assert neighbours([1, 9, 9, 9, 9], 2) == [1, 2]
    assert neighbours([5, 4, 9, 9, 1], 2) == [2, 3]
    assert neighbours([5, 1], 3) == [0]
    assert neighbours([5, 1, 2], 0) == []


def test_neighbours_cost_the_kept_model_nothing() -> None:
    vectors, masks, _ = shop(120)
    alone, _ = train_rqvae(vectors, masks, settings(), seed=1)
    model, others, report = train_with_neighbours(vectors, masks, settings(identifiers=3), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(alone.state_dict().values(), model.state_dict().values(), strict=True))
    assert len(others) == 2
    assert len(report["history"]) > 2
    features, given = ({name: torch.from_numpy(value) for name, value in part.items()} for part in (vectors, masks))
    same = (others[-1].encode_codes(features, given)[:, 0] == model.encode_codes(features, given)[:, 0]).double().mean()
    assert same > 0.3  # neighbours mean the same by a code
    with pytest.raises(CEMGError, match="12 epochs are evaluated 4 times, too few for 5 identifiers"):
        settings(identifiers=5)


def test_the_stages_write_train_on_and_leave_behind_identifiers(tmp_path: Path) -> None:
    recipe = load_recipe(str(write_shop(tmp_path / "shop")), ["tokenize.epochs=4", "tokenize.evaluation_interval=1"], {})
    run(recipe, tmp_path / "run", until="tokenize")
    folder = tmp_path / "run"
    assert not (folder / "tokenizer" / IDENTIFIERS_NAME).exists()
    many = tmp_path / "tokenizer"
    tokenize(replace(recipe.tokenize, identifiers=3), folder / "features", many, 1, folder / "dataset")
    tokenizer = open_tokenizer(many)
    stored = load_file(many / IDENTIFIERS_NAME)["item_codes"]
    assert tuple(stored.shape) == (3, *tokenizer.item_codes.shape)
    assert all(len(codes.unique(dim=0)) == len(codes) for codes in stored)
    assert torch.equal(load_identifiers(many, tokenizer)[0], tokenizer.item_codes)
    plain = tmp_path / "run" / "tokenizer"
    assert torch.equal(load_identifiers(plain, open_tokenizer(plain)), open_tokenizer(plain).item_codes.unsqueeze(0))

    settings_ = replace(
        recipe.finetune, item_dropout=0.3, objective=replace(recipe.finetune.objective, label_smoothing=0.1, temperature=0.9)
    )
    finetune(settings_, folder / "dataset", many, tmp_path / "model", 1)
    assert not (tmp_path / "model" / IDENTIFIERS_NAME).exists()
    model = open_model(tmp_path / "model")
    assert torch.equal(model.tokenizer.item_codes, tokenizer.item_codes)
    assert model.config.constrained_softmax is False
    constrained = replace(recipe.finetune, objective=replace(recipe.finetune.objective, constrained=True))
    with pytest.raises(CEMGError, match="one code per item"):
        finetune(constrained, folder / "dataset", many, tmp_path / "other", 1)
    finetune(constrained, folder / "dataset", plain, tmp_path / "other", 1)
    assert open_model(tmp_path / "other").config.constrained_softmax is True

    save_identifiers(many, stored.roll(1, dims=1))  # of the items in another order
    with pytest.raises(CEMGError, match="its first set is not the code"):
        load_identifiers(many, tokenizer)
