from __future__ import annotations

import pytest

from cemg_hf.training import deadline
from cemg_hf.training.deadline import time_is_up, time_limit


def test_the_limit_that_comes_first_counts_and_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now)
    assert not time_is_up()
    with time_limit(None):
        assert not time_is_up()
    with time_limit(10), time_limit(0):
        assert time_is_up()
    with time_limit(10):
        with time_limit(20), time_limit(None):
            now = 115.0
            assert time_is_up(), "the outer limit holds within"
        assert time_is_up()
        now = 105.0
        assert not time_is_up()
    now = 200.0
    assert not time_is_up()
