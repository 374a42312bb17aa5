"""`cemg …` for all tests of commands."""

from __future__ import annotations

import pytest
from command_samples import Command


@pytest.fixture
def cemg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)
