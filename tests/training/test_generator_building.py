"""What `finetune` trains: generators from scratch or from a T5, adapters and the rows of the new tokens, and how it validates them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import AutoModel, BertConfig, T5Config, T5ForConditionalGeneration

from cemg_hf import CEMGRQVAE, CEMGError, CEMGForConditionalGeneration, CEMGRQVAEConfig, CEMGTokenizer
from cemg_hf.data import PreparedDataset, Ragged
from cemg_hf.training.finetune import (
    FinetuneConfig,
    GeneratorConfig,
    LoraSettings,
    _rank_by_codes,
    add_adapters,
    build_generator,
    load_tokenizer,
    training_batches,
)
from cemg_hf.training.loop import LoopConfig, train
from cemg_hf.training.validation import Validation

NUM_ITEMS, NUM_LEVELS, CODEBOOK_SIZE, BASE = 40, 3, 4, 30
ITEM_IDS = [f"item{index}" for index in range(NUM_ITEMS)]
HISTORIES = [["item1", "item2", "item3"], [], ["item7"]]
SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 1, "dropout_rate": 0.0}


def item_tokenizer(seed: int = 0, num_items: int = NUM_ITEMS) -> CEMGTokenizer:
    drawn = torch.randperm(CODEBOOK_SIZE**NUM_LEVELS, generator=torch.Generator().manual_seed(seed))[:num_items]
    codes = torch.stack([drawn // 16, drawn // 4 % 4, drawn % 4], dim=1)
    return CEMGTokenizer(item_ids=ITEM_IDS[:num_items], item_codes=codes, num_levels=NUM_LEVELS, codebook_size=CODEBOOK_SIZE)


@pytest.fixture(scope="module", params=["tied", "untied"])
def t5_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small T5 as published: v1.0 with one matrix of tokens, v1.1 with a head of its own."""
    torch.manual_seed(5)
    style = {} if request.param == "tied" else {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    backbone = T5ForConditionalGeneration(T5Config(vocab_size=BASE, decoder_start_token_id=0, **SIZES, **style))
    if request.param == "untied":
        backbone.lm_head.weight = torch.nn.Parameter(torch.randn(BASE, 32) * 0.2)
    folder = tmp_path_factory.mktemp(f"t5-{request.param}")
    backbone.save_pretrained(folder)
    return folder


def prepared(sequences: list[list[int]], item_ids: list[str] = ITEM_IDS) -> PreparedDataset:
    return PreparedDataset(Path("shop"), [f"user{row}" for row in range(len(sequences))], item_ids, Ragged.from_lists(sequences))


def train_steps(trained: torch.nn.Module, generator: CEMGForConditionalGeneration, steps: int = 5) -> None:
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=0.03, weight_decay=0.1)
    inputs = generator.tokenizer([["item1", "item2"], ["item3", "item4"]], return_tensors="pt")
    labels = generator.tokenizer.item_tokens[torch.tensor([[1, 2, 9], [3, 4, 8]])].flatten(1)
    for _ in range(steps):
        loss = trained(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_from_scratch_takes_the_settings():
    tokenizer = item_tokenizer()
    model = build_generator(GeneratorConfig(**SIZES, item_causal=False, max_history=7, feed_forward_proj="gated-gelu"), tokenizer)
    assert {name: getattr(model.config, name) for name in SIZES} == SIZES
    assert (model.config.item_causal, model.config.max_history, model.config.is_gated_act) == (False, 7, True)
    assert (model.config.base_vocab_size, model.tokenizer.max_history) == (2, 7)
    assert model.config.catalogue_fingerprint == tokenizer.catalogue_fingerprint
    assert len(model.recommend(HISTORIES, k=3)[1]) == 3


def test_from_a_pretrained_t5(t5_folder):
    config = GeneratorConfig(init_from=str(t5_folder), dropout_rate=0.3, item_causal=False, max_history=6)
    model = build_generator(config, item_tokenizer())
    backbone = T5ForConditionalGeneration.from_pretrained(t5_folder)
    assert (model.config.base_vocab_size, model.config.d_model, model.config.dropout_rate) == (BASE, 32, 0.3)
    assert (model.config.item_causal, model.config.max_history) == (False, 6)
    for name, value in backbone.state_dict().items():
        assert torch.equal(model.state_dict()[name][: len(value)], value), name


def test_init_from_an_environment_variable(t5_folder, monkeypatch):
    monkeypatch.setenv("T5_FOLDER", str(t5_folder.parent))
    model = build_generator(GeneratorConfig(init_from=f"$T5_FOLDER/{t5_folder.name}"), item_tokenizer())
    assert model.config.base_vocab_size == BASE


def test_init_from_something_else_is_refused(tmp_path):
    with pytest.raises(CEMGError, match=r"init_from: cannot load .*nothing") as caught:
        build_generator(GeneratorConfig(init_from=str(tmp_path / "nothing")), item_tokenizer())
    assert "\n" not in str(caught.value)
    BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(CEMGError, match="is a bert model"):
        build_generator(GeneratorConfig(init_from=str(tmp_path)), item_tokenizer())
    build_generator(GeneratorConfig(**SIZES), item_tokenizer()).save_pretrained(tmp_path)
    with pytest.raises(CEMGError, match="is a cemg model"):
        build_generator(GeneratorConfig(init_from=str(tmp_path)), item_tokenizer())


def test_adapters_train_low_rank_updates_and_the_new_rows_only(t5_folder):
    model = build_generator(GeneratorConfig(init_from=str(t5_folder), dropout_rate=0.0), item_tokenizer())
    before = copy.deepcopy(model.state_dict())
    expected = model.recommend(HISTORIES, k=NUM_ITEMS)
    untied = not model.config.tie_lm_head
    trained = add_adapters(model, LoraSettings(rank=2, dropout=0.0))
    assert model.recommend(HISTORIES, k=NUM_ITEMS) == expected  # adapters start as nothing

    trainable = {name: parameter for name, parameter in trained.named_parameters() if parameter.requires_grad}
    rows = {name: parameter for name, parameter in trainable.items() if "trainable_tokens_delta" in name}
    assert all("lora_" in name or "recency_bias" in name for name in trainable.keys() - rows.keys())
    assert sorted(name.split(".")[2] for name in rows) == (["lm_head", "shared"] if untied else ["shared"])
    assert all(parameter.shape == (model.config.vocab_size - BASE, 32) for parameter in rows.values())
    assert len({id(parameter) for parameter in trained.parameters() if parameter.requires_grad}) == len(trainable)

    trained.train()
    train_steps(trained, model)
    trained.eval()
    after = {name: module.weight.detach() for name, module in (("shared", model.shared), ("lm_head", model.lm_head))}
    for name, weight in after.items():
        assert torch.equal(weight[:BASE], before[f"{name}.weight"][:BASE])
        assert ((weight[BASE:] - before[f"{name}.weight"][BASE:]).abs().amax(dim=1) > 1e-3).any()
    assert torch.equal(after["shared"], after["lm_head"]) is not untied
    for stack in (model.encoder, model.decoder):
        assert torch.equal(stack.embed_tokens.weight, after["shared"])
    assert model.recommend(HISTORIES, k=NUM_ITEMS) != expected


def test_the_head_uses_the_trained_rows_in_loss_and_ranking(t5_folder):
    """Rows of a tied head that stayed behind would train the embedding and score with the old head."""
    model = build_generator(GeneratorConfig(init_from=str(t5_folder), dropout_rate=0.0), item_tokenizer())
    trained = add_adapters(model, LoraSettings(rank=2, dropout=0.0)).eval()
    inputs = model.tokenizer([["item1"]], return_tensors="pt")
    labels = model.tokenizer.item_tokens[5].unsqueeze(0)
    loss = trained(**inputs, labels=labels).loss
    loss.backward()
    rows = {name.split(".")[2]: p for name, p in trained.named_parameters() if "trainable_tokens_delta" in name}
    head_rows = rows.get("lm_head", rows["shared"])
    # A code of the last level that occurs in neither history nor target is reached through the head alone.
    used = set(model.tokenizer.item_codes[[1, 5], -1].tolist())
    last_level = model.config.first_code_id + (NUM_LEVELS - 1) * CODEBOOK_SIZE - BASE
    bystander = last_level + min(set(range(CODEBOOK_SIZE)) - used)
    assert head_rows.grad[bystander].abs().max() > 0
    with torch.no_grad():
        head_rows[bystander] += 3.0
    shifted = trained(**inputs, labels=labels)
    assert float(shifted.loss.detach()) != pytest.approx(float(loss.detach()), abs=1e-3)
    decoder_input_ids = torch.cat([torch.zeros(1, 1, dtype=torch.int64), labels[:, :-1]], dim=1)
    full = trained(**inputs, decoder_input_ids=decoder_input_ids).logits
    first = model.config.first_code_id + (NUM_LEVELS - 1) * CODEBOOK_SIZE
    assert torch.allclose(shifted.logits[:, -1], full[:, -1, first : first + CODEBOOK_SIZE], atol=1e-5)
    best = model.recommend(["item1"], k=NUM_ITEMS)
    merged = trained.merge_and_unload().eval()
    assert [item.item_id for item in merged.recommend(["item1"], k=NUM_ITEMS)] == [item.item_id for item in best]


def test_merged_model_ranks_the_same_and_needs_no_peft(t5_folder, tmp_path):
    model = build_generator(GeneratorConfig(init_from=str(t5_folder), dropout_rate=0.0), item_tokenizer())
    trained = add_adapters(model, LoraSettings(rank=2, dropout=0.0)).train()
    train_steps(trained, model)
    trained.eval()
    expected = model.recommend(HISTORIES, k=NUM_ITEMS)
    merged = trained.merge_and_unload()
    assert type(merged) is CEMGForConditionalGeneration
    merged.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for found in (merged.recommend(HISTORIES, k=NUM_ITEMS), loaded.recommend(HISTORIES, k=NUM_ITEMS)):
        for row, wanted in zip(found, expected, strict=True):
            assert [item.item_id for item in row] == [item.item_id for item in wanted]
            assert [item.score for item in row] == pytest.approx([item.score for item in wanted], abs=1e-5)
    assert not any("lora" in name or "token_adapter" in name for name in loaded.state_dict())
    assert not list(tmp_path.glob("adapter*"))


@pytest.mark.slow
def test_merged_model_loads_where_peft_is_not_installed(t5_folder, tmp_path):
    model = build_generator(GeneratorConfig(init_from=str(t5_folder)), item_tokenizer())
    merged = add_adapters(model, LoraSettings(rank=2)).merge_and_unload()
    merged.save_pretrained(tmp_path)
    program = (
        "import sys; sys.modules['peft'] = None; import cemg_hf; from transformers import AutoModel;"
        "print(AutoModel.from_pretrained(sys.argv[1]).recommend(['item1'], k=1)[0].item_id)"
    )
    run = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split()[-1] == merged.eval().recommend(["item1"], k=1)[0].item_id


def test_load_tokenizer_checks_what_it_belongs_to(tmp_path):
    data = prepared([[0, 1, 2]])
    with pytest.raises(CEMGError, match="not a tokenizer folder"):
        load_tokenizer(tmp_path, data)
    item_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path, data).item_ids == ITEM_IDS
    with pytest.raises(CEMGError, match="holds 40 items, other than the 39 of shop"):
        load_tokenizer(tmp_path, prepared([[0, 1, 2]], ITEM_IDS[:-1]))
    (tmp_path / "item_ids.json").write_text('["item0"]')
    with pytest.raises(CEMGError, match=r"must be 1 × 3"):
        load_tokenizer(tmp_path, data)


def test_validation_measures_the_lists_that_the_generator_recommends():
    rng = np.random.default_rng(0)
    data = prepared([rng.choice(NUM_ITEMS, size, replace=False).tolist() for size in rng.integers(1, 9, 50)])
    model = build_generator(GeneratorConfig(**SIZES), item_tokenizer()).eval()
    cases = data.evaluation_cases("validation")
    metrics = Validation(partial(_rank_by_codes, model, FinetuneConfig()), data, 0, seed=1)(model)
    histories = [[ITEM_IDS[item] for item in row] for row in cases.histories.to_lists()]
    hits = [
        ITEM_IDS[target] in [item.item_id for item in row]
        for target, row in zip(cases.targets, model.recommend(histories, k=10, num_beams=20, exclude_history=True), strict=True)
    ]
    assert metrics["hr@10"] == pytest.approx(np.mean(hits))
    assert metrics.keys() == {"hr@10", "ndcg@10", "mrr@10", "hr@20", "ndcg@20", "mrr@20"}
    few = FinetuneConfig(validation_beams=10)
    assert Validation(partial(_rank_by_codes, model, few), data, 0, seed=1)(model).keys() == {"hr@10", "ndcg@10", "mrr@10"}


def test_validation_that_cannot_be_done_is_refused():
    with pytest.raises(CEMGError, match="validation_beams: 5 beams"):
        FinetuneConfig(validation_beams=5)


@pytest.mark.parametrize("latent_dim", [5, 32, 48])
def test_code_embeddings_start_with_the_geometry_of_the_codebooks(latent_dim: int) -> None:
    config = CEMGRQVAEConfig(
        modality_dims={"text": 4}, dimension=4, num_levels=NUM_LEVELS, codebook_size=CODEBOOK_SIZE, hidden_dims=[4], latent_dim=latent_dim
    )
    rqvae = CEMGRQVAE(config)
    for level in range(NUM_LEVELS):
        rqvae.set_codes(level, torch.randn(CODEBOOK_SIZE, latent_dim) * 0.1**level + 7)
    bare = item_tokenizer()
    tokenizer = CEMGTokenizer(
        item_ids=bare.item_ids, item_codes=bare.item_codes, num_levels=NUM_LEVELS, codebook_size=CODEBOOK_SIZE, rqvae=rqvae
    )
    model = build_generator(GeneratorConfig(**SIZES), tokenizer)
    rows = model.lm_head.weight[model.config.first_code_id :].unflatten(0, (NUM_LEVELS, CODEBOOK_SIZE))
    for level in range(NUM_LEVELS):
        ratio = torch.pdist(rows[level].detach()) / torch.pdist(rqvae.codebooks[level])
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=0)
        assert 0.5 < float(rows[level].detach().square().mean()) < 2  # the scale of T5's own start
    plain = build_generator(GeneratorConfig(**SIZES, codes_from_codebooks=False), tokenizer)
    assert not torch.equal(plain.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("item_causal", [True, False], ids=["item-causal", "bidirectional"])
def test_a_compiled_generator_is_one_graph_for_all_lengths_and_learns_the_same(
    item_causal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = CompileCounter()
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **settings: compiled(module, backend=graphs))
    data = prepared([list(range(first, first + 3 + first % 7)) for first in range(24)])
    losses = {}
    for compile in (False, True):
        loop = LoopConfig(epochs=1, batch_size=5, compile=compile, log_every_steps=1, metric_for_best="")
        config = FinetuneConfig(GeneratorConfig(**SIZES, item_causal=item_causal, max_history=8), loop)
        torch.manual_seed(3)
        model = build_generator(config.generator, item_tokenizer())
        windows, collate = training_batches(config, model, data, model.tokenizer.item_codes.unsqueeze(0), seed=1)
        report = train(
            model, config=loop, dataset=windows, collate_fn=collate, lengths=windows.size, folder=tmp_path / str(compile), seed=1
        )
        assert report.steps > 4
        log = (tmp_path / str(compile) / "training_log.jsonl").read_text().splitlines()
        losses[compile] = [row["loss"] for row in map(json.loads, log) if row["event"] == "step"]
    assert graphs.frame_count == 1
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
