"""One history: the lists of `recommend`, whatever kind of model answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_samples import Command, save_model, save_network

from cemg_hf.errors import CEMGError
from cemg_hf.serving.single import recommend_one

ITEM_IDS = [f"item-{row:02d}" for row in range(24)]
HISTORY = ["item-03", "item-11", "item-03"]


@pytest.mark.parametrize("kind", ["cemg", "sasrec", "gru4rec"])
def test_a_command_prints_what_the_model_recommends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    model = save_model(tmp_path, ITEM_IDS) if kind == "cemg" else save_network(tmp_path, ITEM_IDS, kind)
    expected = model.recommend(HISTORY, k=7, exclude_history=True)
    assert recommend_one(str(tmp_path), HISTORY, "cpu", "float32", {"k": 7, "exclude_history": True}) == expected
    cemg = Command(monkeypatch, capsys)
    outcome = cemg("recommend", tmp_path, "no-such", *HISTORY, "-k", 7, "--exclude-history", "--skip-unknown", "--device", "cpu")
    assert (outcome.status, "MISSING" in outcome.errors) == (0, False)
    rows = [line.split() for line in outcome.output.splitlines()]
    assert [(int(place), item, float(score)) for place, item, score in rows] == [
        (place, item, pytest.approx(score, abs=1e-4)) for place, (item, score) in enumerate(expected, start=1)
    ]


def test_settings_of_a_search_are_not_ignored(tmp_path: Path) -> None:
    save_network(tmp_path, ITEM_IDS)
    plain = {"num_beams": None, "new_item_boost": None, "new_item_dense": 0.0, "new_item_likelihood": 1.0}
    assert len(recommend_one(str(tmp_path), HISTORY, "cpu", "float32", plain)) == 10
    for name, value in {"num_beams": 20, "new_item_boost": 0.0, "new_item_dense": 0.5, "new_item_likelihood": 0.5}.items():
        with pytest.raises(CEMGError, match=f"--{name.replace('_', '-')}: is for models that write codes"):
            recommend_one(str(tmp_path), HISTORY, "cpu", "float32", plain | {name: value})
