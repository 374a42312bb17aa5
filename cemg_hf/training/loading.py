"""Tokenizers and models from disk or the Hub, with errors that a user can act on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from ..errors import CEMGError
from ..models.cemg import CEMGForConditionalGeneration, CEMGTokenizer
from ..models.mscgrec import MSCGRecForConditionalGeneration, MSCGRecTokenizer

GENERATORS: Mapping[str, type[CEMGForConditionalGeneration]] = {
    kind.config_class.model_type: kind for kind in (CEMGForConditionalGeneration, MSCGRecForConditionalGeneration)
}
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
    """The class of the generator in a folder or of a Hub id, by the kind its configuration names; CEMG's for any other kind.

    Raises:
        OSError: no such folder, and the Hub does not know it.
        ValueError: a configuration that cannot be read.
    """
    described, _ = PreTrainedConfig.get_config_dict(model)
    return GENERATORS.get(described.get("model_type", ""), CEMGForConditionalGeneration)


def open_model(model: str | Path, dtype: str = "auto", device: str | torch.device = "cpu") -> CEMGForConditionalGeneration:
    """A model with its catalogue, from a folder or the Hub, in evaluation mode.

    Args:
        model: folder or Hub id.
        dtype: of the weights, such as "bfloat16"; "auto" is what they were saved in.
        device: where it computes.

    Raises:
        CEMGError: nothing of that name, no CEMG model, or a tokenizer that is missing or belongs to another model.
    """
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise CEMGError(f"{model}: not a model folder; train one with `cemg finetune`, or name the folder `model` of a run")
    try:
        generator: CEMGForConditionalGeneration = generator_class(model).from_pretrained(model, dtype=dtype).to(device)
    except OSError as error:
        raise CEMGError(f"{model}: no such model folder, and the Hub did not give it ({str(error).splitlines()[0]})") from error
    except ValueError as error:
        raise CEMGError(f"{model}: {error}") from error
    if generator.tokenizer is None:
        raise CEMGError(f"{model}: holds no item tokenizer; copy the files of the tokenizer it was trained with beside it")
    return generator
