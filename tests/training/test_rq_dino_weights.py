from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models
from transformers import ResNetConfig, ResNetModel

from cemg_hf.errors import CEMGError
from cemg_hf.models.rq_dino.backbones_rq_dino import build_backbone
from cemg_hf.training.rq_dino_weights import load_start, named_backbone

NAME = "shufflenet_v2_x0_5"


def test_a_torchvision_network_starts_from_a_state_dict_with_its_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = models.get_model(NAME, weights=None).state_dict()
    save_file({name: value.half() if value.is_floating_point() else value for name, value in state.items()}, tmp_path / "w.safetensors")
    torch.manual_seed(1)
    network = build_backbone(NAME, {}).network
    load_start(network, NAME, str(tmp_path / "w.safetensors"))
    for name, value in network.state_dict().items():
        assert value.dtype == state[name].dtype
        torch.testing.assert_close(value, state[name], atol=1e-3, rtol=1e-3)


def test_a_folder_of_transformers_brings_configuration_and_weights(tmp_path: Path) -> None:
    source = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic"))
    source.save_pretrained(tmp_path / "resnet")
    name, settings = named_backbone(str(tmp_path / "resnet"), {})
    assert name == "resnet"
    network = build_backbone(name, settings).network
    load_start(network, str(tmp_path / "resnet"), None)
    for key, value in source.state_dict().items():
        torch.testing.assert_close(network.state_dict()[key], value)


def test_without_weights_nothing_changes() -> None:
    network = build_backbone(NAME, {}).network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_start(network, NAME, None)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    network = build_backbone(NAME, {}).network
    save_file({"conv1.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    (tmp_path / "empty").mkdir()
    for weights, message in (
        (str(tmp_path / "other.safetensors"), "conv1.0.weight is missing or has another shape"),
        (str(tmp_path / "torn.safetensors"), "is no safetensors file"),
        ("nowhere.safetensors", "no file nowhere.safetensors; give a state dict .* or one of IMAGENET1K_V1"),
    ):
        with pytest.raises(CEMGError, match=message):
            load_start(network, NAME, weights)
    with pytest.raises(CEMGError, match="are for torchvision's networks"):
        load_start(network, "vit", "w.safetensors")
    with pytest.raises(CEMGError, match="no model of transformers there"):
        named_backbone(str(tmp_path / "empty"), {})
    with pytest.raises(CEMGError, match="vit has no 'hiden_size'; did you mean 'hidden_size'"):
        named_backbone("vit", {"hiden_size": 3})
    with pytest.raises(CEMGError, match="brings its own configuration"):
        named_backbone(str(tmp_path / "empty"), {"hidden_size": 3})
