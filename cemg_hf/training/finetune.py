"""The `finetune` stage: train the generator on the code sequences of the training interactions."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import nn
from transformers import AutoConfig, T5ForConditionalGeneration

from ..artefacts import Manifest, fingerprint, fingerprint_path, is_current, write_folder, write_json
from ..data import PreparedDataset
from ..data.collators import TrainingWindows, WindowCollator
from ..errors import CEMGError
from ..evaluation.metrics import ranking_metrics
from ..evaluation.report import plot_training_curve
from ..models.cemg import CEMGConfig, CEMGForConditionalGeneration, CEMGTokenizer
from .loading import open_tokenizer
from .loop import LoopConfig, train
from .ranking import rank_histories

logger = logging.getLogger(__name__)


@dataclass
class GeneratorConfig:
    """Size of the T5 and how it reads a history. The defaults are TIGER's network."""

    init_from: str | None = field(
        default=None, metadata={"help": "A pretrained T5 (folder or Hub id) to start from; its sizes win over those below."}
    )
    d_model: int = field(default=128, metadata={"help": "Width of the network."})
    d_kv: int = field(default=64, metadata={"help": "Width of one attention head."})
    d_ff: int = field(default=1024, metadata={"help": "Width of the feed-forward layers."})
    num_heads: int = field(default=6, metadata={"help": "Attention heads."})
    num_layers: int = field(default=4, metadata={"help": "Encoder layers."})
    num_decoder_layers: int = field(default=4, metadata={"help": "Decoder layers."})
    dropout_rate: float = field(default=0.1, metadata={"help": "Dropout everywhere in the T5."})
    feed_forward_proj: str = field(default="relu", metadata={"help": "relu (T5) or gated-gelu (T5 v1.1)."})
    item_causal: bool = field(
        default=True, metadata={"help": "Train all prefixes of a sequence in one pass; false: one sample per prefix (TIGER)."}
    )
    max_history: int = field(default=20, metadata={"help": "Items of a history the model reads, the most recent ones."})
    codes_from_codebooks: bool = field(
        default=True, metadata={"help": "Start the code tokens' embeddings as the RQ-VAE's code vectors, so that near codes start near."}
    )


@dataclass
class LoraSettings:
    """Low-rank adapters on the attention of a pretrained T5; the rows of the new tokens are trained in full."""

    rank: int = field(default=16, metadata={"help": "Rank of the adapters."})
    alpha: int = field(default=32, metadata={"help": "Scale of the adapters (alpha / rank)."})
    dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapters."})
    target_modules: list[str] = field(
        default_factory=lambda: ["q", "k", "v", "o"], metadata={"help": "T5 projections that get an adapter."}
    )


@dataclass
class FinetuneConfig:
    """Everything the `finetune` stage needs besides its inputs."""

    generator: GeneratorConfig = field(default_factory=GeneratorConfig, metadata={"help": "The network."})
    loop: LoopConfig = field(default_factory=LoopConfig, metadata={"help": "Optimisation, checkpoints, early stopping, trackers."})
    lora: LoraSettings | None = field(default=None, metadata={"help": "Train adapters instead of all weights (needs generator.init_from)."})
    window_stride: int | None = field(
        default=None, metadata={"help": "New targets per further window of a long history (default: max_history // 2)."}
    )
    validation_users: int = field(default=5000, metadata={"help": "Users ranked at every validation, drawn once by the seed; 0 = all."})
    validation_beams: int = field(default=20, metadata={"help": "Beams of the validation search."})
    validation_excludes_history: bool = field(default=True, metadata={"help": "Rank validation targets among items outside the history."})


def finetune(config: FinetuneConfig, dataset: str | Path, tokenizer: str | Path, output: str | Path, seed: int = 42) -> Path:
    """Train a generator and write it, with its tokenizer, as the folder that goes to the Hub.

    Under `accelerate launch` every process calls this; the main process writes. A killed run continues from its last checkpoint
    (kept beside `output` until the run ends) when it is called again with the same settings.

    Args:
        config: settings.
        dataset: folder written by `prepare`.
        tokenizer: folder written by `tokenize`.
        output: the model folder to write.
        seed: seed of initialisation, sample order and dropout.

    Raises:
        CEMGError: inputs that do not belong together, LoRA without a pretrained T5, or the time budget ended before the training.
    """
    output = Path(output)
    manifest = Manifest(
        stage="finetune",
        settings=asdict(config),
        inputs={"dataset": fingerprint_path(dataset), "tokenizer": fingerprint_path(tokenizer)},
        seed=seed,
    )
    if is_current(output, manifest):
        logger.info("finetune: %s is up to date", output)
        return output
    if config.lora is not None and config.generator.init_from is None:
        raise CEMGError("finetune.lora: adapters need a pretrained T5; set finetune.generator.init_from to its folder or Hub id")

    data = PreparedDataset.load(dataset)
    item_tokenizer = load_tokenizer(tokenizer, data)
    set_seed(seed)
    model = build_generator(config.generator, item_tokenizer)
    trained: nn.Module = add_adapters(model, config.lora) if config.lora is not None else model
    logger.info(
        "finetune: %s parameters, %s trained",
        f"{sum(p.numel() for p in model.parameters()):,}",
        f"{sum(p.numel() for p in trained.parameters() if p.requires_grad):,}",
    )

    windows = TrainingWindows(data.train_sequences(), model.config.max_history, model.config.item_causal, config.window_stride)
    assert model.tokenizer is not None
    collate = WindowCollator(windows, model.tokenizer.item_tokens, model.config.bos_token_id, model.config.item_causal)
    work = output.with_name(f".{output.name}.training")
    report = train(
        trained,
        config=config.loop,
        dataset=windows,
        collate_fn=collate,
        lengths=windows.size,
        evaluate=Validation(model, data, config, seed),
        folder=work,
        seed=seed,
        identity=fingerprint(json.dumps(manifest.as_dict()["inputs"], sort_keys=True)),
    )
    if report.stopped_by == "time_budget":
        raise CEMGError(
            f"finetune: time budget of {config.loop.time_budget_s} s used up; run the same command again to continue from {work}"
        )
    state = PartialState()
    if state.is_main_process:
        final = trained.merge_and_unload() if config.lora is not None else model  # type: ignore[operator]
        with write_folder(output, manifest) as scratch:
            final.save_pretrained(scratch)
            write_json(scratch / "training_report.json", asdict(report) | {"targets": windows.num_targets, "windows": len(windows)})
            plot_training_curve(report.history, scratch / "training_curve.png")
            if (work / "training_log.jsonl").is_file():
                shutil.copyfile(work / "training_log.jsonl", scratch / "training_log.jsonl")
        shutil.rmtree(work, ignore_errors=True)
    state.wait_for_everyone()
    return output


def load_tokenizer(folder: str | Path, data: PreparedDataset) -> CEMGTokenizer:
    """The item tokenizer of a data set.

    Raises:
        CEMGError: no tokenizer folder, or one made from another catalogue.
    """
    tokenizer = open_tokenizer(folder)
    if tokenizer.item_ids != data.item_ids:
        raise CEMGError(
            f"{folder}: holds {len(tokenizer.item_ids)} items, other than the {data.num_items} of {data.folder}; "
            "run `cemg tokenize` on this data set"
        )
    return tokenizer


def build_generator(config: GeneratorConfig, tokenizer: CEMGTokenizer) -> CEMGForConditionalGeneration:
    """A fresh generator for a catalogue, from scratch or from a pretrained T5.

    Raises:
        CEMGError: `init_from` cannot be loaded, or is no T5.
    """
    if config.init_from is not None:
        source = os.path.expandvars(config.init_from)
        try:
            found = AutoConfig.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise CEMGError(f"finetune.generator.init_from: cannot load {source} ({str(error).splitlines()[0]})") from error
        if found.model_type != "t5":
            raise CEMGError(f"finetune.generator.init_from: {source} is a {found.model_type} model; give the folder or Hub id of a T5")
        backbone = T5ForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
        relaid = tokenizer.with_layout(base_vocab_size=backbone.config.vocab_size, max_history=config.max_history)
        return CEMGForConditionalGeneration.from_t5(backbone, relaid, item_causal=config.item_causal, dropout_rate=config.dropout_rate)
    relaid = tokenizer.with_layout(base_vocab_size=2, max_history=config.max_history)
    network = {key: value for key, value in asdict(config).items() if key not in ("init_from", "max_history", "codes_from_codebooks")}
    model = CEMGForConditionalGeneration(CEMGConfig(**network, **relaid.geometry()))
    if config.codes_from_codebooks and relaid.rqvae is not None:
        embed_codebooks(model, relaid.rqvae.codebooks)
    model.set_tokenizer(relaid)
    return model


@torch.no_grad()
def embed_codebooks(model: CEMGForConditionalGeneration, codebooks: torch.Tensor) -> None:
    """Start the embeddings of the code tokens as the code vectors (M, K, D) behind them, level by level at the scale they had.

    A level's vectors are centred and rotated to their principal axes, of which the first d_model are kept (all, where D is less),
    and spread over the whole width by one random rotation. The same rows are the output layer, so near codes start with near scores.
    """
    rows = model.get_input_embeddings().weight[model.config.first_code_id :].unflatten(0, codebooks.shape[:2])
    for level, vectors in enumerate(codebooks.float() - codebooks.float().mean(dim=1, keepdim=True)):
        axes = torch.linalg.svd(vectors, full_matrices=False)
        coordinates = (axes.U * axes.S)[:, : rows.shape[-1]]
        rotation = torch.linalg.qr(torch.randn(rows.shape[-1], coordinates.shape[-1], dtype=torch.float64)).Q.float()
        spread = coordinates @ rotation.T
        rows[level] = spread * (rows[level].square().mean() / spread.square().mean().clamp_min(1e-12)).sqrt()


def add_adapters(model: CEMGForConditionalGeneration, settings: LoraSettings) -> nn.Module:
    """LoRA on the attention, and every row of the embedding (and of an untied head) that the T5 did not have before."""
    from peft import LoraConfig, TaskType, get_peft_model

    new_rows = list(range(model.config.base_vocab_size, model.config.vocab_size))
    matrices = ["shared"] if model.config.tie_lm_head else ["shared", "lm_head"]
    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_2_SEQ_LM,
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=settings.target_modules,
            modules_to_save=["recency_bias"] if model.config.item_causal else None,
            trainable_token_indices=dict.fromkeys(matrices, new_rows),
        ),
    )


class Validation:
    """HR and NDCG on the validation targets of a fixed draw of users.

    It ranks with the generator itself, whose weights are those of whatever wraps it (adapters, data parallelism).

    Raises:
        CEMGError: nobody to validate on, or too few beams for NDCG@10.
    """

    def __init__(self, generator: CEMGForConditionalGeneration, data: PreparedDataset, config: FinetuneConfig, seed: int) -> None:
        self.generator = generator
        if config.validation_beams < 10:
            raise CEMGError(f"finetune.validation_beams: {config.validation_beams} beams cannot give NDCG@10; set at least 10")
        cases = data.evaluation_cases("validation")
        if len(cases) == 0:
            raise CEMGError(f"{data.folder}: nobody has the three interactions that validation needs; give longer histories")
        chosen = np.arange(len(cases))
        if 0 < config.validation_users < len(cases):
            chosen = np.sort(np.random.default_rng(seed).choice(len(cases), config.validation_users, replace=False))
        self.histories = cases.histories.take(chosen)
        self.targets = cases.targets[chosen]
        self.num_beams = config.validation_beams
        self.exclude_history = config.validation_excludes_history

    def __call__(self, model: nn.Module) -> dict[str, float]:
        width = min(20, self.num_beams)
        ranked, _ = rank_histories(
            self.generator,
            self.histories,
            width,
            num_beams=self.num_beams,
            exclude_history=self.exclude_history,
            progress="validation",
        )
        metrics = ranking_metrics(ranked, self.targets, ks=sorted({10, width}))
        return {name: value for name, value in metrics.items() if value is not None}
