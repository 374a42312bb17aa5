from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distillation_samples import TINY, picture, tiny_settings, write_pictures
from safetensors.torch import load_file
from typer.testing import CliRunner

from cemg_hf.cli import app
from cemg_hf.errors import CEMGError
from cemg_hf.features.picture_store import read_pictures
from cemg_hf.models.rq_dino import RQDinoModel
from cemg_hf.training.inspect import inspect_tokenizer
from cemg_hf.training.rq_dino import build_model, format_report, train_rq_dino
from cemg_hf.training.rq_dino_codes import PictureCodes


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of pictures and a network trained on it long enough to tell their kinds apart."""
    folder = tmp_path_factory.mktemp("rq_dino")
    pictures = write_pictures(folder / "pictures", per_kind=6)
    config = tiny_settings(num_levels=3, loop__epochs=30, loop__eval_every=10)
    return pictures, train_rq_dino(config, pictures, folder / "out", seed=1)


def test_codes_are_in_range_and_pictures_of_different_kinds_have_different_ones(trained: tuple[Path, Path]) -> None:
    _, folder = trained
    coded = PictureCodes.load(folder)
    assert coded.codes.shape == (48, 3)
    assert bool(coded.mask.all())
    assert int(coded.codes.min()) >= 0
    assert int(coded.codes.max()) < 4
    assert all(len(column.unique()) == 4 for column in coded.codes.T), "a code of a level that no picture has"
    kinds = np.array([int(item_id[0]) for item_id in coded.item_ids])
    same = (coded.codes[:, None] == coded.codes[None]).all(2).numpy()
    alike = kinds[:, None] == kinds[None]
    within = same[alike & ~np.eye(48, dtype=bool)].mean()
    assert within > 2 * same[~alike].mean()


def test_a_saved_network_gives_the_same_codes(trained: tuple[Path, Path]) -> None:
    pictures, folder = trained
    model = RQDinoModel.from_pretrained(folder).eval()
    coded = PictureCodes.load(folder)
    torch.testing.assert_close(model.quantiser.codebooks, coded.codebooks)
    shown = read_pictures(pictures, tiny_settings().stored)
    with torch.inference_mode():
        found = model(torch.from_numpy(shown.pixels))
    torch.testing.assert_close(found.latent, coded.latent, atol=1e-4, rtol=1e-4)
    assert (found.codes == coded.codes).double().mean() > 0.99
    assert found.quantised.shape == found.latent.shape


def test_the_folder_tells_what_was_done(trained: tuple[Path, Path]) -> None:
    _, folder = trained
    report = json.loads((folder / "rq_dino_report.json").read_text())
    assert report["present"] == 48
    assert len(report["levels"]) == 3
    history = report["training"]["history"]
    assert [row["epoch"] for row in history] == [10, 20, 30]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert (folder / "training_curve.png").stat().st_size > 1000
    assert len((folder / "training_log.jsonl").read_text().splitlines()) >= 30
    assert "48 of 48 items" in format_report(folder)
    assert not list(folder.parent.glob(".out*"))


def test_the_report_of_other_tokenizers_reads_its_codes(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, folder = trained
    figures = inspect_tokenizer(folder / "tokenizer", output=tmp_path / "inspection")["metrics"]["tokenizer"]
    assert figures["items"] == 48
    assert figures["num_levels"] == 3
    assert figures["collision_rate_after"] == 0


def test_a_second_call_does_nothing_and_another_seed_trains_again(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", per_kind=1)
    config = tiny_settings(loop__epochs=1, codebook_size=8)
    folder = train_rq_dino(config, pictures, tmp_path / "out", seed=1)
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    train_rq_dino(replace(config, workers=config.workers + 1), pictures, tmp_path / "out", seed=1)
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights
    train_rq_dino(config, pictures, tmp_path / "out", seed=2)
    assert (folder / "model.safetensors").stat().st_mtime_ns != weights


def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", per_kind=3)
    changes: dict[str, Any] = {"loop__epochs": 3, "codebook_size": 8}
    whole = train_rq_dino(tiny_settings(**changes), pictures, tmp_path / "whole", seed=3)
    parts = tmp_path / "parts"
    for _ in range(3 * (3 + 1) - 1):  # a call does a step, or ends an epoch; the last one also writes the folder
        with pytest.raises(CEMGError, match="run the same command again"):
            train_rq_dino(tiny_settings(**changes, loop__time_budget_s=0.0), pictures, parts, seed=3)
    train_rq_dino(tiny_settings(**changes, loop__time_budget_s=0.0), pictures, parts, seed=3)
    assert load_file(whole / "model.safetensors").keys() == load_file(parts / "model.safetensors").keys()
    for name in ("model.safetensors", "codes.safetensors"):
        other = load_file(parts / name)
        for key, value in load_file(whole / name).items():
            torch.testing.assert_close(value, other[key], atol=0, rtol=0, msg=f"{name}: {key}")


def test_pictures_that_cannot_be_read_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = write_pictures(tmp_path / "pictures", per_kind=1)
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    folder = train_rq_dino(tiny_settings(loop__epochs=1, codebook_size=8), pictures, tmp_path / "out")
    assert "broken" in caplog.text
    report = json.loads((folder / "rq_dino_report.json").read_text())
    assert list(report["unreadable"]) == ["broken"]
    coded = PictureCodes.load(folder)
    assert [item for item, there in zip(coded.item_ids, coded.mask.tolist(), strict=True) if not there] == ["broken"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet81", "backbone_settings": {}}, r"'resnet81' is neither .* did you mean"),
        ({"backbone": "squeezenet1_0", "backbone_settings": {}}, r"'squeezenet1_0' has no linear classifier"),
        ({"backbone": "resnet18"}, r"'resnet18' of torchvision takes no settings"),
        (
            {"backbone": "bert", "backbone_settings": {"num_hidden_layers": 1, "hidden_size": 12, "intermediate_size": 8}},
            r"'bert' is no network from pictures",
        ),
        ({"backbone": "no/such-model", "backbone_settings": {}}, r"backbone = 'no/such-model': no model of transformers there"),
        ({"backbone": "vgg11", "backbone_settings": {}, "crops__size": 16}, r"crops\.size = 16: vgg11 cannot take pictures of 16 pixels"),
        ({"backbone": "vit_b_32", "backbone_settings": {}, "crops__size": 64}, r"crops\.size = 64: vit_b_32 cannot take"),
        ({"weights": "x.safetensors"}, r"are for torchvision's networks"),
    ],
)
def test_backbones_that_cannot_work_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CEMGError, match=message):
        build_model(tiny_settings(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_dim": 0}, "latent_dim = 0"),
        ({"stored_size": 8}, "stored_size = 8: must be at least crops.size"),
        ({"loop__patience": 3}, "patience and label_key are fixed"),
        ({"loop__gradient_accumulation_steps": 2}, "takes a batch at once"),
        ({"backbone_settings": {"no_such": 1}, "crops__sise": 3}, "did you mean 'size'"),
    ],
)
def test_settings_that_cannot_work_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CEMGError, match=message):
        tiny_settings(**changes)


def test_the_command_trains_and_says_where(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", per_kind=1)
    sets = [f"backbone_settings={json.dumps(TINY)}", "crops.size=16", "crops.local_size=8", "crops.local_crops=1", "codebook_size=8"]
    sets += ["latent_dim=8", "num_levels=2", "distillation.prototypes=8", "distillation.hidden_dim=8", "loop.batch_size=8"]
    options = [part for entry in sets for part in ("--set", entry)]
    command = ["rq-dino", str(pictures), "-o", str(tmp_path / "out"), "--backbone", "resnet", "--epochs", "1", *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "8 of 8 items have a picture" in result.output
    assert (tmp_path / "out" / "model.safetensors").is_file()
    empty = tmp_path / "empty"
    empty.mkdir()
    found = CliRunner().invoke(app, ["rq-dino", str(empty), "-o", str(tmp_path / "nothing")])
    assert isinstance(found.exception, CEMGError)
    assert "holds no images" in str(found.exception)


def test_more_items_than_codes_are_refused_before_training(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", per_kind=3)
    with pytest.raises(CEMGError, match=r"24 items do not fit into 4\^2 codes"):
        train_rq_dino(tiny_settings(), pictures, tmp_path / "out")


def test_one_picture_is_not_enough(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture(0, 0).save(folder / "a.png")
    with pytest.raises(CEMGError, match=r"1 of 1 pictures can be read; at least two are needed"):
        train_rq_dino(tiny_settings(), folder, tmp_path / "out")
