from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from cemg_hf.data.card import dataset_card, front_matter
from cemg_hf.data.statistics import Statistics
from cemg_hf.errors import CEMGError

STATISTICS = Statistics(
    name="shop: one",
    users=20,
    items=10,
    interactions=100,
    evaluated_users=19,
    items_with_text=9,
    items_with_image=8,
    items_without_content=1,
    unreadable_images=2,
    duplicates_removed=3,
    unknown_item_interactions=4,
    below_min_rating=5,
    removed_by_k_core=6,
)


def test_table_has_the_papers_columns_aligned() -> None:
    head, values = STATISTICS.table().splitlines()
    assert head.split("  ") != values.split("  ")
    assert len(head) == len(values)
    assert values.split()[-5:] == ["20", "10", "100", "5.00", "50.00%"]
    for heading, value in STATISTICS.row().items():
        if heading != "Dataset":
            assert head.index(heading) + len(heading) == values.index(f" {value}") + 1 + len(value)


def test_round_trip_through_the_folder(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match="not a prepared dataset"):
        Statistics.load(tmp_path)
    (tmp_path / "statistics.json").write_text(json.dumps(STATISTICS.as_dict()))
    assert asdict(Statistics.load(tmp_path)) == asdict(STATISTICS)


@pytest.mark.parametrize(
    ("license_name", "expected"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("unknown", {"license": "unknown"}),
        ("Our Terms (2014)", {"license": "other", "license_name": "our-terms-2014"}),
    ],
)
def test_front_matter_is_yaml_with_a_licence_the_hub_knows(license_name: str, expected: dict[str, str]) -> None:
    card = dataset_card(STATISTICS, license_name, 5, None, has_rating=False)
    _, front, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata == front_matter(STATISTICS, license_name)
    assert {key: metadata[key] for key in metadata if key.startswith("license")} == expected
    assert metadata["pretty_name"] == "shop: one"
    assert metadata["size_categories"] == ["n<1K"]
    assert "| shop: one | 20 | 10 | 100 | 5.00 | 50.00% |" in body


def test_card_says_what_was_removed() -> None:
    body = dataset_card(STATISTICS, "mit", 5, 4.0, has_rating=True)
    for fact in ("at least 5 interactions", "5 rated below 4", "3 exact duplicates", "4 interactions with an item", "rating (float64)"):
        assert fact in body
    assert "No k-core" in dataset_card(STATISTICS, "mit", 0, None, has_rating=True)


def test_size_categories_follow_the_interactions() -> None:
    for count, label in ((999, "n<1K"), (1000, "1K<n<10K"), (10**8, "100M<n<1B")):
        assert front_matter(replace(STATISTICS, interactions=count), "mit")["size_categories"] == [label]
