"""The token loss against loops over positions and catalogues, and constrained scores whoever computes them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from generator_samples import (
    CAUSAL,
    CODEBOOK_SIZE,
    HISTORIES,
    NUM_LEVELS,
    TOKENIZER,
    assert_same_lists,
    catalogues,
    generator,
    item_tokenizer,
    plain_logits,
    ranked_ids,
    rqvae_parts,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from cemg_hf import CEMGForConditionalGeneration, CEMGTokenizer, ItemTrie
from cemg_hf.models.cemg import Objective
from cemg_hf.models.cemg.objective_cemg import IGNORED, permissible_codes

SHAPE = (2, 3, NUM_LEVELS, CODEBOOK_SIZE)


def targets(catalogue: Tensor, seed: int) -> Tensor:
    """(2, 3, M) codes of random items, one of them ignored."""
    draw = torch.Generator().manual_seed(seed)
    codes = catalogue[torch.randint(len(catalogue), (2, 3), generator=draw)].clone()
    codes[1, 2] = IGNORED
    return codes


def drawn(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def obvious_loss(objective: Objective, logits: Tensor, codes: Tensor, catalogue: Tensor | None, teacher: Tensor | None) -> float:
    """The loss position by position; with a catalogue over the codes its items allow, found by looking at every item."""
    total, weight, smoothing = 0.0, objective.teacher_weight, objective.label_smoothing
    batch, count, levels, size = logits.shape
    for row, t, level in itertools.product(range(batch), range(count), range(levels)):
        gold = codes[row, t].tolist()
        if gold[level] == IGNORED:
            continue
        possible = list(range(size))
        if catalogue is not None:
            possible = sorted({item[level] for item in catalogue.tolist() if item[:level] == gold[:level]})
        scores = {code: float(logits[row, t, level, code]) / objective.temperature for code in possible}
        normaliser = math.log(sum(math.exp(score) for score in scores.values()))
        log_p = {code: score - normaliser for code, score in scores.items()}
        cross_entropy = -(1 - smoothing) * log_p[gold[level]] - smoothing * sum(log_p.values()) / len(possible)
        total += (1 - weight) * cross_entropy
        if teacher is not None:
            total -= weight * sum(float(teacher[row, t, level, code]) * log_p[code] for code in possible)
    return total


OBJECTIVES = st.builds(
    Objective,
    label_smoothing=st.sampled_from([0.0, 0.1, 0.6]),
    temperature=st.sampled_from([0.5, 0.7, 1.0, 2.0]),
    teacher_weight=st.sampled_from([0.0, 0.3, 1.0]),
)


@settings(max_examples=80, deadline=None)
@given(catalogues(), OBJECTIVES, st.booleans(), st.integers(0, 10**6))
def test_loss_is_the_one_of_a_loop_over_positions_and_catalogue(catalogue, objective, constrained, seed):
    items, size = catalogue
    codes = targets(items, seed)
    logits = drawn(seed, *codes.shape, size).requires_grad_()
    permissible = permissible_codes(ItemTrie(items, size), codes) if constrained else None
    teacher = drawn(seed + 1, *codes.shape, size).softmax(-1)
    if permissible is not None:
        teacher = (teacher * permissible).nan_to_num()
    loss = objective.loss(logits, codes, permissible, teacher)
    expected = obvious_loss(objective, logits.detach(), codes, items if constrained else None, teacher)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[codes == IGNORED] == 0).all()
    if permissible is not None:
        assert (logits.grad[~permissible] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_default_is_cross_entropy_bit_for_bit(dtype):
    logits, codes = drawn(0, *SHAPE).to(dtype), targets(TOKENIZER.item_codes, 0)
    plain = functional.cross_entropy(logits.flatten(0, -2).float(), codes.flatten(), ignore_index=-100, reduction="sum")
    assert Objective() == Objective(label_smoothing=0.0, temperature=1.0, teacher_weight=0.0)
    assert torch.equal(Objective().loss(logits, codes), plain)
    assert torch.equal(Objective().loss(logits, codes, teacher=torch.rand(SHAPE)), plain)
    model = generator(TOKENIZER)
    labels = TOKENIZER.item_tokens[[4, 9, 0, 33]]
    out = model(**TOKENIZER(HISTORIES, padding=True, return_tensors="pt"), labels=labels)
    codes = TOKENIZER.item_codes[[4, 9, 0, 33]].flatten()
    plain = functional.cross_entropy(out.logits.flatten(0, 1), codes, reduction="sum") / labels.numel()
    assert torch.equal(out.loss, plain)


def test_label_smoothing_is_that_of_torch():
    logits, codes = drawn(1, *SHAPE), targets(TOKENIZER.item_codes, 1)
    expected = functional.cross_entropy(logits.flatten(0, -2), codes.flatten(), ignore_index=-100, reduction="sum", label_smoothing=0.2)
    assert float(Objective(label_smoothing=0.2).loss(logits, codes)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_a_teacher_that_says_the_target_is_cross_entropy(weight):
    logits, codes = drawn(2, *SHAPE), targets(TOKENIZER.item_codes, 2)
    teacher = functional.one_hot(codes.clamp(min=0), CODEBOOK_SIZE).float()
    teacher[1, 2] = torch.nan  # ignored positions may hold anything
    permissible = permissible_codes(TOKENIZER.trie, codes)
    for chosen in (None, permissible):
        loss = Objective(teacher_weight=weight).loss(logits, codes, chosen, teacher)
        assert float(loss) == pytest.approx(float(Objective().loss(logits, codes, chosen)), rel=1e-5)


def test_low_temperature_weighs_the_codes_that_come_close():
    """LETTER's point: the gradient on a near competitor grows against that on a code far off."""
    codes, shares = torch.zeros(1, 1, 1, dtype=torch.int64), []
    for temperature in (0.5, 1.0):
        logits = torch.tensor([2.0, 1.5, -1.0]).view(1, 1, 1, 3).requires_grad_()
        Objective(temperature=temperature).loss(logits, codes).backward()
        gradient = logits.grad.flatten()
        shares.append(float(gradient[1] / gradient[2]))
    assert shares[0] > 2 * shares[1]


@pytest.mark.parametrize(
    "wrong",
    [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"temperature": 0.0}, {"temperature": math.inf}, {"temperature": math.nan},
     {"teacher_weight": 1.5}],
    ids=str,
)  # fmt: skip
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Objective(**wrong)


def test_teachers_that_are_missing_or_do_not_fit_are_refused():
    model = generator(TOKENIZER)
    inputs = TOKENIZER([HISTORIES[0]], return_tensors="pt")
    labels, teacher = TOKENIZER.item_tokens[[3]], torch.full((1, 1, NUM_LEVELS, CODEBOOK_SIZE), 1 / CODEBOOK_SIZE)
    with pytest.raises(ValueError, match="give labels too"):
        model(**inputs, teacher=teacher)
    model.objective = Objective(teacher_weight=0.5)
    with pytest.raises(ValueError, match="there is no teacher"):
        model(**inputs, labels=labels)
    with pytest.raises(ValueError, match=r"B × T × M × K = \(1, 1, 3, 8\), got \(1, 3, 8\)"):
        model(**inputs, labels=labels, teacher=teacher[0])
    out = model(**inputs, labels=labels, teacher=teacher)
    log_probs = out.logits.log_softmax(-1)
    hard = functional.nll_loss(log_probs[0], TOKENIZER.item_codes[3])
    assert float(out.loss.detach()) == pytest.approx(float((0.5 * hard - 0.5 * log_probs.mean()).detach()), abs=1e-5)


# ---- constrained scores -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def constrained_scores(model: CEMGForConditionalGeneration, history: list[str]) -> Tensor:
    """(N,) Σ log p of every item over the codes that continue its prefix, by T5's own forward and a loop over the catalogue."""
    logits, codes = plain_logits(model, history), model.tokenizer.item_codes.tolist()
    total = torch.zeros(len(codes))
    for (item, code), level in itertools.product(enumerate(codes), range(model.config.num_levels)):
        possible = sorted({other[level] for other in codes if other[:level] == code[:level]})
        total[item] += logits[item, level, code[level]] - logits[item, level, possible].logsumexp(0)
    return total


@CAUSAL
def test_constrained_loss_is_minus_the_score_of_the_ranking(item_causal):
    model = generator(TOKENIZER, item_causal=item_causal, constrained_softmax=True)
    chosen = [4, 9, 0, 33]
    labels = TOKENIZER.item_tokens[chosen]
    loss = model(**TOKENIZER(HISTORIES, padding=True, return_tensors="pt"), labels=labels).loss
    expected = [float(constrained_scores(model, history)[target]) for history, target in zip(HISTORIES, chosen, strict=True)]
    assert float(loss.detach()) == pytest.approx(-sum(expected) / labels.numel(), abs=1e-5)
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


@CAUSAL
@pytest.mark.parametrize("num_items", [60, 400])
def test_search_exhaustive_scoring_and_generate_agree_on_constrained_scores(item_causal, num_items):
    tokenizer = item_tokenizer(num_items)
    model = generator(tokenizer, item_causal=item_causal, constrained_softmax=True)
    free = generator(tokenizer, item_causal=item_causal)
    free.load_state_dict(model.state_dict())
    for history, found in zip(HISTORIES, model.recommend(HISTORIES, k=num_items), strict=True):
        scores = constrained_scores(model, history)
        assert sorted(ranked_ids(found)) == sorted(tokenizer.item_ids)
        assert [item.score for item in found] == pytest.approx([float(scores[int(item.item_id[4:])]) for item in found], abs=1e-5)
        assert math.isclose(sum(math.exp(item.score) for item in found), 1, abs_tol=1e-4)  # all of the probability is on items
        assert [item.score for item in found] != pytest.approx([item.score for item in free.recommend(history, k=num_items)], abs=0.1)
    inputs = tokenizer(HISTORIES, padding=True, return_tensors="pt")
    for num_beams in (4, 20):
        options = {"num_beams": num_beams, "num_return_sequences": num_beams, "return_dict_in_generate": True}
        found = model.recommend(HISTORIES, k=num_beams, num_beams=num_beams)
        for processors in ({}, {"logits_processor": [model.prefix_constraint()], "output_scores": True}):
            out = model.generate(**inputs, **options, **processors)
            assert tokenizer.decode_items(out.sequences) == [item_id for row in found for item_id in ranked_ids(row)]
            expected = [item.score for row in found for item in row]
            assert out.sequences_scores.tolist() == pytest.approx(expected, abs=1e-5)


def test_constrained_scores_do_not_depend_on_what_part_of_the_catalogue_is_searched():
    tokenizer = item_tokenizer(400)
    model = generator(tokenizer, constrained_softmax=True)
    history = HISTORIES[0]
    whole = model.recommend(history, k=400)
    chosen = [f"item{index}" for index in range(0, 400, 7)]
    expected = [item for item in whole if item.item_id in chosen]
    assert_same_lists(model.recommend(history, k=400, allowed_items=chosen), expected)
    inputs = tokenizer([history], return_tensors="pt")
    part = model.trie.subset(torch.arange(0, 400, 7))
    for trie in (part, part.subset(torch.arange(0, 400, 14))):
        items, scores = model.rank(inputs["input_ids"], inputs["attention_mask"], 400, trie=trie)
        listed = [item for item in whole if int(item.item_id[4:]) in set(trie.leaf_items.tolist())]
        assert [tokenizer.item_ids[item] for item in items[0].tolist() if item >= 0] == ranked_ids(listed)
        assert scores[0, : len(listed)].tolist() == pytest.approx([item.score for item in listed], abs=1e-5)
    denied = [item for item in tokenizer.item_ids if item not in chosen]
    assert_same_lists(model.recommend(history, k=400, denied_items=denied), expected)
    assert {item.item_id for item in model.recommend(history, k=10, max_per_first_code=2)} <= set(tokenizer.item_ids)


def test_constrained_scores_cover_items_that_came_later(tmp_path):
    tokenizer = item_tokenizer(**rqvae_parts() | {"projections": None, "encoders": None})
    model = generator(tokenizer, constrained_softmax=True)
    tokenizer.add_items(["new0", "new1"], {"text": torch.randn(2, 6)})
    scores = dict(zip(tokenizer.item_ids, constrained_scores(model, HISTORIES[0]).tolist(), strict=True))
    for boost in (None, 0.0):
        found = model.recommend(HISTORIES[0], k=62, new_item_boost=boost)
        assert {item.item_id for item in found} == scores.keys()
        assert [item.score for item in found] == pytest.approx([scores[item.item_id] for item in found], abs=1e-5)
    model.objective = Objective(label_smoothing=0.1, temperature=0.7)
    model.save_pretrained(tmp_path)
    loaded = CEMGForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.constrained_softmax is True
    assert loaded.objective == Objective()
    assert loaded.recommend(HISTORIES, k=30) == model.recommend(HISTORIES, k=30)


def test_training_with_every_setting_learns_what_follows_what():
    tokenizer: CEMGTokenizer = item_tokenizer(12)
    model = generator(tokenizer, constrained_softmax=True).train()
    model.objective = Objective(label_smoothing=0.05, temperature=0.8, teacher_weight=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    windows = torch.stack([torch.arange(start, start + 5) % 12 for start in range(12)])
    inputs = tokenizer([[f"item{item}" for item in row[:-1].tolist()] for row in windows], return_tensors="pt")
    teacher = functional.one_hot(tokenizer.item_codes[windows], CODEBOOK_SIZE).float()
    for _ in range(60):
        loss = model(**inputs, labels=tokenizer.item_tokens[windows].flatten(1), teacher=teacher).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = model.recommend([[f"item{item}"] for item in range(12)], k=1)
    assert [row[0].item_id for row in found] == [f"item{(item + 1) % 12}" for item in range(12)]
