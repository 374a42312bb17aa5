from __future__ import annotations

import ast
import re
from dataclasses import asdict, replace

import pytest
import yaml
from card_samples import card_model, comparison, result
from huggingface_hub import ModelCard, parse_eval_result_entries

from cemg_hf.errors import CEMGError
from cemg_hf.hub.dataset_card import TASKS
from cemg_hf.hub.model_card import METRICS, SLICES, eval_results, model_card
from cemg_hf.recipes import load_recipe


def rows(card: str) -> dict[str, list[str]]:
    """System -> cells of the results table, in its order."""
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0].strip("|* "): line.split(" | ")[1:] for line in lines[1:]}


def test_every_figure_of_the_metadata_is_the_results() -> None:
    measured = result()
    card = ModelCard(model_card(card_model(), measured))
    found = {one.metric_name: one.metric_value for one in card.data.eval_results}
    own = measured["metrics"]["cemg"]
    assert found == {f"{METRICS[name]}, {SLICES[part]}": round(own[part][name], 5) for part in SLICES for name in METRICS}
    assert {(one.dataset_config, one.dataset_split) for one in card.data.eval_results} == {("splits", "test")}


def test_the_table_has_baselines_intervals_and_the_best_first() -> None:
    card = model_card(card_model(), result(), comparison())
    table = rows(card)
    assert list(table) == ["sasrec", "cemg", "cemg, codes only", "gru4rec", "popularity"]
    assert table["cemg"][0] == "0.2000 (0.1990 – 0.2020)"
    assert table["gru4rec"][0] == "0.1500"
    assert "50 users; in parentheses 95 % intervals by bootstrap over users." in card
    tested = [line for line in card.splitlines() if ": `cemg` is " in line]
    assert tested == [
        "- all items ranked: `cemg` is ahead of `sasrec`",
        "- history items excluded: `cemg` is ahead of `gru4rec`; behind `sasrec`; not told apart from `cemg, codes only`",
    ]


def test_a_comparison_of_one_slice_and_of_any_metric_is_told() -> None:
    beside = comparison()
    cold = [{key: value for key, value in pair.items() if key != "slice"} for pair in beside["pairs"][1:]]
    card = model_card(card_model(), result(), beside | {"metric": "hr@5", "slice": "test_cold", "pairs": cold})
    assert "Paired bootstrap over users, HR@5, p < 0.05 after Holm's correction:" in card
    assert "- cold start: `cemg` is ahead of `gru4rec`; behind `sasrec`" in card


def test_deviations_over_seeds_stand_where_there_are_several() -> None:
    measured = result(intervals={}) | {"seeds": [1, 2], "std": {"cemg": {"test": {"hr@10": 0.0123}}}}
    card = model_card(card_model(), measured)
    assert rows(card)["cemg"][0] == "0.2000 ± 0.0123"
    assert "50 users; means ± standard deviations over seeds where there are several." in card
    assert "seeds 1, 2" in card
    every = measured | {"std": dict.fromkeys(measured["metrics"], measured["std"]["cemg"])}
    assert "50 users; means ± standard deviations over seeds." in model_card(card_model(), every)
    assert "without intervals" in model_card(card_model(), result(intervals={}))


def test_one_seed_beside_several_is_said_as_what_it_is() -> None:
    """The model's row is one seed with an interval, another is a mean with a deviation: the words above the table cover both."""
    beside = comparison() | {"std": {"gru4rec": {"test": {"hr@10": 0.0123}}}, "seeds": [1, 2, 3]}
    card = model_card(card_model(), result(), beside)
    table = rows(card)
    assert table["cemg"][0] == "0.2000 (0.1990 – 0.2020)"
    assert table["gru4rec"][0] == "0.1500 ± 0.0123"
    (said,) = (line for line in card.splitlines() if line.startswith("Leave-one-out"))
    assert said.endswith(
        "; in parentheses 95 % intervals by bootstrap over users, means ± standard deviations over seeds where there are several."
    )
    assert ", seed 42, commit" in card


def test_what_the_published_folder_reaches_is_said() -> None:
    model, own = card_model(), result()
    assert "The folder itself" not in model_card(model, own)
    rounded = result()
    rounded["metrics"]["cemg"]["test"]["ndcg@10"] = 0.0987
    card = model_card(replace(model, published=rounded), own)
    assert "The folder itself, measured by `cemg evaluate` on the same users: all items ranked, HR@10 0.2000 and NDCG@10 0.0987;" in card
    assert rows(card)["cemg"] == rows(model_card(model, own))["cemg"]
    rounded["metrics"]["cemg"]["test"]["n"] = 49
    with pytest.raises(CEMGError, match="published: measured on 49 test cases, the model on 50"):
        model_card(replace(model, published=rounded), own)


def test_no_place_of_the_machine_is_in_it() -> None:
    model = card_model("movielens-100k")
    model.recipe["encode"]["text"]["encoder"] = "/home/me/encoders/minilm"
    card = model_card(model, result())
    assert "`cemg run sample --output shop-7`" in card
    assert "text by minilm" in card
    assert not re.search(r"(?<![\w.:/])/(home|opt|work|root|Users|mnt|tmp)/", card)


def test_cost_by_stage_or_what_is_known() -> None:
    assert "Cost: prepare 1 s, finetune 1,234 s; 1,236 s in all on " in model_card(card_model(), result())
    of_several = result(seconds_by_stage=None, systems={"cemg": {"seconds_by_stage": {"finetune": 77.0}}})
    assert "Cost: finetune 77 s; 77 s in all on a machine that is not recorded." in model_card(card_model(), of_several)
    assert "Cost: 1,236 s for all that the command above does" in model_card(card_model(), result(seconds_by_stage=None))


@pytest.mark.parametrize("compared", [False, True])
def test_each_stage_stands_with_the_machine_it_ran_on(compared: bool) -> None:
    """Neither the machine of the last call nor that on which results were laid side by side has done the work of the others."""
    cpu, gpu = ({"platform": "Linux", "processor": "x86_64", "cores": 3, "accelerator": one} for one in ("none", "H100"))
    about = {
        "seconds_by_stage": {"encode": 1000.0, "tokenize": 20.0, "finetune": 3.0, "evaluate": 4.0},
        "machine_by_stage": {"encode": cpu, "tokenize": cpu, "finetune": gpu, "evaluate": gpu},
    }
    measured = result(seconds_by_stage=None, systems={"cemg": about | {"machine": gpu}}) if compared else result(**about)
    card = model_card(card_model(), measured | {"machine": cpu})
    assert "Cost: encode 1,000 s, tokenize 20 s on 3 CPU cores (x86_64); finetune 3 s, evaluate 4 s on H100; 1,027 s in all." in card
    where = (
        "Compared by `cemg run sample --output shop-7`, the lists of `cemg` made"
        if compared
        else "Measured by `cemg run sample --output shop-7`"
    )
    assert f"{where} on H100, seed 42" in card


def test_the_examples_parse_and_load_the_name_given() -> None:
    card = model_card(card_model(), result())
    blocks = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        ast.parse(block)
        assert len([line for line in block.splitlines() if line]) == 3
        assert '"org/cemg-shop"' in block
        assert '["item-0001", "item-0002"]' in block


def test_the_method_is_that_of_the_recipe() -> None:
    """One code per item is CEMG's; a stream of codes per modality is MSCGRec's, which names those that the data has."""
    fused = model_card(card_model(), result())
    assert "[CEMG, arXiv 2512.21543]" in fused
    assert "MSCGRec" not in fused
    assert "code streams" not in fused
    for name, streams in (("sample", "collaborative, text, image"), ("beauty", "collaborative, text")):
        recipe = asdict(load_recipe(name, ["streams.decoded=text"], system="mscgrec"))
        found = result()
        found["metrics"] = {"mscgrec": found["metrics"]["cemg"]}
        card = model_card(replace(card_model(name), recipe=recipe), found | {"intervals": {}})
        assert "[MSCGRec, arXiv 2602.03713](https://arxiv.org/abs/2602.03713)" in card
        assert "2512.21543" not in card
        assert f"4 tokens for each of\n{streams}, a history shows them all, and a T5 writes the text code of the next item" in card
        assert f"- code streams: {streams}; written: text; 0.2 of them hidden in training" in card
    assert "RQ-DINO" not in card
    taken = asdict(load_recipe("sample", ["streams.image_codes=/pictures", "encode.modalities=[text, collaborative]"], system="mscgrec"))
    card = model_card(replace(card_model("sample"), recipe=taken), found | {"intervals": {}})
    assert "- code streams: collaborative, text, image; written: collaborative; " in card
    assert "hidden in training; image codes by RQ-DINO" in card


def test_a_licence_of_its_own_has_a_name_and_a_place() -> None:
    data = ModelCard(model_card(card_model("movielens-100k"), result())).data
    assert (data.license, data.license_name) == ("other", "movielens-100k-terms")
    assert data.license_link.startswith("https://")
    assert data.language == ["en"]
    assert "multimodal" in data.tags
    sample = ModelCard(model_card(card_model(), result())).data
    assert (sample.license, sample.license_name) == ("apache-2.0", None)


def test_what_a_data_set_lacks_is_not_claimed() -> None:
    text = model_card(card_model("beauty"), result())
    assert "multimodal" not in ModelCard(text).data.tags
    assert "image by" not in text


def test_no_cold_targets_and_a_changed_checkout_are_said() -> None:
    measured = result() | {"commit": "0123456789abcdef-dirty"}
    measured["metrics"]["cemg"]["test_cold_excluding_history"] = {"hr@10": None, "n": 0}
    card = model_card(card_model(), measured)
    assert "found rarely: no test user has one here" in card
    assert "commit 0123456789-dirty" in card


def test_other_test_cases_and_missing_systems_are_errors() -> None:
    with pytest.raises(CEMGError, match="sasrec was measured on 49 test cases, the model on 50"):
        model_card(card_model(), result(), comparison(cases=49))
    with pytest.raises(CEMGError, match="'cemg' is not among their systems"):
        model_card(card_model(), comparison())


def test_evaluation_results_are_those_of_the_data_sets_tasks() -> None:
    measured = result()
    entries = parse_eval_result_entries(yaml.safe_load(eval_results(card_model(dataset_repo="org/shop-data"), measured)))
    own = measured["metrics"]["cemg"]
    assert {entry.task_id: entry.value for entry in entries} == {task: round(own[part][name], 5) for task, (part, name) in TASKS.items()}
    assert {entry.dataset_id for entry in entries} == {"org/shop-data"}
    assert "95 % interval 0.1990 to 0.2020, 50 users" in str(entries[0].notes)
    card = ModelCard(model_card(card_model(dataset_repo="org/shop-data"), measured))
    assert card.data.datasets == ["org/shop-data"]
    with pytest.raises(CEMGError, match="dataset_repo: is missing"):
        eval_results(card_model(), measured)
