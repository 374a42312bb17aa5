"""`cemg rq-dino`: pictures → a network that codes them, and the codes of the pictures it was trained on."""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from torch.utils.data import Dataset

from ..artefacts import Manifest, fingerprint, fingerprint_path, is_current, one_writer, write_folder, write_json
from ..errors import CEMGError
from ..evaluation.codes import level_usage
from ..evaluation.distillation_plot import plot_distillation
from ..features.picture_store import Pictures, read_pictures
from ..models.cemg import CEMGTokenizer
from ..models.cemg.assignment_cemg import collision_rate
from ..models.rq_dino import RQDinoConfig, RQDinoModel
from ..settings import expand_path
from .loop import LOG_NAME, train
from .loop_config import LoopConfig
from .multi_crop import CropConfig, MultiCrop
from .rq_dino_codes import PictureCodes
from .rq_dino_weights import is_pretrained, load_start, named_backbone
from .self_distillation import DistillationConfig, SelfDistillation
from .streams import unique_codes

logger = logging.getLogger(__name__)

REPORT_NAME = "rq_dino_report.json"
CURVE_NAME = "training_curve.png"
TOKENIZER_NAME = "tokenizer"
PICTURES_PER_CODE = 20


@dataclass
class RQDinoLoopConfig(LoopConfig):
    """The settings of the loop with other defaults: nothing tells the best of these models, so the last one is kept."""

    epochs: int = field(default=100, metadata={"help": "Epochs of `passes` passes over the pictures; also the length of all schedules."})
    batch_size: int = field(default=64, metadata={"help": "Pictures per optimizer step, each with all its crops."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.04, metadata={"help": "Decoupled weight decay of weight matrices."})
    warmup_ratio: float = field(default=0.1, metadata={"help": "Share of all steps over which the learning rate rises from 0."})
    eval_every: int = field(default=5, metadata={"help": "Epochs between measurements of codes and collapse."})
    patience: int = field(default=0, metadata={"help": "Not used: the last weights are kept."})
    metric_for_best: str = field(default="", metadata={"help": "Not used: the last weights are kept."})
    label_key: str = field(default="rows", metadata={"help": "Entry of a batch that holds the pictures."})
    log_every_steps: int = field(default=10, metadata={"help": "Optimizer steps between log lines."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric_for_best or self.patience or self.label_key != "rows":
            raise CEMGError("loop: metric_for_best, patience and label_key are fixed for RQ-DINO; leave them out")
        if self.gradient_accumulation_steps > 1:  # centre and codebooks follow what a step has seen, which would be its last part only
            raise CEMGError("loop.gradient_accumulation_steps: RQ-DINO takes a batch at once; leave it out and lower loop.batch_size")


@dataclass
class RQDinoTrainingConfig:
    """Everything that trains RQ-DINO."""

    backbone: str = field(
        default="resnet18",
        metadata={
            "help": "A torchvision classification network, a transformers model type (vit), or a folder or Hub id of a pretrained one."
        },
    )
    backbone_settings: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Fields of the configuration of a transformers model type, such as hidden_size."}
    )
    weights: str | None = field(
        default=None,
        metadata={
            "help": "Weights that a torchvision network starts from: a name such as DEFAULT (downloaded), or a state dict (.safetensors)."
        },
    )
    latent_dim: int = field(default=128, metadata={"help": "D: dimension of what is quantised."})
    num_levels: int = field(default=4, metadata={"help": "M: codes per picture."})
    codebook_size: int = field(default=256, metadata={"help": "K: codes per level; fewer for less than 20·K pictures."})
    stored_size: int | None = field(
        default=None, metadata={"help": "Side in pixels that pictures are kept at (default: a third more than crops.size)."}
    )
    passes: int = field(
        default=1,
        metadata={"help": "Passes over the pictures that make an epoch: on a GPU, one of a few thousand is over before it is saved."},
    )
    workers: int = field(default=2, metadata={"help": "Threads that decode pictures."})
    crops: CropConfig = field(default_factory=CropConfig, metadata={"help": "Multi-crop augmentation."})
    distillation: DistillationConfig = field(default_factory=DistillationConfig, metadata={"help": "Teacher, heads and quantiser."})
    loop: RQDinoLoopConfig = field(default_factory=RQDinoLoopConfig, metadata={"help": "Optimisation, checkpoints, time budget, trackers."})

    def __post_init__(self) -> None:
        for name in ("latent_dim", "num_levels", "codebook_size", "passes", "workers"):
            if getattr(self, name) < 1:
                raise CEMGError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.stored_size is not None and self.stored_size < self.crops.size:
            raise CEMGError(f"stored_size = {self.stored_size}: must be at least crops.size, {self.crops.size}")

    @property
    def stored(self) -> int:
        """Side of the pictures as they are kept."""
        return self.stored_size or round(self.crops.size * 4 / 3)


class _Rows(Dataset[int]):
    """The numbers of the pictures, several times over: the pictures themselves are on the device."""

    def __init__(self, count: int, passes: int) -> None:
        self.count, self.passes = count, passes

    def __len__(self) -> int:
        return self.count * self.passes

    def __getitem__(self, index: int) -> int:
        return index % self.count


@one_writer
def train_rq_dino(config: RQDinoTrainingConfig, source: str | Path, output: str | Path, seed: int = 42) -> Path:
    """Train RQ-DINO on the pictures of `source` and write its folder; skipped when current, resumed when killed.

    The folder holds the model (`RQDinoModel.from_pretrained`), `codes.safetensors` (`codes` (N, M) nearest codes, `latent` (N, D),
    `mask` (N,), `codebooks` (M, K, D)) with `item_ids.json`, `tokenizer/` with a code of its own for every item (for `cemg inspect`),
    `rq_dino_report.json`, `training_log.jsonl` and `training_curve.png`.

    Args:
        config: settings.
        source: folder of images, named after their items, or a data set folder written by `prepare`.
        output: folder to write.
        seed: seed of initialisation, crops, sample order and k-means.

    Raises:
        CEMGError: several processes, no pictures, more items than codes, an unknown backbone, sizes that it cannot take, or the time budget
            ended before the training.
    """
    if PartialState().num_processes > 1:
        raise CEMGError("rq-dino: trains in one process; start it without `accelerate launch` or `torchrun`")
    output = Path(output)
    settings = asdict(config)
    del settings["workers"]  # how fast, not what
    settings["loop"] = config.loop.trajectory()
    inputs = {"pictures": fingerprint_path(source)} | _start_fingerprint(config)
    manifest = Manifest("rq-dino", settings, inputs, seed)
    if is_current(output, manifest):
        logger.info("rq-dino: %s is up to date", output)
        return output
    started = time.perf_counter()
    set_seed(seed)
    model = build_model(config)
    pictures = read_pictures(source, config.stored, config.workers)
    _check_size(config, pictures)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = _Rows(len(pictures), config.passes)
    steps = config.loop.epochs * -(-len(rows) // config.loop.batch_size)
    # Channels last is the layout convolutions are fastest in.
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    network = SelfDistillation(model, pictures, MultiCrop(config.crops), config.distillation, min(steps, config.loop.max_steps or steps))
    network.to(device).initialise(config.loop.batch_size)
    logger.info(
        "rq-dino: %s, %s parameters, %d pictures on %s",
        config.backbone,
        f"{sum(p.numel() for p in model.parameters()):,}",
        len(pictures),
        device,
    )
    work = output.with_name(f".{output.name}.training")
    report = train(
        network,
        config=config.loop,
        dataset=rows,
        collate_fn=lambda rows: {"rows": torch.tensor(rows)},
        evaluate=network.measure,
        folder=work,
        seed=seed,
        identity=fingerprint(json.dumps(manifest.as_dict(), sort_keys=True)),
        on_step=network.on_step,
    )
    if report.stopped_by == "time_budget":
        raise CEMGError(
            f"rq-dino: time budget of {config.loop.time_budget_s} s used up; run the same command again to continue from {work}"
        )
    found = network.encode()
    with write_folder(output, manifest, started) as scratch:
        model.cpu().to(memory_format=torch.contiguous_format).save_pretrained(scratch)
        quality = _write_codes(scratch, model, pictures, found)
        write_json(scratch / REPORT_NAME, quality | {"unreadable": pictures.unreadable, "training": asdict(report)})
        plot_distillation(report.history, scratch / CURVE_NAME, f"RQ-DINO, {config.backbone}, {len(pictures):,} pictures")
        shutil.copyfile(work / LOG_NAME, scratch / LOG_NAME)
    shutil.rmtree(work, ignore_errors=True)
    return output


def build_model(config: RQDinoTrainingConfig) -> RQDinoModel:
    """The network with the weights it starts from; codebooks are random.

    Raises:
        CEMGError: an unknown backbone, one that cannot take pictures of `crops.size` or `crops.local_size`, or weights that do not fit.
    """
    backbone, settings = named_backbone(config.backbone, config.backbone_settings)
    try:
        model = RQDinoModel(
            RQDinoConfig(
                backbone=backbone,
                backbone_config=settings,
                image_size=config.crops.size,
                latent_dim=config.latent_dim,
                num_levels=config.num_levels,
                codebook_size=config.codebook_size,
            )
        )
    except ValueError as error:
        raise CEMGError(str(error)) from error
    load_start(model.encoder.backbone.network, config.backbone, config.weights)
    for name, side in (("size", config.crops.size), ("local_size", config.crops.local_size)):
        if name == "local_size" and not config.crops.local_crops:
            continue
        try:
            with torch.no_grad():
                model.eval().encoder(torch.zeros(1, 3, side, side))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise CEMGError(
                f"crops.{name} = {side}: {config.backbone} cannot take pictures of {side} pixels ({' '.join(str(error).split())}); "
                "raise it, or set both sizes to the one that the backbone is made for"
            ) from error
    return model


def format_report(folder: str | Path) -> str:
    """The main figures of a folder written by `train_rq_dino`, for a terminal."""
    report = json.loads((Path(folder) / REPORT_NAME).read_text(encoding="utf-8"))
    used = ", ".join(f"{level['used_codes']:.0%} (perplexity {level['perplexity']:.1f})" for level in report["levels"])
    last = report["training"]["history"][-1]
    return (
        f"{report['present']:,} of {report['items']:,} items have a picture; codes used per level: {used}; "
        f"{report['collision_rate']:.1%} of pictures share all codes; "
        f"entropy of the teacher's targets {last['target_entropy']:.1%} of the most, {last['prototypes_used']:.1%} of its prototypes in use"
    )


def _start_fingerprint(config: RQDinoTrainingConfig) -> dict[str, str]:
    """Of the files that the backbone starts from, where they are local."""
    places = {"backbone": config.backbone if is_pretrained(config.backbone) else None, "weights": config.weights}
    local = {name: Path(expand_path(place, name)) for name, place in places.items() if place is not None}
    return {name: fingerprint_path(path) for name, path in local.items() if path.exists()}


def _check_size(config: RQDinoTrainingConfig, pictures: Pictures) -> None:
    """Raise CEMGError where the items have no room in the codes; warn where the codebooks are too large, as the tokenizers do."""
    if len(pictures.item_ids) > config.codebook_size**config.num_levels:
        raise CEMGError(
            f"{len(pictures.item_ids)} items do not fit into {config.codebook_size}^{config.num_levels} codes: "
            "raise codebook_size or num_levels"
        )
    if len(pictures) < PICTURES_PER_CODE * config.codebook_size:
        logger.warning(
            "codebook_size %d is large for %d pictures (fewer than %d per code)", config.codebook_size, len(pictures), PICTURES_PER_CODE
        )


def _write_codes(folder: Path, model: RQDinoModel, pictures: Pictures, found: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Codes of all items and a tokenizer of them, and their figures."""
    count, config = len(pictures.item_ids), model.config
    rows = torch.from_numpy(pictures.rows)
    codes = torch.zeros(count, config.num_levels, dtype=torch.int64)
    latent = torch.zeros(count, config.latent_dim)
    mask = torch.zeros(count, dtype=torch.bool)
    codes[rows], latent[rows], mask[rows] = found["codes"], found["latent"], True
    coded = PictureCodes(pictures.item_ids, codes, latent, mask, model.quantiser.codebooks.detach().cpu())
    coded.save(folder)
    unique, assignment = unique_codes(codes, latent, mask, coded.codebooks)
    tokenizer = CEMGTokenizer(
        item_ids=pictures.item_ids, item_codes=unique, num_levels=config.num_levels, codebook_size=config.codebook_size
    )
    tokenizer.save_pretrained(folder / TOKENIZER_NAME)
    return {
        "items": count,
        "present": len(rows),
        "masked": count - len(rows),
        **level_usage(found["codes"].numpy(), config.codebook_size),
        "collision_rate": collision_rate(found["codes"]),
        "collision_rate_before_last_level": collision_rate(found["codes"][:, :-1]),
        **asdict(assignment),
    }
