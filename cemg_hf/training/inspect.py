"""`cemg inspect`: everything that tells a good item tokenizer from a bad one, as one JSON file and one page of plots."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ..artefacts import result_envelope, write_json
from ..data.dataset import PreparedDataset
from ..errors import CEMGError
from ..evaluation.code_plots import plot_codes
from ..evaluation.code_tree import write_code_tree
from ..evaluation.codes import (
    category_labels,
    category_purity,
    code_frequencies,
    level_usage,
    modality_contribution,
    neighbour_preservation,
)
from ..features.store import ITEM_IDS_NAME, FeatureStore, ModalityFeatures
from ..models.cemg import CEMGTokenizer
from ..models.cemg.assignment_cemg import collision_rate
from ..models.cemg.description_cemg import BranchDescription
from ..models.cemg.modeling_rqvae import CEMGRQVAE, reconstruction_loss
from .loading import open_tokenizer
from .tokenizer_report import tokenizer_report

logger = logging.getLogger(__name__)

REPORT_NAME = "inspection.json"
PLOT_NAME = "inspection.png"
TREE_NAME = "tree.html"
DESCRIBED = ("item_id", "title", "brand", "categories", "description")
FUSED = "fused"
BATCH = 4096
ALPHA_BINS = 20


def inspect_tokenizer(
    tokenizer: str | Path,
    *,
    features: str | Path | None = None,
    dataset: str | Path | None = None,
    output: str | Path | None = None,
    seed: int = 0,
    tree: bool = False,
) -> dict[str, Any]:
    """Measure an item tokenizer and write `inspection.json` and `inspection.png`.

    Args:
        tokenizer: folder of a tokenizer, or of a model that carries one.
        features: folder written by `encode`, with the items of the tokenizer; `features` beside the tokenizer folder where None. Without
            features the report holds what the codes alone tell.
        dataset: folder written by `prepare`, for categories; `dataset` beside the tokenizer folder where None.
        output: folder to write to; `inspection` beside the tokenizer folder where None. Not inside the tokenizer folder, whose
            fingerprint covers its files.
        seed: of sampled neighbours and permuted categories.
        tree: also write `tree.html`, the catalogue to browse by its codes, with titles and pictures where there is a data set.

    Returns:
        The envelope of `result_envelope`. Its `metrics["tokenizer"]` holds
        - `items`, `num_levels`, `codebook_size`; `levels` and `prefixes` (see `level_usage`) of nearest-code assignment (`assignment`:
          "nearest"), without features of the codes after resolution ("resolved"); `resolved` the same after resolution; `frequencies`
          (M × K) of the codes that `levels` describes;
        - `collision_rate_before` (None without features) and `collision_rate_after`, `moved` (items whose code is not their nearest),
          `spilled` (items that left their (M−1)-prefix);
        - `reconstruction_error`, `autoencoder_error` (without quantisation) and `pca_error` (PCA to the same latent size, without
          quantisation) as shares of the variance of x, `reconstruction_by_level` with the first 1 … M codes, and `residual_share`: what
          each level leaves of the squared norm of z;
        - `alpha`, `alpha_histogram` of the image weight (items with both modalities);
        - `neighbour_preservation`: per space (fused x, and each modality on its own), `category_purity` with `category_depth` and
          `categories`, `modality_contribution`.
        What cannot be measured is absent.

    Raises:
        CEMGError: a folder that is no tokenizer, features of other items or dimensions, or an output inside the tokenizer folder.
    """
    started = time.perf_counter()
    folder = Path(tokenizer).resolve()
    loaded = open_tokenizer(folder)
    grown = int(loaded.new_items.sum())
    if grown:  # nothing but their codes is known of them here
        logger.info("inspect: %d items added after training are in the tree, not in the figures", grown)
        loaded.remove_items([loaded.item_ids[row] for row in loaded.new_items.nonzero().flatten().tolist()])
    target = Path(output).resolve() if output is not None else folder.parent / "inspection"
    if target == folder or folder in target.parents:
        raise CEMGError(f"{target}: inside the tokenizer folder, whose fingerprint would change; write the inspection elsewhere")
    inputs = _load_features(_found(features, folder.parent / "features", ITEM_IDS_NAME), loaded)
    catalogue = _found(dataset, folder.parent / "dataset", "items.parquet")
    labels, depth = _load_labels(catalogue, loaded)

    metrics = _codes_only(loaded)
    if inputs is not None:
        metrics |= _with_features(loaded, inputs, seed)
    if labels is not None:
        metrics["category_purity"] = category_purity(loaded.item_codes.numpy(), labels, seed=seed)
        metrics["category_depth"] = depth
        metrics["categories"] = len(set(labels.tolist()) - {None})
    report = result_envelope(
        {"tokenizer": metrics},
        command=f"cemg inspect {tokenizer}",
        seeds=[seed],
        seconds=time.perf_counter() - started,
        tokenizer=str(folder),
        catalogue_fingerprint=loaded.catalogue_fingerprint,
    )
    write_json(target / REPORT_NAME, report)
    plot_codes(metrics, target / PLOT_NAME, f"Item tokenizer {folder.parent.name}/{folder.name}")
    if tree:
        _write_tree(target / TREE_NAME, open_tokenizer(folder) if grown else loaded, catalogue, folder.parent.name)
    logger.info("inspect: wrote %s and %s to %s", REPORT_NAME, PLOT_NAME, target)
    return report


def _write_tree(path: Path, tokenizer: CEMGTokenizer, catalogue: Path | None, title: str) -> None:
    """The page; a catalogue whose texts are too much for one is said, not an error: everything else is measured."""
    try:
        page = write_code_tree(
            path,
            item_ids=tokenizer.item_ids,
            item_codes=tokenizer.item_codes,
            title=title,
            items=PreparedDataset.load(catalogue).items_table() if catalogue is not None else None,
            image_base=catalogue,
            latent=tokenizer.quantised_vectors(),
        )
    except CEMGError as error:
        logger.warning("inspect: no %s (%s)", path.name, error)
        return
    logger.info("inspect: %s shows %d items and %d pictures", path.name, page.num_items, page.num_pictures)


def describe_codes(tokenizer: str | Path, codes: str, *, dataset: str | Path | None = None) -> BranchDescription:
    """What a branch of the code tree holds; see `CEMGTokenizer.describe`. `dataset` None is the folder `dataset` beside the tokenizer.

    Raises:
        CEMGError: no tokenizer, codes that are none of its own, or a data set without its items.
    """
    folder = Path(tokenizer).resolve()
    loaded = open_tokenizer(folder)
    catalogue = _found(dataset, folder.parent / "dataset", "items.parquet")
    items = None
    if catalogue is not None:
        table = PreparedDataset.load(catalogue).items_table()
        known = [name for name in DESCRIBED if name in table.columns]
        ordered = pl.DataFrame({"item_id": loaded.item_ids}).join(table.select(known), on="item_id", how="left", maintain_order="left")
        items = ordered.to_dict(as_series=False)
    try:
        return loaded.describe(codes, items)
    except ValueError as error:
        raise CEMGError(str(error)) from error


def format_inspection(report: Mapping[str, Any]) -> str:
    """The main figures of a report of `inspect_tokenizer` as a table for a terminal."""
    metrics = report["metrics"]["tokenizer"]
    size = metrics["codebook_size"]
    which = {"nearest": "nearest codes", "resolved": "codes after resolution"}[metrics["assignment"]]
    blocks = [
        f"{metrics['items']:,} items, {metrics['num_levels']} levels of {size} codes ({which})",
        _aligned(
            ["level", "used", "dead", "perplexity", "entropy", "prefixes", "largest"],
            [
                [
                    str(prefix["depth"]),
                    f"{level['used_codes']:.1%}",
                    str(level["dead"]),
                    f"{level['perplexity']:.1f}",
                    f"{level['entropy_share']:.1%}",
                    f"{prefix['distinct']:,}",
                    f"{prefix['largest_share']:.2%}",
                ]
                for level, prefix in zip(metrics["levels"], metrics["prefixes"], strict=True)
            ],
        ),
    ]
    before, after = metrics["collision_rate_before"], metrics["collision_rate_after"]
    lines = [["collisions before → after", f"{'not measured' if before is None else f'{before:.2%}'} → {after:.2%}"]]
    if "moved" in metrics:
        lines.append(["items moved (to another prefix)", f"{metrics['moved']:,} ({metrics['spilled']:,})"])
    if "reconstruction_error" in metrics:
        lines.append(["reconstruction error", f"{metrics['reconstruction_error']:.4f} of the variance"])
        lines.append(["  without quantisation", f"{metrics['autoencoder_error']:.4f}"])
        lines.append(["  PCA of the same size", f"{metrics['pca_error']:.4f}"])
    for name, weights in metrics.get("alpha", {}).items():
        if name != "items_with_both":
            lines.append([f"α {name}, mean ± std", f"{weights['mean']:.3f} ± {weights['std']:.3f}"])
    for name, change in metrics.get("modality_contribution", {}).items():
        if change["items"]:
            values = f"{change['first_code_changed']:.1%} / {change['any_code_changed']:.1%} of items"
            lines.append([f"first / any code changes without {name}", values])
    blocks.append(_aligned(None, lines))
    rows = [
        [space, str(entry["depth"]), f"{entry['share']:.2%}", f"{100 * entry['chance']:.3g}%", f"{entry['lift']:.1f}×"]
        for space, found in metrics.get("neighbour_preservation", {}).items()
        for entry in found["depths"]
        if entry["lift"] is not None
    ]
    if rows:
        blocks.append(_aligned(["neighbours in", "codes shared", "share", "chance", "lift"], rows))
    rows = [
        [str(entry["depth"]), f"{entry['purity']:.1%}", f"{entry['chance']:.1%}", f"{entry['nmi']:.3f}", f"{entry['items']:,}"]
        for entry in metrics.get("category_purity", [])
        if entry["purity"] is not None
    ]
    if rows:
        title = f"{metrics['categories']} categories"
        blocks.append(_aligned([f"codes shared ({title})", "purity", "chance", "adjusted NMI", "items"], rows))
    return "\n\n".join(blocks) + "\n"


@dataclass(frozen=True)
class _Inputs:
    """Features in the order of the tokenizer's items, zero where masked; `network` names those that the RQ-VAE reads."""

    vectors: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    network: list[str]

    def tensors(self, rows: slice, without: str | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features and masks of some rows for the RQ-VAE, with one modality masked where asked."""
        features = {name: torch.from_numpy(self.vectors[name][rows]) for name in self.network}
        masks = {name: torch.from_numpy(self.masks[name][rows] & (name != without)) for name in self.network}
        return features, masks


def _codes_only(tokenizer: CEMGTokenizer) -> dict[str, Any]:
    codes = tokenizer.item_codes.numpy()
    usage = level_usage(codes, tokenizer.codebook_size)
    return {
        "items": len(codes),
        "num_levels": tokenizer.num_levels,
        "codebook_size": tokenizer.codebook_size,
        "assignment": "resolved",
        **usage,
        "resolved": usage,
        "frequencies": code_frequencies(codes, tokenizer.codebook_size).tolist(),
        "collision_rate_before": None,
        "collision_rate_after": collision_rate(tokenizer.item_codes),
    }


def _with_features(tokenizer: CEMGTokenizer, inputs: _Inputs, seed: int) -> dict[str, Any]:
    """What takes the vectors behind the codes; without an RQ-VAE in the tokenizer that is neighbours alone."""
    final = tokenizer.item_codes.numpy()
    spaces = dict(inputs.vectors)
    metrics: dict[str, Any] = {}
    if tokenizer.rqvae is not None:
        model = tokenizer.rqvae.eval()
        nearest, fused, measured = _through_network(model, inputs)
        metrics |= {
            "assignment": "nearest",
            **level_usage(nearest, tokenizer.codebook_size),
            "frequencies": code_frequencies(nearest, tokenizer.codebook_size).tolist(),
            "collision_rate_before": collision_rate(torch.from_numpy(nearest)),
            "moved": int((nearest != final).any(axis=1).sum()),
            "spilled": int((nearest[:, :-1] != final[:, :-1]).any(axis=1).sum()),
            **measured,
            "modality_contribution": _contribution(model, inputs, nearest),
        }
        spaces = {FUSED: fused, **spaces}
    metrics["neighbour_preservation"] = {name: neighbour_preservation(space, final, seed=seed) for name, space in spaces.items()}
    return metrics


@torch.inference_mode()
def _through_network(model: CEMGRQVAE, inputs: _Inputs) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Nearest codes (N, M), fused vectors x (N, 2d; zero where no modality is present), and reconstruction and α figures."""
    vectors = {name: inputs.vectors[name] for name in inputs.network}
    report = tokenizer_report(model, vectors, {name: inputs.masks[name] for name in inputs.network})
    levels = model.config.num_levels
    count = len(next(iter(vectors.values())))
    codes, fused, image_weights = [], [], []
    squared, left, errors = 0.0, np.zeros(levels), np.zeros(levels + 1)
    halves = 0.0
    for start in range(0, count, BATCH):
        output = model.fuse(*inputs.tensors(slice(start, start + BATCH)))
        latent = model.encoder(output.x)
        found = model.quantise(latent)
        codes.append(found.codes.numpy())
        fused.append((output.x * output.present.any(1, keepdim=True)).numpy())
        both = (output.alpha > 0).all(1)
        image_weights.append(output.alpha[both, 0].numpy())
        after = torch.cat([found.residuals[:, 1:], (latent - found.quantised)[:, None]], dim=1)
        squared += latent.square().sum().item()
        left += after.square().sum((0, 2)).numpy()
        # The loss is a mean over the halves of x that are present: batches weigh by how many they have.
        weight = float(output.present.sum())
        partial = [*(latent - after[:, level] for level in range(levels)), latent]
        errors += weight * np.array([reconstruction_loss(model.decode(part), output.x, output.present).item() for part in partial])
        halves += weight
    # In the report's unit, shares of the variance of x: the last level is its reconstruction error.
    share = report["reconstruction_error"] / errors[-2] if errors[-2] > 0 else 0.0
    measured = {
        "reconstruction_error": report["reconstruction_error"],
        "autoencoder_error": float(errors[-1] * share),
        "pca_error": report["pca_error"],
        "latent_dim": model.config.latent_dim,
        "reconstruction_by_level": [float(error * share) for error in errors[:-1]],
        "residual_share": [float(value) for value in left / max(squared, 1e-12)],
        "alpha": report["alpha"],
        "modalities": {name: int(inputs.masks[name].sum()) for name in inputs.network},
    }
    weights = np.concatenate(image_weights)
    if len(weights):
        counts, edges = np.histogram(weights, bins=ALPHA_BINS, range=(0, 1))
        measured["alpha_histogram"] = {"edges": edges.tolist(), "counts": counts.tolist()}
    return np.concatenate(codes), np.concatenate(fused), measured


def _contribution(model: CEMGRQVAE, inputs: _Inputs, nearest: np.ndarray) -> dict[str, dict[str, Any]]:
    """Nearest codes with each modality masked in turn, over the items that keep another one."""
    if len(inputs.network) < 2:
        return {}
    given = np.stack([inputs.masks[name] for name in inputs.network]).sum(0)
    counted = {name: inputs.masks[name] & (given > 1) for name in inputs.network}
    masked = {name: model.encode_codes(*inputs.tensors(slice(None), without=name), batch_size=BATCH).numpy() for name in inputs.network}
    return modality_contribution(nearest, masked, counted)


def _found(given: str | Path | None, beside: Path, file: str) -> Path | None:
    """The folder the caller named, else the one beside the tokenizer where it is one."""
    if given is not None:
        return Path(given)
    return beside if (beside / file).is_file() else None


def _load_features(folder: Path | None, tokenizer: CEMGTokenizer) -> _Inputs | None:
    if folder is None:
        return None
    store = FeatureStore.load(folder)
    position = {item_id: row for row, item_id in enumerate(store.item_ids)}
    unknown = [item_id for item_id in tokenizer.item_ids if item_id not in position]
    if unknown:
        raise CEMGError(
            f"{folder}: no features of {len(unknown)} of the tokenizer's {len(tokenizer.item_ids)} items ({unknown[0]!r} …); "
            "give the folder of features that the tokenizer was trained on"
        )
    rows = np.array([position[item_id] for item_id in tokenizer.item_ids], dtype=np.int64)
    network = dict(tokenizer.rqvae.config.modality_dims) if tokenizer.rqvae is not None else {}
    missing = next((name for name in network if name not in store.modalities), None)
    if missing is not None:
        raise CEMGError(f"{folder}: no {missing} features, which the tokenizer was trained on; give its own features folder")
    vectors = {}
    for name, block in store.modalities.items():
        own = np.asarray(block.vectors[rows], dtype=np.float32)
        vectors[name] = _network_input(tokenizer, name, block, own, folder) if name in network else own
    masks = {name: np.asarray(block.mask[rows], dtype=bool) for name, block in store.modalities.items()}
    return _Inputs(
        vectors={name: np.where(masks[name][:, None], values, np.float32(0)) for name, values in vectors.items()},
        masks=masks,
        network=list(network),
    )


def _network_input(tokenizer: CEMGTokenizer, name: str, block: ModalityFeatures, vectors: np.ndarray, folder: Path) -> np.ndarray:
    """Vectors (N, d_m) of the store as the RQ-VAE takes them: where it has a projection of its own (it was trained on from older codes),
    they go back to raw vectors and through that.
    """
    assert tokenizer.rqvae is not None
    expected = tokenizer.rqvae.config.modality_dims[name]
    made = tokenizer.encoders.get(name, {}).get("fingerprint")
    found = block.encoder.get("fingerprint")
    if made and found and made != found:
        raise CEMGError(f"{folder}: {name} features of another encoder than the tokenizer's; give its own features folder")
    parts = {key: value.numpy() for key, value in tokenizer.projections.get(name, {}).items()}
    own = block.projection
    if parts and parts["mean"].shape == own.mean.shape and not all(np.array_equal(parts[key], getattr(own, key)) for key in parts):
        raw = vectors / own.scale @ own.components + own.mean
        vectors = ((raw - parts["mean"]) @ parts["components"].T * parts["scale"]).astype(np.float32)
    if vectors.shape[1] != expected:
        raise CEMGError(
            f"{folder}: {name} features have {vectors.shape[1]} dimensions, the tokenizer takes {expected}; give its own features folder"
        )
    return vectors


def _load_labels(folder: Path | None, tokenizer: CEMGTokenizer) -> tuple[np.ndarray | None, int]:
    """Category labels (N,) in the order of the tokenizer's items, and the depth of the category path they are taken at."""
    if folder is None:
        return None, 0
    table = PreparedDataset.load(folder).items_table(["item_id", "categories"])
    ordered = pl.DataFrame({"item_id": tokenizer.item_ids}).join(table, on="item_id", how="left", maintain_order="left")
    if ordered.join(table, on="item_id", how="anti").height == ordered.height:
        raise CEMGError(f"{folder}: has none of the tokenizer's items; give the data set that the tokenizer was made for")
    return category_labels(ordered["categories"])


def _aligned(head: list[str] | None, rows: list[list[str]]) -> str:
    """Columns padded to one width: the first to the left, the others to the right."""
    table = [head, *rows] if head else rows
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in table
    ]
    return "\n".join(line.rstrip() for line in lines)
