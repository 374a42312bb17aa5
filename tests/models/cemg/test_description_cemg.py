"""Codes one can read: prefixes as text, what a branch has in common, and errors."""

from __future__ import annotations

import json
import math

import pytest
import torch

from cemg_hf.models.cemg.description_cemg import CodeDescriber, describe_branch, parse_prefix, prefix_text


@pytest.fixture
def shop() -> dict:
    """Sixty items: codes (row % 5, row // 5 % 4, row // 20); branch 2 is about tents."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.arange(60)[torch.randperm(60, generator=generator)]
    codes = torch.stack([rows % 5, rows // 5 % 4, rows // 20], 1)
    common = ["red", "blue", "green", "steel", "cotton"]
    titles = [f"the {common[row % 3]} thing" + (" zelt-plane for camping" if row % 5 == 2 else " for home") for row in rows.tolist()]
    return {
        "item_ids": [f"i{row}" for row in rows.tolist()],
        "item_codes": codes,
        "items": {
            "title": titles,
            "brand": ["Acme" if row % 2 else None for row in rows.tolist()],
            "categories": [["Shop", "Camping"] if row % 5 == 2 else ["Shop"] if row % 7 else None for row in rows.tolist()],
        },
    }


@pytest.mark.parametrize("codes", [[], [0], [12, 7], [255, 0, 3, 255]])
def test_prefix_text_is_read_back(codes: list[int]) -> None:
    assert parse_prefix(prefix_text(codes), 4, 256) == codes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<b_7>", "level 'a'"),
        ("<a_1><c_2>", "level 'b'"),
        ("<a_1><a_2>", "level 'b'"),
        ("<a_256>", "0 … 255"),
        ("<a_1><b_2><c_3><d_4><e_5>", "5 codes, an item has 4"),
        ("a_1", "not a prefix"),
        ("<a_1> <b_2>", "not a prefix"),
        ("<a_-1>", "not a prefix"),
        ("<a_1>x", "not a prefix"),
        ("12/7", "not a prefix"),
    ],
)
def test_a_wrong_prefix_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_prefix(text, 4, 256)
    assert "\n" not in str(error.value)


def test_counts_agree_with_the_codes(shop: dict) -> None:
    describer = CodeDescriber(**shop)
    assert torch.equal(describer.codes, shop["item_codes"][describer.order])
    for level in range(4):
        starts, ends = describer.branches(level)
        prefixes, counts = (
            shop["item_codes"][:, :level].unique(dim=0, return_counts=True) if level else (torch.zeros(1, 0), torch.tensor([60]))
        )
        assert (ends - starts).tolist() == counts.tolist()
        assert [list(describer.span(prefix)) for prefix in prefixes.long().tolist()] == torch.stack([starts, ends], 1).tolist()
    branch = describer.describe([2])
    assert (branch.text, branch.num_items, branch.share) == ("<a_2>", 12, 0.2)
    assert sum(child.num_items for child in branch.children) == 12
    assert [child.text for child in branch.children] == [f"<a_2><b_{code}>" for code in range(4)]
    assert describer.describe([2, 0, 1]).children == []


def test_a_word_only_in_the_branch_ranks_first(shop: dict) -> None:
    branch = CodeDescriber(**shop).describe([2])
    names = [word.name for word in branch.words]
    assert set(names[:3]) == {"zelt", "plane", "camping"}
    assert not {"the", "thing", "for"} & set(names)  # in every item, so distinctive of none
    assert [entry.name for entry in branch.categories] == ["Camping"]
    assert (branch.categories[0].share, branch.categories[0].catalogue_share, branch.categories[0].num_items) == (1.0, 0.2, 12)
    assert all(word.score > 0 and word.share > word.catalogue_share and word.num_items >= 2 for word in branch.words)
    assert [word.score for word in branch.words] == sorted((word.score for word in branch.words), reverse=True)


def test_scores_are_the_signed_root_of_the_likelihood_ratio() -> None:
    """By hand: y of n occurrences in the branch, Y of N in the catalogue."""
    brands = ["kite"] * 9 + ["ball"] * 1 + ["ball"] * 30 + ["kite"] * 10
    codes = torch.tensor([[0, row] for row in range(10)] + [[1, row] for row in range(40)])
    word = describe_branch([0], [str(row) for row in range(50)], codes, None, {"brand": brands}).words[0]
    p, y, n = 19 / 50, 9, 10
    expected = math.sqrt(2 * (y * math.log(y / (n * p)) + (n - y) * math.log((n - y) / (n - n * p))))
    assert word.name == "kite"
    assert word.score == pytest.approx(expected)


def test_what_occurs_as_often_as_by_chance_is_not_distinctive() -> None:
    """Random words over random codes: about one false word per branch is allowed, whatever the size of the vocabulary."""
    generator = torch.Generator().manual_seed(5)
    draws = torch.randint(0, 400, (2000, 8), generator=generator)
    titles = [
        " ".join("w" + "abcdefghijklmnopqrst"[draw // 20] + "abcdefghijklmnopqrst"[draw % 20] for draw in row) for row in draws.tolist()
    ]
    codes = torch.stack([torch.randint(0, 40, (2000,), generator=generator), torch.arange(2000)], 1)
    describer = CodeDescriber([str(row) for row in range(2000)], codes, None, {"title": titles})
    found = describer.words(*describer.branches(1), 50)
    assert sum(len(words) for words in found) / len(found) < 3


def test_many_branches_at_once_are_described_as_one_by_one(shop: dict) -> None:
    latent = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    describer = CodeDescriber(**shop, latent=latent)
    starts, ends = describer.branches(2)
    together = zip(describer.words(starts, ends, 5), describer.categories(starts, ends, 5), describer.typical(starts, ends, 2), strict=True)
    for start, (words, categories, typical) in zip(starts.tolist(), together, strict=True):
        alone = describer.describe(describer.codes[start, :2].tolist(), top=5)
        assert (words, categories) == (alone.words, alone.categories)
        assert [shop["item_ids"][describer.order[position]] for position in typical] == [item.item_id for item in alone.typical[:2]]


def test_typical_items_are_nearest_to_the_centroid(shop: dict) -> None:
    latent = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    inside = (shop["item_codes"][:, 0] == 3).nonzero()[:, 0]
    distances = (latent[inside] - latent[inside].mean(0)).norm(dim=1)
    nearest = [shop["item_ids"][row] for row in inside[distances.argsort()[:4]]]
    branch = CodeDescriber(**shop, latent=latent).describe([3], top=4)
    assert [item.item_id for item in branch.typical] == nearest
    assert all(item.title == shop["items"]["title"][shop["item_ids"].index(item.item_id)] for item in branch.typical)


def test_main_category_counts_everything(shop: dict) -> None:
    describer = CodeDescriber(**shop)
    for entries in describer.main_category(*describer.branches(1)):
        assert entries[0].name in {"Shop", "Camping"}
        assert entries[0].share > 0.7


def test_without_item_texts_ids_and_counts_remain(shop: dict) -> None:
    branch = describe_branch([1], shop["item_ids"], shop["item_codes"], top=3)
    assert branch.num_items == 12
    assert branch.words == branch.categories == []
    assert [item.title for item in branch.typical] == [None] * 3
    assert "<a_1>: 12 items, 20.0% of the catalogue" in str(branch)


def test_the_root_is_the_catalogue(shop: dict) -> None:
    root = CodeDescriber(**shop).describe([])
    assert (root.text, root.num_items, root.share, root.words, root.categories) == ("", 60, 1.0, [], [])


def test_description_is_plain_json_and_reads_well(shop: dict) -> None:
    branch = CodeDescriber(**shop).describe([2], top=3)
    assert json.loads(json.dumps(branch.to_dict()))["children"][0] == {"code": 0, "text": "<a_2><b_0>", "num_items": 3}
    text = str(branch)
    assert "camping" in text
    assert "Camping 100% (catalogue 20%)" in text
    assert "<b_0> 3" in text


def test_words_of_any_script_and_none_of_html_or_numbers() -> None:
    titles = ["Éclair naïve 12345 x"] * 3 + ["Ёлка ёлка d’Or"] * 3 + ["other words"] * 30
    codes = torch.tensor([[0, row] for row in range(3)] + [[1, row] for row in range(3)] + [[2, row] for row in range(30)])
    describer = CodeDescriber([str(row) for row in range(36)], codes, None, {"title": titles})
    assert {word.name for word in describer.describe([0]).words} == {"éclair", "naïve"}
    assert {word.name for word in describer.describe([1]).words} == {"ёлка", "d'or"}
    assert describer.describe([1]).words[0].num_items == 3  # an item has a word or not, however often it says it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_codes": torch.zeros(3, 2, dtype=torch.int64)}, "item_codes must be 60"),
        ({"latent": torch.zeros(5, 2)}, "latent must be 60"),
        ({"items": {"title": ["a"]}}, "column title: 1 values for 60"),
        ({"items": {"title": [7] * 60}}, "column title, row 0: 7"),
        ({"items": {"categories": [[3]] * 60}}, "column categories, row 0"),
        ({"items": {"item_id": ["x"] * 60}}, "column item_id, row 0: 'x'"),
    ],
)
def test_unfit_input_is_named(shop: dict, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodeDescriber(**shop | change)


def test_an_empty_branch_says_what_there_is(shop: dict) -> None:
    describer = CodeDescriber(**shop)
    with pytest.raises(ValueError, match=r"begins with <a_9>; after the root come <a_0>, <a_1>"):
        describer.describe([9])
    with pytest.raises(ValueError, match=r"begins with <a_2><b_8>; after <a_2> come <b_0>"):
        describer.describe([2, 8])
    with pytest.raises(ValueError, match="4 codes, an item has 3"):
        describer.describe([0, 0, 0, 0])
    with pytest.raises(ValueError, match="top must be"):
        describer.describe([0], top=-1)
    with pytest.raises(ValueError, match="without items"):
        CodeDescriber([], torch.zeros(0, 2, dtype=torch.int64))
