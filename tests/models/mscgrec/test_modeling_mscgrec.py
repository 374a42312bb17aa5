"""The generator over several streams: one set of scores whoever computes them, positions, missing streams, loading."""

from __future__ import annotations

import re

import pytest
import torch
from dense_samples import tower
from stream_samples import (
    HISTORIES,
    ITEMS,
    LEVELS,
    STREAMS,
    growing_stream_tokenizer,
    plain_scores,
    raw_vectors,
    stream_generator,
    stream_tokenizer,
)
from transformers import AutoModel, AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration, pipeline

from cemg_hf.models.cemg.modeling_cemg import items_before
from cemg_hf.models.mscgrec import MSCGRecForConditionalGeneration, MSCGRecTokenizer
from cemg_hf.training.loading import open_model, open_tokenizer

KINDS = pytest.mark.parametrize(
    ("item_causal", "dual_positions", "constrained_softmax"),
    [(True, True, True), (False, True, False), (True, False, False)],
    ids=["causal-dual-constrained", "bidirectional-dual", "causal-plain"],
)


@KINDS
def test_an_exhaustive_beam_ranks_by_plain_teacher_forcing(item_causal, dual_positions, constrained_softmax):
    model = stream_generator(item_causal=item_causal, dual_positions=dual_positions, constrained_softmax=constrained_softmax)
    for history, found in zip(HISTORIES, model.recommend(HISTORIES, k=ITEMS), strict=True):
        scores = plain_scores(model, history)
        assert sorted(item.item_id for item in found) == sorted(model.tokenizer.item_ids)
        assert [item.score for item in found] == pytest.approx(scores.sort(descending=True).values.tolist(), abs=1e-4)
        assert [item.score for item in found] == pytest.approx([float(scores[int(item.item_id[4:])]) for item in found], abs=1e-4)


@KINDS
@pytest.mark.parametrize("side", ["left", "right"])
def test_generate_rank_and_recommend_agree_wherever_the_padding_stands(item_causal, dual_positions, constrained_softmax, side):
    model = stream_generator(item_causal=item_causal, dual_positions=dual_positions, constrained_softmax=constrained_softmax)
    tokenizer = model.tokenizer
    inputs = tokenizer(HISTORIES, padding=True, padding_side=side, return_tensors="pt")
    out = model.generate(
        **inputs,
        num_beams=8,
        num_return_sequences=8,
        logits_processor=[model.prefix_constraint()],
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = model.recommend(HISTORIES, k=8, num_beams=8)
    ids = [tokenizer.decode_items(sequence) for sequence in out.sequences]
    assert ids == [[item.item_id] for row in found for item in row]
    assert out.sequences_scores.tolist() == pytest.approx([item.score for row in found for item in row], abs=1e-4)


@pytest.mark.parametrize("dual_positions", [True, False])
def test_a_pass_over_a_window_is_every_prefix_by_itself(dual_positions):
    model = stream_generator(dual_positions=dual_positions)
    tokenizer = model.tokenizer
    items = torch.tensor([1, 9, 4, 3])
    history = tokenizer.history_tokens[items[:-1]].flatten()
    start = torch.tensor([tokenizer.base_vocab_size])
    labels = tokenizer.item_tokens[items]
    with torch.no_grad():
        whole = model(input_ids=torch.cat([start, history])[None], labels=labels.flatten()[None]).logits.view(4, LEVELS, -1)
        for seen in range(4):
            prefix = torch.cat([start, history[: seen * model.config.tokens_per_item]])[None]
            alone = model(input_ids=prefix, labels=labels[seen : seen + 1]).logits[0]
            torch.testing.assert_close(whole[seen], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("constrained_softmax", [True, False])
def test_the_loss_and_its_gradient_are_finite_with_padding_and_missing_codes(constrained_softmax):
    model = stream_generator(constrained_softmax=constrained_softmax).train()
    tokenizer = model.tokenizer
    inputs = tokenizer([["item0", "item3", "item4"], ["item2"]], padding=True, return_tensors="pt")
    labels = torch.full((2, 4, LEVELS), -100)
    labels[0] = tokenizer.item_tokens[[0, 3, 4, 8]]
    labels[1, :2] = tokenizer.item_tokens[[2, 7]]
    loss = model(**inputs, labels=labels.flatten(1)).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is None or bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
    for name in ("item_distance", "slot_distance"):
        assert getattr(model.encoder, name).weight.grad.abs().sum() > 0
    rows = model.get_input_embeddings().weight.grad.abs().sum(dim=1)
    assert (rows[tokenizer.missing_tokens] > 0).all()


def test_dual_positions_are_distances_by_items_and_inside_an_item():
    model = stream_generator(item_causal=False)
    inputs = model.tokenizer(["item1", "item2"], return_tensors="pt")
    encoder, tokens = model.encoder, model.config.tokens_per_item
    bias = encoder._self_attention_mask(inputs["attention_mask"])[0]
    item = items_before(inputs["attention_mask"], tokens)[0].tolist()
    slot = [0] + 2 * list(range(tokens))
    by_item, by_slot = encoder.item_distance, encoder.slot_distance
    for query in range(len(slot)):
        for key in range(len(slot)):
            expected = by_item.weight[by_item.most + item[key] - item[query]] + by_slot.weight[by_slot.most + slot[key] - slot[query]]
            torch.testing.assert_close(bias[:, query, key], expected)
    assert not any("encoder" in name and "relative_attention_bias" in name for name, _ in model.named_parameters())
    assert any("decoder" in name and "relative_attention_bias" in name for name, _ in model.named_parameters())


def test_the_order_of_a_history_matters_by_its_dual_positions_alone():
    # Without a bias by age and without positions, a bidirectional encoder reads a set.
    model = stream_generator(item_causal=False)
    one, other = ["item1", "item2", "item6"], ["item6", "item1", "item2"]

    def scores(history):
        inputs = model.tokenizer([history], return_tensors="pt")
        return model.score_items(inputs["input_ids"], inputs["attention_mask"], torch.arange(ITEMS)[None])

    assert not torch.allclose(scores(one), scores(other), atol=1e-4)
    torch.nn.init.zeros_(model.encoder.item_distance.weight)
    torch.testing.assert_close(scores(one), scores(other), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dual_positions", [True, False])
def test_a_saved_model_ranks_the_same(tmp_path, dual_positions):
    model = stream_generator(dual_positions=dual_positions, constrained_softmax=True)
    expected = model.recommend(HISTORIES, k=10)
    model.save_pretrained(tmp_path)
    for load in (AutoModel.from_pretrained, AutoModelForSeq2SeqLM.from_pretrained, open_model):
        loaded = load(tmp_path)
        assert isinstance(loaded, MSCGRecForConditionalGeneration)
        assert loaded.config.dual_positions is dual_positions
        assert hasattr(loaded.encoder, "item_distance") is dual_positions
        assert loaded.eval().recommend(HISTORIES, k=10) == expected
    assert open_tokenizer(tmp_path).streams == STREAMS
    assert not list(tmp_path.glob("*.py"))
    task = pipeline("next-item-recommendation", model=str(tmp_path))
    assert [item["item_id"] for item in task(HISTORIES[0], top_k=10)] == [item.item_id for item in expected[0]]


def test_a_pipeline_takes_another_state_of_the_catalogue_from_a_folder(tmp_path):
    model = stream_generator(growing_stream_tokenizer())
    model.save_pretrained(tmp_path / "model")
    model.tokenizer.add_items(["new0"], raw_vectors(1))
    model.tokenizer.save_pretrained(tmp_path / "grown")
    task = pipeline("next-item-recommendation", model=str(tmp_path / "model"), tokenizer=str(tmp_path / "grown"), device="cpu")
    assert isinstance(task.tokenizer, MSCGRecTokenizer)
    found = task(["new0", "item1"], top_k=ITEMS + 1)
    expected = model.recommend(["new0", "item1"], k=ITEMS + 1)
    assert [item["item_id"] for item in found] == [item.item_id for item in expected]
    assert [item["score"] for item in found] == pytest.approx([item.score for item in expected], abs=1e-5)
    assert {item["item_id"] for item in found} == set(model.tokenizer.item_ids)
    assert all(model.tokenizer.decode_items(model.tokenizer.convert_tokens_to_ids(codes(item))) == [item["item_id"]] for item in found)


def codes(item: dict) -> list[str]:
    """The tokens of a recommendation of the pipeline."""
    return re.findall(r"<[^>]+>", item["codes"])


def test_a_model_of_other_streams_or_another_order_is_refused(tmp_path):
    model = stream_generator()
    with pytest.raises(ValueError, match="streams is"):
        model.set_tokenizer(stream_tokenizer(streams=STREAMS[:2]))
    with pytest.raises(ValueError, match=r"was trained to write collaborative codes.*or train with streams\.decoded=text"):
        model.set_tokenizer(model.tokenizer.with_layout(base_vocab_size=2, max_history=5, decoded="text"))
    with pytest.raises(ValueError, match="was trained on catalogue"):
        model.set_tokenizer(stream_tokenizer(seed=1))


def test_a_t5_keeps_its_own_positions():
    backbone = T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2))
    tokenizer = stream_tokenizer(base_vocab_size=20)
    model = MSCGRecForConditionalGeneration.from_t5(backbone, tokenizer).eval()
    assert not model.config.dual_positions
    torch.testing.assert_close(model.shared.weight[:20], backbone.shared.weight)
    assert len(model.recommend(["item1"], k=5)) == 5
    with pytest.raises(ValueError, match="set dual_positions=False"):
        MSCGRecForConditionalGeneration.from_t5(backbone, tokenizer, dual_positions=True)


# ---- new items ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constrained_softmax", [True, False])
def test_added_items_are_read_and_written_like_any_other_and_survive_saving(tmp_path, constrained_softmax):
    model = stream_generator(growing_stream_tokenizer(), constrained_softmax=constrained_softmax)
    tokenizer = model.tokenizer
    before = model.recommend(HISTORIES, k=ITEMS)
    tokenizer.add_items(["new0", "new1", "new2"], raw_vectors(3), {"image": torch.tensor([True, False, True])})
    histories = [*HISTORIES, ["new0", "item1", "new1"]]
    found = model.recommend(histories, k=ITEMS + 3)
    for history, row in zip(histories, found, strict=True):
        scores = dict(zip(tokenizer.item_ids, plain_scores(model, history).tolist(), strict=True))
        assert {item.item_id: item.score for item in row} == pytest.approx(scores, abs=1e-4)
    if not constrained_softmax:  # over all K codes a trained item's score does not depend on who else there is
        for old, row in zip(before, found, strict=False):
            kept = [item for item in row if not item.item_id.startswith("new")]
            assert [item.item_id for item in kept] == [item.item_id for item in old]
    model.save_pretrained(tmp_path)
    loaded = open_model(tmp_path).eval()
    assert loaded.recommend(histories, k=ITEMS + 3) == found
    few = loaded.recommend(histories, k=5, new_item_boost=1000.0)
    for row in few:
        assert {item.item_id for item in row[:3]} == {"new0", "new1", "new2"}
        assert {item.item_id for item in row} <= set(tokenizer.item_ids)
    with pytest.raises(ValueError, match="needs content vectors, and this tokenizer holds none"):
        loaded.recommend(histories, new_item_boost=0.0, new_item_dense=1.0)


# ---- a dense tower beside it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoded", STREAMS)
@pytest.mark.parametrize("weight", [0.4, 1.0])
def test_a_tower_reads_items_whatever_streams_their_tokens_show(tmp_path, decoded, weight):
    model = stream_generator(stream_tokenizer().with_layout(base_vocab_size=2, max_history=5, decoded=decoded))
    model.set_dense(tower(ITEMS), dense_weight=weight)
    histories = [["item1", "item3", "item0", "item4"], *HISTORIES]  # item3 shows no collaborative codes, item4 no picture, item0 nothing
    model.save_pretrained(tmp_path)
    loaded = open_model(tmp_path).eval()
    assert loaded.config.dense_weight == weight
    for history, row, alone in zip(
        histories, model.recommend(histories, k=ITEMS), [loaded.recommend(history, k=ITEMS) for history in histories], strict=True
    ):
        items = torch.tensor([[int(item[4:]) for item in history[-5:]]], dtype=torch.int64)
        vectors = model.dense.item_vectors()
        with torch.no_grad():
            dense = (model.dense.last_states(items, vectors) @ vectors.T).log_softmax(dim=1)[0]
        expected = dict(zip(model.tokenizer.item_ids, ((1 - weight) * plain_scores(model, history) + weight * dense).tolist(), strict=True))
        for found in (row, alone):
            assert {item.item_id: item.score for item in found} == pytest.approx(expected, abs=1e-4)


def test_a_tower_knows_nothing_of_items_that_came_after_it():
    model = stream_generator(growing_stream_tokenizer())
    model.set_dense(tower(ITEMS), dense_weight=0.5)
    before = model.dense_log_probs(torch.tensor([[1, 2]]))
    model.tokenizer.add_items(["new0", "new1"], raw_vectors(2))
    after = model.dense_log_probs(torch.tensor([[1, 2]]))
    assert (after[:, ITEMS:].amax(dim=1) < after[:, :ITEMS].amin(dim=1)).all()
    torch.testing.assert_close(after[:, :ITEMS].softmax(dim=1), before.softmax(dim=1))
    ranked = model.recommend(["new0", "item3"], k=ITEMS + 2)
    assert sorted(item.item_id for item in ranked) == sorted(model.tokenizer.item_ids)
