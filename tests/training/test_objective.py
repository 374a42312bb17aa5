"""Settings of the loss on their way to the model."""

from __future__ import annotations

import pytest

from cemg_hf.errors import CEMGError
from cemg_hf.models.cemg import Objective
from cemg_hf.training.objective import ObjectiveConfig


@pytest.mark.parametrize("wrong", [{"label_smoothing": 1.0}, {"temperature": 0.0}, {"teacher_weight": -0.5}])
def test_impossible_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(CEMGError, match=next(iter(wrong))):
        ObjectiveConfig(**wrong)


def test_the_default_is_the_default_of_the_model() -> None:
    assert ObjectiveConfig().objective() == Objective()
    assert ObjectiveConfig(0.1, True, 0.7, 0.2).objective() == Objective(0.1, 0.7, 0.2)
