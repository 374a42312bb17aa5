"""What missing and noisy content does to codes and to what they know of the next item.

Three kinds of damage, to a random share of the items: images dropped, texts dropped, images replaced by noise (every component takes
the value of another item, so the noise has the spread of real images). Damage comes either after training (the tokenizer is frozen,
the items are coded again, as new items would be) or before it (the tokenizer is trained on the damaged catalogue). Judged are the
codes kept by the damaged items, and next-item recall of the quantised vectors over the test cases, history items excluded.

    python benchmarks/tokenizer_robustness.py --run runs/movielens-100k --codebook-size 64
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
from cemg_hf.evaluation.codes import code_agreement
from cemg_hf.evaluation.confidence import bootstrap_interval
from cemg_hf.evaluation.content_knn import ContentKNNRecommender
from cemg_hf.features.store import FeatureStore
from cemg_hf.models.cemg.modeling_rqvae import CEMGRQVAE
from cemg_hf.training.fusion_training import next_item_pairs
from cemg_hf.training.quantise import FeatureBatches, quantise
from cemg_hf.training.tokenizer_config import TokenizerTrainingConfig
from cemg_hf.training.tokenizer_training import train_rqvae

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "tokenizer_robustness.json"
COLUMNS = {
    "recall@10": "recall@10",
    "95 % low": "recall@10_interval.0",
    "95 % high": "recall@10_interval.1",
    "recall@50": "recall@50",
    "damaged items": "damaged_items",
    "first code kept": "codes_kept.depths.0.kept",
    "whole code kept": "codes_kept.depths.3.kept",
    "error": "reconstruction_error",
    "collisions": "collision_rate",
}
DAMAGE = {
    "30 % of images dropped": ("image", 0.3, "drop"),
    "30 % of texts dropped": ("text", 0.3, "drop"),
    "10 % of images noise": ("image", 0.1, "noise"),
}
DROPOUTS = (0.0, 0.3)
CUTOFFS = (10, 50)
Arrays = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder with dataset/ and features/ of all three modalities")
    parser.add_argument("--codebook-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    arguments = parser.parse_args()
    started = time.perf_counter()
    store, data = FeatureStore.load(arguments.run / "features"), PreparedDataset.load(arguments.run / "dataset")
    vectors = {name: np.array(modality.vectors, dtype=np.float32) for name, modality in store.modalities.items()}
    masks = {name: np.array(modality.mask) for name, modality in store.modalities.items()}
    metrics: dict[str, Any] = {}
    for dropout in DROPOUTS:
        label = f"modality dropout {dropout:g}"
        config = TokenizerTrainingConfig(codebook_size=arguments.codebook_size, modality_dropout=dropout, content_head_dim=0)
        pairs = next_item_pairs(data.train_sequences(), config.next_item.window)
        model, _ = train_rqvae(vectors, masks, config, arguments.seed, pairs=pairs)
        whole, codes = measure(model, vectors, masks, data)
        metrics[f"{label}, nothing damaged"] = whole
        for name, (modality, share, kind) in DAMAGE.items():
            worse, worse_masks, rows = damaged(vectors, masks, modality, share, kind, arguments.seed)
            after, worse_codes = measure(model, worse, worse_masks, data)
            kept = code_agreement(codes[rows], worse_codes[rows])
            metrics[f"{label}, {name}, frozen tokenizer"] = after | {"damaged_items": len(rows), "codes_kept": kept}
            retrained, _ = train_rqvae(worse, worse_masks, config, arguments.seed, pairs=pairs)
            metrics[f"{label}, {name}, trained on them"] = measure(retrained, worse, worse_masks, data)[0]
            print({key: value for key, value in metrics.items() if name in key and label in key}, flush=True)
    command, seconds = shlex.join(["python", *sys.argv]), time.perf_counter() - started
    write_json(arguments.output, result_envelope(metrics, command=command, seeds=[arguments.seed], seconds=seconds, columns=COLUMNS))


def damaged(vectors: Arrays, masks: Arrays, modality: str, share: float, kind: str, seed: int) -> tuple[Arrays, Arrays, np.ndarray]:
    """A copy of the catalogue in which `share` of the items that have `modality` lost it or got noise for it, and their rows."""
    rng = np.random.default_rng(seed)
    given = np.flatnonzero(masks[modality])
    rows = np.sort(rng.choice(given, round(share * len(given)), replace=False))
    vectors, masks = dict(vectors), dict(masks)
    if kind == "drop":
        masks[modality] = masks[modality].copy()
        masks[modality][rows] = False
    else:
        block = vectors[modality].copy()
        block[rows] = vectors[modality][rng.choice(given, (len(rows), block.shape[1])), np.arange(block.shape[1])]
        vectors[modality] = block
    return vectors, masks, rows


def measure(model: CEMGRQVAE, vectors: Arrays, masks: Arrays, data: PreparedDataset) -> tuple[dict[str, Any], np.ndarray]:
    """Figures of the nearest codes of all items, and the codes."""
    found = quantise(model, FeatureBatches(vectors, masks), keep_latent=False)
    quantised = model.codebooks[torch.arange(model.config.num_levels), found.codes].sum(1).numpy()
    cases = data.evaluation_cases("test")
    ranked = ContentKNNRecommender([quantised]).rank(cases.histories, max(CUTOFFS), exclude_history=True)
    hit = ranked == cases.targets[:, None]
    figures: dict[str, Any] = {"n": len(hit)} | found.metrics
    for k in CUTOFFS:
        interval = bootstrap_interval(hit[:, :k].any(1).astype(np.float64))
        figures |= {f"recall@{k}": interval.mean, f"recall@{k}_interval": [interval.low, interval.high]}
    return figures, found.codes.numpy()


if __name__ == "__main__":
    main()
