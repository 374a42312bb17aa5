"""Tables and figures of studies say what was measured, what was not, and how far from what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from study_samples import accuracy, streams_study, study

from cemg_hf.evaluation.study_plots import plot_study
from cemg_hf.evaluation.study_report import QUESTIONS, format_for_page, format_study
from cemg_hf.training.study_variants import Variant

CEMG, TIGER = Variant("cemg"), Variant("tiger", "tiger")
WITHOUT_TEXT = Variant("without text", assignments=("tokenize.modalities=[image]",))
CODES = "cemg, codes only"


def ablations() -> dict[str, Any]:
    rows = {"cemg": (CEMG, "", accuracy(0.3)), CODES: (CEMG, "codes only", accuracy(0.2))}
    rows |= {name: (WITHOUT_TEXT, part, accuracy(0.25 if part else 0.275)) for name, part in (("a", ""), ("b", "codes only"))}
    return study("rq2", rows, missing=(Variant("without image"),))


def times() -> dict[str, Any]:
    seconds = {"prepare": 1.0, "tokenize": 20.0, "train": 3000.0, "evaluate": 10.0}
    rows = {"cemg": (CEMG, "", {"seconds": seconds, "latency": {"batch_1_ms": 20.0, "batch_64_ms": None}})}
    return study("rq3", rows, latency={"k": 10, "batches": 20, "threads": 2})


def sweep() -> dict[str, Any]:
    variants = [Variant(f"M = {m}", assignments=() if m == 4 else ("x",), parameter="M", value=m) for m in (2, 4, 8)]
    rows = {v.label + suffix: (v, part, accuracy(0.1)) for v in variants[:2] for suffix, part in (("", ""), (", c", "codes only"))}
    return study("rq4", rows, missing=(variants[2],))


def systems(question: str) -> dict[str, Any]:
    return study(question, {"cemg": (CEMG, "", accuracy(0.3)), "tiger": (TIGER, "", accuracy(0.2))}, missing=(Variant("sasrec", "sasrec"),))


def cells(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_ablations_are_measured_from_the_same_part_of_full_cemg() -> None:
    text = format_study(ablations())
    assert text.startswith(
        "# RQ2, what each part is worth\n\n## shop\n\nA shop. Budget of CEMG: T5 of width 16, at most 2 epochs; with `fin"
    )
    assert cells(text, "Variant")[-1] == "Δ NDCG@10, history excluded"
    assert cells(text, "cemg") == ["cemg", "1, 2", *["0.3000 ± 0.0050"] * 4, ""]
    assert cells(text, "without text")[-1] == "−0.0250"
    assert cells(text, "without text, codes only")[-1] == "+0.0500"
    assert cells(text, "without image") == ["without image", "not run", *["–"] * 4, ""]
    assert "- without image, seed 1, 2: out of time" in text
    assert "`cemg study rq2 shop`" in text


def test_ablations_with_tests_have_intervals_and_p() -> None:
    envelope = ablations()
    pair = {"table": "ablations", "recipe": "shop", "difference": -0.025, "low": -0.04, "high": -0.01, "p_value": 0.001, "p_holm": 0.002}
    envelope["pairs"] = [pair | {"a": "a", "b": "cemg"}, pair | {"a": "other", "b": "cemg", "recipe": "another"}]
    envelope["intervals"] = {row: {"test": {"hr@10": [0.1, 0.4], "ndcg@10": None}} for row in ("a", "b")}
    del envelope["std"]["a"]
    text = format_study(envelope)
    assert cells(text, "Variant")[-1] == "Δ NDCG@10, history excluded [95 %], p"
    assert cells(text, "without text")[2:] == ["0.2750 [0.1000, 0.4000]", *["0.2750"] * 3, "−0.0250 [−0.0400, −0.0100], .002"]
    assert cells(text, "without text, codes only")[2:] == [*["0.2500 ± 0.0050"] * 4, "+0.0500"], "without lists there is no test"
    assert cells(text, "cemg")[-1] == ""
    assert "95 % bootstrap intervals over users" in text
    assert "Holm's correction" in text
    page = format_for_page(envelope)
    assert cells(page, "without text") == cells(text, "without text")
    assert page.endswith("table.")
    assert not page.startswith("#")


def test_intervals_stand_only_where_there_is_room() -> None:
    for question, shown in (("rq1", False), ("rq5", False), ("rq4", True)):
        envelope = sweep() if question == "rq4" else systems(question)
        envelope["std"] = {}
        parts = {part: {name: [0.1, 0.4] for name in values} for part, values in accuracy(0.1).items()}
        envelope["intervals"] = dict.fromkeys(envelope["metrics"], parts)
        assert (" [0.1000, 0.4000]" in format_study(envelope)) == shown
        assert ("95 % bootstrap intervals" in format_study(envelope)) == shown


def test_times_have_their_units_and_the_papers_beside_them() -> None:
    text = format_study(times())
    assert cells(text, "cemg") == ["cemg", "1, 2", "1.0 ± 0.0", "–", "20.0 ± 0.0", "3,000.0 ± 0.0", "10.0 ± 0.0", "20.00 ± 0.01", "–"]
    assert "2 threads" in text
    assert "Beauty ≈ 2.6 h tokenisation + 5.5 h generation, ≈ 15.6 ms per user" in text


def test_times_of_several_machines_say_whose_they_are() -> None:
    envelope = times()
    envelope["rows"] = {"cemg": envelope["rows"]["cemg"] | {"machines": ["a GPU"]}}
    assert "trained on" not in format_study(envelope)
    envelope["rows"]["tiger"] = envelope["rows"]["cemg"] | {"label": "tiger", "machines": ["2 cores"]}
    text = format_study(envelope)
    assert [cells(text, name)[-1] for name in ("System", "cemg", "tiger")] == ["trained on", "a GPU", "2 cores"]


def test_code_streams_have_tables_of_their_own() -> None:
    text = format_study(streams_study())
    assert text.startswith("# Code streams, one code, or none\n\n## shop\n\nA shop. Budget of CEMG")
    assert "### Which stream the decoder writes" in text
    assert "median of 20 batches" in text
    assert "The paper, on an A100" not in text


def test_cold_slices_carry_their_number_of_cases() -> None:
    header = cells(format_study(systems("rq5")), "System")
    assert header[2] == "HR@10, 0 interactions (n = 200)"
    assert header[-1] == "NDCG@10, 1–5 interactions, history excluded (n = 200)"
    assert len(cells(format_study(systems("rq1")), "System")) == 10


@pytest.mark.parametrize(
    "envelope", [systems("rq1"), ablations(), times(), sweep(), systems("rq5"), streams_study()], ids=lambda one: one["study"]
)
def test_every_question_has_a_figure(envelope: dict[str, Any], tmp_path: Path) -> None:
    plot_study(envelope, tmp_path / "study.png")
    with Image.open(tmp_path / "study.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").resize((200, 100)).getcolors(20_000) or ()) > 20


def test_a_question_without_any_result_still_has_a_figure(tmp_path: Path) -> None:
    for question in QUESTIONS:
        extra: dict[str, Any] = {"latency": {"k": 10, "batches": 20, "threads": 2}} if question in ("rq3", "streams") else {}
        extra |= {"pairs": []} if question == "streams" else {}
        variant = Variant("M = 4", parameter="M", value=4) if question == "rq4" else Variant("cemg", tables={"written": ""})
        envelope = study(question, {}, missing=(variant,), **extra)
        plot_study(envelope, tmp_path / f"{question}.svg")
        assert "not run" in format_study(envelope)


def test_tables_for_a_page_have_a_heading_per_recipe_where_there_are_several() -> None:
    envelope: dict[str, Any] = streams_study()
    text = format_for_page(envelope)
    assert text.startswith("A shop. Budget of CEMG: T5 of width 16, at most 2 epochs")
    assert "\n### Which stream" in text
    envelope["recipes"]["second"] = envelope["recipes"]["shop"]
    envelope["rows"]["second, mscgrec"] = envelope["rows"]["mscgrec"] | {"recipe": "second"}
    envelope["metrics"]["second, mscgrec"] = accuracy(0.1) | {"codes_text": {"items": 7}}
    text = format_for_page(envelope)
    assert text.startswith("### shop\n\nA shop.")
    assert "\n#### Which stream" in text.partition("\n### second\n\nA shop.")[2]
    assert "| mscgrec | text | 7 | – | – | – |" in text
