from __future__ import annotations

import pytest

from cemg_hf.evaluation.seeds import of_one_machine, over_seeds


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


def test_what_one_seed_was_measured_without_is_left_out() -> None:
    """The older of two runs knows fewer metrics and slices, whichever comes first."""
    newer = {"test": {"hr@10": 0.2, "mrr@10": 0.1, "n": 4}, "test_cold_0": {"hr@10": 0.0, "n": 1}}
    older = {"test": {"hr@10": 0.4, "n": 4}}
    for seeds in ([newer, older], [older, newer]):
        mean, std = over_seeds({"cemg": seeds})
        assert mean == {"cemg": {"test": {"hr@10": pytest.approx(0.3), "n": 4}}}
        assert std["cemg"]["test"].keys() == {"hr@10", "n"}


def test_of_some_slices_the_seeds_that_have_them_speak_for_all() -> None:
    measured, not_measured = {"test": {"hr@10": 0.2}, "latency": {"ms": 3.0}}, {"test": {"hr@10": 0.4}}
    for seeds in ([measured, not_measured], [not_measured, measured]):
        mean, std = over_seeds({"cemg": seeds}, some=["latency"])
        assert mean == {"cemg": {"test": {"hr@10": pytest.approx(0.3)}, "latency": {"ms": 3.0}}}
        assert "latency" not in std["cemg"], "one measurement has no spread"
    _, std = over_seeds({"cemg": [measured, not_measured, {"test": {"hr@10": 0.6}, "latency": {"ms": 5.0}}]}, some=["latency"])
    assert std["cemg"]["latency"] == {"ms": pytest.approx(2**0.5)}


def test_seconds_are_those_of_this_machine_or_of_the_one_that_made_most_runs() -> None:
    first, second, third = ({"cost": {"train_seconds": seconds}, "test": {"n": 5}} for seconds in (10.0, 14.0, 90.0))
    without = {"test": {"n": 5}}
    assert of_one_machine([first, third], ["a card", "2 cores"], "2 cores", ["cost"]) == ([without, third], "2 cores")
    three = of_one_machine([third, first, second], ["4 cores", "a card", "a card"], "2 cores", ["cost"])
    assert three == ([without, first, second], "a card")
    assert of_one_machine([first], ["a card"], "2 cores", ["cost"]) == ([first], "a card")
