"""Codes one can read: what the items whose codes share a prefix have in common.

The codes of a catalogue form a tree: `<a_12>` is a branch, `<a_12><b_7>` a branch of it, a full code one item. A branch is described by
its typical items and by the words and categories that are more frequent there than in the whole catalogue.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

CODE_TOKEN = re.compile(r"<([a-z])_(\d{1,18})>")
WORD = re.compile(r"[^\W\d_](?:[^\W_]|['’](?=[^\W_]))+")
"""Two or more letters or digits of any script, the first a letter; an apostrophe may stand inside."""

TEXT_COLUMNS = ("title", "brand", "description")
ID_COLUMN, TITLE_COLUMN, CATEGORY_COLUMN = "item_id", "title", "categories"

LEAST_ITEMS = 2
"""What one item alone says is not said of a branch."""


def _token(level: int, code: int) -> str:
    return f"<{chr(97 + level)}_{code}>"


def prefix_text(codes: Sequence[int]) -> str:
    """Codes of the first levels as tokens: [12, 7] → "<a_12><b_7>"."""
    return "".join(_token(level, code) for level, code in enumerate(codes))


def parse_prefix(text: str, num_levels: int, codebook_size: int) -> list[int]:
    """Codes of a prefix written as tokens: "<a_12><b_7>" → [12, 7]; "" is the root.

    Raises:
        ValueError: anything but code tokens of the levels a, b, … in order, or a code outside 0 … K−1.
    """
    found = list(CODE_TOKEN.finditer(text))
    if "".join(match.group(0) for match in found) != text:
        raise ValueError(f"{text!r} is not a prefix of code tokens; write e.g. {prefix_text([12, 7][:num_levels])!r}")
    if len(found) > num_levels:
        raise ValueError(f"{text!r} has {len(found)} codes, an item has {num_levels}; shorten it")
    for level, match in enumerate(found):
        if match.group(1) != chr(97 + level):
            raise ValueError(
                f"{text!r}: {match.group(0)} stands where a code of level {chr(97 + level)!r} belongs; codes follow a, b, c, …"
            )
        if int(match.group(2)) >= codebook_size:
            raise ValueError(f"{text!r}: {match.group(0)} is out of range, codes of this catalogue are 0 … {codebook_size - 1}")
    return [int(match.group(2)) for match in found]


@dataclass(frozen=True)
class Child:
    """A branch one level deeper."""

    code: int = field(metadata={"help": "Its code at the next level."})
    text: str = field(metadata={"help": 'The whole prefix as tokens, "<a_12><b_7>".'})
    num_items: int = field(metadata={"help": "Items below it."})


@dataclass(frozen=True)
class TypicalItem:
    """One of the items nearest to the branch's centroid."""

    item_id: str = field(metadata={"help": "Id in the catalogue."})
    title: str | None = field(metadata={"help": "Its title, where the item table has one."})


@dataclass(frozen=True)
class DistinctiveTerm:
    """A word or category that is more frequent in the branch than in the catalogue."""

    name: str = field(metadata={"help": "The word (case-folded) or the category."})
    num_items: int = field(metadata={"help": "Items of the branch that have it."})
    share: float = field(metadata={"help": "Their share of the branch's items."})
    catalogue_share: float = field(metadata={"help": "Share of the catalogue's items that have it."})
    score: float = field(metadata={"help": "Signed root of the log-likelihood ratio against the catalogue."})


@dataclass(frozen=True)
class BranchDescription:
    """What the items under a prefix have in common."""

    text: str = field(metadata={"help": 'The prefix as tokens, "" at the root.'})
    prefix: list[int] = field(metadata={"help": "Its codes."})
    num_items: int = field(metadata={"help": "Items under the prefix."})
    share: float = field(metadata={"help": "Their share of the catalogue."})
    children: list[Child] = field(metadata={"help": "Branches of the next level, most items first."})
    typical: list[TypicalItem] = field(metadata={"help": "Nearest to the branch's centroid first."})
    words: list[DistinctiveTerm] = field(metadata={"help": "Distinctive words, highest score first."})
    categories: list[DistinctiveTerm] = field(metadata={"help": "Distinctive categories, highest score first."})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        head = (
            f"{self.text or 'the whole catalogue'}: {self.num_items:,} item{'s' * (self.num_items != 1)}, {self.share:.1%} of the catalogue"
        )
        lines = [head]
        if self.words:
            lines.append(f"  words       {', '.join(word.name for word in self.words)}")
        if self.categories:
            shares = [f"{entry.name} {entry.share:.0%} (catalogue {entry.catalogue_share:.0%})" for entry in self.categories]
            lines.append(f"  categories  {', '.join(shares)}")
        if self.typical:
            names = [item.item_id if item.title is None else f"{item.title} [{item.item_id}]" for item in self.typical]
            lines += [f"  {'typical' if not row else '':11} {name}" for row, name in enumerate(names)]
        if self.children:
            shown = [f"{_token(len(self.prefix), child.code)} {child.num_items:,}" for child in self.children[:8]]
            more = f", {len(self.children) - 8} more" if len(self.children) > 8 else ""
            lines.append(f"  next        {', '.join(shown)}{more}")
        return "\n".join(lines)


def describe_branch(
    prefix: Sequence[int],
    item_ids: Sequence[str],
    item_codes: Tensor,
    latent: Tensor | None = None,
    items: Mapping[str, Sequence[Any]] | None = None,
    top: int = 10,
) -> BranchDescription:
    """Describe one branch; for many branches of a catalogue, build a `CodeDescriber` once. Arguments and errors are its own."""
    return CodeDescriber(item_ids, item_codes, latent, items).describe(prefix, top)


class CodeDescriber:
    """Describes any branch of a catalogue; texts are read once.

    Items are kept in the order of their codes, so a branch is a slice, and its words are a slice of one flat list of word numbers.

    Args:
        item_ids: the catalogue, N ids.
        item_codes: (N, M) raw codes.
        latent: (N, D) reconstructed latents of the items, Σ codebooks[codes]. Without them the first items of a branch stand for it.
        items: column name → N values in catalogue order. Read are title, brand and description (strings), categories (a list of strings
            or one string); a value may be None. Without it descriptions have ids and counts only.

    Attributes:
        order: (N,) catalogue rows in the order of their codes.
        codes: (N, M) codes in that order.

    Raises:
        ValueError: sizes that do not agree, an `item_id` column in another order, or a value that is no string.
    """

    def __init__(
        self, item_ids: Sequence[str], item_codes: Tensor, latent: Tensor | None = None, items: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        if item_codes.dim() != 2 or len(item_codes) != len(item_ids):
            raise ValueError(f"item_codes must be {len(item_ids)} × levels, one row per item id, got shape {tuple(item_codes.shape)}")
        if not len(item_ids):
            raise ValueError("a catalogue without items has nothing to describe; give at least one")
        if latent is not None and (latent.dim() != 2 or len(latent) != len(item_ids)):
            raise ValueError(f"latent must be {len(item_ids)} × dimension, one row per item id, got shape {tuple(latent.shape)}")
        columns = dict(items or {})
        _check_columns(columns, item_ids)
        self.item_ids = list(item_ids)
        self.order = torch.arange(len(self.item_ids))
        for level in reversed(range(item_codes.shape[1])):  # stable sorts from the last level to the first order the rows
            self.order = self.order[item_codes[self.order, level].argsort(stable=True)]
        self.codes = item_codes[self.order].long().contiguous()
        self._levels = self.codes.t().contiguous()
        self._latent = None if latent is None else latent.detach().float()[self.order]
        self._rows = self.order.tolist()
        self._titles = columns.get(TITLE_COLUMN)
        texts = [columns[name] for name in TEXT_COLUMNS if name in columns]
        self._words = _TermIndex([_words(*(column[row] for column in texts)) for row in self._rows])
        categories = columns.get(CATEGORY_COLUMN)
        self._categories = _TermIndex([] if categories is None else [_categories(categories[row]) for row in self._rows])

    @property
    def num_levels(self) -> int:
        """M."""
        return self.codes.shape[1]

    def span(self, prefix: Sequence[int]) -> tuple[int, int]:
        """Where the items under a prefix begin and end in `order`.

        Raises:
            ValueError: more codes than levels, or no item has this prefix.
        """
        if len(prefix) > self.num_levels:
            raise ValueError(f"{prefix_text(prefix)} has {len(prefix)} codes, an item has {self.num_levels}; shorten it")
        start, end = 0, len(self.item_ids)
        for level, code in enumerate(prefix):
            column = self._levels[level, start:end]
            first, last = torch.searchsorted(column, torch.tensor([code, code + 1])).tolist()
            if first == last:
                known = column.unique()
                shown = ", ".join(_token(level, other) for other in known[:8].tolist())
                more = f" and {len(known) - 8} more" if len(known) > 8 else ""
                before = prefix_text(prefix[:level]) or "the root"
                raise ValueError(f"no item's code begins with {prefix_text(prefix[: level + 1])}; after {before} come {shown}{more}")
            start, end = start + first, start + last
        return start, end

    def branches(self, level: int) -> tuple[Tensor, Tensor]:
        """Where the items of each branch of `level` codes begin and end in `order`: two (B,) tensors; level 0 is the root."""
        changed = (self.codes[1:, :level] != self.codes[:-1, :level]).any(1)
        inner = changed.nonzero()[:, 0] + 1
        first, last = inner.new_zeros(1), inner.new_full((1,), len(self.codes))
        return torch.cat([first, inner]), torch.cat([inner, last])

    def typical(self, starts: Tensor, ends: Tensor, top: int) -> list[list[int]]:
        """For each slice of `order` the positions of the items nearest to its centroid, nearest first."""
        positions, owner = _spread(starts, ends)
        if self._latent is not None:
            vectors = self._latent[positions]
            sums = torch.zeros(len(starts), vectors.shape[1]).index_add_(0, owner, vectors)
            distances = (vectors - (sums / (ends - starts)[:, None])[owner]).square().sum(1)
            # Stable sorts: items at the same distance keep their order, whatever the machine.
            nearest = distances.argsort(stable=True)
            nearest = nearest[owner[nearest].argsort(stable=True)]
            positions = positions[nearest]
        kept = _rank(owner) < top
        return _grouped(positions[kept].tolist(), owner[kept], len(starts))

    def words(self, starts: Tensor, ends: Tensor, top: int) -> list[list[DistinctiveTerm]]:
        """For each slice of `order` its distinctive words, highest score first."""
        return self._words.distinctive(starts, ends, top)

    def categories(self, starts: Tensor, ends: Tensor, top: int) -> list[list[DistinctiveTerm]]:
        """For each slice of `order` its distinctive categories, highest score first."""
        return self._categories.distinctive(starts, ends, top)

    def main_category(self, starts: Tensor, ends: Tensor) -> list[list[DistinctiveTerm]]:
        """For each slice of `order` its most frequent category, distinctive or not; none where no two items share one."""
        return self._categories.most_frequent(starts, ends)

    def describe(self, prefix: Sequence[int], top: int = 10) -> BranchDescription:
        """Describe the branch of the items whose codes begin with `prefix` ([] is the whole catalogue).

        Args:
            prefix: codes of the first levels.
            top: how many typical items, words and categories at most.

        Raises:
            ValueError: no item has this prefix, or `top` is negative.
        """
        if top < 0:
            raise ValueError(f"top must be ≥ 0, got {top}")
        start, end = self.span(prefix)
        starts, ends = torch.tensor([start]), torch.tensor([end])
        rows = [self._rows[position] for position in self.typical(starts, ends, top)[0]]
        return BranchDescription(
            text=prefix_text(prefix),
            prefix=list(prefix),
            num_items=end - start,
            share=(end - start) / len(self.item_ids),
            children=self._children(prefix, start, end),
            typical=[TypicalItem(self.item_ids[row], None if self._titles is None else self._titles[row]) for row in rows],
            words=self.words(starts, ends, top)[0],
            categories=self.categories(starts, ends, top)[0],
        )

    def _children(self, prefix: Sequence[int], start: int, end: int) -> list[Child]:
        if len(prefix) == self.num_levels:
            return []
        codes, counts = self._levels[len(prefix), start:end].unique_consecutive(return_counts=True)
        largest = counts.argsort(descending=True, stable=True)
        pairs = zip(codes[largest].tolist(), counts[largest].tolist(), strict=True)
        return [Child(code, prefix_text([*prefix, code]), count) for code, count in pairs]


class _Counts(NamedTuple):
    """In how many items of which slice a term occurs: (n,) each, ordered by slice, then term."""

    owner: Tensor
    terms: Tensor
    items: Tensor
    total: Tensor
    """(B,) occurrences of all terms in each slice."""


class _TermIndex:
    """Which terms each item has: flat term numbers (nnz,) and where each item's begin (N + 1,). An item has a term or not.

    Terms of fewer than `LEAST_ITEMS` items can be distinctive of no branch and are left out.
    """

    def __init__(self, terms_of_items: Sequence[set[str]]) -> None:
        numbers: dict[str, int] = {}
        # Sorted, since the order of a set changes with the interpreter's hash seed.
        flat = torch.tensor(
            [numbers.setdefault(term, len(numbers)) for terms in terms_of_items for term in sorted(terms)], dtype=torch.int64
        )
        owner = torch.repeat_interleave(torch.tensor([len(terms) for terms in terms_of_items], dtype=torch.int64))
        kept = torch.bincount(flat, minlength=len(numbers)) >= LEAST_ITEMS
        renumbered = kept.cumsum(0) - 1
        self._names = [name for name, keep in zip(numbers, kept.tolist(), strict=True) if keep]
        self._flat = renumbered[flat[kept[flat]]]
        self._starts = torch.searchsorted(owner[kept[flat]], torch.arange(len(terms_of_items) + 1))
        self._catalogue = torch.bincount(self._flat, minlength=len(self._names))
        self._num_items = len(terms_of_items)

    def distinctive(self, starts: Tensor, ends: Tensor, top: int) -> list[list[DistinctiveTerm]]:
        r"""For each slice of items the terms of ≥ 2 of its items that it has more often than the catalogue, highest score first.

        The score is the signed root of the log-likelihood ratio (Dunning 1993) of y of a slice's n occurrences being a term, against
        the term's share p of the catalogue's:

            G² = 2 · [y · log(y / np) + (n − y) · log((n − y) / (n − np))]

        that is the log-odds weighted by how often they were seen, so that neither what is merely frequent nor what two items say by
        chance is ahead; of equally frequent terms the one rarer elsewhere is. Without association the score is standard normal; only
        scores that chance gives to fewer than one of all the V terms (normal quantile 1 − 1/V) count as distinctive.
        """
        if not self._names:
            return [[] for _ in range(len(starts))]
        found = self._count(starts, ends)
        kept = found.items >= LEAST_ITEMS
        owner, terms, items = found.owner[kept], found.terms[kept], found.items[kept]
        seen, total = items.double(), found.total[owner].double()
        expected = total * self._catalogue[terms] / self._catalogue.sum()
        ratio = torch.special.xlogy(seen, seen / expected)
        # A term that is all there is, here or everywhere, leaves 0 of 0 other occurrences: 0 · log 0 = 0.
        others, expected_others = total - seen, total - expected
        ratio += torch.special.xlogy(others, others / expected_others.clamp_min(1e-9))
        scores = (2 * ratio).clamp_min(0).sqrt()
        more_frequent = (seen > expected) & (items / (ends - starts)[owner] > self._catalogue[terms] / self._num_items)
        least = torch.special.ndtri(torch.tensor(1 - 1 / max(len(self._names), 2), dtype=torch.float64))
        kept = more_frequent & (scores > least)
        return self._best(owner[kept], terms[kept], items[kept], scores[kept], starts, ends, top)

    def most_frequent(self, starts: Tensor, ends: Tensor) -> list[list[DistinctiveTerm]]:
        """For each slice of items its most frequent term of ≥ 2 items, with score 0."""
        if not self._names:
            return [[] for _ in range(len(starts))]
        found = self._count(starts, ends)
        kept = found.items >= LEAST_ITEMS
        best = self._best(found.owner[kept], found.terms[kept], found.items[kept], found.items[kept].double(), starts, ends, 1)
        return [[replace(term, score=0.0) for term in terms] for terms in best]

    def _count(self, starts: Tensor, ends: Tensor) -> _Counts:
        positions, owner = _spread(self._starts[starts], self._starts[ends])
        keys, items = (owner * len(self._names) + self._flat[positions]).unique(return_counts=True)
        return _Counts(keys // len(self._names), keys % len(self._names), items, torch.bincount(owner, minlength=len(starts)))

    def _best(
        self, owner: Tensor, terms: Tensor, items: Tensor, scores: Tensor, starts: Tensor, ends: Tensor, top: int
    ) -> list[list[DistinctiveTerm]]:
        """The `top` terms of each slice by score; of equal ones those that come first in the catalogue."""
        order = scores.argsort(descending=True, stable=True)
        order = order[owner[order].argsort(stable=True)]
        order = order[_rank(owner[order]) < top]
        owner, terms, items = owner[order], terms[order], items[order]
        shares, everywhere = items.double() / (ends - starts)[owner], self._catalogue[terms].double() / self._num_items
        columns = (values.tolist() for values in (terms, items, shares, everywhere, scores[order]))
        entries = [DistinctiveTerm(self._names[term], *numbers) for term, *numbers in zip(*columns, strict=True)]
        return _grouped(entries, owner, len(starts))


def _spread(starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Every position of the slices, one slice after the other, and the number of the slice it belongs to: (n,) each."""
    sizes = ends - starts
    owner = torch.repeat_interleave(sizes)
    return torch.arange(len(owner)) - (sizes.cumsum(0) - sizes)[owner] + starts[owner], owner


def _rank(owner: Tensor) -> Tensor:
    """0, 1, 2, … within each run of equal values of the ascending `owner` (n,)."""
    return torch.arange(len(owner)) - torch.searchsorted(owner, owner)


def _grouped(entries: list[T], owner: Tensor, groups: int) -> list[list[T]]:
    """Lists of the entries of each of the groups 0 … groups − 1; `owner` (n,) ascending."""
    ends = torch.bincount(owner, minlength=groups).cumsum(0).tolist()
    return [entries[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _check_columns(columns: Mapping[str, Sequence[Any]], item_ids: Sequence[str]) -> None:
    for name in (ID_COLUMN, *TEXT_COLUMNS, CATEGORY_COLUMN):
        column = columns.get(name)
        if column is not None and len(column) != len(item_ids):
            raise ValueError(
                f"items, column {name}: {len(column)} values for {len(item_ids)} items; give one row per item of the catalogue"
            )
    if ID_COLUMN in columns:
        pairs = enumerate(zip(columns[ID_COLUMN], item_ids, strict=True))
        wrong = next(((row, found, expected) for row, (found, expected) in pairs if found != expected), None)
        if wrong is not None:
            raise ValueError(
                f"items, column item_id, row {wrong[0]}: {wrong[1]!r} where the catalogue has {wrong[2]!r}; put rows in its order"
            )
    for name in TEXT_COLUMNS:
        _check_values(name, columns.get(name) or (), lambda value: isinstance(value, str))
    _check_values(CATEGORY_COLUMN, columns.get(CATEGORY_COLUMN) or (), _are_categories)


def _check_values(name: str, column: Sequence[Any], fits: Any) -> None:
    wrong = next((row for row, value in enumerate(column) if value is not None and not fits(value)), None)
    if wrong is not None:
        raise ValueError(f"items, column {name}, row {wrong}: {column[wrong]!r} is no text; convert it to str or leave it None")


def _are_categories(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Sequence) and all(entry is None or isinstance(entry, str) for entry in value))


def _words(*texts: str | None) -> set[str]:
    return {word for text in texts if text for word in WORD.findall(text.casefold().replace("’", "'"))}


def _categories(value: str | Sequence[str | None] | None) -> set[str]:
    return {entry for entry in ([value] if isinstance(value, str) else value or ()) if entry}
