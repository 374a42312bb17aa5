"""The tables of code streams say what was measured, against what, and what is missing."""

from __future__ import annotations

from study_samples import streams_study

from cemg_hf.evaluation.stream_tables import TABLES, recipe_tables, stands_in


def tables() -> str:
    return "\n".join(recipe_tables(streams_study(), "shop"))


def block(text: str, title: str) -> list[list[str]]:
    """Cells of the table under a title, header first."""
    lines = text.split(f"{title}\n\n", 1)[1].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")]


def named(rows: list[list[str]]) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}


def test_rows_stand_in_their_tables_only() -> None:
    text = tables()
    assert set(named(block(text, TABLES["written"]))) == {"mscgrec", "mscgrec, text written"}
    assert set(named(block(text, TABLES["left_out"]))) == {"mscgrec", "mscgrec, without text"}
    assert list(named(block(text, TABLES["softmax"]))) == ["mscgrec", "mscgrec, softmax over all codes", "cemg", "cemg, codes only"]
    assert not stands_in({"tables": {"codes": "", "left_out": ""}, "part": "without text"}, "codes")
    assert not stands_in({"tables": {"codes": "", "left_out": ""}, "part": "codes only"}, "left_out")


def test_accuracy_has_its_spread_and_the_test_of_users() -> None:
    rows = named(block(tables(), TABLES["written"]))
    other = rows["mscgrec, text written"]
    assert other["NDCG@10, history excluded"] == "0.2000 ± 0.0050"
    assert other["seeds"] == "1, 2"
    assert other["Δ NDCG@10, history excluded [95 %], p"] == "−0.1000 [−0.2000, −0.0500], .012 to mscgrec"
    assert rows["mscgrec"]["Δ NDCG@10, history excluded [95 %], p"] == ""


def test_steps_and_costs_have_their_units() -> None:
    text = tables()
    softmax = named(block(text, TABLES["softmax"]))
    assert softmax["mscgrec"]["ms per training step"] == "120"
    assert softmax["mscgrec"]["what the permissible softmax adds to a step"] == "+4.0%"
    costs = named(block(text, "What it costs"))
    assert costs["mscgrec"]["weights, MB"] == "1.50"
    assert costs["mscgrec"]["parameters"] == "300,000"
    assert costs["sasrec"]["ms per training step"] == "–"


def test_seconds_of_several_machines_say_whose_they_are() -> None:
    envelope = streams_study()
    for row, about in envelope["rows"].items():
        envelope["rows"][row] = about | {"machines": ["2 cores"]}
    assert "trained on" not in "\n".join(recipe_tables(envelope, "shop"))
    envelope["rows"]["mscgrec"]["machines"] = ["2 cores", "a GPU"]
    costs = named(block("\n".join(recipe_tables(envelope, "shop")), "What it costs"))
    assert {name: costs[name]["trained on"] for name in ("mscgrec", "sasrec")} == {"mscgrec": "2 cores, a GPU", "sasrec": "2 cores"}


def test_codes_are_listed_once() -> None:
    rows = block(tables(), "Items that share codes before the separating level")
    assert [row[:2] for row in rows[1:]] == [["mscgrec", "collaborative"], ["mscgrec", "text"], ["cemg", "everything"]]
    assert rows[1][2:] == ["200", "12.5%", "2.0%", "1.0%"]


def test_what_was_not_run_says_so_and_empty_tables_are_left_out() -> None:
    envelope = streams_study()
    envelope["rows"] = {"mscgrec": envelope["rows"]["mscgrec"] | {"seeds": []}}
    envelope |= {"metrics": {}, "std": {}, "pairs": []}
    text = "\n".join(recipe_tables(envelope, "shop"))
    assert named(block(text, TABLES["written"]))["mscgrec"]["seeds"] == "not run"
    assert "Items that share codes" not in text
    assert recipe_tables(envelope, "another") == []
