"""Tokenizers and models from disk or the Hub, with errors that a user can act on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from ..errors import CEMGError
from ..models.cemg import CEMGForConditionalGeneration, CEMGTokenizer
from ..models.gru4rec import GRU4RecForNextItem
from ..models.mscgrec import MSCGRecForConditionalGeneration, MSCGRecTokenizer
from ..models.next_item import ITEM_IDS_FILE, NextItemModel
from ..models.sasrec import SASRecForNextItem

GENERATORS: Mapping[str, type[CEMGForConditionalGeneration]] = {
    kind.config_class.model_type: kind for kind in (CEMGForConditionalGeneration, MSCGRecForConditionalGeneration)
}
NETWORKS: Mapping[str, type[NextItemModel]] = {kind.config_class.model_type: kind for kind in (SASRecForNextItem, GRU4RecForNextItem)}
"""Networks over whole items: they have a catalogue and no codes."""
MMGREC = "mmgrec"  # a name, because its package takes torch-geometric and seconds to import
TOKENIZERS: Mapping[str, type[CEMGTokenizer]] = {kind.__name__: kind for kind in (CEMGTokenizer, MSCGRecTokenizer)}


def open_tokenizer(folder: str | Path) -> CEMGTokenizer:
    """The item tokenizer in a tokenizer or model folder.

    Raises:
        CEMGError: no tokenizer there, damaged files, files of another version, or an empty catalogue.
    """
    files = (CEMGTokenizer.vocab_files_names[key] for key in ("item_ids_file", "item_codes_file"))
    missing = next((name for name in files if not (Path(folder) / name).is_file()), None)
    if missing is not None:
        raise CEMGError(f"{folder}: not a tokenizer folder ({missing} is missing); write one with `cemg tokenize`")
    try:
        described = json.loads((Path(folder) / "tokenizer_config.json").read_text(encoding="utf-8"))
        kind = TOKENIZERS.get(described.get("tokenizer_class"), CEMGTokenizer)
        tokenizer: CEMGTokenizer = kind.from_pretrained(folder)
    except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CEMGError(f"{folder}: not a tokenizer that this version reads ({reason}); run `cemg tokenize` again") from error
    if not tokenizer.item_ids:
        raise CEMGError(f"{folder}: the catalogue is empty; write a tokenizer with items by `cemg tokenize`")
    return tokenizer


def generator_class(model: str | Path) -> type[CEMGForConditionalGeneration]:
    """The class of the generator in a folder or of a Hub id, by the kind its configuration names.

    Raises:
        OSError: no such folder, and the Hub does not know it.
        ValueError: a configuration that cannot be read, or a model of another kind.
    """
    kind = _kind(model)
    if kind in NETWORKS:
        raise ValueError(
            f"a {kind} model ranks whole items and has no item codes, which this needs; recommend with it by `cemg recommend` or "
            "`cemg serve`, or in Python by AutoModel.from_pretrained(…).recommend, and measure it by `cemg run … --system`"
        )
    if kind not in GENERATORS:
        raise ValueError(_unknown_kind(kind, GENERATORS))
    return GENERATORS[kind]


def recommender_class(model: str | Path) -> type[CEMGForConditionalGeneration] | type[NextItemModel]:
    """The class of the generator, or of the network over whole items, in a folder or of a Hub id; raises as `generator_class`."""
    kind = _kind(model)
    known: Mapping[str, type[CEMGForConditionalGeneration] | type[NextItemModel]] = {**GENERATORS, **NETWORKS}
    if kind not in known:
        raise ValueError(_unknown_kind(kind, known))
    return known[kind]


def _kind(model: str | Path) -> str:
    described, _ = PreTrainedConfig.get_config_dict(model)
    return str(described.get("model_type", ""))


def _unknown_kind(kind: str, known: Mapping[str, object]) -> str:
    """Also for MMGRec: it ranks for the users of its data set, of whom its folder has vectors and no names."""
    if kind == MMGREC:
        return f"an {kind} model ranks for the users it was trained on; measure it by `cemg run … --system {kind}`, which knows them"
    return f"a model of kind {kind or 'unknown'!r} is none of {', '.join(known)}; give the folder `model` of a run"


def open_model(model: str | Path, dtype: str = "auto", device: str | torch.device = "cpu") -> CEMGForConditionalGeneration:
    """A model with its catalogue, from a folder or the Hub, in evaluation mode.

    Args:
        model: folder or Hub id.
        dtype: of the weights, such as "bfloat16"; "auto" is what they were saved in.
        device: where it computes.

    Raises:
        CEMGError: nothing of that name, a model of another kind, or a tokenizer that is missing or belongs to another model.
    """
    generator: CEMGForConditionalGeneration = _opened(model, generator_class, dtype, device)
    return generator


def open_recommender(
    model: str | Path, dtype: str = "auto", device: str | torch.device = "cpu"
) -> CEMGForConditionalGeneration | NextItemModel:
    """As `open_model`, for networks over whole items too (SASRec, GRU4Rec)."""
    opened: CEMGForConditionalGeneration | NextItemModel = _opened(model, recommender_class, dtype, device)
    return opened


def _opened(model: str | Path, class_of: Callable[[str | Path], Any], dtype: str, device: str | torch.device) -> Any:
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise CEMGError(f"{model}: not a model folder; train one with `cemg finetune`, or name the folder `model` of a run")
    try:
        opened = class_of(model).from_pretrained(model, dtype=dtype).to(device)
    except OSError as error:
        raise CEMGError(f"{model}: no such model folder, and the Hub did not give it ({str(error).splitlines()[0]})") from error
    except ValueError as error:
        raise CEMGError(f"{model}: {error}") from error
    if isinstance(opened, NextItemModel):
        if opened.item_ids is None:
            raise CEMGError(f"{model}: holds no catalogue; copy {ITEM_IDS_FILE} of the folder it was trained in beside it")
    elif opened.tokenizer is None:
        raise CEMGError(f"{model}: holds no item tokenizer; copy the files of the tokenizer it was trained with beside it")
    return opened
