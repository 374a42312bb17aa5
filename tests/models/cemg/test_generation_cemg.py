"""The beam search against the obvious one, filters against sets, the logits processor against the trie."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from generator_samples import catalogues, random_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cemg_hf import ItemTrie, PrefixConstrainedLogitsProcessor, constrained_beam_search
from cemg_hf.models.cemg.generation_cemg import Diversity, ItemFilter, merge_rankings

# ---- the beam search ------------------------------------------------------------------------------------------------------------


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

    def steps(self) -> Callable[[int, Tensor, Tensor], Tensor]:
        """The same as `NextLevel`, one search long; logits that are no log-probabilities, for the search has to normalise."""
        written: list[Tensor] = []

        def next_level(level: int, parents: Tensor, codes: Tensor) -> Tensor:
            assert level == len(written)
            prefixes = written[-1].gather(1, parents.unsqueeze(-1).expand(-1, -1, level - 1)) if level else codes.unsqueeze(-1)[..., :0]
            written.append(torch.cat([prefixes, codes.unsqueeze(-1)], dim=-1) if level else prefixes)
            return self(written[-1]) + 3.0

        return next_level

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
    trie = ItemTrie(codes, codebook_size)
    items, scores = constrained_beam_search(model.steps(), trie, 2, num_beams, ItemFilter(trie, padded))
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
    trie = ItemTrie(codes, codebook_size)
    without = ItemFilter(trie, torch.tensor([sorted(gone), sorted(gone)]).long())
    for chosen, kept in ((None, range(count)), (without, sorted(set(range(count)) - gone))):
        items, found = constrained_beam_search(model.steps(), trie, 2, count + data.draw(st.integers(0, 3)), chosen)
        for row in range(2):
            listed = items[row][items[row] >= 0]
            assert sorted(listed.tolist()) == list(kept)
            assert torch.allclose(found[row, : len(listed)], scores[row, listed], atol=1e-4)
            assert (found[row, : len(listed)].diff() <= 0).all()


def test_excluding_everything_leaves_empty_lists():
    codes = random_codes(9, 2, 4)
    trie = ItemTrie(codes, 4)
    items, scores = constrained_beam_search(RandomModel(1, 2, 4, 0).steps(), trie, 1, 5, ItemFilter(trie, torch.arange(9).unsqueeze(0)))
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


# ---- filters and diversity ------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(catalogues(), st.integers(1, 12), st.integers(0, 10**6), st.data())
def test_denied_and_allowed_lists_compose_and_leave_as_many_items_as_there_are(catalogue, num_beams, seed, data):
    codes, codebook_size = catalogue
    every = range(-1, len(codes))  # −1 is padding; repeats are drawn too
    rows = st.lists(st.lists(st.sampled_from(every), max_size=20), min_size=2, max_size=2)
    denied, allowed = data.draw(rows), data.draw(rows)
    restricted = torch.tensor(data.draw(st.lists(st.booleans(), min_size=2, max_size=2)))
    model, trie = RandomModel(2, codes.shape[1], codebook_size, seed), ItemTrie(codes, codebook_size)
    padded = [torch.nn.utils.rnn.pad_sequence([torch.tensor(row).long() for row in lists], True, -1) for lists in (denied, allowed)]
    chosen = ItemFilter(trie, *padded, data.draw(st.sampled_from([restricted, None])) if restricted.all() else restricted)
    items, _ = constrained_beam_search(model.steps(), trie, 2, num_beams, chosen)
    for row in range(2):
        open_items = (set(allowed[row]) if restricted[row] else set(every)) - set(denied[row]) - {-1}
        gone = set(range(len(codes))) - open_items
        expected = obvious_beam_search(model, row, codes.tolist(), gone, num_beams)
        assert len(expected) == min(num_beams, len(open_items))  # a beam never ends where nothing may come out
        assert items[row, : len(expected)].tolist() == [item for item, _ in expected]
        assert (items[row, len(expected) :] == -1).all()


def test_a_filter_without_lists_is_refused():
    with pytest.raises(ValueError, match="needs a list"):
        ItemFilter(ItemTrie(random_codes(5, 2, 4), 4))


@settings(max_examples=100, deadline=None)
@given(catalogues(), st.integers(1, 8), st.integers(0, 6), st.integers(0, 10**6), st.data())
def test_lists_are_as_diverse_as_asked_and_as_long_as_possible(catalogue, size, more_beams, seed, data):
    codes, codebook_size = catalogue
    limit = data.draw(st.one_of(st.none(), st.integers(1, size)))
    branches = data.draw(st.one_of(st.none(), st.integers(1, size)))
    model, trie = RandomModel(2, codes.shape[1], codebook_size, seed), ItemTrie(codes, codebook_size)
    items, scores = constrained_beam_search(model.steps(), trie, 2, size + more_beams, None, Diversity(size, limit, branches))
    assert items.shape[1] <= size
    available = torch.bincount(codes[:, 0], minlength=codebook_size)
    possible = int(available.clamp(max=limit or size).sum())
    exact = model.item_scores(codes)
    for row in range(2):
        found = items[row][items[row] >= 0]
        assert len(found) == min(size, possible)
        assert len(found.unique()) == len(found)
        assert torch.allclose(scores[row, : len(found)], exact[row, found], atol=1e-4)
        assert (scores[row, : len(found)].diff() <= 0).all()
        counts = torch.bincount(codes[found, 0], minlength=codebook_size)
        assert int(counts.max()) <= (limit or size)
        assert int((counts > 0).sum()) >= min(branches or 1, int((available > 0).sum()))


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.integers(1, 8), st.integers(0, 10**6), st.data())
def test_an_exhaustive_search_is_diversified_exactly(catalogue, size, seed, data):
    codes, codebook_size = catalogue
    limit = data.draw(st.integers(1, size))
    gone = data.draw(st.lists(st.integers(0, len(codes) - 1), max_size=20))
    model, trie = RandomModel(2, codes.shape[1], codebook_size, seed), ItemTrie(codes, codebook_size)
    without = ItemFilter(trie, torch.tensor([gone, gone]).long().reshape(2, -1))
    items, _ = constrained_beam_search(model.steps(), trie, 2, max(len(codes), size), without, Diversity(size, limit))
    scores = model.item_scores(codes)
    for row in range(2):
        expected: list[int] = []
        for item in [item for item in scores[row].argsort(descending=True).tolist() if item not in gone]:
            same = sum(int(codes[other, 0]) == int(codes[item, 0]) for other in expected)
            expected += [item] if same < limit and len(expected) < size else []
        assert items[row][items[row] >= 0].tolist() == expected


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
    expected = constrained_beam_search(model.steps(), trie, 2, num_beams, ItemFilter(trie, torch.tensor([others, others]).long()))
    part = trie.subset(torch.tensor(chosen))
    excluded = ItemFilter(part, torch.tensor([gone, gone], dtype=torch.int64).reshape(2, -1))
    items, scores = constrained_beam_search(model.steps(), part, 2, num_beams, excluded)
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
