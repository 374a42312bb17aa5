from __future__ import annotations

from dataclasses import fields

import pytest

from cemg_hf.errors import CEMGError
from cemg_hf.serving.config import ServingConfig


def test_every_setting_is_explained() -> None:
    assert all(entry.metadata.get("help") for entry in fields(ServingConfig))


@pytest.mark.parametrize("name", [entry.name for entry in fields(ServingConfig)])
def test_a_setting_that_cannot_work_is_named(name: str) -> None:
    with pytest.raises(CEMGError, match=name):
        ServingConfig(**{name: float("nan")})
    if name != "new_item_boost":
        with pytest.raises(CEMGError, match=name):
            ServingConfig(**{name: -1})
