from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from distillation_samples import tiny_settings, write_pictures

from cemg_hf.errors import CEMGError
from cemg_hf.features.picture_store import read_pictures
from cemg_hf.training.multi_crop import MultiCrop
from cemg_hf.training.rq_dino import build_model
from cemg_hf.training.self_distillation import DistillationConfig, SelfDistillation


def network(tmp_path: Path, **changes: object) -> SelfDistillation:
    torch.manual_seed(0)
    config = tiny_settings(**changes)
    pictures = read_pictures(write_pictures(tmp_path / "pictures"), config.stored)
    found = SelfDistillation(build_model(config), pictures, MultiCrop(config.crops), config.distillation, total_steps=40)
    found.initialise(8)
    return found.train()


def test_gradient_reaches_student_and_head_but_neither_teacher_nor_code_vectors(tmp_path: Path) -> None:
    model = network(tmp_path)
    model.steps.fill_(1)
    model(torch.arange(8), 8).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith("teacher"))
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
        else:
            assert parameter.grad is None
    assert model.student.encoder.projection.weight.grad.abs().max() > 0  # type: ignore[union-attr]
    assert not model.student.quantiser.codebooks.requires_grad


def test_the_students_prediction_is_made_from_its_code_vectors(tmp_path: Path) -> None:
    """With all code vectors at one place it says the same of all crops, whatever they show; plain DINO does not."""
    for quantised in (True, False):
        model = network(tmp_path, distillation__quantise_student=quantised, distillation__diversity=0.0, distillation__commitment=0.0)
        shown: list[torch.Tensor] = []
        model.student_head.register_forward_hook(lambda module, inputs, output, shown=shown: shown.append(output))
        model.student.quantiser.codebooks.zero_()
        model(torch.arange(4), 4)
        assert (shown[0].std(0).max() < 1e-6) == quantised


def test_prototypes_are_held_back_at_the_start_only(tmp_path: Path) -> None:
    model = network(tmp_path, distillation__freeze_last_layer_ratio=0.1)
    for step, moves in ((0, False), (3, False), (4, True)):
        model.zero_grad()
        model.steps.fill_(step)
        model(torch.arange(8), 8).loss.backward()
        assert bool(model.student_head.prototypes.grad.abs().max() > 0) == moves  # type: ignore[union-attr]


def test_the_teacher_follows_by_its_momentum_and_the_centre_by_the_outputs(tmp_path: Path) -> None:
    model = network(tmp_path)
    model(torch.arange(8), 8)
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    before = copy.deepcopy(dict(model.teacher.named_parameters()))
    student = dict(model.student.encoder.named_parameters())
    said = model._seen[0]  # type: ignore[index]
    model.on_step(20)  # half of the steps: the momentum has gone half of the way from 0.9 to 1
    for name, parameter in model.teacher.named_parameters():
        torch.testing.assert_close(parameter, 0.95 * before[name] + 0.05 * student[name], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.center, 0.1 * said)
    model(torch.arange(8), 8)
    frozen = copy.deepcopy(dict(model.teacher.named_parameters()))
    model.on_step(40)
    for name, parameter in model.teacher.named_parameters():
        torch.testing.assert_close(parameter, frozen[name])


def test_code_vectors_move_with_what_they_code(tmp_path: Path) -> None:
    model = network(tmp_path)
    before = model.student.quantiser.codebooks.clone()
    model(torch.arange(16), 16)
    model.on_step(1)
    assert not torch.equal(model.student.quantiser.codebooks, before)
    assert model.averages.used.sum() == 16 * 4 * 2  # pictures × crops × levels


def test_the_loss_of_a_batch_is_its_pictures_sum_and_fillers_count_nothing(tmp_path: Path) -> None:
    model = network(tmp_path, distillation__commitment=0.0, distillation__diversity=0.0).eval()

    def loss(rows: list[int]) -> float:
        torch.manual_seed(5)
        return model(torch.tensor(rows), 4).loss.item()

    whole = loss([0, 1, 2, 3])
    assert loss([0, 1, 2, -100]) < whole
    assert loss([-100] * 4) == 0


def test_temperature_rises_with_the_steps_and_then_stays(tmp_path: Path) -> None:
    model = network(tmp_path, distillation__teacher_temperature=0.07)
    found = []
    for step in (1, 4, 8, 12, 13, 40):
        model(torch.arange(4), 4)
        model.on_step(step)
        found.append(model.teacher_temperature.item())
    assert found == pytest.approx([0.0425, 0.05, 0.06, 0.07, 0.07, 0.07])


def test_measurements_are_shares_and_leave_the_mode_alone(tmp_path: Path) -> None:
    model = network(tmp_path)
    found = model.measure()
    assert model.training
    assert set(found) == {"perplexity", "used_codes", "collision_rate", "quantisation_error", "target_entropy", "prototypes_used"}
    assert all(0 <= found[name] <= 1 + 1e-6 for name in found if name not in ("perplexity", "quantisation_error"))
    assert 1 <= found["perplexity"] <= 4


def test_a_collapse_shows_in_the_measurements(tmp_path: Path) -> None:
    model = network(tmp_path)
    with torch.no_grad():
        model.teacher_head.mlp[-1].weight.zero_()
        model.teacher_head.mlp[-1].bias.fill_(1.0)  # the same of every picture
    model.center.zero_()
    one_sided = model.measure()
    with torch.no_grad():
        model.teacher_head.prototypes.fill_(1.0)  # the same of every prototype
    uniform = model.measure()
    assert one_sided["target_entropy"] < 0.9
    assert uniform["target_entropy"] == pytest.approx(1, abs=1e-4)
    assert uniform["prototypes_used"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "value"), [("prototypes", 0), ("student_temperature", 0.0), ("teacher_momentum", 1.0), ("commitment", -0.1)]
)
def test_settings_that_cannot_work_are_named(name: str, value: float) -> None:
    with pytest.raises(CEMGError, match=rf"distillation\.{name}"):
        DistillationConfig(**{name: value})
