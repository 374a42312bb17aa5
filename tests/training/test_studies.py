"""Studies: variants share what they have in common, go on where they were stopped, and say what is missing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from command_samples import write_shop
from transformers import BertConfig, T5Config

from cemg_hf.artefacts import InUse
from cemg_hf.errors import CEMGError
from cemg_hf.recipes import load_recipe
from cemg_hf.training import latency, loop, studies, study_variants
from cemg_hf.training import sequential as sequential_module
from cemg_hf.training.pipeline import STAGES
from cemg_hf.training.stage_store import StageStore
from cemg_hf.training.studies import Study, StudyConfig, StudyRun, run_study
from cemg_hf.training.study_variants import ablated, swept, t5_sizes

SYSTEMS = ("cemg", "popularity", "item_knn")
QUICK = (
    "evaluate.resamples=20",
    "sequential.settings={network_width: 8}",  # only what trains a network of this family looks at it
    "sequential.loop={epochs: 2, batch_size: 16, learning_rate: 0.01}",
)
GRU = (*QUICK, "sequential.settings={hidden_size: 8, recurrent_size: 8}")

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("shop") / "shop")


@pytest.fixture(scope="module")
def output(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where RQ1 was answered under one seed."""
    folder = tmp_path_factory.mktemp("studies")
    run_study(StudyConfig("rq1", [str(shop)], folder, SYSTEMS, assignments=QUICK), "cemg study rq1")
    return folder


@pytest.fixture
def ask(shop: Path, output: Path) -> Ask:
    def asked(question: str, systems: tuple[str, ...] = SYSTEMS, folder: Path = output, **options: Any) -> dict[str, Any]:
        return run_study(StudyConfig(question, [str(shop)], folder, systems, **{"assignments": QUICK, **options}), f"cemg study {question}")

    return asked


def inodes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_ino for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_answer_is_one_envelope_a_table_and_a_figure(output: Path) -> None:
    answer = json.loads((output / "rq1.json").read_text())
    assert {"metrics", "command", "commit", "seeds", "versions", "machine", "seconds"} <= set(answer)
    assert (answer["study"], answer["seeds"], answer["set"], answer["not_run"]) == ("rq1", [1], list(QUICK), {})
    assert set(answer["metrics"]) == set(SYSTEMS)
    for system in SYSTEMS:
        run = json.loads((output / "shop" / system / "seed-1" / "metrics.json").read_text())
        assert answer["metrics"][system] == run["metrics"][system]
        assert (answer["rows"][system]["system"], answer["rows"][system]["seeds"]) == (system, [1])
        assert answer["intervals"][system] == run["intervals"][system]
    assert "std" not in answer, "one seed has no spread"
    assert "| item_knn | 1 |" in (output / "rq1.md").read_text()
    assert (output / "rq1.png").stat().st_size > 5000


def test_stages_in_common_are_made_once(ask: Ask, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (studies, study_variants):
        monkeypatch.setattr(module, "SWEEPS", {"M": ("num_levels", (2, 3))})
    answer = ask("rq4", sweeps=["M"])
    assert {row: about["value"] for row, about in answer["rows"].items()} == {"M = 2": 2, "M = 3": 3}
    base, other = (output / "shop" / name / "seed-1" for name in ("cemg", "cemg-M-2"))
    for stage in ("dataset", "features"):
        assert inodes(base / stage) == inodes(other / stage) != {}
    assert not set(inodes(base / "tokenizer").values()) & set(inodes(other / "tokenizer").values())
    assert answer["metrics"]["M = 3"] == json.loads((base / "metrics.json").read_text())["metrics"]["cemg"], "the recipe's own M is its run"
    assert {folder.name for folder in other.iterdir()} >= set(STAGES.values())
    assert inodes(output / "shop" / "item_knn" / "seed-1" / "dataset") == inodes(base / "dataset")


def test_means_and_spreads_are_those_of_the_runs(ask: Ask, output: Path) -> None:
    answer = ask("rq1", SYSTEMS[1:], seeds=2)
    assert answer["seeds"] == [1, 2]
    assert "intervals" not in answer, "those of one seed are not those of the mean"
    for system in SYSTEMS[1:]:
        runs = [json.loads((output / "shop" / system / f"seed-{seed}" / "metrics.json").read_text())["metrics"] for seed in (1, 2)]
        for part, values in runs[0][system].items():
            for metric in values:
                both = [run[system][part][metric] for run in runs]
                mean, std = (answer[kind][system][part][metric] for kind in ("metrics", "std"))
                if None in both:
                    assert mean is std is None
                else:
                    assert (mean, std) == pytest.approx((np.mean(both), np.std(both)))


def test_cold_items_and_finished_runs_need_no_run(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StudyRun, "complete", lambda *_, **__: pytest.fail("nothing is left to run"))
    answer = ask("rq5")
    assert not answer["not_run"]
    cold = answer["metrics"]["cemg"]["test_cold_1_5_excluding_history"]
    assert cold["n"] > 0
    assert answer["metrics"]["cemg"]["test_cold_0"]["n"] == 0
    assert "HR@10, 1–5" in answer["columns"]


def test_a_run_from_before_a_setting_is_finished_under_its_default(shop: Path, output: Path, tmp_path: Path) -> None:
    given = Study(StudyConfig("rq1", [str(shop)], output, ("popularity",), assignments=QUICK))
    (done,) = given._runs()
    folder = tmp_path / "older"
    folder.mkdir()
    (folder / "metrics.json").write_text((done.folder / "metrics.json").read_text())
    written = yaml.safe_load((done.folder / "recipe.yaml").read_text())
    del written["evaluate"]["ks"]
    older = StudyRun(done.recipe, done.variant, folder)
    for recipe, finished in ((written, True), (written | {"seed": 99}, False)):
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        assert (older.finished() is not None) == finished
    other = load_recipe(shop, [*QUICK, "evaluate.ks=[10]"], system="popularity")
    assert StudyRun(other, done.variant, done.folder).finished() is None


def test_without_time_what_is_there_is_shown_and_the_rest_named(ask: Ask, output: Path) -> None:
    before = inodes(output / "shop")
    answer = ask("rq1", (*SYSTEMS, "lightgcn"), seeds=3, time_budget_s=0)
    assert set(answer["metrics"]) == set(SYSTEMS)
    assert answer["not_run"]["lightgcn"] == {"seeds": [1, 2, 3], "reason": "out of time"}
    assert answer["not_run"]["cemg"]["seeds"] == [2, 3]
    assert answer["time_budget_s"] == 0
    assert "| lightgcn | not run |" in (output / "rq1.md").read_text()
    assert inodes(output / "shop") == before


def test_time_and_latency(ask: Ask, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = ask("rq3", SYSTEMS[:2], time_budget_s=0)
    assert late["metrics"]["cemg"]["latency"] == {"batch_1_ms": None, "batch_64_ms": None}
    answer = ask("rq3", SYSTEMS[:2])
    cemg, floor = (answer["metrics"][system] for system in SYSTEMS[:2])
    assert set(cemg["seconds"]) == {"prepare", "encode", "tokenize", "train", "evaluate"}
    assert set(floor["seconds"]) == {"prepare", "evaluate"}
    assert cemg["latency"]["batch_1_ms"] > cemg["latency"]["batch_64_ms"] > 0
    assert answer["latency"]["threads"] >= 1
    monkeypatch.setattr(latency, "_timed", lambda *_: pytest.fail("measured twice"))
    assert ask("rq3", SYSTEMS[:2])["metrics"] == answer["metrics"]
    assert "ms per user, alone" in (output / "rq3.md").read_text()


def test_the_seconds_are_those_of_all_runs_and_shared_stages_count_once(ask: Ask, output: Path) -> None:
    answer = ask("rq1", SYSTEMS[1:], time_budget_s=0)
    runs = [json.loads((output / "shop" / system / "seed-1" / "metrics.json").read_text()) for system in SYSTEMS[1:]]
    shared = {run["seconds_by_stage"]["prepare"] for run in runs}
    assert len(shared) == 1, "both have the same data"
    assert answer["seconds"] == pytest.approx(sum(run["seconds"] for run in runs) - shared.pop(), abs=0.02)
    assert 0 < answer["seconds_of_call"] != answer["seconds"]


def test_latency_of_a_run_whose_model_is_elsewhere_is_not_measured(ask: Ask, output: Path) -> None:
    run = output / "shop" / "cemg" / "seed-1"
    away = (run / "model").rename(run / "model-on-another-machine")
    try:
        answer = ask("rq3", SYSTEMS[:2])
    finally:
        away.rename(run / "model")
    assert answer["not_run"] == {}
    assert answer["metrics"]["cemg"]["latency"] == {"batch_1_ms": None, "batch_64_ms": None}
    assert answer["metrics"]["cemg"]["seconds"]["train"] > 0
    assert answer["metrics"]["popularity"]["latency"]["batch_1_ms"] > 0


def test_seconds_beside_a_machine_are_of_that_machine_alone(ask: Ask, tmp_path: Path) -> None:
    ask("rq3", ("popularity", "item_knn"), tmp_path, seeds=2)
    brought = tmp_path / "shop" / "popularity" / "seed-2" / "metrics.json"
    envelope = json.loads(brought.read_text())
    envelope["machine"]["accelerator"] = "a card"
    envelope["seconds_by_stage"]["evaluate"] = 1e6
    brought.write_text(json.dumps(envelope))
    answer = ask("rq3", ("popularity", "item_knn"), tmp_path, seeds=2)
    here = json.loads((tmp_path / "shop" / "popularity" / "seed-1" / "metrics.json").read_text())
    assert answer["metrics"]["popularity"]["seconds"]["evaluate"] == here["seconds_by_stage"]["evaluate"]
    assert "a card" in answer["rows"]["popularity"]["machines"]
    assert answer["rows"]["popularity"]["seconds_of"] == answer["rows"]["item_knn"]["seconds_of"] != "a card"
    assert "a card" not in (tmp_path / "rq3.md").read_text()


def test_ablations_are_tested_against_the_whole(ask: Ask, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "ablated", lambda *arguments: ablated(*arguments)[:2])
    answer = ask("rq2")
    (pair,) = answer["pairs"]
    assert (pair["a"], pair["b"], pair["table"], pair["slice"]) == (
        "without collaborative",
        "cemg",
        "ablations",
        "test_excluding_history",
    )
    values = [answer["metrics"][pair[side]][pair["slice"]]["ndcg@10"] for side in ("a", "b")]
    assert pair["difference"] == pytest.approx(values[0] - values[1])
    assert pair["p_holm"] == pair["p_value"]
    assert "Δ NDCG@10, history excluded [95 %], p |" in (output / "rq2.md").read_text()


def test_training_that_runs_out_of_time_or_is_killed_continues(ask: Ask, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"systems": ("gru4rec",), "assignments": GRU}
    run = output / "shop" / "gru4rec" / "seed-1"
    validations = 0
    validate = sequential_module.Validation.__call__

    def counted(self: Any, model: Any) -> dict[str, float]:
        nonlocal validations
        validations += 1
        if validations == 2:
            raise KeyboardInterrupt
        return validate(self, model)

    with monkeypatch.context() as short:
        short.setattr(loop, "time_is_up", lambda: True)
        short.setattr(sequential_module.Validation, "__call__", lambda *_: pytest.fail("stopped within the first epoch"))
        assert ask("rq1", **options)["not_run"] == {"gru4rec": {"seeds": [1], "reason": "out of time"}}
    assert not (run / "model").exists()
    assert any((run / ".model.training").iterdir())
    with monkeypatch.context() as killed:
        killed.setattr(sequential_module.Validation, "__call__", counted)
        with pytest.raises(KeyboardInterrupt):
            ask("rq1", **options)
    answer = ask("rq1", **options)
    assert not answer["not_run"]
    report = json.loads((run / "model" / "training_report.json").read_text())
    assert [row["epoch"] for row in report["history"]] == [1, 2]


def test_systems_of_one_study_may_differ_in_precision(ask: Ask, tmp_path: Path) -> None:
    AcceleratorState._reset_state()
    Accelerator(mixed_precision="bf16")  # what a system before this one leaves behind
    assert not ask("rq1", ("gru4rec",), tmp_path, assignments=GRU)["not_run"]


def test_other_settings_are_other_runs(shop: Path, output: Path) -> None:
    (same,) = Study(StudyConfig("rq1", [str(shop)], output, ("item_knn",), assignments=QUICK))._runs()
    (other,) = Study(StudyConfig("rq1", [str(shop)], output, ("item_knn",), assignments=(*QUICK, "evaluate.cold_threshold=3")))._runs()
    assert same.folder == other.folder
    assert same.finished() is not None
    assert other.finished() is None
    unread = (*QUICK, "tokenize.epochs=1", "finetune.loop.epochs=1")
    (unconcerned,) = Study(StudyConfig("rq1", [str(shop)], output, ("item_knn",), assignments=unread))._runs()
    assert unconcerned.finished() == same.finished()
    (concerned,) = Study(StudyConfig("rq1", [str(shop)], output, ("cemg",), assignments=unread))._runs()
    assert concerned.finished() is None


def test_what_cannot_be_run_is_named_and_stops_nothing(ask: Ask, output: Path, tmp_path: Path) -> None:
    answer = ask("rq1", ("popularity", "gru4rec"), seeds=1, assignments=(*QUICK, "sequential.loop.epochs=3"))
    assert set(answer["metrics"]) == {"popularity"}
    assert "has no 'network_width'" in answer["not_run"]["gru4rec"]["reason"]
    with pytest.raises(CEMGError, match="has no 'network_width'"):
        ask("rq1", ("gru4rec",), folder=tmp_path)
    assert not (tmp_path / "rq1.json").exists()


def test_processes_share_the_work(ask: Ask, tmp_path: Path, another_process: Callable[[Path], subprocess.Popen[str]]) -> None:
    other = another_process(tmp_path / "shop" / "item_knn" / "seed-1" / "evaluation")
    first = ask("rq1", ("item_knn", "popularity"), tmp_path)
    assert set(first["metrics"]) == {"popularity"}
    assert first["not_run"] == {"item_knn": {"seeds": [1], "reason": "another process is at it"}}
    other.kill()
    other.wait()
    assert set(ask("rq1", ("item_knn", "popularity"), tmp_path)["metrics"]) == {"popularity", "item_knn"}


def test_what_another_process_prepares_comes_last(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    complete = StudyRun.complete

    def busy_at_first(self: StudyRun, store: StageStore, *args: Any) -> dict[str, Any]:
        order.append((self.recipe.system, store.patient))
        if self.recipe.system == "item_knn" and not store.patient:
            raise InUse("its data set is being made")
        return complete(self, store, *args)

    monkeypatch.setattr(StudyRun, "complete", busy_at_first)
    assert set(ask("rq1", ("item_knn", "popularity"), tmp_path)["metrics"]) == {"item_knn", "popularity"}
    assert order == [("item_knn", False), ("popularity", False), ("item_knn", True)]


@pytest.mark.parametrize("busy", ["item_knn/seed-1/evaluation", "popularity/seed-1/latency", "../rq3"])
def test_rows_stay_where_another_process_takes_the_times(
    ask: Ask, tmp_path: Path, busy: str, another_process: Callable[[Path], subprocess.Popen[str]]
) -> None:
    """And nothing is timed while another process trains or takes times."""
    (tmp_path / "shop" / "popularity" / "seed-1").mkdir(parents=True)
    other = another_process((tmp_path / "shop" / busy).resolve())
    answer = ask("rq3", ("popularity", "item_knn"), tmp_path)
    assert answer["metrics"]["popularity"]["latency"]["batch_1_ms"] is None
    assert ("item_knn" in answer["not_run"]) == busy.startswith("item_knn")
    other.kill()
    other.wait()
    answer = ask("rq3", ("popularity", "item_knn"), tmp_path)
    assert all(row["latency"]["batch_1_ms"] > 0 for row in answer["metrics"].values())
    another_process(tmp_path / "shop" / "popularity" / "seed-1" / "latency")
    assert ask("rq3", ("popularity", "item_knn"), tmp_path)["metrics"] == answer["metrics"], "what was taken is read"


def test_what_another_process_finished_meanwhile_is_in_the_answer(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = StudyRun.complete

    def finished_elsewhere(self: StudyRun, *args: Any) -> dict[str, Any]:
        found = complete(self, *args)
        if self.recipe.system == "item_knn":
            raise InUse("in use until just now")
        return found

    monkeypatch.setattr(StudyRun, "complete", finished_elsewhere)
    answer = ask("rq1", ("item_knn", "popularity"), tmp_path)
    assert set(answer["metrics"]) == {"item_knn", "popularity"}
    assert not answer["not_run"]


def test_prepared_stages_need_no_sources(tmp_path: Path) -> None:
    shop = write_shop(tmp_path / "shop")
    config = {"recipes": [str(shop)], "output": tmp_path / "out", "systems": ("popularity",), "assignments": QUICK}
    Study(StudyConfig("rq1", **config)).prepare("encode")
    assert not (tmp_path / "out" / "shop" / "popularity" / "seed-1" / "evaluation").exists()
    (shop.parent / "interactions.csv").unlink()
    with pytest.raises(CEMGError, match=r"interactions\.csv"):
        run_study(StudyConfig("rq1", **config))
    assert "popularity" in run_study(StudyConfig("rq1", **config, prepared=True))["metrics"]
    with pytest.raises(CEMGError, match="'evaluate' is not shared by systems; choose one of prepare, encode, tokenize"):
        Study(StudyConfig("rq1", **config)).prepare("evaluate")


def test_several_recipes_stand_in_one_answer(shop: Path, output: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text(shop.read_text().replace("name: shop\n", "name: second\n", 1))
    assert load_recipe(second).name == "second"
    answer = run_study(StudyConfig("rq1", [str(shop), str(second)], output, ("popularity",), assignments=QUICK))
    assert list(answer["metrics"]) == ["shop, popularity", "second, popularity"]
    assert (output / "rq1.md").read_text().count("\n## ") == 2
    with pytest.raises(CEMGError, match="a name of its own"):
        Study(StudyConfig("rq1", [str(shop), str(shop)], output))


@pytest.mark.parametrize(
    ("question", "recipe", "options", "message"),
    [
        ("rq6", "sample", {}, "question: 'rq6' is unknown; choose one of rq1, rq2"),
        ("rq1", "beuty", {}, "beuty: no such recipe file"),
        ("rq1", "sample", {"systems": ["sasrek"]}, "systems: 'sasrek' is unknown; choose among cemg"),
        (
            "streams",
            "sample",
            {"systems": ["lightgcn"]},
            "systems: 'lightgcn' is unknown; choose among mscgrec, cemg, tiger, letter, sasrec",
        ),
        ("rq4", "sample", {"sweeps": ["N"]}, "sweep: 'N' is unknown; choose among M, K, lambda_q, lambda_d"),
        ("rq1", "sample", {"seeds": 0}, "seeds: 0; at least one is needed"),
        ("rq1", "sample", {"assignments": ["finetune.loop.epoch=1"]}, "did you mean 'epochs'?"),
    ],
)
def test_what_is_unknown_is_answered_with_what_is_known(
    question: str, recipe: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CEMGError) as raised:
        run_study(StudyConfig(question, [recipe], tmp_path, **options))
    assert message in str(raised.value)
    assert not list(tmp_path.iterdir())


# ---- variants -----------------------------------------------------------------------------------------------------------------


def changes(variants: list[study_variants.Variant]) -> dict[str, tuple[str, ...]]:
    return {variant.label: variant.assignments for variant in variants}


def test_ablations_take_away_what_there_is() -> None:
    recipe = load_recipe("sample")
    found = changes(ablated(recipe, ["image", "text", "collaborative"]))
    assert found == {
        "cemg": (),
        "without collaborative": ("tokenize.modalities=[image, text]",),
        "without image": ("tokenize.modalities=[text, collaborative]",),
        "without text": ("tokenize.modalities=[image, collaborative]",),
        "equal weights in fusion": ("tokenize.fusion=equal",),
        "fusion by reconstruction": ("tokenize.next_item.epochs=0",),
    }
    without_images = changes(ablated(recipe, ["text", "collaborative"]))
    assert set(found) - set(without_images) == {"without image", "equal weights in fusion"}
    published = changes(ablated(load_recipe("beauty"), ["text", "collaborative"]))
    assert published["softmax over all codes"] == ("finetune.objective.constrained=false",)
    assert published["without item dropout"] == ("finetune.item_dropout=0",)
    taught = load_recipe("sample", ["finetune.dense={content: true}", "finetune.objective.teacher_weight=0.5"])
    more = changes(ablated(taught, ["text", "collaborative"]))
    assert more["without text"] == ("tokenize.modalities=[collaborative]", "finetune.dense.content=false")
    assert more["without teacher"] == ("finetune.objective.teacher_weight=0",)
    for assignments in more.values():
        load_recipe("sample", ["finetune.dense={content: true}", "finetune.objective.teacher_weight=0.5", *assignments])
    folders = [variant.folder for variant in ablated(taught, ["image", "text", "collaborative"])]
    assert folders[:3] == ["cemg", "cemg-without-collaborative", "cemg-without-image"]
    assert len(set(folders)) == len(folders)


def test_a_pretrained_t5_meets_the_same_network_from_scratch(tmp_path: Path) -> None:
    T5Config(d_model=48, num_layers=2, num_decoder_layers=3, feed_forward_proj="gated-gelu").save_pretrained(tmp_path / "t5")
    recipe = load_recipe("sample")
    found = changes(ablated(recipe, ["text", "collaborative"], str(tmp_path / "t5")))
    assert found["pretrained T5"] == (f"finetune.generator.init_from={tmp_path / 't5'}",)
    scratch = load_recipe("sample", found["the same T5 from scratch"]).finetune.generator
    assert (scratch.d_model, scratch.num_layers, scratch.num_decoder_layers, scratch.feed_forward_proj) == (48, 2, 3, "gated-gelu")
    assert scratch.init_from is None
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(CEMGError, match="is a bert model; give the folder or Hub id of a T5"):
        t5_sizes(str(tmp_path / "bert"))
    with pytest.raises(CEMGError, match="--init-from: cannot load"):
        t5_sizes(str(tmp_path / "missing"))


def test_sweeps_go_through_the_recipes_own_value() -> None:
    recipe = load_recipe("sample")  # K = 32
    found = swept(recipe, ["K", "lambda_d", "K"])
    assert [variant.value for variant in found] == [32, 64, 128, 256, 512, 0, 0.001, 0.01, 0.1]
    assert [variant.label for variant in found if not variant.assignments] == ["K = 32", "lambda_d = 0.01"]
    assert {variant.folder for variant in found if not variant.assignments} == {"cemg"}
    assert found[-1].folder == "cemg-lambda_d-0.1"
    assert load_recipe("sample", found[-1].assignments).tokenize.lambda_div == 0.1


def test_modalities_are_those_of_the_data(shop: Path, tmp_path: Path) -> None:
    study = Study(StudyConfig("rq2", [str(shop)], tmp_path, assignments=(*QUICK, "prepare.images=null")))
    labels = [variant.label for variant in study._variants(str(shop))]
    assert "without text" in labels
    assert "without image" not in labels
    assert not (tmp_path / "shop" / "cemg" / "seed-1" / "tokenizer").exists(), "asking makes no more than the features"
