"""`finetune` with a dense tower: trained first, left as it is, weighed on validation, and part of what a killed run continues with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from shop_samples import ITEMS, walks, write_dataset

from cemg_hf import CEMGForConditionalGeneration, CEMGTokenizer
from cemg_hf.data import PreparedDataset
from cemg_hf.errors import CEMGError
from cemg_hf.evaluation.metrics import ranking_metrics
from cemg_hf.training import finetune as finetune_module
from cemg_hf.training.finetune import DENSE_WEIGHTS, FinetuneConfig, GeneratorConfig, build_generator, finetune, try_dense_weights
from cemg_hf.training.loop import LoopConfig
from cemg_hf.training.objective import ObjectiveConfig
from cemg_hf.training.ranking import hybrid_candidates, rank_histories
from cemg_hf.training.sequential import SequentialConfig

SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1, "max_history": 6}
CONFIG = FinetuneConfig(
    generator=GeneratorConfig(**SIZES),
    loop=LoopConfig(epochs=2, batch_size=32, learning_rate=0.01, eval_every=1),
    validation_beams=10,
    objective=ObjectiveConfig(teacher_weight=0.4, teacher_temperature=1.5),
    dense=SequentialConfig(
        "sasrec",
        {"hidden_size": 16, "dropout": 0.1, "num_negatives": 32},
        LoopConfig(epochs=3, batch_size=32, learning_rate=0.02, eval_every=3),
        content=True,
    ),
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dataset` and `tokenizer`, random codes with content vectors."""
    folder = tmp_path_factory.mktemp("finetune")
    data = write_dataset(folder / "dataset", walks())
    codes = torch.stack([torch.arange(ITEMS) // 6, torch.arange(ITEMS) % 6], dim=1)
    vectors = torch.randn(ITEMS, 5, generator=torch.Generator().manual_seed(0))
    tokenizer = CEMGTokenizer(item_ids=data.item_ids, item_codes=codes, num_levels=2, codebook_size=8, item_vectors=vectors)
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def finished(shop: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The model folder, and the weights of the tower as `add_tower` found it."""
    before: dict[str, torch.Tensor] = {}
    original = finetune_module.add_tower

    def remembered(model: CEMGForConditionalGeneration, *arguments: Any) -> None:
        original(model, *arguments)
        assert model.dense is not None
        assert not any(parameter.requires_grad for parameter in model.dense.parameters())
        before.update({name: value.clone() for name, value in model.dense.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune_module, "add_tower", remembered)
        finetune(CONFIG, shop / "dataset", shop / "tokenizer", shop / "model", seed=1)
    return shop / "model", before


def test_the_folder_holds_both_halves_and_the_weight_that_validation_chose(finished: tuple[Path, Any], shop: Path) -> None:
    folder, _ = finished
    report = json.loads((folder / "training_report.json").read_text())
    assert report["dense"]["best_metrics"].keys() >= {"ndcg@10", "hr@10"}
    assert report["seconds"] >= report["dense"]["seconds"] > 0
    weights = {float(weight): metrics for weight, metrics in report["dense_weights"].items()}
    assert tuple(weights) == DENSE_WEIGHTS
    model = CEMGForConditionalGeneration.from_pretrained(folder)
    assert weights[model.config.dense_weight]["ndcg@10"] == max(metrics["ndcg@10"] for metrics in weights.values())
    assert model.config.dense["content_dim"] == 5
    assert model.config.dense["max_history"] == SIZES["max_history"]
    data = PreparedDataset.load(shop / "dataset")
    cases = data.evaluation_cases("validation")
    for weight in (0.0, model.config.dense_weight, 1.0):
        ranked = rank_histories(model, cases.histories, 10, exclude_history=True, dense_weight=weight)[0]
        assert ranking_metrics(ranked, cases.targets, (10,))["ndcg@10"] == pytest.approx(weights[weight]["ndcg@10"], abs=0.02)
    assert report["best_metrics"]["ndcg@10"] == pytest.approx(weights[0.0]["ndcg@10"], abs=1e-6)  # epochs are judged by the codes alone
    assert not list(folder.parent.glob(".model*"))


def test_the_tower_is_what_it_was(finished: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, before = finished
    stored = load_file(folder / "model.safetensors")
    assert before
    for name, value in before.items():
        assert torch.equal(stored[f"dense.{name}"], value), name


def test_a_current_folder_is_left_alone(finished: tuple[Path, Any], shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune_module, "add_tower", None)
    assert finetune(CONFIG, shop / "dataset", shop / "tokenizer", shop / "model", seed=1) == finished[0]


def killed_at(evaluation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next training of a generator ends there as by a kill; one after that goes on to its end."""
    validate, calls = finetune_module.Validation.__call__, []

    def fail_once(self: Any, model: Any) -> dict[str, float]:
        if isinstance(model, CEMGForConditionalGeneration):
            calls.append(1)
            if len(calls) == evaluation:
                raise MemoryError("killed")
        return validate(self, model)

    monkeypatch.setattr(finetune_module.Validation, "__call__", fail_once)


def test_a_killed_run_continues_to_the_same_model_and_does_not_train_the_tower_twice(
    finished: tuple[Path, Any], shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(2, monkeypatch)
    arguments = (CONFIG, shop / "dataset", shop / "tokenizer", tmp_path / "model", 1)
    with pytest.raises(MemoryError):
        finetune(*arguments)
    assert not (tmp_path / "model").exists()
    manifest = tmp_path / ".model.dense" / "manifest.json"
    written, seen = manifest.stat().st_mtime_ns, []
    original = finetune_module.try_dense_weights

    def look(*arguments: Any) -> Any:
        seen.append(manifest.stat().st_mtime_ns)
        return original(*arguments)

    monkeypatch.setattr(finetune_module, "try_dense_weights", look)
    finetune(*arguments)
    assert seen == [written]
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (finished[0] / "model.safetensors").read_bytes()
    config, expected = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "model", finished[0]))
    assert config == expected


def test_a_killed_run_does_not_continue_with_another_tower(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CONFIG.dense is not None
    killed_at(2, monkeypatch)
    arguments = (shop / "dataset", shop / "tokenizer", tmp_path / "model", 1)
    with pytest.raises(MemoryError):
        finetune(CONFIG, *arguments)
    other = replace(CONFIG, dense=replace(CONFIG.dense, settings=CONFIG.dense.settings | {"loss": "full"}))
    with pytest.raises(CEMGError):
        finetune(other, *arguments)


def test_weights_are_tried_from_one_reading_of_the_histories(finished: tuple[Path, Any], shop: Path) -> None:
    model = CEMGForConditionalGeneration.from_pretrained(finished[0])
    cases = PreparedDataset.load(shop / "dataset").evaluation_cases("validation")
    read = []
    original = model.hybrid_candidates
    model.hybrid_candidates = lambda **o: (read.append(len(o["input_ids"])), original(**o))[1]
    found = try_dense_weights(model, cases, CONFIG)
    assert sum(read) == len(cases)
    assert list(found) == list(DENSE_WEIGHTS)
    rows = np.concatenate([rows for rows, _ in hybrid_candidates(model, cases.histories, 10, batch_size=7, progress=None)])
    assert sorted(rows.tolist()) == list(range(len(cases)))


def test_settings_that_do_not_go_together_are_refused(shop: Path, tmp_path: Path) -> None:
    assert CONFIG.dense is not None
    with pytest.raises(CEMGError, match=r"finetune.dense.network: the tower is a sasrec, got 'gru4rec'"):
        FinetuneConfig(dense=SequentialConfig("gru4rec"))
    taught = ObjectiveConfig(teacher_weight=0.5)
    with pytest.raises(CEMGError, match=r"finetune.objective.teacher_weight: the dense tower is the teacher"):
        FinetuneConfig(objective=taught)
    with pytest.raises(CEMGError, match=r"set finetune.dense and generator.item_causal"):
        FinetuneConfig(objective=taught, dense=SequentialConfig(), generator=GeneratorConfig(item_causal=False))
    short = replace(CONFIG, dense=replace(CONFIG.dense, settings={"max_history": 5}))
    with pytest.raises(CEMGError, match=r"finetune.dense.settings.max_history: 5 is less than the generator's 6"):
        finetune(short, shop / "dataset", shop / "tokenizer", tmp_path / "model")
    assert FinetuneConfig(dense=SequentialConfig(), generator=GeneratorConfig(item_causal=False)).dense is not None


def test_a_tower_beside_a_generator_that_reads_both_ways(shop: Path, tmp_path: Path) -> None:
    """It does not teach, but joins the ranking."""
    assert CONFIG.dense is not None
    loop = replace(CONFIG.loop, epochs=1)
    config = replace(
        CONFIG,
        generator=GeneratorConfig(**SIZES, item_causal=False),
        objective=ObjectiveConfig(),
        loop=loop,
        dense=replace(CONFIG.dense, content=False, loop=replace(CONFIG.dense.loop, epochs=1, eval_every=1)),
    )
    finetune(config, shop / "dataset", shop / "tokenizer", tmp_path / "model", seed=1)
    model = CEMGForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert model.dense is not None
    assert len(model.recommend(["i1", "i2"], k=5, dense_weight=0.5)) == 5


def test_without_dense_there_is_no_tower_in_the_report(shop: Path) -> None:
    config = FinetuneConfig(generator=GeneratorConfig(**SIZES))
    model = build_generator(config.generator, CEMGTokenizer.from_pretrained(shop / "tokenizer"))
    assert model.dense is None
    assert model.config.dense_weight == 0


TOGETHER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:2]
from accelerate import PartialState
PartialState(cpu=True)
from test_finetune import CONFIG, finetune
finetune(CONFIG, *map(Path, sys.argv[2:]), seed=0)
"""


@pytest.mark.slow
def test_several_processes_train_the_tower_together(shop: Path, tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    folders = [Path(__file__).parent, shop / "dataset", shop / "tokenizer", tmp_path / "model"]
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *several, str(script), *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert CEMGForConditionalGeneration.from_pretrained(tmp_path / "model").dense is not None
