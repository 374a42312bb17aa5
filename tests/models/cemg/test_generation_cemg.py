"""The trie against a Python dictionary, the beam search against the obvious one, the logits processor against the trie."""

from __future__ import annotations

import itertools

import pytest
import torch
from generator_samples import random_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cemg_hf import ItemTrie, PrefixConstrainedLogitsProcessor, constrained_beam_search
from cemg_hf.models.cemg.generation_cemg import merge_rankings


@st.composite
def catalogues(draw, max_items: int = 30) -> tuple[Tensor, int]:
    """Codes (N, M) of a random catalogue, from one item to all K^M, and K."""
    num_levels, codebook_size = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    num_items = draw(st.integers(1, min(max_items, codebook_size**num_levels)))
    return random_codes(num_items, num_levels, codebook_size, seed=draw(st.integers(0, 10**6))), codebook_size


def prefix_of(trie: ItemTrie, codes: Tensor, depth: int, node: int) -> tuple[int, ...]:
    return tuple(codes[trie.leaf_items[trie.first_leaf[depth][node]], :depth].tolist())


def check_against_dictionary(codes: Tensor, codebook_size: int) -> None:
    trie = ItemTrie(codes, codebook_size)
    rows = [tuple(row) for row in codes.tolist()]
    assert torch.equal(trie.leaf_items[trie.walk(codes)], torch.arange(len(rows)))
    assert torch.equal(trie.leaf_of_item[trie.leaf_items], torch.arange(len(rows)))
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
            for code, child in zip(children.codes[node][valid].tolist(), children.nodes[node][valid].tolist(), strict=True):
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
@given(catalogues(), st.data())
def test_fully_excluded_is_brute_force(catalogue, data):
    codes, codebook_size = catalogue
    trie = ItemTrie(codes, codebook_size)
    items = st.lists(st.integers(-1, len(codes) - 1), min_size=0, max_size=40)  # repeats, holes and padding
    excluded = data.draw(st.lists(items, min_size=1, max_size=3))
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.int64) for row in excluded], True, -1)
    leaves = trie.sorted_leaves(padded)
    for depth in range(trie.num_levels + 1):
        nodes = torch.arange(trie.num_nodes(depth)).expand(len(excluded), -1)
        found = trie.fully_excluded(depth, nodes, leaves)
        for row, gone in enumerate(excluded):
            alive = {tuple(code[:depth]) for item, code in enumerate(codes.tolist()) if item not in gone}
            for node in range(trie.num_nodes(depth)):
                assert bool(found[row, node]) == (prefix_of(trie, codes, depth, node) not in alive)


class RandomModel:
    """Log-probabilities of the next level that depend on the whole prefix, from a table per level."""

    def __init__(self, batch_size: int, num_levels: int, codebook_size: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.codebook_size = codebook_size
        sizes = [codebook_size**level for level in range(num_levels)]
        self.tables = [(2 * torch.randn(batch_size, size, codebook_size, generator=draw)).log_softmax(-1) for size in sizes]

    def __call__(self, prefixes: Tensor) -> Tensor:
        """(B, W, m) → (B, W, K)."""
        level = prefixes.shape[-1]
        place = (prefixes * self.codebook_size ** torch.arange(level - 1, -1, -1)).sum(-1)
        return self.tables[level].gather(1, place.unsqueeze(-1).expand(-1, -1, self.codebook_size))

    def item_scores(self, codes: Tensor) -> Tensor:
        """(B, N) Σ log p of every item."""
        total = torch.zeros(len(self.tables[0]), len(codes))
        for level in range(codes.shape[1]):
            log_probs = self(codes[:, :level].expand(len(total), -1, -1))
            total += log_probs.gather(-1, codes[:, level].expand(len(total), -1).unsqueeze(-1)).squeeze(-1)
        return total


def obvious_beam_search(
    model: RandomModel, row: int, codes: list[list[int]], excluded: set[int], num_beams: int
) -> list[tuple[int, float]]:
    allowed = {tuple(code): item for item, code in enumerate(codes) if item not in excluded}
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for level in range(len(codes[0])):
        grown = []
        for prefix, score in beams:
            place = sum(code * model.codebook_size ** (level - 1 - position) for position, code in enumerate(prefix))
            for code in {key[level] for key in allowed if key[:level] == prefix}:
                grown.append(((*prefix, code), score + float(model.tables[level][row, place, code])))
        beams = sorted(grown, key=lambda beam: -beam[1])[:num_beams]
    return [(allowed[prefix], score) for prefix, score in beams]


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.integers(1, 35), st.integers(0, 10**6), st.data())
def test_beam_search_is_the_obvious_one(catalogue, num_beams, seed, data):
    codes, codebook_size = catalogue
    gone = data.draw(st.lists(st.lists(st.integers(0, len(codes) - 1), max_size=20), min_size=2, max_size=2))
    model = RandomModel(2, codes.shape[1], codebook_size, seed)
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.int64) for row in gone], True, -1)
    items, scores = constrained_beam_search(model, ItemTrie(codes, codebook_size), 2, num_beams, padded)
    assert items.dtype == torch.int64
    assert scores.dtype == torch.float32
    assert items.shape == scores.shape
    for row in range(2):
        expected = obvious_beam_search(model, row, codes.tolist(), set(gone[row]), num_beams)
        assert items[row, : len(expected)].tolist() == [item for item, _ in expected]
        assert scores[row, : len(expected)].tolist() == pytest.approx([score for _, score in expected], abs=1e-4)
        assert (items[row, len(expected) :] == -1).all()
        assert (scores[row, len(expected) :] == -torch.inf).all()


@settings(max_examples=40, deadline=None)
@given(catalogues(), st.integers(0, 10**6), st.data())
def test_as_many_beams_as_items_search_exhaustively(catalogue, seed, data):
    codes, codebook_size = catalogue
    count = len(codes)
    model = RandomModel(2, codes.shape[1], codebook_size, seed)
    gone = data.draw(st.sets(st.integers(0, count - 1)))
    scores = model.item_scores(codes)
    for excluded, kept in ((None, range(count)), (torch.tensor([sorted(gone), sorted(gone)]).long(), sorted(set(range(count)) - gone))):
        items, found = constrained_beam_search(model, ItemTrie(codes, codebook_size), 2, count + data.draw(st.integers(0, 3)), excluded)
        for row in range(2):
            listed = items[row][items[row] >= 0]
            assert sorted(listed.tolist()) == list(kept)
            assert torch.allclose(found[row, : len(listed)], scores[row, listed], atol=1e-4)
            assert (found[row, : len(listed)].diff() <= 0).all()


def test_excluding_everything_leaves_empty_lists():
    codes = random_codes(9, 2, 4)
    items, scores = constrained_beam_search(RandomModel(1, 2, 4, 0), ItemTrie(codes, 4), 1, 5, torch.arange(9).unsqueeze(0))
    assert (items == -1).all()
    assert (scores == -torch.inf).all()


@settings(max_examples=30, deadline=None)
@given(catalogues(), st.data())
def test_processor_keeps_log_probabilities_of_codes_that_lead_to_items(catalogue, data):
    codes, codebook_size = catalogue
    trie = ItemTrie(codes, codebook_size)
    level = data.draw(st.integers(0, trie.num_levels - 1))
    first_code_id = 7
    starts = first_code_id + codebook_size * torch.arange(trie.num_levels)
    off_catalogue = codes[:1].clone()
    off_catalogue[0, 0] = codebook_size  # a token of another level
    rows = torch.cat([codes, off_catalogue])
    prefixes = torch.cat([torch.zeros(len(rows), 1, dtype=torch.int64), (rows + starts)[:, :level]], dim=1)
    scores = torch.randn(len(rows), first_code_id + trie.num_levels * codebook_size + 3)
    found = PrefixConstrainedLogitsProcessor(trie, first_code_id)(prefixes, scores)
    expected = torch.full_like(scores, -torch.inf)
    for row, known in itertools.product(range(len(rows)), codes.tolist()):
        if known[:level] == rows[row, :level].tolist():
            token = int(starts[level]) + known[level]
            block = scores[row, starts[level] : starts[level] + codebook_size]
            expected[row, token] = scores[row, token] - block.logsumexp(0)
    assert torch.allclose(found, expected, atol=1e-5)


def test_processor_refuses_to_write_past_an_item():
    processor = PrefixConstrainedLogitsProcessor(ItemTrie(random_codes(5, 2, 4), 4), 3)
    with pytest.raises(ValueError, match="max_new_tokens=2"):
        processor(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 20))


# ---- parts of a catalogue ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.integers(1, 12), st.integers(0, 10**6), st.data())
def test_searching_a_subset_is_searching_the_whole_without_the_others(catalogue, num_beams, seed, data):
    codes, codebook_size = catalogue
    every = range(len(codes))
    chosen = data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    gone = data.draw(st.lists(st.sampled_from(every), max_size=8))
    model, trie = RandomModel(2, codes.shape[1], codebook_size, seed), ItemTrie(codes, codebook_size)
    others = sorted({*every, *gone} - (set(chosen) - set(gone)))
    expected = constrained_beam_search(model, trie, 2, num_beams, torch.tensor([others, others], dtype=torch.int64))
    excluded = torch.tensor([gone, gone], dtype=torch.int64).reshape(2, -1)
    items, scores = constrained_beam_search(model, trie.subset(torch.tensor(chosen)), 2, num_beams, excluded)
    width = items.shape[1]  # the subset has fewer children to choose from; the lists' ends are empty there
    assert torch.equal(items, expected[0][:, :width])
    assert torch.equal(scores, expected[1][:, :width])
    assert (expected[0][:, width:] == -1).all()
    assert set(items[items >= 0].tolist()) <= set(chosen) - set(gone)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 8), st.integers(0, 8), st.floats(-20, 20), st.integers(0, 10**6))
def test_merged_rankings_are_sorted_and_keep_the_best_of_both(first, second, boost, seed):
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.randperm(16, generator=draw)
    items, others = numbers[:first].expand(2, -1).clone(), numbers[8 : 8 + second].expand(2, -1).clone()
    scores = 5 * torch.randn(2, first, generator=draw)
    other_scores = 5 * torch.randn(2, second, generator=draw)
    if second:
        others[1, -1], other_scores[1, -1] = -1, -torch.inf
    merged, values = merge_rankings(items, scores, others, other_scores, boost, max(items.shape[1], others.shape[1]))
    assert merged.shape == values.shape == (2, max(first, second))
    for row in range(2):
        pairs = [*zip(items[row].tolist(), scores[row].tolist(), strict=True)]
        pairs += [(item, float(score + boost)) for item, score in zip(others[row].tolist(), other_scores[row], strict=True)]
        expected = sorted(pairs, key=lambda pair: -pair[1])[: max(first, second)]
        assert merged[row].tolist() == [item for item, _ in expected]
        assert values[row].tolist() == pytest.approx([score for _, score in expected], abs=1e-5)
