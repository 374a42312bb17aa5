"""Tokenizer folders from disk, with errors that a user can act on."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from ..errors import CEMGError
from ..models.cemg import CEMGTokenizer


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
        tokenizer: CEMGTokenizer = CEMGTokenizer.from_pretrained(folder)
    except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CEMGError(f"{folder}: not a tokenizer that this version reads ({reason}); run `cemg tokenize` again") from error
    if not tokenizer.item_ids:
        raise CEMGError(f"{folder}: the catalogue is empty; write a tokenizer with items by `cemg tokenize`")
    return tokenizer
