"""What the fusion is worth before any code exists: next-item recall of the fused vectors, nothing generated.

A user's profile is the recency-weighted mean of the vectors of the history, items are ranked by cosine, history items excluded,
over the test cases. Every fusion is judged twice: its content half alone, and the whole x. Intervals are bootstraps over users;
differences to plain concatenation and to equal weights are paired.

    python benchmarks/fusion_retrieval.py --run movielens-100k=runs/movielens-100k
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cemg_hf.artefacts import result_envelope, write_json
from cemg_hf.data import PreparedDataset
from cemg_hf.errors import CEMGError
from cemg_hf.evaluation.confidence import bootstrap_interval, paired_bootstrap
from cemg_hf.evaluation.content_knn import ContentKNNRecommender
from cemg_hf.features.store import FeatureStore
from cemg_hf.models.cemg.modeling_rqvae import CEMGRQVAE
from cemg_hf.training.fusion_training import NextItemConfig, next_item_pairs
from cemg_hf.training.tokenizer_config import TokenizerTrainingConfig
from cemg_hf.training.tokenizer_training import train_rqvae

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "fusion_retrieval.json"
CUTOFFS = (10, 50)
COLUMNS = {
    "recall@10": "recall@10",
    "95 % low": "recall@10_interval.0",
    "95 % high": "recall@10_interval.1",
    "recall@50": "recall@50",
    "@10 minus concatenation": "recall@10_minus_plain_concatenation.0",
    "low": "recall@10_minus_plain_concatenation.1",
    "high": "recall@10_minus_plain_concatenation.2",
    "α image": "alpha_image.mean",
    "std of α": "alpha_image.std",
}
REFERENCES = ("plain concatenation", "equal weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", action="append", required=True, metavar="NAME=FOLDER", help="run folder with dataset/ and features/; repeatable"
    )
    parser.add_argument("--codebook-size", type=int, default=64, help="K of the RQ-VAE behind 'reconstruction'")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    arguments = parser.parse_args()
    started = time.perf_counter()
    metrics: dict[str, Any] = {}
    for entry in arguments.run:
        name, sign, folder = entry.partition("=")
        if not sign:
            raise CEMGError(f"--run {entry}: expected NAME=FOLDER")
        metrics |= {f"{name}, {row}": values for row, values in compare(Path(folder), arguments).items()}
    envelope = result_envelope(
        metrics,
        command=shlex.join(["python", *sys.argv]),
        seeds=[arguments.seed],
        seconds=time.perf_counter() - started,
        columns=COLUMNS,
    )
    write_json(arguments.output, envelope)


def compare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows of one data set."""
    store, data = FeatureStore.load(folder / "features"), PreparedDataset.load(folder / "dataset")
    vectors = {name: np.array(modality.vectors, dtype=np.float32) for name, modality in store.modalities.items()}
    masks = {name: np.asarray(modality.mask) for name, modality in store.modalities.items()}
    content = [name for name in ("image", "text") if name in vectors]
    pairs = next_item_pairs(data.train_sequences(), 3)
    cases = data.evaluation_cases(arguments.split)
    alphas: dict[str, dict[str, float]] = {}

    def fused(next_item: NextItemConfig, fusion: str = "guided", trained: bool = True) -> tuple[np.ndarray, np.ndarray, str]:
        config = TokenizerTrainingConfig(codebook_size=arguments.codebook_size, fusion=fusion, next_item=next_item, content_head_dim=0)
        if trained:
            # With the contrast the RQ-VAE's own epochs do not touch the fusion, so they are skipped.
            if next_item.epochs:
                config.epochs = config.warmup_epochs = 0
            model, report = train_rqvae(vectors, masks, config, arguments.seed, pairs=pairs)
            if "image" in report["alpha"]:
                spread = report["alpha"]["image"]
                label = f"{fusion}-{next_item.epochs}-{next_item.train_projections}"
                alphas[label] = {"mean": spread["mean"], "std": spread["std"], **spread["quantiles"]}
        else:
            model = CEMGRQVAE(config.model_config({name: block.shape[1] for name, block in vectors.items()}))
        with torch.inference_mode():
            x = model.fuse(
                {name: torch.tensor(block) for name, block in vectors.items()},
                {name: torch.from_numpy(mask) for name, mask in masks.items()},
            ).x.numpy()
        half = x.shape[1] // 2
        return x[:, :half], x[:, half:], f"{fusion}-{next_item.epochs}-{next_item.train_projections}"

    def recall(blocks: list[np.ndarray], block_masks: list[np.ndarray]) -> dict[int, np.ndarray]:
        ranked = ContentKNNRecommender(blocks, block_masks).rank(cases.histories, max(CUTOFFS), exclude_history=True)
        hit = ranked == cases.targets[:, None]
        return {k: hit[:, :k].any(1).astype(np.float64) for k in CUTOFFS}

    any_content = np.any(np.stack([masks[name] for name in content]), axis=0)
    collaborative, known = vectors["collaborative"], masks["collaborative"]
    hits: dict[str, dict[int, np.ndarray]] = {name: recall([vectors[name]], [masks[name]]) for name in vectors}
    blocks, shown = [vectors[name] for name in content], [masks[name] for name in content]
    hits["plain concatenation, content"] = recall(blocks, shown)
    hits["plain concatenation, x"] = recall([*blocks, collaborative], [*shown, known])
    settings = {
        "equal weights": (NextItemConfig(epochs=0), "equal", False),
        "guided, reconstruction (the paper's)": (NextItemConfig(epochs=0), "guided", True),
        "guided, next item, attention only": (NextItemConfig(train_projections=False), "guided", True),
        "equal weights, next item": (NextItemConfig(), "equal", True),
        "guided, next item": (NextItemConfig(), "guided", True),
    }
    labels = {}
    for row, setting in settings.items():
        own, other, labels[row] = fused(*setting)
        hits[f"{row}, content"] = recall([own], [any_content])
        hits[f"{row}, x"] = recall([own, other], [any_content, known])
    rows = {}
    for row, found in hits.items():
        values: dict[str, Any] = {"n": len(cases.targets)}
        for k in CUTOFFS:
            interval = bootstrap_interval(found[k], seed=arguments.seed)
            values[f"recall@{k}"] = interval.mean
            values[f"recall@{k}_interval"] = [interval.low, interval.high]
            part = row.rsplit(", ", 1)[-1]
            for reference in REFERENCES:
                against = hits.get(f"{reference}, {part}")
                if against is not None and against is not found and row.startswith("guided"):
                    difference = paired_bootstrap(found[k], against[k], seed=arguments.seed)
                    values[f"recall@{k}_minus_{reference.replace(' ', '_')}"] = [difference.mean, difference.low, difference.high]
        spread = alphas.get(labels.get(row.rsplit(", ", 1)[0], ""))
        rows[row] = values | ({"alpha_image": spread} if spread else {})
    return rows


if __name__ == "__main__":
    main()
