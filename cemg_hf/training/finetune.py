"""The `finetune` stage: train the generator on the code sequences of the training interactions."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import nn
from transformers import AutoConfig, T5ForConditionalGeneration

from ..artefacts import Manifest, fingerprint_path, is_current, one_writer, write_folder, write_json
from ..data import PreparedDataset, Ragged
from ..data.augmentation import Augmentation
from ..data.collators import TrainingWindows, WindowCollator
from ..data.splits import EvaluationCases
from ..errors import CEMGError
from ..evaluation.metrics import ranking_metrics
from ..evaluation.report import plot_training_curve
from ..features.store import CONTENT_MODALITIES
from ..models.cemg import CEMGForConditionalGeneration, CEMGTokenizer
from ..models.mscgrec import MSCGRecForConditionalGeneration, MSCGRecTokenizer
from ..models.sasrec import SASRecForNextItem
from .dropout import use_byte_dropout
from .identifiers import load_identifiers
from .loading import open_tokenizer
from .loop import LoopConfig, train
from .loop_config import run_identity
from .objective import ObjectiveConfig
from .ranking import hybrid_candidates, rank_histories
from .sequential import SequentialConfig, train_sequential
from .streams import StreamsConfig, load_codebooks
from .validation import WIDTH, Validation

logger = logging.getLogger(__name__)

COMPILED_LENGTHS = 8
"""A compiled network reads histories of lengths that are multiples of this: tensor cores like them, and a
bidirectional network has fewer sizes to replay."""
DENSE_WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))
"""Weights of the dense score that are tried on the validation users."""


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
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig, metadata={"help": "The generation loss."})
    dense: SequentialConfig | None = field(
        default=None,
        metadata={"help": "A dense tower beside the generator, SASRec, trained first: it teaches, and its scores join those of the codes."},
    )
    item_dropout: float = field(
        default=0.0, metadata={"help": "Share of history items left out of each training window, drawn anew every epoch; targets stay."}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.item_dropout < 1:
            raise CEMGError(f"item_dropout: must lie in [0, 1), got {self.item_dropout}")
        if self.validation_beams < 10:
            raise CEMGError(f"finetune.validation_beams: {self.validation_beams} beams cannot give NDCG@10; set at least 10")
        if self.dense is not None and self.dense.network != "sasrec":
            raise CEMGError(f"finetune.dense.network: the tower is a sasrec, got {self.dense.network!r}")
        if self.objective.teacher_weight and (self.dense is None or not self.generator.item_causal):
            raise CEMGError(
                "finetune.objective.teacher_weight: the dense tower is the teacher, of a generator that trains all prefixes at once; "
                "set finetune.dense and generator.item_causal, or the weight to 0"
            )


@one_writer
def finetune(
    config: FinetuneConfig,
    dataset: str | Path,
    tokenizer: str | Path,
    output: str | Path,
    seed: int = 42,
    streams: StreamsConfig | None = None,
) -> Path:
    """Train a generator and write it, with its tokenizer, as the folder that goes to the Hub.

    Under `accelerate launch` every process calls this; the main process writes. A killed run continues from its last checkpoint
    (kept beside `output` until the run ends) when it is called again with the same settings.

    Where the tokenizer folder holds several identifiers per item, every training window goes by one set of them, drawn anew every epoch;
    rankings write the tokenizer's own codes only.

    Args:
        config: settings.
        dataset: folder written by `prepare`.
        tokenizer: folder written by `tokenize`.
        output: the model folder to write.
        seed: seed of initialisation, sample order and dropout.
        streams: how a tokenizer with code streams (MSCGRec) is used; None: the tokenizer has one code per item.

    Raises:
        CEMGError: inputs or settings that do not belong together, LoRA without a pretrained T5, or the time budget ended before the
            training.
    """
    output = Path(output)
    manifest = Manifest(
        stage="finetune",
        settings=asdict(config) | ({} if streams is None else {"streams": _settings_of(streams)}),
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
    model = build_generator(config.generator, item_tokenizer, streams)
    if isinstance(model.tokenizer, MSCGRecTokenizer) and config.generator.codes_from_codebooks:
        embed_streams(model, load_codebooks(tokenizer, model.tokenizer.streams))
    assert model.tokenizer is not None
    identifiers = load_identifiers(tokenizer, model.tokenizer)
    if len(identifiers) > 1 and (config.objective.constrained or config.objective.teacher_weight):
        name = "constrained" if config.objective.constrained else "teacher_weight"
        raise CEMGError(
            f"finetune.objective.{name}: the catalogue holds one code per item, {tokenizer} {len(identifiers)} to train on; "
            "leave it out, or run `cemg tokenize` with tokenize.identifiers=1"
        )
    if not config.loop.compile:  # a compiled network draws within its kernels
        use_byte_dropout(model)
    config.objective.apply(model, has_repeats(data.train_sequences()))
    tower = output.with_name(f".{output.name}.dense")
    if config.dense is not None:
        add_tower(model, config.dense, dataset, tokenizer, tower, seed)
    trained: nn.Module = add_adapters(model, config.lora) if config.lora is not None else model
    logger.info(
        "finetune: %s parameters, %s trained",
        f"{sum(p.numel() for p in model.parameters()):,}",
        f"{sum(p.numel() for p in trained.parameters() if p.requires_grad):,}",
    )

    windows, collate = training_batches(config, model, data, identifiers, seed, streams)
    validation = Validation(partial(_rank_by_codes, model, config), data, config.validation_users, seed)
    work = output.with_name(f".{output.name}.training")
    report = train(
        trained,
        config=config.loop,
        dataset=windows,
        collate_fn=collate,
        lengths=windows.size,
        evaluate=validation,
        folder=work,
        seed=seed,
        identity=run_identity(manifest.inputs, manifest.settings),
        on_epoch=None if collate.augmentation is None else collate.augmentation.set_epoch,
    )
    if report.stopped_by == "time_budget":
        raise CEMGError(
            f"finetune: time budget of {config.loop.time_budget_s} s used up; run the same command again to continue from {work}"
        )
    state = PartialState()
    if state.is_main_process:
        final = trained.merge_and_unload() if config.lora is not None else model  # type: ignore[operator]
        about: dict[str, Any] = {"targets": windows.num_targets, "windows": len(windows)}
        if config.dense is not None:
            about["dense"] = json.loads((tower / "training_report.json").read_text())
            about["dense_weights"] = weights = try_dense_weights(final, validation.cases, config)
            final.config.dense_weight = max(weights, key=lambda weight: weights[weight]["ndcg@10"])
            about["seconds"] = report.seconds + about["dense"]["seconds"]
        with write_folder(output, manifest) as scratch:
            final.save_pretrained(scratch)
            write_json(scratch / "training_report.json", asdict(report) | about)
            plot_training_curve(report.history, scratch / "training_curve.png")
            if (work / "training_log.jsonl").is_file():
                shutil.copyfile(work / "training_log.jsonl", scratch / "training_log.jsonl")
        for folder in (work, tower):
            shutil.rmtree(folder, ignore_errors=True)
    state.wait_for_everyone()
    return output


def _settings_of(streams: StreamsConfig) -> dict[str, Any]:
    """What training goes by; where the image codes are from is the tokenizer's, which is an input, and that folder may move."""
    return {name: value for name, value in asdict(streams).items() if name != "image_codes"}


def training_batches(
    config: FinetuneConfig,
    model: CEMGForConditionalGeneration,
    data: PreparedDataset,
    identifiers: torch.Tensor,
    seed: int,
    streams: StreamsConfig | None = None,
) -> tuple[TrainingWindows, WindowCollator]:
    """The windows that a generator is trained on, and what makes batches of them.

    Args: as for `finetune`; model: with its tokenizer; identifiers: (E, N, M) codes of its items (`load_identifiers`).
    """
    assert model.tokenizer is not None
    windows = TrainingWindows(data.train_sequences(), model.config.max_history, model.config.item_causal, config.window_stride)
    item_tokens = model.tokenizer.item_tokens + (identifiers - model.tokenizer.item_codes)
    augmentation = None
    hidden = 0.0 if streams is None else streams.dropout
    if config.item_dropout or hidden or len(identifiers) > 1:
        augmentation = Augmentation(seed, config.item_dropout, len(identifiers), hidden)
    teaches = config.objective.teacher_weight > 0
    of_streams: dict[str, torch.Tensor] = {}
    if isinstance(model.tokenizer, MSCGRecTokenizer):
        of_streams = {"history_tokens": model.tokenizer.history_tokens, "missing_tokens": model.tokenizer.missing_tokens}
    collate = WindowCollator(
        windows,
        item_tokens,
        model.config.bos_token_id,
        model.config.item_causal,
        augmentation,
        teaches,
        **of_streams,
        pad_to_multiple_of=COMPILED_LENGTHS if config.loop.compile else 1,
    )
    return windows, collate


def has_repeats(sequences: Ragged) -> bool:
    """Whether a row holds a value twice."""
    pairs = np.stack([sequences.rows, sequences.values])
    return np.unique(pairs, axis=1).shape[1] < pairs.shape[1]


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


def build_generator(
    config: GeneratorConfig, tokenizer: CEMGTokenizer, streams: StreamsConfig | None = None
) -> CEMGForConditionalGeneration:
    """A fresh generator for a catalogue, from scratch or from a pretrained T5; MSCGRec's where the tokenizer has code streams.

    Raises:
        CEMGError: `init_from` cannot be loaded, or is no T5, or `streams` for another kind of tokenizer.
    """
    relaid, kind, positions = _layout(tokenizer, streams, config.max_history)
    if config.init_from is not None:
        source = os.path.expandvars(config.init_from)
        try:
            found = AutoConfig.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise CEMGError(f"finetune.generator.init_from: cannot load {source} ({str(error).splitlines()[0]})") from error
        if found.model_type != "t5":
            raise CEMGError(f"finetune.generator.init_from: {source} is a {found.model_type} model; give the folder or Hub id of a T5")
        backbone = T5ForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
        relaid = relaid.with_layout(base_vocab_size=backbone.config.vocab_size, max_history=config.max_history)
        try:
            return kind.from_t5(backbone, relaid, item_causal=config.item_causal, dropout_rate=config.dropout_rate, **positions)
        except ValueError as error:
            raise CEMGError(f"finetune.generator.init_from: {error}") from error
    network = {key: value for key, value in asdict(config).items() if key not in ("init_from", "max_history", "codes_from_codebooks")}
    model = kind(kind.config_class(**network, **relaid.geometry(), **positions))
    if config.codes_from_codebooks and relaid.rqvae is not None:
        embed_codebooks(model, relaid.rqvae.codebooks)
    model.set_tokenizer(relaid)
    return model


def _layout(
    tokenizer: CEMGTokenizer, streams: StreamsConfig | None, max_history: int
) -> tuple[CEMGTokenizer, type[CEMGForConditionalGeneration], dict[str, Any]]:
    """The tokenizer as a generator from scratch takes it, the generator's class, and the settings that it alone has."""
    if (streams is not None) != isinstance(tokenizer, MSCGRecTokenizer):
        found = "one code per item, the recipe asks for code streams" if streams is not None else "code streams, the recipe has none"
        raise CEMGError(f"streams: the tokenizer holds {found}; run `cemg tokenize` with the same recipe")
    if streams is None or not isinstance(tokenizer, MSCGRecTokenizer):
        return tokenizer.with_layout(base_vocab_size=2, max_history=max_history), CEMGForConditionalGeneration, {}
    try:
        relaid = tokenizer.with_layout(base_vocab_size=2, max_history=max_history, decoded=streams.decoded)
    except ValueError as error:
        raise CEMGError(f"streams.{error}") from error
    return relaid, MSCGRecForConditionalGeneration, {"dual_positions": streams.dual_positions}


def embed_streams(model: CEMGForConditionalGeneration, codebooks: list[torch.Tensor] | None) -> None:
    """`embed_codebooks` for every stream, in the order of the vocabulary."""
    for stream, vectors in enumerate(codebooks or []):
        embed_codebooks(model, vectors, first_level=stream * model.config.num_levels)


@torch.no_grad()
def embed_codebooks(model: CEMGForConditionalGeneration, codebooks: torch.Tensor, first_level: int = 0) -> None:
    """Start the embeddings of the code tokens as the code vectors (M, K, D) behind them, level by level at the scale they had.

    A level's vectors are centred and rotated to their principal axes, of which the first d_model are kept (all, where D is less),
    and spread over the whole width by one random rotation. The same rows are the output layer, so near codes start with near scores.
    """
    first, count = model.config.first_code_id + first_level * model.config.codebook_size, len(codebooks) * codebooks.shape[1]
    rows = model.get_input_embeddings().weight[first : first + count].unflatten(0, codebooks.shape[:2])
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


def add_tower(
    model: CEMGForConditionalGeneration, config: SequentialConfig, dataset: str | Path, tokenizer: str | Path, folder: Path, seed: int
) -> None:
    """Train the dense tower in `folder` (or find it trained there) and put it beside the generator, frozen.

    Raises:
        CEMGError: a tower that reads fewer items than the generator, or as `train_sequential`.
    """
    settings = {"max_history": model.config.max_history} | config.settings  # the histories that reach the model are cut to this
    if settings["max_history"] < model.config.max_history:
        raise CEMGError(
            f"finetune.dense.settings.max_history: {settings['max_history']} is less than the generator's {model.config.max_history}; "
            "leave it out"
        )
    known = None if model.tokenizer is None or model.tokenizer.rqvae is None else model.tokenizer.rqvae.config.modality_dims
    if config.content and known is not None and not set(known) & set(CONTENT_MODALITIES):
        logger.warning("finetune.dense.content: no item has a text or a picture; the tower knows items by their ids alone")
        config = replace(config, content=False)
    # All processes together: the training loop talks between them, so none may wait outside of it.
    train_sequential(replace(config, settings=settings), dataset, folder, seed, tokenizer)
    network = SASRecForNextItem.from_pretrained(folder)
    model.set_dense(network.tower)
    assert model.dense is not None
    model.dense.requires_grad_(False)


def _rank_by_codes(model: CEMGForConditionalGeneration, config: FinetuneConfig, cases: EvaluationCases) -> npt.NDArray[np.int64]:
    """Validation lists of the generator itself, whose weights are those of whatever wraps it (adapters, data parallelism)."""
    ranked, _ = rank_histories(
        model,
        cases.histories,
        min(WIDTH, config.validation_beams),
        num_beams=config.validation_beams,
        exclude_history=config.validation_excludes_history,
        dense_weight=0,
        progress="validation",
    )
    return ranked


def try_dense_weights(model: CEMGForConditionalGeneration, cases: EvaluationCases, config: FinetuneConfig) -> dict[float, dict[str, float]]:
    """Validation metrics of the mixtures of code and dense scores, by weight; every history is read once for all of them."""
    beams = config.validation_beams
    lists = {weight: np.full((len(cases), beams), -1, dtype=np.int64) for weight in DENSE_WEIGHTS}
    for rows, candidates in hybrid_candidates(model, cases.histories, beams, exclude_history=config.validation_excludes_history):
        for weight, ranked in lists.items():
            found = candidates.ranking(weight, beams)[0].cpu().numpy()
            ranked[rows, : found.shape[1]] = found
    return {
        weight: {name: value for name, value in ranking_metrics(ranked, cases.targets, ks=(10,)).items() if value is not None}
        for weight, ranked in lists.items()
    }
