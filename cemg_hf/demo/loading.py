"""From what the command line names to a demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..data.dataset import ITEMS_FILE, PreparedDataset
from ..data.readers import is_local, local_path, read_table
from ..data.schema import normalise_items
from ..errors import CEMGError
from .engine import Engine
from .models import DemoModel
from .shop import Shop


def open_demo(
    models: Sequence[str],
    *,
    items: str | None = None,
    dataset: str | None = None,
    features: Sequence[str] = (),
    device: str = "cpu",
) -> Engine:
    """An engine for one model, or for two to compare.

    Args:
        models: folders or Hub ids.
        items: table with titles, categories and pictures, in any format that `cemg run` reads; None: that of `dataset`.
        dataset: folder written by `prepare`, or Hub id of one, whose users are the shoppers; None: the folder `dataset` beside the first
            model, if there is one.
        features: folders written by `encode`, one per model in order; where none is given, the folder `features` beside the model.
        device: where the models compute.

    Raises:
        CEMGError: a place that holds something else, or items of another shop.
    """
    if not 1 <= len(models) <= 2:
        raise CEMGError(f"the demo shows one model or two side by side, got {len(models)}")
    if len(features) > len(models):
        raise CEMGError(f"--features: {len(features)} folders for {len(models)} models; give one for each, in their order")
    folders = [Path(folder) for folder in features] + [None] * (len(models) - len(features))
    loaded = [DemoModel.load(source, folder, device) for source, folder in zip(models, folders, strict=True)]
    if len(loaded) == 2 and loaded[0].name == loaded[1].name:
        for model, source in zip(loaded, models, strict=True):
            model.name = source
    if len({model.name for model in loaded}) < len(loaded):
        raise CEMGError(f"{models[0]}: given twice; name two different models to compare them")
    prepared = _dataset(dataset, Path(models[0]))
    table, base = _items(items, prepared)
    ids = list(dict.fromkeys(item_id for model in loaded for item_id in model.tokenizer.item_ids))
    return Engine(loaded, Shop(ids, table, base, prepared))


def _dataset(dataset: str | None, model: Path) -> PreparedDataset | None:
    if dataset is None:
        beside = model.resolve().parent / "dataset"
        return PreparedDataset.load(beside) if model.is_dir() and (beside / ITEMS_FILE).is_file() else None
    if is_local(dataset) and local_path(dataset).exists():
        return PreparedDataset.load(local_path(dataset))
    try:
        return PreparedDataset.load(snapshot_download(dataset, repo_type="dataset"))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CEMGError(
            f"--dataset {dataset}: no such folder, and the Hub did not give it ({reason}); make one with `cemg prepare`"
        ) from error


def _items(items: str | None, dataset: PreparedDataset | None) -> tuple[pl.DataFrame | None, Path | None]:
    """The item table, and where its relative paths of pictures start."""
    if items is None:
        return (None, None) if dataset is None else (dataset.items_table(), dataset.folder)
    table = normalise_items(read_table(items, "items"), {}, items)
    if not is_local(items):
        return table, None
    path = local_path(items)
    return table, path if path.is_dir() else path.parent
