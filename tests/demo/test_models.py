from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from demo_samples import BARE, UNPICTURED, picture

from cemg_hf.data.schema import normalise_items
from cemg_hf.demo.models import DemoModel
from cemg_hf.errors import CEMGError
from cemg_hf.features.store import FeatureStore
from cemg_hf.training.finetune import GeneratorConfig, build_generator
from cemg_hf.training.loading import open_tokenizer
from cemg_hf.training.new_items import add_items_to_model
from cemg_hf.training.streams import StreamsConfig, tokenize_streams
from cemg_hf.training.tokenizer_config import TokenizerTrainingConfig


@pytest.fixture
def model(run_folder: Path) -> DemoModel:
    return DemoModel.load(str(run_folder / "model"))


def content(item_id: str = "fresh", title: str | None = "Red Mug", image: bytes | None = None) -> pl.DataFrame:
    return normalise_items(pl.DataFrame({"item_id": [item_id], "title": [title], "image": [image]}), {}, "here")


def test_names_features_and_dense_weights_are_found(run_folder: Path) -> None:
    model, dense = (DemoModel.load(str(run_folder / name)) for name in ("model", "dense"))
    assert (model.name, dense.name) == ("tiny", "dense")
    assert model.features == run_folder.resolve() / "features"
    assert (model.dense_weight, dense.dense_weight) == (None, 0.5)


def test_alpha_is_what_the_fusion_gives_each_item(model: DemoModel, run_folder: Path) -> None:
    store, network = FeatureStore.load(run_folder / "features"), model.tokenizer.rqvae
    assert network is not None
    vectors = {name: torch.tensor(np.array(block.vectors)) for name, block in store.modalities.items()}
    fused = network.fuse(vectors, {name: torch.tensor(block.mask) for name, block in store.modalities.items()})
    for item_id, alpha in zip(store.item_ids, fused.alpha.tolist(), strict=True):
        assert model.alpha.get(item_id, (0.0, 0.0)) == pytest.approx(alpha, abs=1e-6)
    assert BARE not in model.alpha
    assert model.alpha[UNPICTURED] == (0.0, 1.0)
    assert sum(model.alpha["item-00"]) == pytest.approx(1)


def test_a_new_item_is_coded_as_add_items_codes_it_and_nobody_else_sees_it(model: DemoModel, run_folder: Path, tmp_path: Path) -> None:
    before, ranking = list(model.tokenizer.item_ids), model.model.recommend(["item-00", "item-01"], k=10)
    view = model.with_item("fresh", content(image=picture("red")))
    assert "fresh" in view.known
    assert set(view.alpha) == set(model.alpha) | {"fresh"}
    table = tmp_path / "new.parquet"
    pl.DataFrame({"item_id": ["fresh"], "title": ["Red Mug"], "image": [picture("red")]}).write_parquet(table)
    add_items_to_model(run_folder / "model", str(table), run_folder / "features", tmp_path / "grown")
    grown = DemoModel.load(str(tmp_path / "grown"), run_folder / "features")
    assert torch.equal(grown.tokenizer.item_codes, view.tokenizer.item_codes)
    assert view.model.recommend(["fresh"], k=10) == grown.model.recommend(["fresh"], k=10)

    assert model.tokenizer.item_ids == before
    assert "fresh" not in model.known | set(model.alpha)
    assert model.model.recommend(["item-00", "item-01"], k=10) == ranking
    with pytest.raises(ValueError, match="'fresh' is not among"):
        model.model.recommend(["fresh"])
    # Nothing was copied but the catalogue.
    assert all(mine is theirs for mine, theirs in zip(view.model.parameters(), model.model.parameters(), strict=True))
    another = view.with_item("second", content("second", None, picture("green")))
    assert {"fresh", "second"} <= another.known
    assert another.alpha["second"] == (1.0, 0.0)
    assert "second" not in view.known


def test_a_model_of_code_streams_takes_new_items_and_has_no_alpha(run_folder: Path, tmp_path: Path) -> None:
    codes = TokenizerTrainingConfig(dimension=8, num_levels=3, codebook_size=8, hidden_dims=[], latent_dim=4, epochs=1)
    content_streams = StreamsConfig(modalities=["text", "image"], decoded="text")
    tokenize_streams(content_streams, codes, run_folder / "features", tmp_path / "tokenizer", 0)
    small = GeneratorConfig(d_model=16, d_kv=8, d_ff=16, num_heads=2, num_layers=1, num_decoder_layers=1)
    build_generator(small, open_tokenizer(tmp_path / "tokenizer"), content_streams).save_pretrained(tmp_path / "model")
    model = DemoModel.load(str(tmp_path / "model"), run_folder / "features")
    view = model.with_item("fresh", content(image=picture("red")))
    assert (model.alpha, view.alpha) == ({}, {})
    assert "fresh" in {item.item_id for item in view.model.recommend(["fresh"], k=len(view.tokenizer.item_ids), num_beams=60)}
    with pytest.raises(CEMGError, match="no new item has"):
        model.with_item("fresh", content(title=None, image=picture("red")))


def test_items_without_content_and_models_without_encoders_are_errors(model: DemoModel, run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match="no new item has"):
        model.with_item("fresh", content(title=None))
    shutil.copytree(run_folder / "model", tmp_path / "model")
    alone = DemoModel.load(str(tmp_path / "model"))
    assert (alone.features, alone.alpha) == (None, {})
    with pytest.raises(CEMGError, match="--features FOLDER"):
        alone.with_item("fresh", content())


def test_features_of_another_model_are_refused(run_folder: Path, tmp_path: Path) -> None:
    store = FeatureStore.load(run_folder / "features")
    FeatureStore(store.item_ids, {"text": store.modalities["text"]}).save(tmp_path)
    with pytest.raises(CEMGError, match="are not those of tiny"):
        DemoModel.load(str(run_folder / "model"), tmp_path)
