"""The settings of a recipe that a card names: content, codes, network, training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from .provenance import provenance

_NETWORKS = {"sasrec": "SASRec", "gru4rec": "GRU4Rec"}


def content_of(recipe: Mapping[str, Any]) -> list[str]:
    """The modalities of a recipe, those left out that its data is known to lack."""
    has_items = recipe["prepare"]["items"] is not None or recipe["prepare"]["interactions"] == "sample"
    known = provenance(recipe["prepare"]["name"]).content if has_items else ()
    return [kind for kind in recipe["encode"]["modalities"] if kind in ("collaborative", *known)]


def streams_of(recipe: Mapping[str, Any]) -> list[str]:
    """The modalities with a code stream each, those left out that its data is known to lack, in the order of the recipe."""
    present = content_of(recipe)
    return [name for name in recipe["streams"]["modalities"] if name in present]


def recipe_rows(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Name and value of each line, from the complete recipe as a mapping."""
    encode, codes, train = recipe["encode"], recipe["tokenize"], recipe["finetune"]
    network, loop = train["generator"], train["loop"]
    taught = train["objective"].get("teacher_weight")
    encoders = {
        "image": f"image by {_name(encode['image']['encoder'])}",
        "text": f"text by {_name(encode['text']['encoder'])}",
        "collaborative": _collaborative(encode),
    }
    rows = {
        "content": "; ".join(encoders[kind] for kind in content_of(recipe)),
        "codes": f"{codes['num_levels']} levels of {codes['codebook_size']} codes, RQ-VAE of latent size {codes['latent_dim']}",
        "generator": f"T5 {network['num_layers']} + {network['num_decoder_layers']} layers, d_model {network['d_model']}, "
        f"{network['num_heads']} heads, dropout {network['dropout_rate']}, "
        + (f"from {_name(network['init_from'])}" if network.get("init_from") else "from scratch"),
        "training": f"at most {loop['epochs']} epochs, batch {loop['batch_size']}, AdamW, learning rate {loop['learning_rate']:g}, "
        f"weight decay {loop['weight_decay']:g}, precision {loop['mixed_precision']}, seed {recipe['seed']}"
        + (f", taught by the dense tower with weight {taught:g}" if taught else ""),
    }
    if recipe.get("streams") is not None:
        streams = recipe["streams"]
        rows["code streams"] = (
            f"{', '.join(streams_of(recipe))}; written: {streams['decoded']}; {streams['dropout']:g} of them hidden in training"
        )
    if train.get("dense") is not None:
        tower = train["dense"]
        kept = {"hidden_size": "size", "num_layers": "layers", "num_heads": "heads", "dropout": "dropout"}
        sizes = ", ".join(f"{kept[key]} {value}" for key, value in tower["settings"].items() if key in kept)
        rows["dense tower"] = f"SASRec {'with content vectors' if tower['content'] else 'of item ids alone'}, {sizes}"
    return rows


def _collaborative(encode: Mapping[str, Any]) -> str:
    """Where e^c comes from: LightGCN, or a network over items in its place (`encode.sequential`)."""
    network = encode.get("sequential")
    if network is None:
        return f"LightGCN of {encode['collaborative']['dimension']} dimensions"
    size = network["settings"].get("hidden_size")  # None: the network's own default
    return f"item vectors of {_NETWORKS.get(network['network'], network['network'])}" + (f" of {size} dimensions" if size else "")


def _name(source: str) -> str:
    """A Hub id as it is, the place of a folder by its name."""
    return PurePath(source).name if source.startswith(("/", "$", "~", ".")) else source
