"""Systems side by side: grouping of seeds, paired tests, and what may not be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_samples import ITEMS, USERS, forget, predictions, reordered, save_result, save_run
from hypothesis import given, settings
from hypothesis import strategies as st
from ranx import Qrels, Run, evaluate

from cemg_hf.artefacts import write_json
from cemg_hf.errors import CEMGError
from cemg_hf.evaluation import bootstrap_interval, compare, hit_ranks, paired_bootstrap, per_case_metrics, read_runs
from cemg_hf.evaluation.comparison import cases_of_run, compare_pairs, holm


def test_pairs_are_the_paired_bootstrap_of_the_users(tmp_path: Path) -> None:
    given_a, given_b = predictions(1, 0.2), predictions(2, 0.5)
    runs = read_runs([save_run(tmp_path / "a", "a", 1, given_a), save_run(tmp_path / "b", "b", 1, given_b)])
    found = compare(runs, "ndcg@10", "test", resamples=500)
    assert [system.name for system in found.systems] == ["a", "b", "popularity"]
    (pair,) = found.pairs
    values = [per_case_metrics(hit_ranks(one.ranked, one.targets), [10])["ndcg@10"] for one in (given_a, given_b)]
    expected = paired_bootstrap(*values, n=500)
    assert (pair.difference, pair.low, pair.high, pair.p_value) == pytest.approx(
        (expected.mean, expected.low, expected.high, expected.p_value)
    )
    assert (pair.a, pair.b, pair.n) == ("a", "b", USERS)
    assert pair.p_holm == pair.p_value
    assert pair.difference == pytest.approx(runs[0].metrics["test"]["ndcg@10"] - runs[1].metrics["test"]["ndcg@10"])  # type: ignore[operator]


def test_chosen_pairs_are_those_of_all_pairs_and_corrected_for_their_own_number(tmp_path: Path) -> None:
    runs = {
        name: [read_runs([save_run(tmp_path / name, name, seed, predictions(seed, 0.2 + seed / 10))])[0]] for seed, name in enumerate("abc")
    }
    every = {(pair.a, pair.b): pair for pair in compare([run for (run,) in runs.values()], "ndcg@10", "test", resamples=300).pairs}
    chosen = compare_pairs({(a, b): [(runs[a], runs[b])] for a, b in ("ab", "ac")}, "ndcg@10", "test", resamples=300)
    assert [(pair.a, pair.b) for pair in chosen] == [("a", "b"), ("a", "c")]
    for pair in chosen:
        same = every[pair.a, pair.b]
        assert (pair.difference, pair.low, pair.high, pair.p_value) == (same.difference, same.low, same.high, same.p_value)
    assert [pair.p_holm for pair in chosen] == holm([pair.p_value for pair in chosen])
    assert compare_pairs({}) == []


def test_users_of_several_data_sets_count_all(tmp_path: Path) -> None:
    first, second = (
        tuple(
            read_runs([save_run(tmp_path / f"{name}{data}", name, data, predictions(seed, 0.3, data))])[0] for seed, name in enumerate("ab")
        )
        for data in (0, 1)
    )
    samples = [([a], [b]) for a, b in (first, second)]
    assert cases_of_run(first[0]) == cases_of_run(first[1]) != cases_of_run(second[0])
    (pair,) = compare_pairs({("a", "b"): samples}, "hr@10", "test", resamples=100)
    assert pair.n == 2 * USERS
    differences = [compare_pairs({("a", "b"): [sample]}, "hr@10", "test", resamples=100)[0].difference for sample in samples]
    assert pair.difference == pytest.approx(np.mean(differences))
    with pytest.raises(CEMGError, match="different test targets"):
        compare_pairs({("a", "b"): [([first[0]], [second[1]])]}, "hr@10", "test")
    (floor,) = (run for run in read_runs([tmp_path / "a0"]) if run.predictions is None)
    with pytest.raises(CEMGError, match="no predictions were saved"):
        cases_of_run(floor)
    with pytest.raises(CEMGError, match="no predictions were saved"):
        compare_pairs({("a", "floor"): [([first[0]], [floor])]})


@pytest.mark.parametrize("part", ["test_cold", "test_cold_1_5_excluding_history"])
def test_pairs_on_a_slice_are_of_its_users(tmp_path: Path, part: str) -> None:
    runs = read_runs([save_run(tmp_path / name, name, seed) for seed, name in enumerate("abc")])
    found = compare(runs, "hr@20", part, resamples=100)
    assert len(found.pairs) == 3
    for pair in found.pairs:
        a, b = (next(run for run in runs if run.system == name).metrics[part] for name in (pair.a, pair.b))
        assert pair.n == a["n"] == b["n"]
        assert pair.difference == pytest.approx(a["hr@20"] - b["hr@20"])  # type: ignore[operator]
        assert pair.p_value <= pair.p_holm


def test_both_rankings_are_tested_and_corrected_each_by_itself(tmp_path: Path) -> None:
    runs = read_runs([save_run(tmp_path / name, name, seed, predictions(seed, 0.25 + seed / 20)) for seed, name in enumerate("abc")])
    both = compare(runs, resamples=300)
    assert both.slices == ("test", "test_excluding_history")
    alone = {part: compare(runs, slice_name=part, resamples=300) for part in both.slices}
    assert {part: found.slices for part, found in alone.items()} == {part: (part,) for part in alone}
    assert both.pairs == [pair for found in alone.values() for pair in found.pairs]
    for part in both.slices:
        pairs = both.pairs_of(part)
        assert [(pair.a, pair.b) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
        assert [pair.p_holm for pair in pairs] == holm([pair.p_value for pair in pairs])


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_the_order_of_users_and_items_in_a_file_decides_nothing(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("order")
    generator = np.random.default_rng(seed)
    mixed = reordered(predictions(2), generator.permutation(USERS), generator.permutation(ITEMS))
    first = save_run(folder / "a", "a", 1)
    plain = compare(read_runs([first, save_run(folder / "b", "b", 2)]), resamples=200)
    permuted = compare(read_runs([first, save_run(folder / "c", "b", 2, mixed)]), resamples=200)
    assert permuted.pairs == plain.pairs
    assert permuted.systems[1].metrics["test"]["hr@10"] == plain.systems[1].metrics["test"]["hr@10"]


def test_seeds_of_a_system_are_one_row(tmp_path: Path) -> None:
    seeds = {seed: predictions(seed, 0.4) for seed in (1, 2, 3)}
    places = [save_run(tmp_path / f"a{seed}", "a", seed, one) for seed, one in seeds.items()]
    runs = read_runs([*places, save_run(tmp_path / "b", "b", 1)])
    found = compare(runs, "hr@10", "test", resamples=300)
    row, single, floor = found.systems
    assert (row.seeds, row.sources) == ([1, 2, 3], [str(place) for place in places])
    measured = [run.metrics["test"]["hr@10"] for run in runs[:3]]
    assert row.metrics["test"]["hr@10"] == pytest.approx(np.mean(measured))  # type: ignore[arg-type]
    assert row.std["test"]["hr@10"] == pytest.approx(np.std(measured, ddof=1))  # type: ignore[arg-type]
    assert row.metrics["test"]["n"] == USERS
    assert (single.std, floor.std) == ({}, {})
    means = np.mean([per_case_metrics(hit_ranks(one.ranked, one.targets), [10])["hr@10"] for one in seeds.values()], axis=0)
    interval = bootstrap_interval(means)
    assert row.intervals["test"]["hr@10"] == pytest.approx([interval.low, interval.high])
    (pair,) = found.pairs
    assert pair.difference == pytest.approx(means.mean() - runs[3].metrics["test"]["hr@10"])  # type: ignore[operator]
    parts = found.envelope_parts()
    assert parts["seeds"] == [1, 2, 3]
    assert set(parts["std"]) == {"a"}


def test_runs_that_seeds_do_not_tell_apart_are_rows_of_their_own(tmp_path: Path) -> None:
    one, other = save_run(tmp_path / "one", "a", 1), save_run(tmp_path / "other", "a", 1, predictions(5))
    names = [system.name for system in compare(read_runs([one, other, one]), resamples=50).systems]
    assert names == [f"a ({one})", f"a ({other})", f"a ({one}) #2", "popularity"]
    assert [system.name for system in compare(read_runs([one, f"b={other}"]), resamples=50).systems] == ["a", "b", "popularity"]


def test_files_of_results_stand_beside_runs_without_pairs(tmp_path: Path) -> None:
    file = save_result(tmp_path / "results.json", ["tiger", "popularity"])
    found = compare(read_runs([save_run(tmp_path / "a", "a"), file, save_run(tmp_path / "b", "b", 1)]), resamples=50)
    assert [system.name for system in found.systems] == ["a", "tiger", "b", "popularity"]
    assert [(pair.a, pair.b) for pair in found.pairs] == [("a", "b")] * 2
    assert found.systems[1].std["test"]["hr@10"] == 0.01
    assert compare(read_runs([file])).pairs == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data_seed": 1}, "different test targets"),
        ({"users": USERS - 1}, "199 test cases where"),
    ],
)
def test_different_cases_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    runs = read_runs([save_run(tmp_path / "a", "a"), save_run(tmp_path / "b", "b", 1, predictions(1, **changed))])
    with pytest.raises(CEMGError, match=message):
        compare(runs)


def test_different_users_catalogues_or_protocols_are_refused(tmp_path: Path) -> None:
    first, plain = save_run(tmp_path / "a", "a"), predictions(1)

    def against(name: str, **changed: Any) -> None:
        compare(read_runs([first, save_run(tmp_path / name, "b", 1, **changed)]), resamples=10)

    renamed = type(plain)(**{**plain.__dict__, "user_ids": [f"x{user}" for user in range(USERS)]})
    with pytest.raises(CEMGError, match="different test users"):
        against("users", given=renamed)
    grown = type(plain)(
        **{**plain.__dict__, "item_ids": [*plain.item_ids, "new"], "train_item_counts": np.append(plain.train_item_counts, 0)}
    )
    with pytest.raises(CEMGError, match="different catalogues of candidates"):
        against("items", given=grown)
    more = type(plain)(**{**plain.__dict__, "train_item_counts": plain.train_item_counts + 1})
    with pytest.raises(CEMGError, match="different training interactions"):
        against("counts", given=more)
    with pytest.raises(CEMGError, match="different protocols"):
        against("protocol", protocol={"split": "time", "validation_from": 1, "test_from": 2, "cold_threshold": 5})
    double = type(plain)(**{**plain.__dict__, "user_ids": ["u0", *plain.user_ids[:-1]]})
    with pytest.raises(CEMGError, match="a user has several predictions"):
        against("double", given=double)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    runs = read_runs([save_run(tmp_path / "a", "a")])
    with pytest.raises(CEMGError, match="'coverage@10' has no value per user"):
        compare(runs, "coverage@10")
    with pytest.raises(CEMGError, match=r"'hr@21' is not in .*a, and its lists of 20 are too short.*evaluate\.ks"):
        compare(runs, "hr@21")
    with pytest.raises(CEMGError, match=r"'hr@7' is not in .*results.json; it has hr@10, ndcg@10, hr@20"):
        compare(read_runs([save_result(tmp_path / "results.json", ["b"])]), "hr@7")
    with pytest.raises(CEMGError, match=r"'validation' is not in .*; it has test, test_cold"):
        compare(runs, "hr@10", "validation")
    with pytest.raises(CEMGError, match="none given"):
        compare([])


def test_values_behind_the_pairs_agree_with_ranx(tmp_path: Path) -> None:
    lists = predictions(3, 0.4)
    found = compare(read_runs([save_run(tmp_path / "a", "a", 3, lists)]), "ndcg@10", "test")
    qrels = Qrels({user: {f"i{target}": 1} for user, target in zip(lists.user_ids, lists.targets, strict=True)})
    ranked = {
        user: {f"i{item}": float(-place) for place, item in enumerate(row)} for user, row in zip(lists.user_ids, lists.ranked, strict=True)
    }
    expected = evaluate(qrels, Run(ranked), ["hit_rate@10", "ndcg@10", "mrr@10"])
    metrics = found.systems[0].metrics["test"]
    theirs = expected["hit_rate@10"], expected["ndcg@10"], expected["mrr@10"]
    assert (metrics["hr@10"], metrics["ndcg@10"], metrics["mrr@10"]) == pytest.approx(theirs)


def test_a_run_without_a_metric_is_tested_by_its_lists(tmp_path: Path) -> None:
    """As an evaluation from before there was MRR: figures, intervals and test are those of one that has it."""
    places = {name: save_run(tmp_path / name, name, seed, predictions(seed, 0.2 + seed / 10)) for seed, name in enumerate("abc")}
    new = compare(read_runs(list(places.values())), "mrr@10", "test_cold", resamples=200)
    forget(places["b"], "mrr")
    runs = read_runs(list(places.values()))
    assert "mrr@10" not in runs[1].metrics["test"]
    old = compare(runs, "mrr@10", "test_cold", resamples=200)
    assert old.pairs == new.pairs
    for before, after in zip(new.systems, old.systems, strict=True):
        for part, values in before.metrics.items():
            assert after.metrics[part]["mrr@10"] == values["mrr@10"]
            assert ("mrr@20" in after.metrics[part]) == (before.name != "b")
        assert after.intervals["test"].keys() >= {"hr@10", "mrr@10"}
    usual = compare(runs, resamples=200).systems[1]
    assert usual.metrics == runs[1].metrics
    (pair,) = compare_pairs({("a", "b"): [([runs[0]], [runs[1]])]}, "mrr@10", "test_cold", resamples=200)
    assert pair.difference == new.pairs[0].difference


def test_a_row_without_metric_and_lists_is_shown_and_not_tested(tmp_path: Path) -> None:
    older = save_result(tmp_path / "results.json", ["published"])
    run = save_run(tmp_path / "a", "a")
    forget(run, "mrr")  # with it goes that of the floor beside it
    found = compare(read_runs([run, older]), "mrr@10", "test")
    assert {system.name: "mrr@10" in system.metrics["test"] for system in found.systems} == {
        "a": True,
        "published": False,
        "popularity": False,
    }
    assert found.pairs == []


def test_seeds_of_which_one_lacks_a_metric_are_a_row_without_it(tmp_path: Path) -> None:
    places = [save_run(tmp_path / f"a{seed}", "a", seed, predictions(seed)) for seed in (1, 2)]
    forget(places[0], "mrr")
    row = compare(read_runs(places), "hr@10", "test", resamples=50).systems[0]
    assert row.seeds == [1, 2]
    assert not {name for name in row.metrics["test"] if name.startswith("mrr")}
    assert "mrr@10" in compare(read_runs(places), "mrr@10", "test", resamples=50).systems[0].std["test"]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm(p_values: list[float]) -> None:
    corrected = holm(p_values)
    m = len(p_values)
    for p, found in zip(p_values, corrected, strict=True):
        smaller = [q * (m - sum(r < q for r in p_values)) for q in p_values if q <= p]
        assert found == pytest.approx(min(1, max(smaller)))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_the_cost_of_a_system_is_its_mean_over_the_seeds(tmp_path: Path) -> None:
    places = []
    for seed, seconds in ((1, 10.0), (2, 20.0)):
        places.append(save_run(tmp_path / str(seed), "a", seed))
        write_json(places[-1] / "metrics.json", {"metrics": {"a": {"test": {}}}, "seeds": [seed], "seconds_by_stage": {"train": seconds}})
    found = compare(read_runs(places), resamples=20).envelope_parts()["systems"]
    assert found["a"]["seconds_by_stage"] == {"train": 15.0}
    assert "seconds_by_stage" not in found["popularity"]
    write_json(places[-1] / "metrics.json", {"metrics": {"a": {"test": {}}}, "seeds": [2]})
    assert "seconds_by_stage" not in compare(read_runs(places), resamples=20).envelope_parts()["systems"]["a"]


def test_a_stage_has_the_machine_that_all_its_runs_had(tmp_path: Path) -> None:
    """One that some seeds ran elsewhere has none; another kernel of the same machine is no other machine."""
    cpu, gpu = ({"platform": "Linux-6", "processor": "x86_64", "cores": 2, "accelerator": one} for one in ("none", "H100"))
    seconds = {"prepare": 1.0, "train": 2.0}
    places = []
    for seed, trained_on in ((1, gpu), (2, gpu | {"platform": "Linux-7"})):
        places.append(save_run(tmp_path / str(seed), "a", seed, machine=trained_on))
        about = {"seconds_by_stage": seconds, "machine_by_stage": {"prepare": cpu, "train": trained_on}}
        write_json(places[-1] / "metrics.json", {"metrics": {"a": {"test": {}}}, "seeds": [seed], **about})
    found = compare(read_runs(places), resamples=20).envelope_parts()["systems"]["a"]
    assert found["machine"] == gpu
    assert found["machine_by_stage"] == {"prepare": cpu, "train": gpu}
    places.append(save_run(tmp_path / "3", "a", 3, machine=cpu))
    about = {"seconds_by_stage": seconds, "machine_by_stage": dict.fromkeys(seconds, cpu)}
    write_json(places[-1] / "metrics.json", {"metrics": {"a": {"test": {}}}, "seeds": [3], **about})
    found = compare(read_runs(places), resamples=20).envelope_parts()["systems"]["a"]
    assert "machine" not in found
    assert found["machine_by_stage"] == {"prepare": cpu}
    assert found["seconds_by_stage"] == {"prepare": 1.0}, "seconds of a card and of cores have no mean"
