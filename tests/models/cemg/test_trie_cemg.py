"""The trie against a Python dictionary."""

from __future__ import annotations

import pytest
import torch
from generator_samples import catalogues, random_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cemg_hf import ItemTrie


def prefix_of(trie: ItemTrie, codes: Tensor, depth: int, node: int) -> tuple[int, ...]:
    first, _ = trie.leaf_range(depth, torch.tensor(node))
    return tuple(codes[trie.leaf_items[first], :depth].tolist())


def check_against_dictionary(codes: Tensor, codebook_size: int) -> None:
    trie = ItemTrie(codes, codebook_size)
    rows = [tuple(row) for row in codes.tolist()]
    assert trie.leaf_items[trie.walk(codes)].tolist() == list(range(len(rows)))
    assert torch.equal(trie.leaves_of(trie.leaf_items), torch.arange(len(rows)))
    for depth in range(trie.num_levels):
        continuations: dict[tuple[int, ...], set[int]] = {}
        for row in rows:
            continuations.setdefault(row[:depth], set()).add(row[depth])
        assert trie.num_nodes(depth) == len(continuations)
        nodes = torch.arange(trie.num_nodes(depth))
        children, allowed = trie.children(depth, nodes), trie.allowed(depth, nodes)
        for node in nodes.tolist():
            prefix = prefix_of(trie, codes, depth, node)
            valid = children.valid[node]
            assert children.codes[node][valid].tolist() == sorted(continuations[prefix])
            assert allowed[node].nonzero().flatten().tolist() == sorted(continuations[prefix])
            for child, code in enumerate(children.codes[node][valid].tolist(), start=int(children.first[node])):
                assert prefix_of(trie, codes, depth + 1, child) == (*prefix, code)
            assert int(trie.walk(torch.tensor(prefix, dtype=torch.int64))) == node


@settings(max_examples=60, deadline=None)
@given(catalogues())
def test_trie_is_the_dictionary_of_prefixes(catalogue):
    check_against_dictionary(*catalogue)


@pytest.mark.parametrize("num_items", [1, 27])
def test_trie_of_one_item_and_of_every_code(num_items):
    check_against_dictionary(random_codes(num_items, 3, 3), 3)


def test_trie_takes_more_codes_than_a_64_bit_key_counts():
    codes = torch.tensor([[511] * 8, [511] * 7 + [510], [0] * 8, [0] + [511] * 7])
    check_against_dictionary(codes, 512)


@settings(max_examples=40, deadline=None)
@given(catalogues(), st.data())
def test_walk_finds_nothing_off_the_catalogue(catalogue, data):
    codes, codebook_size = catalogue
    trie = ItemTrie(codes, codebook_size)
    length = data.draw(st.integers(0, trie.num_levels))
    path = data.draw(st.lists(st.integers(-2, codebook_size + 1), min_size=length, max_size=length))
    known = any(row[:length] == path for row in codes.tolist())
    node = int(trie.walk(torch.tensor(path, dtype=torch.int64)))
    assert (node >= 0) == known
    if not known and length < trie.num_levels:
        assert not trie.allowed(length, torch.tensor([node])).any()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 1], [1, 1], [0, 1]], "items 0 and 2 share one code"),
        ([[0, 1], [0, 4]], "must lie in 0 … 3, found 0 … 4"),
        ([[0, -1]], "found -1"),
        ([0, 1], r"shape \(2,\)"),
        (torch.empty(0, 2), r"shape \(0, 2\)"),
    ],
)
def test_impossible_codes_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        ItemTrie(torch.as_tensor(codes), 4)


@settings(max_examples=60, deadline=None)
@given(catalogues())
def test_leaves_under_a_node_are_a_range_and_a_child_knows_its_parent(catalogue):
    codes, codebook_size = catalogue
    trie = ItemTrie(codes, codebook_size)
    rows = [tuple(row) for row in codes.tolist()]
    for depth in range(trie.num_levels + 1):
        nodes = torch.arange(trie.num_nodes(depth))
        first, last = trie.leaf_range(depth, nodes)
        for node in nodes.tolist():
            under = {row for row in range(len(rows)) if rows[row][:depth] == prefix_of(trie, codes, depth, node)}
            assert set(trie.leaf_items[first[node] : last[node]].tolist()) == under
        if depth < trie.num_levels:
            children = trie.children(depth, nodes)
            expected = nodes.unsqueeze(1).expand_as(children.valid)[children.valid]
            numbers = children.first.unsqueeze(1) + torch.arange(children.valid.shape[1])
            assert torch.equal(trie.parents(depth, numbers[children.valid]), expected)
            assert int(trie.parents(depth, torch.tensor(trie.num_nodes(depth + 1)))) == trie.num_nodes(depth)


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.data())
def test_a_subset_of_a_subset_is_the_trie_of_its_codes(catalogue, data):
    codes, codebook_size = catalogue
    every = list(range(len(codes)))
    chosen = data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    again = data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    part = ItemTrie(codes, codebook_size).subset(torch.tensor(chosen))
    kept = [item for item in again if item in chosen]
    if not kept:
        with pytest.raises(ValueError, match="none of the items"):
            part.subset(torch.tensor(again))
        return
    for items, found in ((chosen, part), (kept, part.subset(torch.tensor(again)))):
        alone = ItemTrie(codes[sorted(items)], codebook_size)
        assert found.leaf_items.tolist() == torch.tensor(sorted(items))[alone.leaf_items].tolist()
        for name in ("codes", "first_child"):
            assert all(torch.equal(mine, expected) for mine, expected in zip(getattr(found, name), getattr(alone, name), strict=True))
        leaves = found.leaves_of(torch.tensor([*every, -1]))
        for item, leaf in zip([*every, -1], leaves.tolist(), strict=True):
            assert leaf == (found.leaf_items.tolist().index(item) if item in items else len(items))


def test_an_item_takes_a_leaf_a_row_and_its_share_of_codes_and_bounds():
    trie = ItemTrie(random_codes(10_000, 4, 12), 12)
    nodes = [trie.num_nodes(depth) for depth in range(5)]
    assert trie.nbytes == 10_000 * 8 + sum(nodes[1:]) + sum(trie.max_children) + 4 * sum(count + 1 for count in nodes[:4])
    assert ItemTrie(random_codes(50, 2, 300), 300).codes[0].dtype == torch.int16


@pytest.mark.parametrize("codebook_size", [256, 300])
def test_codes_that_wrap_around_in_small_integers_are_not_found(codebook_size):
    codes = random_codes(400, 2, codebook_size)
    trie = ItemTrie(codes, codebook_size)
    for shift in (256, -256, 65536, -65536, codebook_size):
        assert (trie.walk(codes + shift) == -1).all()
    assert (trie.leaves_of(torch.tensor([400, -1, 10**6])) == 400).all()
