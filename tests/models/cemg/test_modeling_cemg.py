"""The generator: one set of scores whoever computes them, all prefixes in one pass, saving, starting from a T5, and being taught."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from dense_samples import hybrid, tower, tower_settings
from generator_samples import (
    CAUSAL,
    CODEBOOK_SIZE,
    HISTORIES,
    NUM_LEVELS,
    TOKENIZER,
    assert_same_lists,
    generator,
    item_tokenizer,
    plain_scores,
    ranked_ids,
    rqvae_parts,
    small_config,
)
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from cemg_hf import CEMGConfig, CEMGForConditionalGeneration, CEMGTokenizer, Recommendation
from cemg_hf.models.cemg import Objective
from cemg_hf.models.cemg.modeling_cemg import items_before

# ---- masks ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_levels", [1, 3])
def test_tokens_are_counted_to_items_wherever_the_padding_stands(num_levels):
    """Padding counts to item 0, so that it sees `<s>`: a row that sees nothing is NaN in some attention kernels."""
    items = [0, *(item for item in (1, 2) for _ in range(num_levels))]
    left, right = torch.tensor([[0, 0, 0] + [1] * len(items)]), torch.tensor([[1] * len(items) + [0, 0, 0]])
    assert items_before(left, num_levels).tolist() == [[0, 0, 0, *items]]
    assert items_before(right, num_levels)[:, :-3].tolist() == [items]


def test_item_causal_mask_is_active_everywhere():
    causal = generator(TOKENIZER, item_causal=True)
    bidirectional = generator(TOKENIZER, item_causal=False)
    bidirectional.load_state_dict({name: value for name, value in causal.state_dict().items() if name != "recency_bias.weight"})
    history, options = HISTORIES[0], {"num_beams": 5, "num_return_sequences": 5, "return_dict_in_generate": True, "output_scores": True}
    inputs = TOKENIZER([history], return_tensors="pt")
    lists = [model.recommend(history, k=20) for model in (causal, bidirectional)]
    generated = [model.generate(**inputs, logits_processor=[model.prefix_constraint()], **options) for model in (causal, bidirectional)]
    for first, second in (lists, [out.sequences_scores.tolist() for out in generated]):
        values = [[item.score if isinstance(item, Recommendation) else item for item in row] for row in (first, second)]
        assert np.abs(np.subtract(*values)).max() > 1e-3
    assert_same_lists(causal.recommend([], k=20), bidirectional.recommend([], k=20))  # nothing to hide
    states = [
        causal.encoder(**TOKENIZER([items], return_tensors="pt")).last_hidden_state[0] for items in (history, history[:2], history[:1])
    ]
    assert torch.allclose(states[0][: 1 + 2 * NUM_LEVELS], states[1], atol=1e-5)
    assert torch.allclose(states[0][: 1 + NUM_LEVELS], states[2], atol=1e-5)


# ---- training -------------------------------------------------------------------------------------------------------------------


def item_labels(items: list[str]) -> torch.Tensor:
    """(1, T·M) label tokens."""
    return TOKENIZER.item_tokens[[int(item[4:]) for item in items]].flatten().unsqueeze(0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_every_prefix_equal_a_pass_on_the_prefix_alone(side):
    model = generator(TOKENIZER)
    histories = [["item1", "item2", "item3", "item4"], ["item8"]]
    targets = [["item9", "item8", "item7", "item6", "item5"], ["item2", "item3", "item0", "item0", "item0"]]
    labels = torch.cat([item_labels(row) for row in targets])
    labels[1, 2 * NUM_LEVELS :] = -100
    inputs = TOKENIZER(histories, padding=True, padding_side=side, return_tensors="pt")
    logits = model(**inputs, labels=labels).logits
    assert logits.shape == (2, 5 * NUM_LEVELS, CODEBOOK_SIZE)
    for row, (history, wanted) in enumerate(zip(histories, targets, strict=True)):
        for t in range(len(history) + 1):
            alone = model(**TOKENIZER([history[:t]], return_tensors="pt"), labels=item_labels(wanted[t : t + 1])).logits
            assert (logits[row, t * NUM_LEVELS : (t + 1) * NUM_LEVELS] - alone[0]).abs().max() < 1e-5


def test_targets_see_as_many_items_as_they_are_told():
    """A history that lacks item1 of the targets' sequence item1, item2, item3: target item2 still sees nothing after the start."""
    model = generator(TOKENIZER)
    targets, sizes = ["item1", "item2", "item3", "item4"], [0, 0, 1, 2]
    inputs = TOKENIZER([["item2", "item3"]], return_tensors="pt")
    logits = model(**inputs, labels=item_labels(targets), seen_items=torch.tensor([sizes])).logits
    for t, (target, size) in enumerate(zip(targets, sizes, strict=True)):
        alone = model(**TOKENIZER([["item2", "item3"][:size]], return_tensors="pt"), labels=item_labels([target])).logits
        assert (logits[0, t * NUM_LEVELS : (t + 1) * NUM_LEVELS] - alone[0]).abs().max() < 1e-5
    with pytest.raises(ValueError, match="need an item-causal model"):
        generator(TOKENIZER, item_causal=False)(**inputs, labels=item_labels(["item1"]), seen_items=torch.tensor([[1]]))


def test_loss_and_gradient_of_all_prefixes_are_those_of_separate_samples():
    model = generator(TOKENIZER)
    history, targets = ["item1", "item2", "item3"], ["item4", "item1", "item7", "item9"]
    gradients, losses = [], []
    for together in (True, False):
        model.zero_grad()
        if together:
            loss = model(**TOKENIZER([history], return_tensors="pt"), labels=item_labels(targets)).loss
        else:
            samples = [TOKENIZER([history[:t]], return_tensors="pt") for t in range(4)]
            loss = sum(model(**sample, labels=item_labels([target])).loss for sample, target in zip(samples, targets, strict=True)) / 4
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None})
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5), name


@CAUSAL
def test_loss_is_over_the_codes_of_the_level(item_causal):
    model = generator(TOKENIZER, item_causal=item_causal)
    inputs = TOKENIZER(HISTORIES, padding=True, return_tensors="pt")
    targets = [4, 9, 0, 33]
    labels = TOKENIZER.item_tokens[targets]
    out = model(**inputs, labels=labels)
    scores = torch.stack([plain_scores(model, history)[target] for history, target in zip(HISTORIES, targets, strict=True)])
    loss = float(out.loss.detach())
    assert loss == pytest.approx(float(-scores.sum() / labels.numel()), abs=1e-5)
    manual = functional.cross_entropy(out.logits.detach().flatten(0, 1), TOKENIZER.item_codes[targets].flatten())
    assert loss == pytest.approx(float(manual), abs=1e-6)


@torch.no_grad()
def test_loss_ignores_masked_labels_and_divides_by_the_number_it_is_given():
    model = generator(TOKENIZER)
    inputs = TOKENIZER([HISTORIES[0]] * 2, return_tensors="pt")
    labels = torch.cat([item_labels(["item4", "item5"]), item_labels(["item6", "item7"])])
    whole = model(**inputs, labels=labels).loss
    labels[0, :NUM_LEVELS] = labels[1, NUM_LEVELS:] = -100
    parts = [model(input_ids=inputs["input_ids"][:1], labels=row.unsqueeze(0)).loss for row in labels]
    masked = model(**inputs, labels=labels).loss
    assert float(masked) == pytest.approx(float(sum(parts)) / 2, abs=1e-6)
    assert float(masked) != pytest.approx(float(whole), abs=1e-3)
    for number in (5, torch.tensor(5)):
        scaled = model(**inputs, labels=labels, num_items_in_batch=number).loss
        assert float(scaled) == pytest.approx(float(masked) * 2 * NUM_LEVELS / 5, abs=1e-6)
    assert float(model(**inputs, labels=torch.full_like(labels, -100)).loss) == 0.0


def test_labels_that_do_not_fit_are_refused():
    bidirectional = generator(TOKENIZER, item_causal=False)
    inputs = TOKENIZER([HISTORIES[0]], return_tensors="pt")
    with pytest.raises(ValueError, match="need an item-causal model"):
        bidirectional(**inputs, labels=item_labels(["item1", "item2"]))
    with pytest.raises(ValueError, match="whole items of 3 codes"):
        bidirectional(**inputs, labels=item_labels(["item1"])[:, :2])
    with pytest.raises(ValueError, match="input_ids"):
        bidirectional(labels=item_labels(["item1"]))


def test_training_learns_what_follows_what():
    """A catalogue walked in order: after a few steps the next item comes first."""
    tokenizer = item_tokenizer(12)
    model = generator(tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    windows = torch.stack([torch.arange(start, start + 5) % 12 for start in range(12)])
    inputs = tokenizer([[f"item{item}" for item in row[:-1].tolist()] for row in windows], return_tensors="pt")
    for _ in range(40):
        loss = model(**inputs, labels=tokenizer.item_tokens[windows].flatten(1)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = model.recommend([[f"item{item}"] for item in range(12)], k=1)
    assert [row[0].item_id for row in found] == [f"item{(item + 1) % 12}" for item in range(12)]


# ---- saving and loading -----------------------------------------------------------------------------------------------------------


@CAUSAL
def test_saved_model_ranks_the_same(tmp_path, item_causal):
    tokenizer = item_tokenizer(**rqvae_parts())
    model = generator(tokenizer, item_causal=item_causal)
    expected = model.recommend(HISTORIES, k=20)
    model.save_pretrained(tmp_path)
    loaded = [auto.from_pretrained(tmp_path) for auto in (CEMGForConditionalGeneration, AutoModel, AutoModelForSeq2SeqLM)]
    for other in loaded:
        assert type(other) is CEMGForConditionalGeneration
        assert other.recommend(HISTORIES, k=20) == expected
        assert other.lm_head.weight is other.shared.weight
        assert other.generation_config.eos_token_id is None
        assert other.generation_config.max_new_tokens == NUM_LEVELS
        assert torch.equal(other.tokenizer.rqvae.codebooks, tokenizer.rqvae.codebooks)
    assert type(AutoConfig.from_pretrained(tmp_path)) is CEMGConfig
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is CEMGTokenizer
    inputs = tokenizer([HISTORIES[0]], return_tensors="pt")
    generated = [other.generate(**inputs, logits_processor=[other.prefix_constraint()]) for other in (model, loaded[0])]
    assert torch.equal(*generated)
    _, info = CEMGForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_model_without_tokenizer_loads_and_says_what_is_missing(tmp_path):
    CEMGForConditionalGeneration(small_config(TOKENIZER)).save_pretrained(tmp_path)
    model = CEMGForConditionalGeneration.from_pretrained(tmp_path)
    assert model.tokenizer is None
    with pytest.raises(ValueError, match="set_tokenizer"):
        model.prefix_constraint()


@pytest.mark.parametrize(
    ("other", "message"),
    [({"seed": 1}, "trained on catalogue"), ({"codebook_size": 9}, "codebook_size is 9 in the tokenizer, 8 in the model"),
     ({"max_history": 4}, "max_history is 4"), ({"base_vocab_size": 3}, "base_vocab_size is 3")],
)  # fmt: skip
def test_a_tokenizer_of_another_model_is_refused(tmp_path, other, message):
    generator(TOKENIZER).save_pretrained(tmp_path)
    stranger = item_tokenizer(**other)
    with pytest.raises(ValueError, match=message):
        CEMGForConditionalGeneration.from_pretrained(tmp_path).set_tokenizer(stranger)
    stranger.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        CEMGForConditionalGeneration.from_pretrained(tmp_path)


@CAUSAL
def test_a_new_model_starts_from_the_weights_of_a_new_t5(item_causal):
    """transformers initialises T5's modules only inside stacks of its own; elsewhere every matrix would come out with std 1."""
    config = small_config(TOKENIZER, item_causal=item_causal)
    torch.manual_seed(0)
    model = CEMGForConditionalGeneration(config)
    for tied in (model.encoder.embed_tokens, model.decoder.embed_tokens, model.lm_head):
        assert tied.weight is model.shared.weight
    torch.manual_seed(0)
    plain = T5ForConditionalGeneration(T5Config(**{key: value for key, value in config.to_dict().items() if key != "model_type"}))
    spread = {name: float(parameter.detach().std()) for name, parameter in plain.named_parameters()}
    spread["recency_bias.weight"] = 0.0
    for name, parameter in model.named_parameters():
        assert float(parameter.detach().std()) == pytest.approx(spread[name], rel=0.15, abs=0.05), name
    attention = model.encoder.block[1].layer[0].SelfAttention
    assert float(attention.q.weight.detach().std()) == pytest.approx((32 * 8) ** -0.5, rel=0.1)


# ---- items that come and go ---------------------------------------------------------------------------------------------------------


def test_items_added_and_removed_later_are_recommended_at_once(tmp_path):
    tokenizer = item_tokenizer(**rqvae_parts() | {"projections": None, "encoders": None})
    model = generator(tokenizer)
    expected = {item.item_id: item.score for item in model.recommend(HISTORIES[0], k=60)}
    old_trie = model.trie
    assert model.trie is old_trie
    added = tokenizer.add_items(["new0", "new1"], {"text": torch.randn(2, 6)})
    tokenizer.remove_items(["item4", "item9"])
    found = {item.item_id: item.score for item in model.recommend(HISTORIES[0], k=60)}
    assert found.keys() == set(tokenizer.item_ids) == (expected.keys() | {"new0", "new1"}) - {"item4", "item9"}
    scores = plain_scores(model, HISTORIES[0])
    assert [found[item_id] for item_id in tokenizer.item_ids] == pytest.approx(scores.tolist(), abs=1e-5)
    assert torch.equal(tokenizer.item_codes[-2:], added.item_codes)
    recommended_to_its_buyer = ranked_ids(model.recommend(["new1", "item2"], k=60, exclude_history=True))
    assert sorted([*recommended_to_its_buyer, "new1", "item2"]) == sorted(tokenizer.item_ids)
    inputs = tokenizer([HISTORIES[0]], return_tensors="pt")
    out = model.generate(**inputs, num_beams=60, num_return_sequences=60, logits_processor=[model.prefix_constraint()])
    assert sorted(tokenizer.decode_items(out)) == sorted(tokenizer.item_ids)
    model.save_pretrained(tmp_path)
    loaded = CEMGForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.tokenizer.new_items.tolist() == tokenizer.new_items.tolist()
    assert loaded.recommend(HISTORIES[0], k=60) == model.recommend(HISTORIES[0], k=60)


def test_a_model_takes_its_tokenizer_with_other_items_but_not_a_stranger_with_the_same():
    tokenizer = item_tokenizer(**rqvae_parts() | {"projections": None, "encoders": None})
    model = generator(tokenizer)
    grown = tokenizer.with_layout(base_vocab_size=2, max_history=tokenizer.max_history)
    grown.add_items(["new0"], {"text": torch.randn(1, 6)})
    model.set_tokenizer(grown)
    assert model.config.catalogue_fingerprint == tokenizer.catalogue_fingerprint != grown.catalogue_fingerprint
    stranger = CEMGTokenizer(item_ids=grown.item_ids, item_codes=grown.item_codes, **tokenizer.geometry())
    with pytest.raises(ValueError, match="trained on catalogue"):
        model.set_tokenizer(stranger)
    assert model.tokenizer is grown


# ---- from a T5 --------------------------------------------------------------------------------------------------------------------

BASE_VOCABULARY = 40


def small_t5(version: str, untied_head: bool = False) -> T5ForConditionalGeneration:
    """A T5 as published: v1.0 (relu, tied, scaled) or v1.1 (gated gelu, not scaled, usually with a head of its own)."""
    style = {"feed_forward_proj": "relu"} if version == "1.0" else {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    torch.manual_seed(5)
    config = T5Config(
        vocab_size=BASE_VOCABULARY,
        d_model=32,
        d_ff=64,
        num_heads=4,
        d_kv=8,
        num_layers=2,
        decoder_start_token_id=0,
        dropout_rate=0.0,
        **style,
    )
    backbone = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        backbone.shared.weight.mul_(3.0).add_(torch.linspace(-1, 1, 32))
    if untied_head:
        backbone.lm_head.weight = torch.nn.Parameter(torch.randn(BASE_VOCABULARY, 32) * 0.2)
    return backbone


@pytest.mark.parametrize(("version", "untied_head"), [("1.0", False), ("1.1", False), ("1.1", True)])
def test_from_t5_keeps_the_t5_and_adds_code_tokens(tmp_path, version, untied_head):
    backbone = small_t5(version, untied_head)
    before = copy.deepcopy(backbone.state_dict())
    tokenizer = item_tokenizer(base_vocab_size=BASE_VOCABULARY)
    model = CEMGForConditionalGeneration.from_t5(backbone, tokenizer, item_causal=False).eval()
    assert backbone.config.vocab_size == BASE_VOCABULARY
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in before.items())
    assert model.config.scale_decoder_outputs is (version == "1.0")
    state = model.state_dict()
    assert state.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(state[name][: len(value)], value), name
    assert (model.lm_head.weight is model.shared.weight) is not untied_head
    for matrix, old in ((model.shared.weight, before["shared.weight"]), (model.lm_head.weight, before["lm_head.weight"])):
        new = matrix[BASE_VOCABULARY:]
        assert len(new) == 1 + NUM_LEVELS * CODEBOOK_SIZE
        assert float(new.std(dim=0).mean()) == pytest.approx(float(old.std(dim=0).mean()), rel=0.2)
        assert len(new.unique(dim=0)) == len(new)

    # On its own tokens it still is the T5 it was.
    tokens = torch.tensor([[7, 9, 4, 30, 1]])
    arguments = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "decoder_input_ids": torch.tensor([[0, 5, 6]])}
    assert torch.allclose(model(**arguments).logits[..., :BASE_VOCABULARY], backbone(**arguments).logits, atol=1e-5)

    found = model.recommend(HISTORIES, k=60)
    for history, row in zip(HISTORIES, found, strict=True):
        assert [item.score for item in row] == pytest.approx(plain_scores(model, history).sort(descending=True).values.tolist(), abs=1e-4)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert loaded.recommend(HISTORIES, k=60) == found
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (loaded.lm_head.weight is loaded.shared.weight) is not untied_head
    assert loaded.shared.weight is loaded.encoder.embed_tokens.weight is loaded.decoder.embed_tokens.weight
    assert json.loads((tmp_path / "config.json").read_text())["scale_decoder_outputs"] is (version == "1.0")
    loaded.tie_weights()
    assert loaded.recommend(HISTORIES, k=60) == found


def test_untied_head_survives_the_backbones_own_saving(tmp_path):
    small_t5("1.1", untied_head=True).save_pretrained(tmp_path)
    backbone = T5ForConditionalGeneration.from_pretrained(tmp_path)
    tokenizer = item_tokenizer(base_vocab_size=BASE_VOCABULARY)
    model = CEMGForConditionalGeneration.from_t5(backbone, tokenizer)
    assert torch.equal(model.lm_head.weight[:BASE_VOCABULARY], small_t5("1.1", untied_head=True).lm_head.weight)
    assert torch.equal(model.shared.weight[:BASE_VOCABULARY], small_t5("1.1").shared.weight)
    assert not model.config.tie_lm_head


def test_from_t5_refuses_a_tokenizer_with_another_base():
    with pytest.raises(ValueError, match="base_vocab_size=40"):
        CEMGForConditionalGeneration.from_t5(small_t5("1.0"), TOKENIZER)


# ---- the dense tower as the teacher -----------------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """A tower that puts all mass on the targets: item i is its own axis, and the state after t items is the axis of target t."""

    def __init__(self, targets: torch.Tensor) -> None:
        super().__init__()
        self.settings, self.targets = tower_settings(), targets

    def item_vectors(self, rows: torch.Tensor, content: torch.Tensor | None) -> torch.Tensor:
        return torch.eye(len(rows))

    def forward(self, items: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        return 1e4 * vectors[self.targets]


def taught_batch() -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Inputs of two windows of three targets, the second of which lacks its last one; items and labels."""
    items = torch.tensor([[3, 1, 4], [5, 9, -1]])
    inputs = TOKENIZER([["item3", "item1"], ["item5"]], padding=True, padding_side="right", return_tensors="pt")
    labels = TOKENIZER.item_tokens[items.clamp(min=0)].masked_fill((items < 0).unsqueeze(-1), -100).flatten(1)
    return inputs, items, labels


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_a_tower_that_is_sure_of_the_target_teaches_plain_cross_entropy(weight):
    model = generator(TOKENIZER)
    inputs, items, labels = taught_batch()
    plain = model(**inputs, labels=labels).loss
    model.set_dense(tower())
    model.dense = Oracle(items.clamp(min=0))
    model.objective = Objective(teacher_weight=weight)
    torch.testing.assert_close(model(**inputs, labels=labels, items=items).loss, plain)
    model.objective = Objective(teacher_weight=weight, teacher_temperature=1e5)  # sure of nothing
    assert not torch.allclose(model(**inputs, labels=labels, items=items).loss, plain, atol=1e-3)


def test_the_teacher_is_the_tower_on_the_same_prefixes_without_dropout():
    model = hybrid(dense={"dropout": 0.5}).train()
    inputs, items, labels = taught_batch()
    model.objective = Objective(teacher_weight=0.5, teacher_temperature=2.0)
    first, again = (model(**inputs, labels=labels, items=items).loss for _ in range(2))
    assert torch.equal(first, again)
    assert not model.dense.training
    teacher = obvious_teacher(model, items, set())
    torch.testing.assert_close(model(**inputs, labels=labels, teacher=teacher).loss, first, atol=1e-5, rtol=0)


def test_the_teacher_may_leave_out_what_the_history_holds_but_never_the_target():
    model = hybrid()
    items = torch.tensor([[3, 1, 3], [5, 9, -1]])
    inputs = TOKENIZER([["item3", "item1"], ["item5"]], padding=True, padding_side="right", return_tensors="pt")
    labels = TOKENIZER.item_tokens[items.clamp(min=0)].masked_fill((items < 0).unsqueeze(-1), -100).flatten(1)
    model.objective = Objective(teacher_weight=1.0, teacher_temperature=2.0, teacher_excludes_history=True)
    found = model(**inputs, labels=labels, items=items).loss
    hidden = {(0, 1, 3), (0, 2, 1), (1, 1, 5)}  # not (0, 2, 3), which is the target
    torch.testing.assert_close(model(**inputs, labels=labels, teacher=obvious_teacher(model, items, hidden)).loss, found, atol=1e-5, rtol=0)
    model.objective = Objective(teacher_weight=1.0, teacher_temperature=2.0)
    assert not torch.allclose(model(**inputs, labels=labels, items=items).loss, found, atol=1e-4)


@torch.no_grad()
def obvious_teacher(model: CEMGForConditionalGeneration, items: torch.Tensor, hidden: set[tuple[int, int, int]]) -> torch.Tensor:
    """(2, 3, M, K) for windows of three and of two items: the tower on each prefix, and a loop over the catalogue at a temperature of 2.

    Args: hidden: (row, target, item) without any mass.
    """
    vectors, catalogue = model.dense.item_vectors(), TOKENIZER.item_codes
    states = model.dense(torch.tensor([items[0, :2].tolist(), [int(items[1, 0]), -1]]), vectors)  # the last item is a target only
    teacher = torch.zeros(2, 3, NUM_LEVELS, CODEBOOK_SIZE)
    for row, place in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
        share = (states[row, place] @ vectors.T / 2).softmax(0)
        share[[item for *where, item in hidden if where == [row, place]]] = 0
        codes = catalogue[items[row, place]]
        for level in range(NUM_LEVELS):
            under = (catalogue[:, :level] == codes[:level]).all(dim=1)
            for code in range(CODEBOOK_SIZE):
                teacher[row, place, level, code] = share[under & (catalogue[:, level] == code)].sum() / share[under].sum()
    return teacher


def test_the_teacher_learns_nothing_and_is_not_asked_without_a_weight(monkeypatch):
    model = hybrid().train()
    inputs, items, labels = taught_batch()
    model.objective = Objective(teacher_weight=0.5)
    model(**inputs, labels=labels, items=items).loss.backward()
    assert all(parameter.grad is None for parameter in model.dense.parameters())
    assert model.lm_head.weight.grad.abs().max() > 0
    model.objective = Objective()
    monkeypatch.setattr(model, "_dense_teacher", None)
    plain = generator(TOKENIZER)(**inputs, labels=labels).loss
    torch.testing.assert_close(model(**inputs, labels=labels, items=items).loss, plain)


def test_items_without_a_tower_or_without_labels_are_refused():
    model = generator(TOKENIZER)
    inputs, items, labels = taught_batch()
    with pytest.raises(ValueError, match="give labels too"):
        model(**inputs, items=items)
    model.objective = Objective(teacher_weight=0.5)
    with pytest.raises(ValueError, match="without a dense tower has no teacher in itself"):
        model(**inputs, labels=labels, items=items)


def test_the_teacher_knows_the_catalogue_of_a_constrained_softmax():
    model = hybrid(constrained_softmax=True)
    inputs, items, labels = taught_batch()
    model.objective = Objective(teacher_weight=0.5)
    loss = model(**inputs, labels=labels, items=items).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)
