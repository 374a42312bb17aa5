"""Item tokenizers side by side on real catalogues: collapse, collisions, neighbours, and what the codes know of the next item.

Every system is trained with the package's default settings on the features of a finished `encode` stage, once per K and seed, and
judged by nearest-code assignment of its frozen checkpoint. Neighbours and next items are judged in one space for all systems: the
plain concatenation of the item's unit-length modality vectors.

    python benchmarks/tokenizer_quality.py --run beauty=runs/beauty --run movielens-100k=runs/movielens-100k

A folder given by `--work` keeps finished trainings, so a killed run resumes; several runs may share it. `seconds` of the result is the
sum over all trainings, whichever run they were done in.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cemg_hf.artefacts import commit, fingerprint, fingerprint_path, result_envelope, write_json
from cemg_hf.data import PreparedDataset
from cemg_hf.errors import CEMGError
from cemg_hf.evaluation.codes import neighbour_preservation
from cemg_hf.features.store import FeatureStore
from cemg_hf.models.cemg.assignment_cemg import assign_unique_codes
from cemg_hf.training.fusion_training import NextItemConfig, next_item_pairs
from cemg_hf.training.quantise import FeatureBatches, quantise
from cemg_hf.training.tokenizer_config import TokenizerTrainingConfig
from cemg_hf.training.tokenizer_training import train_rqvae

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "tokenizer_quality.json"
COLUMNS = {
    "seeds": "seeds",
    "codes used, worst level and seed": "worst_used_codes",
    "perplexity 1": "perplexity.0",
    "4": "perplexity.3",
    "collisions before, worst": "worst_collision_rate_before",
    "after": "collision_rate_after",
    "error": "reconstruction_error",
    "neighbours, 1 code": "neighbours.0",
    "2 codes": "neighbours.1",
    "next item, 1 code": "next_item.0",
    "2 codes ": "next_item.1",
    "seconds": "seconds",
}
NO_CONTRAST = NextItemConfig(epochs=0)
SYSTEMS: dict[str, dict[str, Any]] = {
    "cemg": {},
    "cemg, fusion by reconstruction": {"next_item": NO_CONTRAST},
    "cemg, rows as they are": {"unit_rows": False},
    "residual k-means on cemg's x": {"epochs": 0},
    "residual k-means": {"epochs": 0, "next_item": NO_CONTRAST},
    "text-only RQ-VAE (TIGER)": {"modalities": ["text"], "next_item": NO_CONTRAST},
    "text RQ-VAE, aligned (LETTER)": {"modalities": ["text"], "next_item": NO_CONTRAST, "lambda_align": 0.1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", action="append", required=True, metavar="NAME=FOLDER", help="run folder with dataset/ and features/; repeatable"
    )
    parser.add_argument("--codebook-size", type=int, nargs="+", default=[256, 512], help="K (default: 256 512)")
    parser.add_argument("--small-codebook-size", type=int, nargs="+", default=[64, 128], help="K for catalogues below 20·min(K) items")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS), metavar="SYSTEM", help=", ".join(SYSTEMS))
    parser.add_argument(
        "--single-seed-systems", nargs="*", default=[], metavar="SYSTEM", help="systems that run with the first seed and K only"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/tokenizer_quality"), help="where finished trainings are kept")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    arguments = parser.parse_args()
    metrics: dict[str, Any] = {}
    seconds = 0.0
    for entry in arguments.run:
        name, sign, folder = entry.partition("=")
        if not sign:
            raise CEMGError(f"--run {entry}: expected NAME=FOLDER")
        store, data = FeatureStore.load(Path(folder) / "features"), PreparedDataset.load(Path(folder) / "dataset")
        small = len(store.item_ids) < 20 * min(arguments.codebook_size)
        for size in arguments.small_codebook_size if small else arguments.codebook_size:
            for system in arguments.systems:
                first_only = system in arguments.single_seed_systems
                if first_only and size != (arguments.small_codebook_size if small else arguments.codebook_size)[0]:
                    continue
                seeds = arguments.seeds[:1] if first_only else arguments.seeds
                runs = [measure(Path(folder), store, data, system, size, seed, arguments.work) for seed in seeds]
                seconds += sum(run["seconds"] for run in runs)
                metrics[f"{name}, K {size}, {system}"] = summarise(runs)
                print(f"{name}, K {size}, {system}: {json.dumps(metrics[f'{name}, K {size}, {system}'], default=str)}", flush=True)
    envelope = result_envelope(
        metrics,
        command=shlex.join(["python", *sys.argv]),
        seeds=arguments.seeds,
        seconds=seconds,
        columns=COLUMNS,
    )
    write_json(arguments.output, envelope)


def measure(folder: Path, store: FeatureStore, data: PreparedDataset, system: str, size: int, seed: int, work: Path) -> dict[str, Any]:
    """One training and its figures, from `work` where they are there already."""
    config = TokenizerTrainingConfig(codebook_size=size, **SYSTEMS[system])
    key = fingerprint(fingerprint_path(folder / "features"), fingerprint_path(folder / "dataset"), repr(config), str(seed), commit())[:24]
    kept = work / f"{key}.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    vectors = {name: modality.vectors for name, modality in store.modalities.items()}
    masks = {name: np.asarray(modality.mask) for name, modality in store.modalities.items()}
    started = time.perf_counter()
    rqvae, report = train_rqvae(vectors, masks, config, seed, pairs=next_item_pairs(data.train_sequences(), config.next_item.window))
    seconds = time.perf_counter() - started
    used = list(rqvae.config.modality_dims)
    found = quantise(rqvae, FeatureBatches({name: vectors[name] for name in used}, masks))
    assert found.latent is not None
    codes, assignment = assign_unique_codes(found.codes, found.latent, rqvae.codebooks)
    figures = {
        "used_codes": [level["used_codes"] for level in report["levels"]],
        "perplexity": [level["perplexity"] for level in report["levels"]],
        "reconstruction_error": report["reconstruction_error"],
        "pca_error": report["pca_error"],
        "collision_rate_before": assignment.collision_rate_before,
        "collision_rate_after": assignment.collision_rate_after,
        "moved": assignment.moved,
        "neighbours": neighbour_shares(vectors, masks, codes.numpy()),
        "next_item": next_item_shares(data, codes),
        "alpha_image_mean": report["alpha"].get("image", {}).get("mean"),
        "alpha_image_std": report["alpha"].get("image", {}).get("std"),
        "content_head_explained_variance": report.get("content_head", {}).get("explained_variance"),
        "epochs": report["history"][-1]["epoch"],
        "seconds": seconds,
    }
    write_json(kept, figures)
    return figures


def neighbour_shares(vectors: dict[str, Any], masks: dict[str, np.ndarray], codes: np.ndarray) -> list[float]:
    """Share of an item's 10 nearest neighbours that have its first code, its first two codes, …"""
    blocks = [np.where(masks[name][:, None], np.asarray(values, dtype=np.float32), 0) for name, values in vectors.items()]
    plain = np.concatenate([block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-9) for block in blocks], axis=1)
    return [float(depth["share"]) for depth in neighbour_preservation(plain, codes)["depths"]]


def next_item_shares(data: PreparedDataset, codes: torch.Tensor) -> list[float]:
    """Share of validation targets that have the first code, the first two codes, … of the item bought just before."""
    cases = data.evaluation_cases("validation")
    lengths = cases.histories.lengths
    rows = np.flatnonzero(lengths)
    last = cases.histories.values[cases.histories.offsets[1:][rows] - 1]
    same = codes[torch.from_numpy(last.astype(np.int64))] == codes[torch.from_numpy(cases.targets[rows].astype(np.int64))]
    return [float(value) for value in same.long().cumprod(1).double().mean(0)]


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of every figure, and the worst level and seed of those that must hold everywhere."""
    summary: dict[str, Any] = {"seeds": len(runs)}
    for name in runs[0]:
        if runs[0][name] is None:
            continue
        values = np.array([run[name] for run in runs], dtype=np.float64)
        summary[name] = np.round(values.mean(0), 5).tolist()
        summary[f"{name}_std"] = np.round(values.std(0), 5).tolist()
    summary["worst_used_codes"] = float(min(min(run["used_codes"]) for run in runs))
    summary["worst_collision_rate_before"] = float(max(run["collision_rate_before"] for run in runs))
    return summary


if __name__ == "__main__":
    main()
