"""What a model card says of results."""

from __future__ import annotations

from dataclasses import replace

import pytest
from card_samples import card_model, comparison, result

from cemg_hf.errors import CEMGError
from cemg_hf.hub.model_card import eval_results, model_card


def rows(card: str) -> dict[str, list[str]]:
    """System -> cells of the results table, in its order."""
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0].strip("|* "): line.split(" | ")[1:] for line in lines[1:]}


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


def test_tests_of_a_mean_over_seeds_say_so() -> None:
    seeds = {"cemg": [1, 2], "cemg, codes only": [1, 2], "sasrec": [3, 4]}
    several = comparison() | {"systems": {name: {"seeds": of} for name, of in seeds.items()}}
    said = "each of the rankings; tested are means over seeds, `cemg` of seeds 1, 2; `cemg, codes only` of seeds 1, 2:"
    assert said in model_card(card_model(), result(), several)
    assert "means over seeds, `" not in model_card(card_model(), result(), comparison() | {"systems": {"cemg": {"seeds": [1]}}})


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


def test_seeds_are_those_of_the_models_own_row() -> None:
    several = result() | {"seeds": [42, 43, 44], "systems": {"cemg": {"seeds": [42]}, "sasrec": {"seeds": [42, 43, 44]}}}
    assert ", seed 42, commit" in model_card(card_model(), several)
    published = replace(card_model(), dataset_repo="org/shop-data")
    assert "seed 42" in eval_results(published, several)
    assert "43" not in eval_results(published, several).split("seed", 1)[1].splitlines()[0]


def test_what_the_published_folder_reaches_is_said() -> None:
    model, own = card_model(), result()
    assert "The folder itself" not in model_card(model, own)
    rounded = result()
    rounded["metrics"]["cemg"]["test"]["ndcg@10"] = 0.0987
    card = model_card(replace(model, published=rounded), own)
    (said,) = (line for line in card.splitlines() if "The folder itself, measured by `cemg evaluate` on the same users" in line)
    assert "): all items ranked, HR@10 0.2000 and NDCG@10 0.0987; history items excluded, HR@10 0.2100" in said
    assert rows(card)["cemg"] == rows(model_card(model, own))["cemg"]
    rounded["metrics"]["cemg"]["test"]["n"] = 49
    with pytest.raises(CEMGError, match="published: measured on 49 test cases, the model on 50"):
        model_card(replace(model, published=rounded), own)


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
