"""Networks over whole items as a stage: SASRec and GRU4Rec on a shop where the next item follows from the last."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shop_samples import ITEMS, walks, write_dataset

from cemg_hf import CEMGTokenizer
from cemg_hf.artefacts import MANIFEST_NAME
from cemg_hf.data import PreparedDataset
from cemg_hf.errors import CEMGError
from cemg_hf.evaluation.metrics import check_rankings, ranking_metrics
from cemg_hf.evaluation.popularity import PopularityRecommender
from cemg_hf.models.gru4rec import GRU4RecForNextItem
from cemg_hf.models.sasrec import SASRecForNextItem
from cemg_hf.training import sequential
from cemg_hf.training.loop import LoopConfig
from cemg_hf.training.sequential import NetworkRanker, SequentialConfig, build_network, train_sequential

LOOP = LoopConfig(epochs=8, batch_size=32, learning_rate=0.02, eval_every=4)
CONFIGS = {
    "sasrec": SequentialConfig("sasrec", {"hidden_size": 16, "dropout": 0.1, "max_history": 6, "num_negatives": 64}, LOOP),
    "gru4rec": SequentialConfig("gru4rec", {"hidden_size": 16, "recurrent_size": 16, "dropout": 0.1, "max_history": 6}, LOOP),
}
CLASSES = {"sasrec": SASRecForNextItem, "gru4rec": GRU4RecForNextItem}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("sequential") / "dataset", walks()).folder


@pytest.fixture(scope="module")
def data(dataset: Path) -> PreparedDataset:
    return PreparedDataset.load(dataset)


@pytest.fixture(scope="module", params=["sasrec", "gru4rec"])
def trained(request: pytest.FixtureRequest, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A network's name and the model folder it was trained into."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    assert train_sequential(CONFIGS[request.param], dataset, folder, seed=0) == folder
    return request.param, folder


def ndcg(ranked: np.ndarray, data: PreparedDataset) -> float:
    value = ranking_metrics(ranked, data.evaluation_cases("test").targets, ks=(10,))["ndcg@10"]
    assert value is not None
    return value


def test_training_improves_on_the_untrained_network_and_beats_popularity(trained: tuple[str, Path], data: PreparedDataset) -> None:
    name, folder = trained
    cases = data.evaluation_cases("test")
    torch.manual_seed(0)
    untrained = NetworkRanker(build_network(CONFIGS[name], data).eval())
    popular = PopularityRecommender(data.train_item_counts()).rank(cases.histories, 10, exclude_history=True)
    before = ndcg(untrained(cases, 10, exclude_history=True)[0], data)
    after = ndcg(NetworkRanker.load(folder, data)(cases, 10, exclude_history=True)[0], data)
    assert after > max(0.5, 2 * before, 2 * ndcg(popular, data))


def test_the_folder_loads_as_the_model_and_ranks_as_recommend_does(trained: tuple[str, Path], data: PreparedDataset) -> None:
    name, folder = trained
    model = CLASSES[name].from_pretrained(folder)
    assert model.item_ids == data.item_ids
    assert model.config.num_items == ITEMS
    cases = data.evaluation_cases("test")
    for exclude in (False, True):
        ranked, scores = NetworkRanker.load(folder, data)(cases, 20, exclude_history=exclude)
        check_rankings(ranked, ITEMS)
        histories = [[data.item_ids[item] for item in row] for row in cases.histories.to_lists()]
        for row, expected in enumerate(model.recommend(histories[:10], k=20, exclude_history=exclude)):
            assert [data.item_ids[item] for item in ranked[row]] == [item.item_id for item in expected]
            assert scores[row].tolist() == pytest.approx([item.score for item in expected], abs=1e-4)


def test_the_report_says_what_was_trained(trained: tuple[str, Path], data: PreparedDataset) -> None:
    folder = trained[1]
    report = json.loads((folder / "training_report.json").read_text())
    assert report["targets"] == len(data.train_pairs()[0])
    assert report["best_metrics"]["ndcg@10"] == max(entry["ndcg@10"] for entry in report["history"])
    assert {"config.json", "model.safetensors", "item_ids.json", "training_curve.png", MANIFEST_NAME} <= {
        path.name for path in folder.iterdir()
    }
    assert not list(folder.parent.glob(".model*"))  # nothing of the training is left over; the lock files stay


def test_what_is_current_is_left_alone(trained: tuple[str, Path], dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, folder = trained

    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(sequential, "train", called)
    assert train_sequential(CONFIGS[name], dataset, folder, seed=0) == folder
    for config, seed in ((replace(CONFIGS[name], settings=CONFIGS[name].settings | {"dropout": 0.2}), 0), (CONFIGS[name], 1)):
        with pytest.raises(AssertionError, match="trained again"):
            train_sequential(config, dataset, folder, seed=seed)


def killed_at(evaluation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next training ends there as by a kill; one after that goes on to its end."""
    validate, calls = sequential.Validation.__call__, []

    def fail_once(self: Any, model: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == evaluation:
            raise MemoryError("killed")
        return validate(self, model)

    monkeypatch.setattr(sequential.Validation, "__call__", fail_once)


def test_a_killed_training_continues_to_the_same_model(
    trained: tuple[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder = trained
    killed_at(2, monkeypatch)
    with pytest.raises(MemoryError):
        train_sequential(CONFIGS[name], dataset, tmp_path / "model", seed=0)
    assert not (tmp_path / "model").exists()
    train_sequential(CONFIGS[name], dataset, tmp_path / "model", seed=0)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_killed_training_continues_under_its_own_settings_only(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIGS["sasrec"], loop=replace(LOOP, epochs=2, eval_every=1))
    killed_at(2, monkeypatch)
    with pytest.raises(MemoryError):
        train_sequential(config, dataset, tmp_path / "model", seed=0)
    for other in ({"loss": "full"}, {"dropout": 0.4}, {"num_heads": 4}):
        with pytest.raises(CEMGError):
            train_sequential(replace(config, settings=config.settings | other), dataset, tmp_path / "model", seed=0)
    for protocol in ({"validation_users": 5}, {"validation_excludes_history": False}):  # the best weights were chosen by another
        with pytest.raises(CEMGError, match="was made with other settings"):
            train_sequential(replace(config, **protocol), dataset, tmp_path / "model", seed=0)


def test_the_time_budget_ends_a_training_that_can_go_on(dataset: Path, tmp_path: Path) -> None:
    config = replace(CONFIGS["sasrec"], loop=replace(LOOP, epochs=2, eval_every=1, time_budget_s=1e-6))
    with pytest.raises(CEMGError, match="time budget of 1e-06 s used up; run the same command again to continue"):
        train_sequential(config, dataset, tmp_path / "model", seed=0)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        ("sasrec", {"hiden_size": 8}, "sequential.settings: sasrec has no 'hiden_size'; it has cosine_scale, dropout"),
        ("gru4rec", {"layer": "ligr"}, "sequential.settings: gru4rec has no 'layer'; it has dropout, hidden_size"),
        ("sasrec", {"num_items": 3}, "sequential.settings: sasrec has no 'num_items'"),
        ("sasrec", {"content_dim": 3}, "sequential.settings: sasrec has no 'content_dim'"),
        ("sasrec", {"layer": "mamba"}, "sequential.settings: layer: unknown value 'mamba'"),
        ("gru4rec", {"loss": "hinge"}, "sequential.settings: loss: unknown value 'hinge'"),
        ("sasrec", {"hidden_size": 9}, "sequential.settings: hidden_size: 9 is not a multiple of num_heads = 2"),
    ],
)
def test_settings_that_do_not_exist_or_cannot_work_are_named(
    network: str, settings: dict[str, Any], message: str, data: PreparedDataset
) -> None:
    with pytest.raises(CEMGError, match=message):
        build_network(SequentialConfig(network, settings), data)


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        ("sasrec", {"hidden_size": "wide"}, "hidden_size: expected int, got 'wide'"),
        ("sasrec", {"hidden_size": 16.5}, "hidden_size: expected int, got 16.5"),
        ("gru4rec", {"dropout": "much"}, "dropout: expected float, got 'much'"),
        ("gru4rec", {"loss": None}, "loss: expected str, got None"),
    ],
)
def test_settings_of_the_wrong_type_are_named(network: str, settings: dict[str, Any], message: str, data: PreparedDataset) -> None:
    with pytest.raises(CEMGError, match=f"sequential.settings: {message}"):
        build_network(SequentialConfig(network, settings), data)
    assert build_network(SequentialConfig(network, {"dropout": 0}), data).config.dropout == 0  # a whole number is a number


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(CEMGError, match=r"sequential.network: unknown 'bert4rec'; choose one of sasrec, gru4rec"):
        SequentialConfig("bert4rec")


# ---- content ----------------------------------------------------------------------------------------------------------------------


def content_tokenizer(item_ids: list[str], vectors: torch.Tensor | None) -> CEMGTokenizer:
    codes = torch.stack([torch.arange(len(item_ids)) // 8, torch.arange(len(item_ids)) % 8], dim=1)
    return CEMGTokenizer(item_ids=item_ids, item_codes=codes, num_levels=2, codebook_size=8, item_vectors=vectors)


def test_content_vectors_are_those_of_the_tokenizer(dataset: Path, data: PreparedDataset, tmp_path: Path) -> None:
    vectors = torch.randn(ITEMS, 5).half()
    content_tokenizer(data.item_ids, vectors).save_pretrained(tmp_path / "tokenizer")
    config = replace(CONFIGS["sasrec"], content=True, loop=replace(LOOP, epochs=1, eval_every=1))
    train_sequential(config, dataset, tmp_path / "model", seed=0, tokenizer=tmp_path / "tokenizer")
    model = SASRecForNextItem.from_pretrained(tmp_path / "model")
    assert model.config.content_dim == 5
    assert torch.equal(model.content_vectors, vectors.float())
    assert (NetworkRanker.load(tmp_path / "model", data)(data.evaluation_cases("test"), 5, exclude_history=True)[0] >= 0).all()


def test_content_without_what_it_needs_is_refused(dataset: Path, data: PreparedDataset, tmp_path: Path) -> None:
    config = replace(CONFIGS["sasrec"], content=True)
    with pytest.raises(CEMGError, match=r"sequential.content: needs the tokenizer that holds content vectors"):
        train_sequential(config, dataset, tmp_path / "model", seed=0)
    content_tokenizer(data.item_ids, None).save_pretrained(tmp_path / "bare")
    content_tokenizer(data.item_ids[::-1], torch.randn(ITEMS, 5)).save_pretrained(tmp_path / "other")
    for name in ("bare", "other"):
        with pytest.raises(CEMGError, match="has no content vectors of the items of"):
            train_sequential(config, dataset, tmp_path / "model", seed=0, tokenizer=tmp_path / name)
    with pytest.raises(CEMGError, match=r"sequential.content: gru4rec knows items by their ids alone"):
        build_network(replace(CONFIGS["gru4rec"], content=True), data, tmp_path / "other")


# ---- folders that are something else -----------------------------------------------------------------------------------------------


def test_folders_that_hold_no_network_or_another_catalogue_are_refused(
    trained: tuple[str, Path], data: PreparedDataset, tmp_path: Path
) -> None:
    with pytest.raises(CEMGError, match="holds no sasrec or gru4rec"):
        NetworkRanker.load(tmp_path, data)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(CEMGError, match="holds no sasrec or gru4rec"):
        NetworkRanker.load(tmp_path, data)
    other = PreparedDataset(data.folder, data.user_ids, data.item_ids[::-1], data.sequences)
    with pytest.raises(CEMGError, match="its catalogue is not that of"):
        NetworkRanker.load(trained[1], other)
