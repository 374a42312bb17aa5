"""The question of code streams: from a small shop's runs to one answer, and what is asked of each run beside its accuracy."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_samples import write_shop

from cemg_hf.evaluation.predictions import PREDICTIONS_NAME, read_predictions, write_predictions
from cemg_hf.evaluation.study_pairs import evaluation_of, paired_tests
from cemg_hf.models.cemg.assignment_cemg import collision_rate
from cemg_hf.training import footprint, latency, step_cost
from cemg_hf.training.loading import open_tokenizer
from cemg_hf.training.stream_study import ONE_CODE, collisions, left_out
from cemg_hf.training.studies import Study, StudyConfig, run_study

QUICK = (
    "evaluate.resamples=20",
    "encode.sequential={settings: {hidden_size: 8, num_heads: 2, num_layers: 1}, loop: {epochs: 1, batch_size: 16}}",
    "sequential={settings: {hidden_size: 8}, loop: {epochs: 1, batch_size: 16, eval_every: 1}}",
    "tokenize.epochs=1",
    "tokenize.num_levels=3",
)
SYSTEMS = ("mscgrec", "sasrec")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("shop") / "shop")


@pytest.fixture(scope="module")
def output(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the question was answered under one seed."""
    folder = tmp_path_factory.mktemp("studies")
    run_study(StudyConfig("streams", [str(shop)], folder, SYSTEMS, assignments=QUICK), "cemg study streams")
    return folder


@pytest.fixture(scope="module")
def answer(output: Path) -> dict[str, Any]:
    return json.loads((output / "streams.json").read_text())


def test_every_variant_is_measured_and_stands_in_its_tables(answer: dict[str, Any], output: Path) -> None:
    assert answer["not_run"] == {}
    assert set(answer["rows"]) == {
        "mscgrec",
        *(f"mscgrec, without {part}" for part in ("collaborative", "text", "image", "text and image")),
        "one code, fused",
        "one code, concatenated",
        "mscgrec, text written",
        "mscgrec, image written",
        "mscgrec, softmax over all codes",
        "sasrec",
    }
    text = (output / "streams.md").read_text()
    for title in ("Which stream the decoder writes", "Softmax over the permissible", "Items that share codes", "What it costs"):
        assert f"### {title}" in text
    assert (output / "streams.png").stat().st_size > 5000


def test_runs_share_codes_and_only_they_differ(output: Path) -> None:
    runs = output / "shop"

    def codes(name: str) -> int:
        return (runs / name / "seed-1" / "tokenizer" / "item_codes.safetensors").stat().st_ino

    base = codes("mscgrec")
    assert codes("mscgrec-text-written") == codes("mscgrec-image-written") == codes("mscgrec-softmax-over-all-codes") == base
    assert len({base, codes("mscgrec-one-code-fused"), codes("mscgrec-one-code-concatenated")}) == 3
    features = {(runs / name / "seed-1" / "features" / "report.json").stat().st_ino for name in ("mscgrec", "mscgrec-one-code-fused")}
    assert len(features) == 1


def test_histories_without_a_stream_are_no_new_training(answer: dict[str, Any], output: Path) -> None:
    run = output / "shop" / "mscgrec" / "seed-1"
    for part, hidden in left_out(["collaborative", "text", "image"]).items():
        measured = json.loads((evaluation_of(run, part) / "metrics.json").read_text())
        assert answer["metrics"][f"mscgrec, {part}"] == measured["metrics"][f"mscgrec, {part}"]
        settings = json.loads((evaluation_of(run, part) / "manifest.json").read_text())["settings"]
        assert settings["without_streams"] == list(hidden)


def test_costs_are_those_of_the_model_and_of_a_request(answer: dict[str, Any]) -> None:
    mscgrec, sasrec = (answer["metrics"][row] for row in ("mscgrec", "sasrec"))
    for row in (mscgrec, sasrec):
        assert row["memory"]["weights_bytes"] >= 4 * row["memory"]["parameters"] > 0
        assert row["memory"]["batch_64_bytes"] > row["memory"]["batch_1_bytes"] > 0
        assert row["cost"]["train_seconds"] > 0
        assert row["latency"]["batch_1_ms"] > 0
    assert sasrec["memory"]["index_bytes"] == 4 * 24 * 8, "items × width, in single precision"
    assert mscgrec["memory"]["batch_1_bytes"] > sasrec["memory"]["batch_1_bytes"]
    assert mscgrec["step"]["ms"] == mscgrec["step"]["permissible_ms"]
    free = answer["metrics"]["mscgrec, softmax over all codes"]["step"]
    assert free["ms"] == free["all_codes_ms"]
    assert "step" not in sasrec


def test_collisions_are_those_of_the_codes(answer: dict[str, Any], output: Path) -> None:
    fused = answer["metrics"]["one code, fused"]
    tokenizer = open_tokenizer(output / "shop" / "mscgrec-one-code-fused" / "seed-1" / "tokenizer")
    codes = fused[f"codes_{ONE_CODE}"]
    assert codes["items"] == len(tokenizer.item_ids)
    assert codes["collision_rate_before_last_level"] == pytest.approx(collision_rate(tokenizer.item_codes[:, :-1]))
    streams = answer["metrics"]["mscgrec"]
    assert {name for name in streams if name.startswith("codes_")} == {"codes_collaborative", "codes_text", "codes_image"}
    assert streams["codes_image"]["items"] < streams["codes_collaborative"]["items"], "two items have no picture that can be read"
    for name in ("collaborative", "text", "image"):
        values = streams[f"codes_{name}"]
        assert 0 <= values["collision_rate_before"] <= values["collision_rate_before_last_level"] <= 1
        assert values["moved_share"] <= values["collision_rate_before"]


def test_differences_are_those_of_the_users(answer: dict[str, Any], output: Path) -> None:
    tested = {(pair["table"], pair["a"], pair["b"]) for pair in answer["pairs"]}
    assert ("left_out", "mscgrec, without text", "mscgrec") in tested
    assert ("content", "mscgrec", "sasrec") in tested
    assert ("softmax", "mscgrec, softmax over all codes", "mscgrec") in tested
    assert not any(a == b or table == "cost" for table, a, b in tested)
    for pair in answer["pairs"]:
        values = [answer["metrics"][pair[side]][pair["slice"]][pair["metric"]] for side in ("a", "b")]
        assert pair["difference"] == pytest.approx(values[0] - values[1])
        assert pair["n"] == len(read_predictions(output / "shop" / "sasrec" / "seed-1" / "evaluation").user_ids)


def test_what_was_measured_is_read(shop: Path, output: Path, answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((latency, "_timed"), (footprint, "peak_bytes"), (step_cost, "_Steps")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("measured twice"))
    again = run_study(StudyConfig("streams", [str(shop)], output, SYSTEMS, assignments=QUICK), "cemg study streams")
    assert again["metrics"] == answer["metrics"]
    assert again["pairs"] == answer["pairs"]


def test_a_run_without_its_lists_is_in_no_paired_test(shop: Path, output: Path, answer: dict[str, Any]) -> None:
    lists = output / "shop" / "sasrec" / "seed-1" / "evaluation" / PREDICTIONS_NAME
    away = lists.rename(lists.with_suffix(".away"))
    try:
        again = run_study(StudyConfig("streams", [str(shop)], output, SYSTEMS, assignments=QUICK), "cemg study streams")
    finally:
        away.rename(lists)
    assert again["metrics"] == answer["metrics"]
    assert {(pair["a"], pair["b"]) for pair in again["pairs"]} == {
        (pair["a"], pair["b"]) for pair in answer["pairs"] if "sasrec" not in (pair["a"], pair["b"])
    }


def test_a_run_whose_model_is_elsewhere_keeps_what_it_measured(shop: Path, output: Path, answer: dict[str, Any]) -> None:
    run = output / "shop" / "mscgrec" / "seed-1"
    away = (run / "model").rename(run / "model-on-another-machine")
    try:
        again = run_study(StudyConfig("streams", [str(shop)], output, SYSTEMS, assignments=QUICK), "cemg study streams")
    finally:
        away.rename(run / "model")
    assert again["not_run"] == {}
    assert again["rows"].keys() == answer["rows"].keys(), "what histories without a stream gave stands beside the run's results"
    for row in (row for row in answer["rows"] if "without" in row):
        assert again["metrics"][row] == answer["metrics"][row]
    needs_model = {"latency", "memory", "step"}
    assert {part: values for part, values in answer["metrics"]["mscgrec"].items() if part not in needs_model} == again["metrics"]["mscgrec"]
    assert again["metrics"]["sasrec"] == answer["metrics"]["sasrec"]
    assert {("content", "mscgrec", "sasrec")} < {(pair["table"], pair["a"], pair["b"]) for pair in again["pairs"]}
    (costs,) = (line for line in (output / "streams.md").read_text().split("### What it costs")[1].splitlines() if "| mscgrec |" in line)
    assert costs.count("–") == 8


def test_without_time_what_is_there_is_shown(shop: Path, output: Path, answer: dict[str, Any]) -> None:
    run = output / "shop" / "mscgrec" / "seed-1"
    shutil.rmtree(run / "latency")
    shutil.rmtree(evaluation_of(run, "without text"))
    late = run_study(StudyConfig("streams", [str(shop)], output, SYSTEMS, assignments=QUICK, time_budget_s=0), "cemg study streams")
    assert set(answer["rows"]) - set(late["rows"]) == {"mscgrec, without text"}
    assert "latency" not in late["metrics"]["mscgrec"]
    assert late["metrics"]["mscgrec"]["memory"] == answer["metrics"]["mscgrec"]["memory"]
    assert late["not_run"] == {}


def test_two_seeds_have_a_spread_and_users_are_paired_over_both(shop: Path, output: Path) -> None:
    config = StudyConfig("streams", [str(shop)], output, ("sasrec",), seeds=2, assignments=QUICK)
    run_study(config, "cemg study streams")
    for seed, seconds in ((1, 10.0), (2, 14.0)):  # what the trainings really took may be the same
        took(output / "shop" / "sasrec" / f"seed-{seed}", seconds)
    both = run_study(config, "cemg study streams")
    assert both["seeds"] == [1, 2]
    assert both["metrics"]["sasrec"]["cost"]["train_seconds"] == 12
    assert both["std"]["sasrec"]["cost"]["train_seconds"] == pytest.approx(8**0.5)
    rows = {
        name: {"label": name, "part": "", "tables": {"content": against}, "seeds": [1, 2]}
        for name, against in (("sasrec", ""), ("other", "sasrec"))
    }
    folders = {name: {seed: output / "shop" / "sasrec" / f"seed-{seed}" for seed in (1, 2)} for name in rows}
    (pair,) = paired_tests(rows, folders, "test")
    assert (pair["a"], pair["b"], pair["difference"], pair["p_holm"]) == ("other", "sasrec", 0, 1)
    n = both["metrics"]["sasrec"]["test"]["n"]
    assert pair["n"] == n, "one data set: a user's value is the mean over its seeds"
    for name in rows:
        folders[name] = {1: folders[name][1], 2: with_other_users(folders[name][2], output / f"{name} among others")}
    (pair,) = paired_tests(rows, folders, "test")
    assert pair["n"] == 2 * n, "a data set per seed: all users of both"


def test_seconds_are_those_of_one_machine_and_costs_of_the_seeds_that_have_them(shop: Path, output: Path) -> None:
    config = StudyConfig("streams", [str(shop)], output, ("sasrec",), seeds=2, assignments=QUICK)
    run_study(config, "cemg study streams")
    for seed, seconds in ((1, 10.0), (2, 14.0)):
        took(output / "shop" / "sasrec" / f"seed-{seed}", seconds)
    brought = output / "shop" / "sasrec" / "seed-2"
    envelope = json.loads((brought / "metrics.json").read_text())
    before = (brought / "metrics.json").read_text()
    envelope["machine"]["accelerator"] = "a card"
    (brought / "metrics.json").write_text(json.dumps(envelope))
    away = (brought / "model").rename(brought / "model-on-another-machine")
    try:
        both = run_study(config, "cemg study streams")
    finally:
        away.rename(brought / "model")
        (brought / "metrics.json").write_text(before)
    assert both["rows"]["sasrec"]["seeds"] == [1, 2]
    assert len(both["rows"]["sasrec"]["machines"]) == 2
    assert both["metrics"]["sasrec"]["cost"]["train_seconds"] == 10
    assert both["metrics"]["sasrec"]["latency"].keys() >= {"batch_1_ms"}
    assert both["rows"]["sasrec"]["seconds_of"] == next(one for one in both["rows"]["sasrec"]["machines"] if one != "a card")
    assert "cost" not in both["std"]["sasrec"], "one run has no spread"


def took(run: Path, seconds: float) -> None:
    """Let a run's training have taken so long."""
    envelope = json.loads((run / "metrics.json").read_text())
    envelope["seconds_by_stage"]["train"] = seconds
    (run / "metrics.json").write_text(json.dumps(envelope))


def with_other_users(run: Path, copy: Path) -> Path:
    """A run folder with the same lists, of other users."""
    shutil.copytree(run / "evaluation", copy / "evaluation")
    found = read_predictions(copy / "evaluation")
    write_predictions(copy / "evaluation", replace(found, user_ids=[f"other {user}" for user in found.user_ids]))
    return copy


def test_a_shop_without_pictures_has_neither_their_stream_nor_their_rows(shop: Path, tmp_path: Path) -> None:
    study = Study(StudyConfig("streams", [str(shop)], tmp_path, assignments=(*QUICK, "prepare.images=null")))
    variants = {variant.label: variant for variant in study._variants(str(shop))}
    assert not [label for label in variants if "image" in label]
    assert "mscgrec, text written" in variants
    assert not any("dimension" in change for change in variants["one code, concatenated"].assignments)
    coded = (*QUICK, "prepare.images=null", "streams.image_codes=somewhere")  # codes of pictures need no vectors of them
    study = Study(StudyConfig("streams", [str(shop)], tmp_path, ("mscgrec",), assignments=coded))
    assert "mscgrec, image written" in {variant.label for variant in study._variants(str(shop))}
    assert left_out(["collaborative", "text"]) == {"without collaborative": ("collaborative",), "without text": ("text",)}
    assert left_out(["collaborative"]) == {}


def test_collisions_of_a_report() -> None:
    assert collisions({}) == {}
    about = {"moved": 3, "collision_rate_before": 0.25, "collision_rate_before_last_level": 0.5}
    one = collisions({"items": 14, "items_without_any_modality": 2, **about})
    assert one == {"codes_all": {"items": 12, "collision_rate_before_last_level": 0.5, "collision_rate_before": 0.25, "moved_share": 0.25}}
    older = collisions({"streams": {"text": {"present": 6, "moved": 3, "collision_rate_before": 0.5}}})
    assert older["codes_text"]["collision_rate_before_last_level"] is None
    assert np.isclose(older["codes_text"]["moved_share"] or 0, 0.5)
