"""RQ-DINO against residual k-means on the same pictures: use of the codes, collisions, neighbours, categories, next items.

Three kinds of image codes per start of the network: those of RQ-DINO's own quantiser; residual k-means on its latent vectors, which were
trained to be quantised; and, for all starts together, residual k-means on VGG-16's averaged feature map, what the recipes use. A fourth
is plain DINO, whose student is not quantised, with residual k-means on its latent vectors. Neighbours are asked for in spaces that no
system was trained on (text, collaborative) and in VGG's own.

    python benchmarks/rq_dino.py --dataset runs/movielens-100k/dataset --features runs/movielens-100k/features \\
        --vgg $CEMG_ENCODERS/vgg16/vgg16_features.safetensors

Trainings are kept in `--work`: a killed run, or one whose `--time-budget` ended, goes on when it is called again. With
`--seconds-per-training` the number of epochs follows from the speed of the machine, measured once and kept there too.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizer_quality import next_item_shares

from cemg_hf.artefacts import result_envelope, write_json
from cemg_hf.data import PreparedDataset
from cemg_hf.errors import CEMGError
from cemg_hf.evaluation.codes import category_labels, category_purity, neighbour_preservation
from cemg_hf.features.image import ImageConfig, VGGImageEncoder
from cemg_hf.features.projection import Projection
from cemg_hf.features.store import FeatureStore, ModalityFeatures
from cemg_hf.training.deadline import time_limit
from cemg_hf.training.multi_crop import CropConfig
from cemg_hf.training.rq_dino import REPORT_NAME, RQDinoLoopConfig, RQDinoTrainingConfig, train_rq_dino
from cemg_hf.training.rq_dino_codes import PictureCodes
from cemg_hf.training.self_distillation import DistillationConfig
from cemg_hf.training.streams import picture_stream, stream_codes
from cemg_hf.training.tokenizer_config import TokenizerTrainingConfig

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "rq_dino.json"
VGG = "VGG-16"
VGG_SIZE = 224  # pixels
SPEED_STEPS = 40
STARTS: dict[str, dict[str, Any]] = {
    "scratch": {"backbone": "resnet18"},
    "vgg16": {"backbone": "vgg16"},
    # A million weights, for two cores.
    "small": {
        "backbone": "resnet",
        "backbone_settings": {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1], "layer_type": "basic"},
    },
}
COLUMNS = {
    "seeds": "seeds",
    "codes used, level 1": "used_codes.0",
    "level 2": "used_codes.1",
    "perplexity 1": "perplexity.0",
    "2": "perplexity.1",
    "collisions before": "collision_rate_before",
    "moved": "moved",
    "error": "reconstruction_error",
    "text neighbours, 1 code, × chance": "neighbours_text_lift.0",
    "2 codes": "neighbours_text_lift.1",
    "collaborative neighbours, 1 code, × chance": "neighbours_collaborative_lift.0",
    "2 codes ": "neighbours_collaborative_lift.1",
    "VGG neighbours, 1 code, × chance": "neighbours_image_lift.0",
    "genres, 1 code, adjusted NMI": "purity_nmi.0",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="folder written by `cemg prepare`")
    parser.add_argument("--features", type=Path, required=True, help="folder written by `cemg encode`: the spaces that neighbours are of")
    parser.add_argument(
        "--vgg", help="state dict of VGG-16 (.safetensors), at least its convolutions; without it, no row and no space of it"
    )
    parser.add_argument("--starts", nargs="+", default=["scratch", "vgg16"], choices=list(STARTS), help="networks that RQ-DINO trains")
    parser.add_argument("--no-plain", action="store_true", help="leave plain DINO out")
    parser.add_argument("--codebook-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=96, help="side of global crops in pixels; local ones have half of it")
    parser.add_argument("--local-crops", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=20, help="epochs of `--passes` passes over the pictures")
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--seconds-per-training", type=float, help="instead of --epochs: as many as fit, by the measured speed")
    parser.add_argument("--mixed-precision", default="bf16" if torch.cuda.is_available() else "no")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--time-budget", type=float, help="stop after this many seconds; the same command goes on")
    parser.add_argument("--work", type=Path, default=Path("runs/rq_dino"), help="where finished trainings are kept")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    arguments = parser.parse_args()
    started = time.perf_counter()
    data, store = PreparedDataset.load(arguments.dataset), FeatureStore.load(arguments.features)
    if arguments.vgg is None and "vgg16" in arguments.starts:
        raise CEMGError("--starts vgg16: needs --vgg, the weights that it starts from")
    spaces = {name: modality for name, modality in store.modalities.items() if name != "image"}
    vgg = None if arguments.vgg is None else vgg_features(data, arguments.vgg, arguments.work)
    if vgg is not None:
        spaces["image"] = vgg
    judge = Judge(data, spaces, TokenizerTrainingConfig(codebook_size=arguments.codebook_size, epochs=0))
    runs: dict[str, list[dict[str, Any]]] = {}
    trainings: dict[str, Any] = {}
    with time_limit(arguments.time_budget):
        for seed in arguments.seeds:
            if vgg is not None:
                runs.setdefault(f"residual k-means on {VGG}", []).append(judge.k_means(vgg, seed))
            for start in arguments.starts:
                for plain in (False,) if arguments.no_plain else (False, True):
                    name = f"{'DINO' if plain else 'RQ-DINO'} from {start}"
                    config = settings(arguments, start, plain)
                    folder = arguments.work / f"{'dino' if plain else 'rq-dino'}-{start}-{seed}"
                    config = within(config, arguments, folder, seed)
                    train_rq_dino(config, arguments.dataset, folder, seed)
                    trainings[f"{name}, seed {seed}"] = summary_of(folder, config)
                    coded = PictureCodes.load(folder).of_items(data.item_ids)
                    if not plain:
                        runs.setdefault(f"{name}, its own codes", []).append(judge.own(coded))
                    runs.setdefault(f"{name}, residual k-means on its latents", []).append(judge.k_means(latents(coded), seed))
                    print(f"{name}, seed {seed}: {json.dumps({key: rows[-1] for key, rows in runs.items() if name in key})}", flush=True)
    metrics = {name: summarise(rows) for name, rows in runs.items()}
    envelope = result_envelope(
        metrics,
        command=shlex.join(["python", *sys.argv]),
        seeds=arguments.seeds,
        seconds=time.perf_counter() - started,
        columns={title: key for title, key in COLUMNS.items() if any(key.split(".")[0] in row for row in metrics.values())},
        trainings=trainings,
        category_depth=judge.depth,
    )
    write_json(arguments.output, envelope)
    print(json.dumps(metrics, indent=1))


def settings(arguments: argparse.Namespace, start: str, plain: bool) -> RQDinoTrainingConfig:
    """What trains one network. A pretrained one gets a tenth of the learning rate."""
    pretrained = start == "vgg16"
    return RQDinoTrainingConfig(
        **STARTS[start],
        weights=str(arguments.vgg) if pretrained else None,
        codebook_size=arguments.codebook_size,
        passes=arguments.passes,
        crops=CropConfig(size=arguments.size, local_size=arguments.size // 2, local_crops=arguments.local_crops),
        distillation=DistillationConfig(quantise_student=not plain),
        loop=RQDinoLoopConfig(
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            learning_rate=5e-5 if pretrained else 5e-4,
            eval_every=2,
            mixed_precision=arguments.mixed_precision,
            checkpoint_every_s=60,
        ),
    )


def within(config: RQDinoTrainingConfig, arguments: argparse.Namespace, folder: Path, seed: int) -> RQDinoTrainingConfig:
    """The same with as many epochs as fit into the seconds asked for; the number is kept beside the training."""
    if arguments.seconds_per_training is None:
        return config
    kept = folder.with_name(f"{config.backbone}-epochs.json")
    if not kept.is_file():
        trial = replace(config, loop=replace(config.loop, max_steps=SPEED_STEPS, epochs=SPEED_STEPS))
        place = folder.with_name(f"{config.backbone}-speed")
        train_rq_dino(trial, arguments.dataset, place, seed)
        log = [json.loads(line) for line in (place / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
        # The last line: the first steps also choose algorithms.
        rate = [row["samples_per_second"] for row in log if row["event"] == "step"][-1]
        pictures = json.loads((place / REPORT_NAME).read_text(encoding="utf-8"))["present"] * config.passes
        write_json(kept, {"epochs": max(2, int(arguments.seconds_per_training * rate / pictures)), "pictures_per_second": rate})
    return replace(config, loop=replace(config.loop, epochs=json.loads(kept.read_text(encoding="utf-8"))["epochs"]))


def vgg_features(data: PreparedDataset, weights: str, work: Path) -> ModalityFeatures:
    """Averaged feature maps of VGG-16 at 224 pixels, through PCA as in the `encode` stage."""
    config = ImageConfig(encoder="vgg16", weights=weights, layer="conv", size=VGG_SIZE, batch_size=64 if torch.cuda.is_available() else 16)
    encoder = VGGImageEncoder(config, work / "cache")
    raw = encoder.encode(data.items_table(["item_id", "image"]), data.folder)
    return projected(raw.vectors, raw.mask)


def latents(coded: PictureCodes) -> ModalityFeatures:
    """RQ-DINO's vectors before quantisation, as the `encode` stage would hand them on."""
    return projected(coded.latent.numpy(), coded.mask.numpy())


def projected(vectors: np.ndarray, mask: np.ndarray) -> ModalityFeatures:
    projection, _ = Projection.fit(vectors, mask, 768)
    return ModalityFeatures(projection.transform(vectors, mask), mask, projection, {})


class Judge:
    """The figures of image codes, the same for all systems."""

    def __init__(self, data: PreparedDataset, spaces: dict[str, ModalityFeatures], config: TokenizerTrainingConfig) -> None:
        self.data, self.config = data, config
        self.spaces = {name: np.where(space.mask[:, None], np.asarray(space.vectors, np.float32), 0) for name, space in spaces.items()}
        ordered = data.items_table(["item_id", "categories"])
        self.labels, self.depth = category_labels(ordered["categories"])

    def k_means(self, features: ModalityFeatures, seed: int) -> dict[str, Any]:
        """Residual k-means: the project's quantiser without training after its start."""
        started = time.perf_counter()
        codes, _, about = stream_codes("image", features, self.config, seed)
        return self.figures(codes, about) | {
            "reconstruction_error": about["reconstruction_error"],
            "seconds": time.perf_counter() - started,
        }

    def own(self, coded: PictureCodes) -> dict[str, Any]:
        """RQ-DINO's own quantiser."""
        codes, _, about = picture_stream(coded, self.config)
        quantised = sum(book[column] for book, column in zip(coded.codebooks, coded.codes.T, strict=True))
        lost = (coded.latent - quantised)[coded.mask].square().sum()
        shown = coded.latent[coded.mask]
        return self.figures(codes, about) | {"reconstruction_error": float(lost / (shown - shown.mean(0)).square().sum())}

    def figures(self, codes: torch.Tensor, about: dict[str, Any]) -> dict[str, Any]:
        """Of unique codes (N, M), and of the nearest ones that they were made of."""
        found: dict[str, Any] = {
            "used_codes": [level["used_codes"] for level in about["levels"]],
            "perplexity": [level["perplexity"] for level in about["levels"]],
            "collision_rate_before": about["collision_rate_before"],
            "collision_rate_before_last_level": about["collision_rate_before_last_level"],
            "moved": about["moved"],
            "spilled": about["spilled"],
            "next_item": next_item_shares(self.data, codes),
        }
        for name, space in self.spaces.items():
            depths = neighbour_preservation(space, codes.numpy())["depths"]
            found[f"neighbours_{name}"] = [depth["share"] for depth in depths]
            found[f"neighbours_{name}_lift"] = [depth["lift"] or 0.0 for depth in depths]
        if self.labels is not None:
            purity = category_purity(codes.numpy(), self.labels)
            for key in ("purity", "chance", "nmi"):
                found[key if key == "purity" else f"purity_{key}"] = [row[key] or 0.0 for row in purity[:2]]
        return found


def summary_of(folder: Path, config: RQDinoTrainingConfig) -> dict[str, Any]:
    """What a training did, and its measurements over the epochs."""
    training = json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))["training"]
    kept = {name: training[name] for name in ("steps", "seconds", "samples_per_second")}
    return kept | {"epochs": config.loop.epochs, "passes": config.passes, "size": config.crops.size, "history": training["history"]}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of every figure."""
    summary: dict[str, Any] = {"seeds": len(runs)}
    for name in runs[0]:
        values = np.array([run[name] for run in runs], dtype=np.float64)
        summary[name] = np.round(values.mean(0), 5).tolist()
        summary[f"{name}_std"] = np.round(values.std(0), 5).tolist()
    return summary


if __name__ == "__main__":
    try:
        main()
    except CEMGError as error:
        sys.exit(f"error: {error}")
