"""Several identifiers per item, from neighbouring checkpoints of the RQ-VAE (MTGRec, arXiv 2504.04400): training data, nothing else.

Near the end of its training an RQ-VAE's checkpoints agree on what items have in common and differ on details. A generator that meets an
item under the codes of several of them sees more sequences and learns less by heart. They lie beside the tokenizer, in a file that
models do not carry: rankings write the tokenizer's own codes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CEMGError
from ..models.cemg import CEMGRQVAE, CEMGTokenizer
from ..models.cemg.assignment_cemg import assign_unique_codes
from .quantise import FeatureBatches, quantise

IDENTIFIERS_NAME = "identifiers.safetensors"


def neighbouring_codes(neighbours: Sequence[CEMGRQVAE], items: FeatureBatches) -> Tensor:
    """(E − 1, N, M) int64 codes of all items by each of the checkpoints, resolved to unique ones within it."""
    found = [quantise(neighbour, items) for neighbour in neighbours]
    return torch.stack(
        [assign_unique_codes(one.codes, _latent(one.latent), by.codebooks)[0] for one, by in zip(found, neighbours, strict=True)]
    )


def save_identifiers(folder: Path, item_codes: Tensor) -> None:
    """Write E identifier sets (E, N, M), of which the first is the tokenizer's own."""
    save_file({"item_codes": item_codes.int().contiguous()}, folder / IDENTIFIERS_NAME)


def load_identifiers(folder: str | Path, tokenizer: CEMGTokenizer) -> Tensor:
    """(E, N, M) int64 identifier sets of a tokenizer folder; the tokenizer's own codes alone where it holds no others.

    Raises:
        CEMGError: sets that were made for other codes.
    """
    path = Path(folder) / IDENTIFIERS_NAME
    if not path.is_file():
        return tokenizer.item_codes.unsqueeze(0)
    item_codes = load_file(path)["item_codes"].long()
    if item_codes.shape[1:] != tokenizer.item_codes.shape or not torch.equal(item_codes[0], tokenizer.item_codes):
        raise CEMGError(f"{path}: its first set is not the code of the tokenizer beside it; run `cemg tokenize` again, or delete the file")
    return item_codes


def identifier_report(item_codes: Tensor) -> dict[str, Any]:
    """How far the sets (E, N, M) differ: their number, and the shares of items (and of codes by level) that differ from the first."""
    differs = item_codes[1:] != item_codes[0]
    return {
        "sets": len(item_codes),
        "items_with_other_codes": differs.any(-1).double().mean().item(),
        "other_codes": differs.double().mean((0, 1)).tolist(),
    }


def _latent(latent: Tensor | None) -> Tensor:
    assert latent is not None
    return latent
