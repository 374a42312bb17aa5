from __future__ import annotations

import pytest

from cemg_hf.evaluation.seeds import over_seeds


def test_rows_are_means_and_spreads_over_the_seeds() -> None:
    first = {"test": {"hr@10": 0.1, "n": 10}, "test_cold": {"hr@10": 0.3, "n": 1}}
    second = {"test": {"hr@10": 0.2, "n": 10}, "test_cold": {"hr@10": None, "n": 0}}
    mean, std = over_seeds({"cemg": [first, second], "floor": [first]})
    assert mean["cemg"]["test"] == {"hr@10": pytest.approx(0.15), "n": 10}
    assert std["cemg"]["test"] == {"hr@10": pytest.approx(0.05 * 2**0.5), "n": 0}  # over n − 1
    assert isinstance(mean["cemg"]["test"]["n"], int)
    assert mean["cemg"]["test_cold"]["hr@10"] is std["cemg"]["test_cold"]["hr@10"] is None
    assert mean["floor"] == first
    assert set(std["floor"]["test"].values()) == {0}
