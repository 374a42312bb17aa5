"""Measured systems read back from folders and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from comparison_samples import save_result, save_run

from cemg_hf.artefacts import write_json
from cemg_hf.errors import CEMGError
from cemg_hf.evaluation import read_runs


def test_every_way_to_name_a_run(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "sasrec", seed=3)
    for place in (run, run / "evaluation", run / "evaluation" / "metrics.json"):
        own, floor = read_runs([place])
        assert (own.system, own.seeds) == ("sasrec", (3,))
        assert own.predictions is not None
        assert own.intervals["test"]["hr@10"]
        assert (floor.system, floor.predictions) == ("popularity", None)
    (named, _) = read_runs([f"tuned={run}"])
    assert named.system == "tuned"
    assert named.predictions is not None


def test_the_envelope_of_a_whole_run_stands_for_its_evaluation(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "cemg")
    write_json(run / "metrics.json", {"metrics": {"cemg": {"test": {}}}, "seeds": [0]})
    own, _ = read_runs([run / "metrics.json"])
    assert own.metrics["test"]["n"]
    assert own.predictions is not None


def test_a_file_of_results_has_a_row_per_system_and_one_floor_is_kept(tmp_path: Path) -> None:
    file = save_result(tmp_path / "results.json", ["cemg", "cemg-without-text", "popularity"])
    runs = read_runs([file, save_run(tmp_path / "run", "sasrec")])
    assert [run.system for run in runs] == ["cemg", "cemg-without-text", "sasrec", "popularity"]
    assert runs[0].std["test"]["hr@10"] == 0.01
    assert runs[-1].source == str(file)
    own = save_run(tmp_path / "popular", "popularity")
    assert [(run.system, run.source) for run in read_runs([file, own])][-1] == ("popularity", str(own))


def test_places_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match="no such file or folder"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(CEMGError, match=r"no metrics.json there or in evaluation/"):
        read_runs([tmp_path])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(CEMGError, match="not a file of results"):
        read_runs([tmp_path / "broken.json"])
    write_json(tmp_path / "speed.json", {"metrics": {"csr": {"seconds": 1.0}}, "seeds": [0]})
    with pytest.raises(CEMGError, match="no ranking metrics"):
        read_runs([tmp_path / "speed.json"])
    file = save_result(tmp_path / "results.json", ["cemg", "tiger"])
    with pytest.raises(CEMGError, match=r"holds several systems \(cemg, tiger\)"):
        read_runs([f"mine={file}"])


def test_the_cost_of_a_run_is_read_from_its_own_results(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "cemg")
    assert read_runs([run])[0].seconds_by_stage == {}
    write_json(run / "metrics.json", {"metrics": {"cemg": {"test": {}}}, "seeds": [0], "seconds_by_stage": {"train": 2.5}})
    own, floor = read_runs([run])
    assert (own.seconds_by_stage, floor.seconds_by_stage) == ({"train": 2.5}, {})
    assert read_runs([run / "evaluation"])[0].seconds_by_stage == {}


def test_the_machine_of_a_stage_is_that_of_its_manifest(tmp_path: Path) -> None:
    """A run that was finished on another machine; two folders of one stage by different machines are no one's."""
    cpu, gpu = ({"platform": "Linux", "processor": "x86_64", "cores": 2, "accelerator": one} for one in ("none", "H100"))
    run = save_run(tmp_path / "run", "cemg", machine=gpu)
    stages = {"dataset": ("prepare", cpu), "model": ("finetune", gpu), "evaluation": ("evaluate", gpu), "latency": ("latency", cpu)}
    for folder, (stage, machine) in stages.items():
        write_json(run / folder / "manifest.json", {"stage": stage, "settings": {}, "inputs": {}, "seed": 0, "machine": machine})
    result = {
        "metrics": {"cemg": {"test": {}}},
        "seeds": [0],
        "seconds_by_stage": {"prepare": 1, "finetune": 2, "evaluate": 3, "encode": 4},
    }
    write_json(run / "metrics.json", result)
    own, floor = read_runs([run])
    assert own.machine == floor.machine == gpu
    assert own.machine_by_stage == {"prepare": cpu, "finetune": gpu, "evaluate": gpu}
    assert floor.machine_by_stage == {}
    codes = {"stage": "evaluate", "settings": {}, "inputs": {}, "seed": 0, "machine": cpu}
    write_json(run / "evaluation-codes-only" / "manifest.json", codes)
    assert read_runs([run])[0].machine_by_stage == {"prepare": cpu, "finetune": gpu}
    write_json(run / "metrics.json", result | {"machine_by_stage": {"prepare": gpu}})
    assert read_runs([run])[0].machine_by_stage == {"prepare": gpu}


def test_a_comparison_has_the_machines_of_its_systems_and_not_its_own(tmp_path: Path) -> None:
    gpu = {"platform": "Linux", "processor": "x86_64", "cores": 16, "accelerator": "H100"}
    file = save_result(tmp_path / "compare.json", ["cemg", "tiger"])
    write_json(file, json.loads(file.read_text()) | {"systems": {"cemg": {"machine": gpu}}})
    assert [run.machine for run in read_runs([file])] == [gpu, None]
