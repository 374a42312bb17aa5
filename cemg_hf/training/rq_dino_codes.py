"""The codes that `cemg rq-dino` leaves behind, for whoever takes them over."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..artefacts import write_json
from ..errors import CEMGError
from ..features.store import ITEM_IDS_NAME

CODES_NAME = "codes.safetensors"


@dataclass
class PictureCodes:
    """Nearest codes of the pictures of N items; they may collide."""

    item_ids: list[str] = field(metadata={"help": "Ids of the N items."})
    codes: Tensor = field(metadata={"help": "(N, M) int64; zeros for an item without a picture."})
    latent: Tensor = field(metadata={"help": "(N, D) float32 z before quantisation; zeros for an item without a picture."})
    mask: Tensor = field(metadata={"help": "(N,) bool: which items have a picture."})
    codebooks: Tensor = field(metadata={"help": "(M, K, D) code vectors."})

    def save(self, folder: Path) -> None:
        """Write `codes.safetensors` and `item_ids.json`."""
        tensors = {"codes": self.codes, "latent": self.latent, "mask": self.mask, "codebooks": self.codebooks}
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / CODES_NAME)
        write_json(folder / ITEM_IDS_NAME, self.item_ids)

    @classmethod
    def load(cls, folder: str | Path) -> PictureCodes:
        """The codes that `save` wrote.

        Raises:
            CEMGError: no such folder or files.
        """
        folder = Path(folder)
        for name in (CODES_NAME, ITEM_IDS_NAME):
            if not (folder / name).is_file():
                raise CEMGError(f"{folder}: {name} is missing; give a folder written by `cemg rq-dino`")
        return cls(json.loads((folder / ITEM_IDS_NAME).read_text(encoding="utf-8")), **load_file(folder / CODES_NAME))

    def of_items(self, item_ids: Sequence[str]) -> PictureCodes:
        """The same for other items, in their order; those that are not among these have no picture.

        Raises:
            CEMGError: none of them has one.
        """
        place = {item_id: row for row, item_id in enumerate(self.item_ids)}
        rows = torch.tensor([place.get(item_id, -1) for item_id in item_ids])
        known = rows >= 0
        rows = rows.clamp_min(0)
        mask = self.mask[rows] & known
        if not bool(mask.any()):
            raise CEMGError(
                f"picture codes: none of the {len(item_ids)} items has one (theirs begin with {item_ids[0]}, "
                f"the coded ones with {self.item_ids[0]}); "
                "train RQ-DINO on the pictures of this data set"
            )
        return PictureCodes(list(item_ids), self.codes[rows] * mask[:, None], self.latent[rows] * mask[:, None], mask, self.codebooks)
